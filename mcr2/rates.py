"""Coding rates: how many nats it takes to code features up to a squared distortion ε².

Pure functions, tensors in and tensors out; nothing here knows of training. Features ``Z`` have
shape ``(..., m, d)``, one sample a row. A membership says which sample belongs to which of the
K classes: integer labels ``(m,)``, or a floating matrix ``(m, K)`` whose rows sum to one.

    R(Z)        = ½ logdet(I + d/(m ε²) ZᵀZ)
    R_k(Z)      = ½ logdet(I + d/(tr Π_k ε²) Zᵀ Π_k Z)
    R_c(Z, Π)   = Σ_k (tr Π_k / m) R_k
    ΔR(Z, Π)    = R − R_c  ≥  0

Reference: Yu, Chan, You, Song & Ma, "Learning Diverse and Discriminative Representations via the
Principle of Maximal Coding Rate Reduction", NeurIPS 2020, Sections 2.1 and 2.2. The paper writes
samples as columns; the determinants are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Rates(NamedTuple):
    """What :func:`rate_reduction` returns, for features ``(..., m, d)`` and K classes.

    Attributes:
        rate: R ``(...)``, the rate of all samples together.
        class_rates: R_k ``(..., K)``, unweighted; zero for an absent class.
        compressed_rate: R_c ``(...)``, the class rates weighted by the classes' shares.
        reduction: ΔR ``(...)`` = R − R_c.
    """

    rate: Tensor
    class_rates: Tensor
    compressed_rate: Tensor
    reduction: Tensor


def coding_rate(Z: Tensor, *, eps_sq: float = 0.5) -> Tensor:
    """Return the coding rate of all samples together.

    R(Z) = ½ logdet(I + d/(m ε²) ZᵀZ). Scaling the matrix by γ is the same as coding with ε²/γ:
    that is how a γ inside the determinant is expressed.

    Args:
        Z: features ``(..., m, d)``, floating.
        eps_sq: ε², the squared distortion; positive.

    Returns:
        R ``(...)``, in nats; float32 for half-precision features, their own dtype otherwise.

    Raises:
        TypeError: ``Z`` is not a floating tensor or ``eps_sq`` is not a number.
        ValueError: ``Z`` has no sample, no dimension or a non-finite entry; ``eps_sq`` is not
            positive and finite, or so small that the determinant leaves float64.

    Reference: Yu et al. (2020), Section 2.1.

    Example:
        >>> Z = torch.eye(2)                    # each axis costs ½ log(1 + d/(m ε²)) = ½ log 3
        >>> print(f"{coding_rate(Z, eps_sq=0.5):.4f} {math.log(3):.4f}")
        1.0986 1.0986
    """
    _check_features(Z, eps_sq)
    return _in_safe_precision(lambda X: _total_rate(X, eps_sq), Z, eps_sq)


def class_coding_rates(
    Z: Tensor, labels: Tensor, *, num_classes: int | None = None, eps_sq: float = 0.5
) -> Tensor:
    """Return the coding rate of each class by itself, not weighted by its share.

    R_k(Z) = ½ logdet(I + d/(tr Π_k ε²) Zᵀ Π_k Z), and 0 with gradient 0 where tr Π_k = 0.

    Args:
        Z: features ``(..., m, d)``, floating.
        labels: membership shared by all leading dimensions: integers ``(m,)`` in [0, K), or a
            floating matrix ``(m, K)`` of non-negative rows that sum to one. The rates are
            differentiable with respect to the matrix.
        num_classes: K; by default the largest label plus one, or the matrix's columns.
        eps_sq: ε², the squared distortion; positive.

    Returns:
        R_k ``(..., K)``, in nats; float32 for half-precision features.

    Raises:
        TypeError: ``Z`` is not floating, ``labels`` is neither form of membership, or
            ``eps_sq`` or ``num_classes`` is not a number.
        ValueError: as for :func:`coding_rate`; or labels of another length or device than the
            features', labels outside [0, K), rows that are no distribution.

    Reference: Yu et al. (2020), Section 2.1.

    Example:
        >>> Z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> class_coding_rates(Z, torch.tensor([0, 0, 1]), num_classes=3, eps_sq=0.5)
        tensor([0.8047, 0.8047, 0.0000])
    """
    _check_features(Z, eps_sq)
    classes = _Membership(Z, labels, num_classes)
    return _in_safe_precision(lambda X: _half_logdet(classes.moments(X), eps_sq), Z, eps_sq)


def rate_reduction(
    Z: Tensor, labels: Tensor, *, num_classes: int | None = None, eps_sq: float = 0.5
) -> Rates:
    """Return the coding rate reduction ΔR of a partition, with the rates it is made of.

    ΔR(Z, Π) = R(Z) − Σ_k (tr Π_k / m) R_k(Z): what is saved by coding each class by itself. It
    is never negative, and largest where the classes span orthogonal subspaces.

    Args:
        Z: features ``(..., m, d)``, floating.
        labels: membership, as for :func:`class_coding_rates`.
        num_classes: K; by default the largest label plus one, or the matrix's columns.
        eps_sq: ε², the squared distortion; positive.

    Returns:
        :class:`Rates` with ``rate``, ``class_rates``, ``compressed_rate``, ``reduction``.

    Raises:
        TypeError: as for :func:`class_coding_rates`.
        ValueError: as for :func:`class_coding_rates`.

    Reference: Yu et al. (2020), Section 2.2.

    Example:
        >>> Z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> apart = rate_reduction(Z, torch.tensor([0, 0, 1, 1]))
        >>> print(f"{apart.rate:.4f} - {apart.compressed_rate:.4f} = {apart.reduction:.4f}")
        1.0986 - 0.8047 = 0.2939
        >>> mixed = rate_reduction(Z, torch.tensor([0, 1, 0, 1]))
        >>> print(f"{mixed.reduction:.4f}")
        0.0000
    """
    _check_features(Z, eps_sq)
    classes = _Membership(Z, labels, num_classes)
    m, d = Z.shape[-2:]

    def all_rates(X: Tensor) -> Tensor:
        moments = classes.moments(X)
        if classes.hard and m >= d:
            # The class Grams add up to the total one: no second product over all samples.
            shares = classes.shares.to(X)
            total = _half_logdet(torch.einsum("k,...kde->...de", shares, moments), eps_sq)
        else:
            # A soft membership stays out of R, which does not depend on it: its rows sum to one
            # only on the simplex, and gradients do not know that they must stay there.
            total = _total_rate(X, eps_sq)
        return torch.cat([total.unsqueeze(-1), _half_logdet(moments, eps_sq)], dim=-1)

    rates = _in_safe_precision(all_rates, Z, eps_sq)
    rate, class_rates = rates[..., 0], rates[..., 1:]
    compressed_rate = (class_rates * classes.shares.to(class_rates)).sum(-1)
    return Rates(rate, class_rates, compressed_rate, rate - compressed_rate)


class _Membership:
    """A checked membership, ready to cut features into classes.

    ``shares`` is tr Π_k / m, ``(K,)``, on the labels' device. Labels are sorted once: class k is
    a run of rows, and the K + 1 ends of the runs are the only numbers that travel to the host.
    They tell whether all labels are in range, too.
    """

    def __init__(self, Z: Tensor, labels: Tensor, num_classes: int | None) -> None:
        K = _check_membership(Z, labels, num_classes)
        m = Z.shape[-2]
        self.hard = labels.dim() == 1
        if not self.hard:
            self.weights = labels
            self.shares = labels.to(_working_dtype(labels)).sum(0) / m
            return
        ordered, self.order = labels.long().sort(stable=True)
        if K is None:
            K = max(int(ordered[-1]) + 1, 1)
        ends = torch.searchsorted(ordered, torch.arange(K + 1, device=labels.device))
        first, *rest = ends.tolist()
        if first != 0 or rest[-1] != m:
            raise ValueError(
                f"labels run from {int(ordered[0])} to {int(ordered[-1])}; "
                f"with {K} classes they must lie in [0, {K - 1}]"
            )
        self.counts = [b - a for a, b in zip([first, *rest], rest, strict=False)]
        self.shares = ends.diff().to(torch.float64 if Z.dtype == torch.float64 else torch.float32)
        self.shares = self.shares / m

    def moments(self, Z: Tensor) -> Tensor:
        """Return Zᵀ Π_k Z / tr Π_k, shape (..., K, d, d); zero for an absent class."""
        if self.hard:
            runs = torch.split(Z.index_select(-2, self.order.to(Z.device)), self.counts, dim=-2)
            return torch.stack([(run.mT @ run) / max(run.shape[-2], 1) for run in runs], dim=-3)
        weights = self.weights.to(Z)
        mass = weights.sum(0)
        # Divided before the product: a class of mass 1e-40 has an ordinary second moment, while
        # its Gram would vanish. An absent class is taken out of the graph, or its moment, which
        # has no limit at mass zero, would hand the membership a gradient.
        present = mass > 0
        weights = torch.where(present, weights / mass.where(present, torch.ones_like(mass)), 0.0)
        return torch.einsum("mk,...md,...me->...kde", weights, Z, Z)


def _total_rate(Z: Tensor, eps_sq: float) -> Tensor:
    """R(Z) from the smaller of the two Grams: logdet(I + aZᵀZ) = logdet(I + aZZᵀ)."""
    m, d = Z.shape[-2:]
    if m >= d:
        return _half_logdet(Z.mT @ Z / m, eps_sq)
    return _half_logdet(Z @ Z.mT / m, eps_sq, dim=d)


def _half_logdet(moment: Tensor, eps_sq: float, dim: int | None = None) -> Tensor:
    """½ logdet(I + d/ε² M) of symmetric M (..., n, n), d = n unless given; NaN where it fails."""
    n = moment.shape[-1]
    eye = torch.eye(n, dtype=moment.dtype, device=moment.device)
    factor, info = torch.linalg.cholesky_ex(eye + moment * ((dim or n) / eps_sq))
    logs: Tensor = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return logs.masked_fill(info != 0, math.nan)


def _in_safe_precision(compute: Callable[[Tensor], Tensor], Z: Tensor, eps_sq: float) -> Tensor:
    """Evaluate rates in at least float32, in float64 where that fails, or say why it cannot.

    Nothing is looked for beforehand: a non-finite feature or an overflow shows in a diagonal of
    a Gram matrix and hence in a rate, so that good features cost no pass of their own.
    """
    X = Z.to(_working_dtype(Z))
    with torch.autocast(Z.device.type, enabled=False):  # it would take the Grams in half precision
        rates = compute(X)
        if bool(torch.isfinite(rates).all()):
            return rates
        if not bool(torch.isfinite(Z).all()):
            bad = int((~torch.isfinite(Z)).sum())
            raise ValueError(f"Z must be finite; {bad} of its {Z.numel()} entries are NaN or inf")
        if X.dtype != torch.float64:
            # Metal has no float64, the CPU beside it does.
            retry = X.cpu() if X.device.type == "mps" else X
            rates = compute(retry.double()).to(X)
            if bool(torch.isfinite(rates).all()):
                return rates
    raise ValueError(
        f"I + d/(m eps_sq) ZᵀZ has no Cholesky factor, in float64 either: eps_sq={eps_sq} is too "
        f"small for features as large as {float(Z.abs().max()):.3g}"
    )


def _working_dtype(x: Tensor) -> torch.dtype:
    """float32 for half precision, whose sums and pivots lose the small eigenvalues."""
    return torch.promote_types(x.dtype, torch.float32)


def _check_features(Z: Tensor, eps_sq: float) -> None:
    if not isinstance(Z, Tensor) or not Z.is_floating_point():
        given = Z.dtype if isinstance(Z, Tensor) else type(Z).__name__
        raise TypeError(f"Z must be a real floating tensor (..., m, d), not {given}")
    if Z.dim() < 2 or 0 in Z.shape[-2:]:
        raise ValueError(
            f"Z has shape {tuple(Z.shape)}; it must be (..., m, d) with at least one sample and "
            "one dimension"
        )
    if not isinstance(eps_sq, int | float):
        raise TypeError(f"eps_sq must be a number, not {type(eps_sq).__name__}")
    if not 0 < eps_sq < math.inf:
        raise ValueError(f"eps_sq is {eps_sq}; it must be positive and finite")


def _check_membership(Z: Tensor, labels: Tensor, num_classes: int | None) -> int | None:
    """Return K, or None where only the labels themselves know it."""
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
    if len(labels) != Z.shape[-2]:
        raise ValueError(f"{len(labels)} labels for {Z.shape[-2]} samples; one each is needed")
    if labels.device != Z.device:
        raise ValueError(f"labels are on {labels.device}, Z on {Z.device}; put them together")
    if hard:
        return num_classes
    K = labels.shape[1]
    if num_classes not in (None, K) or K == 0:
        raise ValueError(f"the membership has {K} columns for {num_classes or 'any'} classes")
    # Wide enough for a softmax rounded to bfloat16, narrow enough to catch unnormalised scores.
    tolerance = 1e-4 + K * torch.finfo(labels.dtype).eps
    values = labels.detach().to(_working_dtype(labels))
    off = (values.sum(1) - 1).abs().max()
    worst = torch.stack([values.min(), off]).tolist()
    if not (worst[0] >= 0 and worst[1] <= tolerance):
        raise ValueError(
            "membership rows must be non-negative and sum to one; the smallest entry is "
            f"{worst[0]:.3g}, the largest deviation of a sum {worst[1]:.3g}"
        )
    return K
