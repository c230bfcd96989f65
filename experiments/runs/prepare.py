"""A spec's data: loaded, corrupted, and with the validation share held out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from experiments.runs.specs import RunSpec
from mcr2.data import Dataset, Split, load_dataset
from mcr2.noise import Corruption, parse_noise


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

    Attributes:
        dataset: as loaded, before corruption.
        corruption: what was done to all its training labels.
        train, validation, test: the splits; validation is None where nothing is held out.
        held_out: indices of the validation samples in the data set's training split.
    """

    dataset: Dataset
    corruption: Corruption
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
    return load_dataset(
        spec.dataset, data_root=data_root, subset=spec.subset, image_size=spec.image_size
    )


def prepare(spec: RunSpec, dataset: Dataset) -> Prepared:
    """Corrupt all training labels, then hold out the validation share with its noisy labels.

    The held-out indices come from their own stream and do not depend on the ratio. They are
    drawn without looking at labels: a user has none that are clean.

    Raises:
        ValueError: a share that leaves nothing to train or to validate on.
    """
    seeds = spec.streams.seeds(spec.seed)
    given = dataset.train
    noise = parse_noise(spec.noise, spec.ratio)
    corruption = noise.apply(given, num_classes=dataset.num_classes, seed=seeds["noise"])
    noisy = replace(given, labels=corruption.labels)
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
        train=noisy.select(kept),
        validation=noisy.select(held_out) if count else None,
        test=dataset.test,
        held_out=held_out,
    )
