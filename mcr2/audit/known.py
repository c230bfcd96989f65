"""How well scores find the wrong labels, where the truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mcr2 import checks
from mcr2.checks import Array, Labels


@dataclass(frozen=True)
class Quality:
    """How well scores rank wrong labels before right ones.

    Args:
        wrong: how many labels are wrong.
        auroc: the probability that a wrong one scores above a right one, equals counting half;
            None where all are right or all are wrong.
        average_precision: the mean over wrong labels of the precision down to each; None where none
            is wrong. Chance is the share of wrong labels.
        precision_at_count: the share of wrong ones among as many of the most suspicious as there
            are wrong ones; equals in the order of samples.
    """

    wrong: int
    auroc: float | None
    average_precision: float | None
    precision_at_count: float | None


def quality(scores: Array, given: Labels, true: Labels) -> Quality:
    """Compare scores ``(N,)`` with where given labels ``(N,)`` differ from the true ones.

    A true label is -1 where a sample is of none of the classes.

    Raises:
        TypeError, ValueError: scores or labels of another kind or length, or not finite.

    Example:
        >>> import numpy as np
        >>> quality(np.array([0.1, 0.9, 0.4]), [0, 1, 1], [0, 0, 1])
        Quality(wrong=1, auroc=1.0, average_precision=1.0, precision_at_count=1.0)
    """
    s, y, t = _checked(scores, given, true)
    return _quality(s, y != t)


def quality_by_class(
    scores: Array, given: Labels, true: Labels, *, num_classes: int
) -> tuple[Quality, ...]:
    """Return :func:`quality` among the samples of each given label; of none there is no wrong one.

    Raises:
        TypeError, ValueError: as :func:`quality`; labels outside [0, K).
    """
    s, y, t = _checked(scores, given, true)
    checks.labels(y, num_classes)
    members = (y == k for k in range(checks.integer("num_classes", num_classes, 1)))
    return tuple(_quality(s[own], (y != t)[own]) for own in members)


def _checked(scores: Array, given: Labels, true: Labels) -> tuple[Tensor, Tensor, Tensor]:
    s = checks.floating("scores", scores, "N").detach().cpu().double()
    y = checks.labels(given, count=len(s)).cpu()
    t = torch.as_tensor(true).cpu()
    none = torch.where(t == -1, torch.zeros_like(t), t)
    checks.labels(none, count=len(s), name="true labels")
    return s, y, t


def _quality(scores: Tensor, wrong: Tensor) -> Quality:
    from sklearn.metrics import average_precision_score, roc_auc_score

    count, some = int(wrong.sum()), len(wrong)
    s, w = scores.numpy(), wrong.numpy()
    auroc = float(roc_auc_score(w, s)) if 0 < count < some else None
    if count == 0:
        return Quality(0, auroc, None, None)
    first = scores.sort(descending=True, stable=True).indices[:count]
    at_count = float(wrong[first].double().mean())
    return Quality(count, auroc, float(average_precision_score(w, s)), at_count)
