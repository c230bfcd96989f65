"""What coding rates cost, forward and backward, beside plain forms; and how exact they are.

    mcr2 bench rates --threads 1            # two minutes
    mcr2 bench rates --threads 1 --full     # also large problems and signals
    python -m experiments.bench.rates docs/figures/rates_accuracy.png

Forms of ΔR and its gradient in float32, on random unit features:

- ``ours``: :mod:`mcr2.rates`;
- ``loop``: a loop over classes with ``torch.logdet``;
- ``dense``: as the public code builds it, a (K, m, m) membership by a loop over samples, and
  log-determinants of Z Π_k Zᵀ (without its one-hot detour and its second, unused determinants).

The last line above measures errors instead, against the singular values in float64, over ε² and
over clusters from copies of one vector to none at all, and draws them beside those of ``loop``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.benchmark import Timer

from experiments.bench import FormBench, print_row
from mcr2.rates import rate_reduction, shift_invariant_rate_reduction

EPS_SQ = 0.5
#: (m, d, K): the study's steps, the paper's, many classes; with --full also large ones.
SIZES = ((718, 64, 10), (500, 32, 10), (1000, 128, 10), (1000, 128, 100), (2000, 512, 100))
LARGE = ((9000, 32, 10), (10_000, 128, 10), (50_000, 128, 10), (4096, 512, 1000))
#: The same with half of the samples in one class.
IMBALANCED = ((1000, 128, 101), (2000, 512, 101))
#: (m, C, positions, K), with --full.
SIGNALS = ((200, 16, (64,), 10), (100, 15, (28, 28), 10))
#: A dense membership of more numbers than this is not built.
LARGEST = 2**28

Form = Callable[[Tensor, Tensor, int, float], tuple[Tensor, Tensor]]


def ours(Z: Tensor, labels: Tensor, K: int, eps_sq: float = EPS_SQ) -> tuple[Tensor, Tensor]:
    """Return R and R_c of features or signals."""
    rates = rate_reduction if Z.dim() == 2 else shift_invariant_rate_reduction
    found = rates(Z, labels, num_classes=K, eps_sq=eps_sq)
    return found.rate, found.compressed_rate


def loop(Z: Tensor, labels: Tensor, K: int, eps_sq: float = EPS_SQ) -> tuple[Tensor, Tensor]:
    """Compute the same of features class by class, of signals at every frequency too."""
    if Z.dim() > 2:
        spectrum = torch.fft.fftn(Z, dim=tuple(range(2, Z.dim()))).flatten(2)
        found = [loop(spectrum[:, :, f], labels, K, eps_sq) for f in range(spectrum.shape[2])]
        R, R_c = (torch.stack(part).mean() for part in zip(*found, strict=True))
        return R, R_c
    m, d = Z.shape
    eye = torch.eye(d, dtype=Z.dtype)

    def rate(X: Tensor) -> Tensor:
        return torch.logdet(eye + d / (len(X) * eps_sq) * X.mH @ X).real / 2

    shares = [(n / m, Z[labels == k]) for k, n in enumerate(labels.bincount().tolist()) if n]
    return rate(Z), torch.stack([share * rate(X) for share, X in shares]).sum()


def dense(Z: Tensor, labels: Tensor, K: int, eps_sq: float = EPS_SQ) -> tuple[Tensor, Tensor]:
    """Compute the same as the public code does."""
    m, d = Z.shape
    entries = np.zeros((K, m, m))
    for i, k in enumerate(labels.numpy()):
        entries[k, i, i] = 1
    eye, R_c = torch.eye(d), torch.zeros(())
    R = torch.logdet(eye + d / (m * eps_sq) * Z.T @ Z) / 2
    for Pi in torch.tensor(entries, dtype=torch.float32):
        mass = torch.trace(Pi) + 1e-8
        R_c = R_c + mass / m * torch.logdet(eye + d / (mass * eps_sq) * Z.T @ Pi @ Z) / 2
    return R, R_c


def both_ways(form: Form, Z: Tensor, labels: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """Return ΔR and its gradient."""
    X = Z.detach().requires_grad_()
    R, R_c = form(X, labels, K, EPS_SQ)
    return (R - R_c).detach(), torch.autograd.grad(R - R_c, X)[0]


def measure(options: FormBench) -> Iterator[dict[str, Any]]:
    """Return milliseconds of each form at each size, how many times slower than ours they are, and
    the largest relative difference between ours and the loop in float64."""
    for m, d, K in SIZES + LARGE * options.full:
        yield _row(options, f"{m} x {d}", (m, d), torch.arange(m) % K, K)
    for m, d, K in IMBALANCED:
        labels = torch.where(torch.arange(m) < m // 2, 0, 1 + torch.arange(m) % (K - 1))
        yield _row(options, f"{m} x {d}, half in one", (m, d), labels, K)
    for m, C, positions, K in SIGNALS * options.full:
        shape = (m, C, *positions)
        yield _row(options, " x ".join(map(str, shape)), shape, torch.arange(m) % K, K)


def _row(
    options: FormBench, name: str, shape: tuple[int, ...], labels: Tensor, K: int
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    Z = torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=1)
    labels = labels[torch.randperm(len(labels), generator=generator)]
    forms: dict[str, Form | None] = {"ours": ours, "loop": loop, "dense": dense}
    if len(shape) > 2 or K * len(labels) ** 2 > LARGEST:
        forms["dense"] = None
    row: dict[str, Any] = {"problem": name, "K": K}
    for key, form in forms.items():
        given = {"both_ways": both_ways, "form": form, "Z": Z, "labels": labels, "K": K}
        timer = Timer("both_ways(form, Z, labels, K)", globals=given, num_threads=options.threads)
        least = 0.2 * (options.repeats or 3)
        row[f"{key} ms"] = form and 1e3 * timer.blocked_autorange(min_run_time=least).median
    for key in ("loop", "dense"):
        row[f"{key}/ours"] = row[f"{key} ms"] and row[f"{key} ms"] / row["ours ms"]
    exact = both_ways(loop, Z.double(), labels, K)
    pairs = zip(both_ways(ours, Z, labels, K), exact, strict=True)
    row["difference"] = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    return row


# --- errors -------------------------------------------------------------------------------------

#: (m, d, K), how far samples lie from the directions of their classes, and ε².
CLUSTERS = ((718, 64, 10), (1000, 128, 1), (300, 256, 3))
SPREADS = (0.0, 1e-3, 0.1, 1.0)
DISTORTIONS = (*(10.0**i for i in range(-12, 0, 2)), 0.5, *(10.0**i for i in range(2, 13, 2)))


def clusters(m: int, d: int, K: int, spread: float) -> tuple[Tensor, Tensor]:
    """Draw unit features about K directions in float64; a spread of 0 makes copies of those."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(m) % K
    means = torch.nn.functional.normalize(torch.randn(K, d, generator=generator).double())
    noise = torch.randn(m, d, generator=generator).double() / d**0.5
    return torch.nn.functional.normalize(means[labels] + spread * noise), labels


