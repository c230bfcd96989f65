"""What processes that share a batch cost and save: seconds, memory and bytes sent in a step.

    mcr2 bench processes --recipe cpu --dataset FILE.npz
    mcr2 bench processes --recipe paper --methods mcr2 --repeats 3

Real training steps in one process, of one thread and of two, and in two processes of one thread
each. ``sent`` are the megabytes that a process sends, counted at the loopback device of Linux;
``formula`` is what :mod:`experiments.runs.traffic` makes of it; ``ideal`` is the time in one
process over the number of threads at work; ``local`` is ‖g − g_whole‖ / ‖g_whole‖ of the usual
data-parallel gradient, the mean of those of each part's own loss, batch normalisation evaluating.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from experiments.bench import RecipeBench
from experiments.bench.step import build, specs_for
from experiments.runs.estimate import synchronized
from experiments.runs.executors import process_context
from experiments.runs.machine import Machine
from experiments.runs.memory import peak_memory
from experiments.runs.prepare import load, load_other, prepare
from experiments.runs.specs import as_dict, from_dict
from experiments.runs.traffic import sizes_of, step_traffic
from experiments.runs.trained import feed_for
from mcr2.data import Batch
from mcr2.objectives import Context
from mcr2.training import Encoder, Interrupted, TrainingConfig, World, backpropagate, train

#: Processes and threads of each.
FORMS = ((1, 1), (1, 2), (2, 1))


def _loopback() -> int | None:
    """Return the bytes that this machine has sent to itself, None where that is not told."""
    path = Path("/proc/net/dev")
    lines = path.read_text().splitlines() if path.exists() else []
    counts = [line.split(":")[1].split() for line in lines if line.strip().startswith("lo:")]
    return int(counts[0][8]) if counts else None


def _steps(
    connection: Connection, saved: dict[str, Any], machine: Machine, repeats: int, world: World
) -> None:
    """Take steps in a process of its own, and send their seconds, the bytes and the memory."""
    spec, device = from_dict(saved), machine.configure_torch()
    place = connection.recv()
    if world.size > 1:
        dist.init_process_group("gloo", place, timedelta(minutes=30), world.size, world.rank)
    data = prepare(spec, load(spec, machine.data_root), load_other(spec, machine.data_root))
    encoder = build(spec, data, device)
    spent: list[float] = []
    counted: list[int | None] = []

    def between_steps() -> Iterator[bool]:
        yield False  # the first step warms up
        counted.append(_loopback())
        while len(spent) < repeats:
            begin = synchronized(device)
            yield False
            spent.append(synchronized(device) - begin)
        counted.append(_loopback())
        yield True

    asked = between_steps()
    config = replace(spec.training, epochs=10**6, evaluate_every=10**6)
    with contextlib.suppress(Interrupted):
        go = partial(train, stop=lambda: next(asked, True), world=world)
        go(encoder.backbone, encoder.objective, data.train, config, feed_for(spec, data))
    first, last = counted
    each = None if first is None or last is None else (last - first) / repeats / world.size
    connection.send((median(spent), each, peak_memory(device)))
    if world.size > 1:
        dist.destroy_process_group()


def _measure(
    saved: dict[str, Any], machine: Machine, repeats: int, size: int
) -> tuple[float, float | None, int | None]:
    """Return the first process's seconds a step, bytes sent and peak memory."""
    context, workers = process_context(), []
    with tempfile.TemporaryDirectory() as place:
        for rank in range(size):
            ours, theirs = context.Pipe()
            arguments = (theirs, saved, machine, repeats, World(rank, size))
            process = context.Process(target=_steps, args=arguments, daemon=True)
            process.start()
            theirs.close()
            ours.send((Path(place) / "store").as_uri())
            workers.append((ours, process))
        found = [connection.recv() for connection, _ in workers]
        for _, process in workers:
            process.join()
    seconds, sent, memory = found[0]
    return seconds, sent, memory


def _local(encoder: Encoder, batch: Batch, config: TrainingConfig, size: int) -> float:
    """Return how far the mean of local losses' gradients is from that of the whole batch."""
    encoder.eval()

    def gradient(rows: slice) -> Tensor:
        encoder.zero_grad(set_to_none=True)
        part = Batch(*(values[rows] for values in batch))
        context = Context(part.indices, generator=torch.Generator().manual_seed(0))
        backpropagate(encoder.backbone, encoder.objective, part, context, config)
        return torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])

    m = len(batch.labels)
    parts = [gradient(World(rank, size).rows(m)) for rank in range(size)]
    whole = gradient(slice(None))
    return float((torch.stack(parts).mean(0) - whole).norm() / whole.norm())


def measure(options: RecipeBench) -> Iterator[dict[str, Any]]:
    """Check the options, and return what steps cost in one process and in two."""
    pairs = specs_for(options)

    def rows() -> Iterator[dict[str, Any]]:
        for spec, data in pairs:
            alone = 0.0
            encoder = build(spec, data, Machine("cpu").torch_device())
            batch = next(feed_for(spec, data).epoch(data.train, spec.training.batch_size, 0))
            for size, threads in FORMS:
                machine = Machine("cpu", threads, options.data_root)
                repeats = options.repeats or 10
                seconds, sent, memory = _measure(as_dict(spec), machine, repeats, size)
                alone = alone or seconds
                traffic = step_traffic(
                    samples=min(spec.training.batch_size, len(data.train)),
                    dim=spec.feature_dim,
                    processes=size,
                    **sizes_of(encoder),
                )
                yield {
                    "method": spec.method,
                    "processes": size,
                    "threads": threads,
                    "seconds": seconds,
                    "ideal": alone / (size * threads),
                    "sent_MB": None if size == 1 or sent is None else sent / 1e6,
                    "formula_MB": traffic.total / 1e6,
                    "memory_MiB": None if memory is None else memory / 2**20,
                    "local": None if size == 1 else _local(encoder, batch, spec.training, size),
                }

    return rows()
