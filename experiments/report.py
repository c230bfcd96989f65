"""Records -> tables and figures: text for a terminal, Markdown, CSV, JSON, PNG."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mcr2.data import Availability
from mcr2.evaluation import measure_key
from mcr2.records import Record, write_bytes, write_json, write_text
from mcr2.selection import SELECTIONS

#: One colour a method in every figure: Okabe & Ito's colour-blind safe palette.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = {"last": "-", "noisy_validation": "--", "oracle": ":"}

#: Published figures: method -> ratio -> accuracy.
Reference = Mapping[str, Mapping[float, float]]

TITLES = {
    "fit_noisy": "training labels fitted",
    "fit_corrupted": "wrong labels fitted",
    "recovered": "wrong labels recovered",
}


@dataclass(frozen=True)
class Table:
    """A titled table of text: a header and rows of equal length."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """Return the table in columns, numbers to the right."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            left = [c.ljust(w) for c, w in zip(cells[:3], widths[:3], strict=True)]
            right = [c.rjust(w) for c, w in zip(cells[3:], widths[3:], strict=True)]
            return "  ".join(left + right).rstrip()

        rule = "-" * len(line(self.header))
        return "\n".join([self.title, line(self.header), rule, *map(line, self.rows)])

    def markdown(self) -> str:
        """Return the table in Markdown."""
        marks = [":--"] * 3 + ["--:"] * (len(self.header) - 3)
        rows = [self.header, tuple(marks), *self.rows]
        return f"**{self.title}**\n\n" + "\n".join("| " + " | ".join(r) + " |" for r in rows)


@dataclass(frozen=True)
class Spread:
    """A mean over seeds and its sample standard deviation (None for a single seed)."""

    mean: float
    std: float | None
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.std is None else f" ± {self.std:.3f}")


def spread(values: Sequence[float]) -> Spread | None:
    """Return the mean and the sample standard deviation (n - 1), or None of nothing.

    Example:
        >>> str(spread([0.8, 0.9])), str(spread([0.8])), spread([])
        ('0.850 ± 0.071', '0.800', None)
    """
    if not values:
        return None
    return Spread(mean(values), stdev(values) if len(values) > 1 else None, len(values))


def over_seeds(
    cells: Sequence[Mapping[str, Any]], measure: str, method: str, selection: str, ratio: float
) -> Spread | None:
    """Return one entry of the table: a measure's spread over the seeds that have it."""
    return spread(
        [
            cell[measure]
            for cell in cells
            if (cell["method"], cell["selection"], cell["ratio"]) == (method, selection, ratio)
            and cell[measure] is not None
        ]
    )


def _ratios(cells: Sequence[Mapping[str, Any]]) -> list[float]:
    return sorted({cell["ratio"] for cell in cells})


def _methods(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(cell["method"] for cell in cells))


def _readout(cells: Sequence[Mapping[str, Any]], method: str) -> str:
    names = {c["readout"] for c in cells if c["method"] == method and c["readout"]}
    return ", ".join(sorted(names)) or "-"


def accuracy_table(cells: Sequence[Mapping[str, Any]], dataset: str, reference: Reference) -> Table:
    """Return test accuracy: methods x selections as rows, ratios as columns.

    The ``reference`` figures, by method and ratio, stand beneath as the paper's rows.
    """
    ratios = _ratios(cells)
    seeds = len({cell["seed"] for cell in cells})
    rows = []
    for method in _methods(cells):
        for rule in SELECTIONS:
            values = [over_seeds(cells, "test_accuracy", method, rule, r) for r in ratios]
            if any(values):
                shown = (str(v) if v else "-" for v in values)
                rows.append((method, rule, _readout(cells, method), *shown))
    for method, figures in reference.items():
        shown = (f"{figures[r]:.3f}" if r in figures else "-" for r in ratios)
        rows.append((method, "paper: last", "CIFAR-10, ResNet-18", *shown))
    across = "one seed" if seeds == 1 else f"mean ± standard deviation over {seeds} seeds"
    return Table(
        f"Test accuracy on {dataset} by share of training labels redrawn ({across})",
        ("method", "selection", "readout", *(f"{r:g}" for r in ratios)),
        tuple(rows),
    )


def memorization_table(cells: Sequence[Mapping[str, Any]]) -> Table:
    """Return what the networks of the last epoch made of their training labels."""
    ratios = _ratios(cells)
    rows = []
    for method in _methods(cells):
        for measure in TITLES:
            values = [over_seeds(cells, measure, method, "last", r) for r in ratios]
            shown = (str(v) if v else "-" for v in values)
            rows.append((method, measure, _readout(cells, method), *shown))
    return Table(
        "Memorization at the last epoch (shares: fit_noisy of all training labels; fit_corrupted "
        "and recovered of the wrong ones)",
        ("method", "measure", "readout", *(f"{r:g}" for r in ratios)),
        tuple(rows),
    )


