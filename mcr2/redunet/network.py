"""ReduNet as a module: constructed by ``fit``, used like any network."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mcr2 import checks
from mcr2.rates.precision import full_precision
from mcr2.redunet.features import STORES, Batch, Step, Store, cut
from mcr2.redunet.layers import Factors, LayerRates, Moments, ReduLayer, Shape
from mcr2.redunet.spectra import enter, frequency_weights, from_spectrum, to_spectrum

#: How the construction moves its own samples: by estimate, as any other, or by their labels.
MEMBERSHIPS = ("estimated", "given")

#: Which DFT η, ε² and λ are meant for: the unnormalised one, or the authors' orthonormal one.
FFT_NORMS = ("backward", "ortho")


class ReduNet(nn.Module):
    """A network constructed from the gradient of ΔR.

    With samples as rows, layer ℓ has E = α(I + αZᵀZ)⁻¹ and C_k = α_k(I + α_k ZᵀΠ_kZ)⁻¹ of the
    training features Z that enter it, α = d/(m ε²), α_k = d/(tr Π_k ε²), γ_k = tr Π_k/m, and maps

        z ← P(z + η (E z − Σ_k γ_k π̂_k(z) C_k z)),     π̂_k(z) ∝ exp(−λ ‖C_k z‖),

    P the projection to the unit sphere, by which samples enter the first layer too. For signals
    and images the operators are those of all circular shifts, one C × C matrix a frequency of the
    unnormalised DFT, α = C/(m ε²), and ‖·‖ is the norm of the whole signal. The authors' code has
    the same α with an orthonormal DFT: it is ours at η, ε² and λ multiplied by the number of
    positions, T or H·W. ``fft_norm="ortho"`` takes their values as they stand.

    Labels decide the operators. The training samples move on by ``membership``: ``"estimated"``, as
    any other sample and in the authors' code, or ``"given"``, along the exact gradient of ΔR by the
    labels: ΔR grows at every layer for small η, but no sample without a label can follow.

    A ``state_dict`` holds the layers and the lifting's weights, but none of the arguments: keep
    η, λ and ``fft_norm`` beside it, on which features depend.

    Args:
        layers: how many to construct.
        eta: η, the step; positive.
        eps_sq: ε², the squared distortion; positive.
        lam: λ, how sharply membership is estimated; not negative.
        lifting: a module that samples pass first, such as :class:`~mcr2.redunet.RandomFilters`.
        membership: ``"estimated"`` or ``"given"``.
        patience: stop where ΔR by the labels has not exceeded its best for so many layers, and go
            back to the best; None constructs all layers.
        fft_norm: ``"backward"`` or ``"ortho"``, the DFT that η, ε² and λ are meant for.

    Attributes:
        layers: the constructed layers.
        history: rates of the training features by the labels, before the first layer and after
            each that was tried. Not part of ``state_dict``.

    Raises:
        TypeError, ValueError: an argument that is not a number of its kind, or out of its range.

    Reference: Chan, Yu, You, Qi, Wright & Ma, "ReduNet: A White-box Deep Network from the Principle
    of Maximizing Rate Reduction", JMLR 2022, equations 10 to 16; Section 4 for signals.

    Example:
        >>> X = torch.tensor([[1.0, 0.2], [1.0, 0.3], [0.9, 1.0], [0.7, 1.0]])
        >>> net = ReduNet(layers=60, eta=0.5, eps_sq=0.1).fit(X, torch.tensor([0, 0, 1, 1]))
        >>> Z = net(X)
        >>> float(Z[0] @ Z[3]) < 0.01, bool(net.history[-1].reduction > net.history[0].reduction)
        (True, True)
    """

    shape: Tensor
    layers: nn.ModuleList

    def __init__(
        self,
        *,
        layers: int = 50,
        eta: float = 0.5,
        eps_sq: float = 0.1,
        lam: float = 500.0,
        lifting: nn.Module | None = None,
        membership: str = "estimated",
        patience: int | None = None,
        fft_norm: str = "backward",
    ) -> None:
        super().__init__()
        self.depth = checks.integer("layers", layers, 1)
        self.eta = checks.positive("eta", eta)
        self.eps_sq = checks.positive("eps_sq", eps_sq)
        self.lam = checks.number("lam", lam, 0)
        self.membership: str = checks.choice("membership", membership, MEMBERSHIPS)
        self.patience = None if patience is None else checks.integer("patience", patience, 1)
        self.fft_norm: str = checks.choice("fft_norm", fft_norm, FFT_NORMS)
        self.lifting = lifting
        self.layers = nn.ModuleList()
        self.history: tuple[LayerRates, ...] = ()
        # Of one sample behind the lifting; empty as long as nothing is constructed.
        self.register_buffer("shape", torch.empty(0, dtype=torch.int64))

    @torch.no_grad()
    def fit(
        self,
        X: Tensor,
        labels: Tensor,
        *,
        num_classes: int | None = None,
        batch_size: int = 1000,
        store: str = "memory",
        progress: Callable[[LayerRates], None] | None = None,
    ) -> ReduNet:
        """Construct the layers, in place of any that were there, and return the network itself.

        Args:
            X: vectors ``(m, d)``, signals ``(m, C, T)`` or images ``(m, C, H, W)``, floating. Half
                precision is constructed in float32.
            labels: ``(m,)``, integers in [0, K). A class without samples is never estimated.
            num_classes: K; by default the largest label plus one.
            batch_size: samples at a time; it changes memory and rounding, nothing else.
            store: where features are between layers: ``"memory"``, or ``"disk"``, a temporary file,
                so that memory beyond ``X`` and the network does not grow with m.
            progress: called with the rates before the first layer and after each; ``layers`` may
                be used at that moment.

        Raises:
            TypeError: ``X`` not floating or ``labels`` not integers.
            ValueError: a shape, label or argument out of its range, NaN or infinity in ``X``, an
                ε² too small for a factor in float64, an η so large that features overflow.
        """
        batch_size = checks.integer("batch_size", batch_size, 1)
        checks.choice("store", store, STORES)
        X = _samples(X, finite=False)
        for part in torch.split(X, batch_size):
            checks.floating("X", part)
        K = None if num_classes is None else checks.classes(num_classes)
        y = checks.labels(labels, K, count=len(X)).to(X.device)
        counts = torch.bincount(y, minlength=K or 0)
        order = y.argsort(stable=True)
        dtype = torch.promote_types(X.dtype, torch.float32)
        if self.lifting is not None:
            self.lifting.to(device=X.device, dtype=dtype)
        probe = self._lifted(X[:1].to(dtype))
        self.layers, self.history = nn.ModuleList(), ()
        self.shape = torch.tensor(probe.shape[1:], device=X.device)
        weights = frequency_weights(probe.shape[1:], probe)
        spectrum = to_spectrum(probe)
        shape = Shape(spectrum.shape[0], spectrum.shape[2], tuple(counts.tolist()))

        def first(batch: Batch) -> Tensor:
            rows = order[batch.start : batch.stop]
            return enter(self._lifted(X.index_select(0, rows).to(dtype)), weights)

        with full_precision(probe):
            kept = STORES[store](cut(shape.counts, batch_size), first)
            self._construct(kept, shape, spectrum.dtype, weights, progress)
        return self

    def _construct(
        self,
        kept: Store,
        shape: Shape,
        dtype: torch.dtype,
        weights: Tensor,
        progress: Callable[[LayerRates], None] | None,
    ) -> None:
        step: Step | None = None
        best = 0
        eta, eps_sq, lam = self._settings()
        moments = Moments(shape, dtype, weights.device)
        for depth in range(self.depth + 1):
            total, classes = moments.add_up(kept.sweep(step)).factors(eps_sq)
            rates = layer_rates(depth, total, classes, shape, weights)
            if rates is None:
                # What was added up in less than float64 may not be positive; add it up anew.
                wide = Moments(shape, torch.promote_types(dtype, torch.float64), weights.device)
                total, classes = wide.add_up(kept.sweep(None)).factors(eps_sq)
                rates = layer_rates(depth, total, classes, shape, weights)
            if rates is None:
                why = "I + α ZᵀZ has no Cholesky factor, in float64 either; eps_sq={0} is too small"
                if not all(bool(S.isfinite().all()) for _, S in kept.sweep(None)):
                    why = "features overflow; eta={1} is too large"
                raise ValueError(f"layer {depth}: {why.format(self.eps_sq, self.eta)}")
            self.history += (rates,)
            if rates.reduction > self.history[best].reduction:
                best = depth
            if progress is not None:
                progress(rates)
            if depth == self.depth or (self.patience and depth - best >= self.patience):
                break
            layer = ReduLayer.build(total, classes, shape, dtype)
            self.layers.append(layer)

            def step(S: Tensor, batch: Batch, layer: ReduLayer = layer) -> Tensor:
                given = batch if self.membership == "given" else None
                moved: Tensor = layer(S, weights, eta=eta, lam=lam, batch=given)
                return moved

        if self.patience:
            self.layers = self.layers[:best]

    def _settings(self) -> tuple[float, float, float]:
        """Return η, ε² and λ for the unnormalised DFT."""
        T = math.prod(self.shape.tolist()[1:]) if self.fft_norm == "ortho" else 1
        return T * self.eta, T * self.eps_sq, T * self.lam

    def _lifted(self, X: Tensor) -> Tensor:
        return X if self.lifting is None else _samples(self.lifting(X), "what the lifting made")

    def forward(self, X: Tensor, *, layers: int | None = None) -> Tensor:
        """Map samples to features of unit norm, of the shape that they have behind the lifting.

        Args:
            X: samples of the shape constructed from, floating; brought to the layers' dtype.
            layers: how many of the first layers they pass; None means all.

        Raises:
            RuntimeError: nothing is constructed yet.
            TypeError, ValueError: samples of another kind or shape or not finite, too many layers.
        """
        depth = len(self.layers) if layers is None else layers
        return self.by_layer(X, (depth,))[depth]

    def by_layer(self, X: Tensor, layers: Collection[int]) -> dict[int, Tensor]:
        """Return what :meth:`forward` does for several numbers of layers, in one pass."""
        if self.shape.numel() == 0:
            raise RuntimeError("this ReduNet has no layers yet: fit it, or load a state")
        for depth in layers:
            checks.integer("layers", depth, 0, len(self.layers))
        X = _samples(X)
        # A network of no layers and no lifting, cut back by its patience, has no dtype of its own.
        own = (t.dtype for t in self.parameters())
        Z = self._lifted(X.to(next(own, torch.promote_types(X.dtype, torch.float32))))
        shape = tuple(self.shape.tolist())
        if tuple(Z.shape[1:]) != shape:
            raise ValueError(
                f"X has shape {tuple(X.shape)}; this ReduNet was constructed from samples that "
                f"have shape {shape} at the first layer, not {tuple(Z.shape[1:])}"
            )
        weights = frequency_weights(shape, Z)
        S = enter(Z, weights)
        found = {0: from_spectrum(S, shape)} if 0 in layers else {}
        eta, _, lam = self._settings()
        for depth, layer in enumerate(self.layers[: max(layers, default=0)], 1):
            S = layer(S, weights, eta=eta, lam=lam)
            if depth in layers:
                found[depth] = from_spectrum(S, shape)
        return found

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # How many layers there are, of which shapes and dtype, is part of the state.
        empty = {
            key.removeprefix(prefix): torch.empty_like(value, device=self.shape.device)
            for key, value in state_dict.items()
            if key.startswith(prefix)
        }
        for value in (value for key, value in empty.items() if key.startswith("lifting.")):
            if self.lifting is not None and value.is_floating_point():
                self.lifting.to(value.dtype)
        self.shape = empty.get("shape", self.shape)
        count = len({key.split(".")[1] for key in empty if key.startswith("layers.")})
        self.layers = nn.ModuleList(
            ReduLayer({k: empty.get(f"layers.{i}.{k}", torch.empty(0)) for k in ReduLayer.TENSORS})
            for i in range(count)
        )
        self.history = ()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def layer_rates(
    depth: int, total: Factors, classes: Factors, shape: Shape, weights: Tensor
) -> LayerRates | None:
    """Return the rates of the features that enter a layer, or None where they are not finite."""
    gammas = weights.new_tensor(shape.counts) / sum(shape.counts)
    rate = (weights @ total.logdets.to(weights))[0] / 2
    compressed = gammas @ (weights @ classes.logdets.to(weights)) / 2
    values = torch.stack([rate, compressed]).tolist()
    if not all(map(math.isfinite, values)):
        return None
    return LayerRates(depth, values[0], values[1], values[0] - values[1])


def _samples(value: object, name: str = "X", *, finite: bool = True) -> Tensor:
    X = checks.floating(name, value, finite=finite)
    if X.dim() not in (2, 3, 4) or 0 in X.shape:
        wanted = "(m, d), (m, C, T) or (m, C, H, W), nothing empty"
        raise ValueError(f"{name} has shape {tuple(X.shape)}; it must be {wanted}")
    return X
