"""The squared error on one-hot targets, on a linear head of its own."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from ce_baseline.linear import LinearObjective


class MSE(LinearObjective):
    """Squared error of a linear head W h + b on one-hot targets.

    loss = 1/(2m) Σ_i ‖W h_i + b − onehot(y_i)‖². Its terms are ``squared_error``, the loss itself,
    and ``batch_accuracy``. Where features are free and both W and H are decayed, its minimum is an
    orthogonal frame without bias, a simplex equiangular tight frame with one.

    Args:
        num_classes: K, at least 2.
        feature_dim: d of the features.
        bias: whether there is a b.

    Reference: Hui & Belkin, "Evaluation of neural architectures trained with square loss vs
    cross-entropy in classification tasks", ICLR 2021; Tirer & Bruna, "Extended unconstrained
    features model for exploring deep neural collapse", ICML 2022, for the minima.

    Example:
        >>> import torch
        >>> objective = MSE(num_classes=2, feature_dim=3)
        >>> _ = nn.init.zeros_(objective.head.weight), nn.init.zeros_(objective.head.bias)
        >>> print(f"{objective(torch.ones(4, 3), torch.tensor([0, 0, 0, 1]))[0]:.4f}")
        0.5000
    """

    term: ClassVar[str] = "squared_error"

    def score(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return half the mean squared distance to one-hot targets."""
        targets = nn.functional.one_hot(labels, self.num_classes).to(logits)
        return (logits - targets).square().sum(1).mean() / 2
