"""½ logdet(I + cG) of Gram matrices G, to a promised accuracy, and its derivatives.

Rounding with unit u changes the value by about uκ and the gradient by up to 10 uκ, relative to
each, κ being the condition number of I + cG: so it was measured, and so the limits below come
about. Where κ is small enough for float32, float32 is used; where it is not, that matrix is built
and factored in float64; where that is not enough either, the singular values of the features take
its place, which forming G would square.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from mcr2.rates.precision import full_precision, read, write

#: The largest bound on κ for which a Cholesky factor is used: values keep five digits and
#: gradients four, with a margin of two.
LIMITS = {torch.float32: 64.0, torch.float64: 1e9}


class Matrices(NamedTuple):
    """Matrices I + cG of one size."""

    gram: Tensor  # G (..., K, n, n), Hermitian positive semidefinite
    scale: Tensor  # c (K,), float64
    padding: Tensor  # how many rows of each G are zero because of padding, (K,)
    #: Gives G in float64 for some of the (..., K), and features A without a graph, G = AᵀA.
    again: Callable[[Tensor], tuple[Tensor, Tensor]]


def half_logdets(matrices: list[Matrices]) -> list[Tensor]:
    """½ logdet(I + cG) for each, ``(..., K)`` in float64.

    The conditions of all are read at once, and what is too ill-conditioned for its precision is
    computed in float64; ArithmeticError where that is not enough. Under ``torch.func.vmap``, where
    nothing can be read, all is computed in float64, and nothing refused.
    """
    found = [_HalfLogdet.apply(M.gram, M.scale, None, None) for M in matrices]
    told = read(*(_condition(*M[:3], *pair) for M, pair in zip(matrices, found, strict=True)))
    numbers, values = iter(told or []), []
    for M, (value, _) in zip(matrices, found, strict=True):
        limit, scale = LIMITS[M.gram.dtype.to_real()], M.scale.expand(value.shape).flatten()
        poor = [i for i in range(len(scale)) if told is None or not next(numbers) <= limit]
        if poor:
            # A new graph: no gradient, not even zero, can pass a factor that does not exist.
            which = write(poor, scale.device, torch.int64)
            rest = write(sorted({*range(len(scale))} - {*poor}), scale.device, torch.int64)
            parts = [_in_float64(*M.again(which), scale[which], look=told is not None)]
            if len(rest):
                gram = M.gram.flatten(0, -3).index_select(0, rest)
                parts.append(_HalfLogdet.apply(gram, scale[rest], None, None)[0])
            order = torch.cat([which, rest]).argsort()
            value = torch.cat(parts).index_select(0, order).view(value.shape)
        values.append(value)
    return values


def _in_float64(gram: Tensor, A: Tensor, scale: Tensor, *, look: bool) -> Tensor:
    """½ logdet(I + c AᵀA) of (K, n, n), by factors of the matrices or, if need be, by A's."""
    value, inverse = _HalfLogdet.apply(gram, scale, None, None)
    if not look or bool(
        (_condition(gram, scale, 0, value, inverse) <= LIMITS[torch.float64]).all()
    ):
        return value  # type: ignore[no-any-return]
    if not bool(A.isfinite().all()):
        raise ArithmeticError("they are not finite")
    _, S, V = torch.linalg.svd(torch.linalg.qr(A, mode="r").R, full_matrices=True)
    S, c = torch.nn.functional.pad(S, (0, A.shape[-1] - S.shape[-1])), scale[:, None]
    t = c * S.square()
    value, inverse = t.log1p().sum(-1) / 2, (V.mH / (1 + t).unsqueeze(-2)) @ V
    # To first order, what an error of 64 units in singular values makes of value and gradient.
    error = 64 * torch.finfo(S.dtype).eps * S.amax(-1, keepdim=True)
    if not bool(((c * error * (S + error / 2) / (1 + t)).sum(-1) <= 1e-5 * value).all()):
        raise ArithmeticError("not even float64 can tell their rates from rounding")
    of_gradient = (c * error / (1 + t)).amax(-1)
    if gram.requires_grad and not bool((of_gradient <= 1e-4 * (c * S / (1 + t)).amax(-1)).all()):
        raise ArithmeticError("not even float64 can tell the rates' gradients from rounding")
    return _HalfLogdet.apply(gram, scale, value, inverse)[0]  # type: ignore[no-any-return]


def _condition(
    gram: Tensor, scale: Tensor, padding: Tensor | int, value: Tensor, inverse: Tensor
) -> Tensor:
    """Bound what rounding is multiplied by, (..., K); NaN where there is no factor.

    Beside κ, that is n / value: a large ε² makes I + cG nearly the identity, and the value, a sum
    of logarithms of n numbers near 1, small. κ ≤ ‖I + cG‖ ‖P‖ in Frobenius' norm, and P has no
    eigenvalue above 1. Rows of zeros in G make a block of their own, in which nothing is rounded.
    """
    gram = gram.detach()
    of_gram, trace = _norm(gram), gram.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    of_inverse = (_norm(inverse.detach()).double().square() - padding).clamp(0, 1).sqrt()
    bound = (1 + scale * of_gram) * of_inverse
    # Samples of one direction repeat each other, and so do their errors in float32.
    repeats = (1.25 * of_gram > trace) & (gram.dtype.to_real() == torch.float32)
    bound = torch.where(repeats, LIMITS[torch.float32] * bound, bound)
    return torch.maximum(bound, gram.shape[-1] / value.detach())


def _norm(X: Tensor) -> Tensor:
    # That of complex numbers takes ten times longer.
    numbers = torch.view_as_real(X).flatten(-3) if X.is_complex() else X.flatten(-2)
    norm: Tensor = torch.linalg.vector_norm(numbers, dim=-1)
    return norm


class _HalfLogdet(Function):
    """½ logdet(I + cG) and P = (I + cG)⁻¹, by which derivatives of any order are expressed.

    d ½ logdet(I + cG) = ½ c tr(P dG),    dP = −c P dG P

    Both may be known already.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        gram: Tensor, scale: Tensor, value: Tensor | None, inverse: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if value is not None and inverse is not None:
            return value.clone(), inverse.clone()
        matrix = gram * _for_matrices(scale, gram)
        matrix.diagonal(dim1=-2, dim2=-1).add_(1)
        factor, info = torch.linalg.cholesky_ex(matrix, upper=True)
        failed = (info != 0).unsqueeze(-1)
        # A zero on the diagonal, which a failed factorisation leaves, would raise in the inverse.
        pivots = factor.diagonal(dim1=-2, dim2=-1).masked_fill_(failed, 1).real
        value = pivots.double().log().masked_fill(failed, math.nan).sum(-1)
        if factor.device.type == "cpu":
            return value, torch.cholesky_inverse(factor, upper=True)
        # Elsewhere that would wait for the device, to look at error flags.
        eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        W = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=True)
        return value, W @ W.mH

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[1], output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        scale, P = ctx.saved_tensors
        of_value, of_inverse = grads
        gradient: Any = None
        if of_value is not None:
            gradient = _for_matrices(of_value * scale / 2, P) * P
        if of_inverse is not None:
            with full_precision(P):
                second = _for_matrices(-scale, P) * (P @ of_inverse @ P)
            gradient = second if gradient is None else gradient + second
        return gradient, None, None, None


def _for_matrices(numbers: Tensor, like: Tensor) -> Tensor:
    """Let numbers (..., K) multiply matrices (..., K, n, n)."""
    return numbers[..., None, None].to(like.dtype)
