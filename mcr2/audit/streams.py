"""Features in chunks, from memory, from a file mapped into memory, or from an iterable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mcr2 import checks
from mcr2.checks import Array

#: An array ``(N, d)``, mapped from a file perhaps, or what yields its rows in pieces each time it
#: is iterated over: a list of arrays, an object with ``__iter__``.
Features: TypeAlias = Array | Iterable[Array]

#: A chunk of an array has about this many numbers.
_CHUNK = 1 << 22


class Stream:
    """Passes over features ``(N, d)`` in chunks, which are checked as they come.

    Args:
        features: as :data:`Features`.
        count: N, the number of labels.

    Attributes:
        count, dim: N and d.
        device: where the features lie (of MPS, which has no float64, the CPU).
        dtype: that of the features, at least float32.

    Raises:
        TypeError, ValueError: as :func:`mcr2.checks.floating`; an iterator, which can be passed
            over once only, or one row more or less than there are labels.
    """

    def __init__(self, features: Features, count: int) -> None:
        if isinstance(features, Iterator) or not isinstance(features, Iterable):
            wanted = "an array (N, d), or an iterable of arrays that can be iterated over again"
            raise TypeError(f"features must be {wanted}, not {checks.describe(features)}")
        self._features, self.count = features, count
        whole: Any = features
        if isinstance(features, Tensor | np.ndarray) and features.ndim == 2:
            if len(features) != count:
                raise ValueError(f"there are {count} labels of {len(features)} features")
            whole = features[:1]
        elif not isinstance(features, Tensor | np.ndarray):
            whole = next(iter(features), None)
        first = checks.floating("features", whole, "N", "d")
        self.dim = int(first.shape[1])
        self.device = torch.device("cpu") if first.device.type == "mps" else first.device
        self.dtype = torch.promote_types(first.dtype, torch.float32)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows of each chunk and the chunk, finite and detached."""
        start = 0
        for part in self._parts():
            chunk = checks.floating("features", part, "N", self.dim).detach()
            rows = slice(start, start + len(chunk))
            start = rows.stop
            if start > self.count:
                break
            yield rows, chunk.to(self.device, self.dtype)
        if start != self.count:
            more = "more than " * (start > self.count)
            found = min(start, self.count)
            raise ValueError(f"there are {self.count} labels of {more}{found} features")

    def _parts(self) -> Iterable[Array]:
        whole = self._features
        if not isinstance(whole, Tensor | np.ndarray):
            return whole
        rows = max(256, _CHUNK // self.dim)
        return (whole[start : start + rows] for start in range(0, self.count, rows))

    def whole(self) -> Tensor:
        """Return all features at once, for what cannot do with less."""
        return torch.cat([chunk for _, chunk in self])
