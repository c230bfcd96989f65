"""What micro-batches cost and save: memory, time, and what batch normalisation makes of them.

    mcr2 bench micro_batch --recipe paper --methods mcr2 --repeats 1
    mcr2 bench micro_batch --set batch_size=1000 backbone=resnet10_w32 --dataset FILE.npz

One step's gradient of the whole batch, then in 2, 4 and 8 pieces, each in a process of its own,
since a process's peak memory never falls; and the relative difference ‖g − g_whole‖ / ‖g_whole‖
with batch normalisation ``evaluating`` (rounding) and ``training`` (each piece by itself).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from experiments.bench import RecipeBench
from experiments.bench.step import build, clock_for, specs_for
from experiments.runs.executors import process_context
from experiments.runs.machine import Machine
from experiments.runs.memory import peak_memory
from experiments.runs.prepare import prepared
from experiments.runs.specs import as_dict, from_dict
from experiments.runs.trained import feed_for
from mcr2.objectives import Context
from mcr2.training import Encoder, backpropagate

#: Pieces that a batch is cut into.
PIECES = (1, 2, 4, 8)


def _gradients(
    saved: dict[str, Any], machine: Machine, repeats: int
) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """Return a step's gradient with batch normalisation evaluating and training, the latter's
    median seconds and the megabytes that it took; in a process of its own."""
    spec, device = from_dict(saved), machine.configure_torch()
    data = prepared(spec, machine.data_root)
    encoder, feed, now = build(spec, data, device), feed_for(spec, data), clock_for(device)
    batch = next(feed.epoch(data.train.to(device), spec.training.batch_size, 0))

    def gradient(encoder: Encoder) -> torch.Tensor:
        encoder.zero_grad(set_to_none=True)
        context = Context(batch.indices, generator=torch.Generator().manual_seed(0))
        backpropagate(encoder.backbone, encoder.objective, batch, context, spec.training)
        gradients = (p.grad for p in encoder.parameters())
        return torch.cat([g.flatten().cpu().double() for g in gradients if g is not None])

    untouched, held = copy.deepcopy(encoder).eval(), peak_memory(device) or math.nan
    spent = []
    for _ in range(repeats):
        start = now()
        training = gradient(encoder)
        spent.append(now() - start)
    megabytes = ((peak_memory(device) or math.nan) - held) / 2**20
    return gradient(untouched), training, median(spent), megabytes


def measure(options: RecipeBench) -> Iterator[dict[str, Any]]:
    """Check the options, and return what each number of pieces costs and what it changes."""
    machine = Machine(options.device, options.threads, options.data_root)
    specs = [spec for spec, _ in specs_for(options)]

    def rows() -> Iterator[dict[str, Any]]:
        for spec, count in itertools.product(specs, PIECES):
            batch = spec.training.batch_size
            size = None if count == 1 else max(2, -(-batch // count))
            cut = replace(spec, training=replace(spec.training, micro_batch=size))
            with ProcessPoolExecutor(1, mp_context=process_context()) as pool:
                sent = pool.submit(_gradients, as_dict(cut), machine, options.repeats or 3)
                *gradients, seconds, megabytes = sent.result()
            if count == PIECES[0]:
                whole = gradients
            apart = [
                float((g - w).norm() / w.norm()) for g, w in zip(gradients, whole, strict=True)
            ]
            row = {"method": spec.method, "batch_size": batch, "micro_batch": size}
            row |= {"seconds": seconds, "megabytes": megabytes}
            yield row | dict(zip(("evaluating", "training"), apart, strict=True))

    return rows()
