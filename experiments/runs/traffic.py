"""What processes that share a batch send and hold, by formula; ``mcr2 bench processes`` checks it.

Of N processes each sends (N − 1)/N of what it gathers, and twice that of what it sums, as rings do.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mcr2.training import World


@dataclass(frozen=True)
class StepTraffic:
    """Bytes that one process sends in a training step.

    Attributes:
        features: m features of d numbers in float32, gathered.
        moments: second moments of K classes, K d² numbers in float64, summed in their place.
        reduced: whether moments travel, where the objective allows it: the fewer bytes.
        gradients: of the backbone in float32, summed.
        normalization: counts, means and squares of batch normalisation, and their gradients.
    """

    features: float
    moments: float
    reduced: bool
    gradients: float
    normalization: float

    def total(self, *, by_moments: bool) -> float:
        """Return the bytes in all, by moments if the objective knows them and they are fewer."""
        sent = self.moments if by_moments and self.reduced else self.features
        return sent + self.gradients + self.normalization


def step_traffic(
    *, samples: int, dim: int, num_classes: int, parameters: int, channels: int, processes: int
) -> StepTraffic:
    """Return what each of N processes sends in a step.

    Args:
        samples: m, of the whole batch.
        dim: d, of a feature.
        num_classes: K.
        parameters: of the backbone.
        channels: of all its batch normalisations together.
        processes: N.

    Example:
        >>> paper = {"dim": 128, "parameters": 11_497_664, "channels": 5_312}
        >>> sent = step_traffic(samples=1000, num_classes=10, processes=2, **paper)
        >>> [round(x / 1e6, 2) for x in (sent.features, sent.moments, sent.gradients)]
        [0.26, 1.31, 45.99]
    """
    share = (processes - 1) / processes
    return StepTraffic(
        features=share * 4 * samples * dim,
        moments=2 * share * 8 * num_classes * dim**2,
        reduced=World(0, processes).reducing_pays(samples, dim, num_classes),
        gradients=2 * share * 4 * parameters,
        # A row a process of counts, means and squares, summed forward and backward.
        normalization=2 * 2 * share * 4 * processes * 2 * channels,
    )


def sizes_of(backbone: nn.Module) -> dict[str, int]:
    """Return the parameters of a backbone and the channels of its batch normalisations."""
    norms = [norm for norm in backbone.modules() if isinstance(norm, _BatchNorm)]
    return {
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "channels": sum(norm.num_features for norm in norms),
    }
