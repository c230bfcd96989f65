"""One training step: its gradient, exact in micro-batches whatever the loss, and the update."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mcr2.data import Batch, num_batches
from mcr2.objectives import Context, Objective
from mcr2.training.config import TrainingConfig


class FeaturesNotFiniteError(ValueError):
    """An objective or an evaluation refused features that were not finite."""


def make_optimizer(
    config: TrainingConfig, backbone: nn.Module, objective: Objective
) -> torch.optim.Optimizer:
    """Return the optimiser over the backbone's parameters and the objective's groups."""
    groups: list[dict[str, Any]] = [{"params": list(backbone.parameters())}]
    groups += [g for g in objective.param_groups() if g["params"]]
    lr, decay = config.lr, config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, weight_decay=decay)
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, weight_decay=decay)


def backpropagate(
    backbone: nn.Module,
    objective: Objective,
    batch: Batch,
    context: Context,
    config: TrainingConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add one step's gradient to every ``.grad``; return loss and terms of the batch, no graph.

    With raw features H = f(x; θ) and a loss ℓ(H; φ), the objective's ``embed`` included, the
    objective gives dℓ/dH and dℓ/dφ, and the backbone (dH/dθ)ᵀ dℓ/dH. So the objective stays in
    float32 whatever the backbone runs in, and micro-batches are exact for any loss:

    - ``micro_batch=n``: H in pieces without a graph; dℓ/dH of the whole batch; once more forward
      in pieces, each backward with its rows of dℓ/dH. Memory is that of one piece and (m, d);
    - ``micro_batch=n, accumulate=True``: Σ (n_i/m) ℓ(H_i), for additive losses.

    Batch normalisation that is training normalises by the piece it sees: with it the gradient is
    that of a network with ghost batches of n (Hoffer et al. 2017), not of the whole-batch one.
    Its running statistics move once a piece; the first of the two passes leaves them alone and
    draws (dropout) what the second will draw again.

    Of ``config`` it looks at ``micro_batch``, ``accumulate``, ``amp`` and ``tf32``. ``backbone``
    may be what ``torch.compile`` made of it.

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
    m = len(batch.labels)
    count = 1 if config.micro_batch is None else num_batches(m, config.micro_batch)
    parts = zip(*(part.tensor_split(count) for part in batch), strict=True)
    pieces = [Batch(*part) for part in parts]
    if count > 1 and not config.accumulate:
        device = batch.images.device
        devices = [device] if device.type == "cuda" else []
        with torch.no_grad(), _statistics_at_rest(backbone), torch.random.fork_rng(devices):
            whole = torch.cat([_features(backbone, piece.images, config) for piece in pieces])
        loss, terms, gradient = _score(objective, whole, batch.labels, context, 1.0)
        rows = [None] * count if gradient is None else gradient.tensor_split(count)
        for piece, row in zip(pieces, rows, strict=True):
            _pull_back(_features(backbone, piece.images, config), row, config)
        return loss, terms

    shares: list[tuple[Tensor, dict[str, Tensor]]] = []
    for images, labels, indices in pieces:
        raw, share = _features(backbone, images, config), len(labels) / m
        at = replace(context, indices=indices)
        loss, terms, gradient = _score(objective, raw, labels, at, share)
        _pull_back(raw, gradient, config)
        shares.append((loss * share, {name: value * share for name, value in terms.items()}))
    total = torch.stack([loss for loss, _ in shares]).sum()
    return total, {k: torch.stack([terms[k] for _, terms in shares]).sum() for k in shares[0][1]}


def _features(backbone: nn.Module, images: Tensor, config: TrainingConfig) -> Tensor:
    # Not autocast switched off: torch 2.4 has none at all on some devices. bfloat16 has float32's
    # exponents, so that no gradient vanishes and none needs scaling.
    mixed: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if config.amp:
        mixed = torch.autocast(images.device.type, dtype=torch.bfloat16)
    with _tf32(config.tf32), mixed:
        features: Tensor = backbone(images)
        return features


def _score(
    objective: Objective, raw: Tensor, labels: Tensor, context: Context, share: float
) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """Return loss, terms and d(share · loss)/d(raw); add to the objective's own gradients."""
    wide = torch.promote_types(raw.dtype, torch.float32)
    leaf = raw.detach().to(wide).requires_grad_()
    with _tf32(False):
        embedded = objective.embed(leaf)
        try:
            loss, terms = objective(embedded, labels, context)
        except ValueError as error:
            if bool(torch.isfinite(embedded).all()):
                raise
            raise FeaturesNotFiniteError(str(error)) from error
        if not loss.requires_grad:
            raise ValueError(
                f"{type(objective).__name__}.loss returned a loss without gradient: it was "
                "detached, or depends neither on the features nor on parameters of its own"
            )
        (loss * share).backward()
    return loss.detach(), terms, leaf.grad


def _pull_back(raw: Tensor, gradient: Tensor | None, config: TrainingConfig) -> None:
    # A frozen backbone wants no gradient, and a loss may ignore the features.
    if raw.requires_grad and gradient is not None:
        with _tf32(config.tf32):
            raw.backward(gradient.to(raw.dtype))  # type: ignore[no-untyped-call]


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
