"""Cross-entropy on a linear head of its own, as an objective like any other."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from ce_baseline.linear import LinearObjective
from mcr2 import checks


class CrossEntropy(LinearObjective):
    """Softmax cross-entropy of a linear head W h + b on the features as they are.

    loss = −(1/m) Σ_i Σ_k q_ik log softmax(W h_i + b)_k, with q_i = (1 − s)·onehot(y_i) + s/K for
    label smoothing s. Its terms are ``cross_entropy``, the loss itself, and ``batch_accuracy``,
    the share of samples that the head puts into their label's class.

    Args:
        num_classes: K, at least 2.
        feature_dim: d of the features.
        label_smoothing: s in [0, 1).

    Off the CPU, features that are not finite are not refused: looking would wait for the device.

    Reference: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR
    2016, Section 7, for label smoothing.

    Example:
        >>> import torch
        >>> objective = CrossEntropy(num_classes=2, feature_dim=3)
        >>> _ = nn.init.zeros_(objective.head.weight), nn.init.zeros_(objective.head.bias)
        >>> loss, terms = objective(torch.ones(4, 3), torch.tensor([0, 0, 0, 1]))
        >>> print(f"{loss:.4f} {terms['batch_accuracy']:.2f}")      # log 2: the head knows nothing
        0.6931 0.75
    """

    term: ClassVar[str] = "cross_entropy"

    def __init__(self, num_classes: int, feature_dim: int, label_smoothing: float = 0.0) -> None:
        super().__init__(num_classes, feature_dim)
        self.label_smoothing = checks.number("label_smoothing", label_smoothing, 0, 1)
        if self.label_smoothing == 1:
            raise ValueError("label_smoothing is 1; it must be below 1")

    def score(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        return nn.functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


class LabelSmoothing(CrossEntropy):
    """:class:`CrossEntropy` with targets smoothed by s = 0.1, the value of its paper.

    Example:
        >>> LabelSmoothing(num_classes=2, feature_dim=3).label_smoothing
        0.1
    """

    def __init__(self, num_classes: int, feature_dim: int, label_smoothing: float = 0.1) -> None:
        super().__init__(num_classes, feature_dim, label_smoothing)
