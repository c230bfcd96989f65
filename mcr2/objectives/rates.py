"""Objectives that are coding rates, computed exactly: MCR², and its expansion alone."""

from __future__ import annotations

from torch import Tensor

from mcr2 import checks
from mcr2.objectives.base import Context, UnitNormObjective
from mcr2.rates import Rates, coding_rate, rate_reduction_with_expansion, rates_of_moments


class RateReduction(UnitNormObjective):
    """The MCR² loss: expand all features together, compress each class.

    loss = −γ₂ · ½ logdet(I + γ₁ d/(m ε²) ZᵀZ) + R_c(Z, Π), on unit-norm features Z; −ΔR for
    γ₁ = γ₂ = 1. Its terms are the definitions themselves, whatever the γ: ``rate`` R,
    ``compressed_rate`` R_c, ``reduction`` ΔR.

    Args:
        num_classes: K, at least 2.
        eps_sq: ε², the squared distortion; positive.
        gamma1: γ₁, scales the matrix inside the total rate; positive.
        gamma2: γ₂, weighs the total rate; positive.

    Reference: Yu et al. (2020), Section 2.2; γ₁ and γ₂ as in its published experiments.

    Example:
        >>> import torch
        >>> objective = RateReduction(num_classes=2)
        >>> Z = objective.embed(torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 5.0]]))
        >>> loss, terms = objective(Z, torch.tensor([0, 0, 1, 1]))
        >>> print(f"{loss:.4f} {terms['reduction']:.4f}")
        -0.2939 0.2939
    """

    def __init__(
        self, num_classes: int, eps_sq: float = 0.5, gamma1: float = 1.0, gamma2: float = 1.0
    ) -> None:
        super().__init__(num_classes)
        self.eps_sq = checks.positive("eps_sq", eps_sq)
        self.gamma1 = checks.positive("gamma1", gamma1)
        self.gamma2 = checks.positive("gamma2", gamma2)

    def loss(
        self, features: Tensor, labels: Tensor, context: Context
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return −γ₂ R(Z; ε²/γ₁) + R_c and the terms R, R_c, ΔR."""
        K, eps_sq = self.num_classes, self.eps_sq
        return self._combine(
            *rate_reduction_with_expansion(
                features, labels, gamma=self.gamma1, num_classes=K, eps_sq=eps_sq
            )
        )

    def loss_of_moments(
        self, moments: Tensor, counts: Tensor, context: Context
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the same of the classes' second moments."""
        return self._combine(
            *rates_of_moments(moments, counts, gamma=self.gamma1, eps_sq=self.eps_sq)
        )

    def _combine(self, expansion: Tensor, rates: Rates) -> tuple[Tensor, dict[str, Tensor]]:
        terms = {name: getattr(rates, name) for name in ("rate", "compressed_rate", "reduction")}
        return rates.compressed_rate - self.gamma2 * expansion, terms


class TotalCodingRate(UnitNormObjective):
    """Expansion alone: features spread over the sphere, and labels are ignored.

    loss = −R(Z) = −½ logdet(I + d/(m ε²) ZᵀZ), on unit-norm features Z. Its terms: ``rate`` R.

    In the literature this is one half of a self-supervised loss, whose other half draws views of
    one image together. Its minimum, −d/2 log(1 + 1/ε²), is any features whose second moment is
    I/d. Its features are the same at every noise ratio; labels are seen by the readout alone,
    whose accuracy is the floor that a loss with labels has to beat.

    Args:
        num_classes: K, at least 2; not used.
        eps_sq: ε², the squared distortion; positive.

    Reference: Li, Chen, LeCun & Sommer (2022), "Neural Manifold Clustering and Embedding",
    Section 3; Tong, Chen, Ma & LeCun (2023), "EMP-SSL", Section 3.

    Example:
        >>> import torch
        >>> objective = TotalCodingRate(num_classes=2)
        >>> Z = torch.eye(4)
        >>> loss, _ = objective(Z, torch.tensor([0, 0, 1, 1]))
        >>> print(f"{loss:.4f} {-4 / 2 * torch.tensor(1 + 1 / 0.5).log():.4f}")
        -2.1972 -2.1972
    """

    def __init__(self, num_classes: int, eps_sq: float = 0.5) -> None:
        super().__init__(num_classes)
        self.eps_sq = checks.positive("eps_sq", eps_sq)

    def loss(
        self, features: Tensor, labels: Tensor, context: Context
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return −R and the term R."""
        rate = coding_rate(features, eps_sq=self.eps_sq)
        return -rate, {"rate": rate}
