"""Where the time goes: Gram matrices of classes, their log-determinants, and both gradients.

Everything here trusts its input. With labels, samples are sorted by class and classes by size, so
that every class is a run of rows; Gram matrices G = ZᵀZ or ZZᵀ, whichever is cheaper, give rates
½ logdet(I + cG) by Cholesky factors, and the gradient comes from the same factors:

    ∂/∂Z ½ logdet(I + c ZᵀZ) = c Z (I + c ZᵀZ)⁻¹ = c (I + c ZZᵀ)⁻¹ Z

With a membership matrix every class has all samples, and a d × d moment. Features may be complex
(spectra of signals): Zᵀ is the conjugate transpose throughout. Leading dimensions are independent
problems with the same membership.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

# What one more bucket costs in overhead, counted in floating-point operations: padding that
# costs less than this is cheaper than another round of kernels.
_OVERHEAD = {"cpu": 4e6}
_OVERHEAD_ELSEWHERE = 1e9
# A matrix product of this many multiplications hides the cost of a call of its own.
_WORTH_A_CALL = 2.5e5
# Factoring and inverting take as long as a product of this many times n³ multiplications.
_FACTOR_AND_INVERSE = 1.5
# Below this dimension the panels of a symmetric product are too narrow to gain. It lies above the
# next, since an upper factor reads what panels leave out.
_WORTH_PANELS = 128
# On the CPU, LAPACK's upper factor is the faster one up to the first of these sizes, and its lower
# one, by far, from the second on: matrices between them get a border. So do multiples of the
# third, whose columns share cache lines' places.
_UPPER_UP_TO = 104
_LOWER_FROM = 136
_ALIASING = 128
# In single precision, LAPACK's inverse of a lower factor up to this size is slower than products of
# its quarters, if there are so many factors to share the calls.
_QUARTERS_UP_TO = {torch.float32: 256}
_WORTH_QUARTERS = 5
# Elsewhere cholesky_inverse would wait for the device, to look at error flags.
_FREE_ERROR_FLAGS = {"cpu"}
# Numbers that soft class moments may hold at once.
_CHUNK = 2**22

# The upper triangle of matrices (..., K, n, n), cut into panels of rows (..., K, w, n - i) from the
# diagonal on, i the first of the w rows.
Panels = list[Tensor]
# Gram matrices (..., K, n, n), and c: a number, or one for each of the K.
Gram = tuple[Panels, float | Tensor]


@dataclass(frozen=True)
class Bucket:
    """Classes of similar size, worked on together: a run of rows of the reordered features.

    Attributes:
        rows: their samples.
        classes: their ranks by size.
        sizes: samples of each.
        by_features: whether their Gram is ZᵀZ (d × d) rather than ZZᵀ (n × n).
        slots: where each row goes in a zero-padded (classes · largest size) block; None where
            the rows are such a block already, or where each class gets products of its own.
    """

    rows: slice
    classes: slice
    sizes: list[int]
    by_features: bool
    slots: Tensor | None

    @property
    def each_alone(self) -> bool:
        """Whether the classes differ in size and are not padded."""
        return self.slots is None and self.sizes[0] != self.sizes[-1]

    def blocks(self, X: Tensor) -> Tensor:
        """Cut rows (..., m, d) into (..., classes, n, d), padded with zeros."""
        rows = X[..., self.rows, :]
        K, n = len(self.sizes), self.sizes[-1]
        if self.slots is not None:
            space = rows.new_zeros(*rows.shape[:-2], K * n, rows.shape[-1])
            rows = space.index_copy(-2, self.slots, rows)
        return rows.reshape(*rows.shape[:-2], K, n, rows.shape[-1])

    def runs(self, X: Tensor) -> list[Tensor]:
        """Cut rows (..., m, d) into (..., n, d), one class each."""
        return list(torch.split(X[..., self.rows, :], self.sizes, dim=-2))

    def rows_of(self, blocks: Tensor) -> Tensor:
        """Undo :meth:`blocks`."""
        rows = blocks.flatten(-3, -2)
        return rows if self.slots is None else rows.index_select(-2, self.slots)


@dataclass(frozen=True)
class Groups:
    """Samples sorted by class and classes by size, in buckets; made from labels alone.

    Attributes:
        order: the sample in each row of the reordered features, ``(m,)``.
        class_order: the class at each place of the order of sizes, ``(K,)``; None where classes
            ascend in size as they are.
        counts: samples per class, in that order, ``(K,)``, on the device.
        absent: how many classes have no sample; they come first.
        buckets: the others.
    """

    order: Tensor
    class_order: Tensor | None
    counts: Tensor
    absent: int
    buckets: list[Bucket]


def group(
    ordered: Tensor, order: Tensor, counts: Tensor, sizes: list[int], d: int, *, total: bool
) -> Groups:
    """Plan the work on features of d dimensions.

    Args:
        ordered: sorted labels in [0, K), ``(m,)``.
        order: the sample that each belongs to, ``(m,)``.
        counts: samples per class, ``(K,)``.
        sizes: ``counts`` on the host.
        d: the features' dimension.
        total: whether the Gram of all samples is wanted too.
    """
    m, device = len(ordered), ordered.device
    class_order = None
    ascending = sorted(sizes)
    if sizes != ascending:
        counts, class_order = counts.sort(stable=True)
        sizes = ascending
        ordered, again = _inverse_permutation(class_order)[ordered].sort(stable=True)
        order = order[again]

    absent = sizes.count(0)
    bounds = _bounds(sizes, absent, d, m, total, _OVERHEAD.get(device.type, _OVERHEAD_ELSEWHERE))
    buckets, row, within = [], 0, None
    for first, stop, by_features in bounds:
        own = sizes[first:stop]
        rows = slice(row, row + sum(own))
        row = rows.stop
        slots = None
        alone = by_features and _worth_a_call(own[0], d)
        if own[0] != own[-1] and not alone:
            if within is None:
                position = torch.arange(m, device=device)
                within = position - (counts.cumsum(0) - counts)[ordered]
            slots = (ordered[rows] - first) * own[-1] + within[rows]
        buckets.append(Bucket(rows, slice(first, stop), own, by_features, slots))
    return Groups(order, class_order, counts, absent, buckets)


def _bounds(
    sizes: list[int], absent: int, d: int, m: int, total: bool, overhead: float
) -> list[tuple[int, int, bool]]:
    """Cut ascending class sizes into buckets: (first, stop, by_features)."""
    bounds: list[tuple[int, int, bool]] = []
    first = stop = absent
    previous, waste, kind = 0, 0.0, (False, False)
    for n, classes in Counter(sizes[absent:]).items():
        before, kind = kind, (_by_features(n, d, m, total), _worth_a_call(n, d))
        if not kind[0]:
            waste += 4 * (stop - first) * (n * n - previous * previous) * d
        elif not kind[1]:  # large ones of this side are not padded
            waste += 4 * (stop - first) * (n - previous) * d * d
        if stop > first and (waste > overhead or (kind[0] and kind != before)):
            bounds.append((first, stop, before[0]))
            first, waste = stop, 0.0
        stop += classes
        previous = n
    if stop > first:
        bounds.append((first, stop, kind[0]))
    return bounds


def _inverse_permutation(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


def _worth_a_call(n: int, d: int) -> bool:
    return n * d * d >= _WORTH_A_CALL


def _by_features(n: int, d: int, m: int, total: bool) -> bool:
    """Whether a class of n samples is cheaper through its d × d Gram.

    By itself it is where n ≥ d. Where the Gram of all samples is wanted, d × d Grams of classes
    add up to it and share its backward product, so that only their factors cost extra, while the
    n × n way pays two products of n²d beside its smaller factor.
    """
    if not total:
        return n >= d
    if m < d:
        return False
    return _FACTOR_AND_INVERSE * (d**3 - n**3) <= 2 * n * n * d


def grouped_rates(
    Z: Tensor, groups: Groups | None, eps_sq: float, totals: Sequence[float]
) -> tuple[Tensor, ...]:
    """Rates of features (..., m, d) with labels.

    Args:
        Z: the features.
        groups: the plan made from the labels, or None for the rate of all samples alone.
        eps_sq: ε² of the class rates.
        totals: ε² of each rate of all samples that is wanted.

    Returns:
        R ``(...)`` for each of ``totals``, then R_k ``(..., K)`` and R_c ``(...)`` if there are
        groups; NaN where a factor does not exist.
    """
    return _GroupedRates.apply(Z, groups, eps_sq, totals)  # type: ignore[no-any-return]


class _GroupedRates(Function):
    """One product a Gram forward; backward one product with all that multiplies a class.

    dZ_k = Z_k (S + S_k) where S, the total's gS c (I + cG)⁻¹, and S_k, the class's, are both
    d × d, and Z_k S + S_k Z_k where the class's is n × n.
    """

    @staticmethod
    def forward(
        ctx: Any, Z: Tensor, groups: Groups | None, eps_sq: float, totals: Sequence[float]
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        X = Z if groups is None else Z.index_select(-2, groups.order)
        factors: list[Tensor] = []

        def rates_of(grams: list[Gram]) -> Tensor:
            factor, logs = _factor(grams)
            factors.append(factor)
            return logs

        rates = _rates_of_runs(X, groups, eps_sq, totals, rates_of)
        ctx.save_for_backward(Z, X, *factors)
        ctx.given = groups, eps_sq, totals
        # Several views of one tensor could not be written to.
        return tuple(r.clone() if r._is_view() else r for r in rates)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if all(g is None for g in grads):
            return None, None, None, None
        Z, X, *factors = ctx.saved_tensors
        with full_precision(Z):
            if torch.is_grad_enabled():
                gradient = _differentiable_gradient(Z, grads, *ctx.given)
            else:
                gradient = _gradient(X, factors, grads, *ctx.given)
        return gradient, None, None, None


def _rates_of_runs(
    X: Tensor,
    groups: Groups | None,
    eps_sq: float,
    totals: Sequence[float],
    rates_of: Callable[[list[Gram]], Tensor],
) -> tuple[Tensor, ...]:
    """Rates of reordered features by way of ``rates_of``, called for Grams of one size each.

    The first calls are for n × n Grams, a bucket at a time. The last is for whatever there is of
    the others: the classes with d × d Grams and, after them, all samples at each of ``totals``.
    """
    m, d = X.shape[-2:]
    rates: list[Tensor] = []
    wide: list[Gram] = []
    if groups is not None:
        if groups.absent:
            rates.append(X.new_zeros(*X.shape[:-2], groups.absent, dtype=X.dtype.to_real()))
        for bucket in groups.buckets:
            scale = _scale(groups, bucket, d, eps_sq, X)
            if bucket.by_features:
                wide.append((_moments(bucket, X), scale))
            else:
                blocks = bucket.blocks(X)
                rates.append(rates_of([([blocks @ blocks.mH], scale)]))
    if totals:
        of_all = _gram_of_all(X, groups, [panels for panels, _ in wide])
        wide += [(of_all, d / (m * e)) for e in totals]
    if wide:
        rates.append(rates_of(wide))
    joined = rates[0] if len(rates) == 1 else torch.cat(rates, dim=-1)
    K = joined.shape[-1] - len(totals)
    of_totals, of_classes = joined[..., K:].unbind(-1), joined[..., :K]
    if groups is None:
        return of_totals
    compressed = (of_classes * groups.counts).sum(-1) / m
    if groups.class_order is not None:
        of_classes = of_classes.index_select(-1, _inverse_permutation(groups.class_order))
    return (*of_totals, of_classes, compressed)


def _scale(groups: Groups, bucket: Bucket, d: int, eps_sq: float, X: Tensor) -> float | Tensor:
    """c = d/(n ε²) of a bucket's classes, ``(classes,)`` where they differ."""
    if bucket.sizes[0] == bucket.sizes[-1]:
        return d / (bucket.sizes[0] * eps_sq)
    return d / eps_sq / groups.counts[bucket.classes].to(X.dtype.to_real())


