"""What a study will take on this machine, before anything is spent: hours, memory and disk.

    mcr2 table --recipe paper --estimate

Each method's step is timed as the trainer takes it, its network on a part of the images, and what
a run reads at its evaluations and at its end on features of the study's size. As many processes are
measured at a time as the study would run, and each goes on taking steps until all have been
measured: what is timed shares the machine as it will in the study.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from experiments.bench.step import EPOCH, SLOW, Steps
from experiments.report import Table
from experiments.runs.memory import peak_memory
from experiments.runs.methods import Prepared, find_method, reader, readout_for, rules_for
from experiments.runs.runner import (
    Cell,
    Machine,
    finished,
    load,
    prepare,
    process_context,
    read_encoder,
)
from experiments.runs.specs import RunSpec, Streams, as_dict, from_dict
from mcr2.data import num_batches
from mcr2.evaluation import encode
from mcr2.records import plain

#: Seconds to spend on timing a step, and the fewest steps that are timed.
SECONDS, FEWEST = 4.0, 2
#: Images that the network is timed on.
IMAGES = 1000


@dataclass(frozen=True)
class Probe:
    """What was measured of one method: seconds and bytes.

    Attributes:
        start: from the start of its process to its first step.
        step, batch: a step, and the samples in it.
        image: one image through the network in evaluation mode.
        evaluation: what an evaluation in training does with the features.
        reading: what the reading of a selected epoch does with them.
        final: the same of the last epoch, which more classifiers read.
        memory: the most that the process held; None where the system does not tell.
        weights, optimizer, entry, measures: bytes of each in files.
        images: training, held-out and test images together.
        needs_epoch_features: whether the objective asks for all features at every epoch.
    """

    start: float
    step: float
    batch: float
    image: float
    evaluation: float
    reading: float
    final: float
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


def _mean_time(clock: Callable[[], float], action: Callable[[], object]) -> float:
    """Return the seconds that an action takes; the first of several is for warming up."""
    spent: list[float] = []
    while len(spent) < 2 or sum(spent[1:]) < SECONDS / 4:
        begin = clock()
        action()
        spent.append(clock() - begin)
        if spent[0] > SLOW:
            return spent[0]
    return mean(spent[1:])


def probe(steps: Steps, data: Prepared, start: float, busy: Callable[[], None]) -> Probe:
    """Measure a run's parts; ``busy`` is called when steps are warm, and may take some more."""
    spec, device = steps.spec, steps.device
    draw = steps.feed()

    def take() -> tuple[bool, float]:
        before = steps.now()
        first, batch = draw()
        steps.take(batch)
        return first, steps.now() - before

    slow = take()[1] > SLOW
    for _ in range(0 if slow else EPOCH - 1):
        take()
    busy()
    spent: list[tuple[bool, float]] = []
    begin = steps.now()
    while len(spent) < FEWEST or steps.now() - begin < SECONDS:
        spent.append(take())
    # Their mean, not the median: the study will meet the slow ones too.
    step = steps.over_epoch(spent, mean)

    encoder, count = steps.encoder, min(IMAGES, len(data.train))
    some = steps.split.images[:count]
    image = _mean_time(steps.now, lambda: encode(encoder, some)) / count

    method = find_method(spec.method)
    readout = readout_for(spec, method)
    pretender = _Pretender(encoder, spec.feature_dim)
    read = reader(data, readout, device)
    evaluation = _mean_time(steps.now, lambda: read(pretender))
    begin = steps.now()
    full = read_encoder(pretender, spec, data, readout, device)
    final = steps.now() - begin
    begin = steps.now()
    read_encoder(pretender, spec, data, readout, device, final=False)
    reading = steps.now() - begin

    def size(tensors: Any) -> int:
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))

    slots = steps.optimizer.state_dict()["state"].values()
    return Probe(
        start=start,
        step=step,
        batch=len(steps.split) / steps.per_epoch,
        image=image,
        evaluation=evaluation,
        reading=reading,
        final=final,
        memory=peak_memory(device),
        weights=size(encoder.state_dict().values()),
        optimizer=size(value for slot in slots for value in slot.values()),
        entry=len(json.dumps(plain(read(pretender).measures), indent=1)),
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
    # In proportion to its samples: the same batch size cuts other splits into other batches.
    step = found.step * config.epochs * train / max(steps, 1) / found.batch
    served = rules_for(spec)
    rules = len(served)
    longest = found.final if "last" in served else found.reading
    evaluations = 1 + -(-config.epochs // config.evaluate_every)
    look = found.image * found.images
    seconds = (
        found.start
        + steps * step
        + evaluations * (look + found.evaluation)
        + look
        + longest
        + max(rules - 1, 0) * (look + found.reading)
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


def _measure(
    connection: Connection, saved: dict[str, Any], machine: Machine, launched: float
) -> None:
    """Measure one spec in a process of its own, and go on taking steps until it is ended."""
    try:
        device = machine.settle()
        spec = from_dict(saved)
        data = prepare(spec, load(spec, machine.data_root))
        steps = Steps(spec, data, device)
        start = time.time() - launched
        draw = steps.feed()

        def keep_busy() -> None:
            while not connection.poll():  # true, too, when the other end is gone
                steps.take(draw()[1])

        def meet() -> None:
            connection.send(None)
            keep_busy()
            connection.recv()

        connection.send(probe(steps, data, start, meet))
        keep_busy()
    except BaseException as error:
        connection.send(f"{type(error).__name__}: {error}".splitlines()[0])


def _answer(connection: Connection, spec: RunSpec) -> Probe | None:
    try:
        answer: Probe | str | None = connection.recv()
    except EOFError:
        answer = "its process was ended from outside; perhaps memory ran out"
    if isinstance(answer, str):
        raise ValueError(f"{spec.method} cannot be measured: {answer}")
    return answer


def _together(specs: Sequence[RunSpec], machine: Machine) -> list[Probe | None]:
    """Measure specs at the same time, each in a process whose peak memory is its own."""
    context = process_context()
    connections, processes = [], []
    try:
        for spec in specs:
            ours, theirs = context.Pipe()
            arguments = (theirs, as_dict(spec), machine, time.time())
            process = context.Process(target=_measure, args=arguments, daemon=True)
            process.start()
            theirs.close()
            connections.append(ours)
            processes.append(process)
        pairs = list(zip(connections, specs, strict=True))
        for connection, spec in pairs:
            _answer(connection, spec)  # all are warm before any is measured
        for connection in connections:
            connection.send(None)
        return [_answer(connection, spec) for connection, spec in pairs]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _nothing() -> None:
    pass


def estimate(cells: Sequence[Cell], jobs: int, machine: Machine) -> list[CellEstimate | None]:
    """Measure and return what each cell will take; None for a method that takes no steps.

    Raises:
        ValueError: a method that could not be measured, and what it raised.
    """
    wanted: dict[RunSpec, float] = {}
    for cell in cells:
        if find_method(cell.spec.method).build is not None:
            key = _measured_as(cell.spec)
            wanted[key] = max(wanted.get(key, 0.0), cell.spec.ratio)
    at_once = min(jobs, len(cells))
    # Some are measured twice, if need be: all the time as many as the study runs share the machine.
    rounds = -(-len(wanted) // at_once)
    queue = [list(wanted)[i % len(wanted)] for i in range(rounds * at_once)]
    # What starts processes is started before them, as a study does it once.
    first = process_context().Process(target=_nothing)
    first.start()
    first.join()
    found: dict[RunSpec, Probe | None] = {}
    for i in range(0, len(queue), at_once):
        keys = queue[i : i + at_once]
        # With as many wrong labels as a run will have: they are read apart from the others.
        specs = [replace(key, ratio=wanted[key]) for key in keys]
        found |= zip(keys, _together(specs, machine), strict=True)
    test = {spec: len(load(spec, machine.data_root).test) for spec in wanted}
    estimates = []
    for cell in cells:
        key = _measured_as(cell.spec)
        one = found.get(key)
        estimates.append(None if one is None else cell_estimate(cell, one, test[key]))
    return estimates


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
