"""The figures of `mcr2.md` and `collapse.md`: `python docs/explain.py` writes them, in a second."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.patches import Ellipse

from experiments.report.canvas import COLOURS, log_y, panels, save
from mcr2.metrics.collapse import neural_collapse
from mcr2.rates import coding_rate, rate_reduction

FIGURES = Path(__file__).parent / "figures"


def fan(angle, count=200, spread=0.12, seed=0):
    """Return two classes of unit vectors, each about a line, the lines an angle apart."""
    noise = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * spread
    labels = torch.arange(count) % 2
    theta = noise + labels * angle + torch.pi * (torch.arange(count) // 2 % 2)
    return torch.stack([theta.cos(), theta.sin()], dim=1), labels


def clusters(spread, per_class=40, seed=0):
    """Return three classes about the corners of a simplex, which is a triangle in the plane."""
    corners = torch.tensor([0, 2 * torch.pi / 3, 4 * torch.pi / 3]) + torch.pi / 2
    means = torch.stack([corners.cos(), corners.sin()], dim=1)
    noise = torch.randn(3 * per_class, 2, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(3 * per_class) % 3
    return means[labels] + spread * noise, labels


def scatter(panel, features, labels, title, reach):
    """Show features of the plane as far as ``reach``, a colour a class."""
    panel.scatter(*features.T, s=8, c=[COLOURS[k] for k in labels.tolist()], linewidths=0)
    panel.axhline(0, color="0.8", lw=0.8, zorder=0)
    panel.axvline(0, color="0.8", lw=0.8, zorder=0)
    panel.set(aspect="equal", xticks=[], yticks=[], xlim=(-reach, reach), ylim=(-reach, reach))
    panel.set_title(title, fontsize=11)
    panel.grid(False)


def draw_rate():
    """Three clouds and the ellipses that their rates are the logarithms of."""
    figure, axes = panels(1, 3, 3.2, 3)
    noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    noise = noise / noise.square().mean(dim=0).sqrt()
    shapes = {"a line": (1.4, 0.05), "an ellipse": (1.3, 0.55), "a disc": (1.0, 1.0)}
    for panel, (name, scale) in zip(axes[0], shapes.items(), strict=True):
        Z = noise * torch.tensor(scale)
        title = f"{name}: R = {float(coding_rate(Z)):.2f} nats"
        scatter(panel, Z, torch.zeros(len(Z), dtype=torch.int64), title, 4)
        values, vectors = np.linalg.eigh((Z.T @ Z / len(Z)).numpy())
        angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
        width, height = 4 * np.sqrt(values[::-1])
        panel.add_patch(Ellipse((0, 0), width, height, angle=angle, fill=False, lw=1.5))
    return figure


def draw_reduction():
    """Two classes of unit vectors as their lines open, and their rates against the angle."""
    figure, axes = panels(1, 3, 3.2, 3)
    for panel, degrees in zip(axes[0], (15, 90), strict=False):
        features, labels = fan(np.radians(degrees))
        rates = rate_reduction(features, labels)
        title = f"{degrees}° apart: ΔR = {float(rates.reduction):.2f}"
        scatter(panel, features, labels, title, 1.2)
    degrees = np.arange(0, 181, 5)
    found = [rate_reduction(*fan(np.radians(each))) for each in degrees]
    for name, field, colour in (
        ("R", "rate", COLOURS[0]),
        ("R_c", "compressed_rate", COLOURS[1]),
        ("ΔR", "reduction", COLOURS[2]),
    ):
        values = [float(getattr(rates, field)) for rates in found]
        axes[0, 2].plot(degrees, values, color=colour, label=name)
    axes[0, 2].set(xlabel="angle between the classes (degrees)", ylabel="nats", ylim=(0, None))
    axes[0, 2].set_xticks([0, 45, 90, 135, 180])
    axes[0, 2].legend(frameon=False, fontsize=9, loc="center right")
    return figure


def draw_collapse():
    """Three classes that collapse onto a simplex, and the measures that see it."""
    figure, axes = panels(1, 3, 3.2, 3)
    for panel, spread in zip(axes[0], (0.5, 0.1), strict=False):
        features, labels = clusters(spread)
        nc = neural_collapse(features, labels, num_classes=3)
        scatter(panel, features, labels, f"spread {spread:g}: NC1 = {nc.nc1:.3f}", 2)
    spreads = np.geomspace(1, 0.01, 25)
    found = [neural_collapse(*clusters(each), num_classes=3) for each in spreads]
    for name, colour in zip(("nc1", "cdnv", "nc2_etf"), COLOURS, strict=False):
        axes[0, 2].plot(spreads, [getattr(nc, name) for nc in found], color=colour, label=name)
    axes[0, 2].set(xscale="log", xlabel="spread of a class about its mean")
    axes[0, 2].invert_xaxis()
    log_y(axes[0, 2])
    axes[0, 2].legend(frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    save(draw_rate(), FIGURES / "explain_rate.png")
    save(draw_reduction(), FIGURES / "explain_reduction.png")
    save(draw_collapse(), FIGURES / "explain_collapse.png")
