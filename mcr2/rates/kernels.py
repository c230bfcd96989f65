"""Where the time goes: Gram matrices of classes, their log-determinants, and both gradients.

Everything here trusts its input. Three small autograd functions compose, and each has a backward
of its own that reuses what the forward left behind and can itself be differentiated:

    features ─ _Reorder ─► runs of one class each ─ _Grams ─► G, G_1 … G_K ─ _HalfLogdet ─► rates

Features may be complex (spectra of signals): Zᵀ is the conjugate transpose throughout. Leading
dimensions are independent problems with the same membership.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
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
# Factoring and inverting n³/2 multiplications' worth runs at about this fraction of the speed of
# a matrix product.
_FACTOR_SLOWNESS = 8
_PANEL = 128
_CHUNK = 2**22


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
        inverse: the row of each sample, ``(m,)``.
        counts: samples per class, in the order of sizes, ``(K,)``, on the device.
        rank: the position of each class in that order, ``(K,)``.
        absent: how many classes have no sample; they come first.
        buckets: the others.
    """

    order: Tensor
    inverse: Tensor
    counts: Tensor
    rank: Tensor
    absent: int
    buckets: list[Bucket]


def group(
    labels: Tensor, counts: Tensor, class_order: Tensor, sizes: list[int], d: int, total: bool
) -> Groups:
    """Plan the work on features of d dimensions.

    Args:
        labels: ``(m,)``, integers in [0, K).
        counts: samples per class in ascending order, ``(K,)``.
        class_order: the class at each place of that order, ``(K,)``.
        sizes: ``counts`` on the host.
        d: the features' dimension.
        total: whether the Gram of all samples is wanted too.
    """
    m, K, device = len(labels), len(sizes), labels.device
    rank = torch.empty_like(class_order)
    rank.scatter_(0, class_order, torch.arange(K, device=device))
    keys, order = rank[labels].sort(stable=True)
    position = torch.arange(m, device=device)
    inverse = torch.empty_like(order).scatter_(0, order, position)

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
                within = position - (counts.cumsum(0) - counts)[keys]
            slots = (keys[rows] - first) * own[-1] + within[rows]
        buckets.append(Bucket(rows, slice(first, stop), own, by_features, slots))
    return Groups(order, inverse, counts, rank, absent, buckets)


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
    factors = _FACTOR_SLOWNESS / 2 * (d**3 - n**3)
    return factors <= 2 * n * n * d


def reorder(X: Tensor, groups: Groups) -> Tensor:
    """Sort samples (..., m, d) by class."""
    return _Reorder.apply(X, groups.order, groups.inverse)  # type: ignore[no-any-return]


