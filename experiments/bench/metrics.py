"""What NC1 to NC4 and CDNV cost from N × d features, against the formulas as they read.

    mcr2 bench metrics --threads 1            # seconds
    mcr2 bench metrics --threads 1 --full     # minutes: many classes, wide features

Two forms take turns in one process on float32 Gaussian clusters with a classifier:
:func:`~mcr2.metrics.collapse.neural_collapse`, and :func:`plain`, two passes over all samples
without a Python loop, with Σ_W and Σ_B as d × d matrices. Both take products over samples in
float32, and class means and all that is made of them in float64. Class means have a spread of 1,
samples about them one of 0.2 or 1. Memory is the growth of the resident set to its high-water mark
in one call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from experiments.bench import FormBench
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


def measure(options: FormBench) -> Iterator[dict[str, Any]]:
    """Return milliseconds and memory of both forms at each size and spread; ``ratio`` is plain's
    over ours, ``difference`` the largest over measures, relative."""
    for N, d, K in SIZES + LARGE * options.full:
        for spread in SPREADS:
            data = clusters(N, d, K, spread=spread)
            row: dict[str, Any] = {"N": N, "d": d, "K": K, "spread": spread}
            found = {}
            for name, form in (("ours", ours), ("plain", plain)):
                given = {"form": form, "data": data}
                timer = Timer("form(*data)", globals=given, num_threads=options.threads)
                seconds = timer.blocked_autorange(min_run_time=0.1 * (options.repeats or 3)).median
                held = restart_peak()
                found[name] = form(*data)
                peak = peak_mib()
                row[f"{name} ms"] = 1e3 * seconds
                row[f"{name} MiB"] = None if held is None or peak is None else peak - held
            row["ratio"] = row["plain ms"] / row["ours ms"]
            row["difference"] = difference(found["plain"], found["ours"])
            yield row


def difference(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Return the largest relative difference between measures of the first; 0/0 is 0."""
    return max(abs(first[k] - second[k]) / (abs(first[k]) or 1.0) for k in first)
