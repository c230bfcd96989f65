"""The cleanlab library on our out-of-fold probabilities; it is an extra, ``mcr2[cleanlab]``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class LabelIssues(NamedTuple):
    """What cleanlab says: ``label_score (N,)``, small where a label looks wrong, and issues."""

    label_score: Tensor
    is_label_issue: Tensor
    predicted_label: Tensor


def find_label_issues(labels: Tensor, probabilities: Tensor) -> LabelIssues:
    """Return what ``cleanlab.filter.find_label_issues`` and ``cleanlab.rank`` say, by default.

    In this process alone: theirs would be forked from a program that has threads.

    Args:
        labels: ``(N,)``; classes may be empty.
        probabilities: ``(N, K)``, by classifiers that did not see the sample.

    Raises:
        ImportError: cleanlab is not installed.
    """
    from cleanlab.filter import find_label_issues as find
    from cleanlab.rank import get_label_quality_scores

    def say(y: Any, P: Any) -> tuple[Any, ...]:
        return get_label_quality_scores(y, P), find(y, P, n_jobs=1), P.argmax(1)

    return _of_present(say, labels, probabilities)


def datalab(labels: Tensor, probabilities: Tensor) -> LabelIssues:
    """Return the label issues that ``cleanlab.Datalab`` finds; arguments and errors as above."""
    from cleanlab import Datalab

    def say(y: Any, P: Any) -> tuple[Any, ...]:
        lab = Datalab(data={"label": y.tolist()}, label_name="label", verbosity=0)
        how = {"clean_learning_kwargs": {"find_label_issues_kwargs": {"n_jobs": 1}}}
        lab.find_issues(pred_probs=P, issue_types={"label": how})
        found = lab.get_issues("label")
        return tuple(found[name].to_numpy() for name in LabelIssues._fields)

    return _of_present(say, labels, probabilities)


#: What of cleanlab stands beside our scores, by name.
CLEANLAB = {"cleanlab": find_label_issues, "cleanlab_datalab": datalab}


def installed() -> bool:
    """Whether the library is there, with what its Datalab needs."""
    return all(importlib.util.find_spec(name) for name in ("cleanlab", "datasets"))


def _of_present(
    say: Callable[[Any, Any], tuple[Any, ...]], labels: Tensor, probabilities: Tensor
) -> LabelIssues:
    """Ask about the classes that have samples, numbered from 0: cleanlab knows no others."""
    present, y = torch.unique(labels.cpu(), return_inverse=True)
    P = probabilities.cpu()[:, present].double()
    P = P / P.sum(1, keepdim=True)
    found = say(y.numpy(), P.numpy())
    scores, issues, predicted = (torch.from_numpy(np.array(each)) for each in found)
    columns = (scores.double(), issues.bool(), present[predicted.long()])
    return LabelIssues(*(column.to(labels.device) for column in columns))
