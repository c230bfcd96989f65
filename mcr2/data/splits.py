"""Images with their labels: a ``Split`` on one device, a ``Dataset`` of two splits."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mcr2 import checks
from mcr2.checks import Labels, integer
from mcr2.files import Array


def check_images(images: object) -> None:
    """Refuse what is not a uint8 tensor (N, C, H, W) with pixels."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        raise TypeError(f"images must be a uint8 tensor, not {checks.describe(images)}")
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"images has shape {tuple(images.shape)}; it must be (N, C, H, W)")


@dataclass(frozen=True, eq=False)
class Places:
    """Where a split's samples stand in the whole training set.

    ``index`` (N,) int64 on the CPU, of ``total`` samples; ``files`` are the paths of all of these
    under ``train/`` where they come from an image folder.
    """

    index: Tensor
    total: int
    files: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Images with the labels to train on, on one device.

    Args:
        images: (N, C, H, W) uint8, best in channels_last memory: others are copied every epoch.
        labels: (N,) integers, non-negative, kept as int64: those trained on, possibly noisy.
        clean_labels: (N,) likewise: the true labels, −1 where an image is of none of the classes;
            None where they are unknown.
        places: where the samples stand in the whole training set; None where they are all of it.

    Example:
        >>> split = Split(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.arange(5))
        >>> split, split.select(torch.tensor([4, 0])).labels
        (Split(5 images of 1×8×8 on cpu, truth unknown), tensor([4, 0]))
    """

    images: Tensor
    labels: Tensor
    clean_labels: Tensor | None = None
    places: Places | None = None

    def __post_init__(self) -> None:
        check_images(self.images)
        kinds = {"labels": 0} if self.clean_labels is None else {"labels": 0, "clean_labels": -1}
        for name, least in kinds.items():
            given, count = getattr(self, name), len(self.images)
            labels = checks.labels(given, count=count, name=name, least=least)
            if labels.device != self.images.device:
                raise ValueError(f"images lie on {self.images.device}, {name} on {labels.device}")
            object.__setattr__(self, name, labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        known = "truth unknown"
        if self.clean_labels is not None:
            known = f"{int((self.labels != self.clean_labels).sum())} labelled wrong"
        size = "×".join(map(str, self.images.shape[1:]))
        return f"Split({len(self)} images of {size} on {self.device}, {known})"

    @property
    def device(self) -> torch.device:
        """Where the images and labels lie."""
        return self.images.device

    def to(self, device: torch.device | str) -> "Split":
        """The same split on another device."""
        clean = None if self.clean_labels is None else self.clean_labels.to(device)
        return Split(self.images.to(device), self.labels.to(device), clean, self.places)

    def select(self, indices: Labels) -> "Split":
        """The samples at ``indices`` ((n,) integers in [0, N)), in that order."""
        index = checks.labels(indices, count=len(indices), name="indices").to(self.device)
        if len(index) and int(index.max()) >= len(self):
            raise ValueError(f"indices go up to {int(index.max())}, but there are {len(self)}")
        clean = None if self.clean_labels is None else self.clean_labels.index_select(0, index)
        pixels = self.images.permute(0, 2, 3, 1).index_select(0, index)
        chosen, places = index.cpu(), self.places
        if places is None:
            places = Places(chosen, len(self))
        else:
            places = replace(places, index=places.index[chosen])
        labels = self.labels.index_select(0, index)
        return Split(pixels.permute(0, 3, 1, 2), labels, clean, places)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split of the same classes.

    Args:
        name, source: name in ``DATASETS`` or the file's name; where it was found.
        train, test: the splits, not empty, of one image shape; test labels are taken as clean.
        classes: names of the K ≥ 2 classes; labels lie in [0, K).
        flip: whether mirroring an image left to right preserves its class.
        shift: by how many pixels images may be shifted in augmentation, by default.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    flip: bool
    shift: int
    source: str

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ValueError(f"{self.name}: {len(self.classes)} classes; at least 2 are needed")
        for which, split in (("training", self.train), ("test", self.test)):
            if len(split) == 0:
                raise ValueError(f"{self.name}: the {which} split has no images")
            for labels, least in ((split.labels, 0), (split.clean_labels, -1)):
                if labels is not None:
                    name = f"{self.name}: {which} labels"
                    checks.labels(labels, self.num_classes, name=name, least=least)
        train, test = (tuple(split.images.shape[1:]) for split in (self.train, self.test))
        if train != test:
            raise ValueError(f"{self.name}: training images have shape {train}, test images {test}")

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    def of_classes(self, kept: Sequence[int]) -> "Dataset":
        """The same of some classes only, relabelled 0, 1, … in the order given.

        Left out is also a training image whose true class is not among them.

        Raises:
            TypeError, ValueError: classes that are not integers of this data set, each once and two
                at least; or of which no image is left.

        Example:
            >>> from mcr2.data import load_dataset
            >>> part = load_dataset("digits").of_classes([7, 1])
            >>> part.classes, part.test.labels.bincount()
            (('7', '1'), tensor([36, 36]))
        """
        K, place = self.num_classes, torch.full((self.num_classes,), -1)
        for index, k in enumerate(kept):
            if int(place[integer(f"a class of {self.name}", k, 0, K - 1)]) >= 0:
                raise ValueError(f"class {k} of {self.name} is named twice")
            place[k] = index

        def part(split: Split) -> Split:
            given = (split.labels, split.clean_labels)
            new = [None if labels is None else place.to(labels.device)[labels] for labels in given]
            inside = torch.stack([labels >= 0 for labels in new if labels is not None]).all(0)
            labels, clean = (x if x is None else x.clamp(min=0) for x in new)
            assert labels is not None
            return Split(split.images, labels, clean).select(inside.nonzero().flatten())

        names = tuple(self.classes[k] for k in kept)
        return replace(self, classes=names, train=part(self.train), test=part(self.test))

    def content_hash(self) -> str:
        """SHA-256 of all shapes, images and labels, whatever their device and memory layout."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            for tensor in (split.images, split.labels, split.clean_labels):
                if tensor is None:
                    digest.update(b"none")
                    continue
                array = tensor.cpu().numpy()
                digest.update(repr(array.shape).encode())
                digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
        return digest.hexdigest()


class Decoded(NamedTuple):
    """What a reader makes of a data set's files, on the CPU."""

    classes: tuple[str, ...]
    train: Split
    test: Split


def as_split(images: Array, labels: Tensor, clean_labels: Tensor | None) -> Split:
    """A split of images (N, H, W, C) uint8, copied only if they must, and labels (N,)."""
    # Arrays over a file's bytes may be read-only, which torch does not allow.
    pixels = torch.from_numpy(np.require(images, np.uint8, ["C", "W"]))
    return Split(pixels.permute(0, 3, 1, 2), labels, clean_labels)
