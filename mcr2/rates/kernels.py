"""Rates by way of Gram matrices; everything here trusts its input.

A rate is ½ logdet(I + c ZᵀZ) or, the same, ½ logdet(I + c ZZᵀ); with P = (I + cG)⁻¹ for either
Gram matrix G its gradient is c Z P or c P Z, one product. Classes of similar size are padded with
rows of zeros to blocks (..., K, n, d) and worked on together. With a membership matrix every class
has all samples, and a d × d moment. Zᵀ is the conjugate transpose, since spectra of signals are
complex; leading dimensions are independent problems. Values are float64 whatever the features are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from mcr2.rates.logdet import Matrices, half_logdets
from mcr2.rates.precision import full_precision, in_float64, write


class Groups(NamedTuple):
    """Samples by class, and classes of similar size in buckets; made from labels alone."""

    buckets: list[list[int]]  # the samples of each class that has any, ascending
    place: Tensor  # the row of each sample in the padded buckets, one after the other, (m,)
    position: Tensor  # where each class stands in the buckets, (K,); absent ones past the last


def group(ordered: Tensor, order: Tensor, bounds: list[int]) -> Groups:
    """Plan the work from sorted labels, the sample of each, and where each class begins and ends.

    Classes of a bucket are padded to the largest. From that one down, a bucket takes classes of at
    least a quarter of its size as long as half of the rows are samples.
    """
    m, device = len(order), order.device
    sizes = [stop - start for start, stop in pairwise(bounds)]
    ascending = sorted((k for k, n in enumerate(sizes) if n), key=sizes.__getitem__)
    shift, position = [0] * len(sizes), [len(ascending)] * len(sizes)
    runs, stop = [], len(ascending)
    while stop:
        first, n, samples = stop, sizes[ascending[stop - 1]], 0
        while first and (own := sizes[ascending[first - 1]]) >= n / 4:
            if (stop - first + 1) * n > 2 * (samples + own):
                break
            first, samples = first - 1, samples + own
        runs.append(ascending[first:stop])
        stop = first
    buckets, row = [], 0
    for run in reversed(runs):
        n = sizes[run[-1]]
        for k in run:
            shift[k] = row - bounds[k]
            row += n
        buckets.append([sizes[k] for k in run])
    for i, k in enumerate(ascending):
        position[k] = i
    rows = write(shift, device, torch.int64)[ordered] + torch.arange(m, device=device)
    return Groups(
        buckets=buckets,
        place=torch.empty_like(order).scatter_(0, order, rows),
        position=write(position, device, torch.int64),
    )


def grouped_rates(
    Z: Tensor, groups: Groups | None, eps_sq: float, totals: Sequence[float]
) -> tuple[Tensor, ...]:
    """R of features (..., m, d) for each ε² of ``totals``; then, with groups, R_k and R_c.

    ``eps_sq`` is that of the class rates.
    """
    m, d = Z.shape[-2:]
    buckets = groups.buckets if groups else []
    rows = [len(sizes) * sizes[-1] for sizes in buckets]
    matrices: list[Matrices] = []
    by_features: list[bool] = []
    if groups:
        X = Z.new_zeros((*Z.shape[:-2], sum(rows), d)).index_copy(-2, groups.place, Z)
        runs = torch.split(X, rows, dim=-2) if len(rows) > 1 else [X]
        for sizes, run in zip(buckets, runs, strict=True):
            N = sizes[-1]
            blocks = run.reshape(*Z.shape[:-2], len(sizes), N, d)
            # Where the Gram of all samples is wanted, d × d Grams of classes add up to it: counting
            # operations, that makes up for their larger factors from N = 2d/3 on.
            by_features.append(2 * d <= 3 * N if totals and m >= d else d <= N)
            gram = _Gram.apply(blocks, by_features[-1])
            scale = [d / (n * eps_sq) for n in sizes]
            padding = [0 if by_features[-1] else N - n for n in sizes]
            matrices.append(_of_features(blocks, by_features[-1], gram, scale, padding))
    if totals:
        # Classes ascend in size, so that those with n × n Grams come first.
        wide = [M.gram for M, tall in zip(matrices, by_features, strict=True) if tall]
        moments = [gram.sum(-3, keepdim=True) for gram in wide]
        rest = sum(rows[: len(rows) - len(wide)])
        if wide and rest:
            moments.append(_Gram.apply(X[..., :rest, :].unsqueeze(-3), True))
        matrices.append(_of_all(Z, reduce(torch.add, moments) if wide else None, totals))
    values = half_logdets(matrices)
    rates = list(values.pop().unbind(-1)) if totals else []
    if groups:
        by_size = torch.cat(values, dim=-1)
        shares = write([n / m for sizes in buckets for n in sizes], Z.device)
        with_zero = torch.nn.functional.pad(by_size, (0, 1))
        rates += [with_zero.index_select(-1, groups.position), by_size @ shares]
    return tuple(rates)


def weighted_rates(
    Z: Tensor, weights: Tensor, eps_sq: float, totals: Sequence[float]
) -> tuple[Tensor, ...]:
    """Rates as :func:`grouped_rates`' for a membership (m, K), differentiable in both.

    R comes from a product of its own: it does not depend on the membership, and gradients do not
    know that rows must sum to one.
    """
    weights = weights.to(Z.dtype.to_real())
    mass = weights.sum(0)
    # Divided before the product, or the Gram of a class of mass 1e-40 would vanish. An absent class
    # is taken out of the graph: its moment, which has no limit at mass zero, has no gradient.
    present = mass > 0
    shares = in_float64(mass) / len(weights)
    weights = torch.where(present, weights / mass.where(present, torch.ones_like(mass)), 0.0)
    scale = torch.full(mass.shape, Z.shape[-1] / eps_sq, dtype=torch.float64, device=Z.device)

    def again(which: Tensor) -> tuple[Tensor, Tensor]:
        X, w = in_float64(Z), in_float64(weights)
        grams = _WeightedMoments.apply(X, w).flatten(0, -3)
        roots = w.detach().sqrt().T.unsqueeze(-1) * X.detach().unsqueeze(-3)
        return grams.index_select(0, which), roots.flatten(0, -3).index_select(0, which)

    classes = Matrices(_WeightedMoments.apply(Z, weights), scale, torch.zeros_like(scale), again)
    of_all = [_of_all(Z, None, totals)] if totals else []
    class_rates, *rates = half_logdets([classes, *of_all])
    return (*(r for total in rates for r in total.unbind(-1)), class_rates, class_rates @ shares)


def _of_features(
    X: Tensor, by_features: bool, gram: Tensor, scale: list[float], padding: list[int]
) -> Matrices:
    def again(which: Tensor) -> tuple[Tensor, Tensor]:
        A = in_float64(X.flatten(0, -3).index_select(0, which))
        return _Gram.apply(A, by_features), (A if by_features else A.mH).detach()

    return Matrices(gram, write(scale, X.device), write(padding, X.device), again)


def _of_all(Z: Tensor, gram: Tensor | None, totals: Sequence[float]) -> Matrices:
    """I + cG of all samples for each ε², G being known or not."""
    m, d = Z.shape[-2:]
    X = Z.unsqueeze(-3)
    gram = _Gram.apply(X, m >= d) if gram is None else gram
    shape = (*Z.shape[:-2], len(totals), -1, -1)
    scale = [d / (m * eps_sq) for eps_sq in totals]
    return _of_features(X.expand(shape), m >= d, gram.expand(shape), scale, [0] * len(totals))


# --- second moments -----------------------------------------------------------------------------


def _summed(A: Tensor, B: Tensor) -> Tensor:
    """AᵀB, summed over at most 256 samples at a time: errors add up where samples are alike."""
    parts = zip(torch.split(A, 256, dim=-2), torch.split(B, 256, dim=-2), strict=True)
    return reduce(torch.add, (a.mH @ b for a, b in parts))


class _Gram(Function):
    """ZᵀZ (d × d) or ZZᵀ (n × n), with one product backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(Z: Tensor, by_features: bool) -> Tensor:
        return _summed(Z, Z) if by_features else Z @ Z.mH

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        Z, ctx.by_features = inputs
        ctx.save_for_backward(Z)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (Z,) = ctx.saved_tensors
        with full_precision(Z):
            S = grads[0] + grads[0].mH
            return Z @ S if ctx.by_features else S @ Z, None


class _WeightedMoments(Function):
    """Zᵀ diag(w_k) Z for each column of real weights (m, K): (..., K, d, d).

    Held at once is m · d of one class; backward one product Y_k = Z S_k serves both gradients,
    w_k ∘ Y_k and ½ Re Σ_e Ȳ_k ∘ Z.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(Z: Tensor, weights: Tensor) -> Tensor:
        return torch.stack([_summed(w[:, None] * Z, Z) for w in weights.unbind(1)], dim=-3)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        Z, weights = ctx.saved_tensors
        of_features, of_weights = torch.zeros_like(Z), []
        with full_precision(Z):
            S = grads[0] + grads[0].mH
            for w, matrix in zip(weights.unbind(1), S.unbind(-3), strict=True):
                Y = Z @ matrix
                of_features = of_features + w[:, None] * Y
                of_weights.append(((Y * Z.conj()).real.sum(-1) / 2).sum_to_size(w.shape))
        return of_features, torch.stack(of_weights, dim=1)