def _moments(bucket: Bucket, X: Tensor) -> Panels:
    """ZᵀZ of each class of a bucket, (..., classes, d, d)."""
    if bucket.each_alone:
        runs = zip(*[_gram(run) for run in bucket.runs(X)], strict=True)
        return [torch.stack(panels, dim=-3) for panels in runs]
    return _gram(bucket.blocks(X))


def _gram_of_all(X: Tensor, groups: Groups | None, moments: list[Panels]) -> Panels:
    """The Gram of all samples, (..., 1, d, d), by what moments of classes lack of it.

    Where m < d it is (..., 1, m, m).
    """
    m, d = X.shape[-2:]
    if m < d:
        return [(X @ X.mH).unsqueeze(-3)]
    summands = [[panel.sum(-3, keepdim=True) for panel in panels] for panels in moments]
    buckets = groups.buckets if groups else []
    rest = next((b.rows.start for b in buckets if b.by_features), m)
    if rest:
        summands.append([panel.unsqueeze(-3) for panel in _gram(X[..., :rest, :])])
    return [sum(panels[1:], start=panels[0]) for panels in zip(*summands, strict=True)]


def _gram(X: Tensor) -> Panels:
    """XᵀX (..., d, d), in several panels where they save work."""
    d = X.shape[-1]
    if X.device.type != "cpu" or d < _WORTH_PANELS or torch.is_grad_enabled():
        return [X.mH @ X]
    number = 2 if d < 2 * _WORTH_PANELS else 4  # 3/4 or 10/16 of the work
    width = -(-d // number)
    return [X[..., i : i + width].mH @ X[..., i:] for i in range(0, d, width)]


def _factor(grams: Sequence[Gram]) -> tuple[Tensor, Tensor]:
    """Factor (I + cG)ᵀ for Grams (..., K, n, n) with a c each, joined along K.

    Returns:
        The triangular factors, upper or lower as :func:`_is_upper` says, and ½ logdet
        ``(..., K)``, NaN where there is no factor.
    """
    first, n = grams[0][0][0], grams[0][0][0].shape[-1]
    K, N = sum(panels[0].shape[-3] for panels, _ in grams), _bordered(n, first.device)
    # A border of the identity changes neither determinant nor factor.
    matrices = first.new_zeros(*first.shape[:-3], K, N, N)
    start = 0
    for panels, scale in grams:
        stop, i = start + panels[0].shape[-3], 0
        for panel in panels:
            j = i + panel.shape[-2]
            torch.mul(panel, _for_matrices(scale), out=matrices[..., start:stop, i:j, i:n])
            i = j
        start = stop
    matrices.diagonal(dim1=-2, dim2=-1).add_(1)
    # Transposed, rows are the columns that LAPACK wants, and the factor needs no space of its own.
    factor, info = matrices.mT, torch.empty(0, dtype=torch.int32, device=first.device)
    torch.linalg.cholesky_ex(factor, upper=_is_upper(n), out=(factor, info))
    factor = factor[..., :n, :n]
    pivots = factor.diagonal(dim1=-2, dim2=-1)
    logs: Tensor = (pivots.real if pivots.is_complex() else pivots).log().sum(-1)
    return factor, logs.masked_fill_(info != 0, math.nan)


def _for_matrices(scale: float | Tensor) -> float | Tensor:
    """Let numbers (..., K) multiply matrices (..., K, n, n)."""
    return scale[..., None, None] if isinstance(scale, Tensor) else scale


def _bordered(n: int, device: torch.device) -> int:
    """The size at which matrices of size n are factored."""
    if device.type != "cpu" or _is_upper(n):
        return n
    return max(n if n % _ALIASING else n + 8, _LOWER_FROM)


def _is_upper(n: int) -> bool:
    return n <= _UPPER_UP_TO


def _inverse(factor: Tensor) -> Tensor:
    """Return (I + cG)⁻¹ from :func:`_factor`'s factor."""
    upper = _is_upper(factor.shape[-1])
    if factor.device.type in _FREE_ERROR_FLAGS:
        if not upper and _is_worth_quarters(factor):
            return _inverse_by_quarters(factor)
        return torch.cholesky_inverse(factor, upper=upper).mT
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    W = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=upper)
    inverse: Tensor = W @ W.mH if upper else W.mH @ W
    return inverse.mT


