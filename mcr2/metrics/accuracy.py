"""Accuracy and its standard error."""

from __future__ import annotations

import math

from mcr2 import checks
from mcr2.checks import Labels


def accuracy(predictions: Labels, labels: Labels) -> float:
    """Return the share of samples predicted as their label, ``(1/N) Σ 1[ŷ_i = y_i]``.

    Args:
        predictions: classes ``(N,)``, integers: a tensor, an array or a sequence.
        labels: classes ``(N,)``, integers; on any device.

    Raises:
        TypeError: predictions or labels that are not integers (scores, say).
        ValueError: shapes that differ or are not ``(N,)``, no sample, a negative class.

    Example:
        >>> accuracy([0, 1, 2, 2], [0, 1, 1, 2])
        0.75
    """
    predicted = checks.labels(predictions, name="predictions")
    y = checks.labels(labels, count=len(predicted)).to(predicted.device)
    return int((predicted == y).sum()) / len(y)


def standard_error(accuracy: float, n: int) -> float:
    """Return the binomial standard error ``sqrt(a (1 - a) / n)`` of an accuracy on n samples.

    It is zero at a = 0 and a = 1, where it understates the uncertainty.

    Raises:
        TypeError: an accuracy that is not a number, an n that is not an integer.
        ValueError: an accuracy outside [0, 1], or n below 1.

    Example:
        >>> standard_error(0.5, 100)
        0.05
    """
    a = checks.number("accuracy", accuracy, 0, 1)
    return math.sqrt(a * (1 - a) / checks.integer("n", n, 1))
