"""Records -> tables: text for a terminal, Markdown, CSV, JSON."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from experiments.report.canvas import short_names
from experiments.report.statistics import (
    Cells,
    Difference,
    Estimate,
    difference,
    over_seeds,
    value_of,
)
from mcr2.data import Availability
from mcr2.evaluation import COMMON_READOUT, measure_key
from mcr2.readouts import READOUTS, parse_readout
from mcr2.records import Record, write_json, write_text
from mcr2.selection import SELECTIONS

#: Published figures: method -> ratio -> accuracy.
Reference = Mapping[str, Mapping[float, float]]

#: Measures of memorization, in the order of tables and panels, and what they count.
MEMORIZATION = {
    "fit_noisy": "training labels fitted",
    "fit_corrupted": "wrong labels fitted",
    "recovered": "wrong labels recovered",
}

#: What accuracies are counted against in training: labels as they were trained on; in test, clean.
LABELS = {"train": "noisy", "test": "clean"}

#: Ends the name of a readout that was fitted on clean labels, a diagnostic.
CLEAN = "+clean"

#: Text on a terminal is folded at this many columns.
WIDTH = 120


@dataclass(frozen=True)
class Scalar:
    """A measure of features as tables show it.

    Attributes:
        measure: its name in the key.
        readout: the linear classifier it is about, or ``-``.
        labelled: whether it depends on labels.
    """

    measure: str
    readout: str = "-"
    labelled: bool = True

    def key(self, split: str) -> str:
        """Return its key: on train by the labels trained on, on test by the clean ones.

        Example:
            >>> Scalar("nc4", "ridge").key("train"), Scalar("dim95", labelled=False).key("test")
            ('features/train/noisy/ridge/nc4', 'features/test/-/-/dim95')
        """
        labels = LABELS[split] if self.labelled else "-"
        return measure_key(self.measure, split=split, labels=labels, readout=self.readout)

    def __str__(self) -> str:
        return self.measure if self.readout == "-" else f"{self.measure} ({self.readout})"


#: Whether features are diverse: measures that a collapse makes small (coherence: large).
DIVERSITY = (
    Scalar("participation_ratio", labelled=False),
    Scalar("dim95", labelled=False),
    Scalar("class_dim95"),
    Scalar("coherence"),
    Scalar("reduction"),
)

#: Whether they are collapsed: all of these go to 0 then.
COLLAPSE = (
    Scalar("nc1"),
    Scalar("cdnv"),
    Scalar("nc2_etf"),
    Scalar("nc3", COMMON_READOUT),
    Scalar("nc3", "head"),
    Scalar("nc4", COMMON_READOUT),
    Scalar("nc4", "head"),
)

#: Stand beside them: where class means hold too little of the features, collapse is 0/0.
BELIEF = (Scalar("mean_energy"), Scalar("means_reliable"))


def shown_measures(measures: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a run's measures that the study's tables show, None where one is missing."""
    keys = [s.key(split) for s in (*DIVERSITY, *COLLAPSE, *BELIEF) for split in LABELS]
    readings = [key for key in measures if reading(key)]
    return {key: measures.get(key) for key in (*keys, *readings)}


def reading(key: str) -> str | None:
    """Return the readout of a test accuracy's key, None for any other key."""
    _, split, labels, readout, measure = key.split("/")
    return readout if (split, labels, measure) == ("test", "clean", "accuracy") else None


