"""The second moments of classes, about the origin, in one pass over features."""

from __future__ import annotations

import torch
from torch import Tensor

from mcr2.audit.streams import Stream
from mcr2.metrics.moments import unit


class SecondMoments:
    """Counts n_k ``(K,)`` and ``G_k = Σ z zᵀ`` of unit-norm features of class k, ``(K, d, d)``.

    Sums are float64, products over a chunk are in the features' precision, at least float32. A
    zero feature stays zero.
    """

    def __init__(self, num_classes: int, dim: int, device: torch.device) -> None:
        self.counts = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.grams = torch.zeros(num_classes, dim, dim, dtype=torch.float64, device=device)

    def update(self, Z: Tensor, y: Tensor) -> None:
        """Add unit-norm features ``(n, d)`` of labels ``(n,)``."""
        counts = torch.bincount(y, minlength=len(self.counts))
        self.counts += counts
        by_class = torch.split(Z[y.argsort(stable=True)], counts.tolist())
        for k in counts.nonzero().flatten().tolist():
            self.grams[k] += by_class[k].T @ by_class[k]

    def fill_empty(self, other: SecondMoments) -> None:
        """Take from another what it knows of classes that are empty here."""
        empty = self.counts == 0
        self.counts[empty], self.grams[empty] = other.counts[empty], other.grams[empty]


def second_moments(stream: Stream, y: Tensor, num_classes: int) -> SecondMoments:
    """Return the second moments of all classes, in one pass."""
    moments = SecondMoments(num_classes, stream.dim, stream.device)
    for rows, H in stream:
        moments.update(unit(H), y[rows])
    return moments