def _is_worth_quarters(L: Tensor) -> bool:
    n = L.shape[-1]
    many = L.shape[:-2].numel() >= _WORTH_QUARTERS
    return many and n % 4 == 0 and n <= _QUARTERS_UP_TO.get(L.dtype, 0)


def _inverse_by_quarters(L: Tensor) -> Tensor:
    """Return (L Lᵀ)⁻¹ of real lower triangular L (..., n, n), n a multiple of 4.

    With halves L₁₁, L₂₁, L₂₂, P_i = (L_ii L_iiᵀ)⁻¹ and T = L₂₁ L₁₁⁻¹ it is

        P₁ + Tᵀ P₂ T   −(P₂ T)ᵀ
           −P₂ T          P₂

    and L_ii⁻¹ comes from quarters in the same way. Only those are inverted by substitution.
    """
    batch, n = L.shape[:-2], L.shape[-1]
    L, h, q = L.flatten(0, -3), n // 2, n // 4
    B, down = len(L), L.stride(1) + L.stride(2)
    # Blocks on the diagonal, the parts before the batch: what is multiplied lies in one piece.
    halves = L.as_strided((2, B, h, h), (h * down, *L.stride()))
    quarters = L.as_strided((2, 2, B, q, q), (q * down, h * down, *L.stride()))
    eye = torch.eye(q, dtype=L.dtype, device=L.device).expand_as(quarters)
    first, second = torch.linalg.solve_triangular(quarters, eye, upper=False, left=False)
    first, second = first.flatten(0, 1), second.flatten(0, 1)
    below = halves[..., q:, :q].flatten(0, 1)
    W = L.new_zeros(2 * B, h, h)  # L_ii⁻¹
    W[:, :q, :q], W[:, q:, q:] = first, second
    torch.neg(torch.bmm(second, torch.bmm(below, first)), out=W[:, q:, :q])

    P = torch.bmm(W.mT, W)
    T = torch.bmm(L[:, h:, :h], W[:B])
    P_1, P_2 = P[:B], P[B:]
    P_2T = torch.bmm(P_2, T)
    inverse = L.new_empty(B, n, n)
    inverse[:, :h, :h] = P_1.baddbmm_(T.mT, P_2T)
    inverse[:, h:, h:] = P_2
    torch.neg(P_2T, out=inverse[:, h:, :h])
    inverse[:, :h, h:] = inverse[:, h:, :h].mT
    return inverse.view(*batch, n, n)


