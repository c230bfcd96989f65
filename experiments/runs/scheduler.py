"""Questions to Slurm, by its commands."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence


def ask(*words: str) -> str:
    """Return what a command of Slurm prints.

    Raises:
        OSError: it is not there, does not answer, or refuses.
    """
    try:
        done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60)
    except subprocess.CalledProcessError as error:
        raise OSError(f"{words[0]} fails: {' '.join(error.stderr.split())}") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{words[0]} does not answer") from error
    return done.stdout


def job_states(names: Sequence[str]) -> dict[tuple[str, str], tuple[str, str, str]]:
    """Return state, reason and number of the jobs that Slurm remembers, by name and index.

    Raises:
        OSError: it does not answer.
    """
    if not names:
        return {}
    how = ("--array", "--noheader", "--states=all", "--format=%j|%K|%T|%F|%r")
    found = {}
    for line in ask("squeue", *how, "--name", ",".join(names)).splitlines():
        name, index, state, array, reason = line.strip().split("|", 4)
        found[name, index] = state, reason, f"{array}_{index}"
    return found


def array_limit() -> int:
    """Return the most tasks of an array here: under the cluster's ``MaxArraySize``."""
    try:
        found = re.search(r"MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"))
    except OSError:
        found = None
    return max(1, int(found[1]) - 1) if found else 1000


def requeue(job: str, restarts: int) -> str:
    """Queue a job again if it still counts as running; return what was done, in words.

    One that does not has been cancelled or requeued by somebody else. A job that never comes to
    its end is requeued a hundred times.
    """
    try:
        if not re.search(r"JobState=RUNNING\b", ask("scontrol", "show", "job", job)):
            return f"Slurm has decided about job {job}"
        if restarts >= 100:
            return f"job {job} was queued again {restarts} times, and is not once more"
        ask("scontrol", "requeue", job)
    except OSError as error:
        return f"job {job} cannot be queued again: {error}"
    return f"job {job} is queued again"
