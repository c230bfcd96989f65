"""What a person sees while runs go on: a bar for one, a table and a line a run for many."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from rich import progress as bars
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from experiments.report.table import count_of, duration
from experiments.runs.executors import Outcome
from experiments.runs.method import CLASS_MEAN
from experiments.runs.runner import PlannedRun, complete
from experiments.runs.specs import RunSpec
from experiments.runs.terminal import visible
from mcr2.evaluation import measure_key
from mcr2.evaluation.results import FEATURES, Key
from mcr2.training import Progress


@contextlib.contextmanager
def training_bar(name: str, epochs: int) -> Iterator[Callable[[Progress], None]]:
    """Show one run: epochs, loss terms, accuracy and the time left."""
    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(bar_width=24),
        bars.TextColumn("epoch {task.completed}/{task.total}"),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[values]}", markup=False),
    )
    # Drawn once an epoch, and standard output left alone: breakpoint() in a loss has the terminal.
    console = Console(stderr=True)
    bar = bars.Progress(*columns, console=console, auto_refresh=False, redirect_stdout=False)
    task = bar.add_task(visible(name), total=epochs, values="")
    refresh = _in_notebook(bar) if console.is_jupyter else bar.refresh

    def show(progress: Progress) -> None:
        values = _values(asdict(progress))
        bar.update(task, completed=progress.epoch, total=progress.epochs, values=values)
        refresh()

    with contextlib.nullcontext() if console.is_jupyter else bar:
        yield show


def _in_notebook(bar: bars.Progress) -> Callable[[], None]:
    """Return what shows a bar in a cell's output; rich itself would need widgets for it."""
    display: Any = importlib.import_module("IPython.display").display
    console = Console(file=io.StringIO(), force_jupyter=False, width=240)
    shown = display({"text/plain": ""}, raw=True, display_id=True)

    def refresh() -> None:
        with console.capture() as text:
            console.print(bar)
        shown.update({"text/plain": text.get().rstrip()}, raw=True)

    return refresh


class StudyView:
    """The table of the planned runs as far as it is known, and a line a run that goes on.

    Off a terminal it is the plan, an estimate and a plain line for each run that has ended.
    """

    def __init__(
        self,
        planned: Sequence[PlannedRun],
        out: Path,
        jobs: int,
        table: Callable[[Sequence[Outcome]], str],
        describe: Callable[[RunSpec], str],
    ) -> None:
        self.planned, self.out, self.jobs = planned, out, jobs
        self.table, self.describe = table, describe
        self.there = {one for one in planned if complete(one) is not None}
        self.console = Console(highlight=False)
        self.live = Live(console=self.console, transient=True, refresh_per_second=4)
        self.announced, self.estimated = 0, False

    def __enter__(self) -> StudyView:
        there = f", {len(self.there)} there already" if self.there else ""
        at_once = f", {min(self.jobs, len(self.planned))} at a time"
        self._say(f"{count_of(len(self.planned), 'run')} in {self.out}{at_once}{there}")
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def show(
        self, outcomes: Sequence[Outcome], running: Mapping[PlannedRun, Mapping[str, Any]]
    ) -> None:
        """Show the runs that have ended, and the progress of those that go on."""
        left = self._left(outcomes, running)
        if self.console.is_terminal:
            table = self.table(outcomes) if outcomes else "no run has finished yet"
            lines = [
                visible(f"{self.describe(run.spec)}: {_status_line(progress)}")
                for run, progress in running.items()
            ]
            head = f"{len(outcomes)} of {count_of(len(self.planned), 'run')} finished{left}"
            self.live.update(Group(*map(Text, (table, "", head, *lines))))
            return
        if left and not self.estimated:
            self.estimated = True
            self._say(f"estimate{left}")
        for outcome in outcomes[self.announced :]:
            self.announced += 1
            already = "there already, " if outcome.planned in self.there else ""
            line = f"{self.describe(outcome.planned.spec)}: {already}{_outcome_line(outcome)}"
            self._say(f"[{self.announced}/{len(self.planned)}] {line}{'' if already else left}")

    def _say(self, text: str) -> None:
        self.console.print(visible(text), markup=False, soft_wrap=True)

    def _left(
        self, outcomes: Sequence[Outcome], running: Mapping[PlannedRun, Mapping[str, Any]]
    ) -> str:
        """Return the time left in words, nothing where it is not known or nothing is left.

        A run is taken to last as long as others of its method did, or as others did.
        """
        took: dict[str, list[float]] = {}
        left: dict[PlannedRun, float] = {}
        for outcome in outcomes:
            if outcome.run is not None:
                seconds = outcome.run.record.wall_seconds
                took.setdefault(outcome.planned.spec.method, []).append(seconds)
        for one, progress in running.items():
            if progress and progress["epoch"] and progress["seconds_left"]:
                left[one] = progress["seconds_left"]
                whole = progress["epochs"] / max(progress["epochs"] - progress["epoch"], 1)
                took.setdefault(one.spec.method, []).append(left[one] * whole)
        ended = {outcome.planned for outcome in outcomes}
        waiting = [one for one in self.planned if one not in ended]
        if not took or not waiting:
            return ""
        by_method = {method: mean(seconds) for method, seconds in took.items()}
        usual = mean(by_method.values())
        each = [left.get(one, by_method.get(one.spec.method, usual)) for one in waiting]
        return f", about {duration(max(sum(each) / self.jobs, *each))} left"


def _values(progress: Mapping[str, Any]) -> str:
    """Return loss terms and accuracies of a run's progress, shortly."""
    terms = {"loss": progress["loss"], **progress["terms"]}
    parts = [f"{name} {value:.3f}" for name, value in terms.items() if value is not None]
    for text, value in progress["measures"].items():
        key = Key.parse(text)
        own = key.layer == FEATURES and key.readout not in ("ridge", CLASS_MEAN)
        if key.measure == "accuracy" and key.split != "train" and own:
            parts.append(f"{key.split} {key.labels} {value:.3f}")
    return visible("  ".join(parts))


def _status_line(progress: Mapping[str, Any]) -> str:
    if not progress:
        return "starting"
    epoch, left = f"epoch {progress['epoch']}/{progress['epochs']}", progress["seconds_left"] or 0
    return f"{epoch}, {left:.0f} s left  {_values(progress)}"


def _outcome_line(outcome: Outcome) -> str:
    if outcome.run is None or outcome.failure is not None:
        return f"failed, {outcome.failure}"
    record = outcome.run.record
    entry = record.history[-1]
    key = measure_key("accuracy", split="test", labels="clean", readout=record.readout)
    return (
        f"test accuracy {entry['measures'][key]:.3f} by {record.readout} at epoch {entry['epoch']} "
        f"({record.wall_seconds:.0f} s)"
    )
