"""Images as features, with nothing trained."""

from __future__ import annotations

import torch
from torch import Tensor

from mcr2 import checks
from mcr2.data import to_float
from mcr2.metrics.moments import unit

#: Directions that pixels are projected on.
DIM = 64

#: Images are turned into floats so many numbers at a time.
_CHUNK = 1 << 24


def pixel_features(images: Tensor, *, dim: int = DIM, seed: int = 0) -> Tensor:
    """Project images on the leading directions of their pixels, about the origin.

    Pixels of an image are one vector, at unit norm; the features are its coordinates in the leading
    right singular vectors of all of them. The mean is not subtracted: a class is a subspace through
    the origin, and stays one. The vectors come from a randomised decomposition (Halko, Martinsson &
    Tropp 2011) with a seed of its own, exact where images have few pixels.

    Args:
        images: uint8 ``(N, C, H, W)``.
        dim: how many directions; fewer where N or C·H·W is smaller.
        seed: of the random start.

    Returns:
        float32 ``(N, min(dim, N, C·H·W))``.

    Example:
        >>> pixel_features(torch.arange(200).view(10, 1, 4, 5).byte(), dim=3).shape
        torch.Size([10, 3])
    """
    D = images[0].numel() if len(images) else 0
    q = min(checks.integer("dim", dim, 1), len(images), D)
    checks.integer("the number of images", len(images), 2)
    rows = max(1, _CHUNK // D)
    parts = torch.split(images, rows)
    generator = torch.Generator().manual_seed(seed)
    width = min(2 * q + 10, len(images), D)
    Q = torch.randn(D, width, generator=generator).to(images.device)

    def vectors(part: Tensor) -> Tensor:
        return unit(to_float(part).flatten(1))

    for _ in range(3):  # subspace iteration: each product with the second moment is one pass
        Y = torch.zeros_like(Q)
        for x in map(vectors, parts):
            Y += x.T @ (x @ Q)
        Q = torch.linalg.qr(Y).Q
    small = torch.cat([vectors(part) @ Q for part in parts])
    leading: Tensor = torch.linalg.eigh(small.T.double() @ small.double())[1].flip(1)[:, :q]
    return small @ leading.float()
