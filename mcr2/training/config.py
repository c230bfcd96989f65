"""How a network is trained and what it is fed: frozen, and enough to do it again."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from mcr2.checks import choice, integer, number
from mcr2.data import Augmentation, Batch, Split, batches, num_batches
from mcr2.objectives import Objective

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("one_cycle", "cosine", "steps", "constant")


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained; nothing in it names an objective.

    Attributes:
        epochs: passes over the training split.
        batch_size: samples a step; an epoch is cut into ceil(N / batch_size) equal batches.
        optimizer: ``"sgd"`` (with ``momentum``) or ``"adamw"``.
        lr: the peak learning rate.
        weight_decay: of every parameter that an objective does not exempt.
        schedule: one of :data:`SCHEDULES`, see :func:`learning_rate`.
        milestones: epochs after which ``"steps"`` multiplies the rate by ``decay``.
        decay: the factor of ``"steps"``.
        warmup: share of all steps in which ``"one_cycle"`` rises.
        evaluate_every: epochs between evaluations; epoch 0 and the last are always evaluated.
        micro_batch: images that pass through the backbone at a time; None takes the whole batch.
            The gradient stays that of the whole batch, see :func:`~mcr2.training.backpropagate`.
        accumulate: with ``micro_batch``, sum the gradients of the micro-batches' own losses
            instead: one forward pass less, for ``additive`` objectives only.
        amp: run the backbone in bfloat16 where autocast sees fit; objectives stay in float32.
        compile: run the backbone through ``torch.compile`` in training steps.
        tf32: let the backbone's products, convolutions too, round to TF32 (CUDA).
        ghost_batches: of several processes, let batch normalisation see each one's own rows
            (Hoffer et al. 2017) instead of the whole batch; the result then depends on how many.

    Raises:
        TypeError, ValueError: a field of the wrong kind or out of range.
    """

    epochs: int = 100
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "one_cycle"
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    warmup: float = 0.3
    evaluate_every: int = 5
    micro_batch: int | None = None
    accumulate: bool = False
    amp: bool = False
    compile: bool = False
    tf32: bool = False
    ghost_batches: bool = False

    def __post_init__(self) -> None:
        choice("optimizer", self.optimizer, OPTIMIZERS)
        choice("schedule", self.schedule, SCHEDULES)
        for name, least in (("epochs", 0), ("batch_size", 2), ("evaluate_every", 1)):
            integer(name, getattr(self, name), least)
        if self.micro_batch is not None:
            integer("micro_batch", self.micro_batch, 2)
        for name in ("lr", "weight_decay"):
            number(name, getattr(self, name), 0)
        for name in ("decay", "momentum", "warmup"):
            number(name, getattr(self, name), 0, 1)
        if list(self.milestones) != sorted(self.milestones) or min((0, *self.milestones)) < 0:
            raise ValueError(f"milestones are {self.milestones}; they must be rising epochs")


@dataclass(frozen=True)
class Feed:
    """What a network is fed: two runs with equal feeds see the same images in the same order.

    Attributes:
        sampling_seed, augmentation_seed: streams of the batches' order, and of shifts and flips.
        objective_seed: stream of the objective's own draws, and of the backbone's (dropout).
        augmentation: shifts and flips; none by default.
        shuffle: a new order each epoch.
    """

    sampling_seed: int = 0
    augmentation_seed: int = 0
    objective_seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    shuffle: bool = True

    def epoch(
        self, split: Split, batch_size: int, epoch: int, rows: Callable[[int], slice] = slice
    ) -> Iterator[Batch]:
        """Return the batches of one epoch, see :func:`mcr2.data.batches`."""
        fed = {name: value for name, value in vars(self).items() if name != "objective_seed"}
        return batches(split, batch_size, epoch=epoch, rows=rows, **fed)

    def digests(self, split: Split, batch_size: int) -> dict[str, str]:
        """Return SHA-256 digests of the first epoch: what two runs that are fed alike share.

        ``sampling`` is of the order of samples, ``augmentation`` of the images as they are fed, in
        the split's order.
        """
        # Quantised again, a quarter of the memory: augmentation moves pixels, it makes none.
        fed = [
            (batch.indices, (batch.images * 255).round().to(torch.uint8))
            for batch in self.epoch(split, batch_size, 0)
        ]
        order, images = (torch.cat(parts) for parts in zip(*fed, strict=True))
        named = {"sampling": order, "augmentation": images[order.argsort()]}
        return {k: hashlib.sha256(v.cpu().numpy().tobytes()).hexdigest() for k, v in named.items()}


def check_shares(config: TrainingConfig, samples: int, processes: int) -> None:
    """Refuse what several processes cannot share: small batches of all samples, ``accumulate``.

    Raises:
        ValueError: a process would have fewer than two samples of a batch, or score less than all.
    """
    if config.accumulate and processes > 1:
        raise ValueError(
            f"accumulate is of one process, not {processes}: they score the whole batch together"
        )
    if (least := samples // num_batches(samples, config.batch_size)) < 2 * processes:
        raise ValueError(
            f"{processes} processes need two samples each in every batch; some have {least}"
        )


def check_accumulation(config: TrainingConfig, objective: Objective) -> None:
    """Refuse ``accumulate`` of what is not ``additive``, or without a ``micro_batch``.

    Raises:
        ValueError: it would train for something else.
    """
    if config.accumulate and config.micro_batch is None:
        raise ValueError("accumulate sums over micro-batches; say how large with micro_batch")
    if config.accumulate and not objective.additive:
        raise ValueError(
            f"accumulate needs a loss that is a mean over samples; {type(objective).__name__} is "
            "not additive: coding rates do not add up over micro-batches. Leave accumulate out: "
            f"micro_batch={config.micro_batch} by itself gives the exact gradient of the whole "
            "batch, for one more forward pass"
        )


def learning_rate(config: TrainingConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of one step (counted from 0), a pure function of the step.

    With T = epochs * steps_per_epoch steps, t = step and peak rate lr:

    - ``one_cycle``: from lr/25 up to lr along half a cosine in the first ``warmup`` share of the
      steps, then down to lr/250000 along another (Smith & Topin 2018; torch's ``OneCycleLR``,
      momentum left alone);
    - ``cosine``: lr/2 (1 + cos(pi t / T));
    - ``steps``: lr * decay^(number of milestones reached by the epoch);
    - ``constant``: lr.

    Example:
        >>> paper = TrainingConfig(epochs=500, lr=0.01, schedule="steps", milestones=(200, 400))
        >>> [round(learning_rate(paper, epoch * 50, 50), 6) for epoch in (0, 199, 200, 400)]
        [0.01, 0.01, 0.001, 0.0001]
    """
    total = max(config.epochs * steps_per_epoch, 1)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "steps":
        epoch = step // steps_per_epoch
        return config.lr * config.decay ** sum(epoch >= m for m in config.milestones)
    if config.schedule == "cosine":
        return config.lr / 2 * (1 + math.cos(math.pi * step / total))

    def half_cosine(start: float, end: float, share: float) -> float:
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

    top = config.warmup * total - 1
    if step <= top:
        return half_cosine(config.lr / 25, config.lr, step / top if top else 1.0)
    return half_cosine(config.lr, config.lr / 250_000, (step - top) / (total - 1 - top))
