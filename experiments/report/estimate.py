"""What a study will take, as a table and a sum: hours, memory and disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from experiments.report.table import Table, count_of, duration, terminal_width
from experiments.runs.estimate import RunEstimate, estimate
from experiments.runs.machine import Machine
from experiments.runs.method import rules_for
from experiments.runs.runner import PlannedRun, complete
from experiments.runs.specs import RunSpec
from experiments.runs.traffic import step_traffic

HEADER = ("method", "backbone", "rows", "runs", "steps", "a run", "memory", "disk", "checkpoint")


def elapsed(seconds: Sequence[float], jobs: int) -> float:
    """Return the time that runs take in their order, ``jobs`` at a time.

    Example:
        >>> elapsed([3.0, 1.0, 1.0, 2.0], jobs=2)
        4.0
    """
    free = [0.0] * jobs
    for each in seconds:
        free.sort()
        free[0] += each
    return max(free)


def _bytes(count: float | None) -> str:
    if count is None:
        return "-"
    return f"{count / 2**20:.0f} MB" if count < 2**30 else f"{count / 2**30:.1f} GB"


def _row(spec: RunSpec, group: Sequence[RunEstimate]) -> tuple[str, ...]:
    one, seconds = group[0], duration(max(each.seconds for each in group))
    held = (one.memory, max(each.disk for each in group), one.checkpoint)
    backbone = spec.backbone if spec.width is None else f"{spec.backbone}, width {spec.width}"
    named = (spec.method, backbone, ", ".join(rules_for(spec)))
    return (*named, str(len(group)), str(one.steps), seconds, *map(_bytes, held))


def room(memory: float, slots: Sequence[Machine]) -> list[str]:
    """Return a line for each GPU: how many runs its free memory holds."""
    names = [str(machine.torch_device()) for machine in slots]
    lines = []
    for name in dict.fromkeys(each for each in names if each.startswith("cuda")):
        free, whole = torch.cuda.mem_get_info(torch.device(name))
        lines.append(
            f"{name}: {_bytes(free)} of {_bytes(whole)} are free, room for the tensors of "
            f"{int(free // memory)} such runs at a time (--jobs {names.count(name)}); each process "
            "takes some hundred MB beside them"
        )
    return lines


def sent(processes: int, groups: Mapping[RunSpec, Sequence[RunEstimate]]) -> list[str]:
    """Return a line for each method: what a process sends in a step, by formula."""
    lines = []
    for spec, group in groups.items() if processes > 1 else ():
        m, d = spec.training.batch_size, spec.feature_dim
        bytes_of = step_traffic(samples=m, dim=d, processes=processes, **group[0].network)
        lines.append(
            f"{spec.method}: each of {processes} processes sends "
            f"{bytes_of.total / 1e6:.1f} MB a step, by formula; the times above "
            "are of one process"
        )
    return lines


def report_estimate(planned: Sequence[PlannedRun], slots: Sequence[Machine]) -> str:
    """Measure what the runs that are not finished yet will take, and say it."""
    left = [one for one in planned if complete(one, mend=False) is None]
    if not left:
        every = "the run is" if len(planned) == 1 else f"all {len(planned)} runs are"
        return f"{every} finished: nothing is left to spend"
    jobs, machine = len(slots), slots[0]
    estimates = estimate(left, slots)
    known = [each for each in estimates if each is not None]
    groups: dict[RunSpec, list[RunEstimate]] = {}
    for each in known:
        groups.setdefault(replace(each.planned.spec, ratio=0.0, seed=0), []).append(each)
    notes = [""]
    if len(left) < len(planned):
        notes.append(f"finished already: {len(planned) - len(left)} of {len(planned)} runs")
    for one in (o for o, e in zip(left, estimates, strict=True) if e is None):
        notes.append(f"{one.spec.method} at ratio {one.spec.ratio:g}: takes no steps, not known")
    notes += sent(machine.processes, groups)
    if known:
        seconds, at_once = [each.seconds for each in known], min(jobs, len(known))
        memory = [each.memory for each in known if each.memory is not None]
        held = _bytes(at_once * max(memory) if memory else None)
        notes += room(max(memory), slots) if memory else []
        disk = sum(each.disk for each in known) + at_once * max(e.checkpoint for e in known)
        notes.append(
            f"all: {duration(elapsed(seconds, at_once))} ({duration(sum(seconds))} one after the "
            f"other), {held} of memory, {_bytes(disk)} of disk"
        )
    devices = " ".join(dict.fromkeys(str(each.torch_device()) for each in slots))
    title = (
        f"Estimate for {count_of(len(left), 'run')} on {devices}, "
        f"{count_of(machine.threads, 'thread')} each, {min(jobs, len(left))} at a time"
    )
    rows = tuple(_row(spec, group) for spec, group in groups.items())
    return Table(title, HEADER, rows, notes=tuple(notes)).text(terminal_width())
