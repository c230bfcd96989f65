"""What ΔR itself asks for: unit vectors with labels and no network, ascended on ΔR.

    python -m experiments.studies.free_features docs/free_features.png

Takes a second on one core. Each class should become a subspace orthogonal to the others, with
equal singular values (Yu et al. 2020, Theorem 2.1), and ΔR should reach its maximum over balanced
classes of unit vectors, d/2 log(1 + 1/ε²) − d/(2K) log(1 + K/ε²), unless classes settle at
neighbouring dimensions: a local maximum, whose value is known too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mcr2.rates import rate_reduction


@dataclass(frozen=True)
class FreeFeatures:
    """Features at a local maximum of ΔR, and what they should have become.

    Attributes:
        features: unit vectors ``(m, d)``, float64.
        labels: ``(m,)``.
        reduction: ΔR at each evaluation, in nats; the last one is reached.
        best: the largest ΔR of balanced classes of unit vectors.
        at_dimensions: ΔR of orthogonal classes of ``dimensions`` with equal singular values.
        dimensions: singular values of each class above 1e-3 of its largest.
        singular_values: of each class, in falling order.
        coherence: mean over pairs of classes of ‖U_iᵀU_j‖² / min(q_i, q_j); 0 if orthogonal.
    """

    features: Tensor
    labels: Tensor
    reduction: list[float]
    best: float
    at_dimensions: float
    dimensions: list[int]
    singular_values: list[Tensor]
    coherence: float


def ascend(
    d: int = 40,
    num_classes: int = 4,
    per_class: int = 30,
    *,
    eps_sq: float = 0.5,
    seed: int = 0,
    steps: int = 600,
) -> FreeFeatures:
    """Ascend ΔR over balanced unit vectors by L-BFGS in float64 from a random start.

    Args:
        d: dimension, at least ``num_classes``.
        num_classes: K.
        per_class: samples of each class, at least d/K.
        eps_sq: ε².
        seed: of the start.
        steps: L-BFGS steps at most; it converges long before.

    Returns:
        :class:`FreeFeatures`.

    Example:
        >>> found = ascend(d=8, num_classes=2, per_class=6)
        >>> found.coherence < 1e-6, sum(found.dimensions)
        (True, 8)
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (num_classes * per_class, d)
    raw = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    optimiser = torch.optim.LBFGS(
        [raw],
        max_iter=steps,
        history_size=20,
        tolerance_grad=1e-13,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )
    reduction: list[float] = []

    def loss() -> Tensor:
        optimiser.zero_grad()
        Z = torch.nn.functional.normalize(raw)
        rates = rate_reduction(Z, labels, num_classes=num_classes, eps_sq=eps_sq)
        (-rates.reduction).backward()
        reduction.append(float(rates.reduction.detach()))
        return -rates.reduction.detach()

    optimiser.step(loss)
    Z = torch.nn.functional.normalize(raw.detach())
    final = rate_reduction(Z, labels, num_classes=num_classes, eps_sq=eps_sq).reduction
    parts = [torch.linalg.svd(Z[labels == k], full_matrices=False) for k in range(num_classes)]
    dimensions = [int((S / S[0] > 1e-3).sum()) for _, S, _ in parts]
    bases = [V[:q] for (_, _, V), q in zip(parts, dimensions, strict=True)]
    overlaps = [
        float((bases[i] @ bases[j].T).square().sum() / min(dimensions[i], dimensions[j]))
        for i in range(num_classes)
        for j in range(i)
    ]
    return FreeFeatures(
        features=Z,
        labels=labels,
        reduction=[*reduction, float(final)],
        best=largest_reduction(d, num_classes, eps_sq),
        at_dimensions=reduction_at(dimensions, d, eps_sq),
        dimensions=dimensions,
        singular_values=[S for _, S, _ in parts],
        coherence=sum(overlaps) / len(overlaps),
    )


def largest_reduction(d: int, num_classes: int, eps_sq: float) -> float:
    """d/2 log(1 + 1/ε²) − d/(2K) log(1 + K/ε²), of K balanced classes of unit vectors.

    It is the maximum for small ε², as at 0.5; at 2 unequal dimensions may already be better.
    """
    K = num_classes
    return d / 2 * math.log1p(1 / eps_sq) - d / (2 * K) * math.log1p(K / eps_sq)


def reduction_at(dimensions: Sequence[int], d: int, eps_sq: float) -> float:
    """ΔR of balanced orthogonal classes, each isotropic in as many dimensions as given."""
    K = len(dimensions)
    return sum(
        q / 2 * (math.log1p(d / (K * q * eps_sq)) - math.log1p(d / (q * eps_sq)) / K)
        for q in dimensions
    )


def plot(found: Sequence[FreeFeatures], path: Path) -> None:
    """Draw the ascent of each start, and singular values and cosines of the first.

    Args:
        found: one result a start.
        path: where the figure goes, PNG.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    blue, orange, grey = "#0072b2", "#d55e00", "0.45"
    first = found[0]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")

    labelled: set[tuple[int, ...]] = set()
    for result in found:
        gap = [max(1 - value / result.best, 1e-16) for value in result.reduction]
        axes[0].semilogy(gap, color=orange if result is first else blue, linewidth=1.5)
        reached = tuple(sorted(result.dimensions))
        if reached not in labelled:
            labelled.add(reached)
            axes[0].annotate(
                ", ".join(map(str, reached)),
                (len(gap) - 1, gap[-1]),
                xytext=(0, -12),
                textcoords="offset points",
                fontsize=9,
                ha="right",
            )
    axes[0].axhline(5e-3, color=grey, linestyle=":", linewidth=1)
    axes[0].text(0, 4e-3, "0.5 %", color=grey, fontsize=9, va="top")
    axes[0].set(
        xlabel="evaluations of ΔR",
        ylabel="1 − ΔR / its maximum",
        title="Ascent, and dimensions reached",
    )

    markers = "osD^v<>*"
    for k, values in enumerate(first.singular_values):
        axes[1].plot(
            range(1, len(values) + 1),
            values.numpy(),
            marker=markers[k % len(markers)],
            markersize=4,
            linewidth=1,
            color=plt.get_cmap("viridis")(k / max(len(first.dimensions) - 1, 1) * 0.85),
            label=f"class {k}: {first.dimensions[k]} dimensions",
        )
    axes[1].legend(fontsize=9, frameon=False)
    axes[1].set(
        xlabel="index", ylabel="singular value", title="Spectrum of each class, first start"
    )

    cosines = (first.features @ first.features.T).abs().numpy()
    image = axes[2].imshow(cosines, cmap="Greys", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes[2], label="|cosine|")
    axes[2].set(xlabel="sample, by class", ylabel="sample, by class", title="Angles, first start")

    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str]) -> None:
    """Ascend from four starts, print what came of them, draw it to the path given."""
    found = [ascend(seed=seed) for seed in range(4)]
    for seed, result in enumerate(found):
        print(
            f"start {seed}: ΔR {result.reduction[-1]:.5f} of {result.best:.5f}, "
            f"dimensions {result.dimensions}, coherence {result.coherence:.1e}"
        )
    if arguments:
        plot(found, Path(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
