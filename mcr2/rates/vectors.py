"""Coding rates of features, one vector a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mcr2.rates.kernels import Groups, grouped_rates, weighted_rates
from mcr2.rates.membership import (
    Membership,
    check_features,
    check_membership,
    check_positive,
    read_membership,
)
from mcr2.rates.precision import certainty, in_safe_precision, outside_graphs


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
        >>> import math, torch
        >>> Z = torch.eye(2)                    # each axis costs ½ log(1 + d/(m ε²)) = ½ log 3
        >>> print(f"{coding_rate(Z, eps_sq=0.5):.4f} {math.log(3):.4f}")
        1.0986 1.0986
    """
    check_features(Z, eps_sq)
    return evaluate(Z, None, eps_sq=eps_sq, totals=[eps_sq])[0]


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
        >>> import torch
        >>> Z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> class_coding_rates(Z, torch.tensor([0, 0, 1]), num_classes=3, eps_sq=0.5)
        tensor([0.8047, 0.8047, 0.0000])
    """
    check_features(Z, eps_sq)
    check_membership(Z, Z.shape[-2], labels, num_classes)
    return evaluate(Z, labels, num_classes=num_classes, eps_sq=eps_sq)[0]


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
        >>> import torch
        >>> Z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> apart = rate_reduction(Z, torch.tensor([0, 0, 1, 1]))
        >>> print(f"{apart.rate:.4f} - {apart.compressed_rate:.4f} = {apart.reduction:.4f}")
        1.0986 - 0.8047 = 0.2939
        >>> mixed = rate_reduction(Z, torch.tensor([0, 1, 0, 1]))
        >>> print(f"{mixed.reduction:.4f}")
        0.0000
    """
    check_features(Z, eps_sq)
    check_membership(Z, Z.shape[-2], labels, num_classes)
    return as_rates(*evaluate(Z, labels, num_classes=num_classes, eps_sq=eps_sq, totals=[eps_sq]))


def rate_reduction_with_expansion(
    Z: Tensor,
    labels: Tensor,
    *,
    gamma: float,
    num_classes: int | None = None,
    eps_sq: float = 0.5,
) -> tuple[Tensor, Rates]:
    """Return the total rate with γ inside its determinant, beside the rates as defined.

    E(Z) = ½ logdet(I + γ d/(m ε²) ZᵀZ), from the same Gram matrix as R.

    Args:
        Z: features ``(..., m, d)``, floating.
        labels: membership, as for :func:`class_coding_rates`.
        gamma: γ; positive.
        num_classes: K; by default the largest label plus one, or the matrix's columns.
        eps_sq: ε², the squared distortion; positive.

    Returns:
        E ``(...)``, and :class:`Rates` as from :func:`rate_reduction`.

    Raises:
        TypeError: as for :func:`class_coding_rates`, or ``gamma`` is not a number.
        ValueError: as for :func:`class_coding_rates`, or ``gamma`` is not positive and finite.

    Reference: Yu et al. (2020); γ₁ of its published experiments.

    Example:
        >>> import torch
        >>> Z, labels = torch.eye(2), torch.tensor([0, 1])
        >>> expansion, rates = rate_reduction_with_expansion(Z, labels, gamma=2.0)
        >>> print(f"{expansion:.4f} {coding_rate(Z, eps_sq=0.25):.4f} {rates.rate:.4f}")
        1.6094 1.6094 1.0986
    """
    check_features(Z, eps_sq)
    check_positive("gamma", gamma)
    check_positive("eps_sq / gamma", eps_sq / gamma)
    check_membership(Z, Z.shape[-2], labels, num_classes)
    totals = [eps_sq] if gamma == 1 else [eps_sq / gamma, eps_sq]
    expansion, *rates = evaluate(Z, labels, num_classes=num_classes, eps_sq=eps_sq, totals=totals)
    return expansion, as_rates(*(rates if gamma != 1 else (expansion, *rates)))


def as_rates(rate: Tensor, class_rates: Tensor, compressed_rate: Tensor) -> Rates:
    """Join R (...), R_k (..., K) and R_c (...)."""
    return Rates(rate, class_rates, compressed_rate, rate - compressed_rate)


@outside_graphs
def evaluate(
    Z: Tensor,
    labels: Tensor | None,
    *,
    eps_sq: float,
    num_classes: int | None = None,
    totals: Sequence[float] = (),
    spectrum: Callable[[Tensor], tuple[Tensor, Tensor | None]] | None = None,
) -> tuple[Tensor, ...]:
    """Evaluate the rates of checked input.

    Args:
        Z: features ``(..., m, d)``, or signals ``(m, C, ...)`` with ``spectrum``.
        labels: membership, or None for the rates of all samples alone.
        eps_sq: ε² of the class rates.
        num_classes: K, or None.
        totals: ε² of each rate of all samples that is wanted.
        spectrum: turns signals into features ``(F, m, C)`` and weights ``(F,)`` that average
            the rates of frequencies, or into ``(m, C)`` and None.

    Returns:
        R ``(...)`` for each of ``totals`` and then, with labels, R_k ``(..., K)`` and R_c.
    """
    if spectrum is None:
        m, d = Z.shape[-2:]
        within: tuple[int, ...] = (-1,)
        length = 1
    else:
        # An unnormalised spectrum holds at each frequency at most T times a signal's energy.
        m, d = Z.shape[:2]
        within, length = tuple(range(1, Z.dim())), Z[0, 0].numel()
    sure = certainty(Z, m, d, within, min(eps_sq, *totals, eps_sq) / length)

    def read(labels: Tensor) -> Membership:
        return read_membership(labels, num_classes, d, total=bool(totals), certain=sure)

    classes = None if labels is None else read(labels)

    def compute(X: Tensor) -> tuple[Tensor, ...]:
        features, weights = spectrum(X) if spectrum else (X, None)
        if labels is None or classes is None:
            rates = grouped_rates(features, None, eps_sq, totals)
        else:
            # A retry may have moved to a device that has float64.
            here = classes if X.device == Z.device else read(labels.to(X.device))
            if isinstance(here.by_class, Groups):
                rates = grouped_rates(features, here.by_class, eps_sq, totals)
            else:
                rates = weighted_rates(features, here.by_class, eps_sq, totals)
        if weights is None:
            return rates
        return tuple(torch.tensordot(weights, r, dims=1) for r in rates)

    return in_safe_precision(compute, Z, eps_sq, certain=classes is not None and classes.certain)
