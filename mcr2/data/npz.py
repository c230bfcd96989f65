"""A user's own data in an ``.npz`` file. Nothing in it is executed: pickled objects are refused."""

import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mcr2.data.splits import Array, Decoded


def read_npz(path: Path) -> Decoded:
    """Read an ``.npz`` file; ``load_dataset`` says what it holds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is malformed; the line names the file, the array and what is allowed.
    """
    arrays = read_arrays(
        path, ("x_train", "y_train", "x_test", "y_test"), ("y_train_clean", "classes")
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
        classes = _guess_classes(path, labels)

    return Decoded(
        images["x_train"],
        labels["y_train"],
        images["x_test"],
        labels["y_test"],
        classes,
        train_clean=labels.get("y_train_clean"),
    )


def read_arrays(path: Path, needed: Sequence[str], allowed: Sequence[str]) -> dict[str, Array]:
    """Read named arrays of an ``.npz`` file; others in it are not looked at.

    Args:
        path: the file.
        needed: arrays that it must hold.
        allowed: arrays that it may hold.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read, holds objects where numbers are wanted, or lacks an array;
            the line names the file and what is allowed.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} not found: name an existing .npz file")
    arrays: dict[str, Array] = {}
    try:
        with path.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise ValueError("not a zip archive, as .npz files are")
            stream.seek(0)
            file = np.load(stream, allow_pickle=False)
            for key in (*needed, *allowed):
                if key in file:
                    arrays[key] = _member(file, key)
    except _UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if missing := [key for key in needed if key not in arrays]:
        *most, final = allowed
        besides = f"{', '.join(most)} and {final}" if most else final
        raise ValueError(
            f"{path}: no array {', '.join(missing)}; needed are {', '.join(needed)}, and allowed "
            f"besides {besides}"
        )
    return arrays


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


def _guess_classes(path: Path, labels: dict[str, Array]) -> tuple[str, ...]:
    """Names of the classes 0 … K − 1, each of which has an image: 255 among ten is a mistake."""
    known = np.unique(np.concatenate([a for key, a in labels.items() if key != "y_test"]))
    for key, array in labels.items():
        if missing := sorted(set(range(int(array.max()) + 1)) - set(known.tolist())):
            raise ValueError(
                f"{path}: {key} goes up to {array.max()}, but no training image has label "
                f"{missing[0]}; without an array classes, labels run from 0 to K - 1 with no gap"
            )
    return tuple(str(k) for k in range(len(known)))


def _npz_classes(where: str, array: Array) -> tuple[str, ...]:
    if array.dtype.kind != "U" or array.ndim != 1 or len(array) < 2:
        raise ValueError(
            f"{where} has dtype {array.dtype} and shape {array.shape}; allowed are at least two "
            "strings in one dimension"
        )
    return tuple(array.tolist())