@dataclass(frozen=True)
class Table:
    """A titled table of text: a header and rows of equal length.

    Attributes:
        title: one sentence.
        header, rows: the text.
        left: how many columns name a row; they are aligned to the left, what is behind them to
            the right.
        notes: lines beneath it.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 3
    notes: tuple[str, ...] = ()

    def text(self, width: int | None = None) -> str:
        """Return the table in columns, numbers to the right.

        Args:
            width: fold what is wider: columns that do not fit make a block of their own beneath,
                each behind the columns that name its rows; None never folds.
        """
        if width is None:
            title, notes = [self.title], list(self.notes)
        else:
            wrapper = textwrap.TextWrapper(width, break_on_hyphens=False)
            title = wrapper.wrap(self.title)
            notes = list(chain(*map(wrapper.wrap, self.notes)))
        blocks = (self._block(columns) for columns in self._fold(width))
        return "\n".join([*title, "\n\n".join(blocks), *notes])

    def _widths(self) -> list[int]:
        return [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]

    def _fold(self, width: int | None) -> list[list[int]]:
        """Return the numbers of the columns of each block."""
        widths = self._widths()
        names = list(range(min(self.left, len(widths))))
        blocks: list[list[int]] = [list(names)]
        for column in range(len(names), len(widths)):
            wide = sum(widths[c] + 2 for c in blocks[-1]) + widths[column]
            if width is not None and wide > width and len(blocks[-1]) > len(names):
                blocks.append(list(names))
            blocks[-1].append(column)
        return blocks

    def _block(self, columns: Sequence[int]) -> str:
        widths = self._widths()

        def line(cells: Sequence[str]) -> str:
            return "  ".join(
                cells[c].ljust(widths[c]) if c < self.left else cells[c].rjust(widths[c])
                for c in columns
            ).rstrip()

        lines = [line(self.header), *map(line, self.rows)]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    def markdown(self) -> str:
        """Return the table in Markdown."""
        marks = [":--"] * self.left + ["--:"] * (len(self.header) - self.left)
        rows = [self.header, tuple(marks[: len(self.header)]), *self.rows]
        notes = "".join(f"\n\n{_escaped(note)}" for note in self.notes)
        return (
            f"**{self.title}**\n\n"
            + "\n".join("| " + " | ".join(map(_escaped, r)) + " |" for r in rows)
        ) + notes


def _escaped(text: str) -> str:
    """Keep an asterisk an asterisk in Markdown."""
    return text.replace("*", r"\*")


def shown(value: Estimate | None, seeds: int, places: int | None = None, **how: Any) -> str:
    """Return an entry: the estimate, in brackets over how many where that is not all ``seeds``.

    Example:
        >>> shown(Estimate(0.5, None, 1), 3, 3), shown(None, 3)
        ('0.500 (1)', '-')
    """
    if value is None:
        return "-"
    return value.text(places, **how) + ("" if value.count == seeds else f" ({value.count})")


def over_what(cells: Cells) -> str:
    """Return what ± means in a table of these cells."""
    seeds = len({cell["seed"] for cell in cells})
    if seeds == 1:
        return "one seed: no interval"
    return f"mean ± half-width of the 95 % interval over {seeds} seeds"


def _ratios(cells: Cells) -> list[float]:
    return sorted({cell["ratio"] for cell in cells})


def _seeds(cells: Cells) -> int:
    return len({cell["seed"] for cell in cells})


def _methods(cells: Cells) -> list[str]:
    return list(dict.fromkeys(cell["method"] for cell in cells))


def _readout(cells: Cells, method: str) -> str:
    names = {c["readout"] for c in cells if c["method"] == method and c["readout"]}
    return ", ".join(sorted(names)) or "-"


def _columns(cells: Cells) -> tuple[str, ...]:
    return tuple(f"{r:g}" for r in _ratios(cells))


def accuracy_table(cells: Cells, dataset: str, reference: Reference) -> Table:
    """Return test accuracy: methods x selections as rows, ratios as columns.

    The ``reference`` figures, by method and ratio, stand beneath as the paper's rows.
    """
    ratios, seeds = _ratios(cells), _seeds(cells)
    names = short_names(_methods(cells))
    rows = []
    for method in names:
        for rule in SELECTIONS:
            values = [over_seeds(cells, "test_accuracy", method, rule, r) for r in ratios]
            if any(values):
                entries = (shown(v, seeds, 3) for v in values)
                rows.append((names[method], rule, _readout(cells, method), *entries))
    for method, figures in reference.items():
        entries = (f"{figures[r]:.3f}" if r in figures else "-" for r in ratios)
        rows.append((method, "paper: last", "CIFAR-10, ResNet-18", *entries))
    return Table(
        f"Test accuracy on {dataset} by share of training labels redrawn ({over_what(cells)})",
        ("method", "selection", "readout", *_columns(cells)),
        tuple(rows),
    )


def differences(cells: Cells, baseline: str = "ce") -> list[Difference]:
    """Return every other method less the baseline, at each selection and ratio that both have."""
    methods = _methods(cells)
    if baseline not in methods:
        return []
    found = [
        difference(cells, method, baseline, rule, ratio)
        for method in methods
        if method != baseline
        for rule in SELECTIONS
        for ratio in _ratios(cells)
    ]
    return [d for d in found if d.estimate or d.unpaired]


def difference_table(cells: Cells, baseline: str = "ce") -> Table | None:
    """Return test accuracy less the baseline's, paired; None where there is nothing to compare."""
    found = {(d.method, d.selection, d.ratio): d for d in differences(cells, baseline)}
    if not found:
        return None
    seeds, names = _seeds(cells), short_names(_methods(cells))
    rows = []
    for method, rule in dict.fromkeys(key[:2] for key in found):
        at = [found.get((method, rule, ratio)) for ratio in _ratios(cells)]
        entries = (shown(d and d.estimate, seeds, 3, signed=True) for d in at)
        rows.append((f"{names[method]} - {baseline}", rule, *entries))
    notes = [
        f"Not paired, for the labels trained on differ: {names[d.method]} and {baseline} at ratio "
        f"{d.ratio:g}, {d.selection}, seed {', '.join(map(str, d.unpaired))}"
        for d in found.values()
        if d.unpaired
    ]
    return Table(
        "Difference in test accuracy, each by its own readout, paired: same seed, same corrupted "
        f"labels ({over_what(cells)})",
        ("methods", "selection", *_columns(cells)),
        tuple(rows),
        left=2,
        notes=tuple(notes),
    )


