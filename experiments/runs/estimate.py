"""What a study will take on this machine, before anything is spent: hours, memory and disk.

    mcr2 table --recipe paper --estimate

Each method takes real training steps; beside them the network is timed on a part of the images,
and a run's evaluations on features of the study's size. As many processes measure at a time as the
study would run, each taking steps until all have measured: they share the machine as it will.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from multiprocessing.connection import Connection
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from experiments.runs.executors import process_context
from experiments.runs.machine import Machine
from experiments.runs.memory import peak_memory
from experiments.runs.method import evaluator_along, readout_for, rules_for
from experiments.runs.methods import find_method
from experiments.runs.prepare import Prepared, prepared
from experiments.runs.runner import PlannedRun, evaluate_fully
from experiments.runs.specs import RunSpec, Streams, as_dict, from_dict
from experiments.runs.traffic import sizes_of
from experiments.runs.trained import Trained, feed_for
from mcr2.data import num_batches
from mcr2.evaluation import encode
from mcr2.training import Encoder, Interrupted, train

#: Seconds to spend on timing steps, and the fewest of them.
SECONDS, FEWEST = 4.0, 2
#: Images that the network is timed on.
IMAGES = 1000


@dataclass(frozen=True)
class Probe:
    """What was measured of one method: seconds, bytes and samples."""

    start: float  # from the start of its process to its first step
    step: float
    batch: float  # samples in a step
    image: float  # one image through the network in evaluation mode
    evaluation: float  # in training, of features that are there
    selected: float  # the full one of a selected epoch
    final: float  # the same of the last epoch, with more classifiers
    memory: int | None  # the most that the process held; None where the system does not tell
    weights: int  # bytes
    optimizer: int  # bytes of its state
    train: int  # images, those held out among them
    test: int
    needs_epoch_features: bool
    network: dict[str, Any]  # its parameters, normalised channels and classes


class RunEstimate(NamedTuple):
    """One run: its seconds, and its bytes in memory, on disk when over, and while it goes on."""

    planned: PlannedRun
    steps: int
    seconds: float
    memory: int | None
    disk: int
    checkpoint: int
    network: dict[str, Any]


def run_estimate(planned: PlannedRun, found: Probe) -> RunEstimate:
    """Return what a run will take, by what was measured of its method."""
    config, served = planned.spec.training, rules_for(planned.spec)
    train = found.train - round(found.train * planned.spec.validation)
    evaluations = 1 + -(-config.epochs // config.evaluate_every)
    look = found.image * (found.train + found.test)
    seconds = (
        found.start
        # In proportion to its samples: the same batch size cuts other splits into other batches.
        + found.step * config.epochs * train / found.batch
        + evaluations * (look + found.evaluation)
        + len(served) * (look + found.selected)
        + ("last" in served) * (found.final - found.selected)
        + found.needs_epoch_features * config.epochs * train * found.image
    )
    steps, disk = config.epochs * num_batches(train, config.batch_size), len(served) * found.weights
    checkpoint = disk + found.weights + found.optimizer
    held = (found.memory, disk, checkpoint)
    return RunEstimate(planned, steps, seconds, *held, found.network)


class _Noise(nn.Module):
    """Features of the right size at next to no cost, so that their evaluation can be timed."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(len(images), self.dim, generator=generator).to(images.device)


