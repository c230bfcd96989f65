"""How wrong labels look: :data:`SCORES`, by name; large is suspicious.

Most compare classes: with s_k(h), how well class k fits a sample, the score of a sample labelled y
is the margin by which its label loses,

    max_{j≠y} s_j(h) - s_y(h),

positive where another class fits better, which is then the suggested label. A class without a
sample is never suggested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from mcr2.audit.moments import SecondMoments, second_moments
from mcr2.audit.ridge import out_of_fold, probabilities
from mcr2.audit.streams import Stream
from mcr2.metrics.moments import unit
from mcr2.readouts import fit_knn

#: Neighbours that vote in ``knn``.
NEIGHBOURS = 10


class Scored(NamedTuple):
    """Scores, float64 ``(N,)``, large where a label looks wrong, and suggested labels ``(N,)``."""

    scores: Tensor
    suggested: Tensor


@dataclass(frozen=True, eq=False)
class Given:
    """What scores may look at; all of it was checked.

    Args:
        stream, labels, num_classes: features, their labels ``(N,)`` and K.
        head: a linear classifier W ``(K, d)``, b ``(K,)`` of the features, or None.
        epochs: class scores ``(N, K)`` of the samples along a training, or none.
        eps_sq, iterations, seed: of the coding length, and of the folds.
    """

    stream: Stream
    labels: Tensor
    num_classes: int
    head: tuple[Tensor, Tensor] | None
    epochs: Sequence[Tensor]
    eps_sq: float
    iterations: int
    seed: int

    @cached_property
    def moments(self) -> SecondMoments:
        """Second moments of the classes as labelled."""
        return second_moments(self.stream, self.labels, self.num_classes)

    @cached_property
    def out_of_fold(self) -> Tensor:
        """Cross-validated ridge scores ``(N, K)``."""
        return out_of_fold(self.stream, self.labels, self.num_classes, seed=self.seed)

    @cached_property
    def probabilities(self) -> Tensor:
        """Cross-validated class probabilities ``(N, K)``."""
        return probabilities(self.out_of_fold)

    def empty(self) -> Scored:
        """Return room for scores, and the labels as they are."""
        scores = torch.empty(len(self.labels), dtype=torch.float64, device=self.labels.device)
        return Scored(scores, self.labels.clone())


def margin(fits: Tensor, y: Tensor) -> Scored:
    """Return by how much labels ``(n,)`` lose, and the best classes, from fits ``(n, K)``.

    Of equals the label is kept.

    Example:
        >>> margin(torch.tensor([[3.0, 1.0], [3.0, 1.0], [2.0, 2.0]]), torch.tensor([0, 1, 1]))
        Scored(scores=tensor([-2.,  2.,  0.], dtype=torch.float64), suggested=tensor([0, 0, 1]))
    """
    fits, own = fits.double(), y.unsqueeze(1)
    others, best = fits.scatter(1, own, -torch.inf).max(1)
    scores = others - fits.gather(1, own).squeeze(1)
    return Scored(scores, torch.where(scores > 0, best, y))


def coding_length(given: Given) -> Scored:
    """Score by the nats that a sample adds to the code of its class, less the best other's.

    With unit-norm features z, ``G_k = Σ z zᵀ`` over class k and ``c = d/(n_k ε²)``,

        ℓ_k(z) = n_k ½ log(1 + c zᵀ (I + c G_k)⁻¹ z)

    is by how much ``n_k ½ logdet(I + c G_k)``, the length of the code of class k (Ma et al. 2007),
    grows by one more sample, n_k and c held; s_k = -ℓ_k. Each iteration is one pass over the
    features; from the second on, classes are of the samples whose label the last one kept.
    """
    moments, found = given.moments, given.empty()
    for left in reversed(range(given.iterations)):
        lengths = _lengths(moments, given.eps_sq, given.stream.dtype)
        kept = SecondMoments(given.num_classes, given.stream.dim, given.stream.device)
        for rows, H in given.stream:
            Z, y = unit(H), given.labels[rows]
            found.scores[rows], found.suggested[rows] = margin(-lengths(Z), y)
            if left:
                agrees = found.suggested[rows] == y
                kept.update(Z[agrees], y[agrees])
        kept.fill_empty(moments)
        moments = kept
    return found


def _lengths(
    moments: SecondMoments, eps_sq: float, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """Return what computes ℓ_k of unit-norm features ``(n, d)``, infinite for an empty class.

    (I + c G)⁻¹ = WᵀW with W the inverse of a Cholesky factor, so that the form is a sum of squares,
    and float32 keeps its digits; I + c G has a condition below 1 + d/ε².
    """
    present = moments.counts.nonzero().flatten().tolist()
    d = moments.grams.shape[1]
    eye = torch.eye(d, dtype=torch.float64, device=moments.grams.device)
    roots = {}
    for k in present:
        c = d / (float(moments.counts[k]) * eps_sq)
        factor = torch.linalg.cholesky(eye + c * moments.grams[k])
        W = torch.linalg.solve_triangular(factor, eye, upper=False)
        roots[k] = (c**0.5 * W).to(dtype)

    def lengths(Z: Tensor) -> Tensor:
        found = Z.new_full((len(Z), len(moments.counts)), torch.inf)
        for k, W in roots.items():
            found[:, k] = (Z @ W.T).square().sum(1).log1p() * (float(moments.counts[k]) / 2)
        return found

    return lengths


def subspace(given: Given) -> Scored:
    """Score by minus ``(u_yᵀz)²``, u_k the leading eigenvector of G_k; suggest the best aligned.

    The measure of FINE (Kim et al., "FINE Samples for Learning with Noisy Labels", NeurIPS 2021,
    section 3), without the mixture that it fits to each class.
    """
    grams = given.moments.grams
    leading = torch.linalg.eigh(grams)[1][:, :, -1].to(given.stream.dtype)
    absent = given.moments.counts == 0
    found = given.empty()
    for rows, H in given.stream:
        y = given.labels[rows]
        aligned = (unit(H) @ leading.T).square().masked_fill(absent, -torch.inf)
        found.scores[rows] = -aligned.gather(1, y.unsqueeze(1)).squeeze(1).double()
        found.suggested[rows] = margin(aligned, y).suggested
    return found


def own_head_margin(given: Given) -> Scored:
    """Score by the margin of the linear classifier that comes with the features."""
    assert given.head is not None
    weight, bias = given.head
    found = given.empty()
    for rows, H in given.stream:
        logits = torch.addmm(bias, H.double(), weight.T)
        found.scores[rows], found.suggested[rows] = margin(logits, given.labels[rows])
    return found


def aum(given: Given) -> Scored:
    """Score by minus the mean margin over the epochs of a training.

    The area under the margin (Pleiss et al., "Identifying Mislabeled Data using the Area Under the
    Margin Ranking", NeurIPS 2020, eq. 2); suggested is the class of the largest mean score.
    """
    own = torch.stack([margin(scores, given.labels).scores for scores in given.epochs])
    total = torch.stack([scores.double() for scores in given.epochs]).mean(0)
    return Scored(own.mean(0), margin(total, given.labels).suggested)


def knn(given: Given) -> Scored:
    """Score by the votes of the :data:`NEIGHBOURS` nearest other samples, by cosine."""
    H = given.stream.whole()
    k = min(NEIGHBOURS, len(H) - 1)
    fitted = fit_knn(H, given.labels, num_classes=given.num_classes, k=k)
    return margin(fitted.scores(H, leave_one_out=True), given.labels)


def ridge_cv(given: Given) -> Scored:
    """Score by ridge regressions on one-hot labels, each fitted on the other folds.

    Out-of-fold scores are what confident learning asks for (Northcutt et al., "Confident Learning:
    Estimating Uncertainty in Dataset Labels", JAIR 2021).
    """
    return margin(given.out_of_fold, given.labels)


def ensemble(given: Given) -> Scored:
    """Score by the mean rank, from 0 to 1, over all other scores that can be had.

    Suggested is the label with most votes; of equals that of ``coding_length``, which comes first.
    """
    found = [SCORES[name](given) for name in available(given) if name != "ensemble"]
    N = len(given.labels)
    ranks = torch.stack([_ranks(each.scores) for each in found]).mean(0) / max(N - 1, 1)
    votes = ranks.new_zeros(N, given.num_classes)
    for each, weight in zip(found, [1.5] + [1.0] * len(found), strict=False):
        votes[torch.arange(N, device=votes.device), each.suggested] += weight
    return Scored(ranks, votes.argmax(1))


def _ranks(scores: Tensor) -> Tensor:
    """Return ranks from 0, equals sharing their mean."""
    from scipy.stats import rankdata

    return torch.from_numpy(rankdata(scores.cpu().numpy()) - 1).to(scores.device)


#: Scores by name. A new one is a function of what is :class:`Given`, and its line here.
SCORES: dict[str, Callable[[Given], Scored]] = {
    "coding_length": coding_length,
    "subspace": subspace,
    "own_head_margin": own_head_margin,
    "aum": aum,
    "knn": knn,
    "ridge_cv": ridge_cv,
    "ensemble": ensemble,
}


def available(given: Given) -> tuple[str, ...]:
    """Return the scores that can be had: without a head or a training, not those of it."""
    lacking = {"own_head_margin": given.head is None, "aum": not given.epochs}
    return tuple(name for name in SCORES if not lacking.get(name))
