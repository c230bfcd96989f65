"""Features as free as weights: losses, closed forms, and optima by L-BFGS in float64.

In an unconstrained-features model there is no network: features H ``(N, d)``, n of each of K
classes, and a classifier W ``(K, d)``, perhaps b ``(K,)``, minimise

    1/N Σ_i loss(W h_i + b, y_i) + λ_W/2 ‖W‖² + λ_H/2 ‖H‖².

The layer-peeled model bounds the norms instead, and lets classes differ in size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mcr2 import checks

#: Eigenvalues below this part of the largest count as zero.
FLAT = 1e-6


@dataclass(frozen=True)
class Model:
    """A loss of logits, and whether there is a bias, which is never decayed."""

    loss: Callable[[Tensor, Tensor], Tensor]
    bias: bool


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1/(2N) Σ_i ‖logits_i − onehot(y_i)‖²."""
    targets = functional.one_hot(labels, logits.shape[1]).to(logits)
    return (logits - targets).square().sum(1).mean() / 2


#: Models by name.
MODELS: dict[str, Model] = {
    "ce": Model(functional.cross_entropy, bias=False),
    "mse": Model(squared_error, bias=True),
    "mse, no bias": Model(squared_error, bias=False),
}


@dataclass(frozen=True)
class ClosedForm:
    """The global minimum of a model: WWᵀ = a T, and the class means' products a (λ_W/λ_H n) T.

    Args:
        value: the minimum.
        scale: a; 0 where the decay is so large that everything vanishes.
        frame: T ``(K, K)``: I - 11ᵀ/K is a simplex equiangular tight frame, I an orthogonal one.
    """

    value: float
    scale: float
    frame: Tensor


def closed_form(model: str, K: int, n: int, decay_w: float, decay_h: float) -> ClosedForm:
    """Return the closed form of a model with positive decays, in enough dimensions (d ≥ K).

    Cross-entropy without bias (c = √(λ_W/(λ_H n))):
    ``‖W‖² = (K−1)/c ln(c/λ_W − (K−1))``, ``h = c w``. Squared error: the K singular values of the
    predictions ``(N, K)``, K − 1 with a bias ``b = 1/K``, are ``σ = √n − N √(λ_W λ_H)``.

    Reference: Zhu et al., "A geometric analysis of neural collapse with unconstrained features",
    NeurIPS 2021, Theorem 3.1; Tirer & Bruna, "Extended unconstrained features model for exploring
    deep neural collapse", ICML 2022, Section 3.

    Example:
        >>> found = closed_form("mse, no bias", K=2, n=4, decay_w=0.1, decay_h=0.1)
        >>> round(found.value, 4), round(found.scale, 4)
        (0.32, 1.2)
    """
    simplex = torch.eye(K, dtype=torch.float64) - 1 / K
    if model == "ce":
        c = math.sqrt(decay_w / (decay_h * n))
        size = (K - 1) / c * math.log(max(c / decay_w - (K - 1), 1))  # ‖W‖²
        value = math.log1p((K - 1) * math.exp(-c * size / (K - 1))) + decay_w * size
        return ClosedForm(value, size / (K - 1), simplex)
    rank, N, decay = K - MODELS[model].bias, K * n, math.sqrt(decay_w * decay_h)
    sigma = max(math.sqrt(n) - N * decay, 0)
    value = rank * ((math.sqrt(n) - sigma) ** 2 / (2 * N) + decay * sigma)
    frame = simplex if MODELS[model].bias else torch.eye(K, dtype=torch.float64)
    return ClosedForm(value, math.sqrt(decay_h / decay_w) * sigma, frame)


