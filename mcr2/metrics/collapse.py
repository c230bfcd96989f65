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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mcr2.metrics.moments import (
    ClassMoments,
    average,
    check_features,
    check_finite,
    check_samples,
    pieces,
    precision,
)

#: Below this ``mean_energy`` class means are too small a part of the features for measures about
#: them to mean much. (The means of n samples without any class structure hold 1/n of the energy.)
MEAN_ENERGY_FLOOR = 0.05

#: Features whose largest entry lies outside are scaled by a power of two first, so that squares
#: neither over- nor underflow, in float32 those of deviations at its rounding level.
_SAFE = (1e-8, 1e8)

#: Up to this condition number of MᵀM its inverse is taken from a Cholesky factor.
_WELL_CONDITIONED = 1e6

#: From so many classes on, NC4 takes a first look in bfloat16 where that is quicker.
_MANY = 128

#: Rows a block of a triangular matrix.
_BLOCK = 128

#: A score ``aᵀq + b`` in bfloat16 (unit roundoff u = 2⁻⁸) differs from the exact one by less than
#: ``_SLACK (‖a‖ ‖q‖ + |b|)``: u for each factor and u for the result, which add to 3u, the rest
#: for what is of second order and for sums in float32.
_SLACK = 4 * 2.0**-8


@dataclass(frozen=True)
class NeuralCollapse:
    """The measures of :mod:`mcr2.metrics.collapse`; None where one is undefined or not asked for.

    Undefined, 0/0, are: nc1, nc1_ratio, nc2_etf, nc3, nc3_etf, nc4 and nc2_equinorm where all
    class means agree up to rounding; the angles where one centred mean is zero; cdnv where two
    class means agree; the measures of W likewise.

    Args:
        nc1, nc1_ratio, cdnv: variability within classes against that between them.
        nc2_equinorm, nc2_equiangular, nc2_maxangle, nc2_etf: the class means' distance from a
            simplex equiangular tight frame.
        nc2_equinorm_w, nc2_equiangular_w, nc2_maxangle_w: the same of the rows of W.
        nc3, nc3_etf: the classifier's distance from the class means.
        nc4: its disagreement with the nearest class mean. (nc2_..._w to nc4 are None without a
            classifier.)
        mean_energy: ``Σ_k ‖μ_k‖² / (K · mean ‖h‖²)``, the part of the features that their class
            means hold; 0 for zero features.
        believable: whether ``mean_energy`` reaches :data:`MEAN_ENERGY_FLOOR`. Where classes are
            subspaces through the origin, class means may vanish and all of these become 0/0.
        smallest_class: samples in the smallest class; a class with one has no variance to
            measure and pulls nc1 and cdnv down, and 0 occurs about given means only.
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
    believable: bool
    smallest_class: int


def neural_collapse(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    means: Tensor | None = None,
) -> NeuralCollapse:
    """Measure neural collapse, all measures from two looks at the samples.

    Formulas and sources stand at the top of :mod:`mcr2.metrics.collapse`. A class with one
    sample counts as any other and adds no variance.

    Class means and all that is made of them are float64. Products over samples are taken in the
    features' precision (float32 for half precision), of samples less their class mean, so that
    means of size 1e4 beside a spread of 1 cost no digits.

    Args:
        features: ``(N, d)``, floating.
        labels: ``(N,)``, integers in 0 ... num_classes - 1.
        num_classes: K, at least 2.
        weight: W ``(K, d)``, used uncentred.
        bias: b ``(K,)``, or None for no bias; -inf for a class never to be predicted.
        means: class means ``(K, d)`` to measure about, for the collapse of test samples about
            the training class means; by default the samples' own. Every ``μ_k`` above is then
            the given one, and a class may be absent: cdnv is the mean over pairs of classes that
            have samples (None with fewer than two).

    Returns:
        :class:`NeuralCollapse`.

    Raises:
        TypeError: features, weight, bias or means that are not floating, labels that are not
            integers.
        ValueError: fewer than two classes; shapes that do not fit; labels out of range; entries
            that are not finite; a bias without a weight; a class without samples, unless
            ``means`` are given.

    Example:
        >>> corners = torch.eye(3)
        >>> result = neural_collapse(
        ...     corners.repeat(4, 1), torch.arange(12) % 3, num_classes=3, weight=corners - 1 / 3
        ... )
        >>> f"{result.nc1:.3f} {result.nc2_etf:.3f} {result.nc3:.3f} {result.nc4:.3f}"
        '0.000 0.000 0.000 0.000'
    """
    _check_classes(num_classes)
    H, y, largest = check_samples(features, labels, num_classes)
    d = H.shape[1]
    eps = precision(H)
    classifier = _check_head(weight, bias, (num_classes, d), H.device)
    given = None if means is None else check_finite("means", means, (num_classes, d)).to(H.device)

    unit = 1.0
    if largest > 0 and not _SAFE[0] < largest < _SAFE[1]:
        unit = math.ldexp(1.0, math.frexp(largest)[1] - 1)
        H = H.double() / unit
    first = average(H, y, num_classes)
    if given is None:
        _check_present(first.counts)
        points = first.means
    else:
        points = given / unit
    reference = _Reference(points, noise=_noise(eps, first.energy))
    head = None if classifier is None else _Head(reference, classifier[0], classifier[1] / unit)
    squares, along, mismatches = _second_look(
        H,
        y,
        reference,
        head,
        torch.float64 if features.dtype == torch.float64 else torch.float32,
    )
    return _measures(
        reference,
        counts=first.counts,
        squares=squares,
        along=along / len(H),
        energy=first.energy,
        head=head,
        nc4=None if mismatches is None else mismatches / len(H),
    )


def collapse_of_moments(
    moments: ClassMoments, *, weight: Tensor | None = None, means: Tensor | None = None
) -> NeuralCollapse:
    """Measure neural collapse of samples that were seen once, batch by batch.

    Everything is as :func:`neural_collapse` but for ``nc4``, which moments do not determine and
    which is None: see :func:`nc4` for a second look, batch by batch.

    Args:
        moments: of the samples, pooled or per class.
        weight: W ``(K, d)``.
        means: class means to measure about, as for :func:`neural_collapse`.

    Returns:
        :class:`NeuralCollapse`, its ``nc4`` None.

    Raises:
        TypeError, ValueError: as :func:`neural_collapse`; or no sample at all.

    Example:
        >>> moments = ClassMoments(2, 2)
        >>> for sign in (-1.0, 1.0):
        ...     moments.update(torch.tensor([[1.0, sign], [-1.0, sign]]), torch.tensor([0, 1]))
        >>> round(collapse_of_moments(moments).nc1_ratio, 4)
        1.0
    """
    K, d = moments.means.shape
    _check_classes(K)
    N = int(moments.counts.sum())
    if N == 0:
        raise ValueError("the moments have seen no sample")
    classifier = _check_head(weight, None, (K, d), moments.means.device)
    if means is None:
        _check_present(moments.counts)
        points = moments.means
    else:
        points = check_finite("means", means, (K, d)).to(moments.means.device)
    weights = moments.counts.double()
    energy = float(moments.squares.sum() + weights @ moments.means.square().sum(1)) / N
    reference = _Reference(points, noise=_noise(moments.eps, energy))
    squares, scatter = moments.about(points)
    return _measures(
        reference,
        counts=moments.counts,
        squares=squares,
        along=((reference.span @ scatter) * reference.span).sum(1) / N,
        energy=energy,
        head=None if classifier is None else _Head(reference, *classifier),
        nc4=None,
    )


def nc4(features: Tensor, *, means: Tensor, weight: Tensor, bias: Tensor | None = None) -> float:
    """Return the share of samples where ``argmax(W h + b)`` is not the nearest class mean.

    For samples that arrive in batches: NC4 of all is the mean over batches, weighted by their
    sizes, about the means of all (``ClassMoments.means``, from a first pass).

    Args:
        features: a batch ``(n, d)``, floating.
        means: μ_k ``(K, d)``.
        weight: W ``(K, d)``.
        bias: b ``(K,)`` or None.

    Raises:
        TypeError, ValueError: as :func:`neural_collapse`.

    Example:
        >>> nc4(torch.tensor([[0.4], [1.0]]), means=torch.tensor([[0.0], [1.0]]),
        ...     weight=torch.tensor([[0.0], [1.0]]))
        0.5
    """
    H, _ = check_features(features)
    K = len(means)
    _check_classes(K)
    points = check_finite("means", means, (K, H.shape[1])).to(H.device)
    head = _check_head(weight, bias, (K, H.shape[1]), H.device)
    assert head is not None
    centre = points.mean(0)
    # About the centre, or the expanded squares would cancel beside a large mean.
    M, x = points - centre, H.double() - centre
    near = x @ M.T - M.square().sum(1) / 2
    W, b = head
    score = x @ W.T + (W @ centre + b)
    return int((near.argmax(1) != score.argmax(1)).sum()) / len(H)


class _Reference:
    """What the measures need of the class means ``(K, d)`` that they are taken about.

    ``noise`` is a length at or below which means cannot be told apart: what is left of equal
    means after rounding would otherwise be read as directions.
    """

    def __init__(self, means: Tensor, *, noise: float) -> None:
        K, d = means.shape
        self.means = means
        self.centre = means.mean(0)
        self.centred = means - self.centre
        self.noise = noise
        self.gram = self.centred @ self.centred.T
        energy = self.gram.diagonal()
        self.vanishes = float(energy.sum()) <= K * noise**2

        #: ‖μ_i - μ_j‖², infinite from a class to itself
        both = energy.unsqueeze(0) + energy.unsqueeze(1)
        self.sq_distances = torch.add(both, self.gram, alpha=-2)
        close = self.sq_distances <= both.mul_(1e-6)
        for k in close.fill_diagonal_(False).any(1).nonzero().flatten().tolist():
            # Rows where the Gram matrix cancels are taken by differences.
            self.sq_distances[k] = (self.centred - self.centred[k]).square().sum(1)
        self.sq_distances.fill_diagonal_(torch.inf)

        #: directions t_j ``(r, d)`` and energies λ_j: ``Σ_B⁺ = K Σ_j t_j t_jᵀ / λ_j``
        self.span: Tensor
        self.energies: Tensor
        #: whether each t_j is zero past its j-th entry
        self.triangular = False
        #: the centred means in the span's coordinates ``(K, r)``, where those are fewer than d
        self.corners: Tensor | None = None
        if d < K and self._factorise():
            return
        # Σ_B⁺ lives in the span of K means: eigenvectors of the smaller of MMᵀ and MᵀM give an
        # orthonormal basis of it, no d × d pseudo-inverse needed. The rank is at most K - 1
        # because the rows of M sum to zero. The K-th eigenvalue is rounding, and inverting it,
        # as a default cutoff may, would swamp the trace.
        small = self.gram if d >= K else self.centred.T @ self.centred
        values, vectors = torch.linalg.eigh(small)
        values, vectors = values.flip(0)[: K - 1], vectors.flip(1)[:, : K - 1]
        floor = max(float(values[0]) * max(K, d) * torch.finfo(values.dtype).eps, K * noise**2)
        rank = 0 if self.vanishes else int((values > floor).sum())
        self.energies, vectors = values[:rank], vectors[:, :rank]
        if d >= K:
            lengths = self.energies.sqrt()
            self.span = (vectors.T @ self.centred) / lengths.unsqueeze(1)
            self.corners = vectors * lengths
        else:
            self.span = vectors.T.contiguous()

    def _factorise(self) -> bool:
        """Take ``(MᵀM)⁻¹`` from a Cholesky factor where M is safely of full rank d.

        ``MᵀM = LLᵀ`` gives the rows of ``L⁻¹`` for directions: sooner than eigenvectors, and
        half of each product with them is of zeros. ``tr (MᵀM)⁻¹ = ‖L⁻¹‖_F²`` is no less than
        1/λ_min, so that its product with ``tr MᵀM`` bounds the condition number.
        """
        if self.vanishes:
            return False
        factor, failed = torch.linalg.cholesky_ex(self.centred.T @ self.centred)
        if int(failed):
            return False
        inverse = torch.linalg.solve_triangular(
            factor, torch.eye(len(factor)).to(factor), upper=False
        )
        if not float(inverse.square().sum() * self.gram.trace()) < _WELL_CONDITIONED:
            return False
        self.span, self.energies = inverse, inverse.new_ones(len(inverse))
        self.triangular = True
        return True


class _Head:
    """A linear classifier over its largest entry, and its products with class means.

    Attributes:
        weight, bias: W and b, both over the largest entry of W where that is not zero.
        gram: ``W Wᵀ``.
        cross: ``M Wᵀ``, M the centred means.
    """

    def __init__(self, reference: _Reference, weight: Tensor, bias: Tensor) -> None:
        size = weight.abs().max()
        self.zero = not bool(size > 0)
        self.weight, self.bias = (weight, bias) if self.zero else (weight / size, bias / size)
        self.gram = self.weight @ self.weight.T
        self.cross = reference.centred @ self.weight.T


def _second_look(
    H: Tensor, y: Tensor, reference: _Reference, head: _Head | None, work: torch.dtype
) -> tuple[Tensor, Tensor, int | None]:
    """Read the samples once more, now that the means are known.

    Args:
        H: features ``(N, d)``.
        y: labels ``(N,)``.
        reference: the class means.
        head: the classifier, or None.
        work: the precision of products over samples.

    Returns:
        ``Σ_i ‖h_i - μ_k‖²`` of each class ``(K,)``; ``Σ_i (u_jᵀ(h_i - μ_y))²`` along each
        direction of the span ``(r,)``; the number of samples on which W and the nearest mean
        disagree, None without a W or means.
    """
    squares = torch.zeros(len(reference.means), dtype=torch.float64, device=H.device)
    along = torch.zeros(len(reference.span), dtype=torch.float64, device=H.device)
    spans = _blocks(reference.span.to(work), triangular=reference.triangular)
    # A mean is its rounding and the rest: samples less both are right to the last digit.
    means = reference.means.to(work)
    rest = (reference.means - means).to(work)
    judge = None if head is None or reference.vanishes else _Judge(reference, head, work)
    mismatches = 0
    with torch.autocast(H.device.type, enabled=False):  # it would take products in half precision
        for part, classes in pieces(H, y):
            part = part.to(work)
            x = part - means.index_select(0, classes)
            if work != reference.means.dtype:
                x -= rest.index_select(0, classes)
            norms = torch.linalg.vector_norm(x, dim=1)
            squares.index_add_(0, classes, norms.double().square())
            insides = [x[:, : span.shape[1]] @ span.T for span in spans]
            along += torch.cat([inside.square().sum(0) for inside in insides])
            if judge is not None:
                mismatches += judge.mismatches(part, x, norms, insides[0], classes)
    return squares, along, None if judge is None else mismatches


def _blocks(span: Tensor, *, triangular: bool) -> tuple[Tensor, ...]:
    """Cut directions ``(r, d)`` into blocks of rows, and off each block its columns of zeros."""
    if not triangular:
        return (span,)
    blocks, width = torch.split(span, _BLOCK), 0
    return tuple(block[:, : (width := width + len(block))].contiguous() for block in blocks)


class _Judge:
    """Counts the samples where ``argmax(W h + b)`` is not the nearest class mean.

    Most samples need no product, or a coarse one, to see that both are their own class: see
    :func:`_safe_radii` and :class:`_FirstLook`. Only the others are looked at in full.
    """

    def __init__(self, reference: _Reference, head: _Head, work: torch.dtype) -> None:
        # Of every class, the scores at its mean: with these in a table a product over samples
        # sees their deviations only, and float32 does not lose them beside a large mean. The
        # best score of each row is taken off for the same reason.
        scores = head.cross + (head.weight @ reference.centre + head.bias)
        self.safe = _safe_radii(reference, head, scores).to(work)
        self.scores = scores.sub_(scores.amax(1, keepdim=True)).to(work)
        self.weight = head.weight.to(work)
        # ‖h - μ_k‖² = ‖x‖² + 2 xᵀ(μ_y - μ_k) + ‖μ_y - μ_k‖² with x = h - μ_y.
        self.nearness = (reference.sq_distances / -2).fill_diagonal_(0).to(work)
        self.corners = None if reference.corners is None else reference.corners.to(work)
        self.centred = reference.centred.to(work)

        self.looks: tuple[_FirstLook, _FirstLook] | None = None
        if len(scores) >= _MANY and _bfloat16_is_quick(scores.device):
            self.centre = reference.centre.to(work)
            shift = self.centre - reference.centre  # of what is measured from the rounded centre
            reach = torch.linalg.vector_norm(reference.centred - shift, dim=1)
            corners = reference.corners
            nearest = reference.gram.diagonal() / -2
            if corners is None:
                corners, nearest = reference.centred, nearest + reference.centred @ shift
            bias = head.weight @ self.centre.double() + head.bias
            self.looks = (
                _FirstLook(corners, nearest, reach),
                _FirstLook(head.weight, bias, reach),
            )

    def mismatches(
        self, part: Tensor, x: Tensor, norms: Tensor, inside: Tensor, classes: Tensor
    ) -> int:
        """Count them in a piece.

        Args:
            part: samples ``(n, d)``.
            x: their deviations from their class means ``(n, d)``.
            norms: ``‖x‖``.
            inside: x in the coordinates of the corners ``(n, r)``, if there are any.
            classes: their classes.
        """
        doubtful = ~(norms < self.safe[classes])
        if self.looks is not None and bool(doubtful.any()):
            of_means, of_weight = self.looks
            part, norms, y = _kept(doubtful, part, norms, classes)
            about = (part - self.centre).bfloat16()
            places = about
            if self.corners is not None:
                (inside_,) = _kept(doubtful, inside)
                places = (inside_ + self.corners.index_select(0, y)).bfloat16()
            sure = of_means.sure(places, norms, y) & of_weight.sure(about, norms, y)
            doubtful[doubtful.clone()] = ~sure
        if not bool(doubtful.any()):
            return 0
        x, inside, classes = _kept(doubtful, x, inside, classes)
        near = self.nearness.index_select(0, classes)
        if self.corners is None:
            near.addmm_(x, self.centred.T)
        else:
            near.addmm_(inside, self.corners.T)
        score = self.scores.index_select(0, classes).addmm_(x, self.weight.T)
        return int((near.argmax(1) != score.argmax(1)).sum())


class _FirstLook:
    """Sees in bfloat16 of which samples the best score ``a_kᵀq + b_k`` is that of their class.

    Where processors multiply bfloat16 faster, that is most of the cost of NC4, and it stays
    exact: a sample counts as seen only if its class leads by more than all rounding, see
    :data:`_SLACK`.

    Args:
        rows: a_k, float64 ``(K, p)``.
        bias: b_k, float64 ``(K,)``.
        reach: ``(K,)``; no ``‖q‖`` is longer than its class's reach and the norm that
            :meth:`sure` is given.
    """

    def __init__(self, rows: Tensor, bias: Tensor, reach: Tensor) -> None:
        bias = bias - bias[bias.isfinite()].mean()  # only differences count
        self.rows, self.bias = rows.bfloat16(), bias.bfloat16()
        lengths = torch.linalg.vector_norm(rows, dim=1)
        levels = bias.abs()
        self.reach = reach.float()
        self.per_length = (_SLACK * (lengths + lengths.max())).float()
        self.constant = (_SLACK * (levels + levels[levels.isfinite()].max())).float()

    def sure(self, q: Tensor, norms: Tensor, classes: Tensor) -> Tensor:
        """Return which samples' own class scores best beyond doubt, for bfloat16 q ``(n, p)``."""
        scores = torch.nn.functional.linear(q, self.rows, self.bias).float()
        own = classes.unsqueeze(1)
        best = scores.gather(1, own).squeeze(1)
        lead = best - scores.scatter_(1, own, -torch.inf).amax(1)
        lengths = norms + self.reach[classes]
        sure: Tensor = lead > lengths * self.per_length[classes] + self.constant[classes]
        return sure


