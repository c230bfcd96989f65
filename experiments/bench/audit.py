"""What it costs to audit labels, beside nearest neighbours and the cleanlab library.

    mcr2 bench audit --threads 2              # half a minute
    mcr2 bench audit --threads 2 --full       # a million samples of 512 numbers: half an hour

Gaussian clusters on directions of their class, float32, one label in ten wrong, in a file that is
mapped into memory: 2 GiB on disk with ``--full``. ``coding_length`` passes over the file twice,
with a second iteration three times; ``ridge_cv`` twice. Memory is the growth of the resident set to
its high-water mark, the mapped pages of the file included. ``knn`` is timed on the first 1,000
samples against all, and its seconds multiplied by N / 1,000. ``cleanlab`` reads the probabilities
of ``ridge_cv``, whose seconds are not counted, and stands there where it is installed. All of it
runs on the CPU.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from experiments.bench import FormBench
from experiments.runs.memory import peak_mib, restart_peak
from mcr2.audit import audit, make_given, quality
from mcr2.audit.streams import Stream
from mcr2.audit.with_cleanlab import CLEANLAB, installed
from mcr2.metrics.moments import unit

#: (N, d, K); with --full also the large one.
SIZES = ((20_000, 64, 10), (50_000, 512, 10))
LARGE = ((1_000_000, 512, 10),)

#: Samples whose neighbours are timed, and how many neighbours each has.
QUERIES, NEIGHBOURS = 1000, 10


def write_clusters(path: Path, N: int, d: int, K: int) -> tuple[NDArray[Any], Tensor, Tensor]:
    """Write features into an ``.npy`` file by parts; return them mapped, given and true labels."""
    rng = np.random.default_rng(0)
    means, true = rng.normal(size=(K, d)), rng.integers(0, K, N)
    file = open_memmap(path, "w+", np.float32, (N, d))
    for start in range(0, N, 10_000):
        part = true[start : start + 10_000]
        file[start : start + len(part)] = means[part] + 2 * rng.normal(size=(len(part), d))
    file.flush()
    del file
    given = np.where(rng.random(N) < 0.1, (true + 1) % K, true)
    return np.load(path, mmap_mode="r"), torch.from_numpy(given), torch.from_numpy(true)


def neighbours(H: NDArray[Any]) -> Tensor:
    """Return the nearest samples of the first ones, by cosine, in one pass over all."""
    stream = Stream(H, len(H))
    queries = unit(torch.from_numpy(np.array(H[:QUERIES])))
    best, where = torch.full((len(queries), NEIGHBOURS), -2.0), None
    for rows, part in stream:
        cosines = torch.cat([best, queries @ unit(part).T], dim=1)
        here = torch.arange(rows.start, rows.stop).expand(len(queries), -1)
        index = torch.cat([here.new_zeros(best.shape) if where is None else where, here], dim=1)
        best, places = cosines.topk(NEIGHBOURS, dim=1)
        where = index.gather(1, places)
    assert where is not None
    return where


def measure(options: FormBench) -> Iterator[dict[str, Any]]:
    """Return seconds and memory of each score at each size, and the AUROC that it has."""
    with tempfile.TemporaryDirectory() as folder:
        for N, d, K in SIZES + LARGE * options.full:
            H, y, true = write_clusters(Path(folder) / "features.npy", N, d, K)
            for name, scores, times in forms(H, y, K):
                took = []
                for _ in range(options.repeats or 1):
                    held, begin = restart_peak(), time.perf_counter()
                    found = scores()
                    took.append(times * (time.perf_counter() - begin))
                peak = peak_mib()
                yield {
                    "N": N,
                    "d": d,
                    "score": name,
                    "seconds": float(np.median(took)),
                    "MiB": None if held is None or peak is None else peak - held,
                    "AUROC": None if found is None else quality(found, y, true).auroc,
                }


def forms(
    H: NDArray[Any], y: Tensor, K: int
) -> Iterator[tuple[str, Callable[[], Tensor | None], float]]:
    """Yield each score by name, with what computes it and what its seconds are multiplied by."""
    yield "coding_length", lambda: audit(H, y, num_classes=K).scores, 1
    yield "... 2 iterations", lambda: audit(H, y, num_classes=K, iterations=2).scores, 1
    yield "ridge_cv", lambda: audit(H, y, num_classes=K, score="ridge_cv").scores, 1

    def knn() -> None:
        neighbours(H)

    yield "knn", knn, len(H) / QUERIES
    if installed():
        P = make_given(H, y, K).probabilities
        for name, ask in CLEANLAB.items():
            yield name, lambda ask=ask: -ask(y, P).label_score, 1  # type: ignore[misc]
