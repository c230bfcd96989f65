"""What a study measures of each run of a grid beside its evaluation, or by training on its own.

Each run is measured in a process of its own, and leaves what was found in its folder: the same
command measures what is missing, and reads the rest.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.studies.engine import GridStudy

if TYPE_CHECKING:
    from experiments.report.results import Results
    from experiments.report.statistics import Estimate
    from experiments.runs.executors import Outcome
    from experiments.runs.runner import PlannedRun
    from experiments.runs.specs import RunSpec

#: In a run's folder: what the study measured, and of what.
MEASURED = "measured.json"

#: Raised where a study measures something otherwise than before.
MEASURED_FORMAT = 1

#: What was measured: values by name.
Row = dict[str, Any]


@dataclass(frozen=True)
class MeasuredStudy(GridStudy):
    """A grid of specs, of each of which the study measures something of its own.

    A subclass has :meth:`measure`; ``Results.extra`` holds the rows of all runs, each with the
    run's method, values of the axes and seed, unless it has its own of these names.
    """

    #: Options of the study that :meth:`measure` depends on: where one changes, it is done again.
    measured_by: ClassVar[tuple[str, ...]] = ()
    #: Whether runs are made and evaluated first; otherwise :meth:`measure` trains.
    makes_runs: ClassVar[bool] = True

    def measure(self, planned: PlannedRun) -> list[Row]:
        """Return what was measured of a run: rows of plain values."""
        raise NotImplementedError

    def run(self, planned: Sequence[PlannedRun], out: Path, jobs: int) -> int:
        """Run what is not complete where there are runs, then measure."""
        if self.makes_runs:
            return super().run(planned, out, jobs)
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
        """Return a run's rows; without runs one, which says how measuring ended."""
        if self.makes_runs:
            return super().rows(outcome)
        from experiments.report.rows import axis_value

        spec, why = outcome.planned.spec, outcome.failure
        return [
            {
                "method": spec.method,
                "selection": "last",
                **{axis.name: axis_value(spec, axis.name) for axis in self.study_axes()},
                "seed": spec.seed,
                "status": "finished" if why is None else "failed",
                "reason": why,
                "run": outcome.planned.folder.name,
                "measures": {},
            }
        ]

    def describe(self, spec: RunSpec) -> str:
        """Return what tells a run from the others; what is selected goes without saying."""
        return super().describe(replace(spec, selections=None))

    def facts(self, results: Results) -> dict[str, Any]:
        """Return what was measured."""
        return {"measured": results.extra}

    def held(self, planned: PlannedRun) -> list[Row] | None:
        """Return what was measured of a run before, by the same options; None of nothing."""
        from experiments.runs.runner import set_aside
        from mcr2.records import read_signed

        path = planned.folder / MEASURED
        if not path.is_file():
            return None
        try:
            found = read_signed(path)
        except ValueError as error:
            set_aside(path, error)
            return None
        return list(found["rows"]) if found.get("key") == self._key(planned) else None

    def _key(self, planned: PlannedRun) -> str:
        from mcr2.records import content_key

        options = {name: getattr(self, name) for name in self.measured_by}
        return content_key(MEASURED_FORMAT, planned.key, options)

    def _measure_all(self, planned: Sequence[PlannedRun]) -> dict[PlannedRun, str]:
        """Measure what is missing, and return what could not be measured, and why."""
        from experiments.report.table import visible
        from experiments.runs.executors import process_context
        from experiments.runs.signals import STOP

        left = [one for one in planned if self.held(one) is None]
        failed: dict[PlannedRun, str] = {}

        def tell(number: int, one: PlannedRun, why: str | None) -> None:
            if why is not None:
                failed[one] = why
            ended = "measured" if why is None else f"failed, {why}"
            print(visible(f"[{number}/{len(left)}] {self.describe(one.spec)}: {ended}"), flush=True)

        jobs = min(self.machine().jobs(self.jobs), len(left))
        if jobs <= 1:
            for number, one in enumerate(left, 1):
                tell(number, one, _measure(self, one))
                STOP.raise_if_stopped()
            return failed
        with ProcessPoolExecutor(jobs, mp_context=process_context()) as pool:
            going = {pool.submit(_measure, self, one): one for one in left}
            try:
                while going:
                    done, _ = wait(going, timeout=0.2, return_when=FIRST_COMPLETED)
                    for future in done:
                        number = len(left) - len(going) + 1
                        tell(number, going.pop(future), future.result())
                    STOP.raise_if_stopped()
            except BaseException:  # what goes on is finished and kept, the rest is not begun
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        STOP.nobody_asks()
        return failed


def _measure(study: MeasuredStudy, planned: PlannedRun) -> str | None:
    """Measure a run and write what was found; return why that failed."""
    from experiments.runs.runner import ERROR
    from mcr2.records import plain, write_signed, write_text

    study.machine().configure_torch()
    folder = planned.folder
    (folder / ERROR).unlink(missing_ok=True)
    try:
        rows = plain(study.measure(planned))
        write_signed(folder / MEASURED, {"key": study._key(planned), "rows": rows})
    except Exception as error:
        text = traceback.format_exc().encode("utf-8", "backslashreplace").decode()
        write_text(folder / ERROR, text)
        reason = " ".join(str(error).split())
        return f"{type(error).__name__}: {reason} (traceback in {folder / ERROR})"
    return None


def by_seed(results: Results, name: str, **where: Any) -> dict[int, float]:
    """Return what was measured under a name, by seed, where it is defined."""
    from experiments.report.statistics import matching

    rows = matching(results.extra, **where)
    return {row["seed"]: row[name] for row in rows if row[name] is not None}


def over_seeds(results: Results, name: str, **where: Any) -> Estimate | None:
    """Return the mean over seeds of what was measured under a name, with its interval."""
    from experiments.report.statistics import estimate

    return estimate(list(by_seed(results, name, **where).values()))
