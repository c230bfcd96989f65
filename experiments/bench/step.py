"""What a training step costs, and its parts alone, against forward and backward of the network.

    mcr2 bench step                                             # seconds
    mcr2 bench step --recipe paper --methods mcr2 --repeats 3   # minutes on two cores

Between the steps of a real training run, parts are timed by themselves, so that all meet the same
load: data (cutting and augmenting a batch), the objective with its gradient, the optimiser, and
forward and backward of the network alone. The ratio is that of the step to the latter: 1 is a
trainer that costs nothing. On one thread of a CPU the clock is the process's own CPU time, which
other work on the machine stretches far less than the time on the wall.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from experiments.bench import RecipeBench
from experiments.runs.estimate import synchronized
from experiments.runs.grid import grid
from experiments.runs.machine import Machine
from experiments.runs.methods import find_method
from experiments.runs.prepare import Prepared, load, load_other, prepare
from experiments.runs.recipes import find_recipe
from experiments.runs.specs import RunSpec
from experiments.runs.trained import Trained, feed_for
from experiments.studies.engine import spec_fields
from mcr2.objectives import Context, Objective
from mcr2.training import Encoder, Interrupted, backpropagate, make_optimizer, train


class Sum(Objective):
    """A loss that costs nothing: what is left of a step is forward and backward."""

    additive = True

    def loss(
        self, features: Tensor, labels: Tensor, context: Context
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of all features."""
        return features.sum(), {}


def clock_for(device: torch.device) -> Callable[[], float]:
    """Return what tells the time when the device has done what it was given."""
    cpu = device.type == "cpu" and torch.get_num_threads() == 1
    return partial(synchronized, device, time.process_time if cpu else time.perf_counter)


def build(spec: RunSpec, data: Prepared, device: torch.device) -> Encoder:
    """Return a spec's network and objective on a device, as training begins with them."""
    method = find_method(spec.method)
    assert isinstance(method, Trained)
    encoder = method.build(spec, data.sizes)
    encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return encoder


def time_step(
    spec: RunSpec, data: Prepared, device: torch.device, repeats: int
) -> dict[str, float]:
    """Return the median seconds of a spec's step and of its parts alone, and the ratio."""
    # Epochs without end, and no evaluation among them.
    config = replace(spec.training, epochs=10**6, evaluate_every=10**6)
    trained, other = build(spec, data, device), build(spec, data, device)
    network, objective = other.backbone, other.objective
    if config.compile:
        network = torch.compile(network, dynamic=False)  # type: ignore[assignment]
    optimizer = make_optimizer(replace(config, lr=0.0), other.backbone, objective)
    split, feed = data.train.to(device), feed_for(spec, data)
    epochs = (feed.epoch(split, config.batch_size, epoch) for epoch in itertools.count())
    fed = itertools.chain.from_iterable(epochs)
    batch = next(fed)
    raw = torch.randn(len(batch.labels), spec.feature_dim, device=device)
    costless = Sum(data.sizes.num_classes)
    # One pass over each piece where the step makes two: what micro-batches cost is in the ratio.
    once = replace(config, accumulate=config.micro_batch is not None)

    def score() -> None:
        context = Context(batch.indices, generator=torch.Generator().manual_seed(0))
        embedded = objective.embed(raw.clone().requires_grad_())
        objective(embedded, batch.labels, context)[0].backward()

    actions: dict[str, Callable[[], object]] = {
        "network": lambda: backpropagate(network, costless, batch, Context(), once),
        "data": lambda: next(fed),
        "objective": score,
        "optimiser": optimizer.step,
    }
    now = clock_for(device)
    spent: dict[str, list[float]] = {part: [] for part in ("step", *actions)}

    def between_steps() -> Iterator[bool]:
        while len(spent["step"]) < repeats:
            optimizer.zero_grad(set_to_none=True)
            for part, action in actions.items():
                start = now()
                action()
                spent[part].append(now() - start)
            begin = now()
            yield False
            spent["step"].append(now() - begin)
        yield True

    asked = between_steps()
    with contextlib.suppress(Interrupted):
        go = partial(train, device=device, stop=lambda: next(asked))
        go(trained.backbone, trained.objective, split, config, feed)
    found = {part: median(seconds) for part, seconds in spent.items()}
    return found | {"ratio": found["step"] / found["network"]}


def specs_for(options: RecipeBench) -> list[tuple[RunSpec, Prepared]]:
    """Return one spec a method, checked as a study would check it, with its data."""
    recipe, fields = find_recipe(options.recipe), spec_fields(options)
    specs = grid(recipe, options.methods, [0.0], [0], fields=fields, settings=options.set)
    found = {spec.method: spec for spec in reversed(specs)}
    loaded = load(specs[0], options.data_root), load_other(specs[0], options.data_root)
    pairs = [(found[name], prepare(found[name], *loaded)) for name in options.methods]
    for spec, data in pairs:
        find_method(spec.method).check(spec, data.sizes)
        if not find_method(spec.method).trained:
            raise ValueError(f"{spec.method} is not trained by steps; there is none to measure")
    return pairs


def measure(options: RecipeBench) -> Iterator[dict[str, Any]]:
    """Check the options, and return the seconds of each method's step, and of its parts."""
    pairs = specs_for(options)

    def rows() -> Iterator[dict[str, Any]]:
        device = Machine(options.device, options.threads).torch_device()
        for spec, data in pairs:
            batch_size = spec.training.batch_size
            named = {"method": spec.method, "backbone": spec.backbone, "batch_size": batch_size}
            yield named | time_step(spec, data, device, options.repeats or 30)

    return rows()
