"""The tables of a study, each a function of its results: :data:`TABLES`.

The values of the first axis are columns; methods and the further axes are rows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report.results import Results, value_text
from experiments.report.statistics import (
    Difference,
    Estimate,
    Row,
    difference,
    estimate,
    matching,
    shown,
)
from experiments.report.table import Table, escape_markdown, short
from mcr2.evaluation.catalogue import FAMILIES, MEASURES
from mcr2.evaluation.features import CONFUSION
from mcr2.evaluation.results import FEATURES, FITTED_CLEAN, Key, measure_key
from mcr2.noise import NOISES
from mcr2.readouts import READOUTS, parse_readout
from mcr2.records import write_json, write_text

#: Measures of memorization, which rows hold under their names, in the order of columns and panels.
MEMORIZATION = tuple(
    m.name for m in MEASURES.values() if m.family == "accuracy" and m.shown and m.name != "accuracy"
)

#: What is counted against in training: labels as they were trained on; in test, the true ones.
LABELS = {"train": "noisy", "test": "clean"}

#: True classes that a table is by.
MOST_CLASSES = 20

#: 0 where class means hold too little of the features: measures about them are then near 0/0.
RELIABLE = "means_reliable"

#: Tables that show several families, and their titles. Every other family with a shown measure has
#: a table of its own; accuracies have those below.
TOGETHER: dict[str, tuple[Collection[str], str]] = {
    "diversity": (
        ("rank", "classes", "rates"),
        "Diverse or collapsed? Features at the last epoch: dimensions of all and of a class, "
        "overlap of class subspaces (coherence), ΔR (reduction)",
    ),
    "collapse": (
        ("collapse", "classifier"),
        "Neural collapse at the last epoch: 0 is collapsed",
    ),
}


def shown_measures(measures: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a run's measures that a row holds: what tables show, of every layer.

    They are the catalogue's ``shown`` ones on train by the labels trained on and on test by the
    true ones, what tells whether class means are reliable, and the test accuracy by every readout.
    """

    def is_shown(key: Key) -> bool:
        measure = MEASURES[key.measure]
        if measure.family == "accuracy":
            return key.measure == "accuracy" and key.split == "test"
        return measure.shown or key.measure == RELIABLE

    standing = standing_measures(measures)
    return {text: value for text, value in standing.items() if is_shown(Key.parse(text))}


