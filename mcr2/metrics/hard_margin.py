"""The linear classifier of widest margin on separable features, exactly.

Gradient descent on the cross-entropy of separable features moves the direction of ``(W, b)`` ever
closer to the solution of the multiclass hard-margin problem (Soudry et al. 2018),

    min ‖W‖_F² + ‖b‖²   such that   (w_y − w_j)ᵀh + b_y − b_j ≥ 1   for every sample and j ≠ y.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls
from torch import Tensor

from mcr2 import checks
from mcr2.checks import Array, Labels
from mcr2.metrics.moments import exact

#: Constraints are met to this part of the margin; so many violated ones are added at a time.
_TOLERANCE, _ADDED = 1e-6, 200

Array64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HardMargin:
    """The classifier of widest margin: ``weight (K, d)``, ``bias (K,)`` or None, float64.

    ``support`` are the samples with a margin of 1, up to rounding, int64.
    """

    weight: Tensor
    bias: Tensor | None
    support: Tensor


def hard_margin(
    features: Array, labels: Labels, *, num_classes: int, bias: bool = True
) -> HardMargin | None:
    """Solve the multiclass hard-margin problem; None where no classifier separates the features.

    The problem is that of a least distance, solved by non-negative least squares (Lawson & Hanson,
    "Solving Least Squares Problems", 1974, Chapter 23) over constraints that are added as they are
    found violated: what is left out at the end is met.

    Args:
        features: ``(N, d)``, floating.
        labels: ``(N,)``, integers in 0 ... num_classes - 1.
        num_classes: K, at least 2; the rows of absent classes are kept below all others too.
        bias: whether there is a b. As for gradient descent its square counts.

    Raises:
        TypeError, ValueError: as :func:`mcr2.checks.samples`.

    Reference: Crammer & Singer, "On the algorithmic implementation of multiclass kernel-based
    vector machines", JMLR 2001, in its separable case; Soudry et al., "The implicit bias of
    gradient descent on separable data", JMLR 2018, for several classes.

    Example:
        >>> found = hard_margin(2 * torch.eye(3), [0, 1, 2], num_classes=3, bias=False)
        >>> found.weight.round(decimals=4)
        tensor([[ 0.3333, -0.1667, -0.1667],
                [-0.1667,  0.3333, -0.1667],
                [-0.1667, -0.1667,  0.3333]], dtype=torch.float64)
        >>> hard_margin(torch.ones(2, 3), [0, 1], num_classes=2) is None
        True
    """
    K = checks.integer("num_classes", num_classes, 2)
    H, y = checks.samples(features, labels, K)
    X, classes = H.double().cpu().numpy(), y.cpu().numpy()
    if bias:
        X = np.concatenate([X, np.ones((len(X), 1))], axis=1)
    scale = float(np.linalg.norm(X, axis=1).mean()) or 1.0
    V = _widest(X / scale, classes, K)
    if V is None:
        return None
    V = V / scale
    margins = _margins(X, classes, V).min(axis=1)
    support = np.flatnonzero(margins < 1 + 1e-4)
    W = torch.from_numpy(V).to(H.device)
    return HardMargin(
        weight=W[:, :-1] if bias else W,
        bias=W[:, -1] if bias else None,
        support=torch.from_numpy(support).to(H.device),
    )


def angle(weight: Array, other: Array) -> float | None:
    """Return the angle between two classifiers in degrees, as vectors, centred over classes.

    ``arccos(⟨W − w̄, V − v̄⟩_F / (‖W − w̄‖_F ‖V − v̄‖_F))``: a vector added to every row changes no
    prediction and counts for nothing. A bias is given as one more column of both. None where all
    rows of one are equal.

    Raises:
        TypeError, ValueError: weights that are not floating, finite, and both ``(K, d)``.

    Example:
        >>> W = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(angle(W, 5 * W + 3), 4), round(angle(W, W.flip(0)), 4)
        (0.0, 180.0)
    """
    W = exact(checks.floating("weight", weight, "K", "d"))
    V = exact(checks.floating("other", other, *W.shape)).to(W.device)
    units = []
    for rows in (W, V):
        rows = rows / rows.abs().max().clamp(min=torch.finfo(rows.dtype).tiny)
        rows = rows - rows.mean(0)
        norm = float(rows.norm())
        if norm <= 1e-12:
            return None
        units.append(rows / norm)
    # By the chords: the cosine does not resolve small angles.
    apart, along = (float((units[0] + sign * units[1]).norm()) for sign in (-1, 1))
    return math.degrees(2 * math.atan2(apart, along))


def _margins(X: Array64, y: Array64, V: Array64) -> Array64:
    """Return (v_y − v_j)ᵀx for all samples and classes ``(N, K)``; infinite for j = y."""
    scores = X @ V.T
    rows = np.arange(len(X))
    found: Array64 = scores[rows, y][:, None] - scores
    found[rows, y] = np.inf
    return found


def _widest(X: Array64, y: Array64, K: int) -> Array64 | None:
    """Return V ``(K, d)`` of least norm with all margins at least 1, or None."""
    N, d = X.shape
    chosen = np.zeros((N, K), bool)
    V = np.zeros((K, d))
    while True:
        margins = np.where(chosen, np.inf, _margins(X, y, V))
        worst = np.argsort(margins, axis=None)[:_ADDED]
        worst = worst[margins.flat[worst] < 1 - _TOLERANCE]
        if len(worst) == 0:
            return V
        chosen.flat[worst] = True
        samples, others = np.nonzero(chosen)
        rows = np.zeros((len(samples), K, d))
        at = np.arange(len(samples))
        rows[at, y[samples]] = X[samples]
        rows[at, others] = -X[samples]
        found = _least_distance(rows.reshape(len(samples), K * d))
        if found is None:
            return None
        V = found.reshape(K, d)


def _least_distance(G: Array64) -> Array64 | None:
    """Return v of least norm with ``G v ≥ 1``, or None where there is none."""
    E = np.concatenate([G.T, np.ones((1, len(G)))])
    target = np.zeros(len(E))
    target[-1] = 1
    Q, R = np.linalg.qr(E)  # the solver then sees no more rows than constraints
    u, _ = nnls(R, Q.T @ target, maxiter=10 * len(G) + 1000)
    residual = target - E @ u
    if residual[-1] <= 1e-12:
        return None
    v: Array64 = -residual[:-1] / residual[-1]
    return v if (G @ v).min() > 1 - _TOLERANCE else None