def _gradient(
    X: Tensor,
    factors: list[Tensor],
    grads: tuple[Tensor | None, ...],
    groups: Groups | None,
    eps_sq: float,
    totals: Sequence[float],
) -> Tensor:
    """The gradient with respect to the features as they were before their reordering."""
    m, d = X.shape[-2:]
    by_samples: list[tuple[Bucket, Tensor]] = []  # with the weights of their inverses
    by_features: list[tuple[Bucket, Tensor]] = []
    if groups is not None:
        for bucket, weight in _class_weights(X, grads[-2], grads[-1], groups, eps_sq):
            (by_features if bucket.by_features else by_samples).append((bucket, weight))

    # The last factors are of classes and then of all samples: S + S_k comes of them, and S.
    weights = [weight for _, weight in by_features]
    sizes = [weight.shape[-1] for weight in weights]
    K = sum(sizes)
    wanted = [i for i in range(len(totals)) if grads[i] is not None]
    for i in range(wanted[-1] + 1 if wanted else 0):
        g = grads[i]
        if g is None:
            g = X.new_zeros(X.shape[:-2], dtype=X.dtype.to_real())
        weights.append((g * (d / (m * totals[i]))).unsqueeze(-1))
    shared: Tensor | None = None
    matrices: tuple[Tensor, ...] = ()
    if weights:
        weight = torch.cat(weights, dim=-1)[..., None, None]
        first = factors[-1].shape[-3] - len(totals) - K  # past classes without a gradient
        inverses = _inverse(factors[-1].narrow(-3, first, weight.shape[-3]))
        inverses *= weight
        if wanted:
            shared = inverses[..., K:, :, :].sum(-3)
        if K:
            own = inverses[..., :K, :, :]
            if shared is not None:
                own += shared.unsqueeze(-3)
            matrices = torch.split(own, sizes, dim=-3)

    pieces = []
    rest = by_features[0][0].rows.start if by_features else m
    if rest:
        # First what the total gives to these rows, then what their classes' n × n matrices add.
        if shared is None:
            base = torch.zeros_like(X[..., :rest, :])
        else:
            base = shared @ X if m < d else X[..., :rest, :] @ shared
        for (bucket, weight), factor in zip(by_samples, factors, strict=False):
            inverse = _inverse(factor).mul_(weight[..., None, None])
            _add_product(base[..., bucket.rows, :], inverse, bucket, X)
        pieces.append(base)
    for (bucket, _), own in zip(by_features, matrices, strict=True):
        if bucket.each_alone:
            pairs = zip(bucket.runs(X), own.unbind(-3), strict=True)
            pieces += [run @ matrix for run, matrix in pairs]
        else:
            pieces.append(bucket.rows_of(bucket.blocks(X) @ own))
    rows = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-2)
    return rows if groups is None else rows.index_select(-2, _inverse_permutation(groups.order))


