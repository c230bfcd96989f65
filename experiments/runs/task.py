"""What a task of a Slurm array does: the runs that a signed file names, as the local executor does.

    python -m experiments.runs.task OUT/slurm/NAME/batch.json

A signal (time is nearly up, or another job takes the node) ends the runs after a step, with a
checkpoint; then the job is queued again, unless somebody else has ended or requeued it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from experiments.runs.scheduler import requeue
from experiments.runs.signals import STOP, Stopped
from experiments.runs.terminal import say, warn


def main(path: str, task: int) -> int:
    """Make the runs of a task; return the exit status."""
    with STOP:
        try:
            return _run(path, task)
        except Stopped as stopped:
            restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
            warn(f"{stopped}; {requeue(os.environ['SLURM_JOB_ID'], restarts)}")
            return stopped.status


def _run(path: str, task: int) -> int:
    # Imported here: a signal may come before torch is there.
    from experiments.runs.executors import run_planned
    from experiments.runs.executors.local import Local
    from experiments.runs.machine import Machine
    from experiments.runs.options import ExecutorOptions
    from experiments.runs.runner import PlannedRun
    from experiments.runs.specs import from_dict
    from mcr2.records import read_signed

    batch = read_signed(path)
    cells = [
        PlannedRun(from_dict(one["spec"]), one["key"], one["data"], Path(one["folder"]))
        for one in batch["tasks"][task]
    ]
    machines = [Machine(**one) for one in batch["machines"]]
    local = Local(ExecutorOptions(jobs=batch["jobs"]), machines, Path(path).parent)
    outcomes = run_planned(cells, local)
    for one in outcomes:
        say(f"{one.planned.folder}: {one.failure or 'finished'}")
    return int(any(one.failure for one in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(os.environ["SLURM_ARRAY_TASK_ID"])))
