"""Coding rates as measures: R, R_c and ΔR, always on unit-norm features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mcr2.rates import rate_reduction


@dataclass(frozen=True)
class CodingMeasures:
    """Coding rates of a set of features and of its classes, in nats.

    Args:
        rate: R.
        compressed_rate: R_c.
        reduction: ΔR = R - R_c.
        class_rate_mean: mean of R_k over the classes that have samples.
        class_rates: R_k of each class; 0 for one without samples.
    """

    rate: float
    compressed_rate: float
    reduction: float
    class_rate_mean: float
    class_rates: tuple[float, ...]


def coding_measures(
    features: Tensor, labels: Tensor, *, num_classes: int, eps_sq: float = 0.5
) -> CodingMeasures:
    """Evaluate the rates (Yu et al. 2020, eq. 7 and 8) on features scaled to unit norm.

    Rates grow with the scale of features, so methods that do not normalise theirs would
    otherwise not compare. A zero feature stays zero.

    Args:
        features: ``(N, d)``, floating.
        labels: ``(N,)``, integers in 0 ... num_classes - 1.
        num_classes: K.
        eps_sq: ε², the squared distortion.

    Returns:
        :class:`CodingMeasures`.

    Raises:
        TypeError, ValueError: as :func:`mcr2.rates.rate_reduction`; features that are not a
            finite floating ``(N, d)``.

    Example:
        >>> measures = coding_measures(
        ...     torch.tensor([[3.0, 0.0], [0.0, 0.1]]), torch.tensor([0, 1]), num_classes=2
        ... )
        >>> round(measures.rate, 4), round(measures.compressed_rate, 4)
        (1.0986, 0.8047)
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        given = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"features must be a floating tensor; got {given}")
    if features.ndim != 2:
        raise ValueError(f"features must have shape (N, d); got {tuple(features.shape)}")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features must be finite; got NaN or infinity")
    Z = features.detach()
    Z = Z.to(torch.promote_types(Z.dtype, torch.float32))
    # By the largest entry first: the squares of a tiny or huge feature leave float32.
    largest = Z.abs().amax(dim=1, keepdim=True)
    Z = Z / torch.where(largest > 0, largest, torch.ones_like(largest))
    Z = torch.nn.functional.normalize(Z, dim=1)
    rates = rate_reduction(Z, labels, num_classes=num_classes, eps_sq=eps_sq)
    present = torch.bincount(labels.to(Z.device), minlength=num_classes) > 0
    return CodingMeasures(
        float(rates.rate),
        float(rates.compressed_rate),
        float(rates.reduction),
        float(rates.class_rates[present].mean()),
        tuple(rates.class_rates.tolist()),
    )
