"""What a study measures of each run of a grid beside its evaluation, or by training on its own.

Each run is measured in a process of its own, and leaves what was found in its folder: the same
command measures what is missing, and reads the rest.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.report.statistics import Estimate, matching, mean_of, shown
from experiments.runs.terminal import say
from experiments.studies.claims import ClaimStudy

if TYPE_CHECKING:
    from experiments.report.results import Results
    from experiments.runs.executors import Executor, Outcome
    from experiments.runs.runner import PlannedRun
    from experiments.runs.specs import RunSpec
    from mcr2.data import Split
    from mcr2.training import Encoder, Feed, TrainingConfig, TrainingResult

#: In a run's folder: what the study measured, and of what.
MEASURED = "measured.json"

#: Raised where a study measures something otherwise than before.
MEASURED_FORMAT = 1

#: What was measured: values by name.
Row = dict[str, Any]


@dataclass(frozen=True)
class MeasuredStudy(ClaimStudy):
    """A grid of specs, of each of which the study measures something of its own.

    A subclass has :meth:`measure`; ``Results.extra`` holds the rows of all runs, each with the
    run's method, values of the axes and seed, unless it has its own of these names.
    """

    #: Options of the study that :meth:`measure` depends on: where one changes, it is done again.
    measured_by: ClassVar[tuple[str, ...]] = ()
    #: Whether runs are made and evaluated first; otherwise :meth:`measure` trains.
    makes_runs: ClassVar[bool] = True
    not_estimated: ClassVar[str] = "what is measured of each run beside its evaluation"

    def measure(self, planned: PlannedRun) -> list[Row]:
        """Return what was measured of a run: rows of plain values."""
        raise NotImplementedError

    def prepare(self) -> Callable[[], int]:
        """Refuse what is to train elsewhere where the study trains as it measures."""
        if not self.makes_runs and self.executor != "local":
            raise ValueError(f"{self.name} trains as it measures, which is done here: local only")
        return super().prepare()

    def run(self, planned: Sequence[PlannedRun], out: Path, executor: Executor) -> int:
        """Run what is not complete where there are runs, then measure."""
        if self.makes_runs:
            return super().run(planned, out, executor)
        from experiments.runs.executors import Outcome

        return self.show([Outcome(one, None) for one in planned], out)

    def show(self, outcomes: Sequence[Outcome], out: Path, seconds: float | None = None) -> int:
        """Measure what is not measured yet; then print and write everything."""
        failed = self._measure_all([one.planned for one in outcomes if one.failure is None])
        held = [
            replace(one, run=None, error=failed[one.planned]) if one.planned in failed else one
            for one in outcomes
        ]
        return super().show(held, out, seconds)

    def results(self, outcomes: Sequence[Outcome]) -> Results:
        """Return what tables and figures are made of, with what was measured so far."""
        from experiments.report.rows import axis_value

        rows: list[Row] = []
        for outcome in outcomes:
            spec = outcome.planned.spec
            axes = {axis.name: axis_value(spec, axis.name) for axis in self.study_axes()}
            named = {"method": spec.method, **axes, "seed": spec.seed}
            rows += [named | row for row in self.held(outcome.planned) or ()]
        return replace(super().results(outcomes), extra=rows)

    def rows(self, outcome: Outcome) -> list[dict[str, Any]]:
        """Return a run's rows; without runs they only say how measuring ended."""
        rows = super().rows(outcome)
        if self.makes_runs:
            return rows
        return [row | {"status": "failed" if outcome.failure else "finished"} for row in rows]

    def describe(self, spec: RunSpec) -> str:
        """Return what tells a run from the others; what is selected goes without saying."""
        return super().describe(replace(spec, selections=None))

    def facts(self, results: Results) -> dict[str, Any]:
        """Return what was measured."""
        return {"measured": results.extra}

    def held(self, planned: PlannedRun) -> list[Row] | None:
        """Return what was measured of a run before, by the same options; None of nothing."""
        from experiments.runs.runner import read_or_set_aside

        found = read_or_set_aside(planned.folder / MEASURED)
        own = found is not None and found.get("key") == self._key(planned)
        return list(found["rows"]) if found is not None and own else None

    def _key(self, planned: PlannedRun) -> str:
        from mcr2.records import content_key

        options = {name: getattr(self, name) for name in self.measured_by}
        return content_key(MEASURED_FORMAT, planned.key, options)

    def _measure_all(self, planned: Sequence[PlannedRun]) -> dict[PlannedRun, str]:
        """Measure what is missing, and return what could not be measured, and why."""

        left = [one for one in planned if self.held(one) is None]
        failed: dict[PlannedRun, str] = {}
        told = 0

        def ended(one: PlannedRun) -> None:
            nonlocal told
            told += 1
            if self.held(one) is None:
                failed[one] = _reason(one.folder)
            how = f"failed, {failed[one]}" if one in failed else "measured"
            say(f"[{told}/{len(left)}] {self.describe(one.spec)}: {how}")

        jobs = min(self.machine().jobs(self.jobs), len(left))
        if jobs > 1:
            _in_processes(self, left, jobs, ended)
        else:
            for one in left:
                _measure(self, one)
                ended(one)
        return failed


