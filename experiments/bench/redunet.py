"""What a layer of ReduNet costs to construct, beside straightforward forms of the same.

Two cases, on unit-norm Gaussian samples in balanced classes, float32, the forms by turns in one
process:

- images (m=100, C=15, 28 × 28, K=10) against ``plain``, a loop over all 784 frequencies and, in it,
  over classes: an explicit inverse of every C × C matrix, applied frequency by frequency;
- vectors (m=2000, d=784, K=10) against ``plain``, a loop over classes: an explicit inverse of every
  d × d matrix, products with each, stacked.

A layer is its operators E and C_k; the rates R, R_c of the features that enter it, which all forms
report (``plain`` by ``slogdet``); and the features that leave it, from which the next one is
constructed. ``operators`` is the time of the first two alone. Ratios are medians of per-turn
ratios; ``difference`` is the largest between the features that leave, which have norm 1.
"""

from __future__ import annotations

import platform
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from experiments.report import Table
from mcr2.rates.precision import full_precision
from mcr2.redunet.features import cut
from mcr2.redunet.layers import Moments, ReduLayer, Shape
from mcr2.redunet.network import layer_rates
from mcr2.redunet.spectra import frequency_weights, from_spectrum, project, to_spectrum

ETA, EPS_SQ, LAM = 0.5, 0.1, 500.0

#: (m, shape of a sample, K) and how many times faster ours has to be.
SIZES = (((100, (15, 28, 28), 10), 8.0), ((2000, (784,), 10), 3.0))

#: Features that leave the layer, (R, R_c), and seconds until operators and rates were there.
Made = tuple[Tensor, tuple[float, float], float]


def samples(m: int, shape: tuple[int, ...], K: int) -> tuple[Tensor, Tensor]:
    """Draw unit-norm Gaussian samples about Gaussian class means; labels sorted, balanced."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(m) % K).sort().values
    means = torch.randn(K, *shape, generator=generator)
    X = means[labels] + torch.randn(m, *shape, generator=generator)
    return X / X.flatten(1).norm(dim=1).view(-1, *[1] * len(shape)), labels


def ours(X: Tensor, labels: Tensor, K: int) -> Made:
    """Construct and apply one layer as :meth:`mcr2.redunet.ReduNet.fit` does."""
    start = time.perf_counter()
    counts = torch.bincount(labels, minlength=K).tolist()
    weights = frequency_weights(X.shape[1:], X)
    S = project(to_spectrum(X), weights)
    shape = Shape(S.shape[0], S.shape[2], tuple(counts))
    with full_precision(X):
        moments = Moments(shape, S.dtype, S.device).clear()
        for batch in cut(counts, len(X)):
            moments.add(batch, S[:, batch.start : batch.stop])
        total, classes = moments.factors(EPS_SQ)
        rates = layer_rates(0, total, classes, shape, weights)
        assert rates is not None
        layer = ReduLayer.blank(shape, S).fill(total, classes, shape)
        spent = time.perf_counter() - start
        moved = from_spectrum(layer(S, weights, eta=ETA, lam=LAM), X.shape[1:])
    return moved, (rates.rate, rates.compressed_rate), spent


def plain(X: Tensor, labels: Tensor, K: int) -> Made:
    """Construct and apply one layer as the formulas read, frequency by frequency."""
    return _plain_vectors(X, labels, K) if X.dim() == 2 else _plain_images(X, labels, K)


def _operator(Z: Tensor) -> tuple[Tensor, float]:
    """α (I + α ZᴴZ)⁻¹ and ½ logdet(I + α ZᴴZ)."""
    n, d = Z.shape
    alpha = d / (n * EPS_SQ)
    matrix = torch.eye(d, dtype=Z.dtype) + alpha * (Z.mH @ Z)
    return alpha * torch.linalg.inv(matrix), float(torch.linalg.slogdet(matrix)[1]) / 2


def _plain_vectors(X: Tensor, labels: Tensor, K: int) -> Made:
    start = time.perf_counter()
    E, rate = _operator(X)
    pairs = [_operator(X[labels == k]) for k in range(K)]
    gammas = [float((labels == k).float().mean()) for k in range(K)]
    compressed_rate = sum(g * r for g, (_, r) in zip(gammas, pairs, strict=True))
    spent = time.perf_counter() - start
    compressed = torch.stack([X @ C for C, _ in pairs])
    share = torch.softmax(-LAM * compressed.norm(dim=2), dim=0)
    weighed = (torch.tensor(gammas)[:, None] * share).unsqueeze(2)
    moved = X + ETA * (X @ E - (weighed * compressed).sum(0))
    return moved / moved.norm(dim=1, keepdim=True), (rate, compressed_rate), spent


def _plain_images(X: Tensor, labels: Tensor, K: int) -> Made:
    start = time.perf_counter()
    V = torch.fft.fft2(X).flatten(2)  # (m, C, T)
    T = V.shape[2]
    E, Cs = [], []
    rate, compressed_rate = 0.0, 0.0
    members = [labels == k for k in range(K)]
    gammas = torch.stack([own.float().mean() for own in members])
    for f in range(T):
        operator, value = _operator(V[:, :, f])
        E.append(operator)
        rate += value / T
        for k in range(K):
            operator, value = _operator(V[members[k], :, f])
            Cs.append(operator)
            compressed_rate += float(gammas[k]) * value / T
    spent = time.perf_counter() - start
    expanded = torch.stack([V[:, :, f] @ E[f] for f in range(T)], dim=2)
    compressed = torch.stack(
        [torch.stack([V[:, :, f] @ Cs[f * K + k] for f in range(T)], dim=2) for k in range(K)]
    )
    share = torch.softmax(-LAM * compressed.flatten(2).norm(dim=2) / T**0.5, dim=0)
    weighed = (gammas[:, None] * share)[:, :, None, None]
    moved = V + ETA * (expanded - (weighed * compressed).sum(0))
    out = torch.fft.ifft2(moved.view(*X.shape)).real
    return out / out.flatten(1).norm(dim=1)[:, None, None, None], (rate, compressed_rate), spent


def run(sizes: Any = SIZES, threads: int = 1, repeats: int = 5) -> dict[str, Any]:
    """Time both forms at each size.

    Args:
        sizes: ((m, shape of a sample, K), times faster that is asked for) each.
        threads: of PyTorch, for the time of the benchmark.
        repeats: turns; in each, both forms run once.

    Returns:
        Plain numbers for JSON: ``threads``, ``repeats``, ``machine``, and under ``rows`` for each
        size: ``m``, ``shape``, ``K``; ``seconds`` and ``operators`` by form (medians); ``ratio``
        and ``operators_ratio``, ``plain`` over ``ours``; ``wanted`` and ``met``; ``difference``
        and ``rates_difference`` (relative).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = [_row(*size, wanted, repeats) for size, wanted in sizes]
    finally:
        torch.set_num_threads(before)
    machine = platform.processor() or platform.machine()
    return {"threads": threads, "repeats": repeats, "machine": machine, "rows": rows}


