"""What NC1 to NC4 and CDNV cost from N × d features, against the formulas as they read.

    mcr2 bench metrics --threads 1            # seconds
    mcr2 bench metrics --threads 1 --full     # minutes: many classes, wide features

Two forms take turns in one process on float32 Gaussian clusters with a classifier:
:func:`~mcr2.metrics.collapse.neural_collapse`, and :func:`plain`, two passes over all samples
without a Python loop, with Σ_W and Σ_B as d × d matrices. Both take products over samples in
float32, and class means and all that is made of them in float64; ours goes through the samples in
pieces and checks what it is given.

Samples near their class mean need no scores to be seen to agree on it, so that NC4 is cheaper
where classes have collapsed: clusters are timed with a spread of 0.2 and of 1, that of the class
means being 1 (tr Σ_W / tr Σ_B is 0.04 or 1). Memory is the growth of the resident set to its
high-water mark in one call.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from experiments.runs.memory import peak_mib, restart_peak
from mcr2.metrics.collapse import neural_collapse

#: (N, d, K): digits, more samples of the same, two widths of 50,000; with --full also these.
SIZES = ((1293, 64, 10), (9000, 32, 10), (50_000, 128, 10), (50_000, 512, 10))
LARGE = ((20_000, 512, 100), (20_000, 512, 1000), (50_000, 2048, 1000))

SPREADS = (0.2, 1.0)


def clusters(
    N: int, d: int, K: int, *, spread: float, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw Gaussian clusters about Gaussian means, and a classifier near those, in float32."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(N).remainder(K)[torch.randperm(N, generator=generator)]
    means = torch.randn(K, d, generator=generator)
    features = torch.randn(N, d, generator=generator).mul_(spread).add_(means[labels])
    weight = means + 0.3 * torch.randn(K, d, generator=generator)
    return features, labels, weight, 0.1 * torch.randn(K, generator=generator)


def ours(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Any]:
    """Return what :func:`~mcr2.metrics.collapse.neural_collapse` finds."""
    return asdict(
        neural_collapse(features, labels, num_classes=len(weight), weight=weight, bias=bias)
    )


def plain(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> dict[str, float]:
    """Compute the same in two passes over all samples."""
    (N, d), K = features.shape, len(weight)
    counts = torch.bincount(labels, minlength=K)
    sums = torch.zeros(K, d, dtype=torch.float64).index_add_(0, labels, features.double())
    means = sums / counts.unsqueeze(1)
    M = means - means.mean(0)
    x = features - means.float()[labels]
    sigma_w, sigma_b = (x.T @ x).double() / N, M.T @ M / K
    squares = x.square().sum(1).double()
    v = torch.zeros(K, dtype=torch.float64).index_add_(0, labels, squares) / counts
    rank = min(K - 1, d)
    values, vectors = (part[..., -rank:] for part in torch.linalg.eigh(sigma_b))
    i, j = torch.triu_indices(K, K, 1)
    simplex = (torch.eye(K, dtype=torch.float64) - 1 / K) / (K - 1) ** 0.5
    W = weight.double()

    def frame(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        norms = rows.norm(dim=1)
        unit = rows / norms.unsqueeze(1)
        cosines = (unit @ unit.T)[i, j]
        off = (cosines + 1 / (K - 1)).abs().mean()
        return norms.std(correction=0) / norms.mean(), cosines.std(correction=0), off

    nearest = torch.cdist(features, means.float()).argmin(1)
    predicted = (features @ weight.T + bias).argmax(1)
    frame_m, frame_w = frame(M), frame(W)
    found = {
        "nc1": ((sigma_w @ vectors) * vectors / values).sum() / K,
        "nc1_ratio": sigma_w.trace() / sigma_b.trace(),
        "cdnv": ((v[i] + v[j]) / (2 * torch.cdist(means, means)[i, j].square())).mean(),
        "nc2_etf": (M @ M.T / (M @ M.T).norm() - simplex).norm(),
        "nc3": (W / W.norm() - M / M.norm()).square().sum(),
        "nc3_etf": (W @ M.T / (W @ M.T).norm() - simplex).norm(),
        "nc4": (predicted != nearest).double().mean(),
        "mean_energy": means.square().sum() / K / (features.double().square().sum() / N),
    }
    for place, name in enumerate(("nc2_equinorm", "nc2_equiangular", "nc2_maxangle")):
        found |= {name: frame_m[place], f"{name}_w": frame_w[place]}
    return {name: float(value) for name, value in found.items()}


#: The forms that are compared.
FORMS: dict[str, Callable[..., dict[str, Any]]] = {"ours": ours, "plain": plain}


def run(threads: int = 1, repeats: int = 3, full: bool = False) -> dict[str, Any]:
    """Time both forms at each size and spread; show each line when it is there.

    Args:
        threads: of PyTorch.
        repeats: turns; in each, every form runs for a tenth of a second, or once.
        full: add the :data:`LARGE` sizes.

    Returns:
        Plain numbers for JSON: milliseconds are medians over turns, ``ratio`` is plain over ours,
        ``difference`` the largest over measures, relative.
    """
    rows = []
    for size in SIZES + LARGE * full:
        for spread in SPREADS:
            rows.append(_row(*size, spread, threads, repeats))
            print(_line(rows[-1]), file=sys.stderr, flush=True)
    return {"threads": threads, "rows": rows}


def table(figures: dict[str, Any]) -> str:
    """Lay a result of :func:`run` out as text, a size and spread a line."""
    head = f"collapse of float32 features, {figures['threads']} thread(s)"
    return "\n".join([head, *map(_line, figures["rows"])])


def _row(N: int, d: int, K: int, spread: float, threads: int, repeats: int) -> dict[str, Any]:
    data = clusters(N, d, K, spread=spread)
    times: dict[str, list[float]] = {name: [] for name in FORMS}
    for _ in range(repeats):
        for name, form in FORMS.items():
            timer = Timer("form(*data)", globals={"form": form, "data": data}, num_threads=threads)
            times[name].append(timer.blocked_autorange(min_run_time=0.1).median)
    found, extra = {}, {}
    for name, form in FORMS.items():
        held = restart_peak()
        found[name] = form(*data)
        peak = peak_mib()
        extra[name] = None if held is None or peak is None else peak - held
    milliseconds = {name: 1e3 * statistics.median(of) for name, of in times.items()}
    return {
        "N": N,
        "d": d,
        "K": K,
        "spread": spread,
        "milliseconds": milliseconds,
        "ratio": milliseconds["plain"] / milliseconds["ours"],
        "extra_mib": extra,
        "difference": difference(found["plain"], found["ours"]),
    }


def _line(row: dict[str, Any]) -> str:
    ms, mib = row["milliseconds"], row["extra_mib"]
    size = f"{row['N']} x {row['d']}, K = {row['K']}, spread {row['spread']}"
    memory = ", ".join("-" if x is None else f"{x:.0f}" for x in (mib["ours"], mib["plain"]))
    return (
        f"{size:37}  ours {ms['ours']:8.2f} ms  plain {ms['plain']:8.2f} ms  "
        f"ratio {row['ratio']:5.2f}  extra MiB {memory}  difference {row['difference']:.0e}"
    )


def difference(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Return the largest relative difference between measures of the first; 0/0 is 0."""
    return max(abs(first[k] - second[k]) / (abs(first[k]) or 1.0) for k in first)
