"""The one trainer: a backbone and an objective, optimised together, whichever objective it is.

The learning rate is a pure function of the step, and every random draw comes from a stream that is
seeded anew each epoch or step: a run that was stopped anywhere continues from its checkpoint to the
same bits. Nothing in the loop reads a value back from the device at a step.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mcr2.backbones import named_stages, stage_features
from mcr2.data import Batch, Split, mix_seed, num_batches
from mcr2.objectives import Context, Objective
from mcr2.records import content_key, plain, tensors_digest
from mcr2.training.checkpoint import read_checkpoint, write_checkpoint
from mcr2.training.config import (
    Feed,
    TrainingConfig,
    check_accumulation,
    check_shares,
    learning_rate,
)
from mcr2.training.gather import World, synchronized
from mcr2.training.history import History, TrainingResult, Watch
from mcr2.training.step import FeaturesNotFiniteError, backpropagate, make_optimizer


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Make draws from torch's generators, as of initial weights, a stream of their own.

    Example:
        >>> with seeded(3):
        ...     print(f"{torch.rand(()):.4f}")
        0.0043
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class Encoder(nn.Module):
    """What training yields: images -> the features that the objective scores.

    The backbone maps images ``(m, C, H, W)`` to raw features ``(m, d)``, of which the objective's
    ``embed`` makes the features; its ``classifier`` is the own head.
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

    def layer_names(self) -> tuple[str, ...]:
        """Return the names of the backbone's stages, see :func:`mcr2.backbones.named_stages`."""
        return tuple(name for name in named_stages(self.backbone) if name != "features")

    def layer_features(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the outputs ``(m, d_l)`` of stages, see :func:`mcr2.backbones.stage_features`.

        ``"features"`` among the names is the encoder's own output.
        """
        stages = [name for name in names if name != "features"]
        raw, found = stage_features(self.backbone, images, stages)
        return {n: self.objective.embed(raw) if n == "features" else found[n] for n in names}


class SharedEncoder(Encoder):
    """An encoder whose images are shared out over processes, and their features gathered."""

    def __init__(self, encoder: Encoder, world: World) -> None:
        super().__init__(encoder.backbone, encoder.objective)
        self.world = world
        self.training = encoder.training

    def forward(self, images: Tensor) -> Tensor:
        """Map float images, the same in every process, to features ``(m, d)`` of all."""
        m = len(images)
        if m < self.world.size:  # nobody's network is given an empty batch
            return super().forward(images)
        return self.world.gathered(super().forward(images[self.world.rows(m)]), m)

    def layer_features(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the outputs ``(m, d_l)`` of stages, of all images."""
        m = len(images)
        if m < self.world.size:
            return super().layer_features(images, names)
        own = super().layer_features(images[self.world.rows(m)], names)
        return {name: self.world.gathered(features, m) for name, features in own.items()}


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """A run was asked to stop; what it had done is in its checkpoint, if it has one."""


def train(
    backbone: nn.Module,
    objective: Objective,
    split: Split,
    config: TrainingConfig,
    feed: Feed | None = None,
    watch: Watch | None = None,
    *,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 20.0,
    stop: Callable[[], bool] | None = None,
    world: World | None = None,
) -> TrainingResult:
    """Optimise backbone and objective together on a split.

    Args:
        backbone, objective: images -> raw features, and their loss; trained in place on ``device``.
        split: the images and the labels to train on.
        config, feed, watch: how to train, on what in which order, and who looks.
        checkpoint: file to continue from where it exists, and to write while training; a damaged
            one is set aside with a warning, see :mod:`mcr2.training.checkpoint`.
        checkpoint_seconds: how often to write it, at the most.
        stop: asked after every step; True writes the checkpoint and ends the run.
        world: the processes that share every batch, see :mod:`mcr2.training.gather`; each of them
            makes the same call. All evaluate together, the first one alone writes, logs and keeps
            weights. A checkpoint continues with any number of processes.

    A loss that is not finite ends the run with a ``reason``, not an exception.

    Raises:
        Interrupted: ``stop`` said so; the same call continues.
        ValueError: a split of fewer than two samples; a checkpoint of another run; processes that
            do not see the same; or what :func:`~mcr2.training.check_accumulation` and
            :func:`~mcr2.training.check_shares` refuse.

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
    world = world or World()
    check_accumulation(config, objective)
    check_shares(config, len(split), world.size)
    device = torch.device(device)
    backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    encoder = Encoder(backbone, objective.to(device))
    place = None if checkpoint is None else Path(checkpoint)
    fed, seen = (feed or Feed(), watch or Watch())
    with contextlib.ExitStack() as during:
        during.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        if not config.ghost_batches:
            during.enter_context(synchronized(encoder.backbone, world))
        how = (place, checkpoint_seconds, stop, world)
        return _Training(encoder, split.to(device), config, fed, seen, *how).run()


@dataclass
class _Training:
    """A run on its way: what its steps, its evaluations and its checkpoint share."""

    encoder: Encoder
    split: Split
    config: TrainingConfig
    feed: Feed
    watch: Watch
    checkpoint: Path | None
    checkpoint_seconds: float
    stop: Callable[[], bool] | None
    world: World

    #: Where a run is, beside its network, optimiser and result.
    PLACE: ClassVar[tuple[str, ...]] = ("epoch", "done", "count", "totals")

    def __post_init__(self) -> None:
        config, encoder = self.config, self.encoder
        # Beside the backbone, not in its place: weights keep their names, and evaluations run as
        # ever. Batches differ by one sample at most: fixed shapes cost two compilations.
        self.network = encoder.backbone
        if config.compile:
            self.network = torch.compile(encoder.backbone, dynamic=False)  # type: ignore[assignment]
        self.optimizer = make_optimizer(config, encoder.backbone, encoder.objective)
        self.per_epoch = num_batches(len(self.split), config.batch_size)
        if self.world.rank > 0:
            self.watch = Watch(self.watch.evaluate, keep=lambda history: set())
        self.history = History(
            encoder,
            replace(self.watch, evaluate=self._measures),
            epochs=config.epochs,
            evaluate_every=config.evaluate_every,
            device=self.split.device,
        )
        self.result = self.history.result
        self.totals: dict[str, Tensor] = {}  # of loss and terms, since the last evaluation
        self.count = 0  # of steps in them
        self.latest: dict[str, Tensor] = {}
        self.generator = torch.Generator()
        self.epoch = 0  # finished
        self.done = 0  # steps of the epoch that is not
        self.saved = time.perf_counter()
        self.wishes = torch.zeros(())  # of processes, to stop

    def run(self) -> TrainingResult:
        """Continue from the checkpoint, or begin, and go on to the end."""
        self._restore()
        if not self.result.history:
            self._evaluate_and_record()
        while self.epoch < self.config.epochs and self.result.reason is None:
            self._take_steps()
            self._end_epoch()
        if self.config.epochs:
            self.result.proof = self.feed.digests(self.split, self.config.batch_size)
        return self.history.finish()

    def _take_steps(self) -> None:
        """Take the steps of an epoch that are left."""
        objective = self.encoder.objective
        if self.done == 0:
            self.generator.manual_seed(mix_seed(self.feed.objective_seed, self.epoch))
            if objective.needs_epoch_features:
                objective.on_epoch(self._all_features(), self.split.labels)
        self.encoder.train()
        rows = self.world.rows
        fed = self.feed.epoch(self.split, self.config.batch_size, self.epoch, rows)
        for batch in islice(fed, self.done, None):
            try:
                stop = self._take_step(batch)
            except FeaturesNotFiniteError:
                self._fail("features", self.epoch + 1)
                break
            self._save_if_due()
            if stop:
                self._save()
                raise Interrupted(f"stopped after step {self.result.steps}")

    def _take_step(self, batch: Batch) -> bool:
        """Take one step; return whether anyone asks to stop after it."""
        step, config, objective = self.result.steps, self.config, self.encoder.objective
        context = Context(
            indices=batch.indices,
            step=step,
            epoch=self.epoch,
            progress=step / (config.epochs * self.per_epoch),
            generator=self.generator,
        )
        # On a CPU its own generator alone: manual_seed looks for other devices, too.
        cpu = self.split.device.type == "cpu"
        seed = torch.default_generator.manual_seed if cpu else torch.manual_seed
        others = () if self.world.rank == 0 else (self.world.rank,)
        seed(mix_seed("layers", self.feed.objective_seed, step, *others))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step, self.per_epoch)
        self.optimizer.zero_grad(set_to_none=True)
        loss, terms = backpropagate(self.network, objective, batch, context, config, self.world)
        stop = self.stop is not None and self.stop()
        if self.world.size > 1:
            backbone, before = self.encoder.backbone, self.wishes
            self.wishes = self.world.share_gradients(backbone, objective, stop)
            stop = bool(before)  # a step later, when reading it does not wait for the device
        self.optimizer.step()
        self.result.steps, self.done, self.count = step + 1, self.done + 1, self.count + 1
        self.latest = {"loss": loss, **terms}
        for name, value in self.latest.items():
            # In float64 where it exists: the sum is over thousands of steps.
            value = value if value.device.type == "mps" else value.double()
            self.totals[name] = self.totals[name] + value if name in self.totals else value
        return stop

    def _end_epoch(self) -> None:
        self.epoch, self.done = self.epoch + 1, 0
        # One sum over all: a step can leave infinite weights behind a finite loss.
        weights = torch.stack([p.detach().sum() for p in self.encoder.parameters()]).sum()
        if self.result.reason is None:
            if "loss" in self.totals and not bool(self.totals["loss"].isfinite()):
                self._fail("loss", self.epoch)
            elif not bool(weights.isfinite()):
                self._fail("weights", self.epoch)
            elif self.history.due(self.epoch):
                self._evaluate_and_record()
        if self.result.reason is None:
            self._save_if_due()
            terms = {name: float(value) for name, value in self.latest.items()}
            self.history.tell_progress(self.epoch, terms.pop("loss", math.nan), terms)

    def _fail(self, what: str, epoch: int) -> None:
        self.result.reason = (
            f"the {what} stopped being finite in epoch {epoch}, by step {self.result.steps}"
        )

    def _evaluate_and_record(self) -> None:
        lr = learning_rate(self.config, max(self.result.steps - 1, 0), self.per_epoch)
        terms = {name: float(value) / self.count for name, value in self.totals.items()}
        loss, self.totals, self.count = terms.pop("loss", None), {}, 0
        try:
            self.history.evaluate_and_record(self.epoch, lr=lr, loss=loss, terms=terms)
        except FeaturesNotFiniteError:
            self._fail("features", self.epoch)

    def _measures(self, encoder: Encoder) -> Mapping[str, Any]:
        try:
            if self.world.size > 1:
                encoder = SharedEncoder(encoder, self.world)
            return {} if self.watch.evaluate is None else self.watch.evaluate(encoder)
        except ValueError as error:
            # Loss and weights can be finite and the features in evaluation mode not.
            if bool(self._all_features().isfinite().all()):
                raise
            raise FeaturesNotFiniteError(str(error)) from error

    @torch.no_grad()
    def _all_features(self) -> Tensor:
        """Features of all training samples in their own order, not augmented, as in evaluation."""
        self.encoder.eval()
        size, world = self.config.batch_size, self.world
        parts = Feed(shuffle=False).epoch(self.split, size, 0, world.rows)
        return torch.cat(
            [world.gathered(self.encoder(batch.images), len(batch.labels)) for batch in parts]
        )

    def _identity(self) -> str:
        """Return what tells this run from another whose checkpoint may lie in its place."""
        shapes = {name: list(value.shape) for name, value in self.encoder.state_dict().items()}
        objective = type(self.encoder.objective).__qualname__
        labels = tensors_digest({"labels": self.split.labels})
        return content_key(asdict(self.config), asdict(self.feed), shapes, objective, labels)

    def _save_if_due(self) -> None:
        if time.perf_counter() - self.saved >= self.checkpoint_seconds:
            self._save()

    def _save(self) -> None:
        if self.checkpoint is None or self.world.rank > 0:
            return
        result = vars(self.result) | {"kept": {}, "wall_seconds": self.history.seconds()}
        state = {
            "encoder": self.encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "kept": self.result.kept,
            "result": plain(result),
            **{name: getattr(self, name) for name in self.PLACE},
        }
        write_checkpoint(self.checkpoint, self._identity(), state)
        self.saved = time.perf_counter()

    def _restore(self) -> None:
        """Continue from the checkpoint where there is one; all processes from the same."""
        state = None
        if self.checkpoint is not None:
            if self.world.rank > 0:  # the first one sets a damaged file aside
                self.world.wait()
            state = read_checkpoint(self.checkpoint, self._identity())
            if self.world.rank == 0:
                self.world.wait()
        if state is not None:
            self.encoder.load_state_dict(state["encoder"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.generator.set_state(state["generator"])
            vars(self.result).update(state["result"], kept=state["kept"])
            vars(self).update({name: state[name] for name in self.PLACE})
            self.totals = {k: value.to(self.split.device) for k, value in self.totals.items()}
        if self.world.size > 1:
            state = self.encoder.state_dict()
            numbers = int(tensors_digest(state)[:12], 16), int(self._identity()[:12], 16)
            self.world.check_agreement("weights, labels or checkpoint", numbers)
