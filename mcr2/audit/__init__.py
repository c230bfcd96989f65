"""Which labels look wrong, and what they should be: :func:`audit`.

- :mod:`~mcr2.audit.scores`: how suspicious a label is, by seven scores;
- :mod:`~mcr2.audit.unknown`: how many labels are wrong, where nobody knows;
- :mod:`~mcr2.audit.known`: how well scores find wrong labels, where the truth is known;
- :mod:`~mcr2.audit.pixels`: features of images with nothing trained;
- :mod:`~mcr2.audit.streams`, :mod:`~mcr2.audit.moments`, :mod:`~mcr2.audit.ridge`: passes over
  more features than memory holds;
- :mod:`~mcr2.audit.with_cleanlab`: the cleanlab library beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcr2 import checks
from mcr2.audit.known import Quality, quality, quality_by_class
from mcr2.audit.pixels import pixel_features
from mcr2.audit.scores import SCORES, Given, Scored, available
from mcr2.audit.streams import Features, Stream
from mcr2.audit.unknown import NoiseEstimate, confident_joint, disagreement, transition_error
from mcr2.audit.with_cleanlab import CLEANLAB, installed
from mcr2.checks import Array, Labels

__all__ = [
    "SCORES",
    "Audit",
    "NoiseEstimate",
    "Quality",
    "audit",
    "audit_all",
    "audit_by",
    "estimates",
    "make_given",
    "pixel_features",
    "quality",
    "quality_by_class",
    "transition_error",
]


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit finds, sample by sample; tensors lie where the features did.

    Args:
        score: by which, a name of :data:`SCORES`.
        scores: float64 ``(N,)``, large where the label looks wrong.
        suggested: int64 ``(N,)``, the class that fits best: the given label where that does.
        labels: int64 ``(N,)``, as given.
        num_classes: K.
    """

    score: str
    scores: Tensor
    suggested: Tensor
    labels: Tensor
    num_classes: int

    @property
    def ranking(self) -> Tensor:
        """Indices ``(N,)`` of the samples, the most suspicious first; equals in their order."""
        return self.scores.sort(descending=True, stable=True).indices

    @property
    def label_score(self) -> Tensor:
        """The same order in cleanlab's direction: ``1/(1 + exp(score))``, small where suspicious.

        Of ``coding_length``, whose scores are nats, it is the probability of the given label
        against its best rival; below a half another label fits better.
        """
        return torch.sigmoid(-self.scores)

    @property
    def is_label_issue(self) -> Tensor:
        """Where another label than the given one is suggested, bool ``(N,)``."""
        return self.suggested != self.labels

    def estimate(self) -> NoiseEstimate:
        """Return how many labels are wrong, and as what, if all suggestions are right."""
        return disagreement(self.labels, self.suggested, self.num_classes)


def audit(
    features: Features,
    labels: Labels,
    *,
    num_classes: int | None = None,
    score: str = "coding_length",
    head: tuple[Array, Array | None] | None = None,
    epochs: Sequence[Array] = (),
    eps_sq: float = 0.5,
    iterations: int = 1,
    seed: int = 0,
) -> Audit:
    """Rank samples by how wrong their labels look, and suggest a label for each.

    ``coding_length``, ``subspace``, ``own_head_margin`` and ``ridge_cv`` pass over the features in
    chunks and hold a few d × d matrices, K of them for the first two, beside ``(N,)`` results
    (``ridge_cv`` beside ``(N, K)``); ``knn`` and ``ensemble`` need all features in memory.

    Args:
        features: ``(N, d)``, floating: a tensor, an array, also one that is mapped from a file, or
            an iterable of such in pieces that can be iterated over again.
        labels: ``(N,)``, integers from 0; two classes at least.
        num_classes: K; None takes the largest label plus one. Classes may be empty.
        score: a name of :data:`SCORES`.
        head: W ``(K, d)`` and b ``(K,)`` or None, which ``own_head_margin`` needs.
        epochs: class scores ``(N, K)`` at epochs of a training, which ``aum`` needs.
        eps_sq: ε² of the coding length.
        iterations: of the coding length: passes over the features after the first, each with
            classes of the samples whose label the one before kept. More than one helps where
            classes are told apart well, and hurts where they are not.
        seed: of the folds of ``ridge_cv``.

    Raises:
        TypeError, ValueError: features or labels that are not such, not finite, or of another
            number; one class only; a score that is unknown or lacks what it needs.

    Example:
        >>> H = torch.eye(2).repeat(20, 1) + 0.1 * torch.randn(40, 2)
        >>> y = torch.arange(40) % 2
        >>> y[7] = 0
        >>> found = audit(H, y)
        >>> int(found.ranking[0]), int(found.suggested[7])
        (7, 1)
    """
    checks.choice("score", score, SCORES)
    given = make_given(features, labels, num_classes, head, epochs, eps_sq, iterations, seed)
    if score not in available(given):
        needs = "a head" if score == "own_head_margin" else "class scores at epochs"
        raise ValueError(f"score {score!r} needs {needs}; there is none")
    return audit_by(given, score)


def audit_by(given: Given, score: str) -> Audit:
    """Return an audit by one score, of what :func:`make_given` checked."""
    found: Scored = SCORES[score](given)
    return Audit(score, found.scores, found.suggested, given.labels, given.num_classes)


def audit_all(given: Given) -> dict[str, Audit]:
    """Return an audit by every score that can be had, by name.

    Where the cleanlab library is installed, its scores of the probabilities of ``ridge_cv`` stand
    among them, their sign turned.
    """
    found = {name: audit_by(given, name) for name in available(given)}
    for name, ask in CLEANLAB.items() if installed() else ():
        issues = ask(given.labels, given.probabilities)
        scored = (-issues.label_score, issues.predicted_label)
        found[name] = Audit(name, *scored, given.labels, given.num_classes)
    return found


def estimates(given: Given, found: Audit) -> tuple[NoiseEstimate, NoiseEstimate]:
    """Return estimates of the noise by an audit's suggestions and by the confident joint."""
    return found.estimate(), confident_joint(given.labels, given.probabilities)


def make_given(
    features: Features,
    labels: Labels,
    num_classes: int | None = None,
    head: tuple[Array, Array | None] | None = None,
    epochs: Sequence[Array] = (),
    eps_sq: float = 0.5,
    iterations: int = 1,
    seed: int = 0,
) -> Given:
    """Check the arguments of :func:`audit`."""
    y = checks.labels(labels, num_classes)
    K = int(y.max()) + 1 if num_classes is None else checks.integer("num_classes", num_classes, 2)
    if int(y.min()) == int(y.max()):
        raise ValueError(f"all {len(y)} labels are {int(y[0])}; an audit compares two classes")
    stream = Stream(features, len(y))

    def exact(name: str, value: Array, *shape: int) -> Tensor:
        return checks.floating(name, value, *shape).detach().to(stream.device, torch.float64)

    classifier = None
    if head is not None:
        weight = exact("the head's weight", head[0], K, stream.dim)
        bias = weight.new_zeros(K) if head[1] is None else exact("the head's bias", head[1], K)
        classifier = (weight, bias)
    return Given(
        stream=stream,
        labels=y.to(stream.device),
        num_classes=K,
        head=classifier,
        epochs=[exact("class scores at an epoch", scores, len(y), K) for scores in epochs],
        eps_sq=checks.positive("eps_sq", eps_sq),
        iterations=checks.integer("iterations", iterations, 1),
        seed=checks.integer("seed", seed, 0, 2**32 - 1),
    )
