"""A user's own images and labels in an ``.npz`` file."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mcr2.checks import choice, labels
from mcr2.data.splits import Decoded, as_split
from mcr2.files import Array, naming, read_arrays

AXES = ("NCHW", "NHWC")
LABELS_ARE = ("clean", "noisy")


def read_npz(
    path: Path, axes: str | None = None, labels_are: str | None = None, *, tested: bool = True
) -> Decoded:
    """Read an ``.npz`` file; ``load_dataset`` says what it holds, and what the arguments mean.

    Where not ``tested``, test images may be missing.
    """
    test, allowed = ("x_test", "y_test"), ("y_train_clean", "classes", "axes", "labels_are")
    needed = ("x_train", "y_train")
    arrays = read_arrays(path, (*needed, *test * tested), (*test * (not tested), *allowed))
    with naming(path):
        if axes is None and "axes" in arrays:
            axes = choice("axes", str(arrays["axes"]), AXES)
        if labels_are is None and "labels_are" in arrays:
            labels_are = choice("labels_are", str(arrays["labels_are"]), LABELS_ARE)
        return _decoded(arrays, axes, labels_are)


def _decoded(arrays: dict[str, Array], axes: str | None, labels_are: str | None) -> Decoded:
    x_train = _images("x_train", arrays["x_train"], axes)
    has_test = "x_test" in arrays and "y_test" in arrays
    x_test = _images("x_test", arrays["x_test"], axes) if has_test else x_train[:0]
    if x_train.shape[1:] != x_test.shape[1:]:
        shapes = f"x_train has shape {arrays['x_train'].shape}, x_test {arrays['x_test'].shape}"
        raise ValueError(f"{shapes}; images must have one size")
    names = arrays.get("classes")
    if names is not None and (names.dtype.kind != "U" or names.ndim != 1 or len(names) < 2):
        raise ValueError(
            f"classes has dtype {names.dtype} and shape {names.shape}; allowed are at least two "
            "strings in one dimension"
        )
    K = None if names is None else len(names)

    def read(key: str, count: int, num_classes: int | None) -> Tensor:
        return labels(arrays[key], num_classes, count=count, name=key)

    y_train = read("y_train", len(x_train), K)
    clean = None if labels_are == "noisy" else y_train
    if "y_train_clean" in arrays:
        clean = read("y_train_clean", len(x_train), K)
        if labels_are == "clean" and not torch.equal(clean, y_train):
            raise ValueError("labels_are is 'clean', but y_train differs from y_train_clean")
    if names is None:
        names = _guess_classes(y_train if clean is None else torch.cat([y_train, clean]))
    y_test = read("y_test", len(x_test), len(names)) if has_test else y_train[:0]
    train, test = as_split(x_train, y_train, clean), as_split(x_test, y_test, y_test)
    return Decoded(tuple(map(str, names.tolist())), train, test)


def _images(key: str, array: Array, axes: str | None) -> Array:
    """Images as (N, H, W, C)."""
    if array.dtype != np.uint8:
        raise ValueError(f"{key} has dtype {array.dtype}; allowed is uint8 (0 to 255)")
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(
            f"{key} has shape {array.shape}; allowed are (N, C, H, W), (N, H, W, C), (N, H, W)"
        )
    if array.ndim == 3:
        return array[..., None]
    if axes is None:
        first, last = (array.shape[axis] in (1, 3) for axis in (1, 3))
        if first == last:
            raise ValueError(
                f"{key} has shape {array.shape}, which may be (N, C, H, W) or (N, H, W, C); say "
                "which by an array axes in the file, or by axes (--axes): NCHW or NHWC"
            )
        axes = "NCHW" if first else "NHWC"
    return array if axes == "NHWC" else array.transpose(0, 2, 3, 1)


def _guess_classes(given: Tensor) -> Array:
    """The classes 0 … K − 1, each of which has an image: 255 among ten is a mistake."""
    known = np.unique(given.numpy())
    gaps = np.flatnonzero(known != np.arange(len(known)))
    if len(gaps):
        raise ValueError(
            f"the training labels go up to {known[-1]}, but none is {gaps[0]}; without an array "
            "classes, labels run from 0 to K - 1 with no gap"
        )
    return known
