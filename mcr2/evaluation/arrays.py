"""Features from anywhere, in an ``.npz`` file. Nothing in it is executed: pickles are refused."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from mcr2 import checks
from mcr2.evaluation.features import Labelled
from mcr2.files import read_arrays

NEEDED = ("features", "labels")
ALLOWED = ("clean_labels", "weight", "bias", "test_features", "test_labels")

#: True labels may be none of the classes.
LEAST = {"labels": 0, "clean_labels": -1, "test_labels": 0}

#: What may not come without another.
NEEDS = {"test_features": "test_labels", "test_labels": "test_features", "bias": "weight"}

#: Without a classifier, a file may be of so many classes, or of as many as it has samples: larger
#: labels are codes of something else.
MOST_CLASSES = 1000


class Arrays(NamedTuple):
    """What a file holds, as :func:`~mcr2.evaluation.features.evaluate_features` takes it."""

    train: Labelled
    test: Labelled | None
    head: tuple[Tensor, Tensor | None] | None
    num_classes: int


def read_features(
    path: str | Path, *, num_classes: int | None = None, mapped: bool = False
) -> Arrays:
    """Read features, labels and a linear classifier from an ``.npz`` file.

    Args:
        path: the file: ``features (N, d)``, floating, and ``labels (N,)``, integers from 0; also,
            where there are such, ``clean_labels (N,)``, −1 for none of the classes, a classifier's
            ``weight (K, d)`` and ``bias (K,)``, and ``test_features (M, d)`` with
            ``test_labels (M,)``.
        num_classes: K; None takes the number of rows of ``weight``, without one the largest label
            plus one. Classes may be absent.
        mapped: map the training features from the file where they are stored uncompressed, so that
            they need not fit into memory.

    Raises:
        FileNotFoundError: no such file.
        TypeError, ValueError: an array is missing or malformed, labels are out of range, or classes
            fewer than two or too many; named are the file, the array and what is allowed.

    Example:
        >>> import tempfile, numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/x.npz", features=np.eye(4), labels=np.array([0, 0, 1, 1]))
        ...     read_features(f"{folder}/x.npz").num_classes
        2
    """
    arrays = read_arrays(Path(path), NEEDED, ALLOWED, ("features",) if mapped else ())
    for one, other in NEEDS.items():
        if one in arrays and other not in arrays:
            raise ValueError(f"{path}: {one} without {other}")

    def floating(name: str, *shape: int | str) -> Tensor:
        label = f"{path}: {name}"
        return checks.moderate(label, checks.floating(label, arrays[name], *shape))

    H, T, head = floating("features", "N", "d"), None, None
    (N, d), why = H.shape, "the largest label plus one"
    counts = {"labels": N, "clean_labels": N}
    if "test_features" in arrays:
        T = floating("test_features", "M", d)
        counts["test_labels"] = len(T)
    given = {
        name: checks.labels(arrays[name], count=count, name=f"{path}: {name}", least=LEAST[name])
        for name, count in counts.items()
        if name in arrays
    }
    K, most = max(int(y.max()) for y in given.values()) + 1, max(N, MOST_CLASSES)
    if "weight" in arrays:
        K, why = len(floating("weight", "K", d)), "the rows of weight"
    if num_classes is not None:
        K, why = num_classes, "the number of classes given"
    if K < 2 or (most < K and "weight" not in arrays):
        allowed = f"at least 2, and without a weight at most {most}"
        raise ValueError(f"{path}: {why} makes {K} classes; there must be {allowed}")
    for name, y in given.items():
        checks.labels(y, K, name=f"{path}: {name}", least=LEAST[name])
    if "weight" in arrays:
        head = (floating("weight", K, d), floating("bias", K) if "bias" in arrays else None)
    test = None if T is None else Labelled(T, given["test_labels"])
    return Arrays(Labelled(H, given["labels"], given.get("clean_labels")), test, head, K)
