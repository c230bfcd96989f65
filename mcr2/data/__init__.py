"""Images and labels: where they are found, how they are read, how they become batches.

A ``Split`` is uint8 images and their labels on one device, a ``Dataset`` a training and a test
split. ``load_dataset`` takes a name in ``DATASETS``, an ``.npz`` file or an image folder, and
``load_training`` also those without test images;
``batches`` cuts an epoch into shuffled, augmented batches. To add a data set, write one function
that reads a folder (see ``readers``) and name it in ``DATASETS``.
"""

from mcr2.data.batching import (
    Augmentation,
    Batch,
    batches,
    mix_seed,
    num_batches,
    step_imbalance,
    stratified_subset,
    to_float,
)
from mcr2.data.sources import (
    DATASETS,
    Source,
    Training,
    availability,
    load_dataset,
    load_training,
)
from mcr2.data.splits import Dataset, Split

__all__ = [
    "DATASETS",
    "Augmentation",
    "Batch",
    "Dataset",
    "Source",
    "Split",
    "Training",
    "availability",
    "batches",
    "load_dataset",
    "load_training",
    "mix_seed",
    "num_batches",
    "step_imbalance",
    "stratified_subset",
    "to_float",
]
