"""Images and labels: where they are found, how they are read, how they become batches.

A ``Split`` is uint8 images and their labels on one device, a ``Dataset`` a training and a test
split. ``load_dataset`` takes a name in ``DATASETS``, an ``.npz`` file or an image folder;
``batches`` cuts an epoch into shuffled, augmented batches.

- :mod:`~mcr2.data.splits`: ``Split``, ``Dataset``;
- :mod:`~mcr2.data.batching`: subsets, seeds, augmentation, batches;
- :mod:`~mcr2.data.sources`: ``DATASETS``; finding, downloading, ``load_dataset``;
- :mod:`~mcr2.data.readers`: the formats of the named data sets;
- :mod:`~mcr2.data.npz`, :mod:`~mcr2.data.folder`: a user's own data;
- :mod:`~mcr2.data.cache`: decoded arrays kept on disk.

To add a data set, write one function that reads a folder and name it in ``DATASETS``.
"""

from mcr2.data.batching import (
    Augmentation,
    Batch,
    batches,
    mix_seed,
    num_batches,
    stratified_subset,
    to_float,
)
from mcr2.data.sources import DATASETS, Availability, Source, availability, load_dataset
from mcr2.data.splits import Dataset, Split

__all__ = [
    "DATASETS",
    "Augmentation",
    "Availability",
    "Batch",
    "Dataset",
    "Source",
    "Split",
    "availability",
    "batches",
    "load_dataset",
    "mix_seed",
    "num_batches",
    "stratified_subset",
    "to_float",
]
