"""Cross-entropy on a classifier that is not learnt: a simplex equiangular tight frame."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ce_baseline.linear import LinearObjective


class FixedETF(LinearObjective):
    """Cross-entropy on a fixed classifier whose rows are a simplex equiangular tight frame.

    loss = −(1/m) Σ_i log softmax(W h_i)_{y_i} with W Wᵀ = K/(K−1) (I − 11ᵀ/K): rows of unit
    norm with ``w_iᵀw_j = −1/(K − 1)``, turned at random into d ≥ K − 1 dimensions, and no bias. W
    is drawn once and stays as it is; K (d + 1) parameters are saved.
    Its terms are ``cross_entropy`` and ``batch_accuracy``.

    Args:
        num_classes: K, at least 2.
        feature_dim: d of the features, at least K − 1.

    Raises:
        ValueError: fewer than K − 1 dimensions, in which there is no such frame.

    Reference: Zhu et al., "A geometric analysis of neural collapse with unconstrained features",
    NeurIPS 2021, on fixing the classifier; Yang et al., "Inducing neural collapse in imbalanced
    learning", NeurIPS 2022, equation 1.

    Example:
        >>> W, _ = FixedETF(num_classes=3, feature_dim=8).classifier()
        >>> print((W @ W.T).round(decimals=4).abs())
        tensor([[1.0000, 0.5000, 0.5000],
                [0.5000, 1.0000, 0.5000],
                [0.5000, 0.5000, 1.0000]])
    """

    term: ClassVar[str] = "cross_entropy"

    def __init__(self, num_classes: int, feature_dim: int) -> None:
        super().__init__(num_classes, feature_dim, bias=False)
        K, d = self.num_classes, self.feature_dim
        if d < K - 1:
            raise ValueError(
                f"feature_dim is {d}; a simplex frame of {K} classes needs at least {K - 1}"
            )
        self.head.requires_grad_(False)
        # In float64, so that the frame is exact to the precision it is kept in.
        directions, _ = torch.linalg.qr(torch.randn(d, K - 1, dtype=torch.float64))
        centring = torch.eye(K, dtype=torch.float64) - 1 / K
        corners = torch.linalg.eigh(centring).eigenvectors[:, 1:]  # eigenvalue 1, K − 1 times
        self.head.weight.copy_(math.sqrt(K / (K - 1)) * corners @ directions.T)

    def score(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        return nn.functional.cross_entropy(logits, labels)

    def param_groups(self) -> list[dict[str, Any]]:
        """Return no group: nothing of this is trained."""
        return []
