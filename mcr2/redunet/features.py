"""The training samples between layers: kept in memory, or on disk.

Samples stand sorted by class, so that in every batch each class is a run of rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Run(NamedTuple):
    """Rows ``start`` to ``stop`` of a batch are samples ``first``, ... of class ``label``."""

    label: int
    start: int
    stop: int
    first: int


class Batch(NamedTuple):
    """Rows ``start`` to ``stop`` of the sorted samples, and its runs of one class each."""

    start: int
    stop: int
    runs: tuple[Run, ...]


def cut(counts: Sequence[int], batch_size: int) -> list[Batch]:
    """Cut samples sorted by class into batches.

    Example:
        >>> for batch in cut([3, 0, 2], 4):
        ...     print(batch.start, batch.stop, *map(tuple, batch.runs))
        0 4 (0, 0, 3, 0) (2, 3, 4, 0)
        4 5 (2, 0, 1, 1)
    """
    ends = list(accumulate(counts, initial=0))
    batches = []
    for start in range(0, ends[-1], batch_size):
        stop = min(start + batch_size, ends[-1])
        spans = [(max(begin, start), min(end, stop), begin) for begin, end in pairwise(ends)]
        runs = (
            Run(label, low - start, high - start, low - begin)
            for label, (low, high, begin) in enumerate(spans)
            if low < high
        )
        batches.append(Batch(start, stop, tuple(runs)))
    return batches


#: The spectrum ``(F, b, C)`` of a batch before the first layer, and what a layer does to it.
First = Callable[[Batch], Tensor]
Step = Callable[[Tensor, Batch], Tensor]


class InMemory:
    """The spectra of all samples, batch by batch, replaced in place."""

    def __init__(self, batches: Sequence[Batch], first: First) -> None:
        self.batches = batches
        self.parts = [first(batch) for batch in batches]

    def sweep(self, step: Step | None) -> Iterator[tuple[Batch, Tensor]]:
        """Yield every batch, changed by a step first where there is one."""
        for batch, part in zip(self.batches, self.parts, strict=True):
            if step is not None:
                # Into the same memory: new blocks among those of layers would leave gaps.
                part.copy_(step(part, batch))
            yield batch, part


class OnDisk:
    """The same in a file without a name, gone with this object.

    Read and written a batch at a time; a memory map would count as this process's memory.
    """

    def __init__(self, batches: Sequence[Batch], first: First) -> None:
        self.batches = batches
        self.file = tempfile.TemporaryFile(prefix="mcr2-redunet-")  # noqa: SIM115 - closed with us
        self.places: list[int] = []
        for batch in batches:
            self.places.append(self.file.tell())
            self.device = self._write(first(batch)).device

    def sweep(self, step: Step | None) -> Iterator[tuple[Batch, Tensor]]:
        """Yield every batch, changed by a step first where there is one."""
        for batch, place in zip(self.batches, self.places, strict=True):
            self.file.seek(place)
            S = torch.from_numpy(np.load(self.file)).to(self.device)
            if step is not None:
                self.file.seek(place)
                S = self._write(step(S, batch))
            yield batch, S

    def _write(self, S: Tensor) -> Tensor:
        np.save(self.file, S.contiguous().cpu().numpy())
        return S


class Recomputed:
    """Nothing is kept: each sweep passes the samples through all layers so far."""

    def __init__(self, batches: Sequence[Batch], first: First) -> None:
        self.batches, self.first = batches, first
        self.steps: list[Step] = []

    def sweep(self, step: Step | None) -> Iterator[tuple[Batch, Tensor]]:
        """Yield every batch; one more ``step`` is remembered for the sweeps to come."""
        if step is not None:
            self.steps.append(step)
        for batch in self.batches:
            S = self.first(batch)
            for each in self.steps:
                S = each(S, batch)
            yield batch, S


Store = InMemory | OnDisk | Recomputed

#: Where features are kept between layers.
STORES: dict[str, type[Store]] = {"memory": InMemory, "disk": OnDisk, "recompute": Recomputed}
