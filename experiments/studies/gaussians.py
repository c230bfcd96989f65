"""What ReduNet makes of Gaussian clusters on the circle and on the sphere: orthogonal directions.

    mcr2 study gaussians

Two classes in the plane and three in space, 500 training samples each about directions that are
far from orthogonal, and as many test samples, as in Figure 2 of Chan et al. (2022): ε² = 0.1,
η = 0.5, λ = 500. Nine seconds on one core, for 2,000 layers each. Each class should end as one
direction, orthogonal to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.studies.small import Row, SmallStudy

if TYPE_CHECKING:
    from torch import Tensor

    from mcr2.redunet import LayerRates

#: Directions of the class means, by dimension.
MEANS = {
    2: ((1.0, 0.0), (0.7, 0.7)),
    3: ((1.0, 0.2, 0.2), (0.2, 1.0, 0.2), (0.6, 0.5, 0.7)),
}


@dataclass(frozen=True)
class Gaussians(SmallStudy):
    """Gaussian clusters on circle and sphere, before and after a ReduNet of theirs."""

    name: ClassVar[str] = "gaussians"
    title: ClassVar[str] = (
        "Mean |cosine| between classes, ΔR, test samples nearest to their own class"
    )

    layers: int = 2000
    """Of each network."""

    def _check(self) -> None:
        from mcr2 import checks

        checks.integer("layers", self.layers, 1)

    def _measure(self, figure: Path) -> list[Row]:
        found = {
            (s, d): construct(d, layers=self.layers, seed=s) for s in self.seeds for d in MEANS
        }
        plot([found[self.seeds[0], d] for d in MEANS], figure)
        return [{"dimensions": d, "seed": s, **found[s, d].figures} for s, d in found]


@dataclass(frozen=True)
class Clusters:
    """Test samples ``(m, d)`` before and after ReduNet, and rates of as many training samples.

    ``figures``: mean |cosine| between classes, ΔR, and the fraction of the test samples that are
    nearest, by |cosine|, to the training mean of their own class.
    """

    labels: Tensor
    test: Tensor
    test_features: Tensor
    history: tuple[LayerRates, ...]
    figures: dict[str, float]


def construct(
    d: int, *, per_class: int = 500, spread: float = 0.1, layers: int = 2000, seed: int = 0
) -> Clusters:
    """Draw clusters about :data:`MEANS` in d dimensions, and pass them through a ReduNet of theirs.

    ``spread`` is the standard deviation of every coordinate about the mean.

    Example:
        >>> found = construct(2, per_class=50, layers=200).figures
        >>> found["cosine_before"] > 0.6, found["cosine_after"] < 0.05
        (True, True)
    """
    import torch
    from torch.nn.functional import normalize

    from mcr2.redunet import ReduNet

    generator = torch.Generator().manual_seed(seed)
    means = normalize(torch.tensor(MEANS[d], dtype=torch.float64))
    labels = torch.arange(d).repeat_interleave(per_class)

    def draw() -> Tensor:
        noise = torch.randn(len(labels), d, generator=generator, dtype=torch.float64)
        return normalize(means[labels] + spread * noise)

    def between_classes(Z: Tensor) -> float:
        return float((Z @ Z.T).abs()[labels[:, None] != labels].mean())

    train, test = draw(), draw()
    net = ReduNet(layers=layers, eta=0.5, eps_sq=0.1, lam=500).fit(train, labels)
    Z, U = net(train), net(test)
    centres = torch.stack([normalize(Z[labels == k].mean(0), dim=0) for k in range(d)])
    figures = {
        "cosine_before": between_classes(train),
        "cosine_after": between_classes(Z),
        "cosine_test": between_classes(U),
        "reduction_before": net.history[0].reduction,
        "reduction_after": net.history[-1].reduction,
        "recovered": float(((U @ centres.T).abs().argmax(1) == labels).double().mean()),
    }
    return Clusters(labels, test, U, net.history, figures)


def plot(found: Sequence[Clusters], path: Path) -> None:
    """Draw test samples before and after, and the rates by layer, a row a number of dimensions."""
    from experiments.report import canvas

    figure = canvas.blank(figsize=(11, 3.7 * len(found)))
    named: dict[str, Any] = {}
    for row, result in enumerate(found):
        d = result.test.shape[1]
        after = f"after {len(result.history) - 1} layers"
        shown = {"test samples": result.test, after: result.test_features}
        for column, (title, Z) in enumerate(shown.items(), 1):
            flat = None if d == 2 else "3d"
            axes: Any = figure.add_subplot(len(found), 3, 3 * row + column, projection=flat)
            axes.set(title=title, **{f"{axis}ticks": [] for axis in "xyz"[:d]})
            axes.set_aspect("equal")
            for k, colour in zip(range(d), canvas.COLOURS, strict=False):
                own = Z[result.labels == k]
                axes.scatter(*own.T, s=8, color=colour, alpha=0.5, linewidths=0)
                ends = [(0.0, float(x)) for x in own.mean(0)]
                axes.plot(*ends, color=colour, linewidth=2, label=f"class {k}")
            named |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        axes = figure.add_subplot(len(found), 3, 3 * row + 3)
        canvas.rates(axes, result.history, first=1)
        axes.set(title="rates by layer", xscale="log", xlabel="layer (the first has index 1)")
    look = {"fontsize": 10, "frameon": False, "ncols": len(named)}
    figure.legend(named.values(), named, loc="outside upper center", **look)
    canvas.save(figure, path)
