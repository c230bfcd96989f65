"""Accuracy and its standard error."""

from __future__ import annotations

import math

from torch import Tensor


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Return the share of samples predicted as their label, ``(1/N) Σ 1[ŷ_i = y_i]``.

    Args:
        predictions: classes ``(N,)``, integers.
        labels: classes ``(N,)``, integers; on any device.

    Raises:
        TypeError: predictions or labels that are not integers (scores, say).
        ValueError: shapes that differ or are not ``(N,)``, or no sample at all.

    Example:
        >>> import torch
        >>> accuracy(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2]))
        0.75
    """
    for name, value in (("predictions", predictions), ("labels", labels)):
        if value.is_floating_point() or value.is_complex():
            raise TypeError(f"{name} must be integers; got {value.dtype}")
    if predictions.ndim != 1 or predictions.shape != labels.shape or len(labels) == 0:
        raise ValueError(
            "predictions and labels must both be (N,) with N at least 1; got "
            f"{tuple(predictions.shape)} and {tuple(labels.shape)}"
        )
    return int((predictions == labels.to(predictions.device)).sum()) / len(labels)


def standard_error(accuracy: float, n: int) -> float:
    """Return the binomial standard error ``sqrt(a (1 - a) / n)`` of an accuracy on n samples.

    It is zero at a = 0 and a = 1, where it understates the uncertainty.

    Raises:
        ValueError: an accuracy outside [0, 1], or n below 1.

    Example:
        >>> standard_error(0.5, 100)
        0.05
    """
    if not 0 <= accuracy <= 1 or n < 1:
        raise ValueError(
            f"an accuracy lies in [0, 1] and n is at least 1; got accuracy={accuracy}, n={n}"
        )
    return math.sqrt(accuracy * (1 - accuracy) / n)
