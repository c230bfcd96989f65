"""Class counts, means and second moments, in memory or in one pass over batches.

:func:`first_moments` takes features that are in memory. :class:`ClassMoments` takes them batch by
batch and merges with others of its kind: :func:`mcr2.metrics.collapse.collapse_of_moments` needs
nothing else. All sums are float64. (MPS has no float64; its features are brought to the CPU.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mcr2 import checks
from mcr2.checks import Array, Labels

#: Samples are taken in pieces of about this many numbers, so that no float64 copy of all exists.
_PIECE = 1 << 17


class FirstMoments(NamedTuple):
    """Counts n_k, int64 ``(K,)``, means μ_k, float64 ``(K, d)``, and mean ‖h‖² of all samples.

    The mean of an absent class is zero.
    """

    counts: Tensor
    means: Tensor
    energy: float


def first_moments(features: Array, labels: Labels, *, num_classes: int) -> FirstMoments:
    """Count the classes and average their samples, in float64 whatever the features' precision.

    Features ``(N, d)`` and labels ``(N,)`` are checked as by :func:`mcr2.checks.samples`.

    Example:
        >>> H = torch.tensor([[0.0, 2.0], [2.0, 2.0], [5.0, 1.0]])
        >>> first_moments(H, [0, 0, 1], num_classes=2).means
        tensor([[1., 2.],
                [5., 1.]], dtype=torch.float64)
    """
    num_classes = checks.classes(num_classes)
    return average(*checks.samples(features, labels, num_classes), num_classes)


def average(H: Tensor, y: Tensor, num_classes: int) -> FirstMoments:
    """Return :func:`first_moments` of samples that were checked; there may be none."""
    counts = torch.bincount(y, minlength=num_classes)
    means = torch.zeros(num_classes, H.shape[1], dtype=torch.float64, device=H.device)
    energy = means.new_zeros(())
    for part, classes in pieces(H, y):
        part = part.double()
        means.index_add_(0, classes, part)
        energy += torch.dot(part.reshape(-1), part.reshape(-1))
    means /= counts.clamp(min=1).unsqueeze(1)
    return FirstMoments(counts, means, float(energy) / max(len(H), 1))


class ClassMoments:
    """Class counts, means and second moments of samples that arrive in batches.

    Each class is its own shift: a batch, or another accumulator, is added by the update for pairs
    of sets of Chan, Golub & LeVeque (1983, eq. 2.1), ``S = S_a + S_b + n_a n_b/(n_a + n_b) δδᵀ``
    with δ the difference of their means. A second moment about one fixed shift would have to
    subtract the spread of the class means, which for a collapsed network is all but everything.
    Any split of the samples into batches and accumulators gives the same moments up to rounding.

    Args:
        num_classes: K.
        dim: d.
        device: where the moments are kept; batches are moved there.

    Attributes:
        counts: n_k, int64 ``(K,)``.
        means: μ_k, float64 ``(K, d)``; zero for an absent class.
        squares: ``Σ_i ‖h_i - μ_k‖²``, float64 ``(K,)``.
        scatter: ``Σ_i (h_i - μ_{y_i})(h_i - μ_{y_i})ᵀ``, float64 ``(d, d)``.
        eps: the machine epsilon of the coarsest features seen, at least float32's for half
            precision; what lies below it is rounding.

    Example:
        >>> H, y = torch.randn(100, 3), torch.arange(100) % 2
        >>> whole, left, right = (ClassMoments(2, 3) for _ in range(3))
        >>> whole.update(H, y)
        >>> left.update(H[:30], y[:30]); right.update(H[30:], y[30:]); left.merge(right)
        >>> torch.allclose(whole.scatter, left.scatter), left.counts
        (True, tensor([50, 50]))
    """

    def __init__(self, num_classes: int, dim: int, *, device: torch.device | str = "cpu") -> None:
        K, d = checks.classes(num_classes), checks.integer("dim", dim, 1)
        self.counts = torch.zeros(K, dtype=torch.int64, device=device)
        self.means = torch.zeros(K, d, dtype=torch.float64, device=device)
        self.squares = self.means.new_zeros(K)
        self.scatter = self.means.new_zeros(d, d)
        self.eps = 0.0

    @property
    def energy(self) -> float:
        """Mean ‖h‖² over all samples."""
        total = self.squares.sum() + self.counts.double() @ self.means.square().sum(1)
        return float(total / self.counts.sum())

    def update(self, features: Array, labels: Labels) -> None:
        """Add a batch of features ``(n, d)`` and labels ``(n,)``, checked as for first moments."""
        K, d = self.means.shape
        H, y = checks.samples(features, labels, K)
        checks.floating("features", H, len(H), d, finite=False)
        self.eps = max(self.eps, precision(H))
        H, y = H.to(self.means.device, torch.float64), y.to(self.means.device)
        counts, means, _ = average(H, y, K)
        x = H - means.index_select(0, y)
        squares = torch.zeros_like(self.squares).index_add_(0, y, x.square().sum(1))
        self._add(counts, means, squares, x.T @ x)

    def merge(self, other: ClassMoments) -> None:
        """Add the samples that another accumulator, of as many classes and dimensions, has seen."""
        checks.floating("the other's means", other.means, *self.means.shape)
        self.eps, device = max(self.eps, other.eps), self.means.device
        tensors = (other.counts, other.means, other.squares, other.scatter)
        self._add(*(tensor.to(device) for tensor in tensors))

    def _add(self, counts: Tensor, means: Tensor, squares: Tensor, scatter: Tensor) -> None:
        """Add the moments of other samples."""
        total = (self.counts + counts).clamp(min=1).double()
        step = means - self.means
        between = (self.counts * counts / total).sqrt().unsqueeze(1) * step
        self.squares += squares + between.square().sum(1)
        self.scatter += scatter + between.T @ between
        self.means += step * (counts / total).unsqueeze(1)
        self.counts += counts


def precision(features: Tensor) -> float:
    """Return the machine epsilon of features; half precision counts as float32."""
    return torch.finfo(torch.promote_types(features.dtype, torch.float32)).eps


def exact(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, detached, on the CPU where its device has no float64."""
    tensor = tensor.detach()
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def unit(H: Tensor) -> Tensor:
    """Return features at unit norm; zero stays zero."""
    # By the largest entry first, or the squares of a tiny or huge feature leave their precision.
    largest = H.abs().amax(dim=1, keepdim=True)
    H = H / torch.where(largest > 0, largest, torch.ones_like(largest))
    return torch.nn.functional.normalize(H, dim=1)


def pieces(H: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut features ``(N, d)`` and labels ``(N,)`` into pieces."""
    rows = max(256, _PIECE // H.shape[1])
    yield from zip(torch.split(H, rows), torch.split(y, rows), strict=True)
