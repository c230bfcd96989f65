"""Noise of images: what is none of the classes is labelled as one of them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mcr2.noise.base import Given, IntArray, Noise


@dataclass(frozen=True)
class OpenSet(Noise):
    """A share of the images is replaced by training images of other data, and keeps its labels.

    These samples then have no true class: it is −1. The samples are those that symmetric noise of
    the same seed redraws. Images of another size are resized (bilinear, antialiased), grey ones
    repeated in every channel, colours averaged where the images are grey.

    Args:
        source: name of the other data set, or its file or folder.

    Reference:
        Wang et al., "Iterative Learning with Open-set Noisy Labels", CVPR 2018.
    """

    source: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.source:
            raise ValueError("open_set: names no data; write open_set:kmnist, or a file or folder")

    @property
    def data(self) -> str:
        """The other data."""
        return self.source

    def _redraw(self, rs: np.random.RandomState, given: Given, indices: IntArray) -> IntArray:
        return given.labels.numpy()[indices]

    def _replace(self, rs: np.random.RandomState, given: Given, indices: IntArray) -> Tensor:
        images, other = given.pixels(self), given.other
        if other is None:
            raise ValueError(f"{self} needs the images of {self.source}: apply(..., other=images)")
        if len(indices) > len(other):
            raise ValueError(
                f"open_set:{self.source} has {len(other)} images; {len(indices)} are to be replaced"
            )
        chosen = torch.from_numpy(rs.permutation(len(other))[: len(indices)])
        replaced = images.clone()
        places = torch.from_numpy(indices).to(images.device)
        alike = match_shape(other[chosen.to(other.device)], tuple(images.shape[1:]))
        replaced[places] = alike.to(images.device)
        return replaced


def match_shape(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return uint8 images (n, C', H', W') as (n, C, H, W): channels from grey or to it, resized."""
    C, *size = shape
    have = images.shape[1]
    if have != C and 1 not in (have, C):
        raise ValueError(f"images of {have} channels cannot stand among images of {C}")
    if have == C and list(images.shape[2:]) == size:
        return images
    parts = []
    for part in torch.split(images, 1024):
        pixels = part.float()
        if have != C:
            pixels = pixels.mean(dim=1, keepdim=True) if C == 1 else pixels.expand(-1, C, -1, -1)
        if list(pixels.shape[2:]) != size:
            pixels = torch.nn.functional.interpolate(
                pixels, size, mode="bilinear", align_corners=False, antialias=True
            )
        parts.append(pixels.round().clamp(0, 255).to(torch.uint8))
    return torch.cat(parts) if parts else images.new_empty((0, *shape))