def standing_measures(measures: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a run's measures that are by the labels which :data:`LABELS` names."""

    def stands(key: Key) -> bool:
        return key.labels in ("-", LABELS.get(key.split)) and key.measure in MEASURES

    return {text: value for text, value in measures.items() if stands(Key.parse(text))}


def standing_key(measure: str, split: str, readout: str = "-", layer: str = FEATURES) -> str:
    """Return the key of a measure by the labels which :data:`LABELS` names, where it has any.

    Example:
        >>> standing_key("rate", "test"), standing_key("dim95", "train")
        ('features/test/clean/-/rate', 'features/train/-/-/dim95')
    """
    labels = "-" if MEASURES[measure].per == "features" else LABELS[split]
    return str(Key(layer, split, labels, readout, measure))


def _table(
    results: Results,
    title: str,
    names: tuple[str, ...],
    rows: Iterable[tuple[tuple[str, ...], Sequence[str]]],
    *,
    about: str = "",
    notes: Sequence[str] = (),
) -> Table | None:
    """Return rows, each names and entries at the first axis's values, as a table; None of none."""
    lines = tuple((*called, *entries) for called, entries in rows)
    header = (*names, *map(value_text, results.values()))
    title = f"{title} ({about}by {results.axes[0].title}; {results.interval})"
    return Table(title, header, lines, len(names), tuple(notes)) if lines else None


def _entries(
    results: Results, measure: str, case: Mapping[str, Any], rule: str = "last"
) -> list[str] | None:
    """Return accuracies or shares at the values of the first axis; None where there is none."""
    values = results.estimates(measure, case, rule)
    return [shown(v, results.seeds, 3) for v in values] if any(values) else None


def _further(results: Results) -> tuple[str, ...]:
    return tuple(axis.name for axis in results.axes[1:])


def accuracy_table(results: Results) -> Table | None:
    """Return test accuracy by selection rule, and published figures beneath."""
    rows = [
        ((*results.named(case), rule, results.readout_of(**case)), entries)
        for case in results.cases
        for rule in results.rules
        if (entries := _entries(results, "test_accuracy", case, rule))
    ]
    for source, figures in results.reference.items():
        for method, known in figures.items():
            entries = [f"{known[v]:.3f}" if v in known else "-" for v in results.values()]
            rows.append(((method, *("-" for _ in results.axes[1:]), "last", source), entries))
    names = ("method", *_further(results), "selection", "readout")
    return _table(results, f"Test accuracy on {short(results.dataset)}", names, rows)


def differences(results: Results, baseline: str = "ce") -> list[Difference]:
    """Return every other method less the baseline, wherever both have a test accuracy."""
    found = [
        difference(results.rows, case["method"], baseline, rule, where)
        for case in results.cases
        if case["method"] != baseline
        for rule in results.rules
        for value in results.values()
        for where in [{results.axes[0].name: value} | {a: case[a] for a in _further(results)}]
    ]
    return [d for d in found if d.estimate or d.unpaired]


def difference_table(results: Results, baseline: str = "ce") -> Table | None:
    """Return test accuracy less the baseline's, paired; None where there is nothing to compare."""
    rows: dict[tuple[str, ...], dict[Any, Estimate | None]] = {}
    notes = []
    for d in differences(results, baseline):
        name, *settings = results.named({"method": d.method, **d.where})
        row = rows.setdefault((f"{name} - {baseline}", *settings, d.selection), {})
        row[d.where[results.axes[0].name]] = d.estimate
        if d.unpaired:
            where = ", ".join(f"{axis} {value_text(value)}" for axis, value in d.where.items())
            notes.append(
                f"Not paired, for the labels trained on differ: {name} and {baseline} at {where}, "
                f"{d.selection}, seed {', '.join(map(str, d.unpaired))}"
            )
    entries = [
        (names, [shown(row.get(v), results.seeds, 3, signed=True) for v in results.values()])
        for names, row in rows.items()
    ]
    title = (
        "Difference in test accuracy, each by its own readout, paired: same seed, same corrupted "
        "labels"
    )
    names = ("methods", *_further(results), "selection")
    return _table(results, title, names, entries, notes=notes)


def noise_table(results: Results) -> Table | None:
    """Return the shares of the training labels redrawn and wrong, where the ratio makes columns."""
    rows: list[tuple[tuple[str, ...], list[str]]] = []
    if results.axes[0].name != "ratio":
        return None
    for share in ("redrawn", "wrong"):
        found = (_entries(results, share, case) for case in results.cases)
        entries = next(filter(None, found), None)  # the same for every method
        rows += [((share,), entries)] if entries else []
    about = "labels redrawn, and labels that differ from the true ones; "
    return _table(results, "Noise of the training labels: shares", ("share",), rows, about=about)


def memorization_table(results: Results) -> Table | None:
    """Return what the networks of the last epoch made of their training labels."""
    gaps = ["-"] * len(results.values())
    rows = [
        (
            (*results.named(case), measure, results.readout_of(**case)),
            _entries(results, measure, case) or gaps,
        )
        for case in results.cases
        for measure in MEMORIZATION
    ]
    title = (
        "Memorization at the last epoch: shares, fit_noisy of all training labels, fit_corrupted "
        "and recovered of the wrong ones"
    )
    return _table(results, title, ("method", *_further(results), "measure", "readout"), rows)


def confusions(results: Results, **where: Any) -> list[Any]:
    """Return what runs made of their training labels, each an array ``(3, K + 1, K)``.

    They are those of :func:`mcr2.metrics.memorization.confusion` at the last epoch, of noise that
    is not the same for every class; of uniform noise there is nothing to read class by class.
    """
    found = []
    for run in results.runs_of(**where):
        kind = NOISES.get(run.record.noise["kind"].partition(":")[0])
        chosen = run.evaluation.selections.get("last", {}) if run.evaluation else {}
        by = run.record.readout
        key = measure_key(CONFUSION, split="train", labels="noisy", readout=by)
        counts = chosen.get("profiles", {}).get(key)
        if counts is not None and not (kind and kind.uniform):
            found.append(np.array(counts))
    return found


def classes_of(results: Results) -> list[str]:
    """Return the names of the classes, and one for what is none of them."""
    return [*results.runs[0].record.data["classes"], "none of these"] if results.runs else []


def by_class_table(results: Results) -> Table | None:
    """Return what became of the wrong labels of each true class; None of uniform noise."""
    axis, values, cases = results.axes[0].name, results.values(), results.cases
    counts = [[confusions(results, **case, **{axis: v}) for v in values] for case in cases]
    every = [each for row in counts for found in row for each in found]
    if not every:
        return None
    wrong = np.sum([_wrong(each)[0] for each in every], axis=0)
    largest = sorted(np.argsort(-wrong, kind="stable")[:MOST_CLASSES].tolist())
    rows = []
    for k in [k for k in largest if wrong[k]]:
        for number, measure in enumerate(("fit_corrupted", "recovered"), start=1):
            for case, row in zip(cases, counts, strict=True):
                shares = [
                    estimate([w[number, k] / w[0, k] for w in map(_wrong, found) if w[0, k]])
                    for found in row
                ]
                # What is none of the classes cannot be recovered.
                if any(shares) and (measure, k) != ("recovered", len(wrong) - 1):
                    entries = [shown(share, results.seeds, 3) for share in shares]
                    rows.append(
                        ((short(classes_of(results)[k]), measure, *results.named(case)), entries)
                    )
    title = "Wrong labels by true class at the last epoch: shares reproduced and recovered"
    many = int((wrong > 0).sum()) > MOST_CLASSES
    notes = [f"The {MOST_CLASSES} classes with most wrong labels"] * many
    names = ("true class", "measure", "method", *_further(results))
    return _table(results, title, names, rows, notes=notes)


def _wrong(counts: Any) -> Any:
    """Return wrong labels by true class ``(3, K + 1)``: all, reproduced, recovered."""
    K = counts.shape[2]
    return (counts * (1 - np.eye(K + 1, K, dtype=int))).sum(axis=2)


def _keys(results: Results, wanted: Callable[[Key], bool]) -> list[Key]:
    """Return the keys of measures at the last epoch, those of the features first."""
    last = matching(results.rows, selection="last")
    keys = [Key.parse(text) for text in dict.fromkeys(chain(*(row["measures"] for row in last)))]
    return sorted(filter(wanted, keys), key=lambda key: key.layer != FEATURES)


def _called(key: Key, name: str) -> str:
    return name if key.layer == FEATURES else f"{key.layer}: {name}"


def family_table(results: Results, families: Collection[str], title: str) -> Table | None:
    """Return the shown measures of families at the last epoch, the methods beneath each other.

    Entries about class means that are not reliable in some seed carry an asterisk.
    """
    order = [m.name for m in MEASURES.values() if m.shown and m.family in families]
    keys = _keys(results, lambda key: key.measure in order)
    keys.sort(key=lambda k: (order.index(k.measure), k.readout == "head", k.split != "train"))
    rows = []
    for key in keys:
        reliable = str(key._replace(labels=LABELS[key.split], readout="-", measure=RELIABLE))
        name = key.measure if key.readout == "-" else f"{key.measure} ({key.readout})"
        for case in results.cases:
            values = results.estimates(str(key), case)
            entries = [shown(value, results.seeds) for value in values]
            if "collapse" in families:
                means = results.estimates(reliable, case)
                doubted = [bool(v and m and m.mean < 1) for v, m in zip(values, means, strict=True)]
                entries = [e + "*" * doubt for e, doubt in zip(entries, doubted, strict=True)]
            # Not every method has a head of its own.
            if any(values) or key.readout == "-":
                rows.append(((_called(key, name), key.split, *results.named(case)), entries))
    note = (
        "* class means hold so little of the features (mean_energy) in some seed that measures "
        "about them are near 0/0: not reliable"
    )
    names = ("measure", "split", "method", *_further(results))
    about = "train by the labels trained on, test by the clean ones; "
    notes = [note] if any(entry.endswith("*") for _, each in rows for entry in each) else []
    return _table(results, title, names, rows, about=about, notes=notes)


def read_by(results: Results, *, clean: bool = False) -> list[Key]:
    """Return the keys of test accuracies by every readout, fitted on noisy or on clean labels."""

    def wanted(key: Key) -> bool:
        return key.measure == "accuracy" and key.readout.endswith(FITTED_CLEAN) == clean

    def place(key: Key) -> tuple[bool, int, int]:
        kind, number = parse_readout(key.readout.removesuffix(FITTED_CLEAN))
        return key.layer != FEATURES, ["head", *READOUTS].index(kind), number or 0

    return sorted(_keys(results, wanted), key=place)


def readout_table(results: Results, *, clean: bool = False) -> Table | None:
    """Return test accuracy by every readout at the last epoch, fitted on noisy or clean labels."""

    def own(key: Key, case: Mapping[str, Any]) -> str:
        return ">" if key.readout in results.readout_of(**case).split(", ") else ""

    rows = [
        ((_called(key, key.readout), own(key, case), *results.named(case)), entries)
        for key in read_by(results, clean=clean)
        for case in results.cases
        if (entries := _entries(results, str(key), case))
    ]
    title = "Test accuracy by readout at the last epoch, fitted on the labels trained on; "
    title += "> marks a method's own"
    if clean:
        title = "Diagnostic: test accuracy by readout at the last epoch, fitted on the clean "
        title += "labels, which no user has"
    return _table(results, title, ("readout", "", "method", *_further(results)), rows)


def settings_table(results: Results) -> Table:
    """Return accuracy and memorization as columns, every method and setting as a row."""
    scalars = [*(("test_accuracy", rule) for rule in results.rules)]
    scalars += [(measure, "last") for measure in MEMORIZATION]
    axes = [axis.name for axis in results.axes]
    rows = []
    for value in results.values():
        for case in results.cases:
            where = {axes[0]: value, **case}
            found = matching(results.rows, **where)
            steps = sorted({row["steps"] for row in found if row["status"] == "finished"})
            values = (results.over_seeds(m, selection=rule, **where) for m, rule in scalars)
            name, *further = results.named(case)
            made = ", ".join(map(str, steps)) or "-"
            if found:
                entries = (shown(value, results.seeds, 3) for value in values)
                rows.append((name, value_text(value), *further, made, *entries))
    readouts = sorted({r["readout"].partition("@")[0] for r in results.rows if r["readout"]})
    return Table(
        f"Settings on {short(results.dataset)}: test accuracy by {', '.join(readouts) or '-'} at "
        f"the last and the selected epochs, memorization at the last ({results.interval})",
        ("method", *axes, "steps", *results.rules, *MEMORIZATION),
        tuple(rows),
        left=len(axes) + 2,
    )


def family_tables() -> dict[str, Callable[[Results], Table | None]]:
    """Return a table for each entry of :data:`TOGETHER`, and for each other family."""
    groups = dict(TOGETHER)
    taken = {"accuracy"}.union(*(families for families, _ in groups.values()))
    for family, title in FAMILIES.items():
        if family not in taken and any(m.shown and m.family == family for m in MEASURES.values()):
            groups[family] = (family,), f"{title}, at the last epoch"
    return {
        name: partial(family_table, families=families, title=title)
        for name, (families, title) in groups.items()
    }


#: Tables of a study by name.
TABLES: dict[str, Callable[[Results], Table | None]] = {
    "accuracy": accuracy_table,
    "noise": noise_table,
    "by_class": by_class_table,
    "differences": difference_table,
    "memorization": memorization_table,
    **family_tables(),
    "readouts": readout_table,
    "readouts_clean": partial(readout_table, clean=True),
    "settings": settings_table,
}


def csv_of(rows: Sequence[Row]) -> str:
    """Return rows as CSV, with a column for every key that any of them has."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys(chain(*rows))), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def write_tables(
    out: Path,
    results: Results,
    tables: Mapping[str, Table],
    facts: Mapping[str, Any],
    notes: Sequence[str],
) -> None:
    """Write ``table.json``, ``table.csv`` and ``table.md`` into ``out``, atomically.

    ``table.json`` is an object with the ``facts``, ``axes``, ``reference``, ``rows``, ``notes``
    and the ``tables`` by name; ``table.csv`` has a line a row, its measures in columns behind the
    others; ``table.md`` has the tables and the notes.
    """
    held = {
        "axes": [axis._asdict() for axis in results.axes],
        "reference": results.reference,
        "rows": list(results.rows),
        "notes": list(notes),
        "tables": {name: vars(table) for name, table in tables.items()},
    }
    write_json(out / "table.json", {**facts, **held})
    flat = [flat_row(row) for row in results.rows]
    write_text(out / "table.csv", csv_of(flat))
    parts = [table.markdown() for table in tables.values()]
    if notes:
        parts.append("\n".join(f"- {escape_markdown(note)}" for note in notes))
    write_text(out / "table.md", "\n\n".join(parts) + "\n")


def flat_row(row: Row) -> dict[str, Any]:
    """Return a row with its measures as columns of their own.

    Example:
        >>> flat_row({"seed": 0, "measures": {"features/test/-/-/dim95": 7}, "run": "ce"})
        {'seed': 0, 'run': 'ce', 'features/test/-/-/dim95': 7}
    """
    return {**{k: v for k, v in row.items() if k != "measures"}, **row["measures"]}
