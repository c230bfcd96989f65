"""What is checked about features and memberships, once, and what reaches the host of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mcr2.rates.kernels import Groups, group
from mcr2.rates.precision import working_dtype


@dataclass(frozen=True)
class Membership:
    """A checked membership, ready to cut features into classes.

    Attributes:
        by_class: samples grouped by their labels, or the matrix (m, K) as it was given.
        certain: whether rates are known to be finite already; see
            :func:`mcr2.rates.precision.certainty`.
    """

    by_class: Groups | Tensor
    certain: bool


def read_membership(
    labels: Tensor, num_classes: int | None, d: int, *, total: bool, certain: Tensor | None
) -> Membership:
    """Check the values of labels or of a membership matrix that :func:`check_membership` passed.

    One transfer: the class sizes, or what a matrix is checked by, with the certainty of finite
    rates among them. Without ``num_classes`` the largest label travels first.

    Args:
        labels: ``(m,)`` or ``(m, K)``.
        num_classes: K, or None.
        d: the features' dimension.
        total: whether the rate of all samples is wanted too.
        certain: a 0-d tensor or None.

    Raises:
        ValueError: labels outside [0, K), or rows that are no distribution.
    """
    if labels.dim() == 2:
        return _read_matrix(labels, certain)
    m = len(labels)
    labels = labels.long()
    K = num_classes or max(int(labels.max()) + 1, 1)
    ordered, order = labels.sort(stable=True)
    ends = torch.searchsorted(ordered, torch.arange(K + 1, device=labels.device))
    news = ends if certain is None else torch.cat([ends, certain.reshape(1).to(ends)])
    bounds = news.tolist()
    known = certain is not None and bool(bounds.pop())
    if bounds[0] != 0 or bounds[-1] != m:
        raise ValueError(
            f"labels run from {int(ordered[0])} to {int(ordered[-1])}; "
            f"with {K} classes they must lie in [0, {K - 1}]"
        )
    counts = ends[1:] - ends[:-1]
    sizes = [b - a for a, b in pairwise(bounds)]
    return Membership(group(ordered, order, counts, sizes, d, total=total), known)


def _read_matrix(matrix: Tensor, certain: Tensor | None) -> Membership:
    K = matrix.shape[1]
    # Wide enough for a softmax rounded to bfloat16, narrow enough to catch unnormalised scores.
    tolerance = 1e-4 + K * torch.finfo(matrix.dtype).eps
    values = matrix.detach().to(working_dtype(matrix))
    news = [values.min(), (values.sum(1) - 1).abs().max()]
    if certain is not None:
        news.append(certain.to(values))
    smallest, off, *known = torch.stack(news).tolist()
    if not (smallest >= 0 and off <= tolerance):
        raise ValueError(
            "membership rows must be non-negative and sum to one; the smallest entry is "
            f"{smallest:.3g}, the largest deviation of a sum {off:.3g}"
        )
    return Membership(matrix, any(known))


def check_features(Z: Tensor, eps_sq: float) -> None:
    """Refuse anything but real floating features (..., m, d) and a positive finite ε²."""
    _check_floating(Z, "(..., m, d)")
    if Z.dim() < 2 or 0 in Z.shape[-2:]:
        raise ValueError(
            f"Z has shape {tuple(Z.shape)}; it must be (..., m, d) with at least one sample and "
            "one dimension"
        )
    check_positive("eps_sq", eps_sq)


def check_signals(Z: Tensor, eps_sq: float) -> None:
    """Refuse anything but real floating signals (m, C, T) or (m, C, H, W) and a positive ε²."""
    _check_floating(Z, "(m, C, T) or (m, C, H, W)")
    if Z.dim() not in (3, 4) or 0 in Z.shape:
        raise ValueError(
            f"Z has shape {tuple(Z.shape)}; it must be (m, C, T) or (m, C, H, W) with at least "
            "one sample, one channel and one position"
        )
    check_positive("eps_sq", eps_sq)


def _check_floating(Z: Tensor, shape: str) -> None:
    if not isinstance(Z, Tensor) or not Z.is_floating_point():
        given = Z.dtype if isinstance(Z, Tensor) else type(Z).__name__
        raise TypeError(f"Z must be a real floating tensor {shape}, not {given}")


def check_positive(name: str, value: float) -> None:
    """Refuse anything but a positive finite number."""
    if not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; it must be positive and finite")


def check_membership(Z: Tensor, m: int, labels: Tensor, num_classes: int | None) -> None:
    """Refuse a membership whose kind, shape or device does not suit m samples Z."""
    if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 1):
        kind: type[Exception] = ValueError if isinstance(num_classes, int) else TypeError
        raise kind(f"num_classes is {num_classes!r}; it must be an integer of at least 1")
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor, not {type(labels).__name__}")
    hard = labels.dim() == 1 and not labels.is_floating_point()
    soft = labels.dim() == 2 and labels.is_floating_point()
    if labels.dtype == torch.bool or labels.is_complex() or not (hard or soft):
        raise TypeError(
            "labels must be integers of shape (m,) or a floating membership of shape (m, K), "
            f"not {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if len(labels) != m:
        raise ValueError(f"{len(labels)} labels for {m} samples; one each is needed")
    if labels.device != Z.device:
        raise ValueError(f"labels are on {labels.device}, Z on {Z.device}; put them together")
    if soft and (num_classes not in (None, labels.shape[1]) or labels.shape[1] == 0):
        raise ValueError(
            f"the membership has {labels.shape[1]} columns for {num_classes or 'any'} classes"
        )
