"""One layer of ReduNet: its operators from Gram matrices or samples, and what it does to features.

Operators act on spectra ``(F, b, C)``, at each of F frequencies by a Hermitian C × C matrix. They
come from whichever Gram matrix is smaller. With n < C samples Z of a class,

    α (I + α ZᴴZ)⁻¹ = α (I − WᴴW),     W = √α L⁻¹Z  (n × C),     LLᴴ = I + α ZZᴴ,

and where n < C/2 it is W that a layer keeps: fewer numbers and fewer operations than C × C.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mcr2.redunet.features import Batch
from mcr2.redunet.spectra import as_real, project, sq_norms

#: Compressed features are computed for this many real numbers at a time: they stay in the cache.
_CHUNK = 1 << 21


class LayerRates(NamedTuple):
    """Rates of the training samples' features after a number of layers, in nats.

    They are those of :func:`mcr2.rates.rate_reduction`, for signals of
    :func:`mcr2.rates.shift_invariant_rate_reduction`, by the labels constructed from.

    Attributes:
        layers: how many layers the features have passed.
        rate: R.
        compressed_rate: R_c.
        reduction: ΔR = R − R_c.
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

    @property
    def samples(self) -> int:
        """m."""
        return sum(self.counts)

    @property
    def by_samples(self) -> bool:
        """Whether every class has fewer samples than channels."""
        return max(self.counts) < self.channels

    @property
    def factored(self) -> bool:
        """Whether a layer keeps W in place of C × C operators."""
        return 2 * max(self.counts) < self.channels


class Moments:
    """What a layer is constructed from, accumulated batch by batch.

    Of each class the Gram matrix ``(C, C)``, or its samples where there are fewer than C in every
    class; of all samples the same. Never more than (K + 1) C² numbers a frequency, whatever m.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        F, C, counts = shape
        self.shape = shape
        rows = max(counts) if shape.by_samples else C
        self.classes = torch.empty(F, len(counts), rows, C, dtype=dtype, device=device)
        self.total_by_samples = shape.samples < C
        rows = shape.samples if self.total_by_samples else C
        self.total = torch.empty(F, 1, rows, C, dtype=dtype, device=device)

    def clear(self) -> Moments:
        """Begin anew, in the same memory."""
        self.classes.zero_()
        self.total.zero_()
        return self

    def add(self, batch: Batch, S: Tensor) -> None:
        """Add a batch's spectrum ``(F, b, C)``."""
        S = S.to(self.classes.dtype)
        for label, start, stop, first in batch.runs:
            own = S[:, start:stop]
            if self.shape.by_samples:
                self.classes[:, label, first : first + stop - start] = own
            else:
                self.classes[:, label] += own.mH @ own
        if self.total_by_samples:
            self.total[:, 0, batch.start : batch.stop] = S
        elif self.shape.by_samples:
            self.total[:, 0] += S.mH @ S

    def factors(self, eps_sq: float) -> tuple[Factors, Factors]:
        """Factor I + α Gram, of all samples and of the classes; what was added up is used up."""
        _, C, counts = self.shape
        if not self.shape.by_samples:
            # The class Grams sum to that of all samples.
            torch.sum(self.classes, 1, keepdim=True, out=self.total)
        alphas = [C / (n * eps_sq) if n else 0.0 for n in counts]
        return (
            Factors(self.total, self.total_by_samples, [C / (self.shape.samples * eps_sq)]),
            Factors(self.classes, self.shape.by_samples, alphas),
        )