def _in_processes(
    study: MeasuredStudy,
    left: Sequence[PlannedRun],
    jobs: int,
    ended: Callable[[PlannedRun], None],
) -> None:
    """Measure runs, so many at a time; where a signal asks for an end, all end at once."""
    from experiments.runs.executors import process_context
    from experiments.runs.signals import STOP

    waiting, context = list(left), process_context()
    running: dict[PlannedRun, Any] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                one = waiting.pop(0)
                running[one] = context.Process(target=_work, args=(study, one), daemon=True)
                running[one].start()
            time.sleep(0.2)
            STOP.raise_if_stopped()
            for one in [one for one, process in running.items() if not process.is_alive()]:
                running.pop(one).join()
                ended(one)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()
    STOP.nobody_asks()


def _work(study: MeasuredStudy, planned: PlannedRun) -> None:
    """Measure a run in a process of its own."""
    from experiments.runs.signals import STOP, Stopped

    try:
        with STOP:
            _measure(study, planned)
    except Stopped as stopped:
        os._exit(stopped.status)


def _measure(study: MeasuredStudy, planned: PlannedRun) -> None:
    """Measure a run and write what was found, or why that failed."""
    from experiments.runs.runner import ERROR
    from mcr2.records import plain, write_signed, write_text

    study.machine().configure_torch()
    folder = planned.folder
    (folder / ERROR).unlink(missing_ok=True)
    try:
        rows = plain(study.measure(planned))
        write_signed(folder / MEASURED, {"key": study._key(planned), "rows": rows})
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        text = f"{why}\n\n{traceback.format_exc()}"
        write_text(folder / ERROR, text.encode("utf-8", "backslashreplace").decode())


def _reason(folder: Path) -> str:
    """Return why a run in a folder could not be measured."""
    from experiments.runs.runner import ERROR

    error = folder / ERROR
    if not error.is_file():
        return "its process ended and left nothing"
    line = error.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    return f"{line} (traceback in {error})"


def train_watched(
    network: Encoder,
    split: Split,
    training: TrainingConfig,
    feed: Feed,
    observe: Callable[[Encoder], Row] | None = None,
) -> TrainingResult:
    """Train a network in place where its split lies, observed at every evaluation; keep no weights.

    Raises:
        ValueError: it failed; the reason.
    """
    from mcr2.training import Watch, train

    watch = Watch(evaluate=observe, keep=lambda _: set())
    parts = (network.backbone, network.objective)
    result = train(*parts, split, training, feed, watch, device=split.device)
    if result.reason is not None:
        raise ValueError(result.reason)
    return result


def by_seed(results: Results, name: str, **where: Any) -> dict[int, float]:
    """Return what was measured under a name, by seed, where it is defined."""
    rows = matching(results.extra, **where)
    return {row["seed"]: row[name] for row in rows if row[name] is not None}


def over_seeds(results: Results, name: str, **where: Any) -> Estimate | None:
    """Return the mean over seeds of what was measured under a name, with its interval."""
    return mean_of(results.extra, name, **where)


def over_axis(results: Results, name: str, **where: Any) -> dict[int, dict[Any, float]]:
    """Return what was measured under a name by seed and value of the first axis."""
    found: dict[int, dict[Any, float]] = {}
    axis = results.axes[0].name
    for value in results.values():
        for seed, held in by_seed(results, name, **where, **{axis: value}).items():
            found.setdefault(seed, {})[value] = held
    return found


def rise(by_value: Mapping[Any, float], values: Sequence[Any]) -> float | None:
    """Return by how much a measure rises from the least of an axis's values to the largest.

    None where it was not measured at both, or they are one.

    Example:
        >>> rise({1: -0.1, 10: 0.4}, [1, 10]), rise({10: 0.4}, [1, 10])
        (0.5, None)
    """
    low, high = by_value.get(min(values)), by_value.get(max(values))
    return None if low is None or high is None or len(values) < 2 else high - low


def entries(results: Results, name: str, places: int | None = None, **where: Any) -> list[str]:
    """Return a table's entries: means of what was measured, at the values of the first axis."""
    axis, seeds = results.axes[0].name, results.seeds
    means = (over_seeds(results, name, **where, **{axis: value}) for value in results.values())
    return [shown(mean, seeds, places) for mean in means]


def values_at(results: Results, name: str, axis: str, at: Sequence[Any], **where: Any) -> Any:
    """Return what was measured at values of an axis, a list over seeds for each: for a figure."""
    return [list(by_seed(results, name, **where, **{axis: value}).values()) for value in at]
