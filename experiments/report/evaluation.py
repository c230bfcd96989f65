"""One run as tables: what it reaches, some hundred measures, and the same measured again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.report.table import Table, entry, short
from experiments.report.tables import MEMORIZATION
from mcr2.evaluation import FAMILIES, MEASURES, Key, measure_key
from mcr2.evaluation.results import FITTED_CLEAN
from mcr2.records import Run

#: Measures by key, of each selection rule.
Selections = Mapping[str, Mapping[str, Any]]


def run_table(run: Run) -> Table:
    """Return what one run reaches by its own readout, a row a selection rule."""
    record, by = run.record, run.record.readout
    names = [measure_key("accuracy", split="test", labels="clean", readout=by)]
    names += [measure_key(m, split="train", labels="noisy", readout=by) for m in MEMORIZATION]
    rows = [
        (rule, by, str(chosen["epoch"]), *(entry(chosen["measures"].get(name)) for name in names))
        for rule, chosen in (run.evaluation.selections if run.evaluation else {}).items()
    ]
    took = f"{record.epochs} epochs, {record.steps} steps, {record.wall_seconds:.0f} s"
    noise, wrong = record.noise, record.noise["wrong"]
    told = "an unknown number" if wrong is None else wrong
    labels = f"{noise['redrawn']} labels redrawn, {told} wrong"
    header = ("selection", "readout", "epoch", "test_accuracy", *MEMORIZATION)
    return Table(f"{_run_name(run)}: {took}; {labels}", header, tuple(rows))


def measures_table(run: Run, again: Selections, contains: str) -> Table:
    """Return a run's measures whose key contains a text, measured again, beside those it holds."""
    rows = [
        (rule, key, "same" if kept == value else "differs", entry(value), entry(kept))
        for rule, key, value, kept in _compared(run, again)
        if contains in key
    ]
    header = ("selection", "measure", "", "now", "held")
    return Table(f"{_run_name(run)}: measured again from its weights", header, tuple(rows))


def agreement(run: Run, again: Selections) -> list[str]:
    """Return lines that say whether what was measured again is what the run holds."""
    if not run.evaluation or not again.keys() <= run.evaluation.selections.keys():
        return ["the run holds no evaluation of these selections to compare with"]
    held = run.evaluation.selections
    # Layers that were not measured before are not in the run.
    compared = [c for c in _compared(run, again) if c[1] in held[c[0]]["measures"]]
    differing = [
        f"{rule} {key}: {entry(value)} now, {entry(kept)} in evaluation.json"
        for rule, key, value, kept in compared
        if kept != value
    ]
    what = "measured again from the weights:"
    if not differing:
        return [f"{what} all {len(compared)} measures are the same as in evaluation.json"]
    more = [f"... and {len(differing) - 10} more"] if len(differing) > 10 else []
    head = f"{what} {len(differing)} of {len(compared)} measures differ from evaluation.json"
    return [head, *differing[:10], *more]


def _compared(run: Run, again: Selections) -> list[tuple[str, str, Any, Any]]:
    """Return rule, key, value measured again and value held of all that was measured again."""
    held = run.evaluation.selections if run.evaluation else {}
    return [
        (rule, key, value, held.get(rule, {}).get("measures", {}).get(key))
        for rule, measures in again.items()
        for key, value in measures.items()
    ]


def _run_name(run: Run) -> str:
    spec = run.record.spec
    name = f"{short(spec['method'])} on {short(run.record.data['name'])}"
    return f"{name} at ratio {spec['ratio']:g}, seed {spec['seed']}"


def evaluation_tables(measures: Mapping[str, Any]) -> list[Table]:
    """Return measures by key as tables: of each layer one for each family of the catalogue."""
    found = {Key.parse(text): value for text, value in measures.items()}
    found = {key: value for key, value in found.items() if key.measure in MEASURES}
    layers = list(dict.fromkeys(key.layer for key in found))
    tables = []
    for layer in layers:
        for family, title in FAMILIES.items():
            own = {
                key: value
                for key, value in found.items()
                if key.layer == layer and MEASURES[key.measure].family == family
            }
            by_readout = any(MEASURES[key.measure].per == "readout" for key in own)
            named = title if len(layers) == 1 else f"{layer}: {title}"
            if own:
                tables.append((_by_readout if by_readout else _by_measure)(named, own))
    return tables


def _by_readout(title: str, found: Mapping[Key, Any]) -> Table:
    """Return a row a readout, and beside it the same fitted on clean labels."""
    cells: dict[str, dict[tuple[str, ...], Any]] = {}
    places: dict[str, set[str]] = {}
    for key, value in found.items():
        name = key.readout.removesuffix(FITTED_CLEAN)
        suffix = "" if name == key.readout else ", fitted on clean labels"
        place = key.split if key.split == "test" else f"{key.split}, {key.labels}"
        cells.setdefault(name, {})[key.measure, place, suffix] = value
        places.setdefault(key.measure, set()).add(place)
    kept = {c for row in cells.values() for c, value in row.items() if value is not None}
    order = [c for c in dict.fromkeys(c for row in cells.values() for c in row) if c in kept]
    order.sort(key=lambda c: (c[2], list(MEASURES).index(c[0]), c[1] != "test"))
    # What stands in one place only needs no place in its name.
    heads = [m + (f" ({at})" if len(places[m]) > 1 else "") + suffix for m, at, suffix in order]
    rows = [(name, *(entry(row.get(c)) for c in order)) for name, row in cells.items()]
    return Table(title, ("readout", *heads), tuple(rows), left=1)


def _by_measure(title: str, found: Mapping[Key, Any]) -> Table:
    """Return a row a measure; a column whose values all stand in another kind of labels' goes."""
    columns: dict[tuple[str, str, str], dict[str, Any]] = {}
    for key, value in found.items():
        columns.setdefault((key.split, key.labels, key.readout), {})[key.measure] = value
    for split, labels, readout in list(columns):
        noisy = columns.get((split, "noisy", readout), {}).items()
        if labels == "clean" and columns[split, labels, readout].items() <= noisy:
            del columns[split, labels, readout]
    kinds = {(split, labels) for split, labels, _ in columns}
    header = ["measure"]
    for split, labels, readout in columns:
        alone = len([at for at in kinds if at[0] == split]) == 1
        parts = (split, "-" if alone else labels, readout)
        header.append(", ".join(part for part in parts if part != "-"))
    names = [m for m in MEASURES if any(m in column for column in columns.values())]
    rows = [(m, *(entry(column.get(m)) for column in columns.values())) for m in names]
    return Table(title, tuple(header), tuple(rows), left=1)
