"""Residual networks for small images: images in, raw features out.

A backbone ends at the feature layer; what is done with the features (normalised, fed to a linear
head) is the objective's affair, so that every objective shares network and initial weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mcr2.checks import choice, describe, integer

PROJECTIONS = ("mlp", "none")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, Fig. 2)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``relu(F(x) + shortcut(x))``."""
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return self.relu(out + self.shortcut(x))  # type: ignore[no-any-return]


class ResNet(nn.Sequential):
    """A residual network for images of 8x8 pixels upwards: ``(m, C, H, W)`` in [0, 1] to (m, d).

    Its named children are ``stem``, one 3x3 convolution; ``stage1`` ..., stage s of ``blocks[s]``
    basic blocks of ``width * 2**s`` channels, which halve the resolution from the second stage on;
    ``pool``, the average over space; and ``projection``:

    - ``"mlp"``: pooled p -> Linear(p, no bias) -> BatchNorm -> ReLU -> Linear(d), as in the public
      code of Yu et al. (2020) and Chan et al. (2021);
    - ``"none"``: the pooled features are the features, d = p.

    Args:
        blocks, width: basic blocks in each stage; channels of the stem and the first stage.
        in_channels: channels of the images.
        feature_dim: d, or None for the pooled width ``width * 2**(len(blocks) - 1)``.
        stem_stride: stride of the stem; 2 quarters the cost on larger images.
        projection: ``"mlp"`` or ``"none"``.

    Example:
        >>> net = ResNet((1, 1, 1, 1), width=16, in_channels=1, feature_dim=64)
        >>> net(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 64])
        >>> list(named_stages(net))
        ['stem', 'stage1', 'stage2', 'stage3', 'stage4', 'pool', 'projection']
    """

    def __init__(
        self,
        blocks: Sequence[int],
        width: int,
        *,
        in_channels: int,
        feature_dim: int | None = None,
        stem_stride: int = 1,
        projection: str = "mlp",
    ) -> None:
        super().__init__()
        integer("blocks", len(blocks), 1)
        sizes = {f"blocks[{s}]": depth for s, depth in enumerate(blocks)}
        sizes |= {"width": width, "in_channels": in_channels, "stem_stride": stem_stride}
        for name, size in sizes.items():
            integer(name, size, 1)
        choice("projection", projection, PROJECTIONS)
        pooled = width * 2 ** (len(blocks) - 1)
        d = integer("feature_dim", pooled if feature_dim is None else feature_dim, 1)
        if projection == "none" and d != pooled:
            raise ValueError(
                f"feature_dim is {d}; without a projection it must be the pooled width ({pooled})"
            )
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stem_stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        channels = width
        for stage, depth in enumerate(blocks):
            stride, out = (1 if stage == 0 else 2), width * 2**stage
            layers = [BasicBlock(channels, out, stride)]
            layers += [BasicBlock(out, out, 1) for _ in range(depth - 1)]
            self.add_module(f"stage{stage + 1}", nn.Sequential(*layers))
            channels = out
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.projection: nn.Module = nn.Identity()
        if projection == "mlp":
            self.projection = nn.Sequential(
                nn.Linear(pooled, pooled, bias=False),
                nn.BatchNorm1d(pooled),
                nn.ReLU(inplace=True),
                nn.Linear(pooled, d),
            )


#: Backbones by name; each takes ``in_channels``, ``feature_dim``, ``projection``, ``stem_stride``,
#: and ``width`` in place of its own.
#: ``resnet18`` with 3 channels and 128 features is the paper's network: 11,497,664 parameters.
BACKBONES: dict[str, Callable[..., ResNet]] = {
    "resnet18": partial(ResNet, (2, 2, 2, 2), width=64),
    "resnet34": partial(ResNet, (3, 4, 6, 3), width=64),
    "resnet10": partial(ResNet, (1, 1, 1, 1), width=64),
    "resnet10_w32": partial(ResNet, (1, 1, 1, 1), width=32),
    "resnet10_w24": partial(ResNet, (1, 1, 1, 1), width=24),
    "resnet10_w16": partial(ResNet, (1, 1, 1, 1), width=16),
    "resnet10_w8": partial(ResNet, (1, 1, 1, 1), width=8),
}


