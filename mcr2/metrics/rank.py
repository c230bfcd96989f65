"""Rank and dimension: in how many directions features spread, overall, in and between classes.

All measures are functions of the singular values σ of the feature matrix, with λ = σ², and none
changes when features are scaled or rotated. Where σ has q equal non-zero values, numerical and
effective rank, participation ratio and stable rank are all q, and dim95 is ⌈0.95 q⌉.

Of all features the matrix is centred; of one class it is not. The subspace of a class under MCR²
passes through the origin, and these measures being scale-free, the residual noise of a collapsed
class, centred, would look full-rank.

Features ``(N, d)`` are floating, labels ``(N,)`` integers in 0 ... num_classes - 1, checked as by
:func:`mcr2.checks.samples`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from mcr2 import checks
from mcr2.checks import Array, Labels
from mcr2.metrics.moments import ClassMoments, exact, precision


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


def feature_rank(features: Array, *, centred: bool = True) -> FeatureRank:
    """Measure the rank and dimension of features, all from one set of singular values.

    Args:
        features: ``(N, d)``, floating.
        centred: subtract the mean of all samples first (not the unweighted mean of class means
            that the collapse measures use: no labels enter here). False for one class.

    All are zero where the features, centred if asked, are zero up to their own rounding.

    Raises:
        TypeError, ValueError: features that are not floating, ``(N, d)``, or not finite.

    Example:
        >>> feature_rank(torch.eye(4, 6), centred=False)
        FeatureRank(numerical_rank=4, effective_rank=4.0, participation_ratio=4.0,
                    stable_rank=4.0, dim95=4)
        >>> feature_rank(torch.eye(4, 6)).numerical_rank
        3
    """
    return rank_and_spectrum(features, centred=centred)[0]


def rank_and_spectrum(features: Array, *, centred: bool = True) -> tuple[FeatureRank, Tensor]:
    """Return :func:`feature_rank` and the features' spectrum, from one decomposition.

    The spectrum holds the eigenvalues of ``(1/N) Σ (h - h̄)(h - h̄)ᵀ``, h̄ the mean of all samples,
    or 0 where not centred, falling: float64 ``(d,)``, zero past min(N, d).

    Example:
        >>> H = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> ranks, spectrum = rank_and_spectrum(H)
        >>> ranks.numerical_rank, [round(value, 6) for value in spectrum.tolist()]
        (2, [4.5, 0.5])
    """
    H = checks.floating("features", features, "N", "d")
    eps, X = precision(H), exact(H)
    N, d = X.shape
    scale = _scale(X)
    X = X / scale
    energy = torch.linalg.matrix_norm(X)
    if centred:
        X = X - X.mean(dim=0)
    # Spread below the rounding of the inputs is rounding: it would look full-rank.
    if torch.linalg.matrix_norm(X) <= eps * energy:
        return _NO_SPREAD, X.new_zeros(d)
    if H.dtype == torch.float64:
        # NumPy's tolerance in float64 lies below what a Gram matrix in float64 resolves.
        sigma = torch.linalg.svdvals(X)
    else:
        gram = X.T @ X if d <= N else X @ X.T
        sigma = torch.linalg.eigvalsh(gram).flip(0).clamp_(min=0).sqrt_()
    values = (sigma * scale).square() / N
    return _measures(sigma, max(N, d) * eps), torch.cat([values, values.new_zeros(d - len(values))])


def rank_of_moments(moments: ClassMoments) -> FeatureRank:
    """Measure the rank and dimension of samples of one class that were seen once, batch by batch.

    Everything is as for :func:`feature_rank`, centred; of float64 features ``numerical_rank`` has
    float32's tolerance, below which their moments resolve nothing.

    Raises:
        ValueError: moments of several classes, or that have seen no sample.

    Example:
        >>> moments = ClassMoments(1, 3)
        >>> for row in torch.eye(3):
        ...     moments.update(row.unsqueeze(0), [0])
        >>> rank_of_moments(moments).numerical_rank
        2
    """
    if len(moments.counts) != 1:
        raise ValueError(f"the moments are of {len(moments.counts)} classes; they must be of one")
    N, d = int(moments.counts), len(moments.scatter)
    if N == 0:
        raise ValueError("the moments have seen no sample")
    if float(moments.squares.sqrt()) <= moments.eps * (N * moments.energy) ** 0.5:
        return _NO_SPREAD
    sigma = torch.linalg.eigvalsh(moments.scatter).flip(0).clamp_(min=0).sqrt_()[: min(N, d)]
    return _measures(sigma, max(N, d) * max(moments.eps, torch.finfo(torch.float32).eps))


@dataclass(frozen=True, eq=False)
class ClassGeometry:
    """The spread of every class about the origin, and the subspace that holds most of it.

    Args:
        ranks: of each class, from its uncentred second moment; None for an absent class.
        spectra: eigenvalues of ``(1/n_k) Σ_{y=k} h hᵀ``, falling, float64 ``(K, d)``.
        bases: U_k, float64 ``(d, q_k)``, the ``q_k = dim95`` leading directions of each class,
            orthonormal; no column for an absent class or one of zeros.
    """

    ranks: tuple[FeatureRank | None, ...]
    spectra: Tensor = field(repr=False)
    bases: tuple[Tensor, ...] = field(repr=False)


def class_geometry(features: Array, labels: Labels, *, num_classes: int) -> ClassGeometry:
    """Measure rank, spectrum and leading subspace of each class, from one decomposition each.

    Of one sample the subspace is its line, and all ranks are 1.

    Example:
        >>> H = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [1.0, 1.0]])
        >>> geometry = class_geometry(H, [0, 0, 1], num_classes=2)
        >>> [rank.dim95 for rank in geometry.ranks], geometry.spectra[:, 0].round().tolist()
        ([1, 1], [4.0, 2.0])
        >>> round(between_classes(geometry.bases).coherence, 4)
        0.5
    """
    K = checks.classes(num_classes)
    H, y = checks.samples(features, labels, K)
    d, scale = H.shape[1], _scale(H)
    ranks: list[FeatureRank | None] = [None] * K
    spectra = torch.zeros(K, d, dtype=torch.float64, device=H.device)
    bases = [spectra.new_zeros(d, 0)] * K
    counts = torch.bincount(y, minlength=K).tolist()
    for k, block in enumerate(torch.split(H.index_select(0, y.argsort(stable=True)), counts)):
        n = len(block)
        if n == 0:
            continue
        sigma, vectors = _directions(block.double() / scale, svd=H.dtype == torch.float64)
        rank = _measures(sigma, max(n, d) * precision(H))
        ranks[k] = rank
        spectra[k, : len(sigma)] = (sigma * scale).square() / n
        bases[k] = vectors[:, : rank.dim95].contiguous()
    return ClassGeometry(tuple(ranks), spectra, tuple(bases))


@dataclass(frozen=True)
class BetweenClasses:
    """How class subspaces lie to each other; None with fewer than two of them.

    Args:
        coherence: ``mean_{i≠j} ‖U_iᵀU_j‖_F² / min(q_i, q_j)``: 0 for orthogonal subspaces, 1
            where each holds the other or is held by it.
        smallest_angle: the least principal angle of any pair, in radians.
        mean_angle: the mean over pairs of the mean of their principal angles, in radians.
    """

    coherence: float | None
    smallest_angle: float | None
    mean_angle: float | None


def between_classes(bases: Sequence[Array]) -> BetweenClasses:
    """Measure coherence and principal angles between class subspaces.

    ``cos θ_i`` are the singular values of UᵀV. Small angles are taken from the sines, which the
    cosine does not resolve below 1e-8 (Björck & Golub 1973; Knyazev & Argentati 2002).

    Args:
        bases: U_k ``(d, q_k)`` with orthonormal columns, as in :class:`ClassGeometry`; those
            without a column are left out.

    Example:
        >>> axes = torch.eye(3)
        >>> found = between_classes([axes[:, :1], axes[:, 1:], axes[:, :2]])
        >>> found.coherence, found.smallest_angle
        (0.5, 0.0)
    """
    angles = [principal_angles(U, V) for U, V in _pairs(bases)]
    if not angles:
        return BetweenClasses(None, None, None)
    return BetweenClasses(
        coherence(bases),
        min(float(pair[0]) for pair in angles),
        sum(float(pair.mean()) for pair in angles) / len(angles),
    )


def coherence(bases: Sequence[Array]) -> float | None:
    """Return the coherence of :func:`between_classes` without its angles.

    Example:
        >>> axes = torch.eye(3)
        >>> coherence([axes[:, :1], axes[:, 1:], axes[:, :2]])
        0.5
    """
    overlaps = [(U.T @ V).square().sum() / min(U.shape[1], V.shape[1]) for U, V in _pairs(bases)]
    return float(torch.stack(overlaps).mean()) if overlaps else None


def _pairs(bases: Sequence[Array]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the pairs of bases that have a column, in float64."""
    # On the CPU: of many small decompositions a GPU takes milliseconds for each.
    tensors = [exact(checks.floating("bases", U)).cpu() for U in bases]
    return combinations([U for U in tensors if U.shape[1] > 0], 2)


