"""½ logdet(I + cG) of Gram matrices G, to a promised accuracy, and its derivatives.

Rounding with unit u changes the value by about uκ and, where samples repeat each other, the
gradient by 10 uκ, relative to each, κ being the condition number of I + cG: so it was measured,
and so the limits below come about. Where κ is small enough for float32, float32 is used; where it
is not, that matrix is built and factored in float64; where that is not enough either, the singular
values of the features take its place, which forming G would square.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from mcr2.rates.precision import full_precision, read

#: The largest bound on κ for which a Cholesky factor is used: values keep five digits and
#: gradients four, with a margin of two. Unit features in 32 dimensions are within at ε² = 0.5.
LIMITS = {torch.float32: 66.0, torch.float64: 1e9}


class Matrices(NamedTuple):
    """Matrices I + cG of one size."""

    gram: Tensor  # G (..., K, n, n), Hermitian positive semidefinite
    scale: Tensor  # c (K,), float64
    padding: Tensor  # how many rows of each G are zero because of padding, (K,)
    #: Gives G in float64 for some of the (..., K), and features A without a graph, G = AᵀA.
    again: Callable[[Tensor], tuple[Tensor, Tensor]]


def half_logdets(matrices: list[Matrices], *, certain: bool) -> list[Tensor]:
    """½ logdet(I + cG) for each, ``(..., K)`` in float64.

    Unless ``certain``, the conditions of all are read at once, and what is too ill-conditioned for
    its precision is computed in float64.

    Raises:
        ArithmeticError: float64 is not enough.
    """
    found = [_HalfLogdet.apply(M.gram, M.scale, None, None) for M in matrices]
    values = [value for value, _ in found]
    if certain:
        return values
    conditions = [
        _condition(value, inverse, M.gram, M.scale, M.padding)
        for (value, inverse), M in zip(found, matrices, strict=True)
    ]
    told = iter(read(*conditions) or [])
    for i, (value, M) in enumerate(zip(values, matrices, strict=True)):
        limit = LIMITS[M.gram.dtype.to_real()]
        poor = torch.tensor([not next(told) <= limit for _ in range(value.numel())])
        if bool(poor.any()):
            which = (poor.nonzero()[:, 0], (~poor).nonzero()[:, 0])
            values[i] = _mixed(M, value.shape, *(w.to(value.device) for w in which))
    return values


def _mixed(M: Matrices, shape: torch.Size, poor: Tensor, others: Tensor) -> Tensor:
    """½ logdet(I + cG), in float64 for the poor; no gradient passes their failed factors."""
    scale = M.scale.expand(shape).flatten()
    parts = [_in_float64(*M.again(poor), scale[poor])]
    if len(others):
        gram = M.gram.flatten(0, -3).index_select(0, others)
        parts.append(_HalfLogdet.apply(gram, scale[others], None, None)[0])
    order = torch.cat([poor, others]).argsort()
    return torch.cat(parts).index_select(0, order).view(shape)


def _in_float64(gram: Tensor, A: Tensor, scale: Tensor) -> Tensor:
    """½ logdet(I + c AᵀA) of (K, n, n), by factors of the matrices or, if need be, by A's."""
    value, inverse = _HalfLogdet.apply(gram, scale, None, None)
    if bool((_condition(value, inverse, gram, scale) <= LIMITS[torch.float64]).all()):
        return value  # type: ignore[no-any-return]
    _, S, V = torch.linalg.svd(torch.linalg.qr(A, mode="r").R, full_matrices=True)
    S, c = torch.nn.functional.pad(S, (0, A.shape[-1] - S.shape[-1])), scale[:, None]
    t = c * S.square()
    value, inverse = t.log1p().sum(-1) / 2, (V.mH / (1 + t).unsqueeze(-2)) @ V
    # To first order, what an error of 8 units in singular values makes of value and gradient.
    error = 8 * torch.finfo(S.dtype).eps * S.amax(-1, keepdim=True)
    if not bool(((c * error * (S + error / 2) / (1 + t)).sum(-1) <= 1e-5 * value).all()):
        raise ArithmeticError("not even float64 can tell their rates from rounding")
    of_gradient = (c * error / (1 + t)).amax(-1)
    if gram.requires_grad and not bool((of_gradient <= 1e-4 * (c * S / (1 + t)).amax(-1)).all()):
        raise ArithmeticError("not even float64 can tell the rates' gradients from rounding")
    return _HalfLogdet.apply(gram, scale, value, inverse)[0]  # type: ignore[no-any-return]


def _condition(
    value: Tensor, inverse: Tensor, gram: Tensor, scale: Tensor, padding: Tensor | float = 0.0
) -> Tensor:
    """Bound what rounding is multiplied by, (..., K); NaN where there is no factor.

    Beside κ, that is n / value: a large ε² makes I + cG nearly the identity, and the value, a sum
    of logarithms of n numbers near 1, small. κ ≤ ‖I + cG‖ ‖P‖ in Frobenius' norm, and P has no
    eigenvalue above 1. Rows of zeros in G make a block of their own, in which nothing is rounded.
    """
    norm = torch.linalg.matrix_norm
    of_inverse = (norm(inverse.detach()).double().square() - padding).clamp(0, 1).sqrt()
    bound = (1 + scale * norm(gram.detach())) * of_inverse
    return torch.maximum(bound, gram.shape[-1] / value.detach())


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
        pivots = factor.diagonal(dim1=-2, dim2=-1).masked_fill_(failed, 1)
        pivots = pivots.real if pivots.is_complex() else pivots
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
