"""Readers of the named data sets: from a folder of files in their published format to arrays.

Each checks what it reads and names the file that is wrong. Where a format can execute anything
(CIFAR's pickles) or its parser crash (SVHN's MATLAB files), a file is opened only if its checksum
is the published one.
"""

import gzip
import hashlib
import io
import math
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from mcr2 import checks
from mcr2.data.files import Array, check_size
from mcr2.data.splits import Arrays, Decoded


def _labelled(where: object, images: Array, labels: Array, num_classes: int) -> Arrays:
    """A split of a named data set, whose labels are taken as clean, once they fit."""
    name = f"{where}: labels"
    y = checks.labels(np.ravel(labels), num_classes, count=len(images), name=name).numpy()
    return Arrays(images, y, y)


def read_digits(_: Path) -> Decoded:
    """scikit-learn's digits, 360 of them for testing, stratified."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    parts = train_test_split(
        np.arange(len(images)), test_size=360, random_state=0, stratify=digits.target
    )
    splits = [_labelled("digits", images[part], digits.target[part], 10) for part in parts]
    return Decoded(tuple("0123456789"), *splits)


IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def read_idx_folder(folder: Path, classes: tuple[str, ...]) -> Decoded:
    """Read a folder laid out like MNIST's, 28×28 images, each file as it is or as ``.gz``."""
    splits = []
    for files in (IDX_FILES[:2], IDX_FILES[2:]):
        images_path, labels_path = (plain_or_gz(folder, file) or folder / file for file in files)
        images, labels = _read_idx(images_path, 3), _read_idx(labels_path, 1)
        if images.shape[1:] != (28, 28) or len(images) == 0:
            raise ValueError(f"{images_path}: images must be N×28×28, not {images.shape}")
        splits.append(_labelled(labels_path, images[..., None], labels, len(classes)))
    return Decoded(classes, *splits)


def plain_or_gz(folder: Path, file: str) -> Path | None:
    """The file, or the same with ``.gz``, or None where the folder has neither."""
    candidates = (folder / file, folder / f"{file}.gz")
    # os.path: a folder we may not enter is one that holds nothing, not an error.
    return next((path for path in candidates if os.path.isfile(path)), None)


def _read_idx(path: Path, ndim: int) -> Array:
    """Read LeCun's idx format: two zero bytes, the type, the number of sizes, sizes, data.

    Only unsigned bytes (type 8); the sizes are big-endian.
    """
    magic = bytes((0, 0, 8, ndim))
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            header = stream.read(4 + 4 * ndim)
            if len(header) < 4 + 4 * ndim:
                raise ValueError(f"{path}: truncated, {len(header)} bytes are not an idx header")
            if header[:4] != magic:
                raise ValueError(
                    f"{path}: starts with {header[:4].hex()}, not with {magic.hex()} as an idx "
                    f"file of unsigned bytes in {ndim} dimensions"
                )
            shape = tuple(np.frombuffer(header, ">u4", offset=4).tolist())
            size = math.prod(shape)
            check_size(path, size, path.stat().st_size)
            raw = stream.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    if len(raw) != size:
        follow = "more" if len(raw) > size else len(raw)
        raise ValueError(f"{path}: its header says {shape}, {size} bytes, but {follow} follow")
    return np.frombuffer(raw, np.uint8).reshape(shape)


CIFAR10_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
CIFAR100_FILES = ("train", "test", "meta")


def read_cifar(folder: Path, torchvision_name: str, kind: str = "") -> Decoded:
    """Read CIFAR-10 or CIFAR-100 as pickled for Python, with torchvision's list of checksums.

    CIFAR-100 has labels of two kinds, ``fine_`` and ``coarse_``.
    """
    published = torchvision_class(torchvision_name)
    meta = _unpickle(folder / published.meta["filename"], published.meta["md5"])
    classes = tuple(meta[f"{kind}label_names"])
    splits = []
    for listed in (published.train_list, published.test_list):
        parts = [_unpickle(folder / file, md5) for file, md5 in listed]
        planes = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([part[f"{kind}labels"] for part in parts])
        splits.append(_labelled(folder, planes.transpose(0, 2, 3, 1), labels, len(classes)))
    return Decoded(classes, *splits)


#: No published file is larger.
MOST_PUBLISHED = 1 << 30


def _unpickle(path: Path, md5: str) -> Any:
    return pickle.loads(_published(path, md5), encoding="latin1")


def _published(path: Path, md5: str) -> bytes:
    """The bytes of a file, if they are the published ones: what is opened is what was checked."""
    try:
        check_published(path)
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    given = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if given != md5:
        raise ValueError(
            f"{path}: not opened, since its MD5 checksum is {given} and the published file's "
            f"{md5}; delete it to have it downloaded again"
        )
    return raw


def check_published(path: Path) -> None:
    """Refuse a file that is too large to be what was published."""
    if path.stat().st_size > MOST_PUBLISHED:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes are more than were published")


def torchvision_class(name: str) -> Any:
    """A data set class of torchvision, imported only here: digits and .npz must do without it."""
    try:
        import torchvision.datasets
    except (ImportError, RuntimeError, AttributeError, OSError) as error:  # built for another torch
        raise ImportError(f"torchvision cannot be imported, reinstall it ({error})") from error
    return getattr(torchvision.datasets, name)


SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")


def read_svhn(folder: Path) -> Decoded:
    """Read the cropped house numbers: MATLAB files of X (32, 32, 3, N) and y (N, 1), 10 for 0."""
    from scipy.io import loadmat

    splits = []
    for which in ("train", "test"):
        _, file, md5 = torchvision_class("SVHN").split_list[which]
        # SciPy's parser is compiled, and a damaged file can bring the whole process down.
        content = loadmat(io.BytesIO(_published(folder / file, md5)), variable_names=("X", "y"))
        images = content["X"].transpose(3, 0, 1, 2)
        splits.append(_labelled(folder / file, images, content["y"] % 10, 10))
    return Decoded(tuple("0123456789"), *splits)


STL10_FILES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")
_STL10_CLASSES = (
    *("airplane", "bird", "car", "cat", "deer"),
    *("dog", "horse", "monkey", "ship", "truck"),
)


def read_stl10(folder: Path) -> Decoded:
    """Read STL-10's labelled images: bare bytes, 3 planes of 96 columns each, labels from 1."""
    splits = []
    for files in (STL10_FILES[:2], STL10_FILES[2:]):
        images_path, labels_path = (folder / file for file in files)
        try:
            for path in (images_path, labels_path):
                check_published(path)
            raw, labels = (np.fromfile(path, np.uint8) for path in (images_path, labels_path))
        except OSError as error:
            raise ValueError(f"{folder}: cannot be read ({error})") from error
        if len(raw) % (3 * 96 * 96):
            raise ValueError(f"{images_path}: {len(raw)} bytes are not whole images of 3×96×96")
        images = raw.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
        splits.append(_labelled(f"{labels_path}, less 1", images, labels.astype(int) - 1, 10))
    return Decoded(_STL10_CLASSES, *splits)
