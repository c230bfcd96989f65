"""Rates in at least float32, in float64 where that fails, or an error that says why."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from mcr2.rates.kernels import full_precision

# Reading a number costs nothing here; elsewhere the host would wait for the device.
_READ_AT_ONCE = {"cpu"}

P = ParamSpec("P")
R = TypeVar("R")


def working_dtype(x: Tensor) -> torch.dtype:
    """float32 for half precision, whose sums and pivots lose the small eigenvalues."""
    return torch.promote_types(x.dtype, torch.float32)


def certainty(Z: Tensor, m: int, d: int, dims: tuple[int, ...], eps_sq: float) -> Tensor | None:
    """Return whether all rates of m samples are certain to come out finite, as a 0-d tensor.

    I + cG has no eigenvalue below 1 and trace at most n + t, t = d/ε² · max ‖z‖². Its Cholesky
    factor exists in arithmetic of unit u where the errors of G and of the factorisation, at most
    (m + d) u t and (n + 1) u (n + t), stay below that 1 together (Higham, "Accuracy and Stability
    of Numerical Algorithms", 2002, Theorem 10.7). NaN and inf are never certain.

    It costs one pass over Z, and travels to the host with the class sizes: rates that are certain
    need not be looked at. None where looking at them is free.

    Args:
        Z: the samples.
        m: how many.
        d: the dimension of their features.
        dims: the dimensions of Z within a sample.
        eps_sq: the smallest ε² they are coded with.
    """
    if Z.device.type in _READ_AT_ONCE:
        return None
    X = Z.detach().to(working_dtype(Z))
    unit = torch.finfo(X.dtype).eps
    if X.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        unit = 2.0**-7  # products of TF32 or bfloat16
    t = X.square().sum(dims).amax() * (d / eps_sq)
    n = min(m, d)
    return (m + d) * unit * t + (n + 1) * unit * (n + t) < 0.5


def in_safe_precision(
    compute: Callable[[Tensor], tuple[Tensor, ...]],
    Z: Tensor,
    eps_sq: float,
    *,
    certain: bool = False,
) -> tuple[Tensor, ...]:
    """Evaluate rates of Z in at least float32, in float64 where that fails, or say why it cannot.

    Where it is free nothing is looked for beforehand: a non-finite feature or an overflow shows
    in a diagonal of a Gram matrix and hence in a rate.
    """
    X = Z.to(working_dtype(Z))
    with full_precision(X):
        rates = compute(X)
        if certain or _all_finite(rates):
            return rates
        if not bool(torch.isfinite(Z).all()):
            bad = int((~torch.isfinite(Z)).sum())
            raise ValueError(f"Z must be finite; {bad} of its {Z.numel()} entries are NaN or inf")
        if X.dtype != torch.float64:
            # Metal has no float64, the CPU beside it does.
            retry = X.cpu() if X.device.type == "mps" else X
            rates = tuple(r.to(X) for r in compute(retry.double()))
            if _all_finite(rates):
                return rates
    raise ValueError(
        f"I + d/(m eps_sq) ZᵀZ has no Cholesky factor, in float64 either: eps_sq={eps_sq} is too "
        f"small for features as large as {float(Z.detach().abs().max()):.3g}"
    )


def _all_finite(rates: tuple[Tensor, ...]) -> bool:
    # No rate is negative, so that nothing cancels.
    return math.isfinite(sum(r.detach().sum() for r in rates))


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Break torch.compile's graph at a call; the compiler is imported only where it is at work."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            eager: Callable[P, R] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
            return eager(*args, **kwargs)
        return function(*args, **kwargs)

    return call
