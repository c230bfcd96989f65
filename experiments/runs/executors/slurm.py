"""The executor ``slurm``: runs as tasks of job arrays, which go on without the command.

A job's task is a command of ours (:mod:`experiments.runs.task`), told by a signed JSON
file which runs are its own. ``submitit`` writes and submits the script; its own tasks are pickles,
which we neither write nor read, and its handler of signals ends a function where it stands, where a
run is to finish its step.

The scheduler is the only one to know what is queued: a batch's name, drawn anew, is its jobs' name.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from experiments.runs.machine import Machine
from experiments.runs.options import ExecutorOptions
from experiments.runs.runner import ERROR, PROGRESS, PlannedRun, complete
from experiments.runs.scheduler import array_limit, job_states
from experiments.runs.specs import as_dict
from experiments.runs.terminal import say, warn
from mcr2 import checks
from mcr2.records import RECORD, read_signed, write_signed

#: In a batch's folder, beside its logs: how its runs are to be run, and which are each task's.
BATCH = "batch.json"

_WORD, _COUNT, _MEMORY = r"\S+", r"[1-9]\d*", r"\d+[KMGT]?"

#: What ``--slurm`` takes, as sbatch and submitit name it, and what its values look like.
SETTINGS = {
    **dict.fromkeys(("partition", "account", "qos", "constraint"), _WORD),
    **dict.fromkeys(("nodelist", "exclude", "gres", "comment"), _WORD),
    "time": r"\d+|\d+(:\d\d){1,2}|\d+-\d+(:\d\d){0,2}",
    "gpus_per_node": r"(\w+:)?\d+",
    "cpus_per_task": _COUNT,
    "mem": _MEMORY,
    "mem_per_cpu": _MEMORY,
    "array_parallelism": _COUNT,
    "signal_delay_s": _COUNT,
}

#: States that a job does not leave; of any other it may still run.
OVER = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
)

#: Seconds between two questions to the scheduler, and for which a shared file system may not show
#: what a node has written.
POLL, UNSEEN = 5.0, 60.0


class Queued(NamedTuple):
    """What the scheduler says of a run's job: nothing (``state`` is None) when it is long over."""

    batch: Path
    task: int
    state: str | None = None
    reason: str = ""
    job: str = ""

    @property
    def live(self) -> bool:
        """Whether it waits or runs."""
        return self.state is not None and self.state not in OVER

    @property
    def why(self) -> str:
        """How its job stands or ended, in Slurm's word."""
        return self.state or "Slurm has forgotten how"

    def log(self) -> Path | None:
        """Return what its task has printed, where it has begun."""
        return next(iter(sorted(self.batch.glob(f"*_{self.task}_0_log.out"))), None)


