"""Label noise: which training labels are redrawn, and as what.

Kinds that choose uniformly redraw the same labels for one seed and differ in what they become, and
what is redrawn at ratio 0.1 is redrawn, as the same class, at 0.2. A new kind is one class (see
``Noise``) and its line in ``NOISES``.
"""

import hashlib
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mcr2 import checks
from mcr2.checks import Labels

IntArray = npt.NDArray[np.int64]


class _Split(Protocol):  # mcr2.data.Split is one, and so is Given
    @property
    def images(self) -> Tensor | None: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def clean_labels(self) -> Tensor | None: ...


class Given(NamedTuple):
    """What a kind of noise may look at: images (N, C, H, W), if any, and int64 labels (N,)."""

    images: Tensor | None
    labels: Tensor
    clean_labels: Tensor | None
    num_classes: int

    @property
    def best(self) -> IntArray:
        """The true labels where they are known, otherwise those given."""
        return (self.labels if self.clean_labels is None else self.clean_labels).numpy()


@dataclass(frozen=True, eq=False, repr=False)
class Corruption:
    """Labels after noise, and everything needed to say what the noise did. Tensors on the CPU.

    Args:
        labels: (N,) int64, the labels to train on.
        indices: (n,) int64, the samples redrawn, in the order in which they were drawn.
        truth: (N,) int64, the true labels, or None where they are unknown.
        wrong: (N,) bool, where ``labels`` differs from ``truth``, whoever got it wrong; or None.
        transition: (K, K) float64: [i, j] is the share of class i (the true one where known,
            otherwise the one given) that is now labelled j; an empty class keeps its label.
        hash: SHA-256 of ``labels`` as little-endian int64, in hexadecimal.
        noise, seed: as applied.
    """

    labels: Tensor
    indices: Tensor
    truth: Tensor | None
    wrong: Tensor | None
    transition: Tensor
    hash: str
    noise: "Noise"
    seed: int

    def __repr__(self) -> str:
        wrong = "an unknown number" if self.wrong is None else int(self.wrong.sum())
        counts = f"of {len(self.labels)} labels {len(self.indices)} redrawn, {wrong} wrong"
        return f"Corruption({self.noise}, seed={self.seed}: {counts})"


@dataclass(frozen=True)
class Noise:
    """A frozen description of a corruption; each kind is a subclass, named in ``NOISES``.

    A kind returns from ``_redraw`` the new labels of the samples ``indices`` and, where not every
    sample is equally likely, from ``_choose`` which ones those are. Both draw sample after sample,
    so that fewer draws are a prefix of more: that nests the corrupted sets of one seed. ``ratio``
    is the share redrawn; a kind written ``kind:ARGUMENT`` has one more field, a string.
    """

    ratio: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", checks.number("ratio", self.ratio, 0, 1))

    def apply(self, split: _Split, *, num_classes: int, seed: int) -> Corruption:
        """Redraw labels of a split of N ≥ 1 samples, which stays as it was.

        Labels lie in [0, K), K ≥ 2, the seed in [0, 2³²); no other generator is read or moved.
        """
        K = checks.integer("num_classes", num_classes, 2)
        seed = checks.integer("seed", seed, 0, 2**32 - 1)
        labels, truth = checks.labels(split.labels, K).cpu(), split.clean_labels
        if truth is not None:
            truth = checks.labels(truth, K, count=len(labels), name="clean_labels").cpu()
        given = Given(split.images, labels, truth, K)
        rs = np.random.RandomState(seed)  # its stream is frozen for all time
        indices = self._choose(rs, given)
        noisy = labels.numpy().copy()
        noisy[indices] = self._redraw(rs, given, indices)
        pairs = np.bincount(given.best * K + noisy, minlength=K**2)
        counts = torch.from_numpy(pairs).view(K, K).double()
        counts += torch.diag(1.0 * (counts.sum(dim=1) == 0))
        transition = counts / counts.sum(dim=1, keepdim=True)
        digest = hashlib.sha256(noisy.astype("<i8").tobytes()).hexdigest()
        after, redrawn = torch.from_numpy(noisy), torch.from_numpy(indices.astype(np.int64))
        wrong = None if truth is None else after != truth
        return Corruption(after, redrawn, truth, wrong, transition, digest, self, seed)

    def _choose(self, rs: np.random.RandomState, given: Given) -> IntArray:
        # The official code's call: the first entries of one full permutation, whatever their
        # number. Hence the same state afterwards, and nested sets.
        return rs.choice(len(given.labels), int(len(given.labels) * self.ratio), replace=False)

    def _redraw(self, rs: np.random.RandomState, given: Given, indices: IntArray) -> IntArray:
        raise NotImplementedError


class Symmetric(Noise):
    """Redrawn labels are uniform over all K classes: label by label as in the official MCR² code.

    Reference:
        Yu, Chan, You, Song & Ma, "Learning Diverse and Discriminative Representations via the
        Principle of Maximal Coding Rate Reduction", NeurIPS 2020, section 3.2 (the experiment).
    """

    def _redraw(self, rs: np.random.RandomState, given: Given, indices: IntArray) -> IntArray:
        return rs.choice(np.arange(given.num_classes), size=len(indices), replace=True)


class SymmetricExcludingTrue(Noise):
    """Redrawn labels are uniform over the K − 1 classes other than the true one: all are wrong.

    Where the truth is unknown the given class is excluded.
    """

    def _redraw(self, rs: np.random.RandomState, given: Given, indices: IntArray) -> IntArray:
        drawn = rs.choice(np.arange(given.num_classes - 1), size=len(indices), replace=True)
        return drawn + (drawn >= given.best[indices])  # steps over the true class


NOISES: dict[str, type[Noise]] = {
    "symmetric": Symmetric,
    "symmetric_excluding_true": SymmetricExcludingTrue,
}


def parse_noise(text: str, ratio: float) -> Noise:
    """Return the noise written ``kind``, a name in ``NOISES``, or ``kind:ARGUMENT``.

    Example:
        >>> parse_noise("symmetric", 0.2)
        Symmetric(ratio=0.2)
    """
    kind, colon, argument = text.partition(":")
    noise = NOISES[checks.choice("noise", kind, NOISES)]
    wanted = [field.name.upper() for field in fields(noise)[1:]]
    if bool(colon) != bool(wanted):
        raise ValueError(f"noise {text!r} must be written {':'.join([kind, *wanted])!r}")
    return noise(ratio, *[argument][: len(wanted)])


def corrupt(
    labels: Labels, ratio: float, *, num_classes: int, seed: int, kind: str = "symmetric"
) -> Corruption:
    """Redraw labels (N,) that are the true ones; see ``parse_noise`` and ``Noise.apply``.

    Example:
        >>> corrupt([0, 1, 2] * 100, 0.5, num_classes=3, seed=0)
        Corruption(Symmetric(ratio=0.5), seed=0: of 300 labels 150 redrawn, 100 wrong)
    """
    true = Given(None, y := checks.labels(labels), y, num_classes)
    return parse_noise(kind, ratio).apply(true, num_classes=num_classes, seed=seed)
