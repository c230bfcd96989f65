"""Residual networks for small images: images in, raw features out.

One class, :class:`ResNet`, and its named members in :data:`BACKBONES`. A backbone ends at the
feature layer; what is done with the features (normalised, fed to a linear head) is the
objective's affair, so that every objective shares the same network and initial weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import Tensor, nn

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


class ResNet(nn.Module):
    """A residual network for images of 8x8 pixels upwards.

    The stem is one 3x3 convolution; stage s has ``blocks[s]`` basic blocks of ``width * 2**s``
    channels and halves the resolution from the second stage on; the features are pooled over
    space and projected:

    - ``projection="mlp"``: pooled p -> Linear(p, no bias) -> BatchNorm -> ReLU -> Linear(d),
      as in the public code of Yu et al. (2020) and Chan et al. (2021);
    - ``projection="none"``: the pooled features are the features, d = p.

    The modules ``stem``, ``stage1`` ... ``stageS``, ``pool`` and ``projection`` are the named
    stages that :meth:`stages` iterates over.

    Args:
        blocks: basic blocks in each stage.
        width: channels of the stem and the first stage.
        in_channels: channels of the images.
        feature_dim: d, or None for the pooled width ``width * 2**(len(blocks) - 1)``.
        stem_stride: stride of the stem; 2 quarters the cost on larger images.
        projection: ``"mlp"`` or ``"none"``.

    Raises:
        ValueError: a size below one, an unknown projection, or a ``feature_dim`` other than the
            pooled width where there is no projection.

    Example:
        >>> net = ResNet((1, 1, 1, 1), width=16, in_channels=1, feature_dim=64)
        >>> import torch
        >>> net(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 64])
        >>> [name for name, _ in net.stages()]
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
        if not blocks or min(*blocks, width, in_channels, stem_stride) < 1:
            raise ValueError(
                "blocks, width, in_channels and stem_stride must be at least 1; got "
                f"blocks={tuple(blocks)}, width={width}, in_channels={in_channels}, "
                f"stem_stride={stem_stride}"
            )
        if projection not in PROJECTIONS:
            raise ValueError(f"projection is {projection!r}; choose from {', '.join(PROJECTIONS)}")
        pooled = width * 2 ** (len(blocks) - 1)
        if feature_dim is None:
            feature_dim = pooled
        if feature_dim < 1 or (projection == "none" and feature_dim != pooled):
            raise ValueError(
                f"feature_dim is {feature_dim}; without a projection it is the pooled width "
                f"({pooled}), with one any number from 1"
            )
        self.in_channels = in_channels
        self.feature_dim = feature_dim

        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stem_stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.num_stages = len(blocks)
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
                nn.Linear(pooled, feature_dim),
            )

    def stages(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the named stages in the order of the data."""
        names = ["stem", *(f"stage{s + 1}" for s in range(self.num_stages)), "pool", "projection"]
        for name in names:
            yield name, self.get_submodule(name)

    def forward(self, images: Tensor) -> Tensor:
        """Map float images ``(m, C, H, W)`` in [0, 1] to raw features ``(m, d)``."""
        x = images
        for _, stage in self.stages():
            x = stage(x)
        return x


#: Backbones by name; each takes ``in_channels``, ``feature_dim``, ``projection``, ``stem_stride``.
#: ``resnet18`` with 3 channels and 128 features is the paper's network: 11,497,664 parameters.
BACKBONES: dict[str, Callable[..., ResNet]] = {
    "resnet18": partial(ResNet, (2, 2, 2, 2), 64),
    "resnet34": partial(ResNet, (3, 4, 6, 3), 64),
    "resnet10": partial(ResNet, (1, 1, 1, 1), 64),
    "resnet10_w32": partial(ResNet, (1, 1, 1, 1), 32),
    "resnet10_w24": partial(ResNet, (1, 1, 1, 1), 24),
    "resnet10_w16": partial(ResNet, (1, 1, 1, 1), 16),
    "resnet10_w8": partial(ResNet, (1, 1, 1, 1), 8),
}
