"""Margins: by how much a linear classifier prefers a sample's label to every other class.

    q_i = w_yᵀh_i + b_y - max_{j≠y} (w_jᵀh_i + b_j)

is positive where the sample is classified as labelled. Divided by ``‖W‖_F · mean ‖h‖`` it no
longer changes when features, or W and b, are scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcr2.metrics.moments import check_finite, check_samples, pieces

#: Quantiles of the margins that :class:`Margins` holds by default.
QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)


@dataclass(frozen=True)
class Margins:
    """The distribution of the margins of a set of samples.

    Args:
        raw: q at each of the quantiles asked for, linearly interpolated; 0 is the least.
        mean: mean of q.
        normalised: ``raw`` over ``scale``; None where that is zero.
        normalised_mean: ``mean`` over ``scale``; None likewise.
        scale: ``‖W‖_F · mean ‖h‖``.
        positive: share of samples with q > 0.
    """

    raw: tuple[float, ...]
    mean: float
    normalised: tuple[float, ...] | None
    normalised_mean: float | None
    scale: float
    positive: float


def sample_margins(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Return the margin of every sample, unnormalised.

    Args:
        features: ``(N, d)``, floating.
        labels: ``(N,)``, integers in 0 ... K - 1.
        weight: W ``(K, d)``, K at least 2.
        bias: b ``(K,)``, or None for no bias. It must be finite: against a class that is never
            predicted there is no margin.

    Returns:
        q, float64 ``(N,)``, on the features' device (of MPS, which has no float64, the CPU).

    Raises:
        TypeError: features, weight or bias not floating, labels not integers.
        ValueError: shapes that do not fit, fewer than two classes, labels out of range, entries
            that are not finite.

    Example:
        >>> H = torch.tensor([[3.0, 1.0], [0.0, 2.0]])
        >>> sample_margins(H, torch.tensor([0, 0]), torch.eye(2))
        tensor([ 2., -2.], dtype=torch.float64)
    """
    q, _ = _margins_and_norm(features, labels, weight, bias)
    return q


def margins(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    quantiles: Sequence[float] = QUANTILES,
) -> Margins:
    """Summarise the margins of samples, raw and normalised.

    Args:
        features, labels, weight, bias: as for :func:`sample_margins`.
        quantiles: where to read the distribution, each in [0, 1].

    Returns:
        :class:`Margins`.

    Raises:
        TypeError, ValueError: as :func:`sample_margins`; a quantile outside [0, 1].

    Example:
        >>> H = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> summary = margins(H, torch.tensor([0, 1]), torch.eye(2))
        >>> summary.mean, summary.positive, round(summary.normalised_mean, 4)
        (2.0, 1.0, 0.7071)
    """
    if not all(0 <= level <= 1 for level in quantiles):
        raise ValueError(f"quantiles lie in [0, 1]; got {tuple(quantiles)}")
    q, norm = _margins_and_norm(features, labels, weight, bias)
    scale = norm * float(torch.linalg.matrix_norm(weight.detach().cpu().double()))
    ordered = q.sort().values
    # By hand: torch.quantile refuses more than 16 million samples.
    places = torch.tensor(quantiles, dtype=torch.float64, device=q.device) * (len(q) - 1)
    below = places.floor().long()
    above = places.ceil().long()
    raw = torch.lerp(ordered[below], ordered[above], places - below).tolist()
    mean = float(q.mean())
    return Margins(
        raw=tuple(raw),
        mean=mean,
        normalised=tuple(value / scale for value in raw) if scale > 0 else None,
        normalised_mean=mean / scale if scale > 0 else None,
        scale=scale,
        positive=int((q > 0).sum()) / len(q),
    )


def alignment(weight: Tensor, other: Tensor) -> float | None:
    """Return the mean cosine between the rows of two classifiers, each centred over classes.

    ``(1/K) Σ_k cos(w_k - w̄, v_k - v̄)``, w̄ and v̄ the means of the rows: a vector added to every
    row changes no prediction and counts for nothing. 1 for equal directions, 0 for unrelated
    ones. With V the weight of a linear SVM fitted on the same features and labels
    (``linear_svm`` of :mod:`mcr2.readouts`) it says how far W points the way of the widest
    margin, which is where gradient descent on separable data tends (Soudry et al., "The implicit
    bias of gradient descent on separable data", JMLR 2018).

    Args:
        weight: W ``(K, d)``, K at least 2.
        other: V ``(K, d)``.

    Returns:
        The mean over rows where neither centred vector is zero; None where there is none.

    Raises:
        TypeError: weights that are not floating.
        ValueError: shapes that are not ``(K, d)`` or differ, entries that are not finite.

    Example:
        >>> W = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(alignment(W, 5 * W + 3), 6), round(alignment(W, -W), 6)
        (1.0, -1.0)
    """
    W = _weight("weight", weight)
    V = _weight("other", other).to(W.device)
    if W.shape != V.shape:
        raise ValueError(
            f"two weights must be (K, d) alike; got {tuple(W.shape)}, {tuple(V.shape)}"
        )
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


def _margins_and_norm(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, float]:
    """Return q ``(N,)`` and mean ‖h‖."""
    W = _weight("weight", weight)
    K = len(W)
    H, y, _ = check_samples(features, labels, K)
    if W.shape[1] != H.shape[1]:
        raise ValueError(f"weight must have shape ({K}, {H.shape[1]}); got {tuple(W.shape)}")
    W = W.to(H.device)
    b = W.new_zeros(K)
    if bias is not None:
        b = check_finite("bias", bias, (K,)).to(H.device)
    parts, norm = [], 0.0
    for part, classes in pieces(H, y):
        exact = part.double()
        scores = torch.addmm(b, exact, W.T)
        own = scores.gather(1, classes.unsqueeze(1)).squeeze(1)
        scores.scatter_(1, classes.unsqueeze(1), -torch.inf)
        parts.append(own - scores.amax(1))
        norm += float(torch.linalg.vector_norm(exact, dim=1).sum())
    return torch.cat(parts), norm / len(H)


def _weight(name: str, weight: Tensor) -> Tensor:
    """Check a classifier's weight ``(K, d)`` and return it in float64."""
    W = check_finite(name, weight)
    if W.ndim != 2 or len(W) < 2 or W.shape[1] < 1:
        raise ValueError(
            f"{name} must have shape (K, d) with at least two classes; got {tuple(W.shape)}"
        )
    return W
