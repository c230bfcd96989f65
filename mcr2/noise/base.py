"""What a noise is (:class:`Noise`), what it looks at, and what it leaves (:class:`Corruption`)."""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mcr2 import checks

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
