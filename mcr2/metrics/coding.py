"""Coding rates as measures: R, R_c and ΔR, always on unit-norm features."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mcr2 import checks
from mcr2.checks import Array, Labels
from mcr2.metrics.moments import unit
from mcr2.rates import rate_reduction


@dataclass(frozen=True)
class CodingMeasures:
    """R, R_c, ΔR = R - R_c, the mean of R_k over the classes present, and all R_k, in nats."""

    rate: float
    compressed_rate: float
    reduction: float
    class_rate_mean: float
    class_rates: tuple[float, ...]


def coding_measures(
    features: Array, labels: Labels, *, num_classes: int, eps_sq: float = 0.5
) -> CodingMeasures:
    """Evaluate the rates (Yu et al. 2020, eq. 7 and 8) on features scaled to unit norm.

    Rates grow with the scale of features, so methods that do not normalise theirs would
    otherwise not compare. A zero feature stays zero.

    Args:
        features: ``(N, d)``, floating.
        labels: ``(N,)``, integers in 0 ... num_classes - 1.
        num_classes: K.
        eps_sq: ε², the squared distortion.

    Raises:
        TypeError, ValueError: as :func:`mcr2.checks.samples`; an ε² that is not positive.

    Example:
        >>> measures = coding_measures(
        ...     torch.tensor([[3.0, 0.0], [0.0, 0.1]]), [0, 1], num_classes=2
        ... )
        >>> round(measures.rate, 4), round(measures.compressed_rate, 4)
        (1.0986, 0.8047)
    """
    num_classes = checks.classes(num_classes)
    eps_sq = checks.positive("eps_sq", eps_sq)
    Z, y = checks.samples(features, labels, num_classes)
    Z = unit(Z.to(torch.promote_types(Z.dtype, torch.float32)))
    rates = rate_reduction(Z, y, num_classes=num_classes, eps_sq=eps_sq)
    present = torch.bincount(y, minlength=num_classes) > 0
    return CodingMeasures(
        float(rates.rate),
        float(rates.compressed_rate),
        float(rates.reduction),
        float(rates.class_rates[present].mean()),
        tuple(rates.class_rates.tolist()),
    )
