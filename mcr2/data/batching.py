"""Which samples are seen, in which order, and how changed: subsets, seeds, augmented batches."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mcr2.checks import integer, number
from mcr2.data.splits import Split, check_images


def mix_seed(*parts: str | int) -> int:
    """One 63-bit seed from a stream's name, a seed and a counter such as the epoch.

    Hashed rather than added, because seed 0 at epoch 1 must not be seed 1 at epoch 0.

    Example:
        >>> mix_seed("order", 0, 1) == mix_seed("order", 1, 0)
        False
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def stratified_subset(labels: Tensor, size: int, seed: int) -> Tensor:
    """Indices of exactly ``size`` samples, with every class in proportion.

    Class k of n_k among N samples gets size·n_k/N of them, rounded by largest remainders (ties to
    the lower label), but at least one. Indices are on the CPU, ascending: samples keep their order.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
        >>> labels[stratified_subset(labels, 3, seed=0)]
        tensor([0, 0, 1])
    """
    given = labels.cpu().numpy()
    present, counts = np.unique(given, return_counts=True)
    size = integer("subset", size, len(present), len(given))
    seed = integer("subset seed", seed, 0)
    shares, remainders = np.divmod(size * counts.astype(np.int64), len(given))
    largest_first = np.argsort(-remainders, kind="stable")
    shares[largest_first[: size - shares.sum()]] += 1
    while (shares == 0).any():  # a rare class takes its one image from the best-served one
        shares[shares.argmax()] -= 1
        shares[shares.argmin()] += 1
    rng = np.random.default_rng(mix_seed("subset", seed))
    chosen = [
        rng.permutation(np.flatnonzero(given == label))[:share]
        for label, share in zip(present, shares, strict=True)
    ]
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def step_imbalance(labels: Tensor, num_classes: int, ratio: float, seed: int) -> Tensor:
    """Indices of a training set whose later half of classes is ``ratio`` times smaller.

    Of classes ⌈K/2⌉ … K − 1 with n samples each max(1, round(n/ratio)) are kept, of the others all:
    the step imbalance of Fang et al., "Exploring deep neural networks via layer-peeled model:
    minority collapse in imbalanced training", PNAS 2021. What a larger ratio keeps, a smaller one
    keeps too. Indices are on the CPU, ascending: samples keep their order.

    Example:
        >>> labels = torch.arange(12) % 3
        >>> labels[step_imbalance(labels, 3, ratio=4, seed=0)].bincount()
        tensor([4, 4, 1])
    """
    given = labels.cpu().numpy()
    ratio = number("imbalance", ratio, 1)
    rng = np.random.default_rng(mix_seed("imbalance", integer("imbalance seed", seed, 0)))
    kept = np.ones(len(given), bool)
    for k in range((num_classes + 1) // 2, num_classes):
        order = rng.permutation(np.flatnonzero(given == k))
        kept[order[max(1, round(len(order) / ratio)) :]] = False
    return torch.from_numpy(np.flatnonzero(kept))


@dataclass(frozen=True)
class Augmentation:
    """Random changes that preserve an image's class; the default changes nothing.

    Args:
        shift: each image moves by −shift … shift pixels in both directions, all offsets equally
            likely, zeros moving in: the same as padding by ``shift`` and cropping at random.
        flip: mirror half of the images left to right.
    """

    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        integer("shift", self.shift, 0)
        if not isinstance(self.flip, bool):
            raise TypeError(f"flip must be a bool, not {type(self.flip).__name__}")


class Batch(NamedTuple):
    """What a step sees: images (B, C, H, W) float32 in [0, 1], labels (B,), indices (B,).

    Of several processes that share a batch, each has the images of its own rows alone.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


def num_batches(n: int, batch_size: int) -> int:
    """Number of batches in an epoch over n samples: ⌈n / batch_size⌉, one fewer for odd n in pairs.

    For batch normalisation refuses a batch of one sample.

    Example:
        >>> num_batches(6, 4), num_batches(6, 2), num_batches(7, 2)
        (2, 3, 3)
    """
    return max(n // 2, 1) if batch_size == 2 and n else -(-n // batch_size)


def to_float(images: Tensor) -> Tensor:
    """Images (N, C, H, W) uint8 as a network takes them: x/255, float32, in channels_last memory.

    Example:
        >>> to_float(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8))
        tensor([[[[1.]]]])
    """
    check_images(images)
    pixels = images.permute(0, 2, 3, 1).contiguous().float()
    return pixels.div_(255).permute(0, 3, 1, 2)


def batches(
    split: Split,
    batch_size: int,
    *,
    epoch: int,
    sampling_seed: int,
    augmentation_seed: int,
    augmentation: Augmentation = Augmentation(),
    shuffle: bool = True,
    rows: Callable[[int], slice] = slice,
) -> Iterator[Batch]:
    """One epoch over a split.

    N samples are cut into ⌈N / batch_size⌉ batches whose sizes differ by at most one: a last batch
    of two or three samples would upset batch normalisation and leave classes out of the rates.
    The order follows from (sampling_seed, epoch), shifts and flips from (augmentation_seed, epoch)
    and the sample's index in the split: they depend neither on the batches nor on the device.

    Args:
        split: N samples; batches lie on its device, their images in channels_last memory.
        batch_size, epoch, sampling_seed, augmentation_seed: ≥ 1, the others ≥ 0.
        augmentation, shuffle: what to change; False keeps the split's order in every epoch.
        rows: which images of a batch of B to make; labels and indices are those of all.

    Example:
        >>> split = Split(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.arange(5))
        >>> epoch = batches(split, 3, epoch=0, sampling_seed=0, augmentation_seed=0, shuffle=False)
        >>> [batch.labels.tolist() for batch in epoch]
        [[0, 1, 2], [3, 4]]
    """
    integer("batch_size", batch_size, 1)
    epoch = integer("epoch", epoch, 0)
    sampling_seed = integer("sampling_seed", sampling_seed, 0)
    augmentation_seed = integer("augmentation_seed", augmentation_seed, 0)
    n = len(split)
    # Always drawn on the CPU: its generator is the same everywhere, a device's is not.
    draws = _stream("order", sampling_seed, epoch)
    order = torch.randperm(n, generator=draws) if shuffle else torch.arange(n)
    # Streams of their own, so that the shifts stay the same with and without flips.
    draws = _stream("shift", augmentation_seed, epoch)
    offsets = torch.randint(0, 2 * augmentation.shift + 1, (2, n), generator=draws)
    draws = _stream("flip", augmentation_seed, epoch)
    flips = torch.randint(0, 2, (n,), generator=draws).bool() & augmentation.flip
    pixels = split.images.permute(0, 2, 3, 1).contiguous()
    order, flips, (tops, lefts) = (x.to(split.device) for x in (order, flips, offsets))

    def batch(indices: Tensor) -> Batch:
        own = indices[rows(len(indices))]
        images = pixels.index_select(0, own)
        if augmentation != Augmentation():
            moved = tops[own], lefts[own], flips[own]
            images = _shift_and_flip(images, *moved, augmentation.shift)
        labels = split.labels.index_select(0, indices)
        return Batch(to_float(images.permute(0, 3, 1, 2)), labels, indices)

    return map(batch, order.tensor_split(num_batches(n, batch_size)) if n else ())


def _shift_and_flip(images: Tensor, tops: Tensor, lefts: Tensor, flips: Tensor, pad: int) -> Tensor:
    """Crop (B, H, W, C) images, padded by ``pad``, at (tops, lefts); mirror those in ``flips``."""
    B, H, W, _ = images.shape
    padded = torch.nn.functional.pad(images, (0, 0, pad, pad, pad, pad))
    samples, down, along = (torch.arange(size, device=images.device) for size in (B, H, W))
    rows = tops[:, None] + down  # (B, H)
    columns = torch.where(flips[:, None], W - 1 - along, along) + lefts[:, None]  # (B, W)
    return padded[samples[:, None, None], rows[:, :, None], columns[:, None, :]]


def _stream(*name: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(mix_seed(*name))
