"""What it costs to construct a ReduNet, beside a straightforward form of the same.

    mcr2 bench redunet --threads 1

Two layers on unit-norm Gaussian samples in balanced classes, float32: operators, features, and the
rates before, between and behind them. ``plain`` follows the formulas in loops over frequencies and
classes, with an explicit inverse and ``slogdet`` of every C × C matrix. Half a minute on one core.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from experiments.bench import Bench
from mcr2.redunet import ReduNet

LAYERS, ETA, EPS_SQ, LAM = 2, 0.5, 0.1, 500.0
#: (m, shape of a sample, K).
SIZES = ((100, (15, 28, 28), 10), (2000, (784,), 10))

#: Features behind the layers, and (R, R_c) before the first and after each.
Made = tuple[Tensor, list[tuple[float, float]]]


def samples(m: int, shape: Sequence[int], K: int) -> tuple[Tensor, Tensor]:
    """Draw unit-norm Gaussian samples about Gaussian class means; labels sorted, balanced."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(m) % K).sort().values
    means = torch.randn(K, *shape, generator=generator)
    X = means[labels] + torch.randn(m, *shape, generator=generator)
    return _project(X), labels


def ours(X: Tensor, labels: Tensor) -> Made:
    """Construct as the product does, and pass the samples through."""
    net = ReduNet(layers=LAYERS, eta=ETA, eps_sq=EPS_SQ, lam=LAM).fit(X, labels)
    return net(X), [(rates.rate, rates.compressed_rate) for rates in net.history]


@torch.no_grad()
def plain(X: Tensor, labels: Tensor) -> Made:
    """Construct as the formulas read, frequency by frequency and class by class."""
    axes = tuple(range(2, X.dim()))
    V = torch.fft.fftn(X, dim=axes).flatten(2) if axes else X.unsqueeze(2)  # (m, C, T)
    m, _, T = V.shape
    members = [labels == k for k in range(int(labels.max()) + 1)]
    gammas = torch.stack([own.float().mean() for own in members])
    history = []
    for depth in range(LAYERS + 1):
        found = [[_operator(V[own, :, f]) for f in range(T)] for own in (labels >= 0, *members)]
        rate, *class_rates = (sum(value for _, value in one) / T for one in found)
        history.append((rate, float(gammas @ torch.tensor(class_rates))))
        if depth < LAYERS:
            expanded, *others = (
                torch.stack([V[:, :, f] @ operator for f, (operator, _) in enumerate(one)], dim=2)
                for one in found
            )
            compressed = torch.stack(others)  # (K, m, C, T)
            share = torch.softmax(-LAM * compressed.flatten(2).norm(dim=2) / T**0.5, dim=0)
            weighed = (gammas[:, None] * share).view(len(members), m, 1, 1)
            V = _project(V + ETA * (expanded - (weighed * compressed).sum(0))) * T**0.5
    Z = torch.fft.ifftn(V.reshape(X.shape), dim=axes).real if axes else V.squeeze(2)
    return _project(Z), history


def _project(X: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(X.flatten(1), dim=1)
    return X / norms.view(-1, *[1] * (X.dim() - 1))


def _operator(Z: Tensor) -> tuple[Tensor, float]:
    """α (I + α ZᴴZ)⁻¹ and ½ logdet(I + α ZᴴZ)."""
    n, d = Z.shape
    alpha = d / (n * EPS_SQ)
    matrix = torch.eye(d, dtype=Z.dtype) + alpha * (Z.mH @ Z)
    return alpha * torch.linalg.inv(matrix), float(torch.linalg.slogdet(matrix)[1]) / 2


def measure(options: Bench) -> Iterator[dict[str, Any]]:
    """Return milliseconds a layer of both forms at each size, their ratio, and by how much their
    features (of norm 1) and, relatively, their rates differ at the most."""
    for m, shape, K in SIZES:
        X, y = samples(m, shape, K)
        row: dict[str, Any] = {"samples": f"{m} x {'x'.join(map(str, shape))}", "K": K}
        for form in (ours, plain):
            given = {"form": form, "X": X, "y": y}
            timer = Timer("form(X, y)", globals=given, num_threads=options.threads)
            row[f"{form.__name__} ms"] = 1e3 * timer.timeit(options.repeats or 3).mean / LAYERS
        (mine, own), (other, others) = ours(X, y), plain(X, y)
        row["ratio"] = row["plain ms"] / row["ours ms"]
        row["features"] = float((mine - other).abs().max())
        row["rates"] = float((torch.tensor(own) / torch.tensor(others) - 1).abs().max())
        yield row
