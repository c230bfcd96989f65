"""What micro-batches cost and save: memory, time, and what batch normalisation makes of them.

    mcr2 bench micro_batch --recipe paper --methods mcr2 --repeats 1
    mcr2 bench micro_batch --set batch_size=1000 backbone=resnet10_w32 --dataset FILE.npz

One step's gradient of the whole batch, then in 2, 4 and 8 pieces, each in a process of its own,
since a process's peak memory never falls. Beside it: the relative difference ‖g − g_whole‖ /
‖g_whole‖ of the gradient with batch normalisation in evaluation mode (rounding) and in training
mode (each piece normalised by itself).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from experiments.bench import Options
from experiments.bench.step import Steps, specs_for
from experiments.report import Table
from experiments.runs.memory import peak_memory
from experiments.runs.runner import Machine, load, process_context
from experiments.runs.runner import prepare as prepare_data
from experiments.runs.specs import as_dict, from_dict
from mcr2.objectives import Context
from mcr2.training import Encoder, backpropagate

PIECES = (1, 2, 4, 8)


def _gradients(
    saved: dict[str, Any], machine: Machine, repeats: int
) -> tuple[torch.Tensor, torch.Tensor, float, int | None]:
    """Return a step's gradient with batch normalisation training and evaluating, its median
    seconds and the memory that it took; in a process of its own."""
    spec, device = from_dict(saved), machine.settle()
    steps = Steps(spec, prepare_data(spec, load(spec, machine.data_root)), device)
    untouched = copy.deepcopy(steps.encoder).eval()
    _, batch = steps.feed()()

    def gradient(encoder: Encoder) -> torch.Tensor:
        encoder.zero_grad(set_to_none=True)
        context = Context(indices=batch.indices, generator=torch.Generator().manual_seed(0))
        backpropagate(encoder.backbone, encoder.objective, batch, context, steps.config)
        return torch.cat([p.grad.flatten().cpu() for p in encoder.parameters()])

    before = peak_memory(device)
    spent = []
    for _ in range(repeats):
        start = steps.now()
        trained = gradient(steps.encoder)
        spent.append(steps.now() - start)
    after = peak_memory(device)
    memory = None if before is None or after is None else after - before
    return trained, gradient(untouched), median(spent), memory


def prepare(options: Options, repeats: int = 3) -> Callable[[], dict[str, Any]]:
    """Check the options and return what measures the gradients."""
    repeats = options.repeats or repeats
    machine = Machine(options.device, options.threads, options.data_root)
    specs = [spec for spec, _ in specs_for(options)]

    def measure() -> dict[str, Any]:
        found = []
        for spec in specs:
            whole: list[torch.Tensor] = []
            for count in PIECES:
                size = None if count == 1 else max(2, -(-spec.training.batch_size // count))
                cut = replace(spec, training=replace(spec.training, micro_batch=size))
                with ProcessPoolExecutor(1, mp_context=process_context()) as pool:
                    sent = pool.submit(_gradients, as_dict(cut), machine, repeats)
                    *gradients, seconds, memory = sent.result()
                gradients = [gradient.double() for gradient in gradients]
                whole = whole or gradients
                training, evaluating = (
                    float((g - w).norm() / w.norm()) for g, w in zip(gradients, whole, strict=True)
                )
                found.append(
                    {
                        "method": spec.method,
                        "backbone": spec.backbone,
                        "batch_size": spec.training.batch_size,
                        "micro_batch": size,
                        "seconds": seconds,
                        "memory_bytes": memory,
                        "difference_evaluation_mode": evaluating,
                        "difference_training_mode": training,
                    }
                )
        return {"threads": machine.threads, "repeats": repeats, "micro_batches": found}

    return measure


def table(figures: dict[str, Any]) -> str:
    """Lay the figures out as text, a size a line."""
    rows = tuple(
        (
            each["method"],
            each["backbone"],
            f"batch {each['batch_size']}",
            str(each["micro_batch"] or "whole"),
            "-" if each["memory_bytes"] is None else f"{each['memory_bytes'] / 2**20:.0f}",
            f"{each['seconds'] * 1e3:.0f}",
            f"{each['difference_evaluation_mode']:.1e}",
            f"{each['difference_training_mode']:.1e}",
        )
        for each in figures["micro_batches"]
    )
    return Table(
        "One step's gradient in pieces: peak memory, time, relative difference to the whole",
        ("method", "backbone", "", "micro-batch", "MB", "ms", "BN evaluating", "training"),
        rows,
    ).text()