class Slurm:
    """Runs in jobs of a cluster, ``--cells-per-job`` in each; ``--jobs`` of them at a time."""

    def __init__(self, options: ExecutorOptions, machines: Sequence[Machine], out: Path) -> None:
        self.settings = parse_settings(options.slurm)
        per_job, jobs = (1 if n is None else n for n in (options.cells_per_job, options.jobs))
        self.per_job = checks.integer("cells_per_job", per_job, 1)
        self.jobs = checks.integer("jobs", jobs, 1, 1024)
        gpus = self.settings.get("gpus_per_node", "").rpartition(":")[2]
        if gpus and int(gpus) < machines[0].processes:
            raise ValueError(
                f"--processes {machines[0].processes} needs a GPU each; gpus_per_node is {gpus}"
            )
        if find_spec("submitit") is None:
            raise ValueError(
                "--executor slurm needs the package submitit, which is not installed; "
                "pip install 'mcr2-robustness[slurm]' (from a clone: pip install -e '.[slurm]')"
            )
        if shutil.which("sbatch") is None:
            raise ValueError("--executor slurm needs sbatch: run it where jobs are submitted")
        self.machines, self.out = [asdict(one) | {"here": True} for one in machines], out
        self.folder = (out / "slurm").absolute()
        in_a_job = self.jobs * len(machines)
        self.at_once = int(self.settings.get("array_parallelism", 256)) * in_a_job
        self.settings.setdefault("cpus_per_task", str(machines[0].cores * in_a_job))
        self._left: dict[PlannedRun, float | None] = {}  # since when nothing is seen of it
        self._queued: dict[str, Queued] = {}
        self._due = 0.0

    def submit(self, cells: Sequence[PlannedRun]) -> None:
        """Submit what is neither queued nor running."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):  # another command of the same study waits
            queued = queue(self.folder)
            new = [o for o in cells if not ((at := queued.get(o.folder.name)) and at.live)]
            self._left = dict.fromkeys(cells)
            tasks = [new[i : i + self.per_job] for i in range(0, len(new), self.per_job)]
            limit = array_limit()
            for i in range(0, len(tasks), limit):
                self._submit_array(tasks[i : i + limit])
        there = f"{len(cells) - len(new)} of them already there, " * (len(new) < len(cells))
        where = f"logs in {self.out / 'slurm'}"
        say(f"Slurm: {len(cells)} runs, {there}{len(tasks)} jobs submitted; {where}")

    def ended(self) -> dict[PlannedRun, str]:
        """Ask the scheduler now and then, and return what is over."""
        now = time.monotonic()
        if now < self._due:
            return {}
        try:
            self._queued = queue(self.folder)
        except OSError as error:
            warn(f"{error}; it is asked again")
            return {}
        finally:
            self._due = max(now + POLL, time.monotonic() + 10 * (time.monotonic() - now))
        ended = {}
        for one, since in list(self._left.items()):
            at = self._queued.get(one.folder.name)
            if at is not None and at.live and not (at.state == "RUNNING" and _made(one)):
                self._left[one] = None
                continue
            seen = _made(one) or (one.folder / ERROR).exists()
            if seen or (since is not None and now - since > UNSEEN):
                del self._left[one]
                ended[one] = _how(at)
            elif since is None:
                self._left[one] = now
        return ended

    def running(self) -> list[PlannedRun]:
        """Return the runs whose jobs run."""
        at = self._queued
        return [o for o in self._left if (q := at.get(o.folder.name)) and q.state == "RUNNING"]

    def close(self) -> None:
        """Leave the jobs to the scheduler, and say so."""
        if not self._left:
            return
        names = ",".join(sorted({at.batch.name for at in self._queued.values() if at.live}))
        how = f", `scancel --name {names}` ends them" if names else ""
        say(
            f"{len(self._left)} runs are left to Slurm and go on: `mcr2 status {self.out}` shows "
            f"them, the same command collects them{how}"
        )

    def _submit_array(self, tasks: Sequence[Sequence[PlannedRun]]) -> None:
        """Submit an array of jobs, each with some runs."""
        import submitit

        name = f"mcr2-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        cells = [[_cell(one) for one in task] for task in tasks]
        how = {"machines": self.machines, "jobs": self.jobs}
        for one in (one for task in tasks for one in task):
            (one.folder / ERROR).unlink(missing_ok=True)  # of an earlier try
        write_signed(self.folder / name / BATCH, how | {"tasks": cells})
        settings: dict[str, Any] = {"time": None, "wckey": None} | self.settings
        settings["array_parallelism"] = int(settings.get("array_parallelism", 256))
        delay = settings.pop("signal_delay_s", 90)
        # Without srun the task is the job's own process, exec puts it where the signal goes.
        more = {"signal": f"B:USR2@{delay}", "requeue": True}
        executor = submitit.SlurmExecutor(self.folder / name)
        executor.update_parameters(
            **{"job_name": name, "stderr_to_stdout": True, "use_srun": False, **settings},
            additional_parameters=more,
        )
        executor.parameters["map_count"] = len(tasks)
        module = "experiments.runs.task"
        words = [sys.executable, "-P", "-u", "-m", module, str(self.folder / name / BATCH)]
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the error says it, too
                executor._submit_command(f"exec {shlex.join(words)}")
        except RuntimeError as error:
            shutil.rmtree(self.folder / name)
            raise OSError(f"sbatch refuses: {' '.join(str(error).split())}") from error


def parse_settings(texts: Sequence[str]) -> dict[str, str]:
    """Return what ``--slurm`` sets.

    Example:
        >>> parse_settings(["partition=gpu", "time=1:30:00"])
        {'partition': 'gpu', 'time': '1:30:00'}

    Raises:
        ValueError: one that is malformed, unknown or given twice.
    """
    settings: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--slurm {text!r} is not of the form KEY=VALUE")
        if key not in SETTINGS:
            raise ValueError(f"--slurm {text}: unknown {key!r}; choose from {', '.join(SETTINGS)}")
        if key in settings:
            raise ValueError(f"--slurm {text}: {key} is given twice")
        if not re.fullmatch(SETTINGS[key], value):
            raise ValueError(f"--slurm {text}: {value!r} is not a value of {key}")
        settings[key] = value
    return settings


def queue(folder: Path) -> dict[str, Queued]:
    """Return what became of the runs that were ever submitted from a folder, by their folders.

    Raises:
        OSError: the scheduler does not answer.
    """
    found: dict[str, Queued] = {}
    batches = sorted(folder.glob(f"*/{BATCH}"))  # by time
    states = job_states([path.parent.name for path in batches])
    for path in batches:
        for task, cells in enumerate(tasks_of(path)):
            known = states.get((path.parent.name, str(task)), ())
            at = Queued(path.parent, task, *known)
            for name in cells:
                if not (name in found and found[name].live):
                    found[name] = at
    return found


@functools.lru_cache(maxsize=1024)
def tasks_of(path: Path) -> list[list[str]]:
    """Return the names of the folders of the runs of each task of a batch; none if damaged."""
    try:
        return [[Path(c["folder"]).name for c in task] for task in read_signed(path)["tasks"]]
    except (ValueError, KeyError, TypeError) as error:
        warn(error)
        return []


def _cell(one: PlannedRun) -> dict[str, Any]:
    folder = str(one.folder.absolute())
    return {"spec": as_dict(one.spec), "key": one.key, "data": one.data, "folder": folder}


def _made(one: PlannedRun) -> bool:
    """Whether a run is over, whatever else its job has to do."""
    there = (one.folder / RECORD).is_file() and not (one.folder / PROGRESS).exists()
    return there and complete(one, mend=False) is not None


def _how(at: Queued | None) -> str:
    if at is None:
        return "it was never submitted"
    return f"its job {at.job} ended ({at.why}) and left no record (log: {at.log()})"