def _in_full_precision(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Keep a backward pass that is run under autocast from taking its products in half."""

    @functools.wraps(backward)
    def call(ctx: Any, *grads: Any) -> Any:
        device = next(g.device.type for g in grads if g is not None)
        with torch.autocast(device, enabled=False):
            return backward(ctx, *grads)

    return call


class _Reorder(Function):
    """A permutation of rows; backward it gathers too, where autograd would scatter and add."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return X.index_select(-2, order)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        order, inverse = ctx.saved_tensors
        return _Reorder.apply(grads[0], inverse, order), None, None


def grams(
    X: Tensor, buckets: Sequence[Bucket], *, total: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """Gram matrices of reordered features (..., m, d), on the cheaper side each.

    Returns:
        That of all samples, (..., d, d) or (..., m, m) where m < d, if ``total``; and for each
        bucket those of its classes, (..., classes, d, d) or (..., classes, n, n). Their gradients
        must be Hermitian, as :func:`half_logdet`'s are, unless they are to be differentiated.
    """
    results = _Grams.apply(X, buckets, total)
    return (results[0], list(results[1:])) if total else (None, list(results))


class _Grams(Function):
    """One product a Gram forward; backward one product with all that multiplies a class.

    With Hermitian gradients S of the total and S_k of the classes, dZ_k = 2 Z_k (S + S_k) where
    both are d × d, and 2 (Z_k S + S_k Z_k) where the class's is n × n.
    """

    @staticmethod
    def forward(ctx: Any, X: Tensor, buckets: Sequence[Bucket], total: bool) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(X)
        ctx.buckets, ctx.total = buckets, total
        results = []
        for bucket in buckets:
            if bucket.each_alone:
                results.append(torch.stack([_gram(run) for run in bucket.runs(X)], dim=-3))
                continue
            blocks = bucket.blocks(X)
            results.append(_gram(blocks) if bucket.by_features else blocks @ blocks.mH)
        if not total:
            return tuple(results)
        m, d = X.shape[-2:]
        if m < d:
            return (X @ X.mH, *results)
        by_features = [g for g, b in zip(results, buckets, strict=True) if b.by_features]
        rest = _rows_by_samples(buckets, m)
        summands = [g.sum(-3) for g in by_features]
        if rest or not summands:
            summands.append(_gram(X[..., :rest, :]))
        return (sum(summands[1:], start=summands[0]), *results)

    @staticmethod
    @_in_full_precision
    def backward(ctx: Any, *grads: Any) -> Any:
        (X,) = ctx.saved_tensors
        m, d = X.shape[-2:]
        of_total, of_classes = (grads[0], list(grads[1:])) if ctx.total else (None, list(grads))
        again = torch.is_grad_enabled()
        if again:  # a second derivative asks for this as a function of any S
            of_total = None if of_total is None else (of_total + of_total.mH) / 2
            of_classes = [None if g is None else (g + g.mH) / 2 for g in of_classes]
        shared = None if of_total is None else 2 * of_total
        rest = _rows_by_samples(ctx.buckets, m)
        # First what the total gives to classes on the other side, then what they add to it.
        if shared is None:
            base = torch.zeros_like(X[..., :rest, :])
        else:
            base = shared @ X if m < d else X[..., :rest, :] @ shared
        pieces = []
        for bucket, own in zip(ctx.buckets, of_classes, strict=True):
            if not bucket.by_features:
                piece = base[..., bucket.rows, :]
                if own is not None:
                    added = bucket.rows_of(own @ bucket.blocks(X))
                    if again:
                        piece = torch.add(piece, added, alpha=2)
                    else:
                        piece.add_(added, alpha=2)
                pieces.append(piece)
                continue
            factor = None if shared is None else shared.unsqueeze(-3)
            if own is not None:
                factor = 2 * own if factor is None else torch.add(factor, own, alpha=2)
            if factor is None:
                pieces.append(torch.zeros_like(X[..., bucket.rows, :]))
            elif bucket.each_alone:
                runs = bucket.runs(X)
                factors = factor.expand(*factor.shape[:-3], len(runs), d, d).unbind(-3)
                pieces += [run @ f for run, f in zip(runs, factors, strict=True)]
            else:
                pieces.append(bucket.rows_of(bucket.blocks(X) @ factor))
        if not pieces or (rest == m and not again):
            return base, None, None
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-2)), None, None


def _rows_by_samples(buckets: Sequence[Bucket], m: int) -> int:
    """Count the first rows, whose classes have n × n Grams; all of them without classes."""
    return next((b.rows.start for b in buckets if b.by_features), m)


def _gram(X: Tensor) -> Tensor:
    """XᵀX (..., d, d); on the CPU only the panels on and above the diagonal are multiplied."""
    d = X.shape[-1]
    if X.dim() > 2 or d < 2 * _PANEL or X.device.type != "cpu":
        return X.mH @ X
    gram = X.new_empty(d, d)
    for i in range(0, d, _PANEL):
        j = min(i + _PANEL, d)
        torch.mm(X[:, i:j].mH, X[:, i:], out=gram[i:j, i:])
        gram[j:, i:j] = gram[i:j, j:].mH
    return gram


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
    @_in_full_precision
    def backward(ctx: Any, *grads: Any) -> Any:
        Z, weights = ctx.saved_tensors
        S = grads[0] + grads[0].mH
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


