"""Features from anywhere, in an ``.npz`` file. Nothing in it is executed: pickles are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mcr2.data.files import read_arrays
from mcr2.evaluation.features import Labelled

NEEDED = ("features", "labels")
ALLOWED = ("clean_labels", "weight", "bias", "test_features", "test_labels")


@dataclass(frozen=True, eq=False)
class Arrays:
    """What :func:`read_features` returns.

    Attributes:
        train: features and labels, perhaps with clean labels.
        test: the test samples, or None.
        head: the linear classifier (W, b or None), or None.
        num_classes: K.
    """

    train: Labelled
    test: Labelled | None
    head: tuple[Tensor, Tensor | None] | None
    num_classes: int


def read_features(path: str | Path, *, num_classes: int | None = None) -> Arrays:
    """Read features, labels and a linear classifier from an ``.npz`` file.

    Args:
        path: the file: ``features (N, d)``, floating, and ``labels (N,)``, integers from 0; also,
            where there are such, ``clean_labels (N,)``, a classifier's ``weight (K, d)`` and
            ``bias (K,)``, and ``test_features (M, d)`` with ``test_labels (M,)``.
        num_classes: K; None takes the number of rows of ``weight``, without one the largest label
            plus one.

    Returns:
        :class:`Arrays`, ready for :func:`~mcr2.evaluation.features.evaluate_features`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an array is missing or malformed, labels are out of range, there is one class
            only, or a class has fewer than two training samples; the line names the file, the
            array and what is allowed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/x.npz", features=np.eye(4), labels=np.array([0, 0, 1, 1]))
        ...     read_features(f"{folder}/x.npz").num_classes
        2
    """
    path = Path(path)
    arrays = read_arrays(path, NEEDED, ALLOWED)
    for one, other in (("test_features", "test_labels"), ("test_labels", "test_features")):
        if one in arrays and other not in arrays:
            raise ValueError(f"{path}: {one} without {other}; give both or neither")
    if "bias" in arrays and "weight" not in arrays:
        raise ValueError(f"{path}: a bias without a weight")

    def floats(name: str, *shape: int | str) -> Tensor:
        return _floats(f"{path}: {name}", arrays[name], shape)

    features = floats("features", "N", "d")
    d = features.shape[1]
    counts = {"labels": len(features), "clean_labels": len(features)}
    test_features = None
    if "test_features" in arrays:
        test_features = floats("test_features", "M", d)
        counts["test_labels"] = len(test_features)
    labels = {
        name: _labels(f"{path}: {name}", arrays[name], count)
        for name, count in counts.items()
        if name in arrays
    }
    most = max(int(y.max()) for y in labels.values()) + 1
    K, why = most, "the largest label plus one"
    if "weight" in arrays:
        K, why = floats("weight", "K", d).shape[0], "the rows of weight"
    if num_classes is not None:
        K, why = num_classes, "the number of classes given"
    if K < 2:
        raise ValueError(f"{path}: at least two classes are needed; {why} makes {K}")
    for name, y in labels.items():
        if int(y.max()) >= K:
            raise ValueError(f"{path}: {name} must be in 0 ... {K - 1} ({why}); got {int(y.max())}")
    present = torch.bincount(labels["labels"], minlength=K)
    if int(present.min()) < 2:
        k = int(present.argmin())
        held = "one sample" if present[k] == 1 else "no sample"
        raise ValueError(
            f"{path}: labels hold {held} of class {k} of {K}; every class needs at least two, or "
            "it has no variance to measure"
        )
    head = None
    if "weight" in arrays:
        head = (floats("weight", K, d), floats("bias", K) if "bias" in arrays else None)
    test = None
    if test_features is not None:
        test = Labelled(test_features, labels["test_labels"])
    return Arrays(Labelled(features, labels["labels"], labels.get("clean_labels")), test, head, K)


def _floats(where: str, array: npt.NDArray[np.generic], shape: tuple[int | str, ...]) -> Tensor:
    """Return a floating array as a tensor; a letter in ``shape`` stands for any length."""
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise ValueError(f"{where} has dtype {array.dtype}; allowed are float16, float32, float64")
    fits = array.ndim == len(shape) and 0 not in array.shape
    if not fits or any(
        isinstance(wanted, int) and wanted != n
        for wanted, n in zip(shape, array.shape, strict=True)
    ):
        wanted = ", ".join(map(str, shape)) + "," * (len(shape) == 1)
        raise ValueError(f"{where} has shape {array.shape}; allowed is ({wanted})")
    if not np.isfinite(array).all():
        raise ValueError(f"{where} must be finite; got NaN or infinity")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def _labels(where: str, array: npt.NDArray[np.generic], count: int) -> Tensor:
    """Return labels as int64, one for each of ``count`` samples."""
    if array.dtype.kind not in "iu":
        raise ValueError(f"{where} has dtype {array.dtype}; allowed are integers")
    if array.shape != (count,):
        raise ValueError(f"{where} has shape {array.shape}; allowed is ({count},), one a sample")
    low, high = int(array.min()), int(array.max())
    if low < 0:
        raise ValueError(f"{where} must not be negative; got {low}")
    # What bincount would count up to: labels that are codes of something else are no classes.
    if high >= 1 << 24:
        raise ValueError(f"{where} must be classes from 0 on; got {high}")
    return torch.from_numpy(array.astype(np.int64))
