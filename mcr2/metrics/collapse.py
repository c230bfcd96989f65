"""Neural collapse: how near features are to K points, and those to a simplex and a classifier.

With features ``H (N, d)``, class means ``μ_k``, their unweighted mean ``μ_G``, centred means
``M (K, d)`` with rows ``μ̄_k = μ_k - μ_G``, ``Σ_W = (1/N) Σ (h - μ_y)(h - μ_y)ᵀ`` pooled over all
samples, ``Σ_B = (1/K) MᵀM``, and a linear classifier ``W (K, d)``, ``b (K,)`` used as it is:

    nc1               tr(Σ_W Σ_B⁺) / K, the pseudo-inverse truncated to rank K - 1 or less     [1]
    nc1_ratio         tr Σ_W / tr Σ_B                                                          [2]
    cdnv              mean over pairs of (v_i + v_j) / (2 ‖μ_i - μ_j‖²), v_k = mean ‖h - μ_k‖² [3]
    nc2_equinorm      std_k ‖μ̄_k‖ / mean_k ‖μ̄_k‖                                               [1]
    nc2_equiangular   std over pairs of cos(μ̄_i, μ̄_j)                                          [1]
    nc2_maxangle      mean over pairs of |cos(μ̄_i, μ̄_j) + 1/(K - 1)|                           [1]
    nc2_etf           ‖G/‖G‖_F - (I - 11ᵀ/K)/√(K - 1)‖_F, G = MMᵀ                           [4, 5]
    nc3               ‖Wᵀ/‖W‖_F - Mᵀ/‖M‖_F‖_F²                                                 [1]
    nc3_etf           ‖WMᵀ/‖WMᵀ‖_F - (I - 11ᵀ/K)/√(K - 1)‖_F                                   [4]
    nc4               share of samples where argmax(W h + b) is not the nearest class mean     [1]

``nc2_..._w`` are the same of the rows of W. Standard deviations are those of populations. All
go to 0 under collapse; none but nc4 changes when features or W are scaled, and none changes when
features and W are rotated together or classes are renamed.

[1] Papyan, Han & Donoho, "Prevalence of neural collapse during the terminal phase of deep
learning training", PNAS 2020. [2] Tirer, Huang & Niles-Weed, "Perturbation analysis of neural
collapse", ICML 2023. [3] Galanti, György & Hutter, "On the role of neural collapse in transfer
learning", ICLR 2022. [4] Zhu et al., "A geometric analysis of neural collapse with unconstrained
features", NeurIPS 2021. [5] Kothapalli, "Neural collapse: a review on modelling principles and
generalization", TMLR 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mcr2 import checks
from mcr2.checks import Array, Labels
from mcr2.metrics.moments import ClassMoments, FirstMoments, average, exact, pieces, precision

#: Below this ``mean_energy`` class means are too small a part of the features for measures about
#: them to mean much. (The means of n samples without any class structure hold 1/n of the energy.)
MEAN_ENERGY_FLOOR = 0.05

#: Features whose mean square lies outside are scaled by a power of two first, so that squares
#: neither over- nor underflow, in float32 those of deviations at its rounding level.
_SAFE = (1e-16, 1e16)


@dataclass(frozen=True)
class NeuralCollapse:
    """The measures of :mod:`mcr2.metrics.collapse`; None where one is undefined or not asked for.

    Undefined, 0/0, are: the angles where one centred mean is zero; cdnv where two class means
    agree; all of them where all class means agree up to rounding, or fewer than two classes are
    present; the measures of W likewise. ``nc2_..._w`` to ``nc4`` need a classifier.

    Args:
        mean_energy: ``Σ_k ‖μ_k‖² / (K · mean ‖h‖²)``, the part of the features that their class
            means hold; 0 for zero features.
        means_reliable: whether ``mean_energy`` reaches :data:`MEAN_ENERGY_FLOOR`. Where classes
            are subspaces through the origin, class means may vanish and all of these become 0/0.
        classes, absent: the number of classes present, K above, and the classes that are not.
        smallest_class: samples in the smallest class, 0 where one is absent; a class with one has
            no variance to measure and pulls nc1 and cdnv down.
    """

    nc1: float | None
    nc1_ratio: float | None
    cdnv: float | None
    nc2_equinorm: float | None
    nc2_equiangular: float | None
    nc2_maxangle: float | None
    nc2_etf: float | None
    nc2_equinorm_w: float | None
    nc2_equiangular_w: float | None
    nc2_maxangle_w: float | None
    nc3: float | None
    nc3_etf: float | None
    nc4: float | None
    mean_energy: float
    means_reliable: bool
    classes: int
    absent: tuple[int, ...]
    smallest_class: int


def neural_collapse(
    features: Array,
    labels: Labels,
    *,
    num_classes: int,
    weight: Array | None = None,
    bias: Array | None = None,
    means: FirstMoments | None = None,
) -> NeuralCollapse:
    """Measure neural collapse over the classes that are present.

    Class means and all that is made of them are float64. Products over samples are taken in the
    features' precision (float32 for half precision), of samples less their class mean, so that
    means of size 1e4 beside a spread of 1 cost no digits.

    Args:
        features: ``(N, d)``, floating.
        labels: ``(N,)``, integers in 0 ... num_classes - 1.
        num_classes: at least 2.
        weight: W ``(num_classes, d)``, used uncentred. The rows of absent classes are left out of
            all but nc4, whose argmax is over all rows.
        bias: b ``(num_classes,)``, or None for no bias; -inf for a class never to be predicted.
        means: the class means of other samples to measure about, as test samples are about the
            training class means. K is then the number of means, of classes without samples too;
            only cdnv is over pairs of classes with samples. A class without a mean is left out.

    Raises:
        TypeError, ValueError: as :func:`mcr2.checks.samples`; fewer than two classes; weight, bias
            or means that are not floating, not of their shape or not finite; a bias without a
            weight, or of -inf for all.

    Example:
        >>> corners = torch.eye(3)
        >>> result = neural_collapse(
        ...     corners.repeat(4, 1), torch.arange(12) % 3, num_classes=3, weight=corners - 1 / 3
        ... )
        >>> f"{result.nc1:.3f} {result.nc2_etf:.3f} {result.nc3:.3f} {result.nc4:.3f}"
        '0.000 0.000 0.000 0.000'
    """
    K = checks.classes(num_classes, 2)
    H, y = checks.samples(features, labels, K)
    eps, work = precision(H), torch.promote_types(H.dtype, torch.float32)
    if means is not None:
        counts = means.counts.to(H.device)
        points = exact(checks.floating("means", means.means, K, H.shape[1])).to(H.device)
        kept = counts[y] > 0
        H, y = H[kept], y[kept]

    first, unit = average(H, y, K), 1.0
    if not _SAFE[0] < first.energy < _SAFE[1] and bool(H.any()):
        unit = math.ldexp(1.0, math.frexp(float(H.abs().max()))[1] - 1)
        H = H.double() / unit
        first = average(H, y, K)
    points, counts = (first.means, first.counts) if means is None else (points / unit, counts)
    about = _Means(points, counts, eps, first.energy)
    W, b = _classifier(weight, bias, about.means)
    judge = None
    if W is not None and not about.vanishes and len(H) > 0:
        judge = _judge(about, W, b / unit, work)

    squares, along, mismatches = about.means.new_zeros(K), about.means.new_zeros(()), 0
    # A mean is its rounding and the rest: samples less both are right to the last digit.
    coarse, span = about.means.to(work), about.span.to(work)
    rest = (about.means - coarse).to(work)
    with torch.autocast(H.device.type, enabled=False):  # it would take products in half precision
        for part, classes in pieces(H, y):
            x = part.to(work) - coarse[classes] - rest[classes]
            norms = torch.linalg.vector_norm(x, dim=1).double()
            squares.index_add_(0, classes, norms.square())
            along += (span @ x.T).square().sum(dtype=torch.float64)
            if judge is not None:
                rows, table = judge
                near, score = torch.split(
                    table[classes].addmm_(x, rows.T), [len(about.kept), K], dim=1
                )
                mismatches += int((score.argmax(1) != about.kept[near.argmax(1)]).sum())
    nc4 = None if judge is None else mismatches / len(H)
    return _measures(about, first.counts, squares, float(along), W, nc4)


def collapse_of_moments(moments: ClassMoments, *, weight: Array | None = None) -> NeuralCollapse:
    """Measure neural collapse of samples that were seen once, batch by batch.

    Everything is as for :func:`neural_collapse`, but for ``nc4``, which is None: moments do not
    determine it. A second pass does: it is the mean over batches H of
    ``(H @ W.T + b).argmax(1) != torch.cdist(H, moments.means).argmin(1)``.

    Example:
        >>> moments = ClassMoments(2, 2)
        >>> for sign in (-1.0, 1.0):
        ...     moments.update(torch.tensor([[1.0, sign], [-1.0, sign]]), [0, 1])
        >>> round(collapse_of_moments(moments).nc1_ratio, 4)
        1.0
    """
    checks.integer("num_classes", len(moments.counts), 2)
    if not bool(moments.counts.any()):
        raise ValueError("the moments have seen no sample")
    W, _ = _classifier(weight, None, moments.means)
    about = _Means(moments.means, moments.counts, moments.eps, moments.energy)
    along = float(((about.span @ moments.scatter) * about.span).sum())
    return _measures(about, moments.counts, moments.squares, along, W, None)


class _Means:
    """What the measures need of the means ``(num_classes, d)`` that they are taken about.

    Of the K classes ``kept``, which have a mean: ``centre, centred, gram`` are μ_G, M and MMᵀ, and
    ``span`` is T ``(r, d)`` with ``Σ_B⁺ = K TᵀT``. Means no further apart than ``noise`` are equal
    up to rounding, which would otherwise be taken for directions; all are where it ``vanishes``.
    """

    def __init__(self, means: Tensor, counts: Tensor, eps: float, energy: float) -> None:
        self.means, self.energy, self.noise = means, energy, 4 * eps * math.sqrt(energy)
        self.kept = counts.nonzero().flatten()
        points = means[self.kept]
        self.centre = points.mean(0)
        self.centred = points - self.centre
        self.gram = self.centred @ self.centred.T
        (K, d), eps64 = points.shape, torch.finfo(torch.float64).eps
        self.vanishes = float(self.gram.trace()) <= K * self.noise**2
        # Σ_B⁺ lives in the span of K means: eigenvectors of the smaller of MMᵀ and MᵀM give it,
        # no d × d pseudo-inverse needed. The rank is at most K - 1 because the rows of M sum to
        # zero. The K-th eigenvalue is rounding, and inverting it, as a default cutoff may, would
        # swamp the trace.
        narrow = d >= K
        small = self.gram if narrow else self.centred.T @ self.centred
        values, vectors = torch.linalg.eigh(small)
        floor = max(float(values[-1]) * max(K, d) * eps64, K * self.noise**2)
        rank = 0 if self.vanishes else min(int((values > floor).sum()), K - 1)
        values, vectors = values[len(values) - rank :], vectors[:, len(values) - rank :]
        self.span = (vectors / values).T @ self.centred if narrow else (vectors / values.sqrt()).T


def _judge(about: _Means, weight: Tensor, bias: Tensor, work: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return what says whether a sample's nearest class mean is ``argmax(W h + b)``.

    Both are largest scores ``r_kᵀ(h - μ_G) + l_k``: the nearest mean has ``r = μ̄_k`` and
    ``l = -‖μ̄_k‖²/2``. Given are the rows r, and all scores at each class mean: a product over
    samples sees only deviations from it, and float32 does not lose those beside a large mean.
    """
    near = about.gram - about.gram.diagonal() / 2
    score = about.centred @ weight.T + (weight @ about.centre + bias)
    rows = torch.cat([about.centred, weight]).to(work)
    table = rows.new_zeros(len(weight), len(rows))
    # Less the largest: only differences count.
    tables = [scores - scores.amax(1, keepdim=True) for scores in (near, score)]
    table[about.kept] = torch.cat(tables, dim=1).to(work)
    return rows, table


