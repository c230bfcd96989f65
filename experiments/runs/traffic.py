"""What processes that share a batch send and hold, by formula; ``mcr2 bench processes`` checks it.

Of N processes each sends (N − 1)/N of what it gathers, and twice that of what it sums, as rings do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from mcr2.training import Encoder, World


@dataclass(frozen=True)
class StepTraffic:
    """Bytes that one process sends in a training step.

    Attributes:
        features: m features of d numbers in float32, gathered.
        moments: second moments of K classes, K d² numbers in float64, summed in their place.
        by_moments: whether moments travel: the objective knows them, and they are fewer bytes.
        gradients: of the backbone in float32, summed.
        normalization: counts, means and squares of batch normalisation, and their gradients.
    """

    features: float
    moments: float
    by_moments: bool
    gradients: float
    normalization: float

    @property
    def total(self) -> float:
        """The bytes in all."""
        sent = self.moments if self.by_moments else self.features
        return sent + self.gradients + self.normalization


def step_traffic(
    *,
    samples: int,
    dim: int,
    processes: int,
    num_classes: int,
    knows_moments: bool,
    parameters: int,
    channels: int,
) -> StepTraffic:
    """Return what each of N processes sends in a step.

    Args:
        samples: m, of the whole batch.
        dim: d, of a feature.
        processes: N.
        num_classes: K.
        knows_moments: whether the objective is a function of second moments.
        parameters: of the backbone.
        channels: of all its batch normalisations together.

    Example:
        >>> paper = {"dim": 128, "num_classes": 10, "knows_moments": True}
        >>> paper |= {"parameters": 11_497_664, "channels": 5_312}
        >>> sent = step_traffic(samples=1000, processes=2, **paper)
        >>> [round(x / 1e6, 2) for x in (sent.features, sent.moments, sent.gradients)]
        [0.26, 1.31, 45.99]
    """
    share = (processes - 1) / processes
    return StepTraffic(
        features=share * 4 * samples * dim,
        moments=2 * share * 8 * num_classes * dim**2,
        by_moments=knows_moments and World(0, processes).reducing_pays(samples, dim, num_classes),
        gradients=2 * share * 4 * parameters,
        # A row a process of counts, means and squares, summed forward and backward.
        normalization=2 * 2 * share * 4 * processes * 2 * channels,
    )


def sizes_of(encoder: Encoder) -> dict[str, Any]:
    """Return what :func:`step_traffic` has to know of a network and its objective."""
    backbone, objective = encoder.backbone, encoder.objective
    norms = [norm for norm in backbone.modules() if isinstance(norm, _BatchNorm)]
    return {
        "num_classes": objective.num_classes,
        "knows_moments": objective.knows_moments,
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "channels": sum(norm.num_features for norm in norms),
    }
