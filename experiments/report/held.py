"""A study as its folder holds it: what tables, figures and the page are made of, read again.

Nothing is imported that the folder names, and no data set is looked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from experiments.report.axis import Axis
from experiments.report.canvas import png
from experiments.report.figures import FIGURES
from experiments.report.results import Results
from experiments.report.table import Table, count_of
from mcr2 import checks
from mcr2.records import RECORD, Run, StudyFrames, load_run, load_study, read_json


@dataclass(frozen=True, repr=False)
class HeldStudy:
    """What a study's folder holds.

    Attributes:
        facts: what ``table.json`` says beside rows, tables and notes: study, command, environment.
        results: what tables and figures are functions of; its ``rows`` are those of ``table.json``.
        tables: by name.
    """

    folder: Path
    facts: Mapping[str, Any]
    results: Results
    tables: Mapping[str, Table]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        name = f"{self.facts.get('study', 'of runs')} on {self.results.dataset}"
        runs = count_of(len({row["run"] for row in self.results.rows}), "run")
        return f"<study {name}, {runs}, in {self.folder}>"

    @cached_property
    def frames(self) -> StudyFrames:
        """Everything measured, as pandas frames: see :func:`mcr2.records.load_study`."""
        return load_study(self.folder)

    def table(self, name: str) -> Any:
        """Return a table as a pandas frame of what is printed, its title in ``attrs["title"]``.

        Raises:
            ImportError: pandas is not installed.
            ValueError: the study has no such table; the message lists those it has.
        """
        import pandas

        table = self.tables[checks.choice("table", name, self.tables)]
        frame = pandas.DataFrame(list(table.rows), columns=list(table.header))
        frame.attrs["title"] = table.title
        return frame

    def figure(self, name: str) -> Any:
        """Draw a figure of :data:`~experiments.report.figures.FIGURES`, for one's own changes.

        Returns:
            A matplotlib ``Figure``, which pyplot does not know and a notebook shows; of
            ``settings``, a figure an axis, a dict of them.

        Raises:
            ValueError: there is no such figure; the message lists those there are.
        """
        drawn = FIGURES[checks.choice("figure", name, FIGURES)](self.results)
        for one in drawn.values() if isinstance(drawn, dict) else [drawn]:
            one._repr_png_ = partial(png, one)  # whichever backend a notebook has
        return drawn


def _value(held: Any) -> Any:
    """Return a value of an axis as it was before JSON: its lists were tuples."""
    return tuple(map(_value, held)) if isinstance(held, list) else held


def _table(held: Mapping[str, Any]) -> Table:
    """Return a table from its fields.

    Raises:
        ValueError: its rows are not as long as its header.
    """
    header, rows = tuple(map(str, held["header"])), tuple(tuple(map(str, r)) for r in held["rows"])
    if any(len(row) != len(header) for row in rows):
        raise ValueError("rows of a table are not as long as its header")
    notes = tuple(map(str, held["notes"]))
    return Table(str(held["title"]), header, rows, int(held["left"]), notes)


def _runs(folder: Path, names: Iterable[str]) -> list[Run]:
    """Return the runs of a study's folder that its rows are of."""
    there = {path.parent.name for path in folder.glob(f"runs/*/{RECORD}")}
    return [load_run(folder / "runs" / name) for name in names if name in there]


def read_study(folder: str | Path, *, runs: bool = True) -> HeldStudy:
    """Read a finished study's folder, perhaps without its runs.

    Raises:
        ValueError: it holds no finished study, or a damaged one; the message names the file.

    Example:
        >>> read_study("results/no-such-study")
        Traceback (most recent call last):
        ...
        ValueError: results/no-such-study holds no finished study: there is no table.json in it
    """
    folder = Path(folder)
    path = folder / "table.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no finished study: there is no table.json in it")
    content = read_json(path)
    try:
        axes = tuple(Axis(str(a["name"]), str(a["title"])) for a in content.pop("axes"))
        tables = {str(k): _table(held) for k, held in content.pop("tables").items()}
        notes = tuple(map(str, content.pop("notes")))
        reference = {
            source: {m: {float(v): float(a) for v, a in by.items()} for m, by in figures.items()}
            for source, figures in content.pop("reference").items()
        }
        names = {axis.name for axis in axes}
        rows = [
            {k: _value(v) if k in names else v for k, v in row.items()}
            for row in content.pop("rows")
        ]
        needed = {"method", "selection", "seed", "run", "status", "readout", "measures", *names}
        if not axes or not all(needed <= row.keys() for row in rows):
            raise ValueError("rows lack what a study's rows have")
        dataset = str(content["dataset"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged, or older than this version: {error}; the study's own command, or "
            f"mcr2 reread {folder}, writes it anew"
        ) from error
    found = _runs(folder, dict.fromkeys(row["run"] for row in rows)) if runs else []
    results = Results(dataset, axes, rows, found, reference)
    return HeldStudy(folder, content, results, tables, notes)
