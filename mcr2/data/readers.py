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
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mcr2 import checks
from mcr2.data.splits import Decoded, Split, as_split
from mcr2.files import Array, check_size, naming

DIGITS = tuple("0123456789")


def _labelled(where: object, images: Array, labels: Array, num_classes: int) -> Split:
    """A split of a named data set, whose labels are taken as clean, once they fit."""
    name = f"{where}: labels"
    y = checks.labels(np.ravel(labels), num_classes, count=len(images), name=name)
    return as_split(images, y, y)


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
    return Decoded(DIGITS, *splits)


IDX_FILES = (
    *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)


def read_idx_folder(folder: Path, classes: str) -> Decoded:
    """Read a folder laid out like MNIST's, 28×28 images, each file as it is or as ``.gz``."""
    names, splits = tuple(classes.split(", ")), []
    for files in (IDX_FILES[:2], IDX_FILES[2:]):
        images_path, labels_path = (plain_or_gz(folder, file) or folder / file for file in files)
        images, labels = _read_idx(images_path, 3), _read_idx(labels_path, 1)
        if images.shape[1:] != (28, 28) or len(images) == 0:
            raise ValueError(f"{images_path}: images must be N×28×28, not {images.shape}")
        splits.append(_labelled(labels_path, images[..., None], labels, len(names)))
    return Decoded(names, *splits)


def plain_or_gz(folder: Path, file: str) -> Path | None:
    """The file, or the same with ``.gz``, or None where the folder has neither."""
    candidates = (folder / file, folder / f"{file}.gz")
    # os.path: a folder we may not enter is one that holds nothing, not an error.
    return next((path for path in candidates if os.path.isfile(path)), None)


def _read_idx(path: Path, ndim: int) -> Array:
    """LeCun's idx format: two zero bytes, 8 for unsigned bytes, ndim, big-endian sizes, data."""
    magic, length = bytes((0, 0, 8, ndim)), 4 + 4 * ndim
    with naming(path), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        header = stream.read(length)
        if header[:4] != magic or len(header) < length:
            raise ValueError(
                f"starts with {header.hex() or 'nothing'}, not with {magic.hex()} and {ndim} sizes "
                f"as an idx file of unsigned bytes in {ndim} dimensions"
            )
        shape = tuple(np.frombuffer(header, ">u4", offset=4).tolist())
        size = math.prod(shape)
        check_size(size, path.stat().st_size)
        raw = stream.read(size + 1)
        if len(raw) != size:
            follow = "more" if len(raw) > size else len(raw)
            raise ValueError(f"its header says {shape}, {size} bytes, but {follow} follow")
    return np.frombuffer(raw, np.uint8).reshape(shape)


CIFAR10_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
CIFAR100_FILES = ("train", "test", "meta")


def read_cifar(folder: Path, torchvision_name: str, kind: str = "") -> Decoded:
    """Read CIFAR-10 or CIFAR-100 as pickled for Python, with torchvision's list of checksums.

    CIFAR-100 has labels of two kinds, ``fine_`` and ``coarse_``.
    """

    def unpickled(file: str, md5: str) -> Any:
        return pickle.loads(_published(folder / file, md5), encoding="latin1")

    published = torchvision_class(torchvision_name)
    meta = unpickled(published.meta["filename"], published.meta["md5"])
    classes = tuple(meta[f"{kind}label_names"])
    splits = []
    for listed in (published.train_list, published.test_list):
        parts = [unpickled(file, md5) for file, md5 in listed]
        planes = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([part[f"{kind}labels"] for part in parts])
        splits.append(_labelled(folder, planes.transpose(0, 2, 3, 1), labels, len(classes)))
    return Decoded(classes, *splits)


#: No published file is larger, in bytes.
MOST_PUBLISHED = 1 << 30


def _bounded(path: Path) -> bytes:
    if path.stat().st_size > MOST_PUBLISHED:
        raise ValueError(f"{path.stat().st_size:,} bytes are more than were published")
    return path.read_bytes()


def _published(path: Path, md5: str) -> bytes:
    """The bytes of a file, if they are the published ones: what is opened is what was checked."""
    with naming(path):
        raw = _bounded(path)
        given = hashlib.md5(raw, usedforsecurity=False).hexdigest()
        if given != md5:
            raise ValueError(
                f"not opened, since its MD5 checksum is {given} and the published file's {md5}; "
                "delete it to have it downloaded again"
            )
    return raw


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
    return Decoded(DIGITS, *splits)


STL10_FILES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")
_STL10_CLASSES = "airplane, bird, car, cat, deer, dog, horse, monkey, ship, truck"


def read_stl10(folder: Path) -> Decoded:
    """Read STL-10's labelled images: bare bytes, 3 planes of 96 columns each, labels from 1."""
    splits = []
    for files in (STL10_FILES[:2], STL10_FILES[2:]):
        images_path, labels_path = (folder / file for file in files)
        with naming(images_path):
            raw = np.frombuffer(_bounded(images_path), np.uint8)
            images = raw.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
        with naming(labels_path):
            labels = np.frombuffer(_bounded(labels_path), np.uint8).astype(int) - 1
        splits.append(_labelled(f"{labels_path}, less 1", images, labels, 10))
    return Decoded(tuple(_STL10_CLASSES.split(", ")), *splits)


OMNIGLOT_FILES = ("images_background.zip", "images_evaluation.zip")

#: Omniglot's drawings have this side, are shrunk to that one, and those of the first so many
#: people are for training.
_OMNIGLOT_SIDE, _OMNIGLOT_SMALL, _OMNIGLOT_TRAIN = 105, 28, 14


def read_omniglot(folder: Path) -> Decoded:
    """Read Omniglot (Lake et al. 2015): 1,623 characters of 50 alphabets, drawn by 20 people each.

    Drawings are shrunk from 105×105 to 28×28 by averaging areas, ink bright. The first 14 people's
    are for training. Classes are sorted by name, those of the background set first.
    """
    published = torchvision_class("Omniglot").zips_md5
    edges = np.linspace(0, _OMNIGLOT_SIDE, _OMNIGLOT_SMALL + 1)[:, None]
    pixels = np.arange(_OMNIGLOT_SIDE)
    shares = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    shares = shares.clip(min=0) * (_OMNIGLOT_SMALL / _OMNIGLOT_SIDE)  # each row sums to 1
    names: dict[str, int] = {}
    images: dict[bool, list[Array]] = {True: [], False: []}
    labels: dict[bool, list[int]] = {True: [], False: []}
    for file in OMNIGLOT_FILES:
        raw = _published(folder / file, published[file.removesuffix(".zip")])
        with naming(folder / file), zipfile.ZipFile(io.BytesIO(raw)) as archive:
            for member in sorted(archive.namelist()):
                path = PurePosixPath(member)
                if path.suffix == ".png" and path.parts[0] == file.removesuffix(".zip"):
                    train = int(path.stem.rpartition("_")[2]) <= _OMNIGLOT_TRAIN
                    ink = shares @ _ink(archive.read(member)) @ shares.T
                    images[train].append(np.rint(255 * ink).astype(np.uint8))
                    name = "/".join(path.parts[1:-1])
                    labels[train].append(names.setdefault(name, len(names)))
    splits = [
        _labelled(folder, np.stack(images[train])[..., None], np.array(labels[train]), len(names))
        for train in (True, False)
    ]
    return Decoded(tuple(names), *splits)


def _ink(png: bytes) -> Array:
    """Return where a black and white drawing is black."""
    from PIL import Image

    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        ink: Array = np.asarray(image.convert("L")) == 0
    return ink
