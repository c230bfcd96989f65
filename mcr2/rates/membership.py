"""What is checked about features and memberships, and what reaches the host of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mcr2.checks import classes, dense, describe, floating
from mcr2.rates.kernels import Groups, group
from mcr2.rates.precision import read, working_dtype

_INTEGERS = ("uint8", "int8", "int16", "int32", "int64")
_LABELS = {(getattr(torch, name), torch.strided, 1) for name in _INTEGERS}


def check_features(Z: object, *, signals: bool = False) -> Tensor:
    """Return features (..., m, d), or signals (m, C, T) or (m, C, H, W), in at least float32."""
    X = floating("Z", Z, finite=False)
    if 0 in X.shape or not (X.dim() in (3, 4) if signals else X.dim() >= 2):
        shape = "(m, C, T) or (m, C, H, W)" if signals else "(..., m, d)"
        raise ValueError(f"Z has shape {tuple(X.shape)}; it must be {shape}, and none of them 0")
    return X.to(working_dtype(X))


def check_membership(Z: Tensor, m: int, labels: object, num_classes: int | None) -> Tensor:
    """Return a membership whose kind, shape and device suit m samples Z, its values unseen."""
    K = None if num_classes is None else classes(num_classes)
    given = dense(labels) if isinstance(labels, np.ndarray) else labels
    if isinstance(given, Tensor) and given.dim() == 2 and given.is_floating_point():
        given = floating("labels", given, finite=False)
    elif not isinstance(given, Tensor) or (given.dtype, given.layout, given.dim()) not in _LABELS:
        raise TypeError(
            "labels must be integers of shape (m,) or a floating membership of shape (m, K), "
            f"not {describe(labels)}"
        )
    if len(given) != m:
        raise ValueError(f"{len(given)} labels for {m} samples; one each is needed")
    if given.device != Z.device:
        raise ValueError(f"labels are on {given.device}, Z on {Z.device}; put them together")
    if given.dim() == 2 and (K not in (None, given.shape[1]) or given.shape[1] == 0):
        raise ValueError(f"the membership has {given.shape[1]} columns for {K or 'any'} classes")
    return given


def read_membership(labels: Tensor, num_classes: int | None) -> Groups | Tensor:
    """Check the values of a membership that :func:`check_membership` passed; group samples.

    One transfer: the class sizes, or what a matrix is checked by. Without ``num_classes`` the
    largest label travels first.
    """
    if labels.dim() == 2:
        _check_matrix(labels)
        return labels
    m = len(labels)
    labels = labels.long()
    K = max(int(num_classes or int(labels.max()) + 1), 1)
    if num_classes is None and max(10 * m, 10**6) < K:
        raise ValueError(f"labels run to {K - 1} for {m} samples; give num_classes if they are so")
    ordered, order = labels.sort(stable=True)
    ends = torch.searchsorted(ordered, torch.arange(K + 1, device=labels.device))
    bounds = ends.tolist()
    if bounds[0] != 0 or bounds[-1] != m:
        raise ValueError(
            f"labels run from {int(ordered[0])} to {int(ordered[-1])}; "
            f"with {K} classes they must be in 0 ... {K - 1}"
        )
    return group(ordered, order, bounds)


def _check_matrix(matrix: Tensor) -> None:
    # Wide enough for a softmax rounded to bfloat16, narrow enough to catch unnormalised scores.
    tolerance = 1e-4 + matrix.shape[1] * torch.finfo(matrix.dtype).eps
    values = matrix.detach().to(working_dtype(matrix))
    told = read(values.min(), (values.sum(1) - 1).abs().max())
    if told is not None and not (told[0] >= 0 and told[1] <= tolerance):
        raise ValueError(
            "membership rows must be non-negative and sum to one; the smallest entry is "
            f"{told[0]:.3g}, the largest deviation of a sum {told[1]:.3g}"
        )
