"""The one trainer: a backbone and an objective, optimised together, whichever objective it is.

The loop is short on purpose. Images stay uint8 on the device until a batch is cut
(:mod:`mcr2.data`), the learning rate is a pure function of the step, and every random draw comes
from a stream that is seeded anew each epoch: a run that was killed continues from its checkpoint
to the same result. Nothing in the loop reads a value back from the device; what an objective
reads is its own affair. One step's gradient is :func:`backpropagate`.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mcr2.data import Augmentation, Batch, Split, batches, mix_seed, num_batches
from mcr2.objectives import Context, Objective
from mcr2.records import load_tensors, save_tensors

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
        momentum: of SGD.
        weight_decay: of every parameter that an objective does not exempt.
        schedule: ``"one_cycle"``, ``"cosine"``, ``"steps"`` or ``"constant"``; see
            :func:`learning_rate`.
        milestones: epochs after which ``"steps"`` multiplies the rate by ``decay``.
        decay: the factor of ``"steps"``.
        warmup: share of all steps in which ``"one_cycle"`` rises.
        evaluate_every: epochs between evaluations; epoch 0 and the last are always evaluated.
        micro_batch: images that pass through the backbone at a time; None takes the whole batch.
            The gradient stays that of the whole batch, see :func:`backpropagate`.
        accumulate: with ``micro_batch``, sum the gradients of the micro-batches' own losses
            instead: one forward pass less, for ``additive`` objectives only.
        amp: run the backbone in bfloat16 where autocast sees fit; objectives stay in float32.
        compile: run the backbone through ``torch.compile`` in training steps.
        tf32: let the backbone's products round to TF32 (CUDA); False means full float32, for
            convolutions too, where torch's own default is TF32.
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

    def __post_init__(self) -> None:
        for name, allowed in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; choose from {', '.join(allowed)}"
                )
        for name, low, high in (
            ("epochs", 0, math.inf),
            ("batch_size", 2, math.inf),
            ("evaluate_every", 1, math.inf),
            ("micro_batch", 2, math.inf),
            ("weight_decay", 0, math.inf),
            ("lr", 0, math.inf),
            ("decay", 0, 1),
            ("momentum", 0, 1),
            ("warmup", 0, 1),
        ):
            value = getattr(self, name)
            if name == "micro_batch" and value is None:
                continue
            if not (low <= value <= high and math.isfinite(value)):
                span = f"at least {low}" if high == math.inf else f"between {low} and {high}"
                raise ValueError(f"{name} is {value}; it must be {span}")
        if list(self.milestones) != sorted(self.milestones) or min((0, *self.milestones)) < 0:
            raise ValueError(f"milestones are {self.milestones}; they must be rising epochs")


def check_accumulation(config: TrainingConfig, objective: Objective) -> None:
    """Refuse gradient accumulation where it would train for something else.

    Raises:
        ValueError: ``accumulate`` for an objective that is not ``additive``, or without a
            ``micro_batch``.
    """
    if config.accumulate and config.micro_batch is None:
        raise ValueError("accumulate sums over micro-batches; say how large with micro_batch")
    if config.accumulate and not objective.additive:
        raise ValueError(
            f"accumulate needs a loss that is a mean over samples; {type(objective).__name__} is "
            "not additive: coding rates do not add up over micro-batches, the log-determinant of "
            "a sum is no sum of log-determinants. Leave accumulate out: "
            f"micro_batch={config.micro_batch} by itself gives the exact gradient of the whole "
            "batch, for one more forward pass"
        )


def learning_rate(config: TrainingConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of one step (counted from 0), a pure function of the step.

    With T = epochs * steps_per_epoch steps, t = step and peak rate lr:

    - ``one_cycle``: from lr/25 up to lr along half a cosine in the first ``warmup`` share of the
      steps, then down to lr/250000 along another (Smith & Topin 2018; the same numbers as
      ``torch.optim.lr_scheduler.OneCycleLR``, momentum left alone);
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


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generators inside the block and leave them as they were behind it.

    Modules draw their initial weights from the global generator; this is how a run makes that
    draw a stream of its own.

    Example:
        >>> with seeded(3):
        ...     a = nn.Linear(2, 2).weight
        >>> with seeded(3):
        ...     b = nn.Linear(2, 2).weight
        >>> torch.equal(a, b)
        True
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class Encoder(nn.Module):
    """What training yields: images -> the features that the objective scores.

    Args:
        backbone: images ``(m, C, H, W)`` -> raw features ``(m, d)``.
        objective: its ``embed`` makes the features, its ``classifier`` is the own head.
    """

    def __init__(self, backbone: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.backbone = backbone
        self.objective = objective

    def forward(self, images: Tensor) -> Tensor:
        """Map float images to features ``(m, d)``."""
        return self.objective.embed(self.backbone(images))

    def classifier(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the objective's own linear head (W, b), or None."""
        return self.objective.classifier()


