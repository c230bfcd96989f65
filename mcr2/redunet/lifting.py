"""Liftings: fixed maps before the first layer that give signals more channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
        TypeError: a size that is no integer.
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
        if dims not in _CONVOLUTIONS:
            raise ValueError(f"dims is {dims}; it must be 1 (signals) or 2 (images)")
        sizes = {"in_channels": in_channels, "channels": channels, "kernel_size": kernel_size}
        for name, value in sizes.items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an integer, not {value!r}")
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; it must be odd and at least 1")
        self.dims, self.kernel_size = dims, kernel_size
        shape = (channels, in_channels, *[kernel_size] * dims)
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(weight / weight[0].numel() ** 0.5, requires_grad=False)

    def forward(self, X: Tensor) -> Tensor:
        """Lift signals ``(m, c, ...)``.

        Raises:
            ValueError: signals of other dimensions or channels, or shorter than a filter.
        """
        positions = X.shape[2:]
        if len(positions) != self.dims or X.shape[1] != self.weight.shape[1]:
            wanted = "(m, {}, T)" if self.dims == 1 else "(m, {}, H, W)"
            raise ValueError(
                f"X has shape {tuple(X.shape)}; these filters take "
                f"{wanted.format(self.weight.shape[1])}"
            )
        if min(positions) < self.kernel_size:
            raise ValueError(
                f"X has shape {tuple(X.shape)}; a filter of side {self.kernel_size} is longer "
                "than that"
            )
        around = [self.kernel_size // 2] * (2 * self.dims)
        padded = nn.functional.pad(X, around, mode="circular")
        return _CONVOLUTIONS[self.dims](padded, self.weight).relu()
