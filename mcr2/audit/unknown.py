"""How many labels are wrong, and as what: estimates, named by their method, and the truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class NoiseEstimate:
    """An estimate of the noise in labels.

    Args:
        method: ``"disagreement"``, ``"confident_joint"``, or ``"truth"``, which is none.
        wrong: how many labels are wrong.
        transition: float64 ``(K, K)``, [i, j] the share of class i that is labelled j; a class
            nothing is known of keeps its label.
    """

    method: str
    wrong: int
    transition: Tensor


def disagreement(labels: Tensor, suggested: Tensor, num_classes: int) -> NoiseEstimate:
    """Take suggested labels ``(N,)`` for the true ones.

    Every mistake of whoever suggests counts as a wrong label: where classes are hard to tell apart
    the number is too large.

    Example:
        >>> disagreement(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2).transition
        tensor([[0.5000, 0.5000],
                [0.0000, 1.0000]], dtype=torch.float64)
    """
    pairs = torch.bincount(suggested * num_classes + labels, minlength=num_classes**2)
    wrong = int((labels != suggested).sum())
    joint = pairs.view(num_classes, num_classes).double()
    return NoiseEstimate("disagreement", wrong, _by_rows(joint))


def realised(labels: Tensor, true: Tensor, num_classes: int) -> NoiseEstimate:
    """Return the noise as it is; a sample of true label -1, of no class, counts as wrong only."""
    known = true >= 0
    of_classes = disagreement(labels[known], true[known], num_classes)
    return NoiseEstimate("truth", int((labels != true).sum()), of_classes.transition)


def confident_joint(labels: Tensor, probabilities: Tensor) -> NoiseEstimate:
    """Count samples by given label and by the class that a classifier is confident of.

    Of probabilities p ``(N, K)`` by a classifier that did not see the sample, class j is confident
    where p_j is at least t_j, its mean over the samples labelled j; of several the largest counts.
    The counts of each given label are then scaled to its number of samples (Northcutt et al. 2021,
    "Confident Learning", eq. 1 to 3).

    Example:
        >>> P = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.8, 0.2], [0.1, 0.9]])
        >>> confident_joint(torch.tensor([0, 0, 1, 1]), P).wrong
        1
    """
    N, K = probabilities.shape
    P, counts = probabilities.double(), torch.bincount(labels, minlength=K).double()
    own = P.gather(1, labels.unsqueeze(1)).squeeze(1)
    thresholds = P.new_zeros(K).index_add_(0, labels, own) / counts.clamp(min=1)
    confident = (thresholds <= P) & (counts > 0)
    some, best = confident.any(1), torch.where(confident, P, -1.0).argmax(1)
    pairs = torch.bincount(labels[some] * K + best[some], minlength=K**2).view(K, K).double()
    # A label without a confident sample is taken as right.
    pairs += torch.diag((pairs.sum(1) == 0).double())
    joint = pairs / pairs.sum(1, keepdim=True) * counts.unsqueeze(1)
    wrong = N - float(joint.diagonal().sum())
    return NoiseEstimate("confident_joint", round(wrong), _by_rows(joint.T.contiguous()))


def transition_error(estimated: Tensor, realised: Tensor) -> float:
    """Return the mean over classes of the total variation, ``½ Σ_j |T_ij - T'_ij|``.

    Example:
        >>> transition_error(torch.eye(2), torch.tensor([[0.9, 0.1], [0.0, 1.0]]))
        0.05...
    """
    return float(
        (estimated.double() - realised.to(estimated.device).double()).abs().sum(1).mean() / 2
    )


def _by_rows(joint: Tensor) -> Tensor:
    """Scale rows to sum to 1; an empty one becomes that of the identity."""
    joint = joint + torch.diag((joint.sum(1) == 0).double())
    return joint / joint.sum(1, keepdim=True)
