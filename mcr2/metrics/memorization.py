"""Memorization: how many labels a network has fitted, and what became of the wrong ones.

A training label is *wrong* where it differs from the clean one; redrawing a label can hit the
true class, so wrong labels are fewer than redrawn ones. A sample of none of the classes has the
clean label −1: whatever it is labelled is wrong, and it cannot be recovered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcr2 import checks
from mcr2.checks import Labels
from mcr2.metrics.accuracy import accuracy


@dataclass(frozen=True)
class Memorization:
    """Fit of the noisy training labels, and of the wrong ones among them.

    Args:
        fit_noisy: accuracy on all noisy training labels.
        fit_corrupted: share of wrong-labelled samples predicted as their wrong label; None where
            no label is wrong or clean labels are unknown.
        recovered: share of those among them that have a true class predicted as it; None where
            there is none. Where all have one, the two sum to at most 1.
    """

    fit_noisy: float
    fit_corrupted: float | None
    recovered: float | None


def memorization(
    predictions: Labels, noisy_labels: Labels, clean_labels: Labels | None
) -> Memorization:
    """Measure how predictions on *training* samples relate to noisy and clean labels.

    ``fit_corrupted = mean_{i: y_i ≠ y*_i} 1[ŷ_i = y_i]``, ``recovered`` the same with ``y*_i``.

    Args:
        predictions: ŷ ``(N,)``.
        noisy_labels: y ``(N,)``, as trained on.
        clean_labels: y* ``(N,)``, −1 for none of the classes; or None where unknown.

    Raises:
        TypeError, ValueError: as :func:`mcr2.metrics.accuracy.accuracy`.

    Example:
        >>> memorization([0, 1, 2, 2], [0, 1, 2, 0], [0, 1, 1, 2])
        Memorization(fit_noisy=0.75, fit_corrupted=0.5, recovered=0.5)
    """
    predicted = checks.labels(predictions, name="predictions")
    N, device = len(predicted), predicted.device
    noisy = checks.labels(noisy_labels, count=N, name="noisy_labels").to(device)
    fit_noisy, clean = accuracy(predicted, noisy), noisy
    if clean_labels is not None:
        clean = checks.labels(clean_labels, count=N, name="clean_labels", least=-1).to(device)
    wrong = noisy != clean
    if not bool(wrong.any()):
        return Memorization(fit_noisy, None, None)
    fit_corrupted, able = accuracy(predicted[wrong], noisy[wrong]), wrong & (clean >= 0)
    recovered = accuracy(predicted[able], clean[able]) if bool(able.any()) else None
    return Memorization(fit_noisy, fit_corrupted, recovered)


def confusion(
    predictions: Labels, noisy_labels: Labels, clean_labels: Labels, num_classes: int
) -> Tensor:
    """Count samples by true class i and label j: all, predicted as j, and predicted as i.

    Args:
        predictions, noisy_labels, clean_labels: ``(N,)`` as in :func:`memorization`.
        num_classes: K.

    Returns:
        int64 ``(3, K + 1, K)``; the last true class is none of them.

    Example:
        >>> confusion([0, 1, 0], [0, 1, 1], [0, 0, 0], 2)[:, 0].tolist()
        [[1, 2], [1, 1], [1, 1]]
    """
    K = num_classes
    predicted = checks.labels(predictions, K, name="predictions")
    N, device = len(predicted), predicted.device
    noisy = checks.labels(noisy_labels, K, count=N, name="noisy_labels").to(device)
    clean = checks.labels(clean_labels, K, count=N, name="clean_labels", least=-1).to(device)
    places = torch.where(clean < 0, K, clean) * K + noisy
    kept = (torch.ones_like(noisy, dtype=torch.bool), predicted == noisy, predicted == clean)
    counts = [torch.bincount(places[which], minlength=(K + 1) * K) for which in kept]
    return torch.stack(counts).view(3, K + 1, K)


def terminal_phase(fit_noisy: Sequence[float]) -> int | None:
    """Return the index where the terminal phase began, or None where it never did.

    It is the first of three consecutive evaluations with ``fit_noisy >= 0.99``, the accuracy on the
    noisy training labels (the phase past zero training error of Papyan, Han & Donoho 2020). NaN
    counts as below.

    Example:
        >>> terminal_phase([0.2, 0.99, 0.98, 0.99, 1.0, 1.0])
        3
    """
    for index in range(len(fit_noisy) - 2):
        if all(fit >= 0.99 for fit in fit_noisy[index : index + 3]):
            return index
    return None
