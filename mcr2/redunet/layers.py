"""One layer of ReduNet: its operators from Gram matrices or samples, and what it does to features.

Operators act on spectra ``(F, b, C)``, at each of F frequencies by a Hermitian C × C matrix. They
come from whichever Gram matrix is smaller. With n < C samples Z of a class,

    α (I + α ZᴴZ)⁻¹ = α (I − WᴴW),     W = √α L⁻¹Z  (n × C),     LLᴴ = I + α ZZᴴ,

and where n < C/2 it is W that a layer keeps: fewer numbers and fewer operations than C × C.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mcr2.redunet.features import Batch
from mcr2.redunet.spectra import as_real, project, sq_norms

#: Compressed features are computed for this many real numbers at a time: they stay in the cache.
_CHUNK = 1 << 21


class LayerRates(NamedTuple):
    """R, R_c and ΔR of the training features after a number of layers, in nats, by their labels.

    As of :func:`mcr2.rates.rate_reduction`, or ``shift_invariant_rate_reduction`` for signals.
    """

    layers: int
    rate: float
    compressed_rate: float
    reduction: float


class Shape(NamedTuple):
    """What moments and layers have the size of: F, C and the class sizes."""

    frequencies: int
    channels: int
    counts: tuple[int, ...]


class Moments:
    """What a layer is constructed from, accumulated batch by batch.

    Of each class the Gram matrix ``(C, C)``, or its samples where there are fewer than C in every
    class; of all samples the same. Never more than (K + 1) C² numbers a frequency, whatever m.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        F, C, self.counts = shape
        m, n = sum(self.counts), max(self.counts)
        self.by_samples, self.total_by_samples = n < C, m < C
        self.classes = torch.empty(F, len(self.counts), min(n, C), C, dtype=dtype, device=device)
        self.total = torch.empty(F, 1, min(m, C), C, dtype=dtype, device=device)

    def add_up(self, spectra: Iterable[tuple[Batch, Tensor]]) -> Moments:
        """Begin anew, in the same memory, and add every batch's spectrum ``(F, b, C)``."""
        self.classes.zero_()
        self.total.zero_()
        for batch, S in ((batch, S.to(self.classes.dtype)) for batch, S in spectra):
            for label, start, stop, first in batch.runs:
                own = S[:, start:stop]
                if self.by_samples:
                    self.classes[:, label, first : first + stop - start] = own
                else:
                    self.classes[:, label] += own.mH @ own
            if self.total_by_samples:
                self.total[:, 0, batch.start : batch.stop] = S
            elif self.by_samples:
                self.total[:, 0] += S.mH @ S
        return self

    def factors(self, eps_sq: float) -> tuple[Factors, Factors]:
        """Factor I + α Gram, of all samples and of the classes; what was added up is used up."""
        if not self.by_samples:
            # The class Grams sum to that of all samples.
            torch.sum(self.classes, 1, keepdim=True, out=self.total)
        C, m = self.total.shape[-1], sum(self.counts)
        total = Factors(self.total, self.total_by_samples, [C / (m * eps_sq)])
        alphas = [C / (n * eps_sq) if n else 0.0 for n in self.counts]
        return total, Factors(self.classes, self.by_samples, alphas)


class Factors:
    """Cholesky factors of I + α_k Gram_k at each frequency."""

    def __init__(self, moments: Tensor, by_samples: bool, alphas: Sequence[float]) -> None:
        self.alphas = torch.tensor(alphas, dtype=moments.dtype.to_real(), device=moments.device)
        scale = self.alphas[:, None, None]
        self.samples = moments if by_samples else None
        gram = moments @ moments.mH * scale if by_samples else moments.mul_(scale)
        gram.diagonal(dim1=-2, dim2=-1).add_(1)
        bad = torch.zeros((), dtype=torch.bool, device=gram.device)
        for k in range(len(alphas)):  # a class at a time: into the same memory
            factor, info = torch.linalg.cholesky_ex(gram[:, k])
            gram[:, k] = factor
            bad |= (info != 0).any()
        self.factor = gram
        #: logdet(I + α_k Gram_k), (F, K): NaN or inf where there is no factor.
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        pivots = diagonal.real if diagonal.is_complex() else diagonal
        self.logdets = torch.where(bad, torch.nan, 2 * pivots.log().sum(-1))

    def reduced(self, k: int | slice) -> Tensor:
        """Return W_k ``(F, n, C)``, or of several classes ``(F, K, n, C)``, of samples."""
        assert self.samples is not None
        scaled = self.samples[:, k] * self.alphas[k, None, None].sqrt()
        reduced: Tensor = torch.linalg.solve_triangular(self.factor[:, k], scaled, upper=False)
        return reduced

    def operator(self, k: int) -> Tensor:
        """Return α_k (I + α_k Gram_k)⁻¹, ``(F, C, C)``."""
        if self.samples is None:
            return torch.cholesky_inverse(self.factor[:, k]).mul_(self.alphas[k])
        W = self.reduced(k)
        operator = (W.mH @ W).neg_()
        operator.diagonal(dim1=-2, dim2=-1).add_(1)
        return operator.mul_(self.alphas[k])


