"""Margins: by how much a linear classifier prefers a sample's label to every other class.

    q_i = w_yᵀh_i + b_y - max_{j≠y} (w_jᵀh_i + b_j)

is positive where the sample is classified as labelled. Divided by ``‖W‖_F · mean ‖h‖`` it no
longer changes when features, or W and b, are scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mcr2 import checks
from mcr2.checks import Array, Labels
from mcr2.metrics.moments import exact, pieces


@dataclass(frozen=True)
class Margins:
    """The margins q of a set of samples: their ``mean`` and the share of ``positive`` ones.

    ``raw`` is q at the quantiles asked for. The normalised are over ``scale = ‖W‖_F · mean ‖h‖``,
    and None where that is zero.
    """

    raw: tuple[float, ...]
    mean: float
    normalised: tuple[float, ...] | None
    normalised_mean: float | None
    scale: float
    positive: float


def margins(
    features: Array,
    labels: Labels,
    weight: Array,
    bias: Array | None = None,
    *,
    quantiles: Sequence[float],
) -> Margins:
    """Summarise the margins of samples, raw and normalised.

    Args:
        features: ``(N, d)``, floating.
        labels: ``(N,)``, integers in 0 ... K - 1.
        weight: W ``(K, d)``, K at least 2.
        bias: b ``(K,)``, or None for no bias. It must be finite: against a class that is never
            predicted there is no margin.
        quantiles: where to evaluate the distribution, each in [0, 1].

    Raises:
        TypeError, ValueError: as :func:`mcr2.checks.samples`; a weight or bias not floating, finite
            and of its shape; fewer than two classes; a quantile outside [0, 1].

    Example:
        >>> H = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> summary = margins(H, [0, 1], torch.eye(2), quantiles=[0.5])
        >>> summary.mean, summary.positive, round(summary.normalised_mean, 4)
        (2.0, 1.0, 0.7071)
    """
    levels = [checks.number("quantiles", level, 0, 1) for level in quantiles]
    q, scale = _of_samples(features, labels, weight, bias)
    # NumPy's: torch.quantile refuses more than 16 million samples.
    raw = tuple(np.quantile(q.cpu().numpy(), levels).tolist())
    mean = float(q.mean())
    return Margins(
        raw=raw,
        mean=mean,
        normalised=tuple(value / scale for value in raw) if scale > 0 else None,
        normalised_mean=mean / scale if scale > 0 else None,
        scale=scale,
        positive=int((q > 0).sum()) / len(q),
    )


@dataclass(frozen=True, eq=False)
class MarginDistribution:
    """The margins q of a set of samples from the smallest to the largest, float64 ``(N,)``.

    Args:
        order: the samples in that order, int64 ``(N,)``; of equal margins the first comes first.
        raw: ``q[order]``; its first entry is the minimum margin.
        normalised: ``raw / scale``, ``scale = ‖W‖_F · mean ‖h‖``; None where that is zero.
        scale: what margins are divided by.
    """

    order: Tensor
    raw: Tensor
    normalised: Tensor | None
    scale: float


def margin_distribution(
    features: Array, labels: Labels, weight: Array, bias: Array | None = None
) -> MarginDistribution:
    """Return the margins of all samples, sorted, raw and normalised.

    Arguments and errors are those of :func:`margins`.

    Reference: Banburski, De La Torre, Pant, Shastri & Poggio, "Distribution of classification
    margins: are all data equal?", 2021.

    Example:
        >>> H = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> found = margin_distribution(H, [0, 1], torch.eye(2))
        >>> found.order, found.raw
        (tensor([1, 0]), tensor([1., 3.], dtype=torch.float64))
    """
    q, scale = _of_samples(features, labels, weight, bias)
    raw, order = q.sort(stable=True)
    return MarginDistribution(order, raw, raw / scale if scale > 0 else None, scale)


def _of_samples(
    features: Array, labels: Labels, weight: Array, bias: Array | None
) -> tuple[Tensor, float]:
    """Return the margin of every sample, float64 ``(N,)``, and ``‖W‖_F · mean ‖h‖``."""
    W = _weight(weight)
    H, y = checks.samples(features, labels, len(W))
    W = checks.floating("weight", W, len(W), H.shape[1]).to(H.device)
    b = W.new_zeros(len(W))
    if bias is not None:
        b = exact(checks.floating("bias", bias, len(W))).to(H.device)
    parts, norms = [], 0.0
    for part, classes in pieces(H, y):
        h, own = part.double(), classes.unsqueeze(1)
        scores = torch.addmm(b, h, W.T)
        label = scores.gather(1, own).squeeze(1)
        parts.append(label - scores.scatter_(1, own, -torch.inf).amax(1))
        norms += float(h.norm(dim=1).sum())
    return torch.cat(parts), float(torch.linalg.matrix_norm(W)) * norms / len(H)


def alignment(weight: Array, other: Array) -> float | None:
    """Return the mean cosine between the rows of two classifiers, each centred over classes.

    ``(1/K) Σ_k cos(w_k - w̄, v_k - v̄)``, w̄ and v̄ the means of the rows: a vector added to every
    row changes no prediction and counts for nothing. 1 for equal directions, 0 for unrelated
    ones. With V the weight of a linear SVM fitted on the same features and labels
    (``linear_svm`` of :mod:`mcr2.readouts`) it says how far W points the way of the widest
    margin, which is where gradient descent on separable data tends (Soudry et al., "The implicit
    bias of gradient descent on separable data", JMLR 2018).

    The mean is over rows where neither centred vector is zero; None where there is none.

    Raises:
        TypeError, ValueError: weights that are not floating, finite, and both ``(K, d)``, K >= 2.

    Example:
        >>> W = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(alignment(W, 5 * W + 3), 6), round(alignment(W, -W), 6)
        (1.0, -1.0)
    """
    W = _weight(weight)
    V = exact(checks.floating("other", other, *W.shape)).to(W.device)
    centred = []
    for rows in (W, V):
        rows = rows / rows.abs().max().clamp(min=torch.finfo(rows.dtype).tiny)
        rows = rows - rows.mean(0)
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        # Equal rows, less their mean, leave the rounding of a few operations.
        centred.append(torch.where(norms > 1e-12, rows / norms, torch.zeros_like(rows)))
    cosines = (centred[0] * centred[1]).sum(1)
    defined = (centred[0] != 0).any(1) & (centred[1] != 0).any(1)
    return float(cosines[defined].mean()) if bool(defined.any()) else None


def _weight(weight: Array) -> Tensor:
    """Check a classifier's weight ``(K, d)`` and return it in float64."""
    W = exact(checks.floating("weight", weight, "K", "d"))
    if len(W) < 2:
        raise ValueError("weight has one row; it needs a row a class, two at least")
    return W
