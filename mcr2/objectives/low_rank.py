"""Orthogonal low-rank embedding: nuclear norms in the place of coding rates."""

from __future__ import annotations

import torch
from torch import Tensor

from mcr2 import checks
from mcr2.objectives.base import Context, UnitNormObjective


class OrthogonalLowRank(UnitNormObjective):
    """OLE: each class of low rank, all together of high rank, by nuclear norms.

    loss = (Σ_k max(δ, ‖Z_k‖_*) − ‖Z‖_*) / m, Z_k the rows of class k, ‖·‖_* the sum of singular
    values, on unit-norm features. With δ = 0 it is never negative, and 0 exactly where the
    classes' row spaces are orthogonal, of whatever dimensions: unlike ΔR it does not ask a class
    to fill its subspace. At unit norm ‖Z_k‖_* ≥ √n_k, and δ, which in the paper keeps features
    from vanishing, binds at 1 only for a class with a single sample in the batch. Its terms:
    ``class_norm`` and ``total_norm``, the two halves divided by m.

    Args:
        num_classes: K, at least 2.
        delta: δ, the norm below which a class is not compressed; not negative.

    Reference: Lezama, Qiu, Musé & Sapiro (2018), "OLÉ: Orthogonal Low-rank Embedding, A Plug and
    Play Geometric Loss for Deep Learning", equation 4. There it stands beside cross-entropy, with
    a weight; here it is the whole loss.

    Example:
        >>> objective = OrthogonalLowRank(num_classes=2)
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> apart = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> mixed = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
        >>> print(f"{objective(apart, labels)[0]:.4f} {objective(mixed, labels)[0]:.4f}")
        0.0000 0.2929
    """

    def __init__(self, num_classes: int, delta: float = 1.0) -> None:
        super().__init__(num_classes)
        self.delta = checks.number("delta", delta, 0)

    def loss(
        self, features: Tensor, labels: Tensor, context: Context
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the difference of the norms and both of them."""
        checks.floating("features", features)
        m = len(features)
        counts = torch.bincount(labels.long(), minlength=self.num_classes).tolist()
        classes = torch.split(features[labels.argsort(stable=True)], counts)
        of_classes = torch.stack([nuclear_norm(Z) for Z in classes if len(Z)])
        class_norm = of_classes.clamp(min=self.delta).sum() / m
        total_norm = nuclear_norm(features) / m
        terms = {"class_norm": class_norm, "total_norm": total_norm}
        return class_norm - total_norm, terms


def nuclear_norm(Z: Tensor) -> Tensor:
    """Return ‖Z‖_*, the sum of singular values, with a subgradient that small ones do not enter.

    Where Z = U diag(σ) Vᵀ, ``(m, d)``, has full rank the gradient is U Vᵀ; where not, its part in
    the null space is whatever the decomposition happened to return. So singular values below
    max(m, d) · u · σ_max, u the unit of rounding, count as zero, and the subgradient is U Vᵀ over
    the others: of all subgradients the smallest.

    Example:
        >>> Z = torch.tensor([[3.0, 0.0], [0.0, 0.0]], requires_grad=True)
        >>> nuclear_norm(Z).backward()
        >>> Z.grad
        tensor([[1., 0.], [0., 0.]])
    """
    values: Tensor = torch.linalg.svdvals(Z)
    rounding = max(Z.shape) * torch.finfo(Z.dtype).eps * values[:1].detach()
    return torch.where(values > rounding, values, 0.0).sum()