def _class_weights(
    X: Tensor,
    of_classes: Tensor | None,
    of_compressed: Tensor | None,
    groups: Groups,
    eps_sq: float,
) -> Iterator[tuple[Bucket, Tensor]]:
    """What the inverses of each bucket's classes are multiplied by, (..., classes).

    That is c = d/(n ε²) times the gradient of R_k, and n/m of it times that of R_c.
    """
    m, d = X.shape[-2:]
    if of_compressed is not None:
        of_compressed = (of_compressed * (d / (m * eps_sq))).unsqueeze(-1)
    if of_classes is not None and groups.class_order is not None:
        of_classes = of_classes.index_select(-1, groups.class_order)
    for bucket in groups.buckets:
        if of_classes is not None:
            weight = of_classes[..., bucket.classes] * _scale(groups, bucket, d, eps_sq, X)
            yield bucket, weight if of_compressed is None else weight + of_compressed
        elif of_compressed is not None:
            yield bucket, of_compressed.expand(*X.shape[:-2], len(bucket.sizes))


def _add_product(rows: Tensor, own: Tensor, bucket: Bucket, X: Tensor) -> None:
    """Add S_k Z_k of a bucket's classes to their rows, in place."""
    blocks = bucket.blocks(X)
    if bucket.slots is None and X.dim() == 2:
        rows.view(blocks.shape).baddbmm_(own, blocks)
    else:
        rows += bucket.rows_of(own @ blocks)


