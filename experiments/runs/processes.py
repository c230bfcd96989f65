"""The processes that share a run's batches, :mod:`mcr2.training.gather`: who starts, who joins.

A run with ``processes`` starts the others itself, wherever it is run, and each trains with it; or
``torchrun`` has started all of them with the same command, on one machine or several.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from experiments.runs.machine import Machine
from mcr2.training import World

#: How long a process waits for another: the first one may evaluate meanwhile.
PATIENCE = timedelta(hours=2)


def rank_of(device: torch.device, rank: int) -> torch.device:
    """Return the device of a process: the GPU of its number on its machine."""
    if device.type != "cuda":
        return device
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)))
    torch.cuda.set_device(own)
    return own


def torchrun_rank() -> int | None:
    """Return the number of this process among several of torchrun, None where there are none."""
    several = "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
    return int(os.environ["RANK"]) if several else None


@contextlib.contextmanager
def of_torchrun(device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """Join the other processes of torchrun; leave them after the block."""
    device = rank_of(device, torchrun_rank() or 0)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield World.of_group(), device
        World.of_group().wait()  # one that left early would be missed as if it had died
    finally:
        leave()


@contextlib.contextmanager
def together(
    machine: Machine, device: torch.device, job: Mapping[str, Any] | None
) -> Iterator[tuple[World, torch.device]]:
    """Train with other processes inside the block, those of torchrun or some that are started.

    Args:
        machine: has their number; one starts nothing.
        device: of this process, the first.
        job: what :func:`experiments.runs.runner.follow` is called with, plain values; None where
            there is nothing to do together.

    Raises:
        ChildProcessError: one of them ended early; why, in one line.
    """
    if torchrun_rank() is not None:
        with of_torchrun(device) as (world, own):
            yield (world, own) if world.told(job is not None) else (World(), device)
    elif job is None or machine.processes == 1:
        yield World(), device
    else:
        with _started(machine, device, job) as both:
            yield both


@contextlib.contextmanager
def _started(
    machine: Machine, device: torch.device, job: Mapping[str, Any]
) -> Iterator[tuple[World, torch.device]]:
    """Start the other processes, and end them after the block."""
    size = machine.processes
    with tempfile.TemporaryDirectory() as place:
        others: list[tuple[subprocess.Popen[str], Path]] = []
        try:
            for rank in range(1, size):
                told = Path(place) / f"{rank}.txt"
                command = [sys.executable, "-P", "-m", "experiments.runs.follower"]
                with told.open("w") as errors:
                    other = subprocess.Popen(
                        command, stdin=subprocess.PIPE, stderr=errors, text=True
                    )
                others.append((other, told))
                where = {"parent": os.getpid(), "rank": rank, "place": place}
                where |= {"machine": asdict(machine)}
                assert other.stdin is not None
                with contextlib.suppress(BrokenPipeError), other.stdin:  # it has ended already
                    json.dump({**where, "job": dict(job)}, other.stdin)
            # Not in torch, which would wait for one that is dead, and let no signal through.
            while not all((Path(place) / f"{rank}.here").exists() for rank in range(1, size)):
                if any(other.poll() is not None for other, _ in others):
                    raise RuntimeError("a process ended before it joined")
                time.sleep(0.05)
            device = join(machine, device, 0, place)
            yield World(0, size), device
        except RuntimeError as error:
            if (reason := _reason(others)) is None:
                raise
            raise ChildProcessError(reason) from error
        finally:
            leave()
            end([other for other, _ in others])


def end(others: Sequence[subprocess.Popen[Any]], patience: float = 10.0) -> None:
    """End processes, if they take longer by SIGKILL: one in torch may not hear of a signal."""
    for other in others:
        other.terminate()
    until = time.monotonic() + patience
    for other in others:
        try:
            other.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            other.kill()
            other.wait()


def join(machine: Machine, device: torch.device, rank: int, place: str) -> torch.device:
    """Join the processes of a run, which meet in a folder, as one of them; return its device."""
    device = rank_of(device, rank)
    backend, store = "nccl" if device.type == "cuda" else "gloo", (Path(place) / "store").as_uri()
    (Path(place) / f"{rank}.here").touch()
    dist.init_process_group(backend, store, PATIENCE, machine.processes, rank)
    return device


def leave() -> None:
    """Leave the processes of a run, if this one has joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _reason(others: list[tuple[subprocess.Popen[str], Path]]) -> str | None:
    """Return what another process that has ended said last, or how it ended; None if none has."""
    time.sleep(1.0)  # the others notice at about the same time
    for rank, (other, told) in enumerate(others, start=1):
        status = other.poll()
        if status is None:
            continue
        lines = told.read_text(errors="replace").strip().splitlines()
        last = "" if status < 0 or not lines else f": {lines[-1]}"
        how = f"was killed by signal {-status}" if status < 0 else f"ended with {status}"
        return f"process {rank} of {len(others) + 1} {how}{last}; the checkpoint is kept"
    return None