class Factors:
    """Cholesky factors of I + α_k Gram_k at each frequency."""

    def __init__(self, moments: Tensor, by_samples: bool, alphas: Sequence[float]) -> None:
        real = moments.real.dtype if moments.is_complex() else moments.dtype
        self.alphas = torch.tensor(alphas, dtype=real, device=moments.device)
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

    Its tensors are parameters that ask for no gradient: ``requires_grad_()`` makes a constructed
    network a start for back-propagation. Complex ones are kept as pairs of reals, which double the
    last dimension, and none has four dimensions, which ``channels_last`` would reorder.

    Attributes:
        expansion: E, ``(F, C, C)``.
        compressions: the C_k side by side, ``(F, C, K·C)``; empty where ``factors`` are kept.
        factors: W_k with C_k = α_k (I − W_kᴴW_k), ``(F, K·n, C)``; empty otherwise.
        alphas: α_k, ``(K,)``; 0 for an absent class.
        gammas: γ_k, ``(K,)``; 0 for an absent class.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.expansion = nn.Parameter(tensors["expansion"], requires_grad=False)
        self.compressions = nn.Parameter(tensors["compressions"], requires_grad=False)
        self.factors = nn.Parameter(tensors["factors"], requires_grad=False)
        self.alphas = nn.Parameter(tensors["alphas"], requires_grad=False)
        self.gammas = nn.Parameter(tensors["gammas"], requires_grad=False)

    @classmethod
    def blank(cls, shape: Shape, like: Tensor) -> ReduLayer:
        """Return a layer to :meth:`fill`.

        Args:
            shape: of the moments.
            like: a spectrum, which gives dtype and device.
        """
        F, C, counts = shape
        K = len(counts)
        sizes = {
            "expansion": (F, C, C),
            "compressions": (0,) if shape.factored else (F, C, K * C),
            "factors": (F, K * max(counts), C) if shape.factored else (0,),
            "alphas": (K,),
            "gammas": (K,),
        }
        pairs = 2 if like.is_complex() else 1
        real = like.real if like.is_complex() else like
        # In one go, before what is temporary: blocks that stay lie side by side.
        return cls(
            {
                name: real.new_empty((*size[:-1], size[-1] * (pairs if len(size) > 1 else 1)))
                for name, size in sizes.items()
            }
        )

    def fill(self, total: Factors, classes: Factors, shape: Shape) -> ReduLayer:
        """Set all tensors from factored moments."""
        F, C, counts = shape
        K = len(counts)
        own = classes.factor  # its being complex says that spectra are
        self._tensor(self.expansion, own).copy_(total.operator(0))
        if shape.factored:
            W = classes.reduced(slice(None))
            self._tensor(self.factors, own).view(F, K, -1, C).copy_(W)
        else:
            side_by_side = self._tensor(self.compressions, own).view(F, C, K, C)
            for k in range(K):
                side_by_side[:, :, k] = classes.operator(k)
        self.alphas.copy_(classes.alphas)
        self.gammas.copy_(torch.tensor(counts, dtype=torch.float64) / shape.samples)
        return self

    def forward(
        self, S: Tensor, weights: Tensor, *, eta: float, lam: float, batch: Batch | None = None
    ) -> Tensor:
        """Map spectra ``(F, b, C)`` to spectra.

        Args:
            S: of any samples.
            weights: of frequencies, :func:`mcr2.redunet.spectra.frequency_weights`.
            eta, lam: η and λ.
            batch: the runs of one class each of S, where membership is given and not estimated.
        """
        moved = S + eta * (S @ self._tensor(self.expansion, S))
        if batch is not None:
            gammas = self.gammas.tolist()
            own = [
                gammas[run.label] * self._compress_by(run.label, S[:, run.start : run.stop])
                for run in batch.runs
            ]
            return project(moved - eta * torch.cat(own, dim=1), weights)
        numbers = S.shape[0] * S.shape[2] * len(self.gammas) * (2 if S.is_complex() else 1)
        rows = max(1, _CHUNK // numbers)
        parts = [self._compress(part, weights, lam) for part in torch.split(S, rows, dim=1)]
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
        K = len(self.gammas)
        if self.factors.numel() == 0:
            F, _, C = S.shape
            return S @ self._tensor(self.compressions, S).view(F, C, K, C)[:, :, label]
        W = self._tensor(self.factors, S).view(len(S), K, -1, S.shape[2])[:, label]
        return self.alphas[label] * (S - (S @ W.mH) @ W)

    def _compress(self, S: Tensor, weights: Tensor, lam: float) -> Tensor:
        """Return Σ_k γ_k π̂_k(z) C_k z, ``(F, b, C)``."""
        compressed = self._compressed(S)
        share = self.gammas * self._estimate(sq_norms(compressed, weights), lam)
        F, b, K, C = compressed.shape
        flat = as_real(compressed).reshape(F, b, K, -1)
        mixed = share.unsqueeze(-2) @ flat
        return torch.view_as_complex(mixed.view(F, b, C, 2)) if S.is_complex() else mixed.squeeze(2)

    def _estimate(self, squares: Tensor, lam: float) -> Tensor:
        # An absent class has C_k = 0, which would look like a perfect fit.
        scores = (-lam * squares.sqrt()).masked_fill(self.gammas == 0, -torch.inf)
        return scores.softmax(-1)