@dataclass
class TrainingResult:
    """What :func:`train` returns.

    Attributes:
        history: one entry an evaluation: ``epoch``, ``step``, ``lr``, ``loss``, ``terms``
            (averages over the epochs since the last evaluation), ``measures``, ``seconds``.
        kept: states of the encoder at the epochs that ``keep`` asked for, by epoch.
        steps: optimiser steps taken.
        reason: why the run stopped early, or None.
        wall_seconds: time in training and evaluation, over all the pieces of a resumed run.
        evaluation_seconds: the part of it spent in ``evaluate``.
        digests: SHA-256 of the first epoch's sample order and of its augmented images, each in
            the order of samples: equal for two runs that were fed alike.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    steps: int = 0
    reason: str | None = None
    wall_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    digests: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """What the trainer tells while it runs, once an epoch."""

    epoch: int
    epochs: int
    loss: float
    terms: Mapping[str, float]
    measures: Mapping[str, float | None]
    seconds_left: float


Evaluate = Callable[[Encoder], Mapping[str, Any]]
Keep = Callable[[Sequence[Mapping[str, Any]]], set[int]]


def make_optimizer(
    config: TrainingConfig, backbone: nn.Module, objective: Objective
) -> torch.optim.Optimizer:
    """Return the optimiser over the backbone's parameters and the objective's groups."""
    groups: list[dict[str, Any]] = [{"params": list(backbone.parameters())}]
    groups += [g for g in objective.param_groups() if g["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )


class FeaturesNotFiniteError(ValueError):
    """An objective refused features that were not finite."""


def _no_mark(_: str) -> None:
    pass


def backpropagate(
    backbone: nn.Module,
    objective: Objective,
    batch: Batch,
    context: Context,
    config: TrainingConfig,
    *,
    forward: Callable[[Tensor], Tensor] | None = None,
    mark: Callable[[str], None] = _no_mark,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add one step's gradient to ``.grad`` of every parameter, and return the loss.

    With raw features H = f(x; θ) and a loss ℓ(H; φ), the objective's ``embed`` included, the
    gradient is taken in two parts, dℓ/dH and dℓ/dφ by the objective and (dH/dθ)ᵀ dℓ/dH by the
    backbone. That keeps the objective in float32 whatever the backbone runs in, and makes
    micro-batches exact for losses that are not additive:

    - ``micro_batch=None``: one forward, one backward;
    - ``micro_batch=n``: H in pieces without a graph; dℓ/dH of the whole batch; once more forward
      in pieces, each backward with its rows of dℓ/dH. Memory is that of one piece and (m, d);
    - ``micro_batch=n, accumulate=True``: Σ (n_i/m) ℓ(H_i), for additive losses.

    Batch normalisation that is training normalises by the piece it sees: with it the gradient is
    that of a network with ghost batches of n (Hoffer et al. 2017), not of the whole-batch one.
    Its running statistics move once a piece; the first of the two passes leaves them alone and
    draws (dropout) what the second will draw again.

    Args:
        backbone: images -> raw features.
        objective: scores what its ``embed`` makes of them.
        batch: images, labels, indices.
        context: for the objective.
        config: ``micro_batch``, ``accumulate``, ``amp``, ``tf32``; the rest is not looked at.
        forward: called in the backbone's place; what ``torch.compile`` made of it.
        mark: told "forward", "objective" or "backward" where such a part ends, for clocks.

    Returns:
        Loss and terms of the batch, without graph.

    Raises:
        FeaturesNotFiniteError: the objective refused features that are not finite.
        ValueError: the objective refused them for another reason.

    Example:
        >>> from mcr2.objectives import RateReduction
        >>> net = nn.Flatten()
        >>> batch = Batch(torch.rand(6, 1, 2, 2), torch.arange(6) % 2, torch.arange(6))
        >>> whole, _ = backpropagate(net, RateReduction(2), batch, Context(), TrainingConfig())
        >>> pieces = TrainingConfig(micro_batch=2)
        >>> again, _ = backpropagate(net, RateReduction(2), batch, Context(), pieces)
        >>> torch.equal(whole, again)
        True
    """
    run = backbone if forward is None else forward
    device = batch.images.device
    m = len(batch.labels)
    count = 1
    if config.micro_batch is not None:
        # At least two samples a piece: batch normalisation refuses one.
        count = max(1, min(num_batches(m, config.micro_batch), m // 2))

    def features(images: Tensor) -> Tensor:
        # Not autocast switched off: torch 2.4 has none at all on some devices. bfloat16 has
        # float32's exponents, so that no gradient vanishes and none needs scaling.
        mixed: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if config.amp:
            mixed = torch.autocast(device.type, dtype=torch.bfloat16)
        with _tf32(config.tf32), mixed:
            return run(images)

    def score(
        raw: Tensor, labels: Tensor, at: Context, share: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Leave d(share · loss)/d(raw) in ``raw.grad``; the objective's own parameters too."""
        with _tf32(False):
            embedded = objective.embed(raw)
            try:
                loss, terms = objective(embedded, labels, at)
            except ValueError as error:
                if bool(torch.isfinite(embedded).all()):
                    raise
                raise FeaturesNotFiniteError(str(error)) from error
            (loss * share).backward()
        mark("objective")
        return loss.detach(), terms

    def pull_back(raw: Tensor, gradient: Tensor | None) -> None:
        # A frozen backbone wants no gradient, and a loss may ignore the features.
        if raw.requires_grad and gradient is not None:
            with _tf32(config.tf32):
                raw.backward(gradient.to(raw.dtype))  # type: ignore[no-untyped-call]
        mark("backward")

    if count > 1 and not config.accumulate:
        pieces = batch.images.tensor_split(count)
        devices = [device] if device.type == "cuda" else []
        with torch.no_grad(), _statistics_at_rest(backbone), torch.random.fork_rng(devices):
            leaf = torch.cat([_wide(features(images)) for images in pieces])
        mark("forward")
        leaf.requires_grad_()
        loss, terms = score(leaf, batch.labels, context, 1.0)
        rows = [None] * count if leaf.grad is None else leaf.grad.tensor_split(count)
        for images, gradient in zip(pieces, rows, strict=True):
            raw = features(images)
            mark("forward")
            pull_back(raw, gradient)
        return loss, terms

    losses: list[tuple[Tensor, dict[str, Tensor], float]] = []
    for images, labels, indices in zip(*(part.tensor_split(count) for part in batch), strict=True):
        raw = features(images)
        mark("forward")
        leaf = _wide(raw.detach()).requires_grad_()
        share = len(labels) / m
        loss, terms = score(leaf, labels, replace(context, indices=indices), share)
        pull_back(raw, leaf.grad)
        losses.append((loss, terms, share))
    if count == 1:
        return losses[0][:2]
    names = losses[0][1]
    return (
        torch.stack([loss * share for loss, _, share in losses]).sum(),
        {k: torch.stack([terms[k] * share for _, terms, share in losses]).sum() for k in names},
    )


def _wide(raw: Tensor) -> Tensor:
    return raw.to(torch.promote_types(raw.dtype, torch.float32))


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 inside the block; the flags belong to the whole process."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before


@contextlib.contextmanager
def _statistics_at_rest(module: nn.Module) -> Iterator[None]:
    """Keep running means and variances, and their count, from moving inside the block."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def compiled(backbone: nn.Module, config: TrainingConfig) -> Callable[[Tensor], Tensor] | None:
    """Return what ``torch.compile`` makes of the backbone, or None where that is not asked for.

    It stands beside the backbone, not in its place: weights keep their names, and evaluations run
    as ever.
    """
    # Batches differ by one sample at most: fixed shapes cost two compilations.
    return torch.compile(backbone, dynamic=False) if config.compile else None


def take_step(
    backbone: nn.Module,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    context: Context,
    config: TrainingConfig,
    *,
    lr: float,
    forward: Callable[[Tensor], Tensor] | None = None,
    mark: Callable[[str], None] = _no_mark,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Take one optimiser step on a batch and return its loss and terms, without graph.

    Arguments and errors as :func:`backpropagate`; ``lr`` is the step's learning rate, and ``mark``
    is told "optimiser", too.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss, terms = backpropagate(
        backbone, objective, batch, context, config, forward=forward, mark=mark
    )
    optimizer.step()
    mark("optimiser")
    return loss, terms


def train(
    backbone: nn.Module,
    objective: Objective,
    split: Split,
    config: TrainingConfig,
    *,
    sampling_seed: int = 0,
    augmentation_seed: int = 0,
    objective_seed: int = 0,
    augmentation: Augmentation | None = None,
    shuffle: bool = True,
    device: str | torch.device = "cpu",
    evaluate: Evaluate | None = None,
    keep: Keep | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 20.0,
    progress: Callable[[Progress], None] | None = None,
    log: Callable[[Mapping[str, Any]], None] | None = None,
) -> TrainingResult:
    """Optimise backbone and objective together on a split.

    Args:
        backbone: images -> raw features; trained in place, on ``device``.
        objective: scores features and labels; trained in place.
        split: the images and the labels to train on.
        config: epochs, batches, optimiser, schedule.
        sampling_seed: stream of the batches' order.
        augmentation_seed: stream of shifts and flips.
        objective_seed: stream handed to the objective's own draws.
        augmentation: shifts and flips; none by default.
        shuffle: a new order each epoch.
        device: where to train.
        evaluate: called with the encoder at epoch 0, every ``evaluate_every`` epochs and at the
            end; what it returns is the entry's ``measures``.
        keep: from the history so far, the epochs whose weights are to be kept.
        checkpoint: file to continue from where it exists, and to write while training.
        checkpoint_seconds: how often to write it, at the most.
        progress: called once an epoch.
        log: called with every new entry of the history.

    Returns:
        The history, the kept weights and what was spent. A loss that is not finite ends the
        run with a ``reason``, not an exception.

    Raises:
        ValueError: a split of fewer than two samples, a checkpoint of another run, or what
            :func:`check_accumulation` refuses.

    Example:
        >>> from mcr2.backbones import BACKBONES
        >>> from mcr2.objectives import RateReduction
        >>> split = Split(torch.randint(0, 255, (20, 1, 8, 8)).byte(), torch.arange(20) % 2)
        >>> net = BACKBONES["resnet10_w8"](in_channels=1, feature_dim=4)
        >>> result = train(net, RateReduction(2), split, TrainingConfig(epochs=2, batch_size=10))
        >>> [entry["epoch"] for entry in result.history], result.steps
        ([0, 2], 4)
    """
    if len(split) < 2:
        raise ValueError(f"training needs at least two samples; the split has {len(split)}")
    check_accumulation(config, objective)
    start = time.perf_counter()
    device = torch.device(device)
    split = split.to(device)
    backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    objective.to(device)
    encoder = Encoder(backbone, objective)
    forward = compiled(backbone, config)
    optimizer = make_optimizer(config, backbone, objective)
    per_epoch = num_batches(len(split), config.batch_size)
    total_steps = max(config.epochs * per_epoch, 1)

    result = TrainingResult()
    epoch = 0
    spent = 0.0
    sums = RunningSums()
    if checkpoint is not None and Path(checkpoint).exists():
        epoch, spent = _restore(Path(checkpoint), encoder, optimizer, result, sums)
    saved = time.perf_counter()

    def take_stock(at: int, lr: float) -> bool:
        """Evaluate and note it; False where the network cannot be read any more."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # or the steps still queued would count as evaluation
        begun = time.perf_counter()
        try:
            measures = dict(evaluate(encoder)) if evaluate is not None else {}
        except ValueError:
            # Loss and weights can be finite and the features in evaluation mode not.
            if bool(_all_features(encoder, split, config.batch_size).isfinite().all()):
                raise
            result.reason = _not_finite("features", at, result.steps)
            return False
        result.evaluation_seconds += time.perf_counter() - begun
        loss, terms = sums.take()
        seconds = spent + time.perf_counter() - start
        result.history.append(
            {
                "epoch": at,
                "step": result.steps,
                "lr": lr,
                "loss": loss,
                "terms": terms,
                "measures": measures,
                "seconds": seconds,
            }
        )
        wanted = keep(result.history) if keep is not None else {at}
        if at in wanted:
            result.kept[at] = _state(encoder)
        result.kept = {e: state for e, state in result.kept.items() if e in wanted}
        if log is not None:
            log(result.history[-1])
        return True

    lr = learning_rate(config, 0, per_epoch)
    if epoch == 0 and not result.history:
        take_stock(0, lr)
    while epoch < config.epochs and result.reason is None:
        if objective.needs_epoch_features:
            objective.on_epoch(_all_features(encoder, split, config.batch_size), split.labels)
        generator = torch.Generator().manual_seed(mix_seed(objective_seed, epoch))
        fed = _Fed() if epoch == 0 else None
        encoder.train()
        for batch in batches(
            split,
            config.batch_size,
            epoch=epoch,
            sampling_seed=sampling_seed,
            augmentation_seed=augmentation_seed,
            augmentation=augmentation or Augmentation(),
            shuffle=shuffle,
        ):
            if fed is not None:
                fed.add(batch)
            lr = learning_rate(config, result.steps, per_epoch)
            context = Context(
                indices=batch.indices,
                step=result.steps,
                epoch=epoch,
                progress=result.steps / total_steps,
                generator=generator,
            )
            try:
                loss, terms = take_step(
                    backbone,
                    objective,
                    optimizer,
                    batch,
                    context,
                    config,
                    lr=lr,
                    forward=forward,
                )
            except FeaturesNotFiniteError:
                result.reason = _not_finite("features", epoch + 1, result.steps)
                break
            result.steps += 1
            sums.add(loss, terms)
        epoch += 1
        if fed is not None:
            result.digests = fed.digests()
        if result.reason is None and not sums.finite():
            result.reason = _not_finite("loss", epoch, result.steps)
        if result.reason is None and not _finite_weights(encoder):
            result.reason = _not_finite("weights", epoch, result.steps)
        if result.reason is not None:
            break
        due = epoch % config.evaluate_every == 0 or epoch == config.epochs
        if due and not take_stock(epoch, lr):
            break
        now = time.perf_counter()
        if checkpoint is not None and now - saved >= checkpoint_seconds and epoch < config.epochs:
            _save(Path(checkpoint), encoder, optimizer, result, sums, epoch, spent + now - start)
            saved = time.perf_counter()
        if progress is not None:
            loss_now, terms_now = sums.last()
            done = spent + time.perf_counter() - start
            progress(
                Progress(
                    epoch=epoch,
                    epochs=config.epochs,
                    loss=loss_now,
                    terms=terms_now,
                    measures=result.history[-1]["measures"],
                    seconds_left=done / epoch * (config.epochs - epoch),
                )
            )
    result.wall_seconds = spent + time.perf_counter() - start
    return result


def _not_finite(what: str, epoch: int, step: int) -> str:
    return f"the {what} stopped being finite in epoch {epoch}, by step {step}"


def _finite_weights(encoder: Encoder) -> bool:
    # One sum over all: a step can leave infinite weights behind a finite loss.
    return bool(torch.stack([p.detach().sum() for p in encoder.parameters()]).sum().isfinite())


def _state(encoder: Encoder) -> dict[str, Tensor]:
    return {k: v.detach().cpu().clone() for k, v in encoder.state_dict().items()}


@torch.no_grad()
def _all_features(encoder: Encoder, split: Split, batch_size: int) -> Tensor:
    """Features of all training samples in their own order, not augmented, as in evaluation."""
    encoder.eval()
    parts = batches(split, batch_size, epoch=0, sampling_seed=0, augmentation_seed=0, shuffle=False)
    return torch.cat([encoder(batch.images) for batch in parts])


class RunningSums:
    """Sums of the loss and its terms since the last evaluation, without a sync a step."""

    def __init__(self) -> None:
        self.count = 0
        self.total: dict[str, Tensor] = {}
        self.latest: dict[str, Tensor] = {}

    def add(self, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Add a step's loss and terms."""
        self.latest = {"loss": loss, **terms}
        for name, value in self.latest.items():
            # float64 where it exists: the sum is over thousands of steps
            value = value if value.device.type == "mps" else value.double()
            self.total[name] = self.total[name] + value if name in self.total else value
        self.count += 1

    def finite(self) -> bool:
        """Whether the summed loss is finite, hence every one of it."""
        return bool(torch.isfinite(self.total["loss"])) if self.total else True

    def take(self) -> tuple[float | None, dict[str, float]]:
        """Return the means of loss and terms, and begin anew."""
        means = {name: float(value) / self.count for name, value in self.total.items()}
        self.total, self.count = {}, 0
        return means.pop("loss", None), means

    def last(self) -> tuple[float, dict[str, float]]:
        """Return the latest step's loss and terms."""
        values = {name: float(value) for name, value in self.latest.items()}
        return values.pop("loss", math.nan), values


class _Fed:
    """What the first epoch fed to the network, digested in the order of samples."""

    def __init__(self) -> None:
        self.indices: list[Tensor] = []
        self.images: list[Tensor] = []

    def add(self, batch: Batch) -> None:
        # Left on the device until the epoch ends: bringing them here would wait at every step.
        self.indices.append(batch.indices)
        # Quantised again, a quarter of the memory: augmentation moves pixels, it makes none.
        self.images.append((batch.images * 255).round().to(torch.uint8))

    def digests(self) -> dict[str, str]:
        order = torch.cat(self.indices)
        images = torch.cat(self.images)[order.argsort()].contiguous().cpu()
        order = order.cpu()
        return {
            "sampling": hashlib.sha256(order.numpy().tobytes()).hexdigest(),
            "augmentation": hashlib.sha256(images.numpy().tobytes()).hexdigest(),
        }


def _save(
    path: Path,
    encoder: Encoder,
    optimizer: torch.optim.Optimizer,
    result: TrainingResult,
    sums: RunningSums,
    epoch: int,
    seconds: float,
) -> None:
    """Write all that a continued run needs into one file, so that it is whole or absent."""
    tensors = {f"encoder/{k}": v for k, v in encoder.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{k}": v for k, v in slots.items() if v is not None}
    for kept, state in result.kept.items():
        tensors |= {f"kept/{kept}/{k}": v for k, v in state.items()}
    tensors |= {f"sums/{k}": v for k, v in sums.total.items()}
    metadata = {
        "epoch": epoch,
        "seconds": seconds,
        "evaluation_seconds": result.evaluation_seconds,
        "steps": result.steps,
        "history": result.history,
        "digests": result.digests,
        "count": sums.count,
    }
    save_tensors(path, tensors, metadata)


def _restore(
    path: Path,
    encoder: Encoder,
    optimizer: torch.optim.Optimizer,
    result: TrainingResult,
    sums: RunningSums,
) -> tuple[int, float]:
    tensors, metadata = load_tensors(path)

    def below(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    try:
        encoder.load_state_dict(below("encoder/"))
    except RuntimeError as error:
        raise ValueError(f"{path} is the checkpoint of another network") from error
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in below("optimizer/").items():
        index, slot = name.split("/")
        like = parameters[int(index)]
        if value.shape == like.shape:
            # empty_like keeps the parameter's memory format, which the file does not know
            value = torch.empty_like(like).copy_(value)
        slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    for name, value in below("kept/").items():
        kept, _, key = name.partition("/")
        result.kept.setdefault(int(kept), {})[key] = value
    sums.total = {k: v.to(parameters[0].device) for k, v in below("sums/").items()}
    sums.count = metadata["count"]
    result.steps = metadata["steps"]
    result.evaluation_seconds = metadata["evaluation_seconds"]
    result.history = metadata["history"]
    result.digests = metadata["digests"]
    return metadata["epoch"], metadata["seconds"]
