"""What all figures share: colours, names, how a panel is dressed and a file is written."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report.table import short
from mcr2.records import write_bytes

#: Okabe & Ito's colour-blind safe palette.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def label(text: str, most: int = 40) -> str:
    """Return anybody's text as matplotlib shows it: no mathematics, no name that legends drop."""
    text = short(text, most).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def blank(**how: Any) -> Any:
    """Return a figure without a panel: not one of pyplot's, whose backend is the user's own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", **how)
    FigureCanvasAgg(figure)
    return figure


def panels(rows: int, columns: int, width: float, height: float, **how: Any) -> tuple[Any, Any]:
    """Return a figure and its axes ``(rows, columns)``, a panel ``width`` by ``height`` inches."""
    figure = blank(figsize=(max(width * columns, 6.4), height * rows + 0.5))
    axes = figure.subplots(rows, columns, squeeze=False, **how)
    for one in axes.flat:
        one.grid(alpha=0.25)
    return figure, axes


def name_lines(panel: Any, size: int = 9, **how: Any) -> None:
    """Give a panel a legend of its own, where any of its lines has a name."""
    if panel.get_legend_handles_labels()[0]:
        panel.legend(fontsize=size, framealpha=0.8, edgecolor="none", **how)


def say(axes: Any, text: str) -> None:
    """Write into an empty panel why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.4")


def log_y(axes: Any, *sharing: Any) -> None:
    """Make the vertical axis logarithmic where anything on it is positive.

    Args:
        axes: the panel whose axis it is.
        sharing: other panels that share it.
    """
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    lines = [line for panel in (axes, *sharing) for line in panel.lines]
    drawn = [v for line in lines for v in line.get_ydata() if v > 0]
    if not drawn:
        return
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    if max(drawn) < 30 * min(drawn):  # hardly a power of ten in sight: name what lies between
        axes.set_ylim(min(drawn) / 1.3, max(drawn) * 1.3)
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(StrMethodFormatter("{x:g}"))


def limits(axes: Any, low: float, high: float) -> None:
    """Show shares from ``low`` to ``high``, with a little room at both ends."""
    axes.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))


def shades(count: int) -> Any:
    """Return so many colours from dark to light, of lines that have an order."""
    import matplotlib

    return matplotlib.colormaps["viridis"](np.linspace(0, 0.9, count))


def mean_and_range(
    panel: Any,
    at: Sequence[float],
    each: Sequence[Sequence[float | None]],
    colour: Any,
    style: str = ".-",
    **how: Any,
) -> None:
    """Draw means of values, a sequence a place, and their range; places without values are left."""
    known = [[value for value in values if value is not None] for values in each]
    found = [(x, values) for x, values in zip(at, known, strict=True) if values]
    places = [x for x, _ in found]
    panel.plot(places, [sum(v) / len(v) for _, v in found], style, color=colour, **how)
    low, high = [min(v) for _, v in found], [max(v) for _, v in found]
    panel.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)


def cosines(panel: Any, matrix: Any, labels: Sequence[int], names: Sequence[str] = ()) -> Any:
    """Show |cosine| ``(m, m)`` of samples sorted by class, 20 classes by name; return the image."""
    panel.grid(False)
    panel.set(xticks=[], yticks=[], box_aspect=1)
    places = {k: [i for i, v in enumerate(labels) if v == k] for k in dict.fromkeys(labels)}
    if len(places) <= 20:
        at = [sum(each) / len(each) for each in places.values()]
        called = [label(names[k], 12) if names else str(k) for k in places]
        panel.set_xticks(at, called, fontsize=7, rotation=90 if names else 0)
        panel.set_yticks(at, called, fontsize=7)
        panel.tick_params(length=0)
    return panel.imshow(matrix, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")


def shares(panel: Any, matrix: Any, names: Sequence[str] = (), rows: Sequence[str] = ()) -> Any:
    """Show shares ``(m, K)``, NaN blank, 20 classes by name; return the image.

    ``names`` are those of columns, and of rows where these have none of their own.
    """
    panel.grid(False)
    panel.set(xticks=[], yticks=[])
    rows = rows or names
    if 0 < len(rows) <= 21:
        panel.set_xticks(range(len(names)), [label(n, 14) for n in names], fontsize=7, rotation=90)
        panel.set_yticks(range(len(rows)), [label(n, 14) for n in rows], fontsize=7)
        panel.tick_params(length=0)
    return panel.imshow(matrix, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")


def rates(panel: Any, history: Sequence[Any], first: int = 0) -> None:
    """Draw R, R_c and ΔR of :class:`mcr2.redunet.LayerRates` by layer, numbered from ``first``."""
    names = {"R": "rate", "R_c": "compressed_rate", "ΔR": "reduction"}
    layers = [each.layers + first for each in history]
    for (name, field), colour in zip(names.items(), COLOURS, strict=False):
        panel.plot(layers, [getattr(each, field) for each in history], color=colour, label=name)
    panel.legend(fontsize=9, frameon=False, ncols=3)
    panel.set(ylim=(0, None), ylabel="rate of the training samples (nats)")


def spectra(panel: Any, values: Mapping[str, Any]) -> None:
    """Draw the singular values of classes by name, of more than there are colours in shades."""
    colours = COLOURS if len(values) <= len(COLOURS) else shades(len(values))
    for (name, each), colour in zip(values.items(), colours, strict=False):
        panel.plot(range(1, len(each) + 1), each, ".-", color=colour, label=label(name))
    if len(values) <= 20:
        panel.legend(fontsize=8, frameon=False)
    panel.set(xlabel="index", ylabel="singular value")


def svg(figure: Any) -> bytes:
    """Return a figure as SVG: the same bytes for the same figure, letters as shapes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "mcr2", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def png(figure: Any) -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    write_bytes(path, png(figure))
