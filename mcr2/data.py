"""Images and labels: where they are found, how they are read, how they become batches.

A ``Split`` is uint8 images and their labels on one device, a ``Dataset`` a training and a test
split. ``load_dataset`` takes a name in ``DATASETS`` or an ``.npz`` file; ``batches`` cuts an epoch
into shuffled, augmented batches. To add a data set, write one function that reads a folder and name
it in ``DATASETS``.
"""

import contextlib
import gzip
import hashlib
import math
import os
import socket
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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

Array = npt.NDArray[Any]


def _check_tensor(name: str, value: object, dtype: torch.dtype, ndim: int, shape: str) -> None:
    if not isinstance(value, Tensor) or value.dtype != dtype:
        given = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a tensor of {dtype}, not {given}")
    if value.ndim != ndim:
        raise ValueError(f"{name} must have shape {shape}, not {tuple(value.shape)}")


def _check_integer(name: str, value: object, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, not {value}")
    return int(value)


# ------------------------------------------------------------------------------------------ splits


@dataclass(frozen=True, eq=False)
class Split:
    """Images with the labels to train on, on one device.

    Args:
        images: (N, C, H, W) uint8. Kept in channels_last memory by everything in this file, so that
            batches need no transposition; any other layout works and costs one copy an epoch.
        labels: (N,) int64, non-negative: the labels trained on, possibly noisy.
        clean_labels: (N,) int64, non-negative: the true labels, or None where they are unknown.

    Raises:
        TypeError: a dtype is another one, or something is no tensor.
        ValueError: shapes, lengths or devices do not fit, or a label is negative.

    Example:
        >>> split = Split(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.arange(5))
        >>> len(split), split.select([4, 0]).labels
        (5, tensor([4, 0]))
    """

    images: Tensor
    labels: Tensor
    clean_labels: Tensor | None = None

    def __post_init__(self) -> None:
        _check_tensor("images", self.images, torch.uint8, 4, "(N, C, H, W)")
        if 0 in self.images.shape[1:]:
            raise ValueError(f"images have no pixels: shape {tuple(self.images.shape)}")
        named = {"labels": self.labels}
        if self.clean_labels is not None:
            named["clean_labels"] = self.clean_labels
        for name, labels in named.items():
            _check_tensor(name, labels, torch.int64, 1, "(N,)")
            if len(labels) != len(self.images):
                raise ValueError(f"{len(self.images)} images, but {len(labels)} {name}")
            if labels.device != self.images.device:
                raise ValueError(f"images lie on {self.images.device}, {name} on {labels.device}")
            if len(labels) and int(labels.min()) < 0:
                raise ValueError(f"{name} must not be negative, but one is {int(labels.min())}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where the images and labels lie."""
        return self.images.device

    def to(self, device: torch.device | str) -> "Split":
        """The same split on another device."""
        clean = None if self.clean_labels is None else self.clean_labels.to(device)
        return Split(self.images.to(device), self.labels.to(device), clean)

    def select(self, indices: Tensor | Array | Sequence[int]) -> "Split":
        """The samples at ``indices`` ((n,) integers in [0, N)), in that order."""
        index = torch.as_tensor(indices)
        if index.numel() == 0:
            index = index.long()
        if index.ndim != 1:
            raise ValueError(f"indices must have shape (n,), not {tuple(index.shape)}")
        if index.dtype == torch.bool or index.is_floating_point() or index.is_complex():
            raise TypeError(f"indices must be integers, not {index.dtype}")
        index = index.long().to(self.device)
        outside = index[(index < 0) | (index >= len(self))]
        if len(outside):
            raise ValueError(f"indices must lie in [0, {len(self)}), but one is {int(outside[0])}")
        clean = None if self.clean_labels is None else self.clean_labels.index_select(0, index)
        images = _channels_first(_channels_last(self.images).index_select(0, index))
        return Split(images, self.labels.index_select(0, index), clean)

    def relabelled(self, labels: Tensor, clean_labels: Tensor | None) -> "Split":
        """The same images with other labels, moved to the images' device."""
        clean = None if clean_labels is None else clean_labels.to(self.device)
        return Split(self.images, labels.to(self.device), clean)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split of the same classes.

    Args:
        name: name in ``DATASETS``, or the file's name.
        train: training split.
        test: test split. Its labels are taken as clean.
        classes: names of the K ≥ 2 classes; labels lie in [0, K).
        flip: whether mirroring an image left to right preserves its class.
        shift: by how many pixels images may be shifted in augmentation, by default.
        source: where it was found.

    Raises:
        ValueError: a split is empty, image shapes differ, or a label names no class.
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
            raise ValueError(f"{self.name}: at least 2 classes needed, not {len(self.classes)}")
        for which, split in (("training", self.train), ("test", self.test)):
            if len(split) == 0:
                raise ValueError(f"{self.name}: the {which} split has no images")
            for labels in (split.labels, split.clean_labels):
                if labels is not None and int(labels.max()) >= len(self.classes):
                    raise ValueError(
                        f"{self.name}: {which} labels must lie in [0, {len(self.classes)}), but "
                        f"one is {int(labels.max())}"
                    )
        shapes = [tuple(split.images.shape[1:]) for split in (self.train, self.test)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{self.name}: training images have shape {shapes[0]}, test images {shapes[1]}"
            )

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """C."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.train.images.shape[2], self.train.images.shape[3]

    def content_hash(self) -> str:
        """SHA-256 of both splits' shapes, images and labels (clean ones too), in hexadecimal.

        It does not depend on device, memory layout, names or where the data were found.
        """
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            for tensor in (split.images, split.labels, split.clean_labels):
                if tensor is None:
                    digest.update(b"none")
                    continue
                array = np.ascontiguousarray(tensor.cpu().numpy())
                digest.update(repr(array.shape).encode())
                digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
        return digest.hexdigest()


def stratified_subset(labels: Tensor, size: int, seed: int) -> Tensor:
    """Indices of exactly ``size`` samples, with every class in proportion.

    Class k of n_k among N samples gets size·n_k/N of them, rounded by largest remainders (ties to
    the lower label), but at least one. Drawn from a generator of its own.

    Args:
        labels: (N,) int64.
        size: between the number of classes present and N.
        seed: non-negative.

    Returns:
        (size,) int64 on the CPU, ascending: samples keep their order.

    Raises:
        TypeError: size or seed is no integer.
        ValueError: size or seed is out of range.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
        >>> labels[stratified_subset(labels, 3, seed=0)]
        tensor([0, 0, 1])
    """
    given = labels.cpu().numpy()
    present, counts = np.unique(given, return_counts=True)
    size, seed = _check_integer("subset", size, 1), _check_integer("subset seed", seed, 0)
    if not len(present) <= size <= len(given):
        raise ValueError(
            f"subset must lie between {len(present)} (one image a class) and {len(given)} "
            f"(all of them), not {size}"
        )
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


# ----------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class Augmentation:
    """Random changes that preserve an image's class; the default changes nothing.

    Args:
        shift: each image moves by −shift … shift pixels in both directions, every offset equally
            likely, zeros moving in (the same as padding by ``shift`` and cropping at random).
        flip: mirror half of the images left to right.

    Raises:
        TypeError: shift is no integer, or flip no bool.
        ValueError: shift is negative.
    """

    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        _check_integer("shift", self.shift, 0)
        if not isinstance(self.flip, bool):
            raise TypeError(f"flip must be a bool, not {type(self.flip).__name__}")


class Batch(NamedTuple):
    """What a step sees: images (B, C, H, W) float32 in [0, 1], labels (B,), indices (B,)."""

    images: Tensor
    labels: Tensor
    indices: Tensor


def num_batches(n: int, batch_size: int) -> int:
    """Number of batches in an epoch over n samples: ⌈n / batch_size⌉."""
    return -(-n // batch_size)


def mix_seed(*parts: str | int) -> int:
    """One 63-bit seed from a stream's name, a seed and a counter such as the epoch.

    Hashed rather than added, because seed 0 at epoch 1 must not be seed 1 at epoch 0.

    Example:
        >>> mix_seed("order", 0, 1) == mix_seed("order", 1, 0)
        False
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def to_float(images: Tensor) -> Tensor:
    """Uint8 images as a network takes them.

    Args:
        images: (N, C, H, W) uint8.

    Returns:
        (N, C, H, W) float32 in [0, 1], x/255, in channels_last memory.

    Raises:
        TypeError: the images are no uint8 tensor.
        ValueError: they are not four-dimensional.

    Example:
        >>> to_float(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8))
        tensor([[[[1.]]]])
    """
    _check_tensor("images", images, torch.uint8, 4, "(N, C, H, W)")
    return _to_float(_channels_last(images).contiguous())


def batches(
    split: Split,
    batch_size: int,
    *,
    epoch: int,
    sampling_seed: int,
    augmentation_seed: int,
    augmentation: Augmentation = Augmentation(),
    shuffle: bool = True,
) -> Iterator[Batch]:
    """One epoch over a split.

    N samples are cut into ⌈N / batch_size⌉ batches whose sizes differ by at most one: a last batch
    of two or three samples would upset batch normalisation and leave classes out of the rates.

    Nothing is remembered between epochs. The order follows from (sampling_seed, epoch). Shifts and
    flips follow from (augmentation_seed, epoch) and the sample's index in the split: an augmented
    image depends neither on the order or size of the batches nor on the device.

    Args:
        split: N samples; batches lie on its device.
        batch_size: ≥ 1, the most samples in a batch.
        epoch: ≥ 0.
        sampling_seed: ≥ 0.
        augmentation_seed: ≥ 0.
        augmentation: what to change.
        shuffle: False keeps the split's order in every epoch.

    Returns:
        An iterator of batches: images float32 in [0, 1] and channels_last, labels, and the samples'
        indices in the split.

    Raises:
        TypeError: a size, seed or epoch is no integer.
        ValueError: one of them is out of range.

    Example:
        >>> split = Split(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.arange(5))
        >>> epoch = batches(split, 3, epoch=0, sampling_seed=0, augmentation_seed=0, shuffle=False)
        >>> [batch.labels.tolist() for batch in epoch]
        [[0, 1, 2], [3, 4]]
    """
    _check_integer("batch_size", batch_size, 1)
    _check_integer("epoch", epoch, 0)
    _check_integer("sampling_seed", sampling_seed, 0)
    _check_integer("augmentation_seed", augmentation_seed, 0)
    n = len(split)
    # Always drawn on the CPU: its generator is the same everywhere, a device's is not.
    if shuffle:
        order = torch.randperm(n, generator=_stream("order", sampling_seed, epoch))
    else:
        order = torch.arange(n)
    # Streams of their own, so that the shifts stay the same with and without flips.
    shift_stream = _stream("shift", augmentation_seed, epoch)
    flip_stream = _stream("flip", augmentation_seed, epoch)
    offsets = torch.randint(0, 2 * augmentation.shift + 1, (2, n), generator=shift_stream)
    flips = torch.randint(0, 2, (n,), generator=flip_stream).bool()
    if not augmentation.flip:
        flips = torch.zeros_like(flips)
    return _epoch(split, batch_size, order, offsets, flips, augmentation)


def _epoch(
    split: Split,
    batch_size: int,
    order: Tensor,
    offsets: Tensor,
    flips: Tensor,
    augmentation: Augmentation,
) -> Iterator[Batch]:
    pixels = _channels_last(split.images).contiguous()
    order, flips = order.to(split.device), flips.to(split.device)
    tops, lefts = offsets.to(split.device)
    changed = augmentation != Augmentation()
    for indices in order.tensor_split(num_batches(len(order), batch_size)) if len(order) else ():
        images = pixels.index_select(0, indices)
        if changed:
            images = _shift_and_flip(
                images, tops[indices], lefts[indices], flips[indices], augmentation.shift
            )
        yield Batch(_to_float(images), split.labels.index_select(0, indices), indices)


def _shift_and_flip(images: Tensor, tops: Tensor, lefts: Tensor, flips: Tensor, pad: int) -> Tensor:
    """Crop (B, H, W, C) images, padded by ``pad``, at (tops, lefts), and mirror those in ``flips``.

    One ``index_select`` of whole pixels: four times faster than indexing rows and columns, twice as
    fast as cropping and flipping one after the other (500 images of 3×32×32 on one core).
    """
    B, H, W, C = images.shape
    padded = torch.nn.functional.pad(images, (0, 0, pad, pad, pad, pad))
    height, width = H + 2 * pad, W + 2 * pad
    along = torch.arange(W, device=images.device)
    columns = torch.where(flips[:, None], W - 1 - along, along) + lefts[:, None]  # (B, W)
    first = torch.arange(B, device=images.device) * height + tops
    rows = first[:, None] + torch.arange(H, device=images.device)  # (B, H), in the whole batch
    index = (rows * width)[:, :, None] + columns[:, None, :]
    return padded.view(-1, C).index_select(0, index.view(-1)).view(B, H, W, C)


def _stream(name: str, seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix_seed(name, int(seed), int(epoch)))


def _channels_last(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1)


def _channels_first(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2)


def _to_float(pixels: Tensor) -> Tensor:
    """(B, H, W, C) uint8 to (B, C, H, W) float32; the permutation makes it channels_last."""
    return _channels_first(pixels.float().div_(255))


# --------------------------------------------------------------------------------- finding, loading


@dataclass(frozen=True)
class Source:
    """Where a named data set comes from.

    Args:
        description: one line for a reader.
        read: makes the data set from the folder in which its files were found.
        files: what must lie in that folder, each as it is or as ``.gz``. Empty for data that come
            with a dependency: ``read`` then gets the path ``.`` and ignores it.
        folders: where in a root that folder may be, first match wins.
        roots: further roots to look in, after the user's.
        download: puts the files somewhere under a given, empty root; any exception is a failure.
        advice: what a user can do where nothing is found, beside naming a root.
    """

    description: str
    read: Callable[[Path], Dataset]
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = (".",)
    roots: tuple[str, ...] = ()
    download: Callable[[Path], object] | None = None
    advice: str = ""


class Availability(NamedTuple):
    """Whether a data set is there: ``found`` is its folder or None, ``looked`` every candidate."""

    name: str
    description: str
    found: str | None
    looked: tuple[str, ...]


def availability(data_root: str | Path | None = None) -> list[Availability]:
    """Which of ``DATASETS`` are there. Looks for files; reads, imports and downloads nothing.

    Args:
        data_root: looked in first, as by ``load_dataset``.

    Returns:
        One ``Availability`` for each data set, in the order of ``DATASETS``.

    Raises:
        ValueError: ``data_root`` is a file.

    Example:
        >>> availability()[0][:1] + availability()[0][2:]
        ('digits', 'in scikit-learn', ())
    """
    found = []
    for name, source in DATASETS.items():
        folder, looked = _find(source, data_root)
        where = None if folder is None else str(folder) if source.files else "in scikit-learn"
        found.append(Availability(name, source.description, where, tuple(map(str, looked))))
    return found


def load_dataset(
    name_or_path: str | Path,
    *,
    data_root: str | Path | None = None,
    subset: int | None = None,
    subset_seed: int = 0,
    download: bool = True,
) -> Dataset:
    """Load a named data set or an ``.npz`` file.

    Named ones are looked for in ``data_root``, then in ``$MCR2_DATA``, in ``~/.cache/mcr2`` (under
    ``$XDG_CACHE_HOME`` where that is set), and where their ``Source`` says; if they are in none,
    torchvision downloads them into the first of the three that is given.

    An ``.npz`` file holds ``x_train, y_train, x_test, y_test`` and perhaps ``y_train_clean`` and
    ``classes``. Images are uint8: (N, C, H, W), or (N, H, W) for one channel, or (N, H, W, C) if C
    is 1 or 3 and the second size is neither. Labels are integers in [0, K); K is the number of
    ``classes``, without them the largest label plus one. Without ``y_train_clean`` the training
    labels are taken as clean. Nothing in the file is executed (no pickles). Its images are never
    mirrored, and shifted by 4 pixels from a smaller side of 32 on, by 2 from 16 on, else by 1.

    Args:
        name_or_path: a name in ``DATASETS``, or a path ending in ``.npz``.
        data_root: folder to look in first, and to download into.
        subset: keep that many training images, stratified by the labels trained on (see
            ``stratified_subset``). The test split stays whole.
        subset_seed: which ones.
        download: whether to download what is not found.

    Returns:
        The data set, on the CPU. Named ones have ``train.clean_labels`` equal to ``train.labels``.

    Raises:
        ValueError: unknown name, malformed file (named, with what is wrong), or impossible subset.
        TypeError: subset or its seed is no integer.
        FileNotFoundError: not found, and not downloaded: what was looked for, where, what to do.

    Example:
        >>> digits = load_dataset("digits", subset=100)
        >>> len(digits.train), len(digits.test), digits.in_channels, digits.image_size
        (100, 360, 1, (8, 8))
    """
    name = str(name_or_path)
    if name in DATASETS:
        dataset = _load_named(name, data_root, download)
    elif name.lower().endswith(".npz"):
        dataset = _read_npz(Path(name).expanduser())
    else:
        raise ValueError(
            f"unknown data set {name!r}; allowed are {', '.join(DATASETS)}, or a path ending in "
            ".npz"
        )
    if subset is None:
        return dataset
    chosen = stratified_subset(dataset.train.labels, subset, subset_seed)
    return replace(dataset, train=dataset.train.select(chosen))


def _load_named(name: str, data_root: str | Path | None, download: bool) -> Dataset:
    source = DATASETS[name]
    folder, _ = _find(source, data_root)
    problem = "downloading is switched off"
    if folder is None and download and source.download is not None:
        root = _roots(data_root)[0]
        try:
            _download(source, root)
        except Exception as error:  # whatever went wrong, the user needs the same line
            problem = f"the download failed ({' '.join(str(error).split()) or repr(error)})"
            raise FileNotFoundError(_missing(name, data_root, problem)) from error
        folder, _ = _find(source, data_root)
        problem = f"what was downloaded into {root} is not what was expected"
    if folder is None:
        raise FileNotFoundError(_missing(name, data_root, problem))
    return source.read(folder)


def _roots(data_root: str | Path | None) -> list[Path]:
    """The user's roots, most specific first; the first is where downloads go."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mcr2"
    given = [data_root, os.environ.get("MCR2_DATA") or None, cache]
    roots = [Path(root).expanduser() for root in given if root is not None]
    if data_root is not None and roots[0].exists() and not roots[0].is_dir():
        raise ValueError(f"the data root must be a folder, but {roots[0]} is a file")
    return roots


def _find(source: Source, data_root: str | Path | None) -> tuple[Path | None, list[Path]]:
    """The first folder that holds all files of a source, and all folders looked in."""
    roots = [*_roots(data_root), *map(Path, source.roots)]
    looked = list(dict.fromkeys(root / sub for root in roots for sub in source.folders))
    if not source.files:
        return Path(), []
    for folder in looked:
        if all(_plain_or_gz(folder, file) is not None for file in source.files):
            return folder, looked
    return None, looked


def _plain_or_gz(folder: Path, file: str) -> Path | None:
    candidates = (folder / file, folder / f"{file}.gz")
    # os.path: a folder we may not enter is one that holds nothing, not an error.
    return next((path for path in candidates if os.path.isfile(path)), None)


def _missing(name: str, data_root: str | Path | None, problem: str) -> str:
    source = DATASETS[name]
    roots = dict.fromkeys(map(str, [*_roots(data_root), *source.roots]))
    return (
        f"{name} not found: looked for {source.files[0]} and {len(source.files) - 1} more in "
        f"{', '.join(roots)} (subfolder {' or '.join(source.folders)}), and {problem}; "
        f"name the folder that holds it with --data-root or MCR2_DATA{source.advice}"
    )


def _download(source: Source, root: Path) -> None:
    """Download beside the destination and move what is complete.

    So that an interrupted download leaves no half of a file that a later run would trust, and
    several processes may try at once.
    """
    assert source.download is not None
    root.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as staging:
        try:
            socket.setdefaulttimeout(30)  # torchvision sets none, and would wait for minutes
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for tables
                source.download(Path(staging))
        finally:
            socket.setdefaulttimeout(timeout)
        for path in sorted(Path(staging).rglob("*")):
            if path.is_file():
                target = root / path.relative_to(staging)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)


def _torchvision(name: str) -> Any:
    """A data set class of torchvision, imported only here: digits and .npz must do without it."""
    try:
        import torchvision.datasets
    except (ImportError, RuntimeError, AttributeError, OSError) as error:  # built for another torch
        reason = " ".join(str(error).split())
        raise ImportError(f"torchvision cannot be imported, reinstall it ({reason})") from error
    return getattr(torchvision.datasets, name)


# ----------------------------------------------------------------------------------------- readers


def _read_digits(_: Path) -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=360, random_state=0, stratify=labels
    )
    return Dataset(
        name="digits",
        train=_clean_split(images[train], labels[train]),
        test=_clean_split(images[test], labels[test]),
        classes=tuple("0123456789"),
        flip=False,
        shift=1,
        source="scikit-learn",
    )


_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _read_fashion_mnist(folder: Path) -> Dataset:
    train, test = _idx_splits(folder, num_classes=10)
    return Dataset(
        name="fashion_mnist",
        train=train,
        test=test,
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        flip=True,
        shift=2,
        source=str(folder),
    )


def _idx_splits(folder: Path, num_classes: int) -> list[Split]:
    """Training and test split of a folder laid out like MNIST's, 28×28 images."""
    splits = []
    for images_file, labels_file in (_IDX_FILES[:2], _IDX_FILES[2:]):
        images_path, labels_path = (_plain_or_gz(folder, f) for f in (images_file, labels_file))
        assert images_path is not None
        assert labels_path is not None
        images, labels = _read_idx(images_path, 3), _read_idx(labels_path, 1)
        if images.shape[1:] != (28, 28):
            raise ValueError(f"{images_path}: images must be 28×28, not {images.shape[1:]}")
        if len(images) == 0 or len(images) != len(labels):
            raise ValueError(
                f"{labels_path}: {len(labels)} labels for the {len(images)} images of "
                f"{images_path.name}"
            )
        if labels.max() >= num_classes:
            raise ValueError(
                f"{labels_path}: labels must lie in [0, {num_classes}), but one is {labels.max()}"
            )
        splits.append(_clean_split(images[..., None], labels))
    return splits


def _read_idx(path: Path, ndim: int) -> Array:
    """Read LeCun's idx format: two zero bytes, the type, the number of sizes, sizes, data.

    Only unsigned bytes (type 8). The sizes are big-endian; the data must be exactly as long as they
    say. The file is taken in whole, so that a header that lies cannot make us allocate.
    """
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    header = 4 + 4 * ndim
    if len(raw) < header:
        raise ValueError(f"{path}: truncated, {len(raw)} bytes are no idx header")
    if raw[:4] != bytes((0, 0, 8, ndim)):
        raise ValueError(
            f"{path}: starts with {raw[:4].hex()}, not with {bytes((0, 0, 8, ndim)).hex()} as an "
            f"idx file of unsigned bytes in {ndim} dimensions"
        )
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", ndim, offset=4))
    if len(raw) - header != math.prod(shape):
        raise ValueError(
            f"{path}: its header says {shape}, {math.prod(shape)} bytes, but "
            f"{len(raw) - header} follow"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


_CIFAR10_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")


def _read_cifar10(folder: Path) -> Dataset:
    # These files are pickles, which can execute anything. torchvision opens them only if their
    # checksums are those of the published ones, so reading is left to it.
    try:
        train, test = (_torchvision("CIFAR10")(folder.parent, train=t) for t in (True, False))
    except RuntimeError as error:
        raise ValueError(
            f"{folder}: not opened, since torchvision does not confirm its checksums "
            f"({' '.join(str(error).split())}); delete it to have it downloaded again"
        ) from error
    return Dataset(
        name="cifar10",
        train=_clean_split(train.data, np.asarray(train.targets)),
        test=_clean_split(test.data, np.asarray(test.targets)),
        classes=tuple(train.classes),
        flip=True,
        shift=4,
        source=str(folder),
    )


def _read_npz(path: Path) -> Dataset:
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} not found: name an existing .npz file")
    wanted = ("x_train", "y_train", "x_test", "y_test")
    arrays: dict[str, Array] = {}
    try:
        with path.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise ValueError("not a zip archive, as .npz files are")
            stream.seek(0)
            file = np.load(stream, allow_pickle=False)
            for key in (*wanted, "y_train_clean", "classes"):
                if key in file:
                    arrays[key] = _member(file, key)
    except _UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if missing := [key for key in wanted if key not in arrays]:
        raise ValueError(
            f"{path}: no array {', '.join(missing)}; needed are {', '.join(wanted)}, and allowed "
            "besides y_train_clean and classes"
        )

    images = {key: _npz_images(f"{path}: {key}", arrays[key]) for key in ("x_train", "x_test")}
    if images["x_train"].shape[1:] != images["x_test"].shape[1:]:
        raise ValueError(
            f"{path}: x_train has shape {arrays['x_train'].shape}, x_test {arrays['x_test'].shape};"
            " their images must have one size"
        )
    classes = _npz_classes(f"{path}: classes", arrays["classes"]) if "classes" in arrays else None
    labels: dict[str, Array] = {}
    for key, x in (("y_train", "x_train"), ("y_train_clean", "x_train"), ("y_test", "x_test")):
        if key in arrays:
            labels[key] = _npz_labels(f"{path}: {key}", arrays[key], len(images[x]))
    most = len(images["x_train"]) if classes is None else len(classes)
    for key, array in labels.items():
        if int(array.max()) >= most:
            reason = "the number of training images" if classes is None else "length of classes"
            raise ValueError(
                f"{path}: {key} must lie in [0, {most}) ({reason}), but one is {array.max()}"
            )
    if classes is None:
        classes = tuple(str(k) for k in range(max(int(a.max()) for a in labels.values()) + 1))

    train = _clean_split(images["x_train"], labels["y_train"])
    if "y_train_clean" in labels:
        train = train.relabelled(train.labels, torch.from_numpy(labels["y_train_clean"]))
    smaller_side = min(images["x_train"].shape[1:3])
    return Dataset(
        name=path.name,
        train=train,
        test=_clean_split(images["x_test"], labels["y_test"]),
        classes=classes,
        flip=False,
        shift=4 if smaller_side >= 32 else 2 if smaller_side >= 16 else 1,
        source=str(path),
    )


# What NumPy and zipfile raise on damaged, encrypted or unknown content; MemoryError is a header
# that claims more than there can be.
_UNREADABLE = (
    *(ValueError, OSError, EOFError, RuntimeError, MemoryError, SyntaxError, TypeError),
    *(zipfile.BadZipFile, zlib.error),
)


def _member(file: Any, key: str) -> Array:
    try:
        return np.asarray(file[key])
    except _UNREADABLE as error:
        if "Object arrays" in str(error):  # NumPy's message suggests to unpickle them
            raise ValueError(f"{key} is an object array; allowed are plain numbers") from error
        raise ValueError(f"array {key}: {error}") from error


def _npz_images(where: str, array: Array) -> Array:
    """Images as (N, H, W, C)."""
    if array.dtype != np.uint8:
        raise ValueError(f"{where} has dtype {array.dtype}; allowed is uint8 (0 to 255)")
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(
            f"{where} has shape {array.shape}; allowed are (N, C, H, W), (N, H, W), or "
            "(N, H, W, C) with 1 or 3 channels, none of them empty"
        )
    if array.ndim == 3:
        return array[..., None]
    if array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        return array
    return array.transpose(0, 2, 3, 1)


def _npz_labels(where: str, array: Array, n: int) -> Array:
    if array.dtype.kind not in "iu":
        raise ValueError(f"{where} has dtype {array.dtype}; allowed are integers")
    if array.shape != (n,):
        raise ValueError(f"{where} has shape {array.shape}; allowed is ({n},), one for each image")
    if int(array.min()) < 0:
        raise ValueError(f"{where} must not be negative, but one is {array.min()}")
    if int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{where} must fit int64, but one is {array.max()}")
    return array.astype(np.int64)


def _npz_classes(where: str, array: Array) -> tuple[str, ...]:
    if array.dtype.kind != "U" or array.ndim != 1 or len(array) < 2:
        raise ValueError(
            f"{where} has dtype {array.dtype} and shape {array.shape}; allowed are at least two "
            "strings in one dimension"
        )
    return tuple(array.tolist())


def _clean_split(pixels: Array, labels: Array) -> Split:
    """A split of (N, H, W, C) images whose labels are the clean ones."""
    # A copy that owns its memory: arrays from files may be read-only, which torch does not allow.
    images = torch.from_numpy(np.array(pixels, dtype=np.uint8, order="C"))
    target = torch.from_numpy(np.array(labels, dtype=np.int64))
    return Split(_channels_first(images), target, target)


DATASETS: dict[str, Source] = {
    "digits": Source("1,797 handwritten digits, 8×8 grey, 10 classes", _read_digits),
    "fashion_mnist": Source(
        "70,000 pieces of clothing, 28×28 grey, 10 classes",
        _read_fashion_mnist,
        files=_IDX_FILES,
        # The root itself comes last: MNIST and its kin use the same file names.
        folders=("fashion-mnist", "FashionMNIST/raw", "."),
        roots=("/usr/share/datasets/fashion-mnist",),
        download=lambda root: _torchvision("FashionMNIST")(root, download=True),
        advice=", or install Debian's package dataset-fashion-mnist",
    ),
    "cifar10": Source(
        "60,000 photographs, 32×32 colour, 10 classes",
        _read_cifar10,
        files=_CIFAR10_FILES,
        folders=("cifar-10-batches-py",),
        download=lambda root: _torchvision("CIFAR10")(root, download=True),
    ),
}