def _measures(
    about: _Means,
    counts: Tensor,
    squares: Tensor,
    along: float,
    W: Tensor | None,
    nc4: float | None,
) -> NeuralCollapse:
    """Put the measures together.

    From n_k and ``Σ_i ‖h_i - μ_k‖²`` of each class, and ``Σ_i ‖T (h_i - μ_y)‖²`` along the span.
    """
    M, gram, K, N = about.centred, about.gram, len(about.kept), int(counts.sum())
    nc1 = nc1_ratio = nc2_etf = nc3 = nc3_etf = None
    if not about.vanishes:
        nc2_etf = _off_simplex(gram)
        if N > 0:
            nc1, nc1_ratio = along / N, float(squares.sum() / N / (gram.trace() / K))
    frame_w: tuple[float | None, float | None, float | None] = (None, None, None)
    if W is not None:
        W = W[about.kept]
        frame_w = _frame(W @ W.T, 0.0)
        if not about.vanishes and bool(W.any()):
            nc3 = float((W / W.norm() - M / M.norm()).square().sum())
            cross = W @ M.T
            nc3_etf = _off_simplex(cross) if bool(cross.any()) else None
    held = float(about.means[about.kept].square().sum() / K)
    mean_energy = held / about.energy if about.energy > 0 else 0.0
    absent = tuple((counts == 0).nonzero().flatten().tolist())
    return NeuralCollapse(
        nc1,
        nc1_ratio,
        _cdnv(about, counts, squares),
        *_frame(gram, about.noise),
        nc2_etf,
        *frame_w,
        nc3,
        nc3_etf,
        nc4,
        mean_energy,
        mean_energy >= MEAN_ENERGY_FLOOR,
        len(counts) - len(absent),
        absent,
        int(counts.min()),
    )


