"""One training step: its gradient, exact in micro-batches whatever the loss, and the update."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mcr2.data import Batch, mix_seed, num_batches
from mcr2.objectives import Context, Objective
from mcr2.rates import class_moments
from mcr2.training.config import TrainingConfig
from mcr2.training.gather import World


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
    world: World | None = None,
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

    Where several processes share the batch (:mod:`mcr2.training.gather`), ``batch.images`` are this
    one's rows, and ``.grad`` its part of a sum over processes.

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
    world, m = world or World(), len(batch.labels)
    # As many pieces in each process, whose rows may differ by one: they meet in each piece.
    most = -(-m // world.size)
    count = 1 if config.micro_batch is None else num_batches(most, config.micro_batch)
    pieces = batch.images.tensor_split(count)
    if count > 1 and config.accumulate:
        return _accumulate(backbone, objective, batch, context, config, count)
    if count > 1:
        device = batch.images.device
        devices = [device] if device.type == "cuda" else []
        with torch.no_grad(), _statistics_at_rest(backbone), torch.random.fork_rng(devices):
            own = torch.cat([_features(backbone, images, config) for images in pieces])
    else:
        own = _features(backbone, batch.images, config)
    loss, terms, gradient = _score(objective, own, batch.labels, context, world)
    rows = [None] * count if gradient is None else gradient.tensor_split(count)
    for images, row in zip(pieces, rows, strict=True):
        again = own if count == 1 else _features(backbone, images, config)
        _pull_back(again, row, config)
    return loss, terms


def _accumulate(
    backbone: nn.Module,
    objective: Objective,
    batch: Batch,
    context: Context,
    config: TrainingConfig,
    count: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add the gradient Σ (n_i/m) dℓ(H_i) of an additive loss, piece by piece."""
    shares: list[tuple[Tensor, dict[str, Tensor]]] = []
    for images, labels, indices in zip(*(x.tensor_split(count) for x in batch), strict=True):
        raw, share = _features(backbone, images, config), len(labels) / len(batch.labels)
        at = replace(context, indices=indices)
        loss, terms, gradient = _score(objective, raw, labels, at, World(), share)
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
    objective: Objective,
    raw: Tensor,
    labels: Tensor,
    context: Context,
    world: World,
    share: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """Return loss, terms and d(share · loss)/d(raw) of own rows; add to the objective's gradients.

    ``raw`` are this process's rows, ``labels`` those of the whole batch.
    """
    wide = torch.promote_types(raw.dtype, torch.float32)
    m, K = len(labels), objective.num_classes
    by_moments = objective.knows_moments and world.reducing_pays(m, raw.shape[1], K)
    whole = raw.detach() if by_moments else world.gathered(raw, m)
    leaf = whole.to(wide).requires_grad_()
    with _tf32(False), _same_draws(world, context, raw.device):
        seen = embedded = objective.embed(leaf)
        try:
            if by_moments:
                own = class_moments(embedded, labels[world.rows(m)], num_classes=K)
                seen = world.total(own)
                counts = torch.bincount(labels, minlength=K)
                loss, terms = objective.loss_of_moments(seen, counts, context)
            else:
                loss, terms = objective(embedded, labels, context)
        except ValueError as error:
            if bool(torch.isfinite(seen).all()):
                raise
            raise FeaturesNotFiniteError(str(error)) from error
        if not loss.requires_grad:
            raise ValueError(
                f"{type(objective).__name__}.loss returned a loss without gradient: it was "
                "detached, or depends neither on the features nor on parameters of its own"
            )
        (loss * share).backward()  # type: ignore[no-untyped-call]
    gradient = leaf.grad
    if gradient is not None and not by_moments:
        gradient = gradient[world.rows(m)]
    return loss.detach(), {name: term.detach() for name, term in terms.items()}, gradient


@contextlib.contextmanager
def _same_draws(world: World, context: Context, device: torch.device) -> Iterator[None]:
    """Let an objective draw the same from torch's own generators, for dropout, in all processes."""
    if world.size == 1:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        epoch = 0 if context.generator is None else context.generator.initial_seed()
        torch.manual_seed(mix_seed("objective", epoch, context.step))
        yield


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