def principal_angles(first: Array, second: Array) -> Tensor:
    """Return the principal angles between two subspaces, float64 ``(min(p, q),)``, rising.

    ``cos θ_i`` are the singular values of UᵀV. Small angles are taken from the sines, which the
    cosine does not resolve below 1e-8 (Björck & Golub 1973; Knyazev & Argentati 2002).

    Args:
        first, second: U ``(d, p)`` and V ``(d, q)``, orthonormal columns.

    Raises:
        TypeError, ValueError: matrices that are not floating, not finite, or not both of d rows.

    Example:
        >>> principal_angles(torch.eye(3)[:, :2], torch.eye(3)[:, 1:])
        tensor([0.0000, 1.5708], dtype=torch.float64)
    """
    U = exact(checks.floating("first", first, "d", "p"))
    V = exact(checks.floating("second", second, len(U), "q")).to(U.device)
    if V.shape[1] > U.shape[1]:
        U, V = V, U
    product = U.T @ V
    cosines = torch.linalg.svdvals(product).clamp(max=1)
    if float(cosines[0]) ** 2 < 0.5:
        return torch.acos(cosines)
    sines = torch.linalg.svdvals(V - U @ product).clamp(max=1).flip(0)
    angles: Tensor = torch.where(cosines.square() < 0.5, cosines.acos(), sines.asin())
    return angles


