"""Rank and dimension: in how many directions features spread.

All measures are read off the singular values σ of the feature matrix, with λ = σ², and none
changes when features are scaled or rotated. Where σ has q equal non-zero values, numerical and
effective rank, participation ratio and stable rank are all q, and dim95 is ⌈0.95 q⌉.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureRank:
    """Dimension of a set of features, each measure between 1 and min(N, d).

    Args:
        numerical_rank: number of σ_i above ``σ_max · max(N, d) · eps``, eps being that of the
            features' own precision: the tolerance of ``numpy.linalg.matrix_rank``.
        effective_rank: ``exp(-Σ p_i log p_i)``, ``p = σ / Σσ`` (Roy & Vetterli 2007, eq. 3);
            many small σ raise it.
        participation_ratio: ``(Σλ)² / Σλ²``.
        stable_rank: ``Σλ / λ_max``.
        dim95: the least number of components that hold 95 % of ``Σλ``.

    All are 0 for features without spread, where none is defined.
    """

    numerical_rank: int
    effective_rank: float
    participation_ratio: float
    stable_rank: float
    dim95: int


def feature_rank(features: Tensor, *, centred: bool = True) -> FeatureRank:
    """Measure the rank and dimension of features, all from one set of singular values.

    Args:
        features: ``(N, d)``, floating.
        centred: subtract the mean of all samples first. (Not the unweighted mean of class means
            that the collapse measures use: no labels enter here.) For the features of one class
            use False: the subspace of a class under MCR² passes through the origin, and these
            measures being scale-free, the residual noise of a collapsed class, centred, would
            look full-rank.

    Returns:
        :class:`FeatureRank`; all zero where the features, centred if asked, are zero up to the
        rounding of their own precision.

    Raises:
        TypeError: features that are not a floating tensor.
        ValueError: features that are not ``(N, d)``, empty, or not finite.

    Example:
        >>> feature_rank(torch.eye(4, 6), centred=False)
        FeatureRank(numerical_rank=4, effective_rank=4.0, participation_ratio=4.0,
                    stable_rank=4.0, dim95=4)
        >>> feature_rank(torch.eye(4, 6)).numerical_rank
        3
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        given = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"features must be a floating tensor; got {given}")
    if features.ndim != 2 or min(features.shape) < 1:
        raise ValueError(f"features must have shape (N, d); got {tuple(features.shape)}")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features must be finite; got NaN or infinity")

    # Half precision counts as float32: its own eps times max(N, d) soon exceeds 1.
    precision = torch.promote_types(features.dtype, torch.float32)
    eps = torch.finfo(precision).eps
    X = features.detach()
    X = (X.cpu() if X.device.type == "mps" else X).double()  # MPS has no float64
    largest = X.abs().max()
    if largest == 0:
        return FeatureRank(0, 0.0, 0.0, 0.0, 0)
    X = X / largest  # so that no square over- or underflows
    scale = torch.linalg.matrix_norm(X)
    if centred:
        X = X - X.mean(dim=0)
    # Spread below the rounding of the inputs is rounding: it would look full-rank.
    if torch.linalg.matrix_norm(X) <= eps * scale:
        return FeatureRank(0, 0.0, 0.0, 0.0, 0)

    N, d = X.shape
    if precision == torch.float64:
        # NumPy's tolerance in float64 lies below what a Gram matrix in float64 resolves.
        sigma = torch.linalg.svdvals(X)
    else:
        gram = X.T @ X if d <= N else X @ X.T
        sigma = torch.linalg.eigvalsh(gram).flip(0).clamp_(min=0).sqrt_()
    sigma = sigma / sigma[0]
    energy = sigma.square()
    total = energy.sum()
    p = sigma / sigma.sum()
    # The slack lets 19 of 20 equal components count as 95 %, rounding or no.
    below = energy.cumsum(0) < 0.95 * total * (1 - 1e-12)
    return FeatureRank(
        numerical_rank=int((sigma > max(N, d) * eps).sum()),
        effective_rank=float(torch.exp(-torch.special.xlogy(p, p).sum())),
        participation_ratio=float(total.square() / energy.square().sum()),
        stable_rank=float(total),
        dim95=int(below.sum()) + 1,
    )