def _cdnv(about: _Means, counts: Tensor, squares: Tensor) -> float | None:
    """Mean over pairs of present classes of (v_i + v_j)/(2 ‖μ_i - μ_j‖²); None at 0/0."""
    present = counts.nonzero().flatten()
    if len(present) < 2:
        return None
    distances = torch.pdist(about.means[present] - about.centre).square()
    if float(distances.min()) <= about.noise**2:
        return None
    v = squares[present] / counts[present]
    i, j = torch.triu_indices(len(present), len(present), 1, device=v.device)
    return float(((v[i] + v[j]) / (2 * distances)).mean())


def _frame(gram: Tensor, noise: float) -> tuple[float | None, float | None, float | None]:
    """Return equinorm, equiangular and maxangle of K vectors, from their products ``(K, K)``.

    A vector that is no longer than ``noise`` counts as zero and has no angle.
    """
    K = len(gram)
    if K < 2 or float(gram.trace()) <= K * noise**2:
        return None, None, None
    norms = gram.diagonal().sqrt()
    equinorm = float(norms.std(correction=0) / norms.mean())
    if float(norms.min()) <= noise:
        return equinorm, None, None
    i, j = torch.triu_indices(K, K, 1, device=gram.device)
    cosines = (gram / norms / norms.unsqueeze(1))[i, j]
    off = (cosines + 1 / (K - 1)).abs().mean()
    return equinorm, float(cosines.std(correction=0)), float(off)


def _off_simplex(products: Tensor) -> float:
    """Return ‖P/‖P‖_F - (I - 11ᵀ/K)/√(K - 1)‖_F of a matrix of products ``(K, K)``."""
    K = len(products)
    simplex = (torch.eye(K).to(products) - 1 / K) / math.sqrt(K - 1)
    return float((products / products.norm() - simplex).norm())


def _classifier(
    weight: Array | None, bias: Array | None, means: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Check a classifier beside means (K, d); return it in float64, over the largest entry of W."""
    if weight is None:
        if bias is not None:
            raise ValueError("a bias was given without a weight")
        return None, means.new_zeros(0)
    W = exact(checks.floating("weight", weight, *means.shape)).to(means.device)
    size = W.abs().max()
    W, size = (W / size, size) if bool(size > 0) else (W, torch.ones_like(size))
    if bias is None:
        return W, W.new_zeros(len(W))
    b = exact(checks.floating("bias", bias, len(W), finite=False)).to(W.device)
    # -inf is how a readout says that a class is never to be predicted.
    if bool((b.isnan() | (b == torch.inf)).any()) or not bool(b.isfinite().any()):
        raise ValueError("bias must be finite, or -inf for some of the classes")
    return W, b / size