@dataclass(frozen=True)
class Landscape:
    """The eigenvalues of a minimised loss's Hessian, rising, and how far its gradient would lead.

    ``step`` is ``‖∇‖/|λ|_max`` over the point's norm: where it is not small, as on the way to an
    infimum at infinity, the point is neither an extremum nor a saddle.
    """

    eigenvalues: Tensor
    step: float

    @property
    def flat(self) -> int:
        """How many eigenvalues are zero beside the largest magnitude."""
        return int((self.eigenvalues.abs() <= FLAT * self.eigenvalues.abs().max()).sum())

    @property
    def kind(self) -> str | None:
        """``extremum`` or ``saddle``, flat directions aside; None where nothing is stationary."""
        if self.step > FLAT:
            return None
        down = self.eigenvalues[0] < -FLAT * self.eigenvalues.abs().max()
        return "saddle" if down else "extremum"


@dataclass(frozen=True)
class Descent:
    """Where a descent ended: W ``(K, d)``, H ``(N, d)`` sorted by class, and b ``(K,)``.

    ``values`` are the losses at each evaluation, the last one where it ended; ``landscape`` is what
    is there.
    """

    weight: Tensor
    features: Tensor
    bias: Tensor
    values: list[float]
    landscape: Landscape

    def means(self) -> Tensor:
        """Return the class means ``(K, d)``."""
        K, d = self.weight.shape
        return self.features.view(K, -1, d).mean(1)

    def distance(self, form: ClosedForm, ratio: float | None) -> float:
        """Return how far this is from a closed form: 0 where it is one.

        The largest entry of ``WWᵀ/a - T``, of the same of the class means, and of features less
        their class mean over the mean norm of those means.

        Args:
            form: what it should be.
            ratio: λ_W/(λ_H n), what the products of class means are of those of W; None leaves
                both scales open, so that only directions count.
        """
        means, frame = self.means(), form.frame
        spread = self.features - means.repeat_interleave(len(self.features) // len(means), 0)
        found = [float(spread.abs().max() / means.norm(dim=1).mean())]
        for rows, part in ((self.weight, 1.0), (means, ratio or 1.0)):
            products = rows @ rows.T
            scale = float(products.trace() / frame.trace())
            if ratio is not None:
                scale = form.scale * part
            found.append(float((products / scale - frame).abs().max()))
        return max(found)


def descend(
    model: str,
    *,
    num_classes: int,
    per_class: int,
    d: int,
    decay_w: float,
    decay_h: float,
    seed: int,
) -> Descent:
    """Minimise a model from a random start, and take the spectrum of the Hessian where it ends.

    Example:
        >>> how = {"num_classes": 3, "per_class": 4, "decay_w": 0.02, "decay_h": 0.02}
        >>> found = descend("ce", d=4, **how, seed=0)
        >>> form = closed_form("ce", 3, 4, 0.02, 0.02)
        >>> abs(found.values[-1] - form.value) < 1e-9, found.distance(form, 1 / 4) < 1e-6
        (True, True)
    """
    K, n = num_classes, per_class
    labels = torch.arange(K).repeat_interleave(n)
    sizes = [K * d, K * n * d, K * MODELS[model].bias]
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(sum(sizes), generator=generator, dtype=torch.float64)

    def parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        W, H, b = torch.split(x, sizes)
        return W.view(K, d), H.view(K * n, d), b if len(b) else x.new_zeros(K)

    def loss(x: Tensor) -> Tensor:
        W, H, b = parts(x)
        decay = decay_w / 2 * W.square().sum() + decay_h / 2 * H.square().sum()
        return MODELS[model].loss(H @ W.T + b, labels) + decay

    end, values = minimise(loss, start)
    return Descent(*parts(end), values, landscape(loss, end))


def minimise(
    loss: Callable[[Tensor], Tensor], start: Tensor, iterations: int = 2000
) -> tuple[Tensor, list[float]]:
    """Minimise by L-BFGS; return where it ended and the loss at each evaluation, there at last."""
    x = start.clone().requires_grad_()
    limits: dict[str, Any] = {"max_iter": iterations, "max_eval": 2 * iterations}
    limits |= {"tolerance_grad": 1e-13, "tolerance_change": 1e-16, "history_size": 20}
    optimiser = torch.optim.LBFGS([x], **limits, line_search_fn="strong_wolfe")
    values: list[float] = []

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(x)
        value.backward()  # type: ignore[no-untyped-call]
        values.append(float(value.detach()))
        return value.detach()

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    end = x.detach()
    return end, [*values, float(loss(end))]


def landscape(loss: Callable[[Tensor], Tensor], x: Tensor) -> Landscape:
    """Return the Hessian's spectrum of a loss at x ``(p,)``.

    Example:
        >>> found = landscape(lambda x: x[0] ** 2 - x[1] ** 2, torch.zeros(3))
        >>> found.eigenvalues, found.flat, found.kind
        (tensor([-2.,  0.,  2.]), 1, 'saddle')
    """
    # Reverse over reverse: forward mode would compile for seconds first.
    hessian: Tensor = torch.func.jacrev(torch.func.grad(loss))(x)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    size = float(eigenvalues.abs().max()) * (float(x.norm()) or 1.0)
    return Landscape(eigenvalues, float(torch.func.grad(loss)(x).norm()) / size)


def orbit_dimension(rank: int, d: int) -> int:
    """Return in how many directions rotations move vectors that span so many of d dimensions.

    Example:
        >>> orbit_dimension(1, 3), orbit_dimension(3, 3)        # a sphere; all rotations
        (2, 3)
    """
    return rank * d - rank * (rank + 1) // 2


@dataclass(frozen=True)
class LayerPeeled:
    """An optimum of the layer-peeled model: W and class features H ``(K, 2K)``, and its value."""

    weight: Tensor
    features: Tensor
    value: float


def layer_peeled(
    counts: Sequence[int], *, energy_w: float = 1.0, energy_h: float = 5.0, seed: int = 0
) -> LayerPeeled:
    """Solve the layer-peeled model of cross-entropy for classes of any sizes.

    ``min Σ_k n_k/N · −log softmax(W h_k)_k`` such that ``1/K Σ ‖w_k‖² ≤ E_W`` and
    ``1/K Σ ‖h_k‖² ≤ E_H``. The features of a class are one vector, as the loss is convex in them.
    Both bounds are met with equality, because scale only ever helps a solution, so that W and H are
    directions of spheres, descended on by L-BFGS in float64. In 2K dimensions no minimum is
    local only: the predictions solve a convex problem, the loss over a ball of the nuclear norm.

    Args:
        counts: n_k, the size of each class.
        energy_w, energy_h: E_W and E_H.
        seed: of the start.

    Raises:
        TypeError, ValueError: fewer than two classes, sizes or energies that are not positive.

    Reference: Fang, He, Long & Su, "Exploring deep neural networks via layer-peeled model:
    minority collapse in imbalanced training", PNAS 2021.

    Example:
        >>> W = functional.normalize(layer_peeled([10, 10, 1, 1]).weight)
        >>> cosines = W @ W.T
        >>> print(f"{cosines[0, 1]:.2f} between large classes, {cosines[2, 3]:.2f} between small")
        -0.49 between large classes, 0.07 between small
    """
    K = checks.integer("the number of classes", len(counts), 2)
    shares = torch.tensor([checks.integer("counts", n, 1) for n in counts], dtype=torch.float64)
    shares /= shares.sum()
    radii = [
        math.sqrt(K * checks.positive(name, energy))
        for name, energy in (("energy_w", energy_w), ("energy_h", energy_h))
    ]
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(4 * K * K, generator=generator, dtype=torch.float64)
    labels = torch.arange(K)

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        halves = zip(x.chunk(2), radii, strict=True)
        W, H = (
            radius * functional.normalize(half, dim=0).view(K, 2 * K) for half, radius in halves
        )
        return W, H

    def loss(x: Tensor) -> Tensor:
        W, H = parts(x)
        each: Tensor = functional.cross_entropy(H @ W.T, labels, reduction="none")
        return shares @ each

    end, values = minimise(loss, start)
    return LayerPeeled(*parts(end), values[-1])
