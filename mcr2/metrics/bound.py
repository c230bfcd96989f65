"""How far variability may grow from training to test samples: a bound for every pair of classes.

Neural collapse on training samples S carries over to their distribution P as far as class means and
norms do. With f the features, E_l the mean over class l of P, Avg_l that over class l of S,

    V(i, j) = (v_i + v_j) / (2 ‖μ_i − μ_j‖²)                       the CDNV of a pair of classes
    V_P(i, j) ≤ (1 + A) V_S(i, j) + B
    A = (1 + (e_i + e_j)/D)² − 1        B = (q_i + w_i + q_j + w_j) / (2 D²)
    e_l = ‖E_l f − Avg_l f‖             D = ‖E_i f − E_j f‖
    q_l = |E_l ‖f‖² − Avg_l ‖f‖²|       w_l = |‖E_l f‖² − ‖Avg_l f‖²|

Here it is in plug-in form: P is a set of test samples. It then holds always, for the variance of a
class in P is E‖f‖² − ‖E f‖² ≤ v_l(S) + q_l + w_l, and ‖Avg_i f − Avg_j f‖ ≤ D + e_i + e_j; what is
open is how much it says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mcr2 import checks
from mcr2.checks import Array, Labels
from mcr2.metrics.moments import ClassMoments, pieces


@dataclass(frozen=True, eq=False)
class CDNVBound:
    """The terms of the bound, float64: of the classes ``(K,)``, and of P pairs of them ``(P,)``.

    Args:
        e, q, w: of each class; NaN for one that is not in both sets.
        first, second: the classes i < j of each pair, int64.
        distance: D of each pair.
        A, B: the two terms of each pair.
        train, test: the measured V_S and V_P of each pair.
    """

    e: Tensor
    q: Tensor
    w: Tensor
    first: Tensor
    second: Tensor
    distance: Tensor
    A: Tensor
    B: Tensor
    train: Tensor
    test: Tensor

    @property
    def bound(self) -> Tensor:
        """(1 + A) V_S + B of each pair, ``(P,)``: at least ``test``, up to rounding."""
        return (1 + self.A) * self.train + self.B


def cdnv_bound(
    train_features: Array,
    train_labels: Labels,
    test_features: Array,
    test_labels: Labels,
    *,
    num_classes: int,
) -> CDNVBound:
    """Measure the terms of the bound for every pair of classes, and both CDNV beside them.

    Left out are classes that are not in both sets, and pairs whose two means agree, up to the
    features' rounding, in either set: their variability is not defined.

    Args:
        train_features, test_features: ``(N, d)`` and ``(M, d)``, floating.
        train_labels, test_labels: ``(N,)`` and ``(M,)``, integers in 0 ... num_classes - 1.
        num_classes: K, at least 2.

    Raises:
        TypeError, ValueError: as :func:`mcr2.checks.samples`; features of other widths.

    Reference: the bound is that of Galanti, György & Hutter, "On the role of neural collapse in
    transfer learning", ICLR 2022, before the deviations of means and norms are bounded in turn.

    Example:
        >>> H, y = torch.tensor([[0.0, 1.0], [0.0, -1.0], [3.0, 1.0], [3.0, -1.0]]), [0, 0, 1, 1]
        >>> same = cdnv_bound(H, y, H, y, num_classes=2)
        >>> f"{float(same.test):.4f} {float(same.bound):.4f}"
        '0.1111 0.1111'
        >>> moved = cdnv_bound(H, y, H + 1, y, num_classes=2)
        >>> f"{float(moved.test):.4f} {float(moved.A):.4f} {float(moved.B):.4f}"
        '0.1111 2.7745 1.1111'
    """
    K = checks.integer("num_classes", num_classes, 2)
    S = _moments(train_features, train_labels, K)
    checks.floating("test_features", test_features, "M", S.means.shape[1])
    P = _moments(test_features, test_labels, K)
    P_means, S_means = P.means.to(S.means.device), S.means
    v_S, v_P = (m.squares.to(S_means.device) / m.counts.to(S_means.device) for m in (S, P))

    e = torch.linalg.vector_norm(P_means - S_means, dim=1)
    # As a product: the difference of two squares would cancel.
    norms = (P_means - S_means) * (P_means + S_means)
    w = norms.sum(1).abs()
    q = (v_P - v_S + norms.sum(1)).abs()
    e, w = (torch.where(q.isnan(), q, x) for x in (e, w))  # 0/0 where a class is absent

    first, second = torch.triu_indices(K, K, 1, device=S_means.device)

    def apart(means: Tensor) -> Tensor:
        distances: Tensor = torch.linalg.vector_norm(means[first] - means[second], dim=1)
        return distances

    D, D_S = apart(P_means), apart(S_means)
    noise = 4 * max(S.eps, P.eps) * max(S.energy, P.energy) ** 0.5
    kept = (torch.minimum(D, D_S) > noise) & ~(q[first] + q[second]).isnan()
    i, j, D, D_S = first[kept], second[kept], D[kept], D_S[kept]
    return CDNVBound(
        e=e,
        q=q,
        w=w,
        first=i,
        second=j,
        distance=D,
        A=(1 + (e[i] + e[j]) / D).square() - 1,
        B=(q[i] + w[i] + q[j] + w[j]) / (2 * D.square()),
        train=(v_S[i] + v_S[j]) / (2 * D_S.square()),
        test=(v_P[i] + v_P[j]) / (2 * D.square()),
    )


def _moments(features: Array, labels: Labels, num_classes: int) -> ClassMoments:
    H, y = checks.samples(features, labels, num_classes)
    moments = ClassMoments(num_classes, H.shape[1], device=H.device)
    for part, classes in pieces(H, y):
        moments.update(part, classes)
    return moments
