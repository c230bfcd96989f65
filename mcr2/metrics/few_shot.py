"""Few-shot accuracy: new classes told apart from a handful of their features.

An episode draws some classes, of each a few samples to fit a classifier on (the support) and others
to classify (the queries). Its accuracy says what features that were learnt on other classes are
worth for these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.special import stdtrit
from torch import Tensor

from mcr2 import checks
from mcr2.checks import Array, Labels


class Classifier(Protocol):
    """What a fit returns: :class:`mcr2.readouts.Readout` is one."""

    def predict(self, features: Tensor) -> Tensor:
        """Return the class of each feature."""


@dataclass(frozen=True)
class FewShot:
    """The accuracies of episodes, their ``mean`` and the half-width of its 95 % t interval."""

    mean: float
    half_width: float
    accuracies: tuple[float, ...]


def few_shot(
    features: Array,
    labels: Labels,
    fit: Callable[..., Classifier],
    *,
    shots: int,
    ways: int = 5,
    queries: int = 15,
    episodes: int = 600,
    generator: torch.Generator,
) -> FewShot:
    """Measure the accuracy of classifiers fitted on a few samples of each of a few classes.

    Generators of the same seed draw the same episodes whatever the features and ``fit``, so that
    layers, methods and classifiers are compared on the same ones.

    Args:
        features: ``(N, d)``, floating.
        labels: ``(N,)``, integers; numbers of classes may be left out.
        fit: ``fit(features, labels, num_classes=...)`` of :mod:`mcr2.readouts`, such as
            ``fit_class_mean``, ``fit_ridge``, or ``partial(fit_readout, "nearest_subspace@1")``.
        shots: n, samples of a class to fit on.
        ways: classes of an episode.
        queries: samples of a class to classify.
        episodes: how many, 2 at least.
        generator: what draws them, on the CPU.

    Raises:
        TypeError, ValueError: as :func:`mcr2.checks.samples`; numbers that are too small; more ways
            than classes; a class with fewer samples than shots and queries.

    Reference: Snell, Swersky & Zemel, "Prototypical networks for few-shot learning", NeurIPS 2017,
    Section 2; Galanti, György & Hutter, "On the role of neural collapse in transfer learning", ICLR
    2022, Section 5.

    Example:
        >>> from mcr2.readouts import fit_class_mean
        >>> corners, y = torch.eye(6).repeat(20, 1), torch.arange(120) % 6
        >>> draws = torch.Generator().manual_seed(0)
        >>> found = few_shot(corners, y, fit_class_mean, shots=1, episodes=10, generator=draws)
        >>> found.mean, found.half_width
        (1.0, 0.0)
    """
    H, y = checks.samples(features, labels, int(checks.labels(labels).max()) + 1)
    checks.integer("episodes", episodes, 2)
    accuracies = []
    for support, query in draw_episodes(y, shots, ways, queries, episodes, generator):
        targets = torch.arange(ways, device=H.device).unsqueeze(1)
        own = targets.expand(ways, shots).flatten()
        classifier = fit(H[support.flatten()], own, num_classes=ways)
        right = classifier.predict(H[query.flatten()]).view(ways, queries) == targets
        accuracies.append(float(right.double().mean()))
    values = torch.tensor(accuracies, dtype=torch.float64)
    error = float(values.std()) / math.sqrt(episodes)
    half_width = float(stdtrit(episodes - 1, 0.975)) * error
    return FewShot(float(values.mean()), half_width, tuple(accuracies))


def draw_episodes(
    labels: Labels,
    shots: int,
    ways: int,
    queries: int,
    episodes: int,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the indices of each episode's support ``(ways, shots)`` and its queries.

    The queries are ``(ways, queries)``; row k of both is of the k-th of the classes drawn.

    Example:
        >>> draws = torch.Generator().manual_seed(0)
        >>> y = torch.tensor([7, 7, 7, 2, 2, 2])
        >>> (support, query), = draw_episodes(y, 1, 2, 2, 1, draws)
        >>> sorted(y[support].flatten().tolist()), query.shape
        ([2, 7], torch.Size([2, 2]))
    """
    y = checks.labels(labels)
    checks.integer("shots", shots, 1)
    checks.integer("queries", queries, 1)
    classes, counts = torch.unique(y, return_counts=True)
    checks.integer(f"ways of {len(classes)} classes", ways, 2, len(classes))
    if int(counts.min()) < shots + queries:
        raise ValueError(
            f"class {int(classes[counts.argmin()])} has {int(counts.min())} samples; {shots} shots "
            f"and {queries} queries need {shots + queries}"
        )
    members = [(y == k).nonzero().flatten() for k in classes]
    for _ in range(episodes):
        drawn = torch.randperm(len(members), generator=generator)[:ways].tolist()
        rows = []
        for k in drawn:
            order = torch.randperm(len(members[k]), generator=generator)[: shots + queries]
            rows.append(members[k][order.to(y.device)])
        chosen = torch.stack(rows)
        yield chosen[:, :shots], chosen[:, shots:]
