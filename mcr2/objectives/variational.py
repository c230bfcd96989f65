"""MCR² by a variational form: class rates from directions and coefficients that follow them."""

from __future__ import annotations

import torch
from torch import Tensor

from mcr2 import checks
from mcr2.objectives.base import Context, UnitNormObjective
from mcr2.rates import coding_rate


class VariationalRateReduction(UnitNormObjective):
    """V-MCR²: in the place of a class's log-determinant a sum of logarithms over a dictionary.

    With S_k = Z_kᵀZ_k / n_k the second moment of class k, on unit-norm features, and c = d/ε²,

        R_k = ½ logdet(I + c S_k) = min over (U, a) of ½ Σ_l log(1 + c a_l)
              subject to Σ_l a_l u_l u_lᵀ = S_k, ‖u_l‖ = 1, a_l ≥ 0,

    attained at the eigenvectors and eigenvalues of S_k. A penalty stands for the constraint, and
    the loss is

        −R(Z) + Σ_k n_k/m [½ Σ_l log(1 + c a_kl) + λ/2 ‖S_k − Σ_l a_kl u_kl u_klᵀ‖²_F]

    minimised over features, dictionary and coefficients in turn. For given features the bracket is
    smallest at the eigenvectors of S_k, with eigenvalues shrunken as by :func:`shrink`: the Moreau
    envelope of R_k, equal to R_k in the limit of large λ. Dictionary and coefficients come to that
    minimiser exactly when they are *latched*, for all training features, before the first epoch and
    then every ``latch_every`` epochs; and at every step in training mode by one step of subspace
    iteration and a Rayleigh-Ritz rotation towards the eigenvectors of the batch's S_k.

    They are buffers: saved with the network, and out of reach of weight decay and momentum. Where
    this departs from the paper, and why, stands in docs/objectives.md.

    Its terms: ``rate`` R, ``bound`` Σ_k n_k/m ½ Σ_l log(1 + c a_kl), ``mismatch``
    Σ_k n_k/m ‖S_k − Σ_l a_kl u_kl u_klᵀ‖²_F.

    Args:
        num_classes: K, at least 2.
        feature_dim: d.
        eps_sq: ε², the squared distortion; positive.
        penalty: λ; positive. An eigenvalue σ with log(1 + c σ) > λ σ² has coefficient zero.
        components: atoms of a class, at most d; the penalty alone compresses what is outside them.
        latch_every: epochs between latchings.

    Reference: Baek, Wu, Chan, Ding, Ma & Haeffele (2022), "Efficient Maximal Coding Rate Reduction
    by Variational Forms", CVPR.

    Example:
        >>> objective = VariationalRateReduction(num_classes=2, feature_dim=2, penalty=1e4)
        >>> Z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> objective.on_epoch(Z, labels)
        >>> loss, terms = objective(Z, labels)
        >>> print(f"{loss:.3f} {terms['rate']:.3f} {terms['bound']:.3f}")  # compare RateReduction
        -0.294 1.099 0.805
    """

    dictionary: Tensor
    coefficients: Tensor
    epoch: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        eps_sq: float = 0.5,
        penalty: float = 3000.0,
        components: int = 20,
        latch_every: int = 50,
    ) -> None:
        super().__init__(num_classes)
        self.feature_dim = checks.integer("feature_dim", feature_dim, 1)
        self.eps_sq = checks.positive("eps_sq", eps_sq)
        self.penalty = checks.positive("penalty", penalty)
        self.components = min(checks.integer("components", components, 1), self.feature_dim)
        self.latch_every = checks.integer("latch_every", latch_every, 1)
        atoms = torch.eye(self.feature_dim)[: self.components].repeat(self.num_classes, 1, 1)
        self.register_buffer("dictionary", atoms)
        self.register_buffer("coefficients", torch.zeros(self.num_classes, self.components))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    @property
    def needs_epoch_features(self) -> bool:
        """Whether it is time to latch before the next epoch."""
        return int(self.epoch) % self.latch_every == 0

    @torch.no_grad()
    def on_epoch(self, features: Tensor, labels: Tensor) -> None:
        """Latch dictionary and coefficients to the minimiser for all training features."""
        # Features that are not finite have no eigenvectors; the loss will say what is wrong.
        if not bool(torch.isfinite(features).all()):
            return
        classes, sizes = self._classes(features, labels)
        moments = torch.stack([Z.mT @ Z / max(len(Z), 1) for Z in classes])
        values, vectors = torch.linalg.eigh(moments)
        top = slice(-self.components, None)
        self._set(vectors[..., top].mT, values[..., top], sizes)

    @torch.no_grad()
    def _follow(self, classes: list[Tensor], sizes: Tensor) -> None:
        """Move dictionary and coefficients towards the minimiser for a batch."""
        U = self.dictionary.to(classes[0])
        images = [Z.mT @ (Z @ u.mT) / max(len(Z), 1) for Z, u in zip(classes, U, strict=True)]
        basis = torch.linalg.qr(torch.stack(images))[0]
        seen = [Z @ b / max(len(Z), 1) ** 0.5 for Z, b in zip(classes, basis, strict=True)]
        values, rotation = torch.linalg.eigh(torch.stack([P.mT @ P for P in seen]))
        self._set((basis @ rotation).mT, values, sizes)

    def _set(self, atoms: Tensor, values: Tensor, sizes: Tensor) -> None:
        """Take eigenvectors ``(K, r, d)`` and shrink their eigenvalues ``(K, r)``."""
        coefficients = shrink(values.clamp(min=0), self.feature_dim / self.eps_sq, self.penalty)
        # An absent class keeps what it has. By where: indexing by a mask would wait for the device.
        present = (sizes > 0)[:, None]
        self.coefficients.copy_(torch.where(present, coefficients, self.coefficients))
        self.dictionary.copy_(torch.where(present[..., None], atoms, self.dictionary))

    def _classes(self, features: Tensor, labels: Tensor) -> tuple[list[Tensor], Tensor]:
        """Cut features into those of each class, and count them."""
        checks.floating("features", features, "m", self.feature_dim, finite=False)
        sizes = torch.bincount(labels.long(), minlength=self.num_classes)
        rows = features[labels.argsort(stable=True)]
        return list(torch.split(rows, sizes.tolist())), sizes

    def loss(
        self, features: Tensor, labels: Tensor, context: Context
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return −R + bound + λ/2 mismatch and its three parts."""
        rate = coding_rate(features, eps_sq=self.eps_sq)
        classes, sizes = self._classes(features, labels)
        if self.training:
            self._follow(classes, sizes)
            self.epoch.fill_(context.epoch + 1)
        U, a = self.dictionary.to(features), self.coefficients.to(features)
        weights = sizes.to(features) / len(features)
        bound = weights @ (self.feature_dim / self.eps_sq * a).log1p().sum(1) / 2
        mismatch = weights @ torch.stack(
            [_mismatch(Z, u, b) for Z, u, b in zip(classes, U, a, strict=True)]
        )
        terms = {"rate": rate, "bound": bound, "mismatch": mismatch}
        return bound + self.penalty / 2 * mismatch - rate, terms


def _mismatch(Z: Tensor, atoms: Tensor, coefficients: Tensor) -> Tensor:
    """‖ZᵀZ/n − Σ_l a_l u_l u_lᵀ‖²_F for rows Z ``(n, d)`` and orthonormal atoms ``(r, d)``."""
    n = max(len(Z), 1)
    small = Z @ Z.mT if len(Z) < Z.shape[1] else Z.mT @ Z  # of one Frobenius norm
    energies = (Z @ atoms.mT).square().sum(0) / n
    return small.square().sum() / n**2 - 2 * coefficients @ energies + coefficients.square().sum()


def shrink(values: Tensor, scale: float, penalty: float) -> Tensor:
    """Return the minimisers a ≥ 0 of ½ log(1 + c a) + λ/2 (a − σ)², for each σ ≥ 0.

    A stationary point solves λ (σ − a)(1 + c a) = c/2: the larger root of a quadratic,

        a = (c σ − 1 + √((c σ + 1)² − 2 c²/λ)) / (2c),

    or there is none, or it is no better than a = 0: small values vanish. For large λ, a → σ.
    ``values`` are the σ, of any shape, ``scale`` is c, ``penalty`` is λ.

    Example:
        >>> shrink(torch.tensor([0.5, 0.1, 0.001]), scale=128.0, penalty=1000.0)
        tensor([0.4990, 0.0951, 0.0000])
    """
    root = ((scale * values + 1).square() - 2 * scale**2 / penalty).clamp(min=0).sqrt()
    a = ((scale * values - 1 + root) / (2 * scale)).clamp(min=0)

    def cost(a: Tensor) -> Tensor:
        return (scale * a).log1p() / 2 + penalty / 2 * (a - values).square()

    return torch.where(cost(a) < cost(torch.zeros_like(a)), a, 0.0)