_NO_SPREAD = FeatureRank(0, 0.0, 0.0, 0.0, 0)


def _scale(features: Tensor) -> float:
    """Return the largest magnitude of an entry, or 1: over it no square over- or underflows."""
    return float(features.abs().max()) or 1.0


def _directions(X: Tensor, *, svd: bool) -> tuple[Tensor, Tensor]:
    """Return σ ``(r,)``, falling, and right singular vectors ``(d, r)``, r = min(n, d).

    Without ``svd`` they come from the smaller Gram matrix, and vectors beyond the rank are noise.
    """
    n, d = X.shape
    if svd:
        _, sigma, rows = torch.linalg.svd(X, full_matrices=False)
        return sigma, rows.T
    values, vectors = torch.linalg.eigh(X.T @ X if n >= d else X @ X.T)
    sigma, vectors = values.flip(0).clamp_(min=0).sqrt(), vectors.flip(1)
    if n < d:
        vectors = X.T @ vectors / sigma.clamp(min=torch.finfo(sigma.dtype).tiny)
    return sigma, vectors


def _measures(sigma: Tensor, cutoff: float) -> FeatureRank:
    """Take all measures from singular values, falling; ``numerical_rank`` counts above a cutoff."""
    values = sigma.cpu().numpy()
    if values[0] == 0:
        return _NO_SPREAD
    values = values / values[0]
    energy = values**2
    total = energy.sum()
    p = values[values > 0] / values.sum()
    # The slack lets 19 of 20 equal components count as 95 %, rounding or no.
    below = energy.cumsum() < 0.95 * total * (1 - 1e-12)
    return FeatureRank(
        numerical_rank=int((values > cutoff).sum()),
        effective_rank=float(np.exp(-(p * np.log(p)).sum())),
        participation_ratio=float(total**2 / (energy**2).sum()),
        stable_rank=float(total),
        dim95=int(below.sum()) + 1,
    )
