"""What micro-batches cost and save: memory, time, and what batch normalisation makes of them.

    mcr2 bench micro_batch --recipe paper --methods mcr2 --repeats 1
    mcr2 bench micro_batch --set batch_size=1000 backbone=resnet10_w32 --dataset FILE.npz

One step's gradient of the whole batch, then in 2, 4 and 8 pieces, each in a process of its own,
since a process's peak memory never falls. Beside it: the relative difference ‖g − g_whole‖ /
‖g_whole‖ of the gradient with batch normalisation in evaluation mode (rounding) and in training
mode (each piece normalised by itself).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from experiments.bench import Options
from experiments.bench.step import Steps, specs_for
from experiments.report import Table
from experiments.runner import Machine, load, process_context
from experiments.runner import prepare as prepare_data
from experiments.specs import RunSpec, as_dict, from_dict
from mcr2.objectives import Context
from mcr2.training import backpropagate

PIECES = (1, 2, 4, 8)


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes this process has held: on a GPU those of tensors, else all of it."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _gradient(
    saved: dict[str, Any], machine: Machine, training: bool, repeats: int
) -> tuple[torch.Tensor, float, int | None]:
    """Return one step's gradient, its median seconds and the memory it took; in its own process."""
    torch.set_num_threads(machine.threads)
    spec, device = from_dict(saved), machine.torch_device()
    steps = Steps(spec, prepare_data(spec, load(spec, machine.data_root)), device)
    steps.encoder.train(training)
    _, batch = steps.feed()()
    before = peak_memory(device) or 0
    spent = []
    for _ in range(repeats):
        steps.optimizer.zero_grad(set_to_none=True)
        start = steps.now()
        backpropagate(
            steps.backbone,
            steps.objective,
            batch,
            Context(indices=batch.indices, generator=torch.Generator().manual_seed(0)),
            steps.config,
            forward=steps.forward,
        )
        spent.append(steps.now() - start)
    after = peak_memory(device)
    gradient = torch.cat([p.grad.flatten().cpu() for p in steps.encoder.parameters()])
    return gradient, median(spent), None if after is None else after - before


def _apart(
    spec: RunSpec, machine: Machine, training: bool, repeats: int
) -> tuple[torch.Tensor, float, int | None]:
    with ProcessPoolExecutor(1, mp_context=process_context()) as pool:
        return pool.submit(_gradient, as_dict(spec), machine, training, repeats).result()


def prepare(options: Options) -> Callable[[], tuple[Table, dict[str, Any]]]:
    """Check the options and return what measures the gradients."""
    machine = Machine(options.device, options.threads, options.data_root)
    specs = [spec for spec, _ in specs_for(options)]

    def measure() -> tuple[Table, dict[str, Any]]:
        rows, figures = [], []
        for spec in specs:
            whole: dict[bool, torch.Tensor] = {}
            for count in PIECES:
                size = None if count == 1 else max(2, -(-spec.training.batch_size // count))
                cut = replace(spec, training=replace(spec.training, micro_batch=size))
                differs = {}
                for training in (False, True):
                    gradient, seconds, memory = _apart(cut, machine, training, options.repeats)
                    reference = whole.setdefault(training, gradient).double()
                    off = (gradient.double() - reference).norm() / reference.norm()
                    differs[training] = float(off)
                found = {
                    "method": spec.method,
                    "micro_batch": size,
                    "seconds": seconds,
                    "memory_bytes": memory,
                    "difference_evaluation_mode": differs[False],
                    "difference_training_mode": differs[True],
                }
                figures.append(found)
                rows.append(
                    (
                        spec.method,
                        spec.backbone,
                        f"batch {spec.training.batch_size}",
                        "whole" if size is None else str(size),
                        "-" if memory is None else f"{memory / 2**20:.0f}",
                        f"{seconds * 1e3:.0f}",
                        f"{differs[False]:.1e}",
                        f"{differs[True]:.1e}",
                    )
                )
        header = ("method", "backbone", "", "micro-batch", "MB", "ms", "BN evaluating", "training")
        title = "One step's gradient in pieces: peak memory, time, relative difference to the whole"
        return Table(title, header, tuple(rows)), {"micro_batches": figures}

    return measure
