"""Rates of samples of which only the second moments of the classes are at hand.

Sums over processes, or over batches, of ``Z_kᵀ Z_k`` are all that the rates of classes need: K d²
numbers, however many samples there were.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcr2 import checks
from mcr2.rates.logdet import Matrices, half_logdets
from mcr2.rates.precision import in_float64, write
from mcr2.rates.vectors import Rates


def class_moments(Z: Tensor, labels: Tensor, *, num_classes: int) -> Tensor:
    """Return the second moments ``Z_kᵀ Z_k`` of the classes, about zero and not divided.

    Args:
        Z: features ``(m, d)``, floating; m may be 0.
        labels: integers in [0, K), ``(m,)``, on the features' device.
        num_classes: K.

    Returns:
        ``(K, d, d)`` in float64, differentiable; zero for an absent class.

    Raises:
        TypeError, ValueError: arguments of the wrong kind, shape or range.

    Example:
        >>> Z = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
        >>> class_moments(Z, torch.tensor([0, 0, 1]), num_classes=2)[0].tolist()
        [[5.0, 0.0], [0.0, 0.0]]
    """
    K = checks.classes(num_classes)
    Z = in_float64(checks.floating("Z", Z, "m", "d", finite=False))
    labels = checks.labels(labels, K, count=len(Z))
    sizes = torch.bincount(labels.long(), minlength=K).tolist()
    classes = torch.split(Z.index_select(0, labels.argsort(stable=True)), sizes)
    return torch.stack([X.mT @ X for X in classes])


def rates_of_moments(
    moments: Tensor, counts: Tensor, *, gamma: float = 1.0, eps_sq: float = 0.5
) -> tuple[Tensor, Rates]:
    """Return what :func:`rate_reduction_with_expansion` does, from classes' second moments.

    R = ½ logdet(I + d/(m ε²) Σ_k M_k) and R_k = ½ logdet(I + d/(n_k ε²) M_k), with M_k = Z_kᵀ Z_k;
    the expansion has γ inside the determinant of R.

    Args:
        moments: M_k ``(K, d, d)``, float64, as from :func:`class_moments`.
        counts: n_k ``(K,)``, integers; the moment of a class of none is zero.
        gamma, eps_sq: γ and ε²; positive.

    Returns:
        The expansion ``()`` and :class:`Rates`, all float64.

    Raises:
        TypeError: moments that are not float64, or counts that are not integers.
        ValueError: shapes that do not agree, no sample, moments that are not finite, or an ε² so
            small that second moments do not hold the promised accuracy.

    Example:
        >>> from mcr2.rates import rate_reduction
        >>> Z, y = torch.eye(4)[[0, 0, 1, 2, 3]], torch.tensor([0, 0, 1, 1, 1])
        >>> moments, counts = class_moments(Z, y, num_classes=2), torch.tensor([2, 3])
        >>> _, found = rates_of_moments(moments, counts)
        >>> print(f"{found.reduction:.4f} {rate_reduction(Z, y).reduction:.4f}")
        0.5420 0.5420
    """
    if not isinstance(moments, Tensor) or moments.dtype != torch.float64:
        raise TypeError(f"moments must be float64, not {checks.describe(moments)}")
    K, d = len(checks.labels(counts)), moments.shape[-1]
    checks.floating("moments", moments, K, d, d, finite=False)
    eps_sq, gamma = checks.positive("eps_sq", eps_sq), checks.positive("gamma", gamma)
    sizes = counts.tolist()
    m, present = sum(sizes), [k for k, n in enumerate(sizes) if n > 0]
    if not present or min(sizes) < 0:
        raise ValueError(f"counts are {sizes}; they must be at least 0, and one of them more")

    def lost(_: Tensor) -> tuple[Tensor, Tensor]:
        raise ArithmeticError

    def matrices(grams: Tensor, scale: list[float]) -> Matrices:
        return Matrices(
            grams, write(scale, grams.device), write([0.0] * len(scale), grams.device), lost
        )

    which = write(present, moments.device, torch.int64)
    own = matrices(moments.index_select(0, which), [d / (sizes[k] * eps_sq) for k in present])
    of_all = moments.sum(0).expand(2, -1, -1)
    try:
        found, (expansion, rate) = half_logdets(
            [own, matrices(of_all, [gamma * d / (m * eps_sq), d / (m * eps_sq)])]
        )
    except ArithmeticError:
        if not bool(moments.isfinite().all()):
            raise ValueError("moments must be finite, without NaN or infinity") from None
        raise ValueError(f"eps_sq={eps_sq} is too small for rates of second moments") from None
    class_rates = torch.zeros_like(moments[:, 0, 0]).index_copy(0, which, found)
    compressed = class_rates @ write([n / m for n in sizes], moments.device)
    return expansion, Rates(rate, class_rates, compressed, rate - compressed)
