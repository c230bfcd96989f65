"""What ReduNet makes of Gaussian clusters on the circle and on the sphere: orthogonal directions.

    python -m experiments.studies.gaussians docs/figures/redunet_gaussians.png

Two classes in the plane and three in space, 500 training samples each about directions that are
far from orthogonal, and as many test samples, as in Figure 2 of Chan et al. (2022): ε² = 0.1,
η = 0.5, λ = 500. Nine seconds on one core, for 2,000 layers each.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from experiments.report.canvas import COLOURS, pyplot, save
from mcr2.redunet import LayerRates, ReduNet

#: Directions of the class means, by dimension.
MEANS = {
    2: ((1.0, 0.0), (0.7, 0.7)),
    3: ((1.0, 0.2, 0.2), (0.2, 1.0, 0.2), (0.6, 0.5, 0.7)),
}


@dataclass(frozen=True)
class Clusters:
    """Unit vectors about as many directions as they have dimensions, before and after ReduNet.

    Attributes:
        labels: of training samples, ``(m,)``; of test samples the same.
        train, test: before the first layer, ``(m, d)``.
        train_features, test_features: after the last.
        history: rates of the training samples by layer.
        cosines: mean |cosine| between samples of different classes: of the training samples before
            and after, and of the test samples after.
        recovered: share of the test samples nearest to the training mean of their own class, by
            |cosine|.
    """

    labels: Tensor
    train: Tensor
    test: Tensor
    train_features: Tensor
    test_features: Tensor
    history: tuple[LayerRates, ...]
    cosines: tuple[float, float, float]
    recovered: float


def construct(
    d: int, *, per_class: int = 500, spread: float = 0.1, layers: int = 2000, seed: int = 0
) -> Clusters:
    """Draw clusters about :data:`MEANS` in d dimensions, and pass them through a ReduNet of theirs.

    Args:
        d: 2 or 3, also the number of classes.
        per_class: training samples of each class, and test samples.
        spread: standard deviation of every coordinate about the mean.
        layers: of the network.
        seed: of the samples.

    Example:
        >>> found = construct(2, per_class=50, layers=200)
        >>> found.cosines[0] > 0.6, found.cosines[1] < 0.05
        (True, True)
    """
    generator = torch.Generator().manual_seed(seed)
    means = normalize(torch.tensor(MEANS[d], dtype=torch.float64))
    labels = torch.arange(d).repeat_interleave(per_class)

    def draw() -> Tensor:
        noise = torch.randn(len(labels), d, generator=generator, dtype=torch.float64)
        return normalize(means[labels] + spread * noise)

    train, test = draw(), draw()
    net = ReduNet(layers=layers, eta=0.5, eps_sq=0.1, lam=500).fit(train, labels)
    Z, U = net(train), net(test)
    centres = torch.stack([normalize(Z[labels == k].mean(0), dim=0) for k in range(d)])
    right = (U @ centres.T).abs().argmax(1) == labels
    cosines = tuple(between_classes(X, labels) for X in (train, Z, U))
    return Clusters(labels, train, test, Z, U, net.history, cosines, float(right.double().mean()))


def between_classes(Z: Tensor, labels: Tensor) -> float:
    """Return the mean |cosine| between unit vectors of different classes.

    Example:
        >>> between_classes(torch.eye(2), torch.tensor([0, 1]))
        0.0
    """
    return float((Z @ Z.T).abs()[labels[:, None] != labels].mean())


def plot(found: Sequence[Clusters], path: Path) -> None:
    """Draw test samples before and after, and the rates by layer, a row a number of dimensions."""
    figure = pyplot().figure(figsize=(11, 3.7 * len(found)), layout="constrained")
    for row, result in enumerate(found):
        d = result.train.shape[1]
        points = (result.test, result.test_features)
        titles = ("test samples", f"after {len(result.history) - 1} layers")
        for column, (Z, title) in enumerate(zip(points, titles, strict=True)):
            where = (len(found), 3, 3 * row + column + 1)
            axes: Any = figure.add_subplot(*where, projection="3d" if d == 3 else None)
            _sphere(axes, d)
            for k in range(d):
                own = Z[result.labels == k]
                axes.scatter(*own.T, s=8, color=COLOURS[k], alpha=0.5, linewidths=0)
                axes.plot(
                    *torch.stack([torch.zeros(d), own.mean(0)]).T,
                    color=COLOURS[k],
                    linewidth=2,
                    label=f"class {k}",
                )
            axes.set_title(title)
            if column == 0:
                axes.legend(fontsize=8, frameon=False, loc="lower left")
        axes = figure.add_subplot(len(found), 3, 3 * row + 3)
        layers = [1 + rates.layers for rates in result.history]
        for name, label, colour in (
            ("rate", "R", COLOURS[0]),
            ("compressed_rate", "R_c", COLOURS[1]),
            ("reduction", "ΔR", COLOURS[2]),
        ):
            values = [getattr(rates, name) for rates in result.history]
            axes.plot(layers, values, color=colour)
            axes.annotate(
                label,
                (layers[-1], values[-1]),
                xytext=(4, 0),
                textcoords="offset points",
                color=colour,
                va="bottom" if name == "reduction" else "center",
            )
        axes.set(xscale="log", xlabel="layer (the first has index 1)", ylabel="nats")
        axes.set_title("rates of the training samples")
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def _sphere(axes: Any, d: int) -> None:
    angle = torch.linspace(0, 2 * torch.pi, 200)
    c, s, zero = angle.cos(), angle.sin(), torch.zeros(200)
    circles = [(c, s)] if d == 2 else [(c, s, zero), (c, zero, s), (zero, c, s)]
    for circle in circles:
        axes.plot(*circle, color="0.8", linewidth=0.8)
    if d == 2:
        axes.set_aspect("equal")
        axes.spines[:].set_visible(False)
        axes.set(xticks=[], yticks=[])
    else:
        axes.set_box_aspect((1, 1, 1))
        axes.view_init(elev=25, azim=35)
        axes.set(xticks=[], yticks=[], zticks=[])


def main(arguments: Sequence[str]) -> None:
    """Construct in two and three dimensions, print what came of it, draw it to the path given."""
    found = [construct(d) for d in MEANS]
    for d, result in zip(MEANS, found, strict=True):
        before, after, test = result.cosines
        first, last = result.history[0], result.history[-1]
        print(
            f"{d} classes in {d} dimensions: mean |cosine| between classes {before:.3f} -> "
            f"{after:.4f} (test {test:.4f}), ΔR {first.reduction:.3f} -> {last.reduction:.3f}, "
            f"test samples nearest to their class {result.recovered:.3f}"
        )
    if arguments:
        plot(found, Path(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
