"""½ logdet(I + cG) of Gram matrices G, as accurate as promised, and its derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from mcr2.rates.precision import LIMITS, full_precision, read

@dataclass(frozen=True)
class Matrices:
    """Matrices I + cG of one size.

    Attributes:
        gram: G ``(..., K, n, n)``, Hermitian positive semidefinite.
        scale: c ``(K,)``, float64.
        padding: how many rows of G are zero because of padding, ``(K,)``.
        again: gives G in float64 for some of the (..., K) and, without their graph, features
            A with G = AᵀA.
    """

    gram: Tensor
    scale: Tensor
    padding: Tensor
    again: Callable[[Tensor], tuple[Tensor, Tensor]]


def half_logdets(matrices: list[Matrices], *, certain: bool) -> list[Tensor]:
    """½ logdet(I + cG) for each, ``(..., K)`` in float64.

    Unless ``certain``, the conditions of all are read at once, and those matrices that are too
    ill-conditioned for their precision are computed in float64.
    """
    found = [_HalfLogdet.apply(M.gram, M.scale, None) for M in matrices]
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
        poor = [not next(told) <= limit for _ in range(value.numel())]
        if any(poor):
            which = torch.tensor(poor, device=value.device)
            values[i] = _mixed(M, value.shape, which.nonzero()[:, 0], (~which).nonzero()[:, 0])
    return values


def _mixed(M: Matrices, shape: torch.Size, poor: Tensor, others: Tensor) -> Tensor:
    """½ logdet(I + cG), in float64 for some of the matrices; no graph passes their old factors."""
    scale = M.scale.expand(shape).flatten()
    parts = [_better(*M.again(poor), scale[poor])]
    if len(others):
        gram = M.gram.flatten(0, -3).index_select(0, others)
        parts.append(_HalfLogdet.apply(gram, scale[others], None)[0])
    order = torch.cat([poor, others]).argsort()
    return torch.cat(parts).index_select(0, order).view(shape)


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
    return torch.maximum(bound, gram.shape[-1] / value.detach().abs())


def _better(gram: Tensor, A: Tensor, scale: Tensor) -> Tensor:
    """½ logdet(I + c AᵀA) of float64 matrices (K, n, n), by their factors or by A's spectrum."""
    value, inverse = _HalfLogdet.apply(gram, scale, None)
    condition = _condition(value, inverse, gram, scale)
    if bool((condition <= LIMITS[torch.float64]).all()):
        return value  # type: ignore[no-any-return]
    value, _ = _HalfLogdet.apply(gram, scale, A)
    S = torch.linalg.svdvals(A)
    t = scale[:, None] * S.square()
    # To first order, what an error of 8 units in singular values makes of value and gradient.
    error = 8 * torch.finfo(S.dtype).eps * S.amax(-1, keepdim=True)
    of_value = (scale[:, None] * error * (S + error / 2) / (1 + t)).sum(-1)
    if not bool((of_value <= 1e-5 * value.detach()).all()):
        raise ArithmeticError("their rates cannot be told from rounding in float64")
    smallest = t.amin(-1) if A.shape[-2] >= A.shape[-1] else torch.zeros_like(t[:, 0])
    of_gradient = scale * error[:, 0] / (1 + smallest)
    if value.requires_grad and not bool(
        (of_gradient <= 1e-4 * (scale[:, None] * S / (1 + t)).amax(-1)).all()
    ):
        raise ArithmeticError("the rates' gradients cannot be told from rounding in float64")
    return value  # type: ignore[no-any-return]


class _HalfLogdet(Function):
    """½ logdet(I + cG) and P = (I + cG)⁻¹, which is all that derivatives of any order need.

    d ½ logdet(I + cG) = ½ c tr(P dG),    dP = −c P dG P
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(gram: Tensor, scale: Tensor, A: Tensor | None) -> tuple[Tensor, Tensor]:
        if A is not None:
            return _by_spectrum(A, scale)
        matrix = gram * _for_matrices(scale, gram)
        matrix.diagonal(dim1=-2, dim2=-1).add_(1)
        factor, info = torch.linalg.cholesky_ex(matrix, upper=True)
        failed = (info != 0).unsqueeze(-1)
        # A zero on the diagonal, which a failed factorisation leaves, would raise in the inverse.
        pivots = factor.diagonal(dim1=-2, dim2=-1).masked_fill_(failed, 1)
        pivots = pivots.real if pivots.is_complex() else pivots
        return pivots.double().log().masked_fill(failed, math.nan).sum(-1), _inverse(factor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[1], output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        scale, P = ctx.saved_tensors
        of_value, of_inverse = grads
        gradient: Any = None
        with full_precision(P):
            if of_value is not None:
                gradient = _for_matrices(of_value * scale / 2, P) * P
            if of_inverse is not None:
                second = _for_matrices(scale, P) * (P @ of_inverse @ P)
                gradient = -second if gradient is None else gradient - second
        return gradient, None, None


def _for_matrices(numbers: Tensor, like: Tensor) -> Tensor:
    """Let numbers (..., K) multiply matrices (..., K, n, n)."""
    return numbers[..., None, None].to(like.dtype)


def _inverse(factor: Tensor) -> Tensor:
    """(UᵀU)⁻¹ of upper triangular U."""
    if factor.device.type == "cpu":
        return torch.cholesky_inverse(factor, upper=True)
    # Elsewhere that would wait for the device, to look at error flags.
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    W = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=True)
    return W @ W.mH


def _by_spectrum(A: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """½ logdet(I + c AᵀA) and its matrix's inverse from the singular values of A (..., n, d)."""
    R = torch.linalg.qr(A, mode="r").R
    _, S, V = torch.linalg.svd(R, full_matrices=True)
    t = scale[..., None] * torch.nn.functional.pad(S, (0, A.shape[-1] - S.shape[-1])).square()
    return t.log1p().sum(-1) / 2, (V.mH / (1 + t).unsqueeze(-2)) @ V


