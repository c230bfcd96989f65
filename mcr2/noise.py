"""Label noise: which training labels are redrawn, and as what.

Labels only, never images. Every kind of noise in ``KINDS`` redraws the same ``int(N·ratio)`` labels
for one seed and differs in what they become, so that kinds can be compared sample by sample. The
corrupted sets of one seed are nested: what is wrong at ratio 0.1 is wrong, in the same way, at 0.2.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["KINDS", "Corruption", "Kind", "corrupt", "symmetric_transition"]

IntArray = npt.NDArray[np.int64]


class Kind(NamedTuple):
    """A kind of noise: how labels are redrawn, and where that leads on average.

    Args:
        redraw: ``(rs, given, num_classes) -> labels``, new labels for the given ones (both (n,)).
            It must draw sample after sample from ``rs``, so that fewer draws are a prefix of more:
            that is what nests the corrupted sets.
        expected: ``num_classes -> (K, K)`` row-stochastic matrix of a redrawn label's distribution.
    """

    redraw: Callable[[np.random.RandomState, IntArray, int], IntArray]
    expected: Callable[[int], Tensor]


def _redraw_any(rs: np.random.RandomState, given: IntArray, num_classes: int) -> IntArray:
    return rs.choice(np.arange(num_classes), size=len(given), replace=True)


def _expect_any(num_classes: int) -> Tensor:
    return torch.full((num_classes, num_classes), 1 / num_classes, dtype=torch.float64)


def _redraw_other(rs: np.random.RandomState, given: IntArray, num_classes: int) -> IntArray:
    drawn = rs.choice(np.arange(num_classes - 1), size=len(given), replace=True)
    return drawn + (drawn >= given)  # steps over the given class


def _expect_other(num_classes: int) -> Tensor:
    others = 1 - torch.eye(num_classes, dtype=torch.float64)
    return others / (num_classes - 1)


KINDS: dict[str, Kind] = {
    "symmetric": Kind(_redraw_any, _expect_any),
    "symmetric_excluding_true": Kind(_redraw_other, _expect_other),
}


@dataclass(frozen=True, eq=False)
class Corruption:
    """Labels after noise, and everything needed to say what the noise did. Tensors on the CPU.

    Args:
        labels: (N,) int64, the labels to train on.
        indices: (int(N·ratio),) int64, the samples redrawn, in the order in which they were drawn.
        wrong: (N,) bool, where ``labels`` differs from what was given. Redrawing may hit the given
            class, so with ``symmetric`` noise fewer are wrong than were redrawn.
        transition: (K, K) float64, realised: [i, j] is the share of the samples given as class i
            that are now labelled j. The row of a class without samples is that of the identity.
        hash: SHA-256 of ``labels`` as little-endian int64, in hexadecimal.
        ratio: as asked for.
        num_classes: K.
        seed: as asked for.
        kind: as asked for.
    """

    labels: Tensor
    indices: Tensor
    wrong: Tensor
    transition: Tensor
    hash: str
    ratio: float
    num_classes: int
    seed: int
    kind: str


def corrupt(
    labels: Tensor | npt.NDArray[Any] | Sequence[int],
    ratio: float,
    *,
    num_classes: int,
    seed: int,
    kind: str = "symmetric",
) -> Corruption:
    """Redraw ``int(N·ratio)`` labels.

    The samples are chosen without replacement, each equally likely. Their labels become

    - ``symmetric``: uniform over all K classes, the given one included. Label by label these are
      the corrupted sets of the official MCR² code for the same seed, class count and labels;
    - ``symmetric_excluding_true``: uniform over the K − 1 other classes.

    Draws come from a generator of their own; the global ones are neither read nor moved.

    Args:
        labels: (N,) integers in [0, K), N ≥ 1: a tensor, an array or a sequence.
        ratio: share of labels to redraw, in [0, 1].
        num_classes: K ≥ 2.
        seed: in [0, 2³²).
        kind: a name in ``KINDS``.

    Returns:
        A ``Corruption``. What was passed in stays as it was.

    Raises:
        TypeError: labels, class count or seed are no integers, or the ratio is no number.
        ValueError: one of them is out of range, or the kind unknown.

    Reference:
        Yu, Chan, You, Song & Ma, "Learning Diverse and Discriminative Representations via the
        Principle of Maximal Coding Rate Reduction", NeurIPS 2020, section 3.2 (the experiment).

    Example:
        >>> noise = corrupt([0, 1, 2] * 100, 0.5, num_classes=3, seed=0)
        >>> len(noise.indices), int(noise.wrong.sum()) < 150
        (150, True)
        >>> milder = corrupt([0, 1, 2] * 100, 0.2, num_classes=3, seed=0)
        >>> bool(noise.wrong[milder.wrong].all())
        True
    """
    ratio, num_classes = _check_ratio(ratio), _check_integer("num_classes", num_classes, 2)
    redraw = _check_kind(kind).redraw
    seed = _check_integer("seed", seed, 0)
    given = _check_labels(labels, num_classes)

    # The official code's order of calls on NumPy's legacy generator, whose stream is frozen for all
    # time. Without replacement it takes the first entries of one full permutation, whatever their
    # number: hence the same state afterwards, and nested sets.
    rs = np.random.RandomState(seed)
    count = int(len(given) * ratio)
    indices = rs.choice(np.arange(len(given)), size=count, replace=False)
    noisy = given.copy()
    noisy[indices] = redraw(rs, given[indices], num_classes)

    pairs = np.bincount(given * num_classes + noisy, minlength=num_classes**2)
    counts = torch.from_numpy(pairs.reshape(num_classes, num_classes)).double()
    absent = counts.sum(dim=1) == 0
    counts[absent, absent] = 1
    return Corruption(
        labels=torch.from_numpy(noisy),
        indices=torch.from_numpy(indices.astype(np.int64)),
        wrong=torch.from_numpy(noisy != given),
        transition=counts / counts.sum(dim=1, keepdim=True),
        hash=hashlib.sha256(noisy.astype("<i8").tobytes()).hexdigest(),
        ratio=ratio,
        num_classes=num_classes,
        seed=seed,
        kind=kind,
    )


def symmetric_transition(ratio: float, num_classes: int, kind: str = "symmetric") -> Tensor:
    """Expected transition matrix of a kind of noise.

        T = (1 − ratio) I + ratio Q

    with Q = 11ᵀ/K for ``symmetric`` and Q = (11ᵀ − I)/(K − 1) for ``symmetric_excluding_true``.

    Args:
        ratio: share of labels redrawn, in [0, 1].
        num_classes: K ≥ 2.
        kind: a name in ``KINDS``.

    Returns:
        (K, K) float64, row-stochastic; [i, j] is the probability that class i is labelled j.

    Raises:
        TypeError: the ratio is no number or the class count no integer.
        ValueError: one of them is out of range, or the kind unknown.

    Example:
        >>> symmetric_transition(0.5, 2)
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]], dtype=torch.float64)
    """
    ratio, num_classes = _check_ratio(ratio), _check_integer("num_classes", num_classes, 2)
    kept = torch.eye(num_classes, dtype=torch.float64)
    return (1 - ratio) * kept + ratio * _check_kind(kind).expected(num_classes)


def _check_ratio(ratio: object) -> float:
    if isinstance(ratio, bool) or not isinstance(ratio, int | float | np.integer | np.floating):
        raise TypeError(f"ratio must be a number, not {type(ratio).__name__}")
    if not 0 <= float(ratio) <= 1:  # NaN fails every comparison
        raise ValueError(f"ratio must lie in [0, 1], not {ratio}")
    return float(ratio)


def _check_integer(name: str, value: object, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
    if not low <= value < 2**32:
        raise ValueError(f"{name} must lie in [{low}, 2**32), not {value}")
    return int(value)


def _check_kind(kind: str) -> Kind:
    if kind not in KINDS:
        raise ValueError(f"unknown kind of noise {kind!r}; allowed are {', '.join(KINDS)}")
    return KINDS[kind]


def _check_labels(labels: Tensor | npt.NDArray[Any] | Sequence[int], num_classes: int) -> IntArray:
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"labels must have shape (N,) with N >= 1, not {tuple(array.shape)}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, not {array.dtype}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= num_classes:
        bad = low if low < 0 else high
        raise ValueError(f"labels must lie in [0, {num_classes}), but one is {bad}")
    return array.astype(np.int64)
