"""The checks of public boundaries: once, in one wording.

A message names what was given and what is allowed: ``eps_sq is -1; it must be positive``.
A wrong kind of thing raises TypeError, a wrong value ValueError. Arrays come as tensors or as
NumPy arrays; what is returned is a tensor.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: What public functions take for features, and for labels.
Array = Tensor | NDArray[Any]
Labels = Array | Sequence[int]

#: No data set has more classes than these, and no machine holds much of more.
MOST_CLASSES = 1 << 24

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def describe(value: object) -> str:
    """Return what a value is, in a few words: ``a torch.float32 tensor of shape (2, 3)``."""
    if isinstance(value, Tensor):
        if value.is_nested:  # has no shape
            return f"a nested {value.dtype} tensor"
        dense = "meta " if value.is_meta else ""
        layout = dense if value.layout == torch.strided else f"{value.layout} ".split(".")[-1]
        return f"a {layout}{value.dtype} tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        kind = f"{value.dtype} array of shape {value.shape}"
        return f"an {kind}" if kind.startswith("int") else f"a {kind}"
    text = f"{type(value).__name__} {value!r}"
    return text if len(text) <= 80 else text[:77] + "..."


def integer(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> int:
    """Return an integer between ``low`` and ``high``; NumPy's are integers, booleans are not.

    Example:
        >>> integer("num_classes", 1, 2)
        Traceback (most recent call last):
        ...
        ValueError: num_classes is 1; it must be at least 2
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, not {describe(value)}")
    return int(_within(name, int(value), low, high))


def number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """Return a finite number between ``low`` and ``high``, as a float; booleans are not."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, not {describe(value)}")
    try:
        found = float(value)
    except OverflowError:  # an integer of more than 308 digits
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{name} is {found}; it must be finite")
    return _within(name, found, low, high)


def classes(value: object, low: int = 1) -> int:
    """Return a number of classes that what is counted by class can be held of."""
    return integer("num_classes", integer("num_classes", value, low), high=MOST_CLASSES)


def positive(name: str, value: object) -> float:
    """Return a positive finite number, as a float."""
    found = number(name, value)
    if found <= 0:
        raise ValueError(f"{name} is {value}; it must be positive")
    return found


def _within(name: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high:
        span = f"between {low} and {high}" if low > -math.inf else f"at most {high}"
        span = f"at least {low}" if high == math.inf else span
        raise ValueError(f"{name} is {value}; it must be {span}")
    return value


def choice(name: str, value: Any, allowed: Iterable[str]) -> Any:
    """Return a value that is among ``allowed``.

    Example:
        >>> choice("store", "tape", ("memory", "disk"))
        Traceback (most recent call last):
        ...
        ValueError: unknown store 'tape'; choose from memory, disk
    """
    known = tuple(allowed)
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; choose from {', '.join(known)}")
    return value


def floating(name: str, value: object, *shape: int | str, finite: bool = True) -> Tensor:
    """Return a dense floating tensor, with its graph, of a tensor or a NumPy array.

    The shape is the length of each dimension, or a letter for any length from 1; without one, any
    shape will do. ``finite`` refuses NaN and infinity.

    Example:
        >>> floating("weight", torch.zeros(3), "K", "d")
        Traceback (most recent call last):
        ...
        ValueError: weight has shape (3,); it must be (K, d)
    """
    tensor = dense(value)
    if tensor is None or tensor.dtype not in _FLOATS:
        wanted = "a floating tensor or array (float16 to float64)"
        raise TypeError(f"{name} must be {wanted}, not {describe(value)}")
    if shape:
        _shape(name, tensor, shape)
    if finite and tensor.numel():
        # The extremes are NaN where any entry is, and cost one read and no memory.
        low, high = torch.stack(torch.aminmax(tensor.detach())).tolist()
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{name} must be finite, without NaN or infinity")
    return tensor


def labels(
    value: object,
    num_classes: int | None = None,
    *,
    count: int | None = None,
    name: str = "labels",
    least: int = 0,
) -> Tensor:
    """Return class labels ``(N,)`` as int64: integers as a tensor, a NumPy array or a sequence.

    They must lie in [0, K), without K only not be negative; N is ``count``, or any from 1. True
    labels may be −1 where ``least`` is: none of the classes.

    Example:
        >>> labels([0, 3], 3)
        Traceback (most recent call last):
        ...
        ValueError: labels run from 0 to 3; with 3 classes they must be in 0 ... 2
    """
    tensor = dense(value, sequences=True)
    if tensor is None or tensor.dtype not in _INTEGERS:
        raise TypeError(f"{name} must be integers, one a sample, not {describe(value)}")
    _shape(name, tensor, ("N" if count is None else count,))
    tensor = tensor.detach().long()
    if count == 0:
        return tensor
    low, high = torch.stack(torch.aminmax(tensor)).tolist()
    if low < least or (num_classes is not None and high >= num_classes):
        allowed = "they must not be negative" if least == 0 else f"they must be at least {least}"
        if num_classes is not None:
            allowed = f"with {num_classes} classes they must be in {least} ... {num_classes - 1}"
        raise ValueError(f"{name} run from {low} to {high}; {allowed}")
    return tensor


def samples(
    features: object, given: object, num_classes: int, *, name: str = "labels"
) -> tuple[Tensor, Tensor]:
    """Return finite features ``(N, d)``, detached, and labels ``(N,)`` in [0, K), on one device."""
    H = floating("features", features, "N", "d").detach()
    H = H.cpu() if H.device.type == "mps" else H  # has no float64
    return H, labels(given, num_classes, count=len(H), name=name).to(H.device)


def dense(value: object, *, sequences: bool = False) -> Tensor | None:
    """Return a dense tensor with values of what is one, an array or perhaps a sequence."""
    if isinstance(value, Tensor):
        strided = value.layout == torch.strided and not value.is_nested
        return value if strided and not value.is_meta else None
    if sequences and isinstance(value, list | tuple | range):
        value = np.asarray(value)
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiu":
        array = np.asarray(value)
        if array.dtype.itemsize > 8:
            return None
        kept = np.int64 if array.dtype.kind in "iu" else array.dtype.newbyteorder("=")
        return torch.from_numpy(np.require(array, kept, ["C", "W"]))
    return None


def moderate(name: str, tensor: Tensor) -> Tensor:
    """Return a finite tensor whose squares and products neither overflow float64 nor vanish in it.

    Example:
        >>> moderate("features", torch.full((2, 2), 1e200, dtype=torch.float64))
        Traceback (most recent call last):
        ...
        ValueError: features go up to 1e+200 in size; it must be 0, or from 1e-100 to 1e100
    """
    largest = float(torch.linalg.vector_norm(tensor.detach(), math.inf)) if tensor.numel() else 0.0
    if largest and not 1e-100 <= largest <= 1e100:
        allowed = "it must be 0, or from 1e-100 to 1e100"
        raise ValueError(f"{name} go up to {largest:.3g} in size; {allowed}")
    return tensor


def _shape(name: str, tensor: Tensor, shape: tuple[int | str, ...]) -> None:
    fits = tensor.ndim == len(shape) and all(
        n >= 1 if isinstance(wanted, str) else n == wanted
        for n, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape)) + "," * (len(shape) == 1)
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be ({wanted})")
