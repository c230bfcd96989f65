"""Liftings: fixed maps before the first layer that give signals more channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcr2 import checks

_CONVOLUTIONS = {1: nn.functional.conv1d, 2: nn.functional.conv2d}


class RandomFilters(nn.Module):
    """Circular convolution with random filters, then ReLU: ``(m, c, ...) -> (m, C, ...)``.

    Shift-equivariant, as the layers behind it: features of one channel have at each frequency a
    1 × 1 operator, which can but scale it. Filters are Gaussian, of expected norm 1.

    Args:
        in_channels: c of the signals.
        channels: C, the number of filters.
        kernel_size: side of a filter; odd, and no longer than the signals.
        dims: 1 for signals ``(m, c, T)``, 2 for images ``(m, c, H, W)``.
        seed: of the filters.

    Raises:
        TypeError: a size that is not an integer.
        ValueError: an argument out of its range.

    Reference: Chan et al. (2022), Section 4.4: random lifting kernels and a sparsifying
    nonlinearity.

    Example:
        >>> lift = RandomFilters(1, 6, kernel_size=3, dims=2)
        >>> X = torch.arange(32.0).view(2, 1, 4, 4)
        >>> lift(X).shape
        torch.Size([2, 6, 4, 4])
        >>> torch.equal(lift(X.roll(1, -1)), lift(X).roll(1, -1))
        True
    """

    def __init__(
        self, in_channels: int, channels: int, *, kernel_size: int = 3, dims: int = 2, seed: int = 0
    ) -> None:
        super().__init__()
        self.dims = checks.integer("dims", dims, 1, 2)
        self.kernel_size = checks.integer("kernel_size", kernel_size, 1)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; it must be odd")
        channels = checks.integer("channels", channels, 1)
        shape = (channels, checks.integer("in_channels", in_channels, 1), *[kernel_size] * dims)
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(weight / weight[0].numel() ** 0.5, requires_grad=False)

    def forward(self, X: Tensor) -> Tensor:
        """Lift signals ``(m, c, ...)``.

        Raises:
            ValueError: signals of other dimensions or channels, or shorter than a filter.
        """
        positions = ("T",) if self.dims == 1 else ("H", "W")
        X = checks.floating("X", X, "m", self.weight.shape[1], *positions, finite=False)
        if min(X.shape[2:]) < self.kernel_size:
            side = self.kernel_size
            raise ValueError(f"X has shape {tuple(X.shape)}; a filter of side {side} is longer")
        around = [self.kernel_size // 2] * (2 * self.dims)
        padded = nn.functional.pad(X, around, mode="circular")
        return _CONVOLUTIONS[self.dims](padded, self.weight).relu()