def _bfloat16_is_quick(device: torch.device) -> bool:
    """Whether products in bfloat16 have instructions of their own on this processor.

    Not on accelerators, whose float32 products are quick and whose half-precision ones may be
    set to round partial sums.
    """
    if device.type != "cpu":
        return False
    # Early versions of PyTorch cannot tell: nothing is quick then.
    able: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _kept(mask: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the rows of tensors where a mask is true, without a copy where all are."""
    if bool(mask.all()):
        return tensors
    places = mask.nonzero().squeeze(1)
    return tuple(tensor.index_select(0, places) for tensor in tensors)


def _safe_radii(reference: _Reference, head: _Head, scores: Tensor) -> Tensor:
    """Return how far from each class mean both predictions are still sure to be that class.

    The nearest mean to ``μ_y + x`` is μ_y where ``‖x‖ < ‖μ_k - μ_y‖ / 2`` for all other k, and
    the best score that of y where ``‖x‖ ‖w_k - w_y‖`` is less than its lead at μ_y. Inside both,
    NC4 needs no product: of a collapsed network with many classes that saves most of the work.
    NaN and what is not positive mean nowhere.

    Args:
        reference: the class means.
        head: the classifier.
        scores: its scores at the class means ``(K, K)``, a row for each mean.
    """
    apart = reference.sq_distances.amin(1).sqrt() / 2
    # With an allowance for what the expanded squares may cancel.
    energy = head.gram.diagonal() * (1 + 1e-12)
    between = (energy.unsqueeze(0) + energy.unsqueeze(1)).sub_(head.gram, alpha=2)
    lead = scores.diagonal().unsqueeze(1) - scores
    radii = lead.div_(between.clamp_(min=0).sqrt_()).fill_diagonal_(torch.inf).amin(1)
    # And one for the rounding of radii and norms in float32.
    return torch.minimum(apart, radii) * (1 - 1e-5)


def _measures(
    reference: _Reference,
    *,
    counts: Tensor,
    squares: Tensor,
    along: Tensor,
    energy: float,
    head: _Head | None,
    nc4: float | None,
) -> NeuralCollapse:
    """Put the measures together.

    Args:
        reference: the class means.
        counts: n_k.
        squares: ``Σ_i ‖h_i - μ_k‖²`` of each class.
        along: Uᵀ Σ_W U, its diagonal, U the reference's span.
        energy: mean ‖h‖².
        head: the classifier or None.
        nc4: as it is reported.
    """
    M, gram = reference.centred, reference.gram
    K = len(M)
    nc1 = nc1_ratio = nc2_etf = nc3 = nc3_etf = None
    if not reference.vanishes:
        nc1 = float((along / reference.energies).sum())
        nc1_ratio = float(squares.sum() / counts.sum() / (gram.trace() / K))
        nc2_etf = _off_simplex(gram)
    frame = _frame(gram, reference.noise)
    frame_w: tuple[float | None, float | None, float | None] = (None, None, None)
    if head is not None and not head.zero:
        frame_w = _frame(head.gram, 0.0)
        if not reference.vanishes:
            nc3 = float((_normalised(head.weight) - _normalised(M)).square().sum())
            if bool((head.cross != 0).any()):
                nc3_etf = _off_simplex(head.cross)
    held = float(reference.means.square().sum() / K)
    mean_energy = held / energy if energy > 0 else 0.0
    return NeuralCollapse(
        nc1=nc1,
        nc1_ratio=nc1_ratio,
        cdnv=_cdnv(reference, counts, squares),
        nc2_equinorm=frame[0],
        nc2_equiangular=frame[1],
        nc2_maxangle=frame[2],
        nc2_etf=nc2_etf,
        nc2_equinorm_w=frame_w[0],
        nc2_equiangular_w=frame_w[1],
        nc2_maxangle_w=frame_w[2],
        nc3=nc3,
        nc3_etf=nc3_etf,
        nc4=nc4,
        mean_energy=mean_energy,
        believable=mean_energy >= MEAN_ENERGY_FLOOR,
        smallest_class=int(counts.min()),
    )


def _cdnv(reference: _Reference, counts: Tensor, squares: Tensor) -> float | None:
    """Mean over pairs of present classes of (v_i + v_j)/(2 ‖μ_i - μ_j‖²); None at 0/0."""
    distances = reference.sq_distances
    present = counts > 0
    P = int(present.sum())
    if len(counts) > P:
        distances = distances[present][:, present]
        counts, squares = counts[present], squares[present]
    if P < 2 or float(distances.min()) <= reference.noise**2:
        return None
    # Over ordered pairs, v_i and v_j meet the same distance: (v_i + v_j)/2 is v_i.
    return float((squares / counts) @ distances.reciprocal().sum(1)) / (P * (P - 1))


def _frame(gram: Tensor, noise: float) -> tuple[float | None, float | None, float | None]:
    """Return equinorm, equiangular and maxangle of K vectors; a zero vector has no angle.

    Args:
        gram: their products ``(K, K)``.
        noise: the length at or below which a vector counts as zero.
    """
    K = len(gram)
    norms = gram.diagonal().sqrt()
    if float(norms.square().sum()) <= K * noise**2:
        return None, None, None
    equinorm = float(norms.std(correction=0) / norms.mean())
    if float(norms.min()) <= noise:
        return equinorm, None, None
    # Over ordered pairs, the diagonal set so that it adds nothing.
    pairs = K * (K - 1)
    cosines = (gram / norms.unsqueeze(1)).div_(norms).fill_diagonal_(0)
    mean = float(cosines.sum()) / pairs
    spread = torch.linalg.vector_norm(cosines.sub_(mean).fill_diagonal_(0))
    off = cosines.add_(mean + 1 / (K - 1)).fill_diagonal_(0)
    return (
        equinorm,
        float(spread) / math.sqrt(pairs),
        float(torch.linalg.vector_norm(off, ord=1)) / pairs,
    )


def _off_simplex(products: Tensor) -> float:
    """Return ‖P/‖P‖_F - (I - 11ᵀ/K)/√(K - 1)‖_F of a matrix of products ``(K, K)``."""
    K = len(products)
    scale = 1 / math.sqrt(K - 1)
    off = _normalised(products).add_(scale / K)
    off.diagonal().sub_(scale)
    return float(torch.linalg.matrix_norm(off))


def _normalised(matrix: Tensor) -> Tensor:
    """Return a matrix over its Frobenius norm."""
    norm: Tensor = torch.linalg.matrix_norm(matrix)
    return matrix / norm


def _noise(eps: float, energy: float) -> float:
    """The length that rounding leaves of a mean of features whose mean square is ``energy``."""
    return 4 * eps * math.sqrt(energy)


def _check_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(f"neural collapse needs at least two classes; got {num_classes}")


def _check_present(counts: Tensor) -> None:
    absent = (counts == 0).nonzero().flatten().tolist()
    if absent:
        shown = ", ".join(map(str, absent[:5])) + (", ..." if len(absent) > 5 else "")
        raise ValueError(
            f"every class needs a sample, or means= to measure about; none of class {shown}"
        )


def _check_head(
    weight: Tensor | None, bias: Tensor | None, shape: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """Check a classifier (K, d), (K,) and return it in float64, or None without one."""
    if weight is None:
        if bias is not None:
            raise ValueError("a bias was given without a weight")
        return None
    W = check_finite("weight", weight, shape).to(device)
    if bias is None:
        return W, W.new_zeros(shape[0])
    # -inf is how a readout says that a class is never to be predicted.
    never = bias == -torch.inf if isinstance(bias, Tensor) else torch.tensor(False)
    if bool(never.any()) and not bool(never.all()):
        b = check_finite("bias", bias.masked_fill(never, 0), shape[:1])
        return W, b.masked_fill(never.to(b.device), -torch.inf).to(device)
    return W, check_finite("bias", bias, shape[:1]).to(device)
