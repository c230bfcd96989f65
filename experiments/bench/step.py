"""What a training step costs, part by part, and against forward and backward alone.

    mcr2 bench step                                             # seconds
    mcr2 bench step --recipe paper --methods mcr2 --repeats 3   # minutes on two cores

The parts are data (cutting and augmenting a batch, with its share of what an epoch's beginning
costs), forward and backward of the backbone, the objective with its own gradient, and the
optimiser. The ratio is that of the whole step to forward and backward of the backbone alone, on a
batch that stays where it is: 1 is a trainer that costs nothing.

On one thread of a CPU the clock is the process's own CPU time, which other work on the machine
stretches far less than the time on the wall.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from experiments.bench import Options
from experiments.report import Table
from experiments.runs.methods import Prepared, augmentation_for, find_method
from experiments.runs.recipes import find_recipe
from experiments.runs.runner import Machine, load
from experiments.runs.runner import prepare as prepare_data
from experiments.runs.specs import RunSpec
from experiments.studies.label_noise import grid
from mcr2.data import Batch, Split, batches, num_batches
from mcr2.objectives import Context, Objective
from mcr2.training import (
    RunningSums,
    backpropagate,
    compiled,
    learning_rate,
    make_optimizer,
    take_step,
)

PARTS = ("data", "forward", "objective", "backward", "optimiser")

#: Steps after which a new epoch is begun, so that its beginning is measured too.
EPOCH = 3

#: Seconds from which a step is too slow to be warmed up more than once.
SLOW = 4.0


@dataclass(frozen=True)
class StepTimes:
    """Medians in seconds.

    Attributes:
        method: whose step.
        backbone: its network.
        batch_size: samples in it.
        clock: ``"wall"`` or ``"cpu"``.
        whole: the step.
        alone: forward and backward of the backbone on a resident batch.
        parts: by name, measured in steps of their own; on a GPU the waiting between parts is in.
    """

    method: str
    backbone: str
    batch_size: int
    clock: str
    whole: float
    alone: float
    parts: dict[str, float]

    @property
    def ratio(self) -> float:
        """The whole step over forward and backward alone."""
        return self.whole / self.alone


#: What measures: time on the wall, or what the process had of the CPU.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Steps:
    """A run's training steps one at a time, as the trainer takes them.

    Args:
        spec: whose steps.
        data: what it is trained on.
        device: where.
        clock: a name of :data:`CLOCKS`.

    Raises:
        ValueError: a method that is not trained by steps.
    """

    def __init__(
        self, spec: RunSpec, data: Prepared, device: torch.device, clock: str = "wall"
    ) -> None:
        method = find_method(spec.method)
        if method.build is None:
            raise ValueError(f"{spec.method} is not trained by steps; there is none to measure")
        self.spec, self.device, self.config = spec, device, spec.training
        self.encoder = method.build(spec, data.sizes)
        self.encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.encoder.train()
        self.backbone, self.objective = self.encoder.backbone, self.encoder.objective
        self.forward = compiled(self.backbone, self.config)
        self.optimizer = make_optimizer(self.config, self.backbone, self.objective)
        self.split: Split = data.train.to(device)
        self.augmentation = augmentation_for(spec, data.dataset)
        self.per_epoch = num_batches(len(self.split), self.config.batch_size)
        self.sums = RunningSums()
        self.taken = 0
        self.clock = CLOCKS[clock]

    def feed(self) -> Callable[[], tuple[bool, Batch]]:
        """Return what gives batches without end, and whether each begins an epoch."""
        seeds = self.spec.streams.seeds(self.spec.seed)
        epoch, left, current = -1, 0, iter(())

        def draw() -> tuple[bool, Batch]:
            nonlocal epoch, left, current
            first = left == 0
            if first:
                epoch += 1
                left = min(self.per_epoch, EPOCH)
                current = batches(
                    self.split,
                    self.config.batch_size,
                    epoch=epoch,
                    sampling_seed=seeds["batches"],
                    augmentation_seed=seeds["augmentation"],
                    augmentation=self.augmentation,
                    shuffle=self.spec.shuffle,
                )
            left -= 1
            return first, next(current)

        return draw

    def take(self, batch: Batch, mark: Callable[[str], None] = lambda _: None) -> None:
        """Take one step."""
        total = max(self.config.epochs * self.per_epoch, 1)
        loss, terms = take_step(
            self.backbone,
            self.objective,
            self.optimizer,
            batch,
            Context(
                indices=batch.indices,
                step=self.taken,
                progress=min(self.taken / total, 1.0),
                generator=torch.Generator().manual_seed(self.taken),
            ),
            self.config,
            lr=learning_rate(self.config, min(self.taken, total - 1), self.per_epoch),
            forward=self.forward,
            mark=mark,
        )
        self.sums.add(loss, terms)
        self.taken += 1

    def over_epoch(
        self,
        values: list[tuple[bool, float]],
        centre: Callable[[list[float]], float] = median,
    ) -> float:
        """Return the mean step of a whole epoch from steps that begin one and steps that do not."""
        first = [seconds for begins, seconds in values if begins]
        later = [seconds for begins, seconds in values if not begins]
        if not first or not later:
            return centre(first or later)
        return (centre(first) + (self.per_epoch - 1) * centre(later)) / self.per_epoch

    def now(self) -> float:
        """Return the time when the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return self.clock()


