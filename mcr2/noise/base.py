"""What a noise is (:class:`Noise`), what it looks at, and what it leaves (:class:`Corruption`)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mcr2 import checks

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class Places(Protocol):
    """Where a split's samples stand in the whole training set, as ``mcr2.data.Places`` says."""

    @property
    def index(self) -> Tensor: ...  # noqa: D102
    @property
    def total(self) -> int: ...  # noqa: D102
    @property
    def files(self) -> Sequence[str] | None: ...  # noqa: D102


class _Split(Protocol):  # mcr2.data.Split is one, and so is Given
    @property
    def images(self) -> Tensor | None: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def clean_labels(self) -> Tensor | None: ...
    @property
    def places(self) -> Places | None: ...


class Given(NamedTuple):
    """What a kind of noise may look at.

    Images (N, C, H, W), if any; int64 labels (N,), the true ones, where known, with −1 for none of
    the classes; where the samples stand in the whole training set, if they are not all of it;
    images of other data (M, C', H', W'); the seed, for what is drawn apart from the rest.
    """

    images: Tensor | None
    labels: Tensor
    clean_labels: Tensor | None
    num_classes: int
    places: Places | None = None
    other: Tensor | None = None
    seed: int = 0

    @property
    def best(self) -> IntArray:
        """The true labels where there are such and they are known, otherwise those given."""
        if self.clean_labels is None:
            return self.labels.numpy()
        return torch.where(self.clean_labels < 0, self.labels, self.clean_labels).numpy()

    def pixels(self, noise: "Noise") -> Tensor:
        """The images, for a kind of noise that cannot do without."""
        if self.images is None:
            raise ValueError(f"{noise} looks at images; labels alone are not enough")
        return self.images


@dataclass(frozen=True, eq=False, repr=False)
class Corruption:
    """Labels after noise, and everything needed to say what the noise did. Tensors on the CPU.

    Args:
        labels: (N,) int64, the labels to train on.
        indices: (n,) int64, the samples redrawn, in the order in which they were drawn.
        truth: (N,) int64, the true labels, −1 for none of the classes; None where they are unknown.
        wrong: (N,) bool, where ``labels`` differs from ``truth``, whoever got it wrong; or None.
        transition: (K, K) float64: [i, j] is the share of class i (the true one where known,
            otherwise the one given) that is now labelled j, of the samples that have a true class;
            an empty class keeps its label.
        hash: SHA-256 of ``labels`` as little-endian int64, in hexadecimal.
        noise, seed: as applied.
        images: (N, C, H, W) uint8, where images were replaced; None where they stay.
    """

    labels: Tensor
    indices: Tensor
    truth: Tensor | None
    wrong: Tensor | None
    transition: Tensor
    hash: str
    noise: "Noise"
    seed: int
    images: Tensor | None = None

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
    is the share redrawn; a kind written ``kind:ARGUMENT`` has one more field, a string, which may
    be left out where it has a default.

    Attributes:
        uniform: whether it does the same to every class: nothing is then read class by class.
    """

    uniform: ClassVar[bool] = False

    ratio: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", checks.number("ratio", self.ratio, 0, 1))

    @property
    def ratios(self) -> tuple[float, ...] | None:
        """The ratios of a study where none are asked for; None leaves them to the study."""
        return None

    @property
    def file(self) -> str | None:
        """The file that it reads when it is applied, if any: its content is part of the noise."""
        return None

    @property
    def data(self) -> str | None:
        """The data set whose training images ``apply`` needs as ``other``, if any."""
        return None

    def apply(
        self, split: _Split, *, num_classes: int, seed: int, other: Tensor | None = None
    ) -> Corruption:
        """Redraw labels of a split of N ≥ 1 samples, which stays as it was.

        Labels lie in [0, K), K ≥ 2, the seed in [0, 2³²); no other generator is read or moved.
        True labels may be −1: none of the K classes, so that whatever is given is wrong. ``other``
        are uint8 images (M, C', H', W') of other data, for the kinds that have ``data``.
        """
        K = checks.integer("num_classes", num_classes, 2)
        seed = checks.integer("seed", seed, 0, 2**32 - 1)
        labels, truth = checks.labels(split.labels, K).cpu(), split.clean_labels
        if truth is not None:
            truth = checks.labels(truth, K, count=len(labels), name="clean_labels", least=-1).cpu()
        given = Given(split.images, labels, truth, K, split.places, other, seed)
        rs = np.random.RandomState(seed)  # its stream is frozen for all time
        noisy = self._start(given)
        indices = self._choose(rs, given)
        noisy[indices] = self._redraw(rs, given, indices)
        after, redrawn = torch.from_numpy(noisy), torch.from_numpy(indices.astype(np.int64))
        images = self._replace(rs, given, indices)
        if images is not None and truth is not None:
            truth = truth.index_fill(0, redrawn, -1)
        wrong = None if truth is None else after != truth
        best = labels if truth is None else truth
        pairs = np.bincount((best * K + after)[best >= 0].numpy(), minlength=K**2)
        counts = torch.from_numpy(pairs).view(K, K).double()
        counts += torch.diag(1.0 * (counts.sum(dim=1) == 0))
        transition = counts / counts.sum(dim=1, keepdim=True)
        digest = hashlib.sha256(noisy.astype("<i8").tobytes()).hexdigest()
        return Corruption(after, redrawn, truth, wrong, transition, digest, self, seed, images)

    def _start(self, given: Given) -> IntArray:
        """Return the labels (N,) of the samples that are not redrawn, to be written into."""
        return given.labels.numpy().copy()

    def _choose(self, rs: np.random.RandomState, given: Given) -> IntArray:
        # The official code's call: the first entries of one full permutation, whatever their
        # number. Hence the same state afterwards, and nested sets.
        return rs.choice(len(given.labels), int(len(given.labels) * self.ratio), replace=False)

    def _redraw(self, rs: np.random.RandomState, given: Given, indices: IntArray) -> IntArray:
        raise NotImplementedError

    def _replace(self, rs: np.random.RandomState, given: Given, indices: IntArray) -> Tensor | None:
        """Return all images where those at ``indices`` became others, of none of the classes."""
        return None