def memorization_table(cells: Cells) -> Table:
    """Return what the networks of the last epoch made of their training labels."""
    ratios, seeds = _ratios(cells), _seeds(cells)
    names = short_names(_methods(cells))
    rows = []
    for method in names:
        for measure in MEMORIZATION:
            values = [over_seeds(cells, measure, method, "last", r) for r in ratios]
            entries = (shown(v, seeds, 3) for v in values)
            rows.append((names[method], measure, _readout(cells, method), *entries))
    return Table(
        "Memorization at the last epoch (shares: fit_noisy of all training labels; fit_corrupted "
        "and recovered of the wrong ones)",
        ("method", "measure", "readout", *_columns(cells)),
        tuple(rows),
    )


def diversity_table(cells: Cells) -> Table:
    """Return how many dimensions features use, overall and in a class, at the last epoch."""
    return _geometry(
        cells,
        DIVERSITY,
        "Diverse or collapsed? Features at the last epoch: dimensions of all and of a class, "
        "overlap of class subspaces (coherence), ΔR (reduction)",
    )


def collapse_table(cells: Cells) -> Table:
    """Return neural collapse at the last epoch, flagged where it is not to be believed."""
    return _geometry(
        cells,
        COLLAPSE,
        "Neural collapse at the last epoch: 0 is collapsed",
        flagged=BELIEF[1],
    )


def _geometry(
    cells: Cells, scalars: Sequence[Scalar], title: str, flagged: Scalar | None = None
) -> Table:
    """Return scalars of the features, the methods beneath each other."""
    ratios, seeds = _ratios(cells), _seeds(cells)
    names = short_names(_methods(cells))
    last = [cell for cell in cells if cell["selection"] == "last"]
    doubtful = {
        (cell["method"], cell["ratio"], split)
        for cell in last
        for split in LABELS
        if flagged is not None and value_of(cell, flagged.key(split)) == 0
    }
    rows = []
    for scalar in scalars:
        for split in LABELS:
            for method in names:
                key = scalar.key(split)
                values = [over_seeds(last, key, method, "last", r) for r in ratios]
                entries = [
                    shown(v, seeds) + ("*" if v and (method, r, split) in doubtful else "")
                    for v, r in zip(values, ratios, strict=True)
                ]
                # Not every method has a head of its own.
                if any(values) or scalar.readout == "-":
                    rows.append((str(scalar), split, names[method], *entries))
    note = (
        "* class means hold so little of the features (mean_energy) in some seed that measures "
        "about them are near 0/0: not to be believed"
    )
    return Table(
        f"{title} (train by the labels trained on, test by the clean ones; {over_what(cells)})",
        ("measure", "split", "method", *_columns(cells)),
        tuple(rows),
        notes=(note,) if doubtful else (),
    )