class _Given(Objective):
    """A loss whose gradient is given: what is left of a step is forward and backward."""

    additive = True

    def __init__(self, gradient: Tensor) -> None:
        super().__init__(2)
        self.gradient = gradient

    def _check_input(self, features: Tensor, labels: Tensor) -> None:
        pass

    def loss(
        self, features: Tensor, labels: Tensor, context: Context
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return (features * self.gradient[: len(features)]).sum(), {}


def time_step(spec: RunSpec, data: Prepared, device: torch.device, repeats: int) -> StepTimes:
    """Measure a spec's step: whole, alone and in parts, in turn, so that all meet the same load.

    Args:
        spec: whose method, network and training.
        data: its data.
        device: where.
        repeats: how often; a few more go before, for warming up.
    """
    # Waiting for the device is no CPU time, and several threads wait for each other spinning.
    clock = "cpu" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"
    steps = Steps(spec, data, device, clock)
    draw, draw_for_parts = steps.feed(), steps.feed()
    resident = draw()[1]
    raw = torch.zeros(len(resident.labels), spec.feature_dim, device=device)
    given = _Given(torch.full_like(raw, 1e-6))
    # One pass over each piece where the step makes two: what micro-batches cost is in the ratio.
    once = replace(steps.config, accumulate=steps.config.micro_batch is not None)
    whole: list[tuple[bool, float]] = []
    alone: list[float] = []
    parts: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    warm = EPOCH
    while len(alone) < warm + repeats:
        start = steps.now()
        first, batch = draw()
        steps.take(batch)
        whole.append((first, steps.now() - start))
        if whole[0][1] > SLOW:
            warm = 1

        start = steps.now()
        backpropagate(steps.backbone, given, resident, Context(), once, forward=steps.forward)
        alone.append(steps.now() - start)
        steps.optimizer.zero_grad(set_to_none=True)

        spent: dict[str, float] = defaultdict(float)
        last = steps.now()

        def mark(part: str, spent: dict[str, float] = spent) -> None:
            nonlocal last
            now = steps.now()
            spent[part] += now - last
            last = now

        first, batch = draw_for_parts()
        mark("data")
        steps.take(batch, mark)
        for part in PARTS:
            parts[part].append((first, spent[part]))
    return StepTimes(
        method=spec.method,
        backbone=spec.backbone,
        batch_size=len(resident.labels),
        clock=clock,
        whole=steps.over_epoch(whole[warm:]),
        alone=median(alone[warm:]),
        parts={
            "data": steps.over_epoch(parts["data"][warm:]),
            **{part: median([s for _, s in parts[part][warm:]]) for part in PARTS[1:]},
        },
    )


def specs_for(options: Options) -> list[tuple[RunSpec, Prepared]]:
    """Return one spec a method, checked, with its data.

    Raises:
        ValueError, TypeError: what a study of these options would refuse, too.
    """
    recipe = find_recipe(options.recipe)
    dataset = recipe.base.dataset if options.dataset is None else options.dataset
    found = {}
    for spec in grid(
        recipe,
        options.methods,
        [0.0],
        [0],
        fields={"dataset": dataset, "subset": options.subset},
        settings=options.set,
    ):
        found.setdefault(spec.method, spec)
    loaded = load(next(iter(found.values())), options.data_root)
    pairs = [(spec, prepare_data(spec, loaded)) for spec in found.values()]
    for spec, data in pairs:
        find_method(spec.method).check(spec, data.sizes)
    return pairs


def prepare(options: Options, repeats: int = 30) -> Callable[[], dict[str, Any]]:
    """Check the options and return what measures the steps."""
    repeats = options.repeats or repeats
    machine = Machine(options.device, options.threads, options.data_root)
    pairs = specs_for(options)

    def measure() -> dict[str, Any]:
        device = machine.settle()
        times = [time_step(spec, data, device, repeats) for spec, data in pairs]
        steps = [
            {**asdict(t), "ratio": t.ratio, "training": asdict(spec.training)}
            for t, (spec, _) in zip(times, pairs, strict=True)
        ]
        return {
            "device": str(device),
            "threads": machine.threads,
            "repeats": repeats,
            "steps": steps,
        }

    return measure


def table(figures: dict[str, Any]) -> str:
    """Lay the figures out as text, a method a line."""
    rows = []
    for step in figures["steps"]:
        parts = step["parts"]
        total = sum(parts.values())
        shown = (f"{parts[p] * 1e3:.2f} ({parts[p] / total:.0%})" for p in PARTS)
        sums = (f"{step['whole'] * 1e3:.2f}", f"{step['alone'] * 1e3:.2f}", f"{step['ratio']:.3f}")
        rows.append(
            (step["method"], step["backbone"], f"batch {step['batch_size']}", *shown, *sums)
        )
    threads, clocks = figures["threads"], {step["clock"] for step in figures["steps"]}
    time_of = "CPU time" if clocks == {"cpu"} else "wall time"
    return Table(
        f"A training step on {figures['device']}, {threads} thread{'s' * (threads > 1)}, {time_of} "
        f"in ms (medians of {figures['repeats']}); ratio: whole step to forward + backward alone",
        ("method", "backbone", "", *PARTS, "step", "alone", "ratio"),
        tuple(rows),
    ).text()
