"""Coding rates of features, one vector a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mcr2.checks import positive
from mcr2.rates.kernels import grouped_rates, weighted_rates
from mcr2.rates.membership import check_features, check_membership, read_membership
from mcr2.rates.precision import full_precision, in_float64, outside_graphs

_NO_LABELS = object()


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
    """Return the coding rate of all samples together (Yu et al. 2020, Section 2.1).

    R(Z) = ½ logdet(I + d/(m ε²) ZᵀZ). Scaling the matrix by γ is the same as coding with ε²/γ:
    that is how a γ inside the determinant is expressed.

    Args:
        Z: features ``(..., m, d)``, floating.
        eps_sq: ε², the squared distortion; positive.

    Returns:
        R ``(...)``, in nats; float32 for half-precision features, their own dtype otherwise.

    Raises:
        TypeError: ``Z`` is not dense and floating or ``eps_sq`` is not a number.
        ValueError: ``Z`` is empty or not finite; ``eps_sq`` is not positive, or so small that the
            promised accuracy cannot be had in float64, of the rate or of its gradient.

    Example:
        >>> import math, torch
        >>> Z = torch.eye(2)                    # each axis costs ½ log(1 + d/(m ε²)) = ½ log 3
        >>> print(f"{coding_rate(Z, eps_sq=0.5):.4f} {math.log(3):.4f}")
        1.0986 1.0986
    """
    (rate,) = evaluate(check_features(Z), eps_sq=eps_sq, gammas=[1])
    return rate


def class_coding_rates(
    Z: Tensor, labels: Tensor, *, num_classes: int | None = None, eps_sq: float = 0.5
) -> Tensor:
    """Return the coding rate of each class by itself, not weighted by its share.

    R_k(Z) = ½ logdet(I + d/(tr Π_k ε²) Zᵀ Π_k Z) (Yu et al. 2020, Section 2.1), and 0 with
    gradient 0 where tr Π_k = 0.

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
        TypeError: as for :func:`coding_rate`; or ``labels`` is neither form of membership.
        ValueError: as for :func:`coding_rate`; or labels of another length or device than the
            features', outside [0, K), far more classes than samples without ``num_classes``, or
            rows that do not sum to one.

    Example:
        >>> import torch
        >>> Z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> class_coding_rates(Z, torch.tensor([0, 0, 1]), num_classes=3, eps_sq=0.5)
        tensor([0.8047, 0.8047, 0.0000])
    """
    return evaluate(check_features(Z), labels, num_classes=num_classes, eps_sq=eps_sq)[0]


def rate_reduction(
    Z: Tensor, labels: Tensor, *, num_classes: int | None = None, eps_sq: float = 0.5
) -> Rates:
    """Return the coding rate reduction ΔR of a partition, with the rates it is made of.

    ΔR(Z, Π) = R(Z) − Σ_k (tr Π_k / m) R_k(Z) (Yu et al. 2020, Section 2.2): what is saved by coding
    each class by itself. But for rounding it is never negative; it is largest where classes span
    orthogonal subspaces.

    Args:
        Z: features ``(..., m, d)``, floating.
        labels: membership, as for :func:`class_coding_rates`.
        num_classes: K; by default the largest label plus one, or the matrix's columns.
        eps_sq: ε², the squared distortion; positive.

    Returns:
        :class:`Rates` with ``rate``, ``class_rates``, ``compressed_rate``, ``reduction``.

    Raises:
        TypeError, ValueError: as for :func:`class_coding_rates`.

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
    X = check_features(Z)
    return Rates(*evaluate(X, labels, num_classes=num_classes, eps_sq=eps_sq, gammas=[1]))


def rate_reduction_with_expansion(
    Z: Tensor,
    labels: Tensor,
    *,
    gamma: float,
    num_classes: int | None = None,
    eps_sq: float = 0.5,
) -> tuple[Tensor, Rates]:
    """Return the total rate with γ inside its determinant, beside the rates as defined.

    E(Z) = ½ logdet(I + γ d/(m ε²) ZᵀZ), from the same Gram matrix as R; γ is γ₁ of the published
    experiments of Yu et al. (2020).

    Args:
        Z: features ``(..., m, d)``, floating.
        labels: membership, as for :func:`class_coding_rates`.
        gamma: γ; positive.
        num_classes: K; by default the largest label plus one, or the matrix's columns.
        eps_sq: ε², the squared distortion; positive.

    Returns:
        E ``(...)``, and :class:`Rates` as from :func:`rate_reduction`.

    Raises:
        TypeError, ValueError: as for :func:`class_coding_rates`; or ``gamma`` is not positive.

    Example:
        >>> import torch
        >>> Z, labels = torch.eye(2), torch.tensor([0, 1])
        >>> expansion, rates = rate_reduction_with_expansion(Z, labels, gamma=2.0)
        >>> print(f"{expansion:.4f} {coding_rate(Z, eps_sq=0.25):.4f} {rates.rate:.4f}")
        1.6094 1.6094 1.0986
    """
    X, gammas = check_features(Z), [1] if positive("gamma", gamma) == 1 else [gamma, 1]
    found = evaluate(X, labels, num_classes=num_classes, eps_sq=eps_sq, gammas=gammas)
    return found[0], Rates(*found[-4:])


@outside_graphs
def evaluate(
    X: Tensor,
    labels: object = _NO_LABELS,
    *,
    eps_sq: float,
    num_classes: int | None = None,
    gammas: Sequence[float] = (),
    weights: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Evaluate rates of checked features (..., m, d), averaged by ``weights`` over the first one.

    Returns:
        R ``(...)`` with each of ``gammas`` inside its determinant, the last of them 1; then, with
        labels, R_k ``(..., K)``, R_c and, where there is an R, ΔR.
    """
    eps_sq = positive("eps_sq", eps_sq)
    totals = [positive("eps_sq / gamma", eps_sq / gamma) for gamma in gammas]
    alone, m = labels is _NO_LABELS, X.shape[-2]
    given = None if alone else check_membership(X, m, labels, num_classes)
    device, dtype = X.device, X.dtype.to_real()
    if device.type == "mps":  # has no float64
        X, given = X.cpu(), None if given is None else given.cpu()
    with full_precision(X):
        membership = None if given is None else read_membership(given, num_classes)
        try:
            if isinstance(membership, Tensor):
                rates = weighted_rates(X, membership, eps_sq, totals)
            else:
                rates = grouped_rates(X, membership, eps_sq, totals)
        except ArithmeticError as error:
            if not bool(X.isfinite().all()):
                raise ValueError("Z must be finite, without NaN or infinity") from None
            largest = float(torch.linalg.vector_norm(in_float64(X.detach()), dim=-1).max())
            size = f"features of norm up to {largest:.3g}"
            raise ValueError(f"eps_sq={eps_sq} is too small for {size}: {error}") from None
        if weights is not None:
            rates = tuple(torch.tensordot(weights.to(r), r, dims=1) for r in rates)
    if membership is not None and totals:
        rates = (*rates, rates[-3] - rates[-1])
    return tuple(r.to(dtype).to(device) for r in rates)
