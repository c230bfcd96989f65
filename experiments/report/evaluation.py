"""A full evaluation as tables: what a person sees of some hundred measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.report.table import Table
from mcr2.evaluation import FAMILIES, MEASURES, Key
from mcr2.evaluation.results import FITTED_CLEAN


def evaluation_tables(measures: Mapping[str, Any]) -> list[Table]:
    """Return measures as tables: of each layer one for each family of the catalogue.

    Args:
        measures: by key, as in :attr:`mcr2.evaluation.Evaluation.measures`.
    """
    found = {Key.parse(text): value for text, value in measures.items()}
    layers = list(dict.fromkeys(key.layer for key in found))
    tables = []
    for layer in layers:
        for family, title in FAMILIES.items():
            own = {key: v for key, v in found.items() if key.layer == layer and _in(key, family)}
            by_readout = any(MEASURES[key.measure].per == "readout" for key in own)
            if own:
                named = title if len(layers) == 1 else f"{layer}: {title}"
                tables.append((_by_readout if by_readout else _by_measure)(named, own))
    return tables


def _in(key: Key, family: str) -> bool:
    return key.measure in MEASURES and MEASURES[key.measure].family == family


def _by_readout(title: str, found: Mapping[Key, Any]) -> Table:
    """Return a row a readout, and beside it the same fitted on clean labels."""
    cells: dict[str, dict[tuple[str, ...], Any]] = {}
    places: dict[str, set[tuple[str, str]]] = {}
    for key, value in found.items():
        name, clean = key.readout.removesuffix(FITTED_CLEAN), key.readout.endswith(FITTED_CLEAN)
        suffix = ", fitted on clean labels" if clean else ""
        cells.setdefault(name, {})[key.measure, _place(key), suffix] = value
        places.setdefault(key.measure, set()).add((key.split, key.labels))
    columns = dict.fromkeys(c for row in cells.values() for c in row)
    order = sorted(columns, key=lambda c: (c[2], list(MEASURES).index(c[0]), c[1] != "test"))
    kept = [c for c in order if any(row.get(c) is not None for row in cells.values())]
    # What stands in one place only needs no place in its name.
    heads = [m + (f" ({at})" if len(places[m]) > 1 else "") + suffix for m, at, suffix in kept]
    rows = [(name, *(_shown(row.get(c)) for c in kept)) for name, row in cells.items()]
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
    rows = [(m, *(_shown(column.get(m)) for column in columns.values())) for m in names]
    return Table(title, tuple(header), tuple(rows), left=1)


def _place(key: Key) -> str:
    return key.split if key.split == "test" else f"{key.split}, {key.labels}"


def agreement(
    kept: Mapping[str, Mapping[str, Any]], again: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Return lines that say whether what was measured again is what the record holds.

    Args:
        kept: the record's selections, by rule.
        again: measures taken again, by rule.
    """
    if not again.keys() <= kept.keys():
        return ["the run holds no evaluation of these selections to compare with"]
    differing = [
        f"{rule} {key}: {_shown(value)} now, {_shown(held)} in the record"
        for rule, measures in again.items()
        for key, value in measures.items()
        if (held := kept[rule]["measures"].get(key)) != value
    ]
    what, total = "measured again from the weights:", sum(map(len, again.values()))
    if not differing:
        return [f"{what} all {total} measures are the same as the record's"]
    more = [f"... and {len(differing) - 10} more"] if len(differing) > 10 else []
    head = f"{what} {len(differing)} of {total} measures differ from the record's"
    return [head, *differing[:10], *more]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        small = value != 0 and abs(value) < 1e-3
        return f"{value:.2e}" if small or abs(value) >= 1e5 else f"{value:.4f}"
    return str(value)
