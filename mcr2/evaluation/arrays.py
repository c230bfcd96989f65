"""Features from anywhere, in an ``.npz`` file. Nothing in it is executed: pickles are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mcr2 import checks
from mcr2.data.npz import read_arrays
from mcr2.evaluation.features import Labelled

NEEDED = ("features", "labels")
ALLOWED = ("clean_labels", "weight", "bias", "test_features", "test_labels")

#: So many classes are believed of any file without a classifier; more, only of as many samples.
#: Labels beyond are codes of something else, and K × d numbers of them would be spent for nothing.
ANY_CLASSES = 1000


@dataclass(frozen=True, eq=False)
class Arrays:
    """What a file holds: ``train``, ``test`` or None, the ``head`` (W, b or None) or None, and K.

    They are the arguments of :func:`~mcr2.evaluation.features.evaluate_features`.
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
            plus one. Classes may be absent.

    Raises:
        FileNotFoundError: no such file.
        TypeError, ValueError: an array is missing or malformed, labels are out of range, there
            are fewer than two classes, or without a weight more than there can be; the line
            names the file, the array and what is allowed.

    Example:
        >>> import tempfile, numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/x.npz", features=np.eye(4), labels=np.array([0, 0, 1, 1]))
        ...     read_features(f"{folder}/x.npz").num_classes
        2
    """
    arrays = read_arrays(Path(path), NEEDED, ALLOWED)
    for one, other in (("test_features", "test_labels"), ("test_labels", "test_features")):
        if one in arrays and other not in arrays:
            raise ValueError(f"{path}: {one} without {other}; give both or neither")
    if "bias" in arrays and "weight" not in arrays:
        raise ValueError(f"{path}: a bias without a weight")

    def floats(name: str, *shape: int | str) -> Tensor | None:
        given = arrays.get(name)
        return None if given is None else checks.floating(f"{path}: {name}", given, *shape)

    features = checks.floating(f"{path}: features", arrays["features"], "N", "d")
    N, d = features.shape
    test_features, weight = floats("test_features", "M", d), floats("weight", "K", d)
    counts = {"labels": N, "clean_labels": N, "test_labels": len(arrays.get("test_features", ()))}
    labels = {
        name: checks.labels(arrays[name], count=count, name=f"{path}: {name}")
        for name, count in counts.items()
        if name in arrays
    }
    most = max(int(y.max()) for y in labels.values()) + 1
    K, why = most, "the largest label plus one"
    if weight is not None:
        K, why = len(weight), "the rows of weight"
    if num_classes is not None:
        K, why = num_classes, "the number of classes given"
    if K < 2:
        raise ValueError(f"{path}: at least two classes are needed; {why} makes {K}")
    if weight is None and max(N, ANY_CLASSES) < K:
        raise ValueError(
            f"{path}: {why} makes {K} classes; with {N} samples and no weight there can be at "
            f"most {max(N, ANY_CLASSES)}"
        )
    for name, y in labels.items():
        checks.labels(y, K, name=f"{path}: {name}")
    if weight is not None and len(weight) != K:
        floats("weight", K, d)
    return Arrays(
        Labelled(features, labels["labels"], labels.get("clean_labels")),
        None if test_features is None else Labelled(test_features, labels["test_labels"]),
        None if weight is None else (weight, floats("bias", K)),
        K,
    )
