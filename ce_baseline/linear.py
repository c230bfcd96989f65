"""What losses on a linear head share: the head, its logits, and what is logged of them."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from mcr2 import checks
from mcr2.objectives import Context, Objective


class LinearObjective(Objective):
    """A loss on the logits W h + b of a linear head, on the features as they are.

    A subclass names its loss in the log by ``term`` and computes it in :meth:`score`; the other
    term is ``batch_accuracy``, the share of samples that the head puts into their label's class.

    Args:
        num_classes: K, at least 2.
        feature_dim: d of the features.
        bias: whether there is a b, beside W ``(K, d)``.

    Off the CPU, features that are not finite are not refused: looking would wait for the device.
    """

    additive: ClassVar[bool] = True
    readout: ClassVar[str] = "head"
    term: ClassVar[str]

    def __init__(self, num_classes: int, feature_dim: int, bias: bool = True) -> None:
        super().__init__(num_classes)
        self.feature_dim = checks.integer("feature_dim", feature_dim, 1)
        if not isinstance(bias, bool):
            raise TypeError(f"bias must be a bool, not {checks.describe(bias)}")
        self.head = nn.Linear(self.feature_dim, self.num_classes, bias)

    @abstractmethod
    def score(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of logits ``(m, K)`` with labels ``(m,)``, int64."""

    def loss(
        self, features: Tensor, labels: Tensor, context: Context
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss, and it and ``batch_accuracy`` as terms."""
        checks.floating("features", features, "m", self.feature_dim, finite=False)
        # In the head's precision: the sum of exponentials wants float32, whatever the backbone.
        logits = self.head(features.to(self.head.weight.dtype))
        labels = labels.long()
        loss = self.score(logits, labels)
        # Read on the CPU alone, where it is free: elsewhere it would wait for the device.
        if loss.device.type == "cpu" and not loss.isfinite():
            checks.floating("features", features)
        with torch.no_grad():
            accuracy = (logits.argmax(1) == labels).to(loss.dtype).mean()
        return loss, {self.term: loss, "batch_accuracy": accuracy}

    def classifier(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the head's weight ``(K, d)`` and bias ``(K,)`` or None, detached."""
        bias = self.head.bias
        return self.head.weight.detach(), None if bias is None else bias.detach()