def errors(form: Form, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Return the largest relative errors of R and R_c and of their gradients, the latter by
    Frobenius' norm, and that of ΔR relative to 1 + R; None where the form refuses."""
    for m, d, K in CLUSTERS:
        for spread in SPREADS:
            features, labels = clusters(m, d, K, spread)
            Z = features.to(dtype).requires_grad_()
            exact = Z.detach().double().numpy()
            parts = [exact] + [exact[labels == k] for k in range(K)]
            spectra = [np.linalg.svd(part, full_matrices=False) for part in parts]
            for eps_sq in DISTORTIONS:
                row: dict[str, Any] = {"m": m, "d": d, "K": K, "spread": spread, "eps_sq": eps_sq}
                R, dR = _rate(spectra[0], eps_sq)
                R_c, dR_c = 0.0, np.zeros_like(exact)
                for k in range(K):
                    rate, gradient = _rate(spectra[1 + k], eps_sq)
                    R_c += len(gradient) / m * rate
                    dR_c[labels == k] = len(gradient) / m * gradient
                try:
                    found = form(Z, labels, K, eps_sq)
                    gradients = [torch.autograd.grad(r, Z, retain_graph=True)[0] for r in found]
                except ValueError:
                    yield row | dict.fromkeys(("value", "reduction", "gradient"))
                    continue
                values = [float(r.detach()) for r in found]
                row["value"] = max(abs(values[0] / R - 1), abs(values[1] / R_c - 1))
                row["reduction"] = abs(values[0] - values[1] - (R - R_c)) / (1 + R)
                pairs = zip(gradients, (dR, dR_c), strict=True)
                off = [np.linalg.norm(g.double().numpy() - e) / np.linalg.norm(e) for g, e in pairs]
                row["gradient"] = float(max(off))
                yield row


def _rate(spectrum: Any, eps_sq: float) -> tuple[float, NDArray[np.float64]]:
    """½ Σ log1p(c σ²) and its gradient U cσ/(1 + cσ²) Vᵀ from singular values."""
    U, S, Vt = spectrum
    c = Vt.shape[1] / (len(U) * eps_sq)
    return float(np.log1p(c * S**2).sum() / 2), (U * (c * S / (1 + c * S**2))) @ Vt


def draw(path: str) -> None:
    """Print the errors of ours and of the loop, and draw the largest at each ε² into a file."""
    from experiments.report.canvas import panels

    figure, ((left, right),) = panels(1, 2, 4.6, 3.2, sharey=True)
    what = {"value": left, "gradient": right}
    for name, axes in what.items():
        axes.set(xscale="log", yscale="log", ylim=(1e-17, 10), xlabel="ε²", title=name)
    left.set_ylabel("largest relative error")
    for form, dtype, colour, line in (
        (loop, torch.float32, "#d55e00", "--"),
        (loop, torch.float64, "#e69f00", "--"),
        (ours, torch.float32, "#0072b2", "-"),
        (ours, torch.float64, "#56b4e9", "-"),
    ):
        label = f"{form.__name__}, {str(dtype).removeprefix('torch.')}"
        rows: list[dict[str, Any]] = []
        for row in errors(form, dtype):
            print_row({"form": label, **row}, header=not rows)
            rows.append(row)
        for name, axes in what.items():
            found = [[r[name] for r in rows if r["eps_sq"] == e] for e in DISTORTIONS]
            # What is not a number fails the form; what is refused does not.
            worst = [float(np.max([1e-17, *(x for x in f if x is not None)])) for f in found]
            axes.plot(DISTORTIONS, worst, line, marker=".", color=colour, label=label)
    right.legend(fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    draw(sys.argv[1])
