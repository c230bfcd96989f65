"""What each loss asks for where features are free: no network, only vectors with labels.

    mcr2 study free_features

Takes ten seconds on one core. ΔR is ascended over unit vectors: each class should become a subspace
orthogonal to the others, with equal singular values (Yu et al. 2020, Theorem 2.1), and ΔR should
reach its maximum over balanced classes, d/2 log(1 + 1/ε²) − d/(2K) log(1 + K/ε²), unless classes
settle at neighbouring dimensions: a local maximum, whose value is known too. Cross-entropy and the
squared error are descended over features and a classifier: with weight decay every start should
reach the same closed form, a simplex frame, or an orthogonal one for the squared error without
bias; without weight decay the loss should vanish and nothing else be settled. The Hessian where
each ends says whether it is an extremum or a saddle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.studies.small import Row, SmallStudy

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.studies.unconstrained import Descent, Landscape

#: Classes in all of the study.
K = 4


@dataclass(frozen=True)
class FreeFeatures(SmallStudy):
    """Features with labels and no network, moved freely as ΔR, cross-entropy and MSE ask."""

    name: ClassVar[str] = "free_features"
    title: ClassVar[str] = (
        "ΔR or loss reached, its gap and distance to the closed form, and the Hessian there"
    )

    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Of the starts; spectra and angles are shown of the first."""
    d: int = 16
    """Dimension, from 4 to 32, the number of classes and what a Hessian takes; d/2 samples each."""
    eps_sq: float = 0.5
    """ε²."""
    decay: float = 0.01
    """Weight decay of W and H, below 1/(K √n), beyond which everything vanishes."""

    def _check(self) -> None:
        from mcr2 import checks

        checks.integer("d", self.d, 4, 32)
        checks.positive("eps_sq", self.eps_sq)
        most = 1 / (K * math.sqrt(self.d // 2))
        if checks.positive("decay", self.decay) >= most:
            raise ValueError(f"decay is {self.decay}; it must be below {most:.4f}, 1/(K √n)")

    def _measure(self, figure: Path) -> list[Row]:
        from experiments.studies.unconstrained import MODELS

        n = self.d // 2
        ascents = [ascend(self.d, K, n, eps_sq=self.eps_sq, seed=seed) for seed in self.seeds]
        rows = [ascent_row(seed, one) for seed, one in zip(self.seeds, ascents, strict=True)]
        descents: dict[tuple[str, float], list[Descent]] = {}
        for model in MODELS:
            for decay in (self.decay, 0.0):
                found, new = self._descend(model, n, decay)
                descents[model, decay] = found
                rows += new
        plot(ascents, descents, figure)
        return rows

    def _descend(self, model: str, n: int, decay: float) -> tuple[list[Descent], list[Row]]:
        """Return the descents of a model from every start, and their rows."""
        import torch

        from experiments.studies.unconstrained import closed_form, descend, orbit_dimension

        how = {"num_classes": K, "per_class": n, "d": self.d}
        found = [
            descend(model, **how, decay_w=decay, decay_h=decay, seed=seed) for seed in self.seeds
        ]
        form = closed_form(model, K, n, decay or self.decay, decay or self.decay)
        value = form.value if decay else 0.0
        rank = int(torch.linalg.matrix_rank(form.frame))
        rows = [
            {
                "model": model,
                "decay": decay,
                "start": seed,
                "reached": one.values[-1],
                "best": value,
                "gap": one.values[-1] - value,
                "distance": one.distance(form, 1 / n if decay else None),
                "dimensions": None,
                "symmetries": orbit_dimension(rank, self.d) if decay else None,
            }
            | there(one.landscape)
            for seed, one in zip(self.seeds, found, strict=True)
        ]
        return found, rows


@dataclass(frozen=True)
class Ascent:
    """Features at a local maximum of ΔR, sorted by class, and what they should have become."""

    features: Tensor  # unit vectors (m, d), float64
    reduction: list[float]  # ΔR at each evaluation, in nats, the last one where it ended
    best: float  # the largest ΔR of balanced classes of unit vectors
    at_dimensions: float  # ΔR of orthogonal classes of `dimensions` with equal singular values
    dimensions: list[int]  # singular values of each class above 1e-3 of its largest
    singular_values: list[Tensor]  # of each class, falling
    distance: float  # from orthogonal isotropic classes; see `ascend`
    landscape: Landscape  # of −ΔR of vectors that are scaled to unit norm


def ascend(
    d: int, num_classes: int, per_class: int, *, eps_sq: float = 0.5, seed: int = 0
) -> Ascent:
    """Ascend ΔR over balanced unit vectors by L-BFGS in float64 from a random start.

    ``distance`` is the largest entry of ``T_i T_j − δ_ij T_i``, T_k the second moment of class k
    times its dimension: 0 where they are projections onto orthogonal subspaces.

    Example:
        >>> found = ascend(8, num_classes=2, per_class=6)
        >>> found.distance < 1e-6, sum(found.dimensions)
        (True, 8)
    """
    import torch

    from experiments.studies.unconstrained import landscape, minimise

    shape, eye = (num_classes, per_class, d), torch.eye(d, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(math.prod(shape), generator=generator, dtype=torch.float64)

    def moments(x: Tensor) -> Tensor:
        Z = torch.nn.functional.normalize(x.view(shape), dim=2)
        return Z.mT @ Z / per_class

    def loss(x: Tensor) -> Tensor:
        # Plain lines: rates that look at values cannot be differentiated by torch.func.
        S = moments(x)
        rates = torch.logdet(eye + d / eps_sq * torch.cat([S.mean(0, keepdim=True), S])) / 2
        return rates[1:].mean() - rates[0]

    end, values = minimise(loss, start)
    Z = torch.nn.functional.normalize(end.view(shape), dim=2)
    spectra = torch.linalg.svdvals(Z)
    dimensions = (spectra / spectra[:, :1] > 1e-3).sum(1)
    T = moments(end) * dimensions.view(-1, 1, 1)
    products = torch.einsum("iab,jbc->ijac", T, T)
    products[range(num_classes), range(num_classes)] -= T
    here = reduction_at(dimensions.tolist(), d, eps_sq)
    return Ascent(
        features=Z.flatten(0, 1),
        reduction=[-value for value in values],
        best=largest_reduction(d, num_classes, eps_sq),
        at_dimensions=here,
        dimensions=dimensions.tolist(),
        singular_values=list(spectra),
        distance=float(products.abs().max()),
        landscape=landscape(loss, Z.flatten()),
    )


def largest_reduction(d: int, num_classes: int, eps_sq: float) -> float:
    """d/2 log(1 + 1/ε²) − d/(2K) log(1 + K/ε²), of K balanced classes of unit vectors.

    It is the maximum for small ε², as at 0.5; at 2 unequal dimensions may already be better.
    """
    K = num_classes
    return d / 2 * math.log1p(1 / eps_sq) - d / (2 * K) * math.log1p(K / eps_sq)


def reduction_at(dimensions: Sequence[int], d: int, eps_sq: float) -> float:
    """ΔR of balanced orthogonal classes, each isotropic in as many dimensions as given."""
    K = len(dimensions)
    return sum(
        q / 2 * (math.log1p(d / (K * q * eps_sq)) - math.log1p(d / (q * eps_sq)) / K)
        for q in dimensions
    )


def ascent_row(seed: int, found: Ascent) -> Row:
    """Return the row of an ascent."""
    return {
        "model": "mcr2",
        "decay": None,
        "start": seed,
        "reached": found.reduction[-1],
        "best": found.best,
        "gap": found.reduction[-1] - found.at_dimensions,
        "distance": found.distance,
        "dimensions": found.dimensions,
        "symmetries": symmetries(found.dimensions, len(found.features) // len(found.dimensions)),
    } | there(found.landscape)


def symmetries(dimensions: Sequence[int], per_class: int) -> int:
    """Return the dimension of the set of such features: orthogonal, isotropic, of any lengths.

    Orthogonal subspaces of d dimensions make d (d − 1)/2 − Σ q (q − 1)/2, unit vectors with second
    moment I/q of each class n (q − 1) − q (q + 1)/2 + 1, and lengths, which ΔR does not see, N.
    """
    d, n = sum(dimensions), per_class
    subspaces = d * (d - 1) // 2 - sum(q * (q - 1) // 2 for q in dimensions)
    frames = sum(n * (q - 1) - q * (q + 1) // 2 + 1 for q in dimensions)
    return subspaces + frames + n * len(dimensions)


def there(found: Landscape) -> Row:
    """Return what a row says of where an ascent or descent ended."""
    return {
        "flat": found.flat,
        "lowest": float(found.eigenvalues[0]),
        "highest": float(found.eigenvalues[-1]),
        "kind": found.kind,
    }


def plot(
    ascents: Sequence[Ascent], descents: Mapping[tuple[str, float], Sequence[Descent]], path: Path
) -> None:
    """Draw ΔR above and the other losses below: the way there, and what is there."""
    from experiments.report import canvas

    figure, (above, below) = canvas.panels(2, 3, 4, 3.2)
    draw_ascents(ascents, *above)
    figure.colorbar(above[2].images[0], ax=above[2], label="|cosine|")
    draw_descents(ascents, descents, *below)
    canvas.save(figure, path)


def draw_ascents(found: Sequence[Ascent], left: Any, middle: Any, right: Any) -> None:
    """Draw the ascent of each start, and singular values and cosines of the first."""
    from experiments.report import canvas

    reached = [", ".join(map(str, sorted(one.dimensions))) for one in found]
    kinds = list(dict.fromkeys(reached))
    for i, one in enumerate(found):
        gap = [max(1 - value / one.best, 1e-16) for value in one.reduction]
        colour = canvas.COLOURS[kinds.index(reached[i]) % len(canvas.COLOURS)]
        label = None if reached[i] in reached[:i] else reached[i]
        left.semilogy(gap, color=colour, label=label)
    look = {"fontsize": 9, "frameon": False, "ncols": 2}  # beneath, for lines go everywhere
    beneath = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2)}
    left.legend(title="dimensions reached", **look, **beneath)
    left.set(xlabel="evaluations of ΔR", ylabel="1 − ΔR / its maximum", title="MCR²: ascent")
    first = found[0]
    names = [f"class {k}: {q} dimensions" for k, q in enumerate(first.dimensions)]
    spectra = [each.tolist() for each in first.singular_values]
    canvas.spectra(middle, dict(zip(names, spectra, strict=True)))
    middle.set_title("MCR²: spectra, first start")
    cosines = (first.features @ first.features.T).abs().numpy()
    classes = [len(names) * i // len(cosines) for i in range(len(cosines))]
    canvas.cosines(right, cosines, classes)
    label = "sample, by class"
    right.set(xlabel=label, ylabel=label, title="MCR²: angles, first start")


def draw_descents(
    ascents: Sequence[Ascent],
    descents: Mapping[tuple[str, float], Sequence[Descent]],
    left: Any,
    middle: Any,
    right: Any,
) -> None:
    """Draw the descent of each start, cosines between class means, and Hessians of the first."""
    from experiments.report import canvas
    from experiments.studies.unconstrained import closed_form

    models = list(dict.fromkeys(model for model, _ in descents))
    colours = dict(zip(models, canvas.COLOURS, strict=False))
    for (model, decay), found in descents.items():
        style = {"color": colours[model], "linestyle": "-" if decay else ":"}
        name = f"{model}, decay {decay:g}"
        for i, one in enumerate(found):
            n = len(one.features) // K
            least = closed_form(model, K, n, decay, decay).value if decay else 0.0
            # The least so far: a line search also tries worse.
            gap = [max(value - least, 1e-16) for value in accumulate(one.values, min)]
            left.semilogy(gap, **style, linewidth=1, label=None if i else name)
        if decay:
            draw_hessian(right, found[0].landscape, model, colours[model])
    left.legend(fontsize=8, frameon=False)
    left.set(xlabel="evaluations of the loss", ylabel="loss − its minimum", title="Descent")
    for place, ((model, decay), found) in enumerate(descents.items()):
        cosines = [value for one in found for value in mean_cosines(one)]
        filled = {"color": colours[model], "markerfacecolor": None if decay else "white"}
        middle.plot([place] * len(cosines), cosines, "o", **filled)
    for height, name in ((-1 / (K - 1), "simplex"), (0.0, "orthogonal")):
        middle.axhline(height, color="0.4", linewidth=0.8, zorder=0)
        middle.text(len(descents) - 0.6, height, name, va="bottom", fontsize=8)
    called = [f"{model} {decay:g}".replace(" ", "\n") for model, decay in descents]
    middle.set_xticks(range(len(called)), called, fontsize=8)
    middle.set_xlim(-0.5, len(called) + 1.0)
    middle.set(xlabel="loss, and its weight decay", ylabel="cosine", title="Between class means")
    draw_hessian(right, ascents[0].landscape, "mcr2", canvas.COLOURS[len(models)])
    right.legend(fontsize=9, frameon=False)
    right.set(xlabel="index", ylabel="|eigenvalue| / largest", title="Hessian, first start")


def draw_hessian(panel: Any, found: Landscape, name: str, colour: str) -> None:
    """Draw the sizes of a Hessian's eigenvalues, falling."""
    sizes = found.eigenvalues.abs().sort(descending=True).values
    panel.semilogy((sizes / sizes[0]).clamp(min=1e-16), color=colour, label=name)


def mean_cosines(found: Descent) -> list[float]:
    """Return the cosines between class means, pair by pair."""
    import torch

    M = torch.nn.functional.normalize(found.means())
    i, j = torch.triu_indices(len(M), len(M), 1)
    return [float(value) for value in (M @ M.T)[i, j]]
