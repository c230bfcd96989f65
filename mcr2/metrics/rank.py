"""Rank and dimension: in how many directions features spread, overall, in and between classes.

All measures are read off the singular values σ of the feature matrix, with λ = σ², and none
changes when features are scaled or rotated. Where σ has q equal non-zero values, numerical and
effective rank, participation ratio and stable rank are all q, and dim95 is ⌈0.95 q⌉.

Of all features the matrix is centred; of one class it is not. The subspace of a class under MCR²
passes through the origin, and these measures being scale-free, the residual noise of a collapsed
class, centred, would look full-rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mcr2.metrics.moments import ClassMoments, check_features, check_samples, precision


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
    return rank_and_spectrum(features, centred=centred)[0]


def spectrum(features: Tensor, *, centred: bool = True) -> Tensor:
    """Return the eigenvalues of the features' second moment, falling.

    Those of ``(1/N) Σ (h - h̄)(h - h̄)ᵀ``, h̄ the mean of all samples, or 0 where not centred: the
    energy along each principal direction.

    Args:
        features: ``(N, d)``, floating.
        centred: as for :func:`feature_rank`.

    Returns:
        float64 ``(d,)``; zero past min(N, d).

    Raises:
        TypeError, ValueError: as :func:`feature_rank`.

    Example:
        >>> spectrum(torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        tensor([4.5000, 0.5000], dtype=torch.float64)
    """
    return rank_and_spectrum(features, centred=centred)[1]


def rank_and_spectrum(features: Tensor, *, centred: bool = True) -> tuple[FeatureRank, Tensor]:
    """Return :func:`feature_rank` and :func:`spectrum` of features, from one decomposition.

    Arguments and errors as :func:`feature_rank`.

    Example:
        >>> ranks, values = rank_and_spectrum(torch.eye(4), centred=False)
        >>> ranks.dim95, values.tolist()
        (4, [0.25, 0.25, 0.25, 0.25])
    """
    H, largest = check_features(features)
    N, d = H.shape
    sigma, cutoff = _singular_values(H, largest, centred)
    values = (sigma * largest).square() / N
    return _measures(sigma, cutoff), torch.cat([values, values.new_zeros(d - len(values))])


@dataclass(frozen=True, eq=False)
class ClassGeometry:
    """The spread of every class about the origin, and the subspace that holds most of it.

    Args:
        ranks: :class:`FeatureRank` of each class, from its uncentred second moment; None for an
            absent class.
        spectra: eigenvalues of ``(1/n_k) Σ_{y=k} h hᵀ``, falling, float64 ``(K, d)``; zero for an
            absent class.
        bases: U_k, float64 ``(d, q_k)``, the ``q_k = dim95`` leading directions of each class,
            orthonormal; no column for an absent class or one of zeros.
    """

    ranks: tuple[FeatureRank | None, ...]
    spectra: Tensor
    bases: tuple[Tensor, ...]


def class_geometry(features: Tensor, labels: Tensor, *, num_classes: int) -> ClassGeometry:
    """Measure rank, spectrum and leading subspace of each class, from one decomposition each.

    Args:
        features: ``(N, d)``, floating.
        labels: ``(N,)``, integers in 0 ... num_classes - 1.
        num_classes: K.

    Returns:
        :class:`ClassGeometry`; of one sample the subspace is its line, and all ranks are 1.

    Raises:
        TypeError, ValueError: as :func:`feature_rank`; labels that are no integers or out of
            range.

    Example:
        >>> H = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [1.0, 1.0]])
        >>> geometry = class_geometry(H, torch.tensor([0, 0, 1]), num_classes=2)
        >>> [rank.dim95 for rank in geometry.ranks], geometry.spectra[:, 0].round().tolist()
        ([1, 1], [4.0, 2.0])
        >>> round(between_classes(geometry.bases).coherence, 4)
        0.5
    """
    H, y, largest = check_samples(features, labels, num_classes)
    d = H.shape[1]
    scale = largest or 1.0  # so that no square over- or underflows
    ranks: list[FeatureRank | None] = []
    spectra = torch.zeros(num_classes, d, dtype=torch.float64, device=H.device)
    bases: list[Tensor] = []
    counts = torch.bincount(y, minlength=num_classes).tolist()
    for k, block in enumerate(torch.split(H.index_select(0, y.argsort(stable=True)), counts)):
        n = len(block)
        if n == 0:
            ranks.append(None)
            bases.append(spectra.new_zeros(d, 0))
            continue
        sigma, vectors = _directions(block.double() / scale, exact=H.dtype == torch.float64)
        rank = _measures(sigma, max(n, d) * precision(H))
        ranks.append(rank)
        spectra[k, : len(sigma)] = (sigma * scale).square() / n
        bases.append(vectors[:, : rank.dim95].contiguous())
    return ClassGeometry(tuple(ranks), spectra, tuple(bases))


def class_ranks(
    features: Tensor, labels: Tensor, *, num_classes: int
) -> tuple[FeatureRank | None, ...]:
    """Return :func:`feature_rank` of each class, uncentred; None for an absent class.

    Arguments and errors as :func:`class_geometry`, of which this is ``ranks``.

    Example:
        >>> ranks = class_ranks(torch.eye(3), torch.tensor([0, 0, 2]), num_classes=3)
        >>> [rank and rank.numerical_rank for rank in ranks]
        [2, None, 1]
    """
    return class_geometry(features, labels, num_classes=num_classes).ranks


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


def between_classes(bases: Sequence[Tensor]) -> BetweenClasses:
    """Measure coherence and principal angles between class subspaces.

    Args:
        bases: U_k ``(d, q_k)`` with orthonormal columns, as in :class:`ClassGeometry`; those
            without a column are left out.

    Returns:
        :class:`BetweenClasses`.

    Example:
        >>> axes = torch.eye(3)
        >>> between_classes([axes[:, :1], axes[:, 1:], axes[:, :2]]).coherence
        0.5
    """
    # On the CPU: of many small decompositions a GPU takes milliseconds for each.
    kept = sorted((U.double().cpu() for U in bases if U.shape[1] > 0), key=lambda U: U.shape[1])
    if len(kept) < 2:
        return BetweenClasses(None, None, None)
    smallest, means = [], []
    widths = [U.shape[1] for U in kept]
    for i in range(1, len(kept)):
        # From narrow to wide, so that zeros fill narrower ones up to little more than their own
        # width, and all pairs with one class take one call. A zero column adds a cosine of zero,
        # after the min(q_i, q_j) = q_j that count. Squared cosines, as eigenvalues, are had sooner
        # than singular values and resolve angles as well: both 1e-8, for near 0 the cosine does.
        q = widths[i - 1]
        narrower = torch.stack([torch.nn.functional.pad(U, (0, q - U.shape[1])) for U in kept[:i]])
        products = narrower.mT @ kept[i]
        squares = torch.linalg.eigvalsh(products @ products.mT).flip(1).clamp_(0, 1)
        sizes = torch.tensor(widths[:i], device=squares.device)
        counted = torch.arange(q, device=squares.device) < sizes.unsqueeze(1)
        angles = squares.sqrt_().acos_()
        smallest.append(angles[:, 0])
        means.append((angles * counted).sum(1) / sizes)
    return BetweenClasses(
        coherence(bases),
        float(torch.cat(smallest).min()),
        float(torch.cat(means).mean()),
    )


def coherence(bases: Sequence[Tensor]) -> float | None:
    """Return the mean overlap of class subspaces, ``mean_{i≠j} ‖U_iᵀU_j‖_F² / min(q_i, q_j)``.

    It is that of :func:`between_classes`, without the angles' singular values.

    Args:
        bases: U_k ``(d, q_k)`` with orthonormal columns; those without one are left out.

    Returns:
        Between 0 (orthogonal) and 1; None with fewer than two subspaces.

    Example:
        >>> axes = torch.eye(3)
        >>> coherence([axes[:, :1], axes[:, 1:], axes[:, :2]])
        0.5
    """
    kept = [U.double() for U in bases if U.shape[1] > 0]
    P = len(kept)
    if P < 2:
        return None
    columns = torch.cat(kept, dim=1)
    widths = torch.tensor([U.shape[1] for U in kept], device=columns.device)
    owner = torch.arange(P, device=columns.device).repeat_interleave(widths)
    total = columns.new_zeros(())
    for i, U in enumerate(kept):
        squares = (U.T @ columns).square().sum(0)
        overlaps = columns.new_zeros(P).index_add_(0, owner, squares)
        overlaps = overlaps / widths.clamp(max=int(widths[i]))
        overlaps[i] = 0
        total += overlaps.sum()
    return float(total) / (P * (P - 1))


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Return the principal angles between two subspaces, rising.

    ``cos θ_i`` are the singular values of UᵀV. Small angles are taken from the sines, which the
    cosine does not resolve below 1e-8 (Björck & Golub 1973; Knyazev & Argentati 2002).

    Args:
        first: U ``(d, p)``, orthonormal columns.
        second: V ``(d, q)``, orthonormal columns.

    Returns:
        float64 ``(min(p, q),)``, in radians between 0 and π/2.

    Raises:
        ValueError: matrices that are not both of d rows.

    Example:
        >>> principal_angles(torch.eye(3)[:, :2], torch.eye(3)[:, 1:])
        tensor([0.0000, 1.5708], dtype=torch.float64)
    """
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ValueError(
            f"bases must be (d, p) and (d, q); got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    U, V = first.double(), second.double()
    if V.shape[1] > U.shape[1]:
        U, V = V, U
    product = U.T @ V
    cosines = torch.linalg.svdvals(product).clamp(max=1)
    sines = torch.linalg.svdvals(V - U @ product).clamp(max=1).flip(0)
    return torch.where(cosines.square() < 0.5, cosines.acos(), sines.asin())


def rank_of_moments(moments: ClassMoments, *, centred: bool = True) -> FeatureRank:
    """Return :func:`feature_rank` of all samples that an accumulator has seen.

    A second moment in float64 resolves σ down to 1e-8 of the largest, so that float64 features
    count in ``numerical_rank`` as float32 ones do.

    Args:
        moments: pooled or per class.
        centred: subtract the mean of all samples.

    Raises:
        ValueError: no sample at all.
    """
    counts = moments.counts.double()
    N, d = float(counts.sum()), moments.means.shape[1]
    if N == 0:
        raise ValueError("the moments have seen no sample")
    mean = counts @ moments.means / N
    squares, scatter = moments.about(mean.expand_as(moments.means))
    energy = N * float(mean.square().sum()) + float(squares.sum())
    if not centred:
        scatter = moments.about(torch.zeros_like(moments.means))[1]
    if float(scatter.trace()) <= moments.eps**2 * energy:
        return _NO_SPREAD
    eps = max(moments.eps, torch.finfo(torch.float32).eps)
    return _measures(_eigh(scatter)[0][: int(min(N, d))].sqrt(), max(N, d) * eps)


def class_geometry_of_moments(moments: ClassMoments) -> ClassGeometry:
    """Return :func:`class_geometry` of the samples that an accumulator has seen.

    Args:
        moments: kept per class.

    Raises:
        ValueError: moments in which the classes' scatters are pooled.
    """
    if not moments.per_class:
        raise ValueError("the geometry of classes needs ClassMoments(..., per_class=True)")
    d = moments.means.shape[1]
    ranks: list[FeatureRank | None] = []
    spectra = torch.zeros_like(moments.means)
    bases: list[Tensor] = []
    eps = max(moments.eps, torch.finfo(torch.float32).eps)
    for k, n in enumerate(moments.counts.tolist()):
        if n == 0:
            ranks.append(None)
            bases.append(spectra.new_zeros(d, 0))
            continue
        moment = moments.scatters[k] / n + torch.outer(moments.means[k], moments.means[k])
        values, vectors = _eigh(moment)
        values[min(n, d) :] = 0
        rank = _measures(values[: min(n, d)].sqrt(), max(n, d) * eps)
        ranks.append(rank)
        spectra[k] = values
        bases.append(vectors[:, : rank.dim95].contiguous())
    return ClassGeometry(tuple(ranks), spectra, tuple(bases))


_NO_SPREAD = FeatureRank(0, 0.0, 0.0, 0.0, 0)


def _singular_values(H: Tensor, largest: float, centred: bool) -> tuple[Tensor, float]:
    """Return σ, falling, of features over their largest entry, and the cutoff of numerical rank.

    σ is zero where the features are zero up to the rounding of their precision.
    """
    N, d = H.shape
    eps = precision(H)
    cutoff = max(N, d) * eps
    X = H.double()
    none = X.new_zeros(min(N, d))
    if largest == 0:
        return none, cutoff
    X = X / largest  # so that no square over- or underflows
    scale = torch.linalg.matrix_norm(X)
    if centred:
        X = X - X.mean(dim=0)
    # Spread below the rounding of the inputs is rounding: it would look full-rank.
    if torch.linalg.matrix_norm(X) <= eps * scale:
        return none, cutoff
    if H.dtype == torch.float64:
        # NumPy's tolerance in float64 lies below what a Gram matrix in float64 resolves.
        sigma: Tensor = torch.linalg.svdvals(X)
        return sigma, cutoff
    gram = X.T @ X if d <= N else X @ X.T
    return torch.linalg.eigvalsh(gram).flip(0).clamp_(min=0).sqrt_(), cutoff


def _directions(X: Tensor, *, exact: bool) -> tuple[Tensor, Tensor]:
    """Return σ ``(r,)``, falling, and right singular vectors ``(d, r)``, r = min(n, d).

    Not ``exact``, they come from the smaller Gram matrix, and vectors beyond the rank are noise.
    """
    n, d = X.shape
    if exact:
        _, sigma, rows = torch.linalg.svd(X, full_matrices=False)
        return sigma, rows.T
    if n >= d:
        values, vectors = _eigh(X.T @ X)
        return values.sqrt(), vectors
    values, vectors = _eigh(X @ X.T)
    sigma = values.sqrt()
    return sigma, X.T @ vectors / sigma.clamp(min=torch.finfo(sigma.dtype).tiny)


def _eigh(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of a second moment, falling and not negative, and eigenvectors."""
    values, vectors = torch.linalg.eigh(moment)
    return values.flip(0).clamp_(min=0), vectors.flip(1)


def _measures(sigma: Tensor, cutoff: float) -> FeatureRank:
    """Read all measures off singular values, falling.

    Args:
        sigma: σ.
        cutoff: the part of σ_max above which a singular value counts in ``numerical_rank``.
    """
    # NumPy: brought over once, and of a few hundred numbers five times as fast as tensors.
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
