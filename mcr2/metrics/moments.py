"""Class counts, means and second moments, in memory or in one pass over batches.

:func:`first_moments` reads features that are in memory. :class:`ClassMoments` takes them batch by
batch, merges with others of its kind, and holds all that measures of second order need:
:func:`mcr2.metrics.collapse.collapse_of_moments` (everything but NC4, which asks of every sample
what it is predicted as) and the ``..._of_moments`` functions of :mod:`mcr2.metrics.rank`.

All sums are kept in float64. (MPS has no float64; its features are brought to the CPU.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

#: Samples are read in pieces of about this many numbers, so that a piece and its float64 copies
#: stay in a processor's cache, but of at least so many rows, so that products run at full speed.
_PIECE, _ROWS = 1 << 17, 256


class FirstMoments(NamedTuple):
    """What :func:`first_moments` returns, for N samples of K classes in d dimensions.

    Attributes:
        counts: n_k, int64 ``(K,)``.
        means: μ_k, float64 ``(K, d)``; zero for an absent class.
        energy: mean ‖h‖² over all samples.
    """

    counts: Tensor
    means: Tensor
    energy: float


def first_moments(features: Tensor, labels: Tensor, *, num_classes: int) -> FirstMoments:
    """Count the classes and average their samples, in float64 whatever the features' precision.

    Args:
        features: ``(N, d)``, floating.
        labels: ``(N,)``, integers in 0 ... num_classes - 1.
        num_classes: K.

    Returns:
        :class:`FirstMoments`.

    Raises:
        TypeError: features that are not floating, or labels that are not integers.
        ValueError: shapes that do not fit, labels out of range, features that are not finite.

    Example:
        >>> H = torch.tensor([[0.0, 2.0], [2.0, 2.0], [5.0, 1.0]])
        >>> first_moments(H, torch.tensor([0, 0, 1]), num_classes=2).means
        tensor([[1., 2.],
                [5., 1.]], dtype=torch.float64)
    """
    H, y, _ = check_samples(features, labels, num_classes)
    return average(H, y, num_classes)


def average(H: Tensor, y: Tensor, num_classes: int) -> FirstMoments:
    """Return :func:`first_moments` of samples that :func:`check_samples` has let pass."""
    counts = torch.bincount(y, minlength=num_classes)
    means = torch.zeros(num_classes, H.shape[1], dtype=torch.float64, device=H.device)
    energy = torch.zeros((), dtype=torch.float64, device=H.device)
    for part, classes in pieces(H, y):
        exact = part.double().contiguous()
        means.index_add_(0, classes, exact)
        energy += torch.dot(exact.view(-1), exact.view(-1))
    means /= counts.clamp(min=1).unsqueeze(1)
    return FirstMoments(counts, means, float(energy) / len(H))


class ClassMoments:
    """Class counts, means and second moments of samples that arrive in batches.

    Kept are n_k, μ_k, ``Σ_i ‖h_i - μ_k‖²`` of each class, and the scatter
    ``Σ_i (h_i - μ_{y_i})(h_i - μ_{y_i})ᵀ``. Each class is its own shift: a batch, or another
    accumulator, is added by the update for pairs of sets of Chan, Golub & LeVeque (1983, eq. 2.1),
    ``S = S_a + S_b + n_a n_b/(n_a + n_b) δδᵀ`` with δ the difference of their means. A second
    moment about one fixed shift would have to subtract the spread of the class means, which for
    a collapsed network is all but everything.

    Batches are summed in float64, and any split of the samples into batches and accumulators
    gives the same moments up to its rounding.

    Args:
        num_classes: K.
        dim: d.
        per_class: keep the scatter of each class, K·d² numbers, instead of their sum, d²; needed
            for the rank of classes.
        device: where the moments are kept; batches are moved there.

    Attributes:
        counts: n_k, int64 ``(K,)``.
        means: μ_k, float64 ``(K, d)``; zero for an absent class.
        squares: ``Σ_i ‖h_i - μ_k‖²``, float64 ``(K,)``.
        scatters: float64 ``(K, d, d)``, or ``(1, d, d)`` where classes are pooled.
        eps: the machine epsilon of the coarsest features seen, at least float32's for half
            precision; what lies below it is rounding.

    Example:
        >>> H, y = torch.randn(100, 3), torch.arange(100) % 2
        >>> whole, left, right = (ClassMoments(2, 3) for _ in range(3))
        >>> whole.update(H, y)
        >>> left.update(H[:30], y[:30]); right.update(H[30:], y[30:]); left.merge(right)
        >>> torch.allclose(whole.scatters, left.scatters), left.counts
        (True, tensor([50, 50]))
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        per_class: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        if num_classes < 1 or dim < 1:
            raise ValueError(
                f"moments need a class and a dimension; got num_classes={num_classes}, dim={dim}"
            )

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.counts = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.means = zeros(num_classes, dim)
        self.squares = zeros(num_classes)
        self.scatters = zeros(num_classes if per_class else 1, dim, dim)
        self.eps = 0.0

    @property
    def per_class(self) -> bool:
        """Whether the scatter of each class is kept."""
        return len(self.scatters) == len(self.counts)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            features: ``(n, d)``, floating.
            labels: ``(n,)``, integers in 0 ... K - 1.

        Raises:
            TypeError, ValueError: as :func:`first_moments`, or features of another width.
        """
        K, d = self.means.shape
        H, y, _ = check_samples(features, labels, K)
        if H.shape[1] != d:
            raise ValueError(f"features must have shape (n, {d}); got {tuple(H.shape)}")
        self.eps = max(self.eps, precision(H))
        exact, y = H.to(self.means.device, torch.float64), y.to(self.means.device)

        counts = torch.bincount(y, minlength=K)
        present = counts.nonzero().squeeze(1)
        added = counts[present].double()
        sums = torch.zeros_like(self.means).index_add_(0, y, exact)
        means = sums / counts.clamp(min=1).unsqueeze(1)
        deviations = exact - means.index_select(0, y)
        # One product for the batch and for the distance of its means from those so far.
        between, total = self._between(means, counts)
        rows = torch.cat([deviations, between[present]])
        classes = torch.cat([y, present])
        self.squares.index_add_(0, classes, rows.square().sum(1))
        if self.per_class:
            order = classes.argsort()
            runs = torch.split(rows[order], torch.bincount(classes, minlength=K).tolist())
            for scatter, run in zip(self.scatters, runs, strict=True):
                scatter.addmm_(run.T, run)
        else:
            self.scatters[0].addmm_(rows.T, rows)
        step = (means - self.means)[present]
        self.means[present] += step * (added / total[present]).unsqueeze(1)
        self.counts += counts

    def merge(self, other: ClassMoments) -> None:
        """Add the samples that another accumulator has seen; the other is left as it is.

        Raises:
            ValueError: accumulators of different shapes.
        """
        if other.means.shape != self.means.shape or other.scatters.shape != self.scatters.shape:
            raise ValueError(
                "only moments of the same shape merge; means are "
                f"{tuple(self.means.shape)} and {tuple(other.means.shape)}, scatters "
                f"{tuple(self.scatters.shape)} and {tuple(other.scatters.shape)}"
            )
        device = self.means.device
        counts, means = other.counts.to(device), other.means.to(device)
        between, total = self._between(means, counts)
        self.squares += other.squares.to(device) + between.square().sum(1)
        self.scatters += other.scatters.to(device)
        if self.per_class:
            self.scatters += between.unsqueeze(2) * between.unsqueeze(1)
        else:
            self.scatters[0].addmm_(between.T, between)
        self.means += (means - self.means) * (counts / total).unsqueeze(1)
        self.counts += counts
        self.eps = max(self.eps, other.eps)

    def _between(self, means: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return √(n_a n_b/(n_a + n_b)) δ of every class, and n_a + n_b, at least 1."""
        total = (self.counts + counts).clamp(min=1).double()
        factor = (self.counts * counts / total).sqrt()
        return factor.unsqueeze(1) * (means - self.means), total

    def about(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return squares and pooled scatter about one given point a class.

        ``Σ_i ‖h_i - a_k‖²`` ``(K,)`` and ``Σ_i (h_i - a_{y_i})(h_i - a_{y_i})ᵀ`` ``(d, d)``.

        Args:
            points: a_k, float64 ``(K, d)``; the class means give back what is kept.
        """
        offsets = (self.means - points) * self.counts.double().sqrt().unsqueeze(1)
        squares = self.squares + offsets.square().sum(1)
        return squares, self.scatters.sum(0).addmm_(offsets.T, offsets)

    def state(self) -> dict[str, Tensor]:
        """Return the moments as named tensors, to be sent or saved."""
        return {
            "counts": self.counts.clone(),
            "means": self.means.clone(),
            "squares": self.squares.clone(),
            "scatters": self.scatters.clone(),
            "eps": torch.tensor(self.eps, dtype=torch.float64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> ClassMoments:
        """Rebuild an accumulator from :meth:`state`.

        Raises:
            KeyError: a tensor is missing.
            ValueError: shapes that do not fit each other.
        """
        counts, means, squares, scatters = (
            state[name] for name in ("counts", "means", "squares", "scatters")
        )
        K, d = means.shape
        shapes = (tuple(counts.shape), tuple(squares.shape), tuple(scatters.shape[1:]))
        if shapes != ((K,), (K,), (d, d)) or len(scatters) not in (1, K):
            raise ValueError(
                f"with means {(K, d)}, counts and squares must be {(K,)} and scatters "
                f"(1, {d}, {d}) or {(K, d, d)}; got {tuple(counts.shape)}, "
                f"{tuple(squares.shape)}, {tuple(scatters.shape)}"
            )
        moments = cls(K, d, device=means.device)
        moments.counts, moments.means = counts.clone(), means.clone()
        moments.squares, moments.scatters = squares.clone(), scatters.clone()
        moments.eps = float(state["eps"])
        return moments


def check_samples(
    features: Tensor, labels: Tensor, num_classes: int
) -> tuple[Tensor, Tensor, float]:
    """Check features ``(N, d)`` and labels ``(N,)``.

    Returns:
        Features and labels, detached and on one device; the largest magnitude of an entry.

    Raises:
        TypeError: features that are not floating, labels that are not integers.
        ValueError: shapes that do not fit, labels out of range, features that are not finite.
    """
    H, largest = check_features(features)
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be an integer tensor; got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be an integer tensor; got {labels.dtype}")
    if labels.shape != H.shape[:1]:
        raise ValueError(f"labels must have shape ({len(H)},); got {tuple(labels.shape)}")
    y = labels.to(H.device, torch.int64)
    low, high = torch.stack(torch.aminmax(y)).tolist()
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels must be in 0 ... {num_classes - 1}; got {low} ... {high}")
    return H, y, largest


def check_features(features: Tensor) -> tuple[Tensor, float]:
    """Check features ``(N, d)``.

    Returns:
        Them, detached and on a device that has float64; the largest magnitude of an entry.

    Raises:
        TypeError: features that are not a floating tensor.
        ValueError: features that are not ``(N, d)``, empty, or not finite.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        given = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"features must be a floating tensor; got {given}")
    if features.ndim != 2 or min(features.shape) < 1:
        raise ValueError(
            f"features must have shape (N, d), N and d at least 1; got {tuple(features.shape)}"
        )
    H = features.detach()
    # The extremes are NaN where any entry is, and cost one read and no memory.
    low, high = torch.stack(torch.aminmax(H)).tolist()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("features must be finite; got NaN or infinity")
    return H.cpu() if H.device.type == "mps" else H, max(-low, high)


def check_finite(name: str, value: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """Check a floating tensor without NaN or infinity and return it detached, in float64.

    Args:
        name: what to call it in errors.
        value: the tensor.
        shape: the shape it must have, if any.

    Raises:
        TypeError: not a floating tensor.
        ValueError: another shape, or entries that are not finite.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        given = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating tensor; got {given}")
    if shape is not None and value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}; got {tuple(value.shape)}")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} must be finite; got NaN or infinity")
    value = value.detach()
    return (value.cpu() if value.device.type == "mps" else value).double()


def precision(features: Tensor) -> float:
    """Return the machine epsilon of features; half precision counts as float32."""
    return torch.finfo(torch.promote_types(features.dtype, torch.float32)).eps


def pieces(features: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut features ``(N, d)`` and labels ``(N,)`` into pieces of about a megabyte in float64."""
    rows = max(_ROWS, _PIECE // features.shape[1])
    yield from zip(torch.split(features, rows), torch.split(labels, rows), strict=True)
