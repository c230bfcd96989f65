"""A spec's data: loaded, corrupted, and with the validation share held out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.runs.specs import RunSpec
from mcr2.data import Dataset, Split, load_dataset
from mcr2.files import digest
from mcr2.noise import Corruption, parse_noise
from mcr2.readouts import parse_readout


@dataclass(frozen=True)
class Sizes:
    """What a network needs to know of the data."""

    num_classes: int
    in_channels: int
    num_samples: int
    height: int
    width: int


@dataclass(frozen=True)
class Prepared:
    """The data of one run, after corruption and with the validation share held out.

    ``dataset`` is as loaded; ``corruption`` what was done to all its training labels; ``noise`` the
    kind of it, see :func:`noise_content`; ``held_out`` the indices of the validation samples in its
    training split.
    """

    dataset: Dataset
    corruption: Corruption
    noise: str
    train: Split
    validation: Split | None
    test: Split
    held_out: Tensor

    @property
    def sizes(self) -> Sizes:
        """What a network needs to know of the data."""
        _, channels, height, width = self.train.images.shape
        return Sizes(self.dataset.num_classes, channels, len(self.train), height, width)

    def on(self, device: torch.device) -> tuple[Split, Split, Split | None]:
        """Return train, test and validation on a device."""
        validation = None if self.validation is None else self.validation.to(device)
        return self.train.to(device), self.test.to(device), validation


def load(spec: RunSpec, data_root: str | None = None) -> Dataset:
    """Return the data set of a spec, before corruption."""
    return load_dataset(spec.dataset, data_root=data_root, **source_of(spec))


def taken_by(noise: str) -> str | None:
    """Return the file or the other data that a kind of noise takes, as it is written."""
    found = parse_noise(noise, 0)
    return found.file or found.data


def load_other(spec: RunSpec, data_root: str | None = None) -> Dataset | None:
    """Return the data set whose images a spec's noise puts among its own, if it does."""
    other = parse_noise(spec.noise, spec.ratio).data
    return None if other is None else load_dataset(other, data_root=data_root)


def noise_content(spec: RunSpec, other: Dataset | None = None) -> str:
    """Return a spec's kind of noise, with hashes of content for its file or its other data.

    Raises:
        FileNotFoundError: its file is not there.
    """
    noise = parse_noise(spec.noise, spec.ratio)
    if noise.file is not None:
        return spec.noise.replace(noise.file, digest(Path(noise.file)))
    if noise.data is not None and other is not None:
        return spec.noise.replace(noise.data, other.content_hash())
    return spec.noise


def source_of(spec: RunSpec) -> dict[str, Any]:
    """Return the fields of a spec that say what is taken from its data set, and how."""
    names = ("subset", "image_size", "axes", "labels_are", "imbalance")
    kept = spec.classes
    classes = kept[0] if kept is not None and len(kept) == 1 else kept
    return {"classes": classes, **{name: getattr(spec, name) for name in names}}


def unused_classes(spec: RunSpec, data_root: str | None = None) -> Dataset:
    """Return the data of the classes that a spec does not use, whole, relabelled 0, 1, ….

    Raises:
        ValueError: it leaves fewer than two.

    Example:
        >>> unused_classes(RunSpec("ce", classes=(8,))).classes
        ('8', '9')
    """
    whole = load(replace(spec, classes=None, subset=None, imbalance=1.0), data_root)
    classes = source_of(spec)["classes"]
    used = range(classes) if isinstance(classes, int) else classes or range(whole.num_classes)
    left = [k for k in range(whole.num_classes) if k not in used]
    if len(left) < 2:
        raise ValueError(
            f"classes leaves {len(left)} of {whole.num_classes}; at least 2 are needed"
        )
    return whole.of_classes(left)


def check_meant(spec: RunSpec, data: Prepared, readout: str) -> None:
    """Refuse settings that cannot be meant for these data, before anything is spent.

    Raises:
        ValueError: the line says which setting, and what the data have.
    """
    side = min(data.sizes.height, data.sizes.width)
    for name in ("shift", "stem_stride"):
        value = getattr(spec, name)
        if value is not None and value >= side:
            raise ValueError(f"{name} is {value}; the images have a side of {side}")
    number = parse_readout(readout)[1]
    if readout.startswith("knn@") and number is not None and number >= len(data.train):
        raise ValueError(f"readout is {readout!r}; there are {len(data.train)} training samples")
    labels, images = data.train.labels, data.train.images
    if int(labels.min()) == int(labels.max()):
        raise ValueError(f"all {len(labels)} training labels are class {int(labels[0])}")
    if int(images.min()) == int(images.max()):
        raise ValueError(f"all {len(images)} training images are alike: every pixel is the same")


def prepared(spec: RunSpec, data_root: str | None = None) -> Prepared:
    """Load a spec's data and those of its noise, and :func:`prepare` them."""
    return prepare(spec, load(spec, data_root), load_other(spec, data_root))


def prepare(spec: RunSpec, dataset: Dataset, other: Dataset | None = None) -> Prepared:
    """Corrupt all training labels, then hold out the validation share with its noisy labels.

    The held-out indices come from their own stream and do not depend on the ratio. They are
    drawn without looking at labels: a user has none that are clean.

    Args:
        spec: what is to be run.
        dataset: its data, as :func:`load` returns them.
        other: those of its noise, as :func:`load_other` does.

    Raises:
        ValueError: a share that leaves nothing to train or to validate on, or noise that these data
            do not allow.
    """
    seeds = spec.streams.seeds(spec.seed)
    given = dataset.train
    noise = parse_noise(spec.noise, spec.ratio)
    if other is not None and other.content_hash() == dataset.content_hash():
        raise ValueError(f"noise {spec.noise} takes images of the data themselves, not of others")
    corruption = noise.apply(
        given,
        num_classes=dataset.num_classes,
        seed=seeds["noise"],
        other=None if other is None else other.train.images,
    )
    images = given.images if corruption.images is None else corruption.images
    noisy = replace(given, images=images, labels=corruption.labels, clean_labels=corruption.truth)
    generator = torch.Generator().manual_seed(seeds["validation"])
    order = torch.randperm(len(given), generator=generator)
    count = round(len(given) * spec.validation)
    held_out, kept = order[:count].sort().values, order[count:].sort().values
    if len(kept) < 2 or (spec.validation > 0 and count == 0):
        raise ValueError(
            f"validation={spec.validation} of {len(given)} training images leaves {len(kept)} to "
            f"train on and {count} to validate on"
        )
    return Prepared(
        dataset=dataset,
        corruption=corruption,
        noise=noise_content(spec, other),
        train=noisy.select(kept),
        validation=noisy.select(held_out) if count else None,
        test=dataset.test,
        held_out=held_out,
    )
