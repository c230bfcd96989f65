"""What NC1 to NC4 and CDNV cost from N × d features, against two-pass forms.

Four forms, timed by turns in one process on float32 Gaussian clusters with a classifier:

- ``ours``: :func:`mcr2.metrics.collapse.neural_collapse`;
- ``two_pass``: the comparison, on the same float32 features. The formulas as they read and as
  public implementations go about them: a loop over classes for the means, a second one for the
  deviations, Σ_W ``(d, d)``, the d × d pseudo-inverse of Σ_B by a singular value decomposition,
  CDNV by a loop over pairs of classes. Where those are slower than anyone needs to be, it is not:
  they add up an outer product a sample, here Σ_W is one product of all deviations; they take
  distances to class means sample by sample, here ``torch.cdist`` does;
- ``two_pass_float64``: the same on features in float64, the plain way to lose no digits where
  means are large beside the spread, which ours does not lose either;
- ``vectorised``: the strictest: the same two passes in float32 without a Python loop, means by
  ``index_add_``, distances between means at once, the pseudo-inverse by a symmetric
  eigendecomposition. At a thousand classes most of ``two_pass`` is its loop over half a million
  pairs, and this is what is left without it.

The float32 forms take products over samples in float32 and means, Σ_B and its pseudo-inverse in
float64, without which the default cutoff of a pseudo-inverse counts rounding as rank and nc1 is
wrong by orders of magnitude.

NC4 needs the scores of all samples, N·d·K multiplications that no form is spared unless, as in
ours, samples are seen to lie so near their class mean that both predictions are plain. So the
clusters are timed as collapsed as in a terminal phase and as spread as before it. On spread ones
ours first looks in bfloat16 where the processor has instructions for it; elsewhere its time at
many classes is about half as much again.

Ratios are medians of per-turn ratios. Memory is the growth of a fresh process's peak resident
size over what features, labels and classifier take.
"""

from __future__ import annotations

import math
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from experiments.report import Table
from experiments.runs.memory import peak_mib
from mcr2.metrics.collapse import neural_collapse

#: (N, d, K): few, some and many classes; wide features.
SIZES = ((50_000, 512, 10), (20_000, 512, 100), (20_000, 512, 1000), (50_000, 2048, 1000))

#: Standard deviations within classes that are timed, between classes being 1: tr Σ_W / tr Σ_B is
#: 0.04 or 1.
SPREADS = {"collapsed": 0.2, "spread": 1.0}

#: The measures that all forms compute.
COMPARED = (
    "nc1",
    "cdnv",
    "nc2_equinorm",
    "nc2_equiangular",
    "nc2_maxangle",
    "nc3",
    "nc4",
)

Form = Callable[[Tensor, Tensor, Tensor, Tensor], dict[str, float]]


