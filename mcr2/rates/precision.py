"""In which precision rates are computed, and how numbers travel between host and device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

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
    kind, matmul = X.device.type, torch.backends.cuda.matmul
    autocast = torch.is_autocast_enabled(kind)
    tf32 = X.is_cuda and matmul.allow_tf32
    if tf32:
        matmul.allow_tf32 = False
    try:
        with torch.autocast(kind, enabled=False) if autocast else nullcontext():
            yield
    finally:
        if tf32:
            matmul.allow_tf32 = True


def read(*values: Tensor) -> list[float] | None:
    """Return the numbers of tensors in one transfer; None where ``torch.func.vmap`` hides them."""
    joined = torch.cat([value.detach().reshape(-1).double() for value in values])
    try:
        return list(map(float, joined.tolist()))
    except RuntimeError:  # a batched tensor has no numbers of its own
        return None


def write(x: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return numbers as a tensor, without waiting for the device."""
    return torch.tensor(x, dtype=dtype).to(device, non_blocking=True)


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Break torch.compile's graph at a call; the compiler is imported only where it is at work."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        compiling = torch.compiler.is_compiling()
        eager: Callable[P, R] = torch.compiler.disable(function) if compiling else function  # type: ignore[no-untyped-call]
        return eager(*args, **kwargs)

    return call
