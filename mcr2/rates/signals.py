"""Coding rates of signals together with all their circular shifts.

A signal of C channels is coded with every shift of it: its features are the columns of circ(z),
CT × T. The Gram of all of them is block-diagonal over the frequencies of the unnormalised DFT,
one C × C block each, so that

    R(circ Z) = 1/(2T) logdet(I + C/(m ε²) circ(Z)circ(Z)ᵀ)
              = 1/T Σ_f ½ logdet(I + C/(m ε²) Σ_i v̄_i(f) v_i(f)ᵀ),    v_i = DFT of sample i

and the class rates alike. For images T is H · W and the shifts are those of the torus. Blocks at f
and −f are conjugate: half the spectrum is computed, and counted twice where it stands for two.

Reference: Chan, Yu, You, Qi, Wright & Ma, "ReduNet: A White-box Deep Network from the Principle
of Maximizing Rate Reduction", JMLR 2022, Section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcr2.rates.membership import check_features
from mcr2.rates.vectors import Rates, evaluate


def shift_invariant_rate(Z: Tensor, *, eps_sq: float = 0.5) -> Tensor:
    """Return the coding rate of all samples and their circular shifts together.

    R(circ Z) = 1/(2T) logdet(I + C/(m ε²) circ(Z)circ(Z)ᵀ) (Chan et al. 2022, Section 4); for
    T = 1 the rate of vectors.

    Args:
        Z: signals ``(m, C, T)`` or images ``(m, C, H, W)``, floating.
        eps_sq: ε², the squared distortion; positive.

    Returns:
        R ``()``, in nats; float32 for half-precision signals, their own dtype otherwise.

    Raises:
        TypeError, ValueError: as for :func:`mcr2.rates.coding_rate`; or ``Z`` has another shape.

    Example:
        >>> Z = torch.tensor([[[1.0, 2.0, 0.0, 0.0]]])      # one sample, one channel
        >>> circ = torch.stack([Z[0, 0].roll(t) for t in range(4)], dim=1)
        >>> expected = torch.logdet(torch.eye(4) + 1 / 0.5 * circ @ circ.T) / (2 * 4)
        >>> print(f"{shift_invariant_rate(Z):.4f} {expected:.4f}")
        1.1049 1.1049
    """
    X, weights = half_spectrum(check_features(Z, signals=True))
    (rate,) = evaluate(X, eps_sq=eps_sq, gammas=[1], weights=weights)
    return rate


def shift_invariant_class_rates(
    Z: Tensor, labels: Tensor, *, num_classes: int | None = None, eps_sq: float = 0.5
) -> Tensor:
    """Return the coding rate of each class and its circular shifts, not weighted by its share.

    R_k = 1/(2T) logdet(I + C/(tr Π_k ε²) circ(Z)Π_k circ(Z)ᵀ) (Chan et al. 2022, Section 4), all
    shifts of a sample having its membership; 0 with gradient 0 where tr Π_k = 0.

    Args:
        Z: signals ``(m, C, T)`` or images ``(m, C, H, W)``, floating.
        labels: membership, as for :func:`mcr2.rates.class_coding_rates`.
        num_classes: K; by default the largest label plus one, or the matrix's columns.
        eps_sq: ε², the squared distortion; positive.

    Returns:
        R_k ``(K,)``, in nats; float32 for half-precision signals.

    Raises:
        TypeError, ValueError: as for :func:`shift_invariant_rate`, and for the membership.

    Example:
        >>> Z = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 1.0]]])
        >>> shift_invariant_class_rates(Z, torch.tensor([0, 0, 1]), eps_sq=0.5)
        tensor([0.5493, 0.5493])
    """
    X, weights = half_spectrum(check_features(Z, signals=True))
    return evaluate(X, labels, num_classes=num_classes, eps_sq=eps_sq, weights=weights)[0]


def shift_invariant_rate_reduction(
    Z: Tensor, labels: Tensor, *, num_classes: int | None = None, eps_sq: float = 0.5
) -> Rates:
    """Return the coding rate reduction ΔR of signals and all their circular shifts.

    ΔR = R(circ Z) − Σ_k (tr Π_k / m) R_k(circ Z) (Chan et al. 2022, Section 4). No shift of any
    sample changes it.

    Args:
        Z: signals ``(m, C, T)`` or images ``(m, C, H, W)``, floating.
        labels: membership, as for :func:`mcr2.rates.class_coding_rates`.
        num_classes: K; by default the largest label plus one, or the matrix's columns.
        eps_sq: ε², the squared distortion; positive.

    Returns:
        :class:`mcr2.rates.Rates` with ``rate`` ``()`` and ``class_rates`` ``(K,)``.

    Raises:
        TypeError, ValueError: as for :func:`shift_invariant_class_rates`.

    Example:
        >>> Z = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 1.0]]])
        >>> still = shift_invariant_rate_reduction(Z, torch.tensor([0, 0, 1]))
        >>> moved = shift_invariant_rate_reduction(Z.roll(1, dims=-1), torch.tensor([0, 0, 1]))
        >>> print(f"{still.reduction:.4f} {moved.reduction:.4f}")
        0.0649 0.0649
    """
    X, weights = half_spectrum(check_features(Z, signals=True))
    return Rates(
        *evaluate(X, labels, num_classes=num_classes, eps_sq=eps_sq, gammas=[1], weights=weights)
    )


def half_spectrum(Z: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the non-negative frequencies of real signals (m, C, T) or (m, C, H, W).

    That is the unnormalised DFT, ``(F, m, C)``, and what each frequency counts, ``(F,)``, summing
    to one; of signals of one position themselves, ``(m, C)``, and None.
    """
    total = Z[0, 0].numel()
    if total == 1:
        return Z.reshape(Z.shape[:2]), None
    spectrum = torch.fft.rfftn(Z, dim=tuple(range(2, Z.dim())))
    # Frequency zero, and the one at half the rate where there is one, stand for themselves.
    counts = Z.new_full((spectrum.shape[-1],), 2.0)
    counts[0] = 1
    if Z.shape[-1] % 2 == 0:
        counts[-1] = 1
    weights = counts.expand(spectrum.shape[2:]).flatten() / total
    return spectrum.flatten(2).permute(2, 0, 1), weights
