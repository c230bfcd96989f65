"""In which precision rates are computed, and what is looked at for it.

The error of ½ logdet(I + cG) is governed by the condition number κ of I + cG: in arithmetic of unit
u, Gram matrix and factor together leave an error of about uκ in the value and, where samples repeat
each other, of 10 uκ in the gradient, relative to each; those are measured, and so are the limits
below. Where κ is within the limit of float32, float32 is used; where it is not, that matrix is
built and factored in float64; where that is not enough either, the singular values of the features
take its place, since forming G squares κ and they do not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

#: The largest κ for which a Cholesky factor is used, by precision: values keep 1e-5 and gradients
#: 1e-4 in float32, with a margin of two.
LIMITS = {torch.float32: 66.0, torch.float64: 1e9}

P = ParamSpec("P")
R = TypeVar("R")


def working_dtype(x: Tensor) -> torch.dtype:
    """float32 for half precision, whose sums and pivots lose the small eigenvalues."""
    return torch.promote_types(x.dtype, torch.float32)


def in_float64(x: Tensor) -> Tensor:
    """float64, or complex of two of them."""
    return x.to(torch.promote_types(x.dtype, torch.float64))


@contextmanager
def full_precision(X: Tensor) -> Iterator[None]:
    """Keep autocast from taking products in half precision, and a GPU from TF32."""
    matmul = torch.backends.cuda.matmul if X.is_cuda else None
    tf32 = matmul is not None and matmul.allow_tf32
    if matmul and tf32:
        matmul.allow_tf32 = False
    try:
        if torch.is_autocast_enabled(X.device.type):
            with torch.autocast(X.device.type, enabled=False):
                yield
        else:
            yield
    finally:
        if matmul and tf32:
            matmul.allow_tf32 = True


def read(*values: Tensor) -> list[float] | None:
    """Return the numbers of tensors, in one transfer; None where ``torch.func.vmap`` hides them."""
    joined = torch.cat([value.detach().reshape(-1).double() for value in values])
    try:
        return list(map(float, joined.tolist()))
    except RuntimeError:  # a batched tensor has no numbers of its own
        return None


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Break torch.compile's graph at a call; the compiler is imported only where it is at work."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            eager: Callable[P, R] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
            return eager(*args, **kwargs)
        return function(*args, **kwargs)

    return call