class ReduLayer(nn.Module):
    """One layer, z ← P(z + η (E z − Σ_k γ_k π̂_k(z) C_k z)), on spectra.

    Its tensors are parameters that ask for no gradient until ``requires_grad_()``. Complex ones are
    kept as pairs of reals, which double the last dimension, and none has four dimensions, which
    ``channels_last`` would reorder.

    Attributes:
        expansion: E, ``(F, C, C)``.
        compressions: the C_k side by side, ``(F, C, K·C)``; empty where ``factors`` are kept.
        factors: W_k with C_k = α_k (I − W_kᴴW_k), ``(F, K·n, C)``; empty otherwise.
        alphas: α_k, ``(K,)``; 0 for an absent class.
        gammas: γ_k, ``(K,)``; 0 for an absent class.
    """

    TENSORS = ("expansion", "compressions", "factors", "alphas", "gammas")

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        kept = (nn.Parameter(tensors[name], requires_grad=False) for name in self.TENSORS)
        self.expansion, self.compressions, self.factors, self.alphas, self.gammas = kept

    @classmethod
    def build(cls, total: Factors, classes: Factors, shape: Shape, dtype: torch.dtype) -> ReduLayer:
        """Make a layer of factored moments, for spectra of a dtype."""
        (F, C, counts), K = shape, len(shape.counts)
        compressions = factors = classes.factor.new_empty(0, dtype=dtype)
        if 2 * max(counts) < C:
            factors = classes.reduced(slice(None)).reshape(F, -1, C).to(dtype)
        else:
            side_by_side = classes.factor.new_empty(F, C, K, C, dtype=dtype)
            for k in range(K):
                side_by_side[:, :, k] = classes.operator(k)
            compressions = side_by_side.view(F, C, -1)
        kept = [t.contiguous() for t in (total.operator(0).to(dtype), compressions, factors)]
        kept = [as_real(t).flatten(-2) for t in kept] if dtype.is_complex else kept
        tensors = dict(zip(cls.TENSORS, kept, strict=False))
        gammas = torch.tensor(counts, dtype=torch.float64) / sum(counts)
        tensors["alphas"] = classes.alphas.to(dtype.to_real())
        tensors["gammas"] = gammas.to(tensors["alphas"])
        return cls(tensors)

    def forward(
        self, S: Tensor, weights: Tensor, *, eta: float, lam: float, batch: Batch | None = None
    ) -> Tensor:
        """Map spectra ``(F, b, C)`` to spectra; by a batch's labels where membership is given."""
        moved = S + eta * (S @ self._tensor(self.expansion, S))
        if batch is not None:
            gammas = self.gammas.tolist()
            parts = [
                gammas[run.label] * self._compress_by(run.label, S[:, run.start : run.stop])
                for run in batch.runs
            ]
        else:
            numbers = S.shape[0] * S.shape[2] * len(self.gammas) * (2 if S.is_complex() else 1)
            pieces = torch.split(S, max(1, _CHUNK // numbers), dim=1)
            parts = [self._compress(part, weights, lam) for part in pieces]
        return project(moved - eta * torch.cat(parts, dim=1), weights)

    def _tensor(self, parameter: Tensor, S: Tensor) -> Tensor:
        if not S.is_complex():
            return parameter
        return torch.view_as_complex(parameter.view(*parameter.shape[:-1], -1, 2))

    def _compressed(self, S: Tensor) -> Tensor:
        """Return all C_k z, ``(F, b, K, C)``."""
        F, b, C = S.shape
        K = len(self.gammas)
        if self.factors.numel() == 0:
            return (S @ self._tensor(self.compressions, S)).view(F, b, K, C)
        W = self._tensor(self.factors, S)
        inner = (S @ W.mH).view(F, b, K, -1).transpose(1, 2).reshape(F * K, b, -1)
        whole = S.unsqueeze(1).expand(F, K, b, C).reshape(F * K, b, C)
        outside = torch.baddbmm(whole, inner, W.reshape(F * K, -1, C), alpha=-1)
        return outside.view(F, K, b, C).mul_(self.alphas[:, None, None]).transpose(1, 2)

    def _compress_by(self, label: int, S: Tensor) -> Tensor:
        """Return C_k z of one class k, ``(F, b, C)``."""
        F, _, C = S.shape
        K = len(self.gammas)
        if self.factors.numel() == 0:
            return S @ self._tensor(self.compressions, S).view(F, C, K, C)[:, :, label]
        W = self._tensor(self.factors, S).view(F, K, -1, C)[:, label]
        return self.alphas[label] * (S - (S @ W.mH) @ W)

    def _compress(self, S: Tensor, weights: Tensor, lam: float) -> Tensor:
        """Return Σ_k γ_k π̂_k(z) C_k z, ``(F, b, C)``."""
        compressed = self._compressed(S)
        F, b, K, C = compressed.shape
        # An absent class has C_k = 0, which would look like a perfect fit.
        scores = -lam * sq_norms(compressed, weights).sqrt()
        share = self.gammas * scores.masked_fill(self.gammas == 0, -torch.inf).softmax(-1)
        flat = as_real(compressed).reshape(F, b, K, -1)
        mixed = share.unsqueeze(-2) @ flat
        return torch.view_as_complex(mixed.view(F, b, C, 2)) if S.is_complex() else mixed.squeeze(2)
