"""The cleanlab library on our out-of-fold probabilities; it is an extra, ``mcr2[cleanlab]``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class LabelIssues(NamedTuple):
    """What cleanlab says: ``label_score (N,)``, small where a label looks wrong, and issues."""

    label_score: Tensor
    is_label_issue: Tensor
    predicted_label: Tensor


def find_label_issues(labels: Tensor, probabilities: Tensor) -> LabelIssues:
    """Return what ``cleanlab.filter.find_label_issues`` and ``cleanlab.rank`` say, by default.

    Args:
        labels: ``(N,)``, each class with a sample.
        probabilities: ``(N, K)``, out of fold, as ``Given.probabilities`` has them.

    Raises:
        ImportError: cleanlab is not installed.
    """
    from cleanlab.filter import find_label_issues as find
    from cleanlab.rank import get_label_quality_scores

    y, P = labels.cpu().numpy(), probabilities.cpu().numpy()
    scores = get_label_quality_scores(y, P)
    return _issues(labels, scores, find(y, P), P.argmax(1))


def datalab(labels: Tensor, probabilities: Tensor) -> LabelIssues:
    """Return what ``cleanlab.Datalab`` finds of label issues; arguments as above."""
    from cleanlab import Datalab

    lab = Datalab(data={"label": labels.tolist()}, label_name="label", verbosity=0)
    lab.find_issues(pred_probs=probabilities.cpu().numpy(), issue_types={"label": {}})
    found = lab.get_issues("label")
    columns = (found[name].to_numpy() for name in LabelIssues._fields)
    return _issues(labels, *columns)


def _issues(labels: Tensor, scores: Any, issues: Any, predicted: Any) -> LabelIssues:
    kinds = (torch.float64, torch.bool, torch.int64)
    columns = zip((scores, issues, predicted), kinds, strict=True)
    return LabelIssues(
        *(torch.as_tensor(c, dtype=kind, device=labels.device) for c, kind in columns)
    )