@torch.no_grad()
def _row(m: int, shape: tuple[int, ...], K: int, wanted: float, repeats: int) -> dict[str, Any]:
    X, labels = samples(m, shape, K)
    forms = {"ours": ours, "plain": plain}
    whole: dict[str, list[float]] = {name: [] for name in forms}
    operators: dict[str, list[float]] = {name: [] for name in forms}
    made = {name: form(X, labels, K) for name, form in forms.items()}  # the first call warms up
    for _ in range(repeats):
        for name, form in forms.items():
            start = time.perf_counter()
            made[name] = form(X, labels, K)
            whole[name].append(time.perf_counter() - start)
            operators[name].append(made[name][2])
    (mine, own_rates, _), (other, other_rates, _) = made["ours"], made["plain"]

    def ratio(times: dict[str, list[float]]) -> float:
        pairs = zip(times["plain"], times["ours"], strict=True)
        return statistics.median(slow / fast for slow, fast in pairs)

    return {
        "m": m,
        "shape": list(shape),
        "K": K,
        "seconds": {name: statistics.median(times) for name, times in whole.items()},
        "operators": {name: statistics.median(times) for name, times in operators.items()},
        "ratio": ratio(whole),
        "operators_ratio": ratio(operators),
        "wanted": wanted,
        "met": ratio(whole) >= wanted,
        "difference": float((mine - other).abs().max()),
        "rates_difference": max(
            abs(a - b) / abs(b) for a, b in zip(own_rates, other_rates, strict=True)
        ),
    }


def table(figures: dict[str, Any]) -> str:
    """Lay a result of :func:`run` out as text, a size a line."""
    rows = tuple(
        (
            f"m={row['m']}",
            "x".join(map(str, row["shape"])),
            f"K={row['K']}",
            f"{1e3 * row['seconds']['ours']:.0f}",
            f"{1e3 * row['seconds']['plain']:.0f}",
            f"{row['ratio']:.1f}",
            f">= {row['wanted']:g}",
            f"{row['operators_ratio']:.1f}",
            f"{row['difference']:.0e}",
            f"{row['rates_difference']:.0e}",
        )
        for row in figures["rows"]
    )
    title = (
        f"Construction of a layer, {figures['threads']} thread(s): milliseconds, times faster than "
        "the plain form (wanted; operators and rates alone), differences"
    )
    header = (
        *("samples", "shape", "classes", "ours", "plain", "faster", "wanted"),
        *("operators", "features", "rates"),
    )
    return Table(title, header, rows).text()