def readout_table(cells: Cells) -> Table | None:
    """Return test accuracy by every readout at the last epoch, fitted on the labels trained on.

    None where no run was read.
    """
    return _readings(
        cells,
        lambda readout: not readout.endswith(CLEAN),
        "Test accuracy by readout at the last epoch, fitted on the labels trained on; > marks a "
        "method's own",
    )


def clean_readout_table(cells: Cells) -> Table | None:
    """Return the same for readouts fitted on clean labels; None where there are none."""
    return _readings(
        cells,
        lambda readout: readout.endswith(CLEAN),
        "Diagnostic: test accuracy by readout at the last epoch, fitted on the clean labels, which "
        "no user has",
    )


def order(readout: str) -> tuple[int, int]:
    """Return where a readout stands among others: by kind, then by number."""
    kind, number = parse_readout(readout.removesuffix(CLEAN))
    return ["head", *READOUTS].index(kind), number or 0


def _readings(cells: Cells, wanted: Callable[[str], bool], title: str) -> Table | None:
    ratios, seeds = _ratios(cells), _seeds(cells)
    names = short_names(_methods(cells))
    keys = dict.fromkeys(key for cell in cells for key in cell["measures"] if reading(key))
    readouts = sorted((r for r in map(reading, keys) if r and wanted(r)), key=order)
    rows = []
    for readout in readouts:
        key = measure_key("accuracy", split="test", labels="clean", readout=readout)
        for method in names:
            values = [over_seeds(cells, key, method, "last", r) for r in ratios]
            if any(values):
                own = ">" if readout in _readout(cells, method).split(", ") else ""
                rows.append((readout, own, names[method], *(shown(v, seeds, 3) for v in values)))
    if not rows:
        return None
    return Table(
        f"{title} ({over_what(cells)})", ("readout", "", "method", *_columns(cells)), tuple(rows)
    )


def run_table(record: Record) -> Table:
    """Return what one run reads by its own readout, a row a selection rule."""
    rows = []
    for rule, chosen in record.selections.items():
        names = [
            measure_key("accuracy", split="test", labels="clean", readout=record.readout),
            *(
                measure_key(m, split="train", labels="noisy", readout=record.readout)
                for m in MEMORIZATION
            ),
        ]
        values = (_number(chosen["measures"][name]) for name in names)
        rows.append((rule, record.readout, str(chosen["epoch"]), *values))
    spec = record.spec
    return Table(
        f"{spec['method']} on {record.data['name']} at ratio {spec['ratio']:g}, seed "
        f"{spec['seed']}: {record.epochs} epochs, {record.steps} steps, "
        f"{record.wall_seconds:.0f} s",
        ("selection", "readout", "epoch", "test_accuracy", *MEMORIZATION),
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
                    (
                        rule,
                        key,
                        "same" if kept == value else "differs",
                        _number(value),
                        _number(kept),
                    )
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


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def write_tables(
    out: Path,
    cells: Cells,
    *,
    tables: Sequence[Table],
    facts: Mapping[str, Any],
    notes: Sequence[str],
) -> None:
    """Write ``table.json``, ``table.csv`` and ``table.md`` into ``out``, atomically.

    ``table.json`` is an object with the ``facts``, ``cells`` and ``notes``; ``table.csv`` has a
    line a cell, its measures in columns behind the others; ``table.md`` has the tables and the
    notes.
    """
    write_json(out / "table.json", {**facts, "cells": list(cells), "notes": list(notes)})
    flat = [flat_cell(cell) for cell in cells]
    buffer = io.StringIO()
    names = list(dict.fromkeys(chain(*flat)))
    writer = csv.DictWriter(buffer, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_text(out / "table.csv", buffer.getvalue())
    parts = [table.markdown() for table in tables]
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    write_text(out / "table.md", "\n\n".join(parts) + "\n")


def flat_cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cell with its measures as columns of their own.

    Example:
        >>> flat_cell({"seed": 0, "measures": {"features/test/-/-/dim95": 7}, "run": "ce"})
        {'seed': 0, 'run': 'ce', 'features/test/-/-/dim95': 7}
    """
    return {k: v for k, v in cell.items() if k != "measures"} | cell.get("measures", {})
