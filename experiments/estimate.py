"""What a study will take on this machine, before anything is spent: hours, memory and disk.

    mcr2 table --recipe paper --estimate

Each method's step is timed as the trainer takes it, its network on a part of the images, and the
readouts on features of the study's size, in as many processes at a time as the study would use.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from experiments.bench.micro_batch import peak_memory
from experiments.bench.step import EPOCH, SLOW, Steps
from experiments.methods import find_method, readout_for, rules_for
from experiments.report import Table
from experiments.runner import (
    Cell,
    Machine,
    finished,
    load,
    prepare,
    process_context,
    read_encoder,
)
from experiments.specs import RunSpec, Streams, as_dict, from_dict
from mcr2.data import num_batches
from mcr2.evaluation import encode, evaluate
from mcr2.records import plain

#: Seconds to spend on timing a step, and the fewest steps that are timed.
SECONDS, FEWEST = 4.0, 2
#: Images that the network is timed on.
IMAGES = 1000


@dataclass(frozen=True)
class Probe:
    """What was measured of one method: seconds and bytes."""

    start: float
    step: float
    image: float
    evaluation: float
    reading: float
    memory: int | None
    weights: int
    optimizer: int
    entry: int
    measures: int
    images: int
    needs_epoch_features: bool


class _Pretender:
    """Features of the right size at next to no cost, so that what reads them can be timed."""

    training = False

    def __init__(self, encoder: Any, dim: int) -> None:
        self.encoder, self.dim = encoder, dim

    def __call__(self, images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(len(images), self.dim, generator=generator).to(images.device)
        return self.encoder.objective.embed(features)

    def train(self, mode: bool = True) -> None:
        pass

    def classifier(self) -> Any:
        return self.encoder.classifier()


def probe(saved: dict[str, Any], machine: Machine) -> Probe:
    """Measure one spec here; memory is the most that this process has held."""
    torch.set_num_threads(machine.threads)
    spec, device = from_dict(saved), machine.torch_device()
    begin = time.perf_counter()
    data = prepare(spec, load(spec, machine.data_root))
    steps = Steps(spec, data, device)
    start = steps.now() - begin

    draw = steps.feed()
    spent: list[tuple[bool, float]] = []
    begin = steps.now()
    while True:
        before = steps.now()
        first, batch = draw()
        steps.take(batch)
        spent.append((first, steps.now() - before))
        warm = 1 if spent[0][1] > SLOW else EPOCH
        if len(spent) >= warm + FEWEST and steps.now() - begin >= SECONDS:
            break
    # Their mean, not the median: the study will meet the slow ones too.
    step = steps.over_epoch(spent[warm:], mean)

    encoder, count = steps.encoder, min(IMAGES, len(data.train))
    some = steps.split.images[:count]
    encode(encoder, some[: max(1, count // 4)])
    begin = steps.now()
    encode(encoder, some)
    image = (steps.now() - begin) / count

    method = find_method(spec.method)
    readout = readout_for(spec, method)
    pretender = _Pretender(encoder, spec.feature_dim)
    validation = data.validation and data.validation.to(device)
    begin = steps.now()
    short = evaluate(
        pretender,
        steps.split,
        data.test.to(device),
        validation,
        num_classes=data.sizes.num_classes,
        readout=readout,
        full=False,
    )
    evaluation = steps.now() - begin
    begin = steps.now()
    full = read_encoder(pretender, spec, data, readout, device)
    reading = steps.now() - begin

    def size(tensors: Any) -> int:
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))

    slots = steps.optimizer.state_dict()["state"].values()
    return Probe(
        start=start,
        step=step,
        image=image,
        evaluation=evaluation,
        reading=reading,
        memory=peak_memory(device),
        weights=size(encoder.state_dict().values()),
        optimizer=size(value for slot in slots for value in slot.values()),
        entry=len(json.dumps(plain(short.measures), indent=1)),
        measures=len(json.dumps(plain(full.measures), indent=1))
        + len(json.dumps(plain(full.profiles))),
        images=len(data.train) + len(data.held_out) + len(data.test),
        needs_epoch_features=steps.objective.needs_epoch_features,
    )


@dataclass(frozen=True)
class CellEstimate:
    """One run: its seconds, and its bytes in memory, on disk when over, and while it goes on."""

    cell: Cell
    steps: int
    seconds: float
    memory: int | None
    disk: int
    checkpoint: int


def cell_estimate(cell: Cell, found: Probe, test: int) -> CellEstimate:
    """Return what a run will take, by what was measured of its method."""
    spec, config = cell.spec, cell.spec.training
    every = found.images - test
    train = every - round(every * spec.validation)
    steps = config.epochs * num_batches(train, config.batch_size)
    rules = len(rules_for(spec))
    evaluations = 1 + -(-config.epochs // config.evaluate_every)
    look = found.image * found.images
    seconds = (
        found.start
        + steps * found.step
        + evaluations * (look + found.evaluation)
        + rules * (look + found.reading)
        + found.needs_epoch_features * config.epochs * train * found.image
    )
    # Indices of redrawn and of wrong labels stand in the record, some eight characters each.
    record = evaluations * found.entry + rules * found.measures + 16 * int(every * spec.ratio)
    return CellEstimate(
        cell=cell,
        steps=steps,
        seconds=seconds,
        memory=found.memory,
        disk=rules * found.weights + record,
        checkpoint=(1 + rules) * found.weights + found.optimizer,
    )


def _measured_as(spec: RunSpec) -> RunSpec:
    """What two runs share that cost the same a step: all but their labels and what is held out."""
    return replace(spec, ratio=0.0, seed=0, streams=Streams(), validation=0.0, selections=None)


def estimate(cells: Sequence[Cell], jobs: int, machine: Machine) -> list[CellEstimate | None]:
    """Measure and return what each cell will take; None for a method that takes no steps.

    Raises:
        Exception: whatever a method raised when it was measured.
    """
    wanted = [
        spec
        for spec in dict.fromkeys(_measured_as(cell.spec) for cell in cells)
        if find_method(spec.method).build is not None
    ]
    at_once = min(jobs, len(cells))
    # As many at a time as in the study, the same one twice if need be: they share the machine.
    queue = [wanted[i % len(wanted)] for i in range(max(at_once, len(wanted)))] if wanted else []

    def apart(spec: RunSpec) -> Probe:
        # A process for each, whose peak memory is its own.
        with ProcessPoolExecutor(1, process_context()) as pool:
            return pool.submit(probe, as_dict(spec), machine).result()

    with ThreadPoolExecutor(at_once) as threads:
        probes = list(threads.map(apart, queue))
    found = dict(zip(queue, probes, strict=True))
    test = {spec: len(load(spec, machine.data_root).test) for spec in wanted}
    return [
        cell_estimate(cell, found[key], test[key]) if key in found else None
        for cell, key in ((cell, _measured_as(cell.spec)) for cell in cells)
    ]


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


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bytes(count: float | None) -> str:
    if count is None:
        return "-"
    return f"{count / 2**20:.0f} MB" if count < 2**30 else f"{count / 2**30:.1f} GB"


def report_estimate(cells: Sequence[Cell], jobs: int, machine: Machine) -> str:
    """Measure what the cells that have no record yet will take, and say it."""
    left = [cell for cell in cells if finished(cell.folder, cell.key) is None]
    if not left:
        return f"all {len(cells)} runs are finished: nothing is left to spend"
    estimates = estimate(left, jobs, machine)
    known = [e for e in estimates if e is not None]
    groups: dict[RunSpec, list[CellEstimate]] = {}
    for each in known:
        spec = replace(each.cell.spec, ratio=0.0, seed=0)
        groups.setdefault(spec, []).append(each)
    rows = []
    for spec, group in groups.items():
        one = group[0]
        # A memory of None is one that this system does not tell.
        rows.append(
            (
                spec.method,
                spec.backbone,
                ", ".join(rules_for(spec)),
                str(len(group)),
                str(one.steps),
                _time(max(e.seconds for e in group)),
                _bytes(one.memory),
                _bytes(max(e.disk for e in group)),
                _bytes(one.checkpoint),
            )
        )
    header = (
        "method",
        "backbone",
        "rows",
        "runs",
        "steps",
        "a run",
        "memory",
        "disk",
        "checkpoint",
    )
    lines = [
        Table(
            f"Estimate for {len(left)} runs on {machine.torch_device()}, {machine.threads} "
            f"thread{'s' * (machine.threads > 1)} each, {min(jobs, len(left))} at a time",
            header,
            tuple(rows),
        ).text(),
        "",
    ]
    if len(left) < len(cells):
        lines.append(f"{len(cells) - len(left)} of {len(cells)} runs are finished already")
    for cell in (c for c, e in zip(left, estimates, strict=True) if e is None):
        lines.append(f"{cell.spec.method} at ratio {cell.spec.ratio:g}: takes no steps, not known")
    if known:
        total = sum(e.seconds for e in known)
        at_once = min(jobs, len(known))
        disk = sum(e.disk for e in known) + at_once * max(e.checkpoint for e in known)
        memory = [e.memory for e in known if e.memory is not None]
        lines.append(
            f"all: {_time(elapsed([e.seconds for e in known], at_once))} "
            f"({_time(total)} one after the other), "
            f"{_bytes(at_once * max(memory) if memory else None)} of memory, "
            f"{_bytes(disk)} of disk"
        )
    return "\n".join(lines)
