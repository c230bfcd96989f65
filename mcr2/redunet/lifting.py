"""Liftings: fixed maps before the first layer that give images more channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcr2 import checks


class RandomFilters(nn.Module):
    """Circular convolution with random filters, then ReLU: ``(m, c, H, W) -> (m, C, H, W)``.

    Shift-equivariant, as the layers behind it: features of one channel have at each frequency a
    1 × 1 operator, which can but scale it. Filters are Gaussian, of expected norm 1.

    Args:
        in_channels: c of the images.
        channels: C, the number of filters.
        kernel_size: side of a filter; odd, and no longer than that of the images.
        seed: of the filters.

    Raises:
        TypeError: a size that is not an integer.
        ValueError: an argument out of its range.

    Reference: Chan et al. (2022), Section 4.4: random lifting kernels and a sparsifying
    nonlinearity.

    Example:
        >>> lift = RandomFilters(1, 6, kernel_size=3)
        >>> X = torch.arange(32.0).view(2, 1, 4, 4)
        >>> lift(X).shape
        torch.Size([2, 6, 4, 4])
        >>> torch.equal(lift(X.roll(1, -1)), lift(X).roll(1, -1))
        True
    """

    def __init__(
        self, in_channels: int, channels: int, *, kernel_size: int = 3, seed: int = 0
    ) -> None:
        super().__init__()
        self.kernel_size = checks.integer("kernel_size", kernel_size, 1)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; it must be odd")
        channels = checks.integer("channels", channels, 1)
        in_channels = checks.integer("in_channels", in_channels, 1)
        shape = (channels, in_channels, kernel_size, kernel_size)
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(weight / weight[0].numel() ** 0.5, requires_grad=False)

    def forward(self, X: Tensor) -> Tensor:
        """Lift images; ValueError for other dimensions or channels, or a side below a filter's."""
        X = checks.floating("X", X, "m", self.weight.shape[1], "H", "W", finite=False)
        if min(X.shape[2:]) < self.kernel_size:
            side = self.kernel_size
            raise ValueError(f"X has shape {tuple(X.shape)}; a filter of side {side} is longer")
        padded = nn.functional.pad(X, [self.kernel_size // 2] * 4, mode="circular")
        return nn.functional.conv2d(padded, self.weight).relu()
