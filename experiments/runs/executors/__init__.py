"""Many planned runs at a time: an executor runs them, here or elsewhere, and one loop waits.

An executor is a class with the four methods of :class:`Executor` and a line in :data:`EXECUTORS`,
or one of a user's own, ``--executor path/to/file.py:Class``; docs/cluster.md shows one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from experiments.runs.executors.local import Local, process_context
from experiments.runs.executors.slurm import Slurm
from experiments.runs.machine import Machine
from experiments.runs.options import ExecutorOptions
from experiments.runs.processes import torchrun_rank
from experiments.runs.runner import ERROR, PROGRESS, PlannedRun, complete
from experiments.runs.signals import STOP
from experiments.runs.user_code import is_user_code, load_object
from mcr2 import checks
from mcr2.records import Run, read_signed

__all__ = ["EXECUTORS", "Executor", "Outcome", "make_executor", "process_context", "run_planned"]


class Executor(Protocol):
    """Where runs are run. What it needs is checked when it is made: ValueError in one line.

    Each run is to be made by :func:`experiments.runs.executors.local.work` or what amounts to it:
    results and errors are left in its folder, from where they are read.
    """

    #: How many runs go on at a time, at the most.
    at_once: int

    def __init__(
        self, options: ExecutorOptions, machines: Sequence[Machine], out: Path, /
    ) -> None: ...

    def submit(self, cells: Sequence[PlannedRun]) -> None:
        """Take all runs that are to be run; called once."""
        ...

    def ended(self) -> Mapping[PlannedRun, str]:
        """Return the runs that have ended since the last call, and how, for one without a record.

        Called a few times a second.
        """
        ...

    def running(self) -> Sequence[PlannedRun]:
        """Return the runs that go on."""
        ...

    def close(self) -> None:
        """End what must not outlive the command; called once, whether all has ended or not."""
        ...


EXECUTORS: dict[str, type[Executor]] = {"local": Local, "slurm": Slurm}


@dataclass(frozen=True)
class Outcome:
    """How a planned run ended: with a record, or with an error that another try may mend."""

    planned: PlannedRun
    run: Run | None
    error: str | None = None

    @property
    def failure(self) -> str | None:
        """Why it failed; None where it finished."""
        return self.error if self.run is None else self.run.record.reason


def make_executor(options: ExecutorOptions, machine: Machine, out: Path) -> Executor:
    """Return the executor that options ask for.

    Args:
        options: its name, and what it goes by.
        machine: how each run uses its machine; its device is replaced by each of ``--devices``.
        out: folder of the study.

    Raises:
        ValueError: there is no such executor, or it cannot do what is asked.
    """
    if torchrun_rank() is not None:
        raise ValueError("torchrun is for mcr2 train; give a study --processes instead")
    if options.devices and options.device != "auto":
        raise ValueError("--device and --devices are both given; do one of them")
    machines = [replace(machine, device=each) for each in options.devices or (machine.device,)]
    if is_user_code(options.executor):
        kind = load_object(options.executor)[0]
    else:
        kind = EXECUTORS[checks.choice("executor", options.executor, EXECUTORS)]
    made: Executor = kind(options, machines, out)
    return made


def run_planned(
    planned: Sequence[PlannedRun],
    executor: Executor,
    *,
    watch: Callable[[list[Outcome], dict[PlannedRun, dict[str, Any]]], None] | None = None,
) -> list[Outcome]:
    """Have an executor run what is not complete, and return how each ended.

    Args:
        planned: what to run; complete runs are only read.
        executor: what runs them.
        watch: called after every poll with the outcomes so far and each running one's progress.

    Returns:
        One outcome a run, in the order of ``planned``.
    """
    outcomes = {one: Outcome(one, held) for one in planned if (held := complete(one))}
    left = {one for one in planned if one not in outcomes}
    try:
        if left:
            executor.submit([one for one in planned if one in left])
        while left:
            ended = executor.ended()
            outcomes |= {one: _outcome(one, how) for one, how in ended.items()}
            left -= set(ended)
            if watch is not None:
                watch(
                    list(outcomes.values()),
                    {one: last_progress(one.folder) for one in executor.running()},
                )
            time.sleep(0.2 if left else 0)
            STOP.raise_if_stopped()
    finally:  # a second signal raises here
        executor.close()
    STOP.nobody_asks()
    return [outcomes[one] for one in planned]


def last_progress(folder: Path) -> dict[str, Any]:
    """Return what a run has last told of itself; nothing where it has not."""
    try:
        return read_signed(folder / PROGRESS)
    except (OSError, ValueError):
        return {}


def error_of(folder: Path) -> str | None:
    """Return why a run ended without a record, in a line, where it left that in its folder."""
    error = folder / ERROR
    if not error.exists():
        return None
    reason = error.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    return f"{reason} (traceback in {error})"


def _outcome(one: PlannedRun, how: str) -> Outcome:
    held = complete(one)
    return Outcome(one, held, None if held else error_of(one.folder) or how)
