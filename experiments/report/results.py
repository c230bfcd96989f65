"""The results of a study: what all its tables and figures are functions of.

A study varies :class:`Axis` after axis beside methods and seeds. The first axis makes columns of
tables and the abscissa of figures; the further ones make rows and lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

from experiments.report.axis import Axis
from experiments.report.canvas import COLOURS
from experiments.report.statistics import Estimate, Row, matching, mean_of
from experiments.report.table import short
from mcr2.records import Record, Run
from mcr2.selection import SELECTIONS

#: Methods that keep their colour whatever else a study compares.
FIRST = ("ce", "mcr2")


class Line(NamedTuple):
    """A line of a figure: its name, its colour, and the values of rows that it is of.

    ``averaged`` says whether it is a mean over settings, not over seeds alone.
    """

    label: str
    colour: str
    where: Mapping[str, Any]
    averaged: bool = False


@dataclass(frozen=True)
class Results:
    """A study's rows and the runs behind them.

    Attributes:
        axes: what was varied, at least one.
        rows: one for each run and selection rule, see :func:`experiments.report.rows.rows_of`.
        runs: those that left a record, failed ones too.
        reference: published accuracies: source -> method -> value of the first axis -> accuracy.
        extra: what the study measured beside its runs.
    """

    dataset: str
    axes: tuple[Axis, ...]
    rows: Sequence[Row]
    runs: Sequence[Run]
    reference: Mapping[str, Mapping[str, Mapping[Any, float]]] = field(default_factory=dict)
    extra: Sequence[Mapping[str, Any]] = ()

    @cached_property
    def names(self) -> dict[str, str]:
        """Methods in the order given, and what they are called where there is little room."""
        return short_names(list(dict.fromkeys(row["method"] for row in self.rows)))

    @cached_property
    def colours(self) -> dict[str, str]:
        """Each method's colour: cross-entropy and MCR² always theirs, the others in turn."""
        others = [m for m in self.names if m not in FIRST]
        rest = COLOURS[len(FIRST) :]
        found = {m: rest[i % len(rest)] for i, m in enumerate(others)}
        return found | dict(zip(FIRST, COLOURS, strict=False))

    @cached_property
    def rules(self) -> list[str]:
        """The selection rules that rows are of, in the order of ``SELECTIONS``."""
        present = {row["selection"] for row in self.rows}
        return [rule for rule in SELECTIONS if rule in present]

    @cached_property
    def seeds(self) -> int:
        """How many seeds there are."""
        return len({row["seed"] for row in self.rows})

    @property
    def interval(self) -> str:
        """What ± means."""
        if self.seeds == 1:
            return "one seed: no interval"
        return f"mean ± half-width of the 95 % interval over {self.seeds} seeds"

    def values(self, axis: Axis | None = None) -> list[Any]:
        """Return the values of an axis, by default the first: numbers rising, others as they came.

        Example:
            >>> from experiments.report.axis import RATIO
            >>> rows = [{"ratio": 0.5, "projection": "mlp"}, {"ratio": 0, "projection": "mlp"}]
            >>> Results("digits", (RATIO,), rows, ()).values()
            [0, 0.5]
        """
        name = (axis or self.axes[0]).name
        found = list(dict.fromkeys(row[name] for row in self.rows))
        return sorted(found) if are_numbers(found) else found

    @property
    def ends(self) -> list[Any]:
        """The first and the last value of the first axis, once where they are one."""
        values = self.values()
        return list(dict.fromkeys((values[0], values[-1])))

    def at(self, value: Any) -> str:
        """Return a value of the first axis with its name."""
        return f"{self.axes[0].name} {value_text(value)}"

    @cached_property
    def cases(self) -> list[dict[str, Any]]:
        """Each method at each setting of the further axes: what rows of tables are of."""
        orders = {"method": list(self.names)}
        orders |= {axis.name: self.values(axis) for axis in self.axes[1:]}
        cases = (dict(zip(orders, values, strict=True)) for values in product(*orders.values()))
        return [case for case in cases if matching(self.rows, **case)]

    def named(self, case: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the columns that name a case: its method, and a value of every further axis."""
        settings = (value_text(case[axis.name]) for axis in self.axes[1:])
        return (self.names[case["method"]], *settings)

    @cached_property
    def lines(self) -> list[Line]:
        """The lines of figures: the cases, or the methods where those are more than colours."""
        varied = [axis.name for axis in self.axes[1:] if len(self.values(axis)) > 1]
        averaged = bool(varied) and len(self.cases) > len(COLOURS)
        if averaged or not varied:
            over = f", mean over {', '.join(varied)}" if averaged else ""
            return [
                Line(name + over, self.colours[m], {"method": m}, averaged)
                for m, name in self.names.items()
            ]
        found = []
        for case, colour in zip(self.cases, COLOURS, strict=False):
            method = [self.names[case["method"]]] if len(self.names) > 1 else []
            settings = [f"{name} {value_text(case[name])}" for name in varied]
            found.append(Line(", ".join(method + settings), colour, case))
        return found

    def along(self, axis: Axis) -> Results:
        """Return the same results with another axis as the first one."""
        return replace(self, axes=(axis, *(other for other in self.axes if other != axis)))

    def over_seeds(self, measure: str, /, **where: Any) -> Estimate | None:
        """Return a scalar's estimate over the rows that have these values and it."""
        return mean_of(self.rows, measure, **where)

    def estimates(
        self, measure: str, where: Mapping[str, Any], selection: str = "last"
    ) -> list[Estimate | None]:
        """Return a scalar's estimate at every value of the first axis."""
        axis = self.axes[0].name
        return [
            self.over_seeds(measure, **{**where, "selection": selection, axis: value})
            for value in self.values()
        ]

    def runs_of(self, method: str, **where: Any) -> list[Run]:
        """Return the finished runs that the last epoch is read from, one a seed and setting."""
        found = matching(self.rows, method=method, selection="last", status="finished", **where)
        folders = {row["run"] for row in found}
        return [run for run in self.runs if run.folder.name in folders]

    def readout_of(self, method: str, **where: Any) -> str:
        """Return the readout that a method's accuracies are reported with."""
        found = matching(self.rows, method=method, **where)
        return ", ".join(sorted({row["readout"] for row in found if row["readout"]})) or "-"


def constructed(record: Record) -> bool:
    """Whether a network was constructed layer by layer: it took steps without a learning rate."""
    return record.steps > 0 and record.history[-1].get("lr") is None


def short_names(methods: Sequence[str]) -> dict[str, str]:
    """Return what methods are called where there is little room: a user's file without its folder.

    Example:
        >>> short_names(["ce", "/some/where/loss.py:Pull"])
        {'ce': 'ce', '/some/where/loss.py:Pull': 'loss.py:Pull'}
    """
    for names in ({m: short(Path(m).name) for m in methods}, {m: short(m) for m in methods}):
        if len(set(names.values())) == len(names):
            return names
    return {m: f"{name} ({i})" for i, (m, name) in enumerate(names.items(), start=1)}


def are_numbers(values: Sequence[Any]) -> bool:
    """Whether values are all numbers; booleans are not."""
    return all(isinstance(v, Real) and not isinstance(v, bool) for v in values)


def value_text(value: Any) -> str:
    """Return a value of an axis as text.

    Example:
        >>> value_text(0.30000000001), value_text((200, 400)), value_text(()), value_text(None)
        ('0.3', '200+400', '-', 'None')
    """
    if isinstance(value, tuple):
        return "+".join(map(value_text, value)) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)
