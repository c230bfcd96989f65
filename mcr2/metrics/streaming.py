"""Measures of features that arrive in batches, as metrics of torchmetrics.

Each is fed ``(features, labels)``, keeps second moments in float64 and not the features, and
computes what the function of all of them in memory does, up to rounding. Results are dicts of
float64 scalars, NaN where a measure is undefined. They add up over batches, processes
(``torch.distributed``) and :meth:`~torchmetrics.Metric.merge_state`, in any split and order.

    pip install 'mcr2-robustness[torchmetrics]'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mcr2 import checks
from mcr2.checks import Array, Labels
from mcr2.metrics.collapse import collapse_of_moments
from mcr2.metrics.moments import ClassMoments, unit
from mcr2.metrics.rank import rank_of_moments
from mcr2.rates import class_moments, rates_of_moments

try:
    from torchmetrics import Metric
except ImportError as error:  # pragma: no cover - an extra
    raise ImportError(
        "mcr2.metrics.streaming needs torchmetrics: pip install 'mcr2-robustness[torchmetrics]'"
    ) from error


class _Scalars(Metric):
    """What all of them are to torchmetrics."""

    is_differentiable = False
    full_state_update = False  # batches are merged: none is seen twice

    def _dict(self, measures: Mapping[str, float | None]) -> dict[str, Tensor]:
        return {
            name: torch.tensor(torch.nan if v is None else v, dtype=torch.float64).to(self.device)
            for name, v in measures.items()
        }


class _OfMoments(_Scalars):
    """Class moments as one state, since those of two sets are not merged one by one."""

    moments: Tensor

    def __init__(self, num_classes: int, dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.dim = num_classes, dim
        nothing = _pack(ClassMoments(num_classes, dim))
        merge = partial(_merge, num_classes=num_classes, dim=dim)
        self.add_state("moments", nothing, dist_reduce_fx=merge)

    def _seen(self) -> ClassMoments:
        return _unpack(self.moments, self.num_classes, self.dim)

    def _add(self, features: Array, labels: Labels) -> None:
        seen = self._seen()
        seen.update(features, labels)
        self.moments = _pack(seen)


class CollapseMetric(_OfMoments):
    """Neural collapse: :func:`mcr2.metrics.collapse.neural_collapse` without nc4.

    Args:
        num_classes: K, at least 2.
        dim: d.
        weight: W ``(K, d)`` of the measures of a classifier, which are left out without it. A
            layer's own weight is followed as it is trained.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        TypeError, ValueError: as for :func:`~mcr2.metrics.collapse.neural_collapse`.

    Example:
        >>> metric = CollapseMetric(num_classes=2, dim=2)
        >>> for sign in (-1.0, 1.0):
        ...     metric.update(torch.tensor([[1.0, sign], [-1.0, sign]]), torch.tensor([0, 1]))
        >>> round(metric.compute()["nc1_ratio"].item(), 4)
        1.0
    """

    def __init__(
        self, num_classes: int, dim: int, *, weight: Tensor | None = None, **kwargs: Any
    ) -> None:
        checks.classes(num_classes, 2)
        super().__init__(num_classes, dim, **kwargs)
        # Detached it shares the layer's memory, and is no parameter of the metric.
        shape = (num_classes, dim)
        self.weight = None if weight is None else checks.floating("weight", weight, *shape).detach()

    def update(self, features: Array, labels: Labels) -> None:
        """Add features ``(n, d)`` and labels ``(n,)``."""
        self._add(features, labels)

    def compute(self) -> dict[str, Tensor]:
        """Return the measures by the names of :class:`mcr2.metrics.collapse.NeuralCollapse`."""
        found = asdict(collapse_of_moments(self._seen(), weight=self.weight))
        of_classifier = [n for n in found if n.endswith("_w") or n.startswith("nc3")]
        left = ["nc4", "absent", *(of_classifier if self.weight is None else ())]
        return self._dict({name: v for name, v in found.items() if name not in left})


class RankMetric(_OfMoments):
    """Rank and dimension of all features: :func:`mcr2.metrics.rank.feature_rank`.

    Args:
        dim: d.
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = RankMetric(dim=3)
        >>> metric.update(torch.eye(3))
        >>> round(metric.compute()["participation_ratio"].item(), 4)
        2.0
    """

    def __init__(self, dim: int, **kwargs: Any) -> None:
        super().__init__(1, dim, **kwargs)

    def update(self, features: Array) -> None:
        """Add features ``(n, d)``."""
        self._add(features, torch.zeros(len(features), dtype=torch.int64))

    def compute(self) -> dict[str, Tensor]:
        """Return the measures by the names of :class:`mcr2.metrics.rank.FeatureRank`."""
        return self._dict(asdict(rank_of_moments(self._seen())))


class RateMetric(_Scalars):
    """Coding rates on unit-norm features: :func:`mcr2.metrics.coding.coding_measures`.

    A rate is a function of ``Σ z zᵀ``, over all samples or those of a class: ``(K, d, d)`` numbers
    are kept.

    Args:
        num_classes: K.
        dim: d.
        eps_sq: ε², the squared distortion.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        TypeError, ValueError: as for :func:`~mcr2.metrics.coding.coding_measures`.

    Example:
        >>> metric = RateMetric(num_classes=2, dim=2)
        >>> found = metric(torch.tensor([[3.0, 0.0], [0.0, 0.1]]), torch.tensor([0, 1]))
        >>> round(found["rate"].item(), 4), round(found["compressed_rate"].item(), 4)
        (1.0986, 0.8047)
    """

    counts: Tensor
    products: Tensor

    def __init__(self, num_classes: int, dim: int, *, eps_sq: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        K, d = checks.classes(num_classes), checks.integer("dim", dim, 1)
        self.eps_sq = checks.positive("eps_sq", eps_sq)
        self.add_state("counts", torch.zeros(K, dtype=torch.int64), dist_reduce_fx="sum")
        nothing = torch.zeros(K, d, d, dtype=torch.float64)
        self.add_state("products", nothing, dist_reduce_fx="sum")

    def update(self, features: Array, labels: Labels) -> None:
        """Add features ``(n, d)`` and labels ``(n,)``."""
        K, d, _ = self.products.shape
        H, y = checks.samples(features, labels, K)
        checks.floating("features", H, len(H), d, finite=False)
        H, y = H.to(self.products.device), y.to(self.products.device)
        Z = unit(H.to(torch.promote_types(H.dtype, torch.float32)))
        self.products += class_moments(Z, y, num_classes=K)
        self.counts += torch.bincount(y, minlength=K)

    def compute(self) -> dict[str, Tensor]:
        """Return ``rate``, ``compressed_rate``, ``reduction`` and ``class_rate_mean``, in nats."""
        if not bool(self.counts.any()):
            raise ValueError("the metric has seen no sample")
        _, found = rates_of_moments(self.products, self.counts, eps_sq=self.eps_sq)
        return {
            "rate": found.rate,
            "compressed_rate": found.compressed_rate,
            "reduction": found.reduction,
            "class_rate_mean": found.class_rates[self.counts > 0].mean(),
        }


def _pack(moments: ClassMoments) -> Tensor:
    """Return moments as one float64 vector; counts up to 2⁵³ are exact in it."""
    parts = (moments.counts, moments.squares, moments.means, moments.scatter)
    eps = moments.squares.new_tensor([moments.eps])
    return torch.cat([eps, *(part.flatten().double() for part in parts)])


def _unpack(state: Tensor, num_classes: int, dim: int) -> ClassMoments:
    """Return the moments of a vector, which stays as it is."""
    K, d = num_classes, dim
    eps, counts, squares, means, scatter = torch.split(state.clone(), [1, K, K, K * d, d * d])
    moments = ClassMoments(K, d, device=state.device)
    moments.eps, moments.counts, moments.squares = float(eps), counts.long(), squares
    moments.means, moments.scatter = means.view(K, d), scatter.view(d, d)
    return moments


def _merge(states: Tensor, num_classes: int, dim: int) -> Tensor:
    """Merge the moments of several processes or batches ``(n, length)``."""
    whole = ClassMoments(num_classes, dim, device=states.device)
    for state in states:
        whole.merge(_unpack(state, num_classes, dim))
    return _pack(whole)
