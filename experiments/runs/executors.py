"""Many planned runs at a time, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from experiments.runs.machine import Machine
from experiments.runs.runner import ERROR, PROGRESS, PlannedRun, complete, run
from experiments.runs.signals import STOP, Stopped
from experiments.runs.specs import as_dict, from_dict
from mcr2.records import Run, read_signed, write_signed, write_text
from mcr2.training import Interrupted, Progress


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


def run_planned(
    planned: Sequence[PlannedRun],
    *,
    jobs: int,
    machine: Machine,
    watch: Callable[[list[Outcome], dict[PlannedRun, dict[str, Any]]], None] | None = None,
) -> list[Outcome]:
    """Run what is not complete, each in a process of its own, and return how each ended.

    Args:
        planned: what to run; complete runs are only read.
        jobs: processes at a time.
        machine: device and threads of each.
        watch: called after every poll with the outcomes so far and each running one's progress.

    Returns:
        One outcome a run, in the order of ``planned``.
    """
    outcomes = {one: Outcome(one, held) for one in planned if (held := complete(one))}
    waiting = [one for one in planned if one not in outcomes]
    running: dict[PlannedRun, BaseProcess] = {}
    context = process_context()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                one = waiting.pop(0)
                arguments = (as_dict(one.spec), str(one.folder), machine)
                process = context.Process(target=_work, args=arguments, daemon=True)
                process.start()
                running[one] = process
            time.sleep(0.2)
            STOP.raise_if_stopped()
            for one, process in list(running.items()):
                if not process.is_alive():
                    process.join()
                    del running[one]
                    outcomes[one] = _outcome(one, process.exitcode)
            if watch is not None:
                watch(list(outcomes.values()), {one: _progress(one) for one in running})
    finally:  # a second signal raises here, and what still runs dies with this process
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()
    STOP.nobody_asks()
    return [outcomes[one] for one in planned]


def process_context() -> Any:
    """Return how processes for runs are started: from a server that has imported torch.

    Where there is none (Windows), each process imports it. Plain forks are out: torch's threads
    and CUDA do not survive them. The current folder is not among the places that the processes
    import from.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # Imported once instead of in every run: torch.optim's first use imports torch._dynamo, which
    # takes as long as ten epochs on digits; the digits and some readouts are scikit-learn's.
    fitted = ("datasets", "linear_model", "svm")
    modules = ["experiments.runs.executors", "torch._dynamo", *(f"sklearn.{m}" for m in fitted)]
    context.set_forkserver_preload(modules)
    return context


def _work(spec: dict[str, Any], folder: str, machine: Machine) -> None:
    """Run one spec in its own process; errors go to a file, for the parent to report."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A study that is killed takes its runs along, so that the next one does not meet them.
        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
    place = Path(folder)
    told = 0.0

    def tell(progress: Progress) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= 0.5:
            told = now
            write_signed(place / PROGRESS, asdict(progress))

    try:
        with STOP:
            (place / ERROR).unlink(missing_ok=True)
            run(from_dict(spec), place, machine, progress=tell, stop=STOP)
    except Stopped as stopped:
        os._exit(stopped.status)
    except Interrupted:
        os._exit(128 + (STOP.signum or 0))
    except BaseException as error:
        place.mkdir(parents=True, exist_ok=True)
        text = f"{type(error).__name__}: {' '.join(str(error).split())}\n\n{traceback.format_exc()}"
        write_text(place / ERROR, text.encode("utf-8", "backslashreplace").decode())
        os._exit(1)


def _progress(one: PlannedRun) -> dict[str, Any]:
    try:
        return read_signed(one.folder / PROGRESS)
    except (OSError, ValueError):
        return {}


def _outcome(one: PlannedRun, exitcode: int | None) -> Outcome:
    held = complete(one)
    if held is not None:
        return Outcome(one, held)
    error = one.folder / ERROR
    if error.exists():
        reason = error.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        return Outcome(one, None, f"{reason} (traceback in {error})")
    killed = exitcode is not None and exitcode < 0
    how = f"was killed by signal {-(exitcode or 0)}" if killed else f"ended with {exitcode}"
    return Outcome(one, None, f"its process {how} and left no record")