def run_table(record: Record) -> Table:
    """Return what one run reads by its own readout, a row a selection rule."""
    rows = []
    for rule, chosen in record.selections.items():
        names = [
            measure_key("accuracy", split="test", labels="clean", readout=record.readout),
            *(
                measure_key(m, split="train", labels="noisy", readout=record.readout)
                for m in TITLES
            ),
        ]
        shown = (_shown(chosen["measures"][name]) for name in names)
        rows.append((rule, record.readout, str(chosen["epoch"]), *shown))
    spec = record.spec
    return Table(
        f"{spec['method']} on {record.data['name']} at ratio {spec['ratio']:g}, seed "
        f"{spec['seed']}: {record.epochs} epochs, {record.steps} steps, "
        f"{record.wall_seconds:.0f} s",
        ("selection", "readout", "epoch", "test_accuracy", *TITLES),
        tuple(rows),
    )


def measures_table(
    record: Record, readings: Mapping[str, Mapping[str, Any]], contains: str
) -> Table:
    """Return every measure of a run whose key contains a text: read again beside the record's."""
    rows = []
    for rule, measures in readings.items():
        for key, value in measures.items():
            if contains in key:
                kept = record.selections[rule]["measures"].get(key)
                rows.append(
                    (rule, key, "same" if kept == value else "differs", _shown(value), _shown(kept))
                )
    return Table(
        f"{record.spec['method']} at ratio {record.spec['ratio']:g}, seed "
        f"{record.spec['seed']}: read again from its weights",
        ("selection", "measure", "", "now", "record"),
        tuple(rows),
    )


def datasets_table(rows: Sequence[Availability]) -> Table:
    """Return the data sets that are there, and where the missing ones were looked for."""
    return Table(
        "Data sets (or give the path of an .npz file or an image folder)",
        ("name", "what", "where"),
        tuple(
            (r.name, r.description, r.found or f"missing; looked in {', '.join(r.looked)}")
            for r in rows
        ),
    )


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def write_tables(
    out: Path,
    cells: Sequence[Mapping[str, Any]],
    *,
    dataset: str,
    reference: Reference,
    recipe: str,
    environment: Mapping[str, Any],
    notes: Sequence[str],
) -> None:
    """Write ``table.json``, ``table.csv`` and ``table.md`` into ``out``, atomically.

    ``table.json`` is an object with ``dataset``, ``recipe``, ``environment``, ``cells`` and
    ``notes``; ``table.csv`` has a line a cell; ``table.md`` has both tables and the notes.
    """
    write_json(
        out / "table.json",
        {
            "dataset": dataset,
            "recipe": recipe,
            "environment": environment,
            "cells": list(cells),
            "notes": list(notes),
        },
    )
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(cells[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
    write_text(out / "table.csv", buffer.getvalue())
    parts = [
        accuracy_table(cells, dataset, reference).markdown(),
        memorization_table(cells).markdown(),
    ]
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    write_text(out / "table.md", "\n\n".join(parts) + "\n")


def write_figures(out: Path, cells: Sequence[Mapping[str, Any]], dataset: str) -> None:
    """Draw ``accuracy.png`` and ``memorization.png`` into ``out``."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    ratios, methods = _ratios(cells), _methods(cells)
    colours = {m: COLOURS[i % len(COLOURS)] for i, m in enumerate(methods)}

    def draw(axes: Any, measure: str, method: str, rule: str, label: str) -> None:
        points = [(r, over_seeds(cells, measure, method, rule, r)) for r in ratios]
        x = [r for r, value in points if value]
        y = [value.mean for _, value in points if value]
        error = [value.std or 0.0 for _, value in points if value]
        axes.errorbar(
            x,
            y,
            error if any(error) else None,
            color=colours[method],
            linestyle=LINES[rule],
            marker="o",
            markersize=4,
            capsize=3,
            label=label,
        )

    def finish(figure: Any, name: str) -> None:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        plt.close(figure)
        write_bytes(out / name, buffer.getvalue())

    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for method in methods:
        for rule in SELECTIONS:
            draw(axes, "test_accuracy", method, rule, f"{method}, {rule.replace('_', ' ')}")
    axes.set(xlabel="share of training labels redrawn", ylabel="test accuracy", title=dataset)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9, frameon=False)
    finish(figure, "accuracy.png")

    panels = list(TITLES)
    figure, row = plt.subplots(
        1, len(panels), figsize=(9.6, 3.6), layout="constrained", sharex=True, sharey=True
    )
    for axes, measure in zip(row, panels, strict=True):
        for method in methods:
            draw(axes, measure, method, "last", method)
        axes.set(xlabel="share of training labels redrawn", title=TITLES[measure])
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.3)
    row[0].set_ylabel("share, at the last epoch")
    row[0].legend(fontsize=10, frameon=False)
    finish(figure, "memorization.png")