def _differentiable_gradient(
    Z: Tensor,
    grads: tuple[Tensor | None, ...],
    groups: Groups | None,
    eps_sq: float,
    totals: Sequence[float],
) -> Tensor:
    """The same as a differentiable function of features and of ``grads``, slower."""
    X = Z if groups is None else Z.index_select(-2, groups.order)

    def rates_of(grams: list[Gram]) -> Tensor:
        # Where gradients are taken, a Gram is one panel.
        return torch.cat([half_logdet(panels[0], scale) for panels, scale in grams], dim=-1)

    rates = _rates_of_runs(X, groups, eps_sq, totals, rates_of)
    wanted = [(r, g) for r, g in zip(rates, grads, strict=True) if g is not None]
    outputs, weights = zip(*wanted, strict=True)
    return torch.autograd.grad(outputs, Z, weights, create_graph=True)[0]


def half_logdet(gram: Tensor, scale: float | Tensor) -> Tensor:
    """½ logdet(I + c G) of Hermitian positive semidefinite G (..., K, n, n); NaN where it fails.

    Args:
        gram: G.
        scale: c, a number or real ``(K,)``, constant.
    """
    return _HalfLogdet.apply(gram, scale)  # type: ignore[no-any-return]


class _HalfLogdet(Function):
    """Its gradient, ½c (I + cG)⁻¹, comes from the factor that the value did."""

    @staticmethod
    def forward(ctx: Any, gram: Tensor, scale: float | Tensor) -> Tensor:
        factor, logs = _factor([([gram], scale)])
        ctx.save_for_backward(gram, factor)
        ctx.scale = scale
        return logs

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        gram, factor = ctx.saved_tensors
        weight = grads[0] * (ctx.scale / 2)
        if not torch.is_grad_enabled():
            return _inverse(factor).mul_(weight[..., None, None]), None
        # Slower, and a differentiable function of G.
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        matrices = eye + _for_matrices(ctx.scale) * gram
        return torch.linalg.inv_ex(matrices).inverse * weight[..., None, None], None


