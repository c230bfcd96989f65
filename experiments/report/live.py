"""What a person sees while runs go on: a bar for one, a table and a line a run for many."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from experiments.runs.runner import Cell, Outcome
from experiments.runs.specs import RunSpec
from mcr2.training import Progress as Told


def label(spec: RunSpec) -> str:
    """Return a run's name on a line."""
    served = f" for {', '.join(spec.selections)}" if spec.selections else ""
    return f"{spec.method} ratio {spec.ratio:g} seed {spec.seed}{served}"


def told_line(told: Mapping[str, Any]) -> str:
    """Return loss terms and accuracies of a run's progress, shortly."""
    terms = {"loss": told["loss"], **told["terms"]}
    parts = [f"{name} {value:.3f}" for name, value in terms.items() if value is not None]
    for key, value in told["measures"].items():
        _, split, labels, readout, measure = key.split("/")
        if measure == "accuracy" and split in ("validation", "test") and readout != "ridge":
            parts.append(f"{split} {labels} {value:.3f}")
    return "  ".join(parts)


@contextlib.contextmanager
def training_bar(spec: RunSpec) -> Iterator[Callable[[Told], None]]:
    """Show one run: epochs, loss terms, accuracy and the time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("epoch {task.completed}/{task.total}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label(spec), total=spec.training.epochs, told="")

        def tell(told: Told) -> None:
            values = {"loss": told.loss, "terms": told.terms, "measures": told.measures}
            bar.update(task, completed=told.epoch, total=told.epochs, told=told_line(values))

        yield tell


class StudyView:
    """The table as far as it is known and a line a running cell; plain lines off a terminal.

    Args:
        total: how many cells there are.
        table: what to show of those that have ended.
        detail: what tells runs of one method, ratio and seed apart.
    """

    def __init__(
        self,
        total: int,
        table: Callable[[Sequence[Outcome]], str],
        detail: Callable[[RunSpec], str],
    ) -> None:
        self.console = Console(highlight=False)
        self.detail = detail
        self.total = total
        self.table = table
        self.live: Live | None = None
        self.announced = 0

    def __enter__(self) -> StudyView:
        if self.console.is_terminal:
            self.live = Live(console=self.console, transient=True, refresh_per_second=4)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def show(self, outcomes: Sequence[Outcome], running: Mapping[Cell, Mapping[str, Any]]) -> None:
        """Take note of what has finished and of what the running cells tell."""
        for outcome in outcomes[self.announced :]:
            self.announced += 1
            if self.live is None:
                self.console.print(
                    f"[{self.announced}/{self.total}] {self._label(outcome.cell)}: "
                    f"{_ended(outcome)}",
                    markup=False,
                    soft_wrap=True,
                )
        if self.live is not None:
            table = self.table(outcomes) if outcomes else "no run has finished yet"
            lines = [f"{self._label(cell)}: {_goes(told)}" for cell, told in running.items()]
            head = f"{len(outcomes)} of {self.total} runs finished"
            text = [Text(part) for part in (table, "", head, *lines)]
            self.live.update(Group(*text))

    def _label(self, cell: Cell) -> str:
        return label(cell.spec) + self.detail(cell.spec)


def _goes(told: Mapping[str, Any]) -> str:
    if not told:
        return "starting"
    left = told.get("seconds_left") or 0
    return f"epoch {told['epoch']}/{told['epochs']}, {left:.0f} s left  {told_line(told)}"


def _ended(outcome: Outcome) -> str:
    record = outcome.record
    if record is None:
        return f"failed, {outcome.error}"
    if record.status == "failed":
        return f"failed, {record.reason}"
    chosen = next(iter(record.selections.values()))
    accuracy = chosen["measures"][f"features/test/clean/{record.readout}/accuracy"]
    return (
        f"test accuracy {accuracy:.3f} by {record.readout} at epoch {chosen['epoch']} "
        f"({record.wall_seconds:.0f} s)"
    )
