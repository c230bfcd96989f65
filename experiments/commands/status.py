"""``mcr2 status``: what of a study runs, waits, failed and is done, wherever its runs go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from experiments.runs.terminal import say, warn
from experiments.studies.engine import CELLS, STUDY

if TYPE_CHECKING:
    from experiments.runs.executors.slurm import Queued

#: What a run can be, in the order in which it is told.
STATES = ("done", "failed", "running", "waiting", "left")


@dataclass(frozen=True)
class Status:
    """Say what of a study runs, waits, failed and is done; nothing is run or changed."""

    out: tyro.conf.Positional[Path]
    """Folder of the study."""

    def prepare(self) -> Callable[[], int]:
        """Read which runs the study's last command planned."""
        cells = planned_cells(self.out)

        def go() -> int:
            from experiments.runs.executors.slurm import queue

            try:
                queued = queue(self.out.absolute() / "slurm")
            except OSError as error:
                warn(f"{error}; which jobs wait or run is not known")
                queued = {}
            told: dict[str, list[tuple[str, str]]] = {state: [] for state in STATES}
            for folder, name in cells:
                state, detail = state_of(self.out / "runs" / folder, queued.get(folder))
                told[state].append((name, detail))
            counts = ", ".join(f"{len(found)} {state}" for state, found in told.items() if found)
            say(f"{len(cells)} runs in {self.out}: {counts}")
            for state in ("failed", "running"):
                for name, detail in told[state]:
                    say(f"{state}: {name}: {detail}")
            for why, count in Counter(why for _, why in told["waiting"]).items():
                say(f"waiting: {count}, {why}")
            if told["left"]:
                say(f"left: {len(told['left'])}, which the study's command begins or continues")
            return 0

        return go


def planned_cells(out: Path) -> list[list[str]]:
    """Return the folders of the planned runs of a study, and what tells each from the others.

    Raises:
        ValueError: the folder holds no study of runs.
    """
    from mcr2.records import read_signed

    if (out / CELLS).is_file():
        return list(read_signed(out / CELLS)["cells"])
    if not (out / STUDY).is_file() or not (out / "runs").is_dir():
        raise ValueError(f"{out} holds no study of runs")
    return [[path.name, path.name] for path in sorted((out / "runs").iterdir())]


def state_of(folder: Path, at: Queued | None) -> tuple[str, str]:
    """Return what a run is, one of :data:`STATES`, and a line on it.

    Args:
        folder: the run's.
        at: what the scheduler says of its job, if it ever had one.
    """
    from filelock import FileLock, Timeout

    from experiments.runs.executors import error_of, last_progress
    from mcr2.records import EVALUATION, RECORD, load_run

    if (folder / RECORD).is_file():
        try:
            record = load_run(folder, evaluated=False).record
        except ValueError as error:
            return "left", str(error)
        if record.status == "failed":
            return "failed", f"{record.reason} ({folder / RECORD})"
        if (folder / EVALUATION).is_file():
            return "done", ""
    if (why := error_of(folder)) is not None:
        return "failed", why
    progress = last_progress(folder)
    where = f"epoch {progress['epoch']}/{progress['epochs']}" if progress else "starting"
    if at is not None and at.live:
        if at.state != "RUNNING":
            return "waiting", f"Slurm: {at.state}, {at.reason}"
        return "running", f"{where} (job {at.job}; log: {at.log()})"
    if (folder / ".lock").is_file():
        try:
            with FileLock(folder / ".lock", timeout=0):
                pass
        except Timeout:
            return "running", where
    if at is not None and at.state != "COMPLETED" and (log := at.log()):
        return "failed", f"its job {at.job} ended ({at.why}; log: {log})"
    return "left", ""
