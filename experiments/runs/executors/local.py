"""The executor ``local``: many runs at a time, each in a process of its own on this machine."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from experiments.runs.machine import Machine
from experiments.runs.options import ExecutorOptions
from experiments.runs.runner import ERROR, PROGRESS, PlannedRun, run
from experiments.runs.signals import STOP, Stopped
from experiments.runs.specs import as_dict, from_dict
from mcr2.records import write_signed, write_text
from mcr2.training import Interrupted, Progress


class Local:
    """Runs in processes of this machine: ``--jobs`` at a time on each device, which take turns."""

    def __init__(self, options: ExecutorOptions, machines: Sequence[Machine], out: Path) -> None:
        if options.slurm or options.cells_per_job is not None:
            raise ValueError("--slurm and --cells-per-job are for --executor slurm")
        #: The machine of each run that may go on at a time.
        asked = 1 if options.jobs is None and len(machines) > 1 else options.jobs
        self.slots = [one for _ in range(machines[0].jobs(asked)) for one in machines]
        self.at_once = len(self.slots)
        self._free, self._waiting = list(self.slots), list[PlannedRun]()
        self._running: dict[PlannedRun, tuple[BaseProcess, Machine]] = {}
        self._context = process_context()

    def submit(self, cells: Sequence[PlannedRun]) -> None:
        """Take runs; they begin as slots get free."""
        self._waiting = list(cells)

    def ended(self) -> dict[PlannedRun, str]:
        """Begin what there is room for, and return what has ended."""
        ended = {}
        for one, (process, machine) in list(self._running.items()):
            if not process.is_alive():
                process.join()
                del self._running[one]
                self._free.append(machine)
                ended[one] = _how(process.exitcode or 0)
        while self._waiting and self._free:
            one, machine = self._waiting.pop(0), self._free.pop(0)
            arguments = (as_dict(one.spec), str(one.folder), machine)
            process = self._context.Process(target=work, args=arguments, daemon=True)
            process.start()
            self._running[one] = process, machine
        return ended

    def running(self) -> list[PlannedRun]:
        """Return the runs that go on."""
        return list(self._running)

    def close(self) -> None:
        """Stop what goes on; a second signal raises here, and it dies with this process."""
        for process, _ in self._running.values():
            process.terminate()
        for process, _ in self._running.values():
            process.join()


def _how(exitcode: int) -> str:
    how = f"was killed by signal {-exitcode}" if exitcode < 0 else f"ended with {exitcode}"
    return f"its process {how} and left no record"


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
    ours = ("experiments.runs.shielded", "experiments.runs.executors")
    modules = [*ours, "torch._dynamo", *(f"sklearn.{m}" for m in fitted)]
    context.set_forkserver_preload(modules)
    return context


def work(spec: dict[str, Any], folder: str, machine: Machine) -> None:
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
        STOP.patient = True
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
