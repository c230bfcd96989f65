"""What a task of a Slurm array does: the runs that a signed file names, as the local executor does.

    python -m experiments.runs.executors.task OUT/slurm/NAME/batch.json

A signal (time is nearly up, or another job takes the node) ends the runs after a step, with a
checkpoint; then the job is queued again, unless somebody else has ended or requeued it.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from experiments.runs.executors import run_planned
from experiments.runs.executors.local import Local
from experiments.runs.executors.slurm import ask
from experiments.runs.machine import Machine
from experiments.runs.options import ExecutorOptions
from experiments.runs.runner import PlannedRun
from experiments.runs.signals import STOP, Stopped
from experiments.runs.specs import from_dict
from experiments.runs.terminal import say, warn
from mcr2.records import read_signed

#: A job that is never over is queued again no more often.
MOST_RESTARTS = 100


def main(path: str, task: int) -> int:
    """Make the runs of a task; return the exit status."""
    batch = read_signed(path)
    cells = [
        PlannedRun(from_dict(one["spec"]), one["key"], one["data"], Path(one["folder"]))
        for one in batch["tasks"][task]
    ]
    with STOP:
        try:
            machines = [Machine(**one) for one in batch["machines"]]
            local = Local(ExecutorOptions(jobs=batch["jobs"]), machines, Path(path).parent)
            outcomes = run_planned(cells, local)
        except Stopped as stopped:
            warn(f"{stopped}; {requeue()}")
            return stopped.status
    for one in outcomes:
        say(f"{one.planned.folder}: {one.failure or 'finished'}")
    return int(any(one.failure for one in outcomes))


def requeue() -> str:
    """Queue this job again if it still counts as running; return what was done."""
    job, restarts = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", 0))
    try:
        if not re.search(r"JobState=RUNNING\b", ask("scontrol", "show", "job", job)):
            return f"Slurm has decided about job {job}"
        if restarts >= MOST_RESTARTS:
            return f"job {job} was queued again {restarts} times, and is not once more"
        ask("scontrol", "requeue", job)
    except OSError as error:
        return f"job {job} cannot be queued again: {error}"
    return f"job {job} is queued again"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(os.environ["SLURM_ARRAY_TASK_ID"])))