def named_stages(module: nn.Module) -> dict[str, nn.Module]:
    """Return a network's stages by name, in order: its named children.

    Those in an ``nn.ModuleList`` or ``nn.ModuleDict`` stand for it: ``blocks.0``.

    Example:
        >>> list(named_stages(nn.Sequential(nn.Linear(2, 3), nn.ModuleList([nn.ReLU()]))))
        ['0', '1.0']
    """
    stages: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            stages |= {f"{name}.{part}": stage for part, stage in child.named_children()}
        else:
            stages[name] = child
    return stages


def stage_features(
    module: nn.Module, images: Tensor, names: Sequence[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a network's output and, from the same pass, those of its stages as features.

    The output of a stage is averaged over its third and further dimensions: ``(m, C, H, W)``
    gives ``(m, C)``. A stage that is called several times gives its last output.

    A name that is not one of :func:`named_stages`, a stage that was not called, or one whose output
    is not a floating tensor ``(m, d, ...)`` is a ValueError, which names those that can be had.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
        >>> output, found = stage_features(net, torch.zeros(2, 1, 5, 5), ["0"])
        >>> output.shape, found["0"].shape
        (torch.Size([2, 36]), torch.Size([2, 4]))
    """
    stages = named_stages(module)
    for name in names:
        choice("layer", name, stages)
    output, found = _hooked(module, images, {name: stages[name] for name in names})
    if missing := ", ".join(name for name in names if name not in found):
        able = ", ".join(_hooked(module, images, stages)[1]) or "none"
        kind = type(module).__name__
        raise ValueError(f"{kind} gives no features (m, d, ...) at {missing}; choose from {able}")
    return output, found


def _hooked(
    module: nn.Module, images: Tensor, stages: dict[str, nn.Module]
) -> tuple[Tensor, dict[str, Tensor]]:
    found: dict[str, Tensor] = {}

    def hook(name: str, _: nn.Module, given: object, output: Any) -> None:
        fits = isinstance(output, Tensor) and output.is_floating_point() and output.ndim > 1
        if fits and len(output) == len(images):
            # A copy in any case: what follows may change the output in place.
            positions = tuple(range(2, output.ndim))
            found[name] = output.mean(positions) if positions else output.clone()

    handles = [s.register_forward_hook(partial(hook, name)) for name, s in stages.items()]
    try:
        return module(images), found
    finally:
        for handle in handles:
            handle.remove()


def check_backbone(
    module: nn.Module, *, in_channels: int, feature_dim: int, height: int, width: int
) -> None:
    """Refuse a module that is not a backbone for such images; the module stays as it is.

    It must take float images ``(m, in_channels, height, width)`` to raw features
    ``(m, feature_dim)``, in training and in evaluation; two images are tried.
    """
    name, shape = type(module).__name__, (2, in_channels, height, width)
    if any(map(is_lazy, [*module.parameters(), *module.buffers()])):
        raise ValueError(f"{name} has lazy layers; give them their sizes (images are {shape})")
    trial = copy.deepcopy(module)
    device = next((p.device for p in trial.parameters()), None)
    for training in (True, False):
        try:
            with torch.random.fork_rng(), torch.no_grad():
                output = trial.train(training)(torch.rand(shape).to(device))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"{name} cannot take images {shape}: {reason}") from error
        fits = isinstance(output, Tensor) and output.is_floating_point()
        if not fits or output.shape != (2, feature_dim):
            wanted, made = f"floating features (2, {feature_dim})", describe(output)
            raise ValueError(f"{name} makes {made} of images {shape}; it must be {wanted}")