def clusters(
    N: int, d: int, K: int, *, spread: float, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw Gaussian clusters about Gaussian means, and a classifier near those.

    Args:
        N: samples.
        d: dimensions.
        K: classes.
        spread: standard deviation within classes; between them it is 1.
        seed: of all that is drawn.

    Returns:
        Features ``(N, d)``, labels ``(N,)`` with every class present, W ``(K, d)``, b ``(K,)``;
        float32.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(N).remainder(K)[torch.randperm(N, generator=generator)]
    means = torch.randn(K, d, generator=generator)
    features = torch.randn(N, d, generator=generator).mul_(spread)
    # In pieces: a whole second copy would hide in the peak what the measures add.
    for part, classes in zip(torch.split(features, 1000), torch.split(labels, 1000), strict=True):
        part.add_(means[classes])
    weight = means + 0.3 * torch.randn(K, d, generator=generator)
    return features, labels, weight, 0.1 * torch.randn(K, generator=generator)


def ours(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> dict[str, float]:
    """Read the measures off :func:`~mcr2.metrics.collapse.neural_collapse`."""
    result = neural_collapse(features, labels, num_classes=len(weight), weight=weight, bias=bias)
    return {name: getattr(result, name) for name in COMPARED}


def two_pass(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> dict[str, float]:
    """Compute the measures as the formulas read: loops over classes and pairs, a d × d pinv."""
    N, K = len(features), len(weight)
    means = torch.stack([features[labels == k].double().mean(0) for k in range(K)])
    deviations = torch.empty_like(features)
    variances = []
    for k in range(K):
        members = labels == k
        own = features[members] - means[k].to(features.dtype)
        deviations[members] = own
        variances.append(float(own.double().square().sum(1).mean()))
    sigma_w = (deviations.T @ deviations).double() / N
    M = means - means.mean(0)
    pinv = torch.linalg.pinv(M.T @ M / K)
    pairs = [
        (variances[i] + variances[j]) / (2 * float((means[i] - means[j]).square().sum()))
        for i, j in combinations(range(K), 2)
    ]
    return {
        "nc1": float(torch.trace(sigma_w @ pinv)) / K,
        "cdnv": statistics.fmean(pairs),
        **_of_means(M, weight),
        "nc4": _mismatch(features, means, weight, bias),
    }


def two_pass_float64(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor
) -> dict[str, float]:
    """Compute :func:`two_pass` on features in float64."""
    return two_pass(features.double(), labels, weight.double(), bias.double())


def vectorised(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> dict[str, float]:
    """Compute the measures in the same two passes over all samples without a Python loop."""
    N, d = features.shape
    K = len(weight)
    counts = torch.bincount(labels, minlength=K).double()
    sums = torch.zeros(K, d, dtype=torch.float64).index_add_(0, labels, features.double())
    means = sums / counts.unsqueeze(1)
    deviations = features - means.float().index_select(0, labels)
    squares = deviations.square().sum(1).double()
    variances = torch.zeros(K, dtype=torch.float64).index_add_(0, labels, squares) / counts
    sigma_w = (deviations.T @ deviations).double() / N
    M = means - means.mean(0)
    pinv = torch.linalg.pinv(M.T @ M / K, hermitian=True)
    distances = torch.cdist(means, means).square().fill_diagonal_(torch.inf)
    return {
        "nc1": float((sigma_w * pinv).sum()) / K,
        "cdnv": float((variances / distances).sum()) / (K * (K - 1)),
        **_of_means(M, weight),
        "nc4": _mismatch(features, means, weight, bias),
    }


def _of_means(M: Tensor, weight: Tensor) -> dict[str, float]:
    """NC2 and NC3, which see K means only."""
    K = len(M)
    norms = M.norm(dim=1)
    cosines = ((M / norms.unsqueeze(1)) @ (M / norms.unsqueeze(1)).T)[
        torch.ones(K, K, dtype=torch.bool).triu(1)
    ]
    W = weight.double()
    return {
        "nc2_equinorm": float(norms.std(correction=0) / norms.mean()),
        "nc2_equiangular": float(cosines.std(correction=0)),
        "nc2_maxangle": float((cosines + 1 / (K - 1)).abs().mean()),
        "nc3": float((W / W.norm() - M / M.norm()).square().sum()),
    }


def _mismatch(features: Tensor, means: Tensor, weight: Tensor, bias: Tensor) -> float:
    """NC4 by all scores and all distances."""
    predicted = (features @ weight.T + bias).argmax(1)
    nearest = torch.cdist(features, means.to(features.dtype)).argmin(1)
    return float((predicted != nearest).double().mean())


#: The forms that are compared.
FORMS: dict[str, Form] = {
    "ours": ours,
    "two_pass_float64": two_pass_float64,
    "two_pass": two_pass,
    "vectorised": vectorised,
}


def run(
    sizes: Sequence[tuple[int, int, int]] = SIZES, threads: int = 1, repeats: int = 3
) -> dict[str, Any]:
    """Time all forms at each size, on collapsed and on spread clusters.

    Args:
        sizes: (N, d, K) each.
        threads: of PyTorch, for the time of the benchmark.
        repeats: turns; in each, every form runs once.

    Returns:
        Plain numbers for JSON: ``threads``, ``repeats``, ``machine``, and under ``rows`` for each
        size and spread: ``N``, ``d``, ``K``, ``clusters`` (a name of :data:`SPREADS`);
        ``seconds`` by form (median); ``ratio``, the other forms' time over ours (median over
        turns); ``extra_mib`` by form; ``difference`` from ours, the largest over measures,
        relative.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = [_row(*size, spread, threads, repeats) for size in sizes for spread in SPREADS]
    finally:
        torch.set_num_threads(before)
    machine = platform.processor() or platform.machine()
    return {"threads": threads, "repeats": repeats, "machine": machine, "rows": rows}


def table(figures: dict[str, Any]) -> str:
    """Lay a result of :func:`run` out as text, a size a line."""
    others = [name for name in FORMS if name != "ours"]
    rows = tuple(
        (
            f"{row['N']}x{row['d']}",
            f"K={row['K']}",
            row["clusters"],
            f"{row['seconds']['ours']:.2f}",
            *(f"{row['ratio'][name]:.1f}" for name in others),
            f"{row['extra_mib']['ours']:.0f}",
            f"{min(row['extra_mib'][name] for name in others):.0f}",
            f"{max(row['difference'].values()):.0e}",
        )
        for row in figures["rows"]
    )
    title = (
        f"NC1 to NC4 and CDNV, {figures['threads']} thread(s): seconds, other forms' time over "
        "ours, peak extra memory of ours and the least of the others, largest relative difference"
    )
    header = ("size", "classes", "clusters", "ours", *others, "MiB", "others", "difference")
    return Table(title, header, rows).text()


def _row(N: int, d: int, K: int, spread: str, threads: int, repeats: int) -> dict[str, Any]:
    data = clusters(N, d, K, spread=SPREADS[spread])
    seconds: dict[str, list[float]] = {name: [] for name in FORMS}
    values: dict[str, Mapping[str, float]] = {}
    for _ in range(repeats):
        for name, form in FORMS.items():
            start = time.perf_counter()
            values[name] = form(*data)
            seconds[name].append(time.perf_counter() - start)
    del data
    others = [name for name in FORMS if name != "ours"]
    return {
        "N": N,
        "d": d,
        "K": K,
        "clusters": spread,
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "ratio": {
            name: statistics.median(
                other / own for other, own in zip(seconds[name], seconds["ours"], strict=True)
            )
            for name in others
        },
        "extra_mib": {name: _extra_mib(name, (N, d, K), spread, threads) for name in FORMS},
        "difference": {name: difference(values["ours"], values[name]) for name in others},
    }


def difference(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Return the largest relative difference between two sets of measures; 0/0 is 0.

    Example:
        >>> difference({"nc1": 200.0, "nc4": 0.0}, {"nc1": 202.0, "nc4": 0.0})
        0.01
    """
    return max(abs(first[k] - second[k]) / (abs(first[k]) or 1.0) for k in first)


def _extra_mib(name: str, size: tuple[int, int, int], spread: str, threads: int) -> float:
    """Return by how much a form raises the peak of a process that holds its input, in MiB."""
    context = multiprocessing.get_context("spawn")
    ours_end, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(name, size, spread, threads, theirs))
    process.start()
    theirs.close()
    try:
        return float(ours_end.recv())
    except EOFError:  # killed, for want of memory most likely
        return math.nan
    finally:
        process.join()


def _measure_peak(
    name: str, size: tuple[int, int, int], spread: str, threads: int, connection: Connection
) -> None:
    torch.set_num_threads(threads)
    form = FORMS[name]
    form(*clusters(300, 8, 3, spread=1.0))  # libraries load and allocate their workspaces here
    data = clusters(*size, spread=SPREADS[spread])
    before = peak_mib()
    form(*data)
    after = peak_mib()
    connection.send(math.nan if before is None or after is None else after - before)
    connection.close()
