"""Signals as spectra ``(F, b, C)``: F frequencies of the unnormalised DFT, b samples, C channels.

Circular convolutions are products at each frequency, and norms are sums over frequencies, so that
layers never leave the spectrum. Real signals have half of it; vectors are their own spectrum of one
real frequency.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mcr2.rates.signals import half_spectrum


def to_spectrum(X: Tensor) -> Tensor:
    """Return vectors ``(b, d)`` as ``(1, b, d)``, signals ``(b, C, ...)`` as ``(F, b, C)``."""
    if X.dim() == 2:
        return X.unsqueeze(0)
    spectrum, weights = half_spectrum(X)
    return spectrum.unsqueeze(0) if weights is None else spectrum.contiguous()


def from_spectrum(S: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the samples ``(b, *shape)`` of a spectrum ``(F, b, C)``.

    Example:
        >>> X = torch.arange(30.0).view(1, 2, 3, 5)
        >>> torch.allclose(from_spectrum(to_spectrum(X), X.shape[1:]), X, atol=1e-5)
        True
    """
    b = S.shape[1]
    if not S.is_complex():
        return S[0].reshape(b, *shape)
    positions, axes = list(shape[1:]), tuple(range(2, 1 + len(shape)))
    half = [*positions[:-1], positions[-1] // 2 + 1]
    folded = S.permute(1, 2, 0).reshape(b, shape[0], *half)
    samples: Tensor = torch.fft.irfftn(folded, s=positions, dim=axes)
    return samples


def frequency_weights(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return how much each frequency counts in a mean over all of them, ``(F,)``, summing to 1.

    By Parseval's theorem ‖z‖² = Σ_f w_f ‖ẑ(f)‖². ``shape`` is that of a sample.
    """
    weights = half_spectrum(like.new_zeros((1, 1, *shape[1:])))[1] if len(shape) > 1 else None
    return like.new_ones(1) if weights is None else weights


def as_real(X: Tensor) -> Tensor:
    """Return a real view of any tensor: complex ones get a last dimension of two."""
    return torch.view_as_real(X) if X.is_complex() else X


def sq_norms(S: Tensor, weights: Tensor) -> Tensor:
    """Return the squared norms ``(b, ...)`` of the samples of spectra ``(F, b, ..., C)``."""
    flat = as_real(S).flatten(-2) if S.is_complex() else S
    squares: Tensor = torch.linalg.vector_norm(flat, dim=-1).square()
    return squares[0] if len(weights) == 1 else torch.tensordot(weights, squares, dims=1)


def project(S: Tensor, weights: Tensor) -> Tensor:
    """Scale every sample of a spectrum ``(F, b, C)`` to norm 1; a zero sample stays zero.

    A sample whose norm overflows becomes NaN: zeros would look like features.
    """
    sq = sq_norms(S, weights)
    scale = torch.where(sq > 0, sq, torch.ones_like(sq)).rsqrt().masked_fill(sq.isinf(), torch.nan)
    return S * scale.unsqueeze(-1)


def enter(X: Tensor, weights: Tensor) -> Tensor:
    """Return the spectrum of samples ``(b, ...)`` on the sphere, however large or small they are.

    Example:
        >>> enter(torch.tensor([[3e30, 4e30], [3e-30, 4e-30], [0.0, 0.0]]), torch.ones(1))
        tensor([[[0.6000, 0.8000],
                 [0.6000, 0.8000],
                 [0.0000, 0.0000]]])
    """
    info = torch.finfo(X.dtype)
    peak = torch.linalg.vector_norm(X.detach().flatten(1), torch.inf, dim=1)
    # Squares would overflow or vanish; in between nothing is touched.
    extreme = (peak > 0) & ((peak < info.tiny**0.25) | (peak > info.max**0.25))
    scaled = X / peak.where(extreme, 1).view(-1, *[1] * (X.dim() - 1))
    return project(to_spectrum(scaled), weights)
