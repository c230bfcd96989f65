"""Ridge regression on one-hot labels, cross-validated in two passes over the features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mcr2.audit.streams import Stream
from mcr2.readouts import RIDGE

#: Folds of the cross-validation.
FOLDS = 5


def folds_of(y: Tensor, seed: int) -> Tensor:
    """Deal samples into folds ``(N,)``, each class as evenly as can be, in random order."""
    order = np.random.RandomState(seed).permutation(len(y))
    order = order[np.argsort(y.cpu().numpy()[order], kind="stable")]
    folds = np.empty(len(y), np.int64)
    folds[order] = np.arange(len(y)) % min(FOLDS, len(y))
    return torch.from_numpy(folds).to(y.device)


def out_of_fold(stream: Stream, y: Tensor, num_classes: int, *, seed: int) -> Tensor:
    """Return scores ``(N, K)`` of each sample by a ridge regression on the other folds.

    The regression is that of :func:`mcr2.readouts.fit_ridge`, in float64; its moments are sums over
    samples, so that those of a training set are those of all samples less those of a fold. A class
    that has no sample in the other folds scores 0. A row sums to 1.
    """
    folds = folds_of(y, seed)
    F, K, d = int(folds.max()) + 1, num_classes, stream.dim
    grams = torch.zeros(F, d, d, dtype=torch.float64, device=stream.device)
    sums = grams.new_zeros(F * K, d)
    shift = next(iter(stream))[1].double().mean(0)  # so that little cancels against the mean
    for rows, H in stream:
        X, f = H.double() - shift, folds[rows]
        sums.index_add_(0, f * K + y[rows], X)
        for fold in range(F):
            own = X[f == fold]
            grams[fold] += own.T @ own
    sums = sums.view(F, K, d)
    counts = torch.bincount(folds * K + y, minlength=F * K).view(F, K).double()
    fits = [
        _fit(*(part.sum(0) - part[fold] for part in (counts, sums, grams))) for fold in range(F)
    ]
    weights, biases = (torch.stack(parts) for parts in zip(*fits, strict=True))
    scores = grams.new_empty(len(y), K)
    for rows, H in stream:
        X, f = H.double() - shift, folds[rows]
        for fold in range(F):
            scores[rows][f == fold] = X[f == fold] @ weights[fold].T + biases[fold]
    return scores


def _fit(counts: Tensor, sums: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return W ``(K, d)`` and b ``(K,)`` from n_k, the classes' sums and Σ h hᵀ."""
    n = counts.sum()
    mean, share = sums.sum(0) / n, counts / n
    covariance = gram / n - torch.outer(mean, mean)
    penalty = RIDGE * covariance.trace() / len(mean)
    penalty = torch.where(penalty > 0, penalty, torch.ones_like(penalty))
    covariance.diagonal().add_(penalty)
    weight = torch.linalg.solve(covariance, (sums / n - torch.outer(share, mean)).T).T
    return weight, share - weight @ mean


def probabilities(scores: Tensor) -> Tensor:
    """Return class probabilities ``(N, K)`` from ridge scores, whose rows sum to 1.

    Least squares on one-hot labels estimates ``P(label = k | h)``; what it has below 0 is set to 0,
    and rows are scaled to sum to 1 again.
    """
    positive = scores.clamp(min=0)
    return positive / positive.sum(1, keepdim=True)
