"""Separation by depth: whether each layer shrinks the spread of classes by the same factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mcr2 import checks
from mcr2.checks import Array, Labels
from mcr2.metrics.collapse import neural_collapse


def separation_fuzziness(features: Array, labels: Labels, *, num_classes: int) -> float | None:
    """Return ``D = tr(Σ_W Σ_B⁺)`` of a layer's features: K times ``nc1``.

    Moments are those of :mod:`mcr2.metrics.collapse`: He & Su weigh class means by their class's
    size, which for balanced classes is the same. None where class means agree or fewer than two
    classes are present.

    Args:
        features: ``(N, d)``, floating; flatten those of a layer with more dimensions.
        labels: ``(N,)``, integers in 0 ... num_classes - 1.
        num_classes: at least 2.

    Raises:
        TypeError, ValueError: as :func:`mcr2.metrics.collapse.neural_collapse`.

    Reference: He & Su, "A law of data separation in deep learning", PNAS 2023, equation 1.

    Example:
        >>> import torch
        >>> H = torch.tensor([[0.0, 1.0], [0.0, -1.0], [2.0, 1.0], [2.0, -1.0]])
        >>> separation_fuzziness(H, [0, 0, 1, 1], num_classes=2)
        0.0
        >>> round(separation_fuzziness(H.flip(1) + H, [0, 0, 1, 1], num_classes=2), 4)
        1.0
    """
    found = neural_collapse(features, labels, num_classes=num_classes)
    return None if found.nc1 is None else found.nc1 * found.classes


@dataclass(frozen=True)
class Equiseparation:
    """The fit ``log D_l = log D_0 + l log ρ`` by least squares over layers.

    Args:
        rho: the factor ρ by which a layer multiplies D; below 1 where layers separate classes.
        initial: D_0 of the fit.
        r_squared: the share of the variance of log D that depth explains; None where log D is the
            same everywhere. 1 is the law of equiseparation.
    """

    rho: float
    initial: float
    r_squared: float | None


def equiseparation(
    fuzziness: Sequence[float], depths: Sequence[float] | None = None
) -> Equiseparation:
    """Fit the law of equiseparation, ``D_l = ρ^l D_0``, to the fuzziness of layers.

    ρ and R² are the same for any multiple of D, such as ``nc1``.

    Args:
        fuzziness: D of each layer, positive, of three layers at least: two fit any line.
        depths: l of each layer; 0, 1, 2, … by default.

    Raises:
        TypeError, ValueError: fewer than three layers; D not positive and finite; other depths than
            layers, or all the same.

    Reference: He & Su, "A law of data separation in deep learning", PNAS 2023, equation 2.

    Example:
        >>> law = equiseparation([8.0, 4.0, 2.0, 1.0])
        >>> round(law.rho, 6), round(law.initial, 6), round(law.r_squared, 6)
        (0.5, 8.0, 1.0)
    """
    D = np.array([checks.positive("fuzziness", value) for value in fuzziness])
    checks.integer("the number of layers", len(D), 3)
    given = range(len(D)) if depths is None else depths
    x = np.array([checks.number("depths", value) for value in given])
    if len(x) != len(D):
        raise ValueError(f"{len(x)} depths were given for {len(D)} layers")
    if x.min() == x.max():
        raise ValueError(f"all layers have depth {x[0]:g}; a fit needs different ones")
    logs = np.log(D)
    away, level = x - x.mean(), logs - logs.mean()
    slope = (away @ level) / (away @ away)
    # Logarithms that differ by their rounding alone do not vary.
    varies = np.abs(level).max() > 1e-12 * max(1.0, float(np.abs(logs).max()))
    residual = level - slope * away
    return Equiseparation(
        rho=float(np.exp(slope)),
        initial=float(np.exp(logs.mean() - slope * x.mean())),
        r_squared=float(1 - residual @ residual / (level @ level)) if varies else None,
    )