def half_logdet(gram: Tensor, scale: float | Tensor) -> Tensor:
    """½ logdet(I + c G) of Hermitian positive semidefinite G (..., n, n); NaN where it fails.

    Args:
        gram: G.
        scale: c, a number or real ``(..., 1, 1)``, constant.
    """
    return _HalfLogdet.apply(gram, scale)  # type: ignore[no-any-return]


class _HalfLogdet(Function):
    """Σ log diag L with LLᵀ = I + cG; its gradient ½c (I + cG)⁻¹ comes from the same L."""

    @staticmethod
    def forward(ctx: Any, gram: Tensor, scale: float | Tensor) -> Tensor:
        shifted = gram * scale
        diagonal = shifted.diagonal(dim1=-2, dim2=-1)
        diagonal.add_(1)
        ctx.upper = gram.shape[-1] <= 2 * _PANEL  # the faster triangle
        factor, info = torch.linalg.cholesky_ex(shifted, upper=ctx.upper)
        ctx.save_for_backward(gram, factor)
        ctx.scale = scale
        pivots = factor.diagonal(dim1=-2, dim2=-1)
        logs: Tensor = (pivots.real if pivots.is_complex() else pivots).log().sum(-1)
        return logs.masked_fill(info != 0, math.nan)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        gram, factor = ctx.saved_tensors
        weight = grads[0][..., None, None] * (ctx.scale / 2)
        if not torch.is_grad_enabled():
            return torch.cholesky_inverse(factor, upper=ctx.upper).mul_(weight), None
        # Slower, and a differentiable function of G.
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        return torch.linalg.inv(eye + ctx.scale * gram) * weight, None


def total_rates(X: Tensor, totals: Sequence[float]) -> Tensor:
    """R of features (..., m, d) at each squared distortion in ``totals``, (..., T)."""
    m, d = X.shape[-2:]
    gram, _ = grams(X, (), total=True)
    assert gram is not None
    return torch.stack([half_logdet(gram, d / (m * eps_sq)) for eps_sq in totals], dim=-1)


def grouped_rates(X: Tensor, groups: Groups, eps_sq: float, totals: Sequence[float]) -> Tensor:
    """R at each of ``totals``, then R_k of each class, (..., T + K)."""
    m, d = X.shape[-2:]
    real = X.dtype.to_real()
    gram, of_buckets = grams(reorder(X, groups), groups.buckets, total=bool(totals))
    rates = [torch.zeros(*X.shape[:-2], groups.absent, dtype=real, device=X.device)]
    for bucket, of_bucket in zip(groups.buckets, of_buckets, strict=True):
        scale: float | Tensor = d / (bucket.sizes[0] * eps_sq)
        if bucket.sizes[0] != bucket.sizes[-1]:
            scale = (d / eps_sq / groups.counts[bucket.classes].to(real))[:, None, None]
        rates.append(half_logdet(of_bucket, scale))
    class_rates = torch.cat(rates, dim=-1).index_select(-1, groups.rank)
    if gram is None:
        return class_rates
    of_all = [half_logdet(gram, d / (m * e)).unsqueeze(-1) for e in totals]
    return torch.cat([*of_all, class_rates], dim=-1)


def weighted_rates(X: Tensor, weights: Tensor, eps_sq: float, totals: Sequence[float]) -> Tensor:
    """The same for a membership (m, K), also differentiable with respect to it.

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
    weights = torch.where(present, weights / mass.where(present, torch.ones_like(mass)), 0.0)
    class_rates = half_logdet(weighted_moments(X, weights), d / eps_sq)
    return torch.cat([total_rates(X, totals), class_rates], dim=-1) if totals else class_rates
