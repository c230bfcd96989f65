"""What ΔR itself asks for: unit vectors with labels and no network, ascended on ΔR.

    mcr2 study free_features

Takes a second on one core. Each class should become a subspace orthogonal to the others, with
equal singular values (Yu et al. 2020, Theorem 2.1), and ΔR should reach its maximum over balanced
classes of unit vectors, d/2 log(1 + 1/ε²) − d/(2K) log(1 + K/ε²), unless classes settle at
neighbouring dimensions: a local maximum, whose value is known too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.studies.small import Row, SmallStudy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FreeFeatures(SmallStudy):
    """Unit vectors with labels and no network, moved freely so as to increase ΔR."""

    name: ClassVar[str] = "free_features"
    title: ClassVar[str] = "ΔR reached; best of balanced classes; of orthogonal ones so large"

    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Of the starts; spectra and angles are shown of the first."""
    d: int = 40
    """Dimension, from 4 to 120, the numbers of classes and of samples."""
    eps_sq: float = 0.5
    """ε²."""

    def _check(self) -> None:
        from mcr2 import checks

        checks.integer("d", self.d, 4, 120)
        checks.positive("eps_sq", self.eps_sq)

    def _measure(self, figure: Path) -> list[Row]:
        found = [ascend(self.d, eps_sq=self.eps_sq, seed=seed) for seed in self.seeds]
        plot(found, figure)
        names = ("best", "at_dimensions", "dimensions", "coherence")
        return [
            {"start": seed, "reached": one.reduction[-1]} | {k: getattr(one, k) for k in names}
            for seed, one in zip(self.seeds, found, strict=True)
        ]


@dataclass(frozen=True)
class Ascent:
    """Features at a local maximum of ΔR, sorted by class, and what they should have become."""

    features: Tensor  # unit vectors (m, d), float64
    reduction: list[float]  # ΔR at each evaluation, in nats, the last one where it ended
    best: float  # the largest ΔR of balanced classes of unit vectors
    at_dimensions: float  # ΔR of orthogonal classes of `dimensions` with equal singular values
    dimensions: list[int]  # singular values of each class above 1e-3 of its largest
    singular_values: list[Tensor]  # of each class, falling
    coherence: float  # mean over pairs of ‖U_iᵀU_j‖² / min(q_i, q_j); 0 if orthogonal


def ascend(
    d: int = 40, num_classes: int = 4, per_class: int = 30, *, eps_sq: float = 0.5, seed: int = 0
) -> Ascent:
    """Ascend ΔR over balanced unit vectors by L-BFGS in float64 from a random start.

    Example:
        >>> found = ascend(d=8, num_classes=2, per_class=6)
        >>> found.coherence < 1e-6, sum(found.dimensions)
        (True, 8)
    """
    import torch

    from mcr2.rates import rate_reduction

    generator = torch.Generator().manual_seed(seed)
    shape = (num_classes * per_class, d)
    raw = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    limits: dict[str, Any] = {"max_iter": 600, "tolerance_grad": 1e-13, "tolerance_change": 1e-16}
    optimiser = torch.optim.LBFGS([raw], **limits, history_size=20, line_search_fn="strong_wolfe")
    reduction: list[float] = []

    def loss() -> Tensor:
        optimiser.zero_grad()
        Z = torch.nn.functional.normalize(raw)
        value = rate_reduction(Z, labels, num_classes=num_classes, eps_sq=eps_sq).reduction
        (-value).backward()  # type: ignore[no-untyped-call]
        reduction.append(float(value.detach()))
        return -value.detach()

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    loss()  # where it ended
    Z = torch.nn.functional.normalize(raw.detach())
    parts = [torch.linalg.svd(part, full_matrices=False) for part in torch.split(Z, per_class)]
    dimensions = [int((S / S[0] > 1e-3).sum()) for _, S, _ in parts]
    bases = [V[:q] for (_, _, V), q in zip(parts, dimensions, strict=True)]
    overlaps = [
        float((U @ V.T).square().sum()) / min(len(U), len(V)) for U, V in combinations(bases, 2)
    ]
    best, here = largest_reduction(d, num_classes, eps_sq), reduction_at(dimensions, d, eps_sq)
    values, coherence = [S for _, S, _ in parts], sum(overlaps) / len(overlaps)
    return Ascent(Z, reduction, best, here, dimensions, values, coherence)


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


def plot(found: Sequence[Ascent], path: Path) -> None:
    """Draw the ascent of each start, and singular values and cosines of the first."""
    from experiments.report import canvas

    figure, ((left, middle, right),) = canvas.panels(1, 3, 4, 3.2)
    reached = [", ".join(map(str, sorted(one.dimensions))) for one in found]
    kinds = list(dict.fromkeys(reached))
    for i, one in enumerate(found):
        gap = [max(1 - value / one.best, 1e-16) for value in one.reduction]
        colour = canvas.COLOURS[kinds.index(reached[i]) % len(canvas.COLOURS)]
        label = None if reached[i] in reached[:i] else reached[i]
        left.semilogy(gap, color=colour, label=label)
    look = {"fontsize": 9, "frameon": False, "ncols": 2}  # beneath, for lines go everywhere
    beneath = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2)}
    left.legend(title="dimensions reached", **look, **beneath)
    left.set(xlabel="evaluations of ΔR", ylabel="1 − ΔR / its maximum", title="Ascent")
    first = found[0]
    names = [f"class {k}: {q} dimensions" for k, q in enumerate(first.dimensions)]
    spectra = [each.tolist() for each in first.singular_values]
    canvas.spectra(middle, dict(zip(names, spectra, strict=True)))
    middle.set_title("Spectra, first start")
    cosines = (first.features @ first.features.T).abs().numpy()
    classes = [len(names) * i // len(cosines) for i in range(len(cosines))]
    image = canvas.cosines(right, cosines, classes)
    figure.colorbar(image, ax=right, label="|cosine|")
    right.set(xlabel="sample, by class", ylabel="sample, by class", title="Angles, first start")
    canvas.save(figure, path)
