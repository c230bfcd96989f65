"""Cross-entropy on a linear head of its own, as an objective like any other."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mcr2 import checks
from mcr2.objectives import Context, Objective


class CrossEntropy(Objective):
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
        >>> objective = CrossEntropy(num_classes=2, feature_dim=3)
        >>> _ = nn.init.zeros_(objective.head.weight), nn.init.zeros_(objective.head.bias)
        >>> loss, terms = objective(torch.ones(4, 3), torch.tensor([0, 0, 0, 1]))
        >>> print(f"{loss:.4f} {terms['batch_accuracy']:.2f}")      # log 2: the head knows nothing
        0.6931 0.75
    """

    additive: ClassVar[bool] = True
    readout: ClassVar[str] = "head"

    def __init__(self, num_classes: int, feature_dim: int, label_smoothing: float = 0.0) -> None:
        super().__init__(num_classes)
        self.feature_dim = checks.integer("feature_dim", feature_dim, 1)
        self.label_smoothing = checks.number("label_smoothing", label_smoothing, 0, 1)
        if self.label_smoothing == 1:
            raise ValueError("label_smoothing is 1; it must be below 1")
        self.head = nn.Linear(self.feature_dim, self.num_classes)

    def loss(
        self, features: Tensor, labels: Tensor, context: Context
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean cross-entropy and the terms ``cross_entropy``, ``batch_accuracy``."""
        checks.floating("features", features, "m", self.feature_dim, finite=False)
        # In the head's precision: the sum of exponentials wants float32, whatever the backbone.
        logits = self.head(features.to(self.head.weight.dtype))
        labels = labels.long()
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        # Read on the CPU alone, where it is free: elsewhere it would wait for the device.
        if loss.device.type == "cpu" and not loss.isfinite():
            checks.floating("features", features)
        with torch.no_grad():
            accuracy = (logits.argmax(1) == labels).to(loss.dtype).mean()
        return loss, {"cross_entropy": loss, "batch_accuracy": accuracy}

    def classifier(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the head's weight ``(K, d)`` and bias ``(K,)``, detached."""
        return self.head.weight.detach(), self.head.bias.detach()
