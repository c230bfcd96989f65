"""Records -> tables and figures: text for a terminal, Markdown, CSV, JSON, PNG."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
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
LINES: dict[str, Any] = {
    "last": "-",
    "noisy_validation": "--",
    "patience": "-.",
    "clean_validation": (0, (5, 1, 1, 1, 1, 1)),
    "oracle": ":",
}

#: Published figures: method -> ratio -> accuracy.
Reference = Mapping[str, Mapping[float, float]]

TITLES = {
    "fit_noisy": "training labels fitted",
    "fit_corrupted": "wrong labels fitted",
    "recovered": "wrong labels recovered",
}


@dataclass(frozen=True)
class Table:
    """A titled table of text: a header and rows of equal length; ``left`` columns are words."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 3

    def text(self) -> str:
        """Return the table in columns, numbers to the right."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            pairs = zip(cells, widths, strict=True)
            shown = [c.ljust(w) if i < self.left else c.rjust(w) for i, (c, w) in enumerate(pairs)]
            return "  ".join(shown).rstrip()

        rule = "-" * len(line(self.header))
        return "\n".join([self.title, line(self.header), rule, *map(line, self.rows)])

    def markdown(self) -> str:
        """Return the table in Markdown."""
        marks = [":--"] * self.left + ["--:"] * (len(self.header) - self.left)
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


def _matching(cells: Sequence[Mapping[str, Any]], **values: Any) -> Callable[[str], Spread | None]:
    """Return the spread over seeds of a measure, among the rows that have these values."""
    rows = [c for c in cells if all(c[name] == value for name, value in values.items())]
    return lambda measure: spread([r[measure] for r in rows if r[measure] is not None])


def ablation_table(
    cells: Sequence[Mapping[str, Any]], fields: Sequence[str], method: str, dataset: str
) -> Table:
    """Return an ablation: settings and ratios as rows, accuracy and memorization as columns.

    Args:
        cells: rows of the ablation.
        fields: names of the varied fields.
        method: what is ablated.
        dataset: on what.
    """
    rules = [rule for rule in SELECTIONS if any(c["selection"] == rule for c in cells)]
    rows = []
    for values in dict.fromkeys(tuple(c[f] for f in (*fields, "ratio")) for c in cells):
        setting = dict(zip((*fields, "ratio"), values, strict=True))
        accuracies = [_matching(cells, **setting, selection=r)("test_accuracy") for r in rules]
        last = _matching(cells, **setting, selection="last")
        spreads = [*accuracies, *(last(measure) for measure in TITLES)]
        steps = {
            c["steps"]
            for c in cells
            if c["status"] == "finished" and all(c[f] == v for f, v in setting.items())
        }
        shown = (str(v) if v else "-" for v in spreads)
        rows.append((*map(_value, values), ", ".join(map(str, sorted(steps))) or "-", *shown))
    seeds = len({c["seed"] for c in cells})
    across = "one seed" if seeds == 1 else f"mean ± standard deviation over {seeds} seeds"
    readouts = ", ".join(sorted({c["readout"].partition("@")[0] for c in cells if c["readout"]}))
    return Table(
        f"{method} on {dataset}: test accuracy by {readouts or 'its readout'} at the last and the "
        f"selected epochs, memorization at the last ({across})",
        (*fields, "ratio", "steps", *rules, *TITLES),
        tuple(rows),
    )


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_value, value)) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


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
    tables: Sequence[Table],
    facts: Mapping[str, Any],
    notes: Sequence[str],
) -> None:
    """Write ``table.json``, ``table.csv`` and ``table.md`` into ``out``, atomically.

    ``table.json`` is an object with the ``facts``, ``cells`` and ``notes``; ``table.csv`` has a
    line a cell; ``table.md`` has the tables and the notes.
    """
    write_json(out / "table.json", {**facts, "cells": list(cells), "notes": list(notes)})
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(cells[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
    write_text(out / "table.csv", buffer.getvalue())
    parts = [table.markdown() for table in tables]
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    write_text(out / "table.md", "\n\n".join(parts) + "\n")


def write_figures(out: Path, cells: Sequence[Mapping[str, Any]], dataset: str) -> None:
    """Draw ``accuracy.png`` and ``memorization.png`` into ``out``."""
    plt = _pyplot()
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

    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for method in methods:
        for rule in SELECTIONS:
            draw(axes, "test_accuracy", method, rule, f"{method}, {rule.replace('_', ' ')}")
    axes.set(xlabel="share of training labels redrawn", ylabel="test accuracy", title=dataset)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9, frameon=False)
    _save(figure, out / "accuracy.png")

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
    _save(figure, out / "memorization.png")


#: What axes are called.
AXES = {
    "eps_sq": "squared distortion ε²",
    "gamma1": "γ₁",
    "gamma2": "γ₂",
    "batch_size": "batch size asked for (samples)",
    "feature_dim": "feature dimension d",
    "n_components": "components of a class in the readout",
    "lr": "peak learning rate",
}


def write_ablation_figures(
    out: Path, cells: Sequence[Mapping[str, Any]], fields: Sequence[str], title: str
) -> None:
    """Draw a figure for each varied field into ``out``: accuracy, and what became of wrong labels.

    The other varied fields, and the ratio where there are several, are lines of their own; where
    that would be more lines than colours, the figure averages over them and says so.
    """
    for name in fields:
        others = [f for f in (*fields, "ratio") if f != name and len({c[f] for c in cells}) > 1]
        groups = list(dict.fromkeys(tuple(c[f] for f in others) for c in cells))
        averaged = len(groups) > len(COLOURS)
        lines = {
            ", ".join(f"{f}={_value(v)}" for f, v in zip(others, group, strict=True)): [
                c for c in cells if tuple(c[f] for f in others) == group
            ]
            for group in groups
        }
        if averaged:
            lines = {f"mean over {', '.join(others)}": list(cells)}
        _draw_ablation(out / f"{name}.png", name, lines, title)


def _draw_ablation(
    path: Path, name: str, lines: Mapping[str, Sequence[Mapping[str, Any]]], title: str
) -> None:
    plt = _pyplot()
    all_cells = [cell for cells in lines.values() for cell in cells]
    values = list(dict.fromkeys(cell[name] for cell in all_cells))
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if numbers:
        values.sort()
    at = values if numbers else list(range(len(values)))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.6), layout="constrained")

    logarithmic = numbers and min(at) > 0 and max(at) >= 8 * min(at)
    reach = max(at) / min(at) if logarithmic else max(at) - min(at)

    def aside(x: float, place: int) -> float:
        """Move a point by a hundredth of the axis a place, that bars do not hide each other."""
        return x * reach ** (place / 100) if logarithmic else x + reach * place / 100

    def draw(axes: Any, measure: str, cells: Any, rule: str, place: int = 0, **look: Any) -> None:
        spreads = [_matching(cells, **{name: v}, selection=rule)(measure) for v in values]
        points = [(aside(x, place), s) for x, s in zip(at, spreads, strict=True) if s]
        error = [s.std or 0.0 for _, s in points]
        axes.errorbar(
            [x for x, _ in points],
            [s.mean for _, s in points],
            error if any(error) else None,
            marker="o",
            markersize=4,
            elinewidth=1,
            capsize=3,
            **look,
        )

    alone = len(lines) == 1
    rules = [r for r in SELECTIONS if any(c["selection"] == r for c in all_cells)]
    for place, ((label, cells), colour) in enumerate(zip(lines.items(), COLOURS, strict=False)):
        for number, rule in enumerate(rules if alone else rules[:1]):
            called = rule.replace("_", " ")
            called = f"{label}: {called}" if label and not alone else called
            draw(
                left,
                "test_accuracy",
                cells,
                rule,
                place + number,
                color=colour,
                linestyle=LINES[rule],
                label=called,
            )
        for measure, line in (("fit_corrupted", "-"), ("recovered", "--")):
            called = TITLES[measure].rpartition(" ")[2]
            draw(right, measure, cells, "last", place, color=colour, linestyle=line, label=called)
    if alone and "" not in lines:
        title = f"{title}, {next(iter(lines))}"
    figure.suptitle(title, fontsize=11)
    left.set(ylabel="test accuracy", title="accuracy")
    right.set(ylabel="share of the wrong labels", title="wrong labels at the last epoch")
    right.set_ylim(-0.03, 1.03)
    left.legend(fontsize=9, frameon=False)
    handles, labels = right.get_legend_handles_labels()
    right.legend(handles[:2], labels[:2], fontsize=9, frameon=False)
    for axes in (left, right):
        if logarithmic:
            axes.set_xscale("log")
        axes.set_xticks(at, [_value(v) for v in values])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(AXES.get(name, name))
        axes.grid(alpha=0.3)
    _save(figure, path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    _pyplot().close(figure)
    write_bytes(path, buffer.getvalue())
