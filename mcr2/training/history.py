"""What is recorded of a network on its way, trained or constructed: one recorder for both."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class TrainingResult:
    """What training or construction yields; for a constructed network epochs are layers.

    Attributes:
        history: one entry an evaluation: ``epoch``, ``step``, ``lr``, ``loss``, ``terms``
            (averages over the epochs since the last evaluation), ``measures``, ``seconds``.
        kept: states of the encoder at the epochs that ``keep`` asked for, by epoch.
        steps: optimiser steps taken, or layers constructed.
        reason: why the run failed, or None.
        wall_seconds, evaluation_seconds: time in all, over the pieces of a resumed run, and the
            part of it spent in ``evaluate``.
        proof: digests of what two runs should share; of a trained network :meth:`Feed.digests`.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    steps: int = 0
    reason: str | None = None
    wall_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    proof: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """What is told while a run goes on, once an epoch; ``measures`` are the latest ones."""

    epoch: int
    epochs: int
    loss: float
    terms: Mapping[str, float]
    measures: Mapping[str, float | None]
    seconds_left: float


@dataclass(frozen=True)
class Watch:
    """Who looks at a network on its way.

    Attributes:
        evaluate: called with the encoder at every evaluation; what it returns is the entry's
            ``measures``.
        keep: from the history so far, the epochs whose weights are to be kept; the latest by
            default.
        log: called with every new entry of the history.
        progress: called once an epoch.
    """

    evaluate: Callable[[Any], Mapping[str, Any]] | None = None
    keep: Callable[[Sequence[Mapping[str, Any]]], set[int]] | None = None
    log: Callable[[Mapping[str, Any]], None] | None = None
    progress: Callable[[Progress], None] | None = None


class History:
    """Evaluates a network on its way, keeps time and weights, and tells those who watch.

    Args:
        encoder: the network, on ``device``.
        watch: who looks.
        epochs: how many there will be; layers of a constructed network.
        evaluate_every: epochs between evaluations.
        copy: False keeps a state's tensors themselves, of layers that never change again.

    Example:
        >>> watch = Watch(evaluate=lambda net: {"weight": net.weight.item()})
        >>> history = History(nn.Linear(1, 1), watch, epochs=4, evaluate_every=3)
        >>> for epoch in range(5):
        ...     if history.due(epoch):
        ...         history.evaluate_and_record(epoch, lr=0.1, loss=1.0, terms={})
        >>> result = history.finish()
        >>> [entry["epoch"] for entry in result.history], list(result.kept)
        ([0, 3, 4], [4])
    """

    def __init__(
        self,
        encoder: nn.Module,
        watch: Watch,
        *,
        epochs: int,
        evaluate_every: int,
        device: str | torch.device = "cpu",
        copy: bool = True,
    ) -> None:
        self.encoder, self.watch = encoder, watch
        self.epochs, self.evaluate_every = epochs, evaluate_every
        self.device, self.copy = torch.device(device), copy
        self.result = TrainingResult()
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Return what the run has taken so far, the pieces before this one included."""
        return self.result.wall_seconds + time.perf_counter() - self._start

    def due(self, epoch: int) -> bool:
        """Whether an epoch is one of those to evaluate: 0, every nth and the last."""
        return epoch % self.evaluate_every == 0 or epoch == self.epochs

    def evaluate_and_record(
        self, epoch: int, *, lr: float | None, loss: float | None, terms: Mapping[str, float]
    ) -> None:
        """Evaluate the network as it is, append the entry, keep the states that are asked for."""
        result, watch = self.result, self.watch
        if self.device.type == "cuda":  # or the steps still queued would count as evaluation
            torch.cuda.synchronize(self.device)
        begin = time.perf_counter()
        measures = {} if watch.evaluate is None else dict(watch.evaluate(self.encoder))
        result.evaluation_seconds += time.perf_counter() - begin
        entry: dict[str, Any] = {"epoch": epoch, "step": result.steps, "lr": lr, "loss": loss}
        entry |= {"terms": dict(terms), "measures": measures, "seconds": self.seconds()}
        result.history.append(entry)
        wanted = {epoch} if watch.keep is None else watch.keep(result.history)
        if epoch in wanted:
            state = self.encoder.state_dict().items()
            result.kept[epoch] = {k: v.detach().cpu().clone() if self.copy else v for k, v in state}
        result.kept = {e: state for e, state in result.kept.items() if e in wanted}
        if watch.log is not None:
            watch.log(entry)

    def tell_progress(self, epoch: int, loss: float, terms: Mapping[str, float]) -> None:
        """Tell how far the run is, by the loss and terms of the latest step."""
        if self.watch.progress is not None:
            measures = self.result.history[-1]["measures"] if self.result.history else {}
            left = self.seconds() / max(epoch, 1) * (self.epochs - epoch)
            self.watch.progress(Progress(epoch, self.epochs, loss, terms, measures, left))

    def finish(self) -> TrainingResult:
        """Stop the clock and return the result."""
        self.result.wall_seconds = self.seconds()
        return self.result
