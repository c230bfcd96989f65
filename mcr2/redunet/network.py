"""ReduNet as a module: constructed by ``fit``, used like any network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mcr2.checks import positive
from mcr2.rates.membership import check_membership
from mcr2.rates.precision import full_precision, working_dtype
from mcr2.redunet.features import STORES, Batch, Store, cut
from mcr2.redunet.layers import Factors, LayerRates, Moments, ReduLayer, Shape
from mcr2.redunet.spectra import frequency_weights, from_spectrum, project, to_spectrum

#: How the construction moves its own samples: by the estimate that any other sample gets, or by
#: the labels it is given.
MEMBERSHIPS = ("estimated", "given")


class ReduNet(nn.Module):
    """A network constructed from the gradient of ΔR (Chan et al. 2022).

    With samples as rows, layer ℓ has E = α(I + αZᵀZ)⁻¹ and C_k = α_k(I + α_k ZᵀΠ_kZ)⁻¹ of the
    training features Z that enter it, α = d/(m ε²), α_k = d/(tr Π_k ε²), γ_k = tr Π_k/m, and maps

        z ← P(z + η (E z − Σ_k γ_k π̂_k(z) C_k z)),     π̂_k(z) ∝ exp(−λ ‖C_k z‖),

    P the projection to the unit sphere, by which samples enter the first layer too. For signals
    and images the operators are those of all circular shifts, one C × C matrix a frequency (of
    the unnormalised DFT; α = C/(m ε²)), and ‖·‖ is the norm of the whole signal.

    Labels decide the operators. How the training samples themselves move on to the next layer is
    ``membership``: ``"estimated"``, as any other sample and as in the authors' code, so that the
    features that the network computes of its training samples are those that it was constructed
    from; ``"given"``, along the exact gradient of ΔR by the labels, which makes ΔR grow at every
    layer for small η, but which no sample without a label can follow.

    A layer holds E and the K operators C_k at each of F frequencies: (K + 1)·F·C² numbers, or
    F·C·(C + K·n) where no class has more than n < C/2 samples; F is 1 for vectors, and for images
    H·(W//2 + 1), two reals each. Construction needs beyond that one layer's worth of Gram
    matrices and the features of a batch.

    A ``state_dict`` holds the layers, however many, and the lifting's weights, but not η, λ, ε² and
    membership: features are those of the network only where it is loaded into one of the same η and
    λ (ε² and membership matter in construction alone). Keep them beside the state.

    Args:
        layers: how many to construct.
        eta: η, the step; positive.
        eps_sq: ε², the squared distortion; positive.
        lam: λ, how sharply membership is estimated; not negative.
        lifting: a module that samples pass first, for example
            :class:`~mcr2.redunet.RandomFilters`; None for none.
        membership: ``"estimated"`` or ``"given"``.
        patience: stop where ΔR by the labels has not exceeded its best for so many layers, and go
            back to the best; None constructs all layers.

    Attributes:
        layers: the constructed layers.
        history: rates of the training features, before the first layer and after each; of the
            layers tried, so that it may be longer than ``layers``. Not part of ``state_dict``.

    Raises:
        TypeError: a number that is none.
        ValueError: an argument out of its range.

    Reference: Chan, Yu, You, Qi, Wright & Ma (2022), "ReduNet", eqs. 10 to 16, Section 4 for
    signals.

    Example:
        >>> X = torch.tensor([[1.0, 0.2], [1.0, 0.3], [0.9, 1.0], [0.7, 1.0]])
        >>> net = ReduNet(layers=60, eta=0.5, eps_sq=0.1).fit(X, torch.tensor([0, 0, 1, 1]))
        >>> Z = net(X)
        >>> float(Z[0] @ Z[3]) < 0.01, bool(net.history[-1].reduction > net.history[0].reduction)
        (True, True)
    """

    shape: Tensor

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
    ) -> None:
        super().__init__()
        for name, count in (("layers", layers), ("patience", patience)):
            if count is None and name == "patience":
                continue
            if not isinstance(count, int) or isinstance(count, bool):
                raise TypeError(f"{name} must be an integer, not {type(count).__name__}")
            if count < 1:
                raise ValueError(f"{name} is {count}; it must be at least 1")
        positive("eta", eta)
        positive("eps_sq", eps_sq)
        if not isinstance(lam, int | float):
            raise TypeError(f"lam must be a number, not {type(lam).__name__}")
        if not 0 <= lam < math.inf:
            raise ValueError(f"lam is {lam}; it must be finite and not negative")
        if membership not in MEMBERSHIPS:
            raise ValueError(f"membership is {membership!r}; choose from {', '.join(MEMBERSHIPS)}")
        self.depth, self.eta, self.eps_sq, self.lam = layers, eta, eps_sq, lam
        self.membership, self.patience = membership, patience
        self.lifting = lifting
        self.layers = nn.ModuleList()
        self.history: tuple[LayerRates, ...] = ()
        # Of one sample behind the lifting; empty as long as nothing is constructed.
        self.register_buffer("shape", torch.empty(0, dtype=torch.int64))

    def extra_repr(self) -> str:
        """Return the settings, as in the constructor."""
        return (
            f"eta={self.eta}, eps_sq={self.eps_sq}, lam={self.lam}, membership={self.membership!r}"
        )

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
        """Construct the layers, in place of any that were there.

        One sweep over the samples a layer: each batch passes the newest layer, and its moments
        are added up for the next. ``batch_size`` changes memory and rounding, nothing else.

        Args:
            X: vectors ``(m, d)``, signals ``(m, C, T)`` or images ``(m, C, H, W)``, floating. Half
                precision is constructed in float32.
            labels: ``(m,)``, integers in [0, K). A class without samples is never estimated.
            num_classes: K; by default the largest label plus one.
            batch_size: samples at a time.
            store: where features are between layers: ``"memory"``; ``"disk"``, a temporary file
                read and written once a layer; or ``"recompute"``, nowhere: every sweep passes
                all layers so far, which costs time quadratic in their number. In the last two,
                memory beyond ``X`` and the network does not grow with m.
            progress: called with the rates before the first layer and after each; ``layers`` may
                be used at that moment.

        Returns:
            The network itself.

        Raises:
            TypeError: ``X`` not floating or ``labels`` not integers.
            ValueError: a shape, label or argument out of its range, NaN or inf in ``X``, or an
                ε² so small that no Gram matrix can be factored, in float64 either.
        """
        _check_samples(X)
        check_membership(X, len(X), labels, num_classes)
        if labels.dim() != 1:
            raise TypeError(
                "labels must be integers of shape (m,); a membership matrix will not do"
            )
        K = int(labels.max()) + 1 if num_classes is None else num_classes
        if int(labels.min()) < 0 or int(labels.max()) >= K:
            raise ValueError(
                f"labels run from {int(labels.min())} to {int(labels.max())}; with {K} classes "
                f"they must lie in [0, {K - 1}]"
            )
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}; it must be an integer from 1")
        if store not in STORES:
            raise ValueError(f"store is {store!r}; choose from {', '.join(STORES)}")
        for part in torch.split(X, batch_size):
            if not bool(torch.isfinite(part).all()):
                raise ValueError("X must be finite; it has NaN or inf")

        dtype = working_dtype(X)
        order = labels.long().argsort(stable=True)
        counts = tuple(torch.bincount(labels.long(), minlength=K).tolist())
        if self.lifting is not None:
            self.lifting.to(device=X.device, dtype=dtype)
        probe = self._lifted(X[:1].to(dtype))
        if probe.dim() not in (2, 3, 4) or not probe.is_floating_point():
            raise ValueError(f"the lifting made {tuple(probe.shape)} of {tuple(X[:1].shape)}")
        self.layers, self.history = nn.ModuleList(), ()
        self.shape = torch.tensor(probe.shape[1:], device=X.device)
        weights = frequency_weights(probe.shape[1:], probe)
        complex_too = to_spectrum(probe)
        shape = Shape(complex_too.shape[0], complex_too.shape[2], counts)

        def first(batch: Batch) -> Tensor:
            rows = order[batch.start : batch.stop]
            return self._enter(X.index_select(0, rows).to(dtype), weights)

        with full_precision(probe):
            kept = STORES[store](cut(counts, batch_size), first)
            self._construct(kept, shape, complex_too.dtype, weights, progress)
        return self

    def _construct(
        self,
        kept: Store,
        shape: Shape,
        dtype: torch.dtype,
        weights: Tensor,
        progress: Callable[[LayerRates], None] | None,
    ) -> None:
        step: Callable[[Tensor, Batch], Tensor] | None = None
        best = 0
        moments = Moments(shape, dtype, weights.device)
        for depth in range(self.depth + 1):
            self._add_up(moments.clear(), kept, step)
            layer = ReduLayer.blank(shape, moments.total) if depth < self.depth else None
            total, classes = moments.factors(self.eps_sq)
            rates = layer_rates(depth, total, classes, shape, weights)
            if rates is None:
                # What was added up in less than float64 may not be positive; add it up anew.
                wide = Moments(shape, torch.promote_types(dtype, torch.float64), weights.device)
                self._add_up(wide.clear(), kept, None)
                total, classes = wide.factors(self.eps_sq)
                rates = layer_rates(depth, total, classes, shape, weights)
            if rates is None:
                raise ValueError(
                    f"layer {depth}: I + α ZᵀZ has no Cholesky factor, in float64 either; "
                    f"eps_sq={self.eps_sq} is too small"
                )
            self.history += (rates,)
            if rates.reduction > self.history[best].reduction:
                best = depth
            if progress is not None:
                progress(rates)
            if layer is None or (self.patience and depth - best >= self.patience):
                break
            self.layers.append(layer.fill(total, classes, shape))
            step = self._step(layer, weights)
        if self.patience:
            self.layers = self.layers[:best]

    @staticmethod
    def _add_up(
        moments: Moments, kept: Store, step: Callable[[Tensor, Batch], Tensor] | None
    ) -> None:
        for batch, S in kept.sweep(step):
            moments.add(batch, S)

    def _step(self, layer: ReduLayer, weights: Tensor) -> Callable[[Tensor, Batch], Tensor]:
        def step(S: Tensor, batch: Batch) -> Tensor:
            given = batch if self.membership == "given" else None
            moved: Tensor = layer(S, weights, eta=self.eta, lam=self.lam, batch=given)
            return moved

        return step

    def _lifted(self, X: Tensor) -> Tensor:
        return X if self.lifting is None else self.lifting(X)

    def _enter(self, X: Tensor, weights: Tensor) -> Tensor:
        return project(to_spectrum(self._lifted(X)), weights)

    def forward(self, X: Tensor, *, layers: int | None = None) -> Tensor:
        """Map samples to features of unit norm, of the shape that they have behind the lifting.

        Args:
            X: samples of the shape constructed from, floating; brought to the layers' dtype.
            layers: how many layers they pass, the first ones; None means all.

        Raises:
            RuntimeError: nothing is constructed yet.
            TypeError: ``X`` is not a real floating tensor.
            ValueError: samples of another shape; more layers than there are.
        """
        if self.shape.numel() == 0:
            raise RuntimeError("this ReduNet has no layers yet: fit it, or load a state")
        _check_samples(X)
        shape = tuple(self.shape.tolist())
        # A network of no layers and no lifting, cut back by its patience, has no dtype of its own.
        dtype = next((t.dtype for t in self.parameters()), working_dtype(X))
        Z = self._lifted(X.to(dtype))
        if tuple(Z.shape[1:]) != shape:
            raise ValueError(
                f"X has shape {tuple(X.shape)}; this ReduNet was constructed from samples that "
                f"have shape {shape} at the first layer, not {tuple(Z.shape[1:])}"
            )
        depth = len(self.layers) if layers is None else layers
        if not 0 <= depth <= len(self.layers):
            raise ValueError(f"layers is {layers}; there are {len(self.layers)}")
        weights = frequency_weights(shape, Z)
        S = project(to_spectrum(Z), weights)
        for layer in self.layers[:depth]:
            S = layer(S, weights, eta=self.eta, lam=self.lam)
        return from_spectrum(S, shape)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # How many layers there are, of which shapes and dtype, is part of the state.
        device = self.shape.device
        if self.lifting is not None:
            ours = (v for k, v in state_dict.items() if k.startswith(f"{prefix}lifting."))
            if (dtype := next((v.dtype for v in ours if v.is_floating_point()), None)) is not None:
                self.lifting.to(dtype)
        if (shape := state_dict.get(f"{prefix}shape")) is not None:
            self.shape = torch.empty_like(shape, device=device)
        own = f"{prefix}layers."
        found: dict[int, dict[str, Tensor]] = {}
        for key, value in state_dict.items():
            number, _, name = key.removeprefix(own).partition(".")
            if key.startswith(own) and number.isdigit():
                found.setdefault(int(number), {})[name] = torch.empty_like(value, device=device)
        wanted = ("expansion", "compressions", "factors", "alphas", "gammas")
        self.layers = nn.ModuleList(
            ReduLayer({name: found[i].get(name, torch.empty(0)) for name in wanted})
            for i in range(len(found))
            if i in found
        )
        self.history = ()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def layer_rates(
    depth: int, total: Factors, classes: Factors, shape: Shape, weights: Tensor
) -> LayerRates | None:
    """Return the rates of the features that enter a layer, or None where they are not finite.

    Args:
        depth: how many layers they have passed.
        total, classes: factors of their moments, whose determinants are the rates'.
        shape: of the moments.
        weights: of frequencies.
    """
    gammas = torch.tensor(shape.counts, dtype=weights.dtype, device=weights.device) / shape.samples
    rate = (weights @ total.logdets.to(weights))[0] / 2
    compressed = gammas @ (weights @ classes.logdets.to(weights)) / 2
    values = torch.stack([rate, compressed]).tolist()
    if not all(map(math.isfinite, values)):
        return None
    return LayerRates(depth, values[0], values[1], values[0] - values[1])


def _check_samples(X: Tensor) -> None:
    wanted = "(m, d), (m, C, T) or (m, C, H, W)"
    if not isinstance(X, Tensor) or not X.is_floating_point():
        given = X.dtype if isinstance(X, Tensor) else type(X).__name__
        raise TypeError(f"X must be a real floating tensor {wanted}, not {given}")
    if X.dim() not in (2, 3, 4) or 0 in X.shape:
        raise ValueError(
            f"X has shape {tuple(X.shape)}; it must be {wanted} with at least one sample, one "
            "channel and one position"
        )
