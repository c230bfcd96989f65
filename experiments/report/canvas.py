"""What all figures share: colours, names, how a panel is dressed and a file is written."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.report.table import short
from mcr2.records import write_bytes

#: Okabe & Ito's colour-blind safe palette.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

def label(text: str, most: int = 40) -> str:
    """Return anybody's text as matplotlib shows it: no mathematics, no name that legends drop."""
    text = short(text, most).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def pyplot() -> Any:
    """Return matplotlib's pyplot, drawing to files."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def panels(rows: int, columns: int, width: float, height: float, **how: Any) -> tuple[Any, Any]:
    """Return a figure and its axes ``(rows, columns)``, a panel ``width`` by ``height`` inches."""
    figure, axes = pyplot().subplots(
        rows,
        columns,
        figsize=(max(width * columns, 6.4), height * rows + 0.5),
        layout="constrained",
        squeeze=False,
        **how,
    )
    for one in axes.flat:
        one.grid(alpha=0.25)
    return figure, axes


def say(axes: Any, text: str) -> None:
    """Write into an empty panel why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.4")


def log_y(axes: Any) -> None:
    """Make the vertical axis logarithmic where anything on it is positive."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    drawn = [v for line in axes.lines for v in line.get_ydata() if v > 0]
    if not drawn:
        return
    axes.set_yscale("log")
    low, high = min(drawn), max(drawn)
    if high < 30 * low:  # hardly a power of ten in sight: name what lies between
        axes.set_ylim(low / 1.3, high * 1.3)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    else:
        axes.yaxis.set_minor_locator(NullLocator())


def limits(axes: Any, low: float, high: float) -> None:
    """Show shares from ``low`` to ``high``; a wide interval is cut, not the axis stretched."""
    axes.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, atomically, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    pyplot().close(figure)
    write_bytes(path, buffer.getvalue())