def synchronized(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the time when a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return clock()


@dataclass
class Measurement:
    """A spec's steps and what a run does beside them, on a device of this process."""

    spec: RunSpec
    data: Prepared
    device: torch.device
    encoder: Encoder

    def take_steps(self, stop: Callable[[], bool]) -> None:
        """Train as the run does, without evaluations and without end, until told to stop."""
        config = replace(self.spec.training, epochs=10**6, evaluate_every=10**6)
        backbone, objective = self.encoder.backbone, self.encoder.objective
        feed = feed_for(self.spec, self.data)
        with contextlib.suppress(Interrupted):
            go = partial(train, device=self.device, stop=stop)
            raise ValueError(go(backbone, objective, self.data.train, config, feed).reason)

    def time_steps(self, connection: Connection) -> float:
        """Return the seconds of a step, timed when the other end answers that all are warm."""
        spent: list[float] = []
        per_epoch = num_batches(len(self.data.train), self.spec.training.batch_size)

        def stops() -> Iterator[bool]:
            taken = 1
            connection.send(None)
            while not connection.poll():
                yield False
                taken += 1
            connection.recv()
            begin = last = synchronized(self.device)
            while len(spent) < FEWEST or last - begin < SECONDS:
                yield False
                taken, now = taken + 1, synchronized(self.device)
                # The first of an epoch may have waited for the features of all samples.
                if per_epoch == 1 or taken % per_epoch != 1:
                    spent.append(now - last)
                last = now
            yield True

        asked = stops()
        self.take_steps(lambda: next(asked))
        return mean(spent)  # not the median: the study will meet the slow ones too

    def probe(self, start: float, step: float) -> Probe:
        """Measure what the run does beside its steps; those and its start are measured."""
        spec, data, device, encoder = self.spec, self.data, self.device, self.encoder
        readout = readout_for(spec, find_method(spec.method))
        pretender = Encoder(_Noise(spec.feature_dim), encoder.objective)
        along = evaluator_along(replace(spec, measured_layers=()), data, readout, device)
        some = data.train.images[:IMAGES].to(device)
        full = partial(evaluate_fully, pretender, spec, data, readout, device)
        slots = 2 if spec.training.optimizer == "adamw" else int(spec.training.momentum > 0)
        return Probe(
            start=start,
            step=step,
            batch=len(data.train) / num_batches(len(data.train), spec.training.batch_size),
            image=self._time(lambda: encode(encoder, some)) / len(some),
            evaluation=self._time(lambda: along(pretender)),
            selected=self._time(lambda: full(final=False)),
            final=self._time(full),
            memory=peak_memory(device),
            weights=sum(value.nbytes for value in encoder.state_dict().values()),
            optimizer=slots * sum(value.nbytes for value in encoder.parameters()),
            train=len(data.train) + len(data.held_out),
            test=len(data.test),
            needs_epoch_features=encoder.objective.needs_epoch_features,
            network=sizes_of(encoder),
        )

    def _time(self, action: Callable[[], object]) -> float:
        """Return the seconds that an action takes, after one that warms up if it is short."""
        spent: list[float] = []
        while len(spent) < 2 or sum(spent[1:]) < SECONDS / 4:
            begin = synchronized(self.device)
            action()
            spent.append(synchronized(self.device) - begin)
            if spent[0] > SECONDS:
                break
        return mean(spent[1:] or spent)


def _measured_as(spec: RunSpec) -> RunSpec:
    """What two runs share that cost the same a step: all but their labels and what is held out."""
    return replace(spec, ratio=0.0, seed=0, streams=Streams(), validation=0.0, selections=None)


def _measure(connection: Connection, saved: Any, machine: Machine, launched: float) -> None:
    """Measure one spec in a process of its own, and go on taking steps until it is ended."""
    try:
        device, spec = machine.configure_torch(), from_dict(saved)
        data = prepared(spec, machine.data_root)
        method = find_method(spec.method)
        assert isinstance(method, Trained)
        measurement = Measurement(spec, data, device, method.build(spec, data.sizes))
        start = time.time() - launched
        connection.send(measurement.probe(start, measurement.time_steps(connection)))
        measurement.take_steps(connection.poll)  # true, too, when the other end is gone
    except BaseException as error:
        connection.send(f"{type(error).__name__}: {error}".splitlines()[0])


def _answer(connection: Connection, spec: RunSpec) -> Any:
    try:
        answer = connection.recv()
    except EOFError:
        answer = "its process was ended from outside; perhaps memory ran out"
    if isinstance(answer, str):
        raise ValueError(f"{spec.method} cannot be measured: {answer}")
    return answer


def _together(specs: Sequence[RunSpec], slots: Sequence[Machine]) -> list[Probe]:
    """Measure specs at the same time, each in a process whose peak memory is its own."""
    context, workers = process_context(), []
    try:
        for spec, machine in zip(specs, slots, strict=False):
            ours, theirs = context.Pipe()
            arguments = (theirs, as_dict(spec), machine, time.time())
            process = context.Process(target=_measure, args=arguments, daemon=True)
            process.start()
            theirs.close()
            workers.append((ours, spec, process))
        for connection, spec, _ in workers:
            _answer(connection, spec)  # all are warm before any is measured
        for connection, *_ in workers:
            connection.send(None)
        return [_answer(connection, spec) for connection, spec, _ in workers]
    finally:
        for *_, process in workers:
            process.kill()
        for *_, process in workers:
            process.join()


def estimate(planned: Sequence[PlannedRun], slots: Sequence[Machine]) -> list[RunEstimate | None]:
    """Measure and return what each run will take; None for a method that takes no steps.

    As many runs go on at a time as there are ``slots``, each on its own's device.
    """
    wanted: dict[RunSpec, float] = {}
    for spec in (one.spec for one in planned if find_method(one.spec.method).trained):
        wanted[_measured_as(spec)] = max(wanted.get(_measured_as(spec), 0.0), spec.ratio)
    at_once = min(len(slots), len(planned))
    # Some are measured twice, so that at all times as many share the machine as in the study.
    queue = list(islice(cycle(wanted), -(-len(wanted) // at_once) * at_once))
    with process_context().Pool(1):  # starts what starts processes, as a study does it once
        pass
    found: dict[RunSpec, Probe] = {}
    for i in range(0, len(queue), at_once):
        keys = queue[i : i + at_once]
        # With as many wrong labels as a run will have: they are evaluated apart from the others.
        specs = [replace(key, ratio=wanted[key]) for key in keys]
        found |= zip(keys, _together(specs, slots), strict=True)
    probes = ((one, found.get(_measured_as(one.spec))) for one in planned)
    return [None if probe is None else run_estimate(one, probe) for one, probe in probes]