class _WeightedMoments(Function):
    """Zᵀ diag(w_k) Z for each column of weights, a few classes at a time.

    Held at once is m · d times as many classes as fit into a fixed space, whatever K; backward
    one product Y_k = 2 Z S_k serves both gradients, w_k ∘ Y_k and ½ Re Σ_e Ȳ_k ∘ Z.
    """

    @staticmethod
    def forward(ctx: Any, Z: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(Z, weights)
        return torch.cat(
            [
                torch.einsum("mk,...md,...me->...kde", w.to(Z.dtype), Z.conj(), Z)
                for w in torch.split(weights, _classes_at_once(Z), dim=1)
            ],
            dim=-3,
        )

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        with full_precision(grads[0]):
            return _WeightedMoments._gradients(ctx, grads[0])

    @staticmethod
    def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        Z, weights = ctx.saved_tensors
        S = grad + grad.mH
        step = _classes_at_once(Z)
        of_features: Tensor | None = None
        of_weights = []
        columns, matrices = torch.split(weights, step, dim=1), torch.split(S, step, dim=-3)
        for w, s in zip(columns, matrices, strict=True):
            Y = torch.einsum("...md,...kde->...mke", Z, s)
            if ctx.needs_input_grad[0]:
                part = torch.einsum("mk,...mke->...me", w.to(Z.dtype), Y)
                of_features = part if of_features is None else of_features + part
            if ctx.needs_input_grad[1]:
                part = torch.einsum("...mke,...me->...mk", Y, Z.conj()) / 2
                part = part.real if part.is_complex() else part
                of_weights.append(part.sum_to_size(w.shape) if part.dim() > 2 else part)
        return of_features, torch.cat(of_weights, dim=1) if of_weights else None


def weighted_moments(Z: Tensor, weights: Tensor) -> Tensor:
    """Σ_i w_ik z̄_i z_iᵀ, (..., K, d, d), for features (..., m, d) and real weights (m, K)."""
    return _WeightedMoments.apply(Z, weights)  # type: ignore[no-any-return]


def _classes_at_once(Z: Tensor) -> int:
    return max(1, _CHUNK // max(Z.numel(), 1))


def weighted_rates(
    X: Tensor, weights: Tensor, eps_sq: float, totals: Sequence[float]
) -> tuple[Tensor, ...]:
    """Rates as :func:`grouped_rates`' for a membership (m, K), differentiable in both.

    R comes from a product of its own: it does not depend on the membership, whose rows sum to
    one only on the simplex, and gradients do not know that they must stay there.
    """
    d = X.shape[-1]
    weights = weights.to(X.dtype.to_real())
    mass = weights.sum(0)
    # Divided before the product: a class of mass 1e-40 has an ordinary second moment, while its
    # Gram would vanish. An absent class is taken out of the graph, or its moment, which has no
    # limit at mass zero, would hand the membership a gradient.
    present = mass > 0
    shares = mass / len(weights)
    weights = torch.where(present, weights / mass.where(present, torch.ones_like(mass)), 0.0)
    class_rates = half_logdet(weighted_moments(X, weights), d / eps_sq)
    compressed = (class_rates * shares).sum(-1)
    of_all = grouped_rates(X, None, eps_sq, totals) if totals else ()
    return (*of_all, class_rates, compressed)


def full_precision(X: Tensor) -> AbstractContextManager[Any]:
    """Keep autocast, where it is on, from taking products in half precision."""
    if torch.is_autocast_enabled(X.device.type):
        return torch.autocast(X.device.type, enabled=False)
    return nullcontext()
