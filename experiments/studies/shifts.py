"""Digits under all their circular shifts: pixels, a plain ResNet, and a shift-invariant ReduNet.

    mcr2 study shifts

All 64 circular shifts of every 8 × 8 test digit are classified; nothing was shifted in training,
but for the plain network's usual augmentation by one pixel. Two minutes on one core and a seed. The
plain network should lose most shifted digits; the others classify every shift alike.

Features of images are classified by *shift subspaces*: for each class the leading principal
directions of all shifts of its training features. How far a sample is from such a subspace does not
change as the sample is shifted, whatever the features are, raw pixels too: invariance comes from
the readout, and what counts is how well classes are told apart on those terms. The number of
directions is chosen on held-out training digits, for every kind of features separately.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from experiments.studies.small import Row, SmallStudy

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.runs.prepare import Prepared
    from experiments.runs.specs import RunSpec
    from mcr2.data import Split

#: Fractions of all directions that are tried for the subspaces.
FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

#: Accuracies on the test digits: as they are, mean over the shifts, the lowest of a shift.
MEASURED = ("as_they_are", "shifted", "worst_shift")


@dataclass(frozen=True)
class Shifts(SmallStudy):
    """Digits under all their circular shifts, by pixels, a ResNet and a shift-invariant ReduNet."""

    name: ClassVar[str] = "shifts"
    title: ClassVar[str] = "Test digits: accuracy as they are, and over their circular shifts"

    set: tuple[str, ...] = ("lifting=16", "layers=20")
    """OPTION=VALUE of the ReduNet, which is measured after 5 layers and after all."""
    epochs: int | None = None
    """Of the plain network, instead of the recipe's."""
    every: int = 1
    """Classify under the first of so many shifts only."""

    def _check(self) -> None:
        from mcr2 import checks

        checks.integer("every", self.every, 1)
        self._specs(0)

    def _specs(self, seed: int) -> tuple[RunSpec, RunSpec]:
        """Return the specs of the ReduNet and of the plain network."""
        from experiments.runs.methods import METHODS
        from experiments.runs.recipes import QUICK
        from experiments.runs.redunet import make_encoder
        from experiments.runs.specs import vary

        spec = QUICK.spec("redunet", additive=False, seed=seed)
        for text in self.set:
            name, _, value = text.partition("=")
            spec = vary(spec, name, value, METHODS["redunet"].options)
        if make_encoder(spec, in_channels=1).network.lifting is None:
            raise ValueError("lifting is 0; a shift-invariant ReduNet needs lifted channels")
        plain = QUICK.spec("ce", additive=True, seed=seed)
        return spec, plain if self.epochs is None else vary(plain, "epochs", str(self.epochs))

    def _measure(self, figure: Path) -> list[Row]:
        found = {seed: self._compare(seed) for seed in self.seeds}
        plot(found[self.seeds[0]], figure)
        return [row | {"seed": seed} for seed, rows in found.items() for row in rows]

    def _compare(self, seed: int) -> list[Row]:
        import torch

        from experiments.runs.method import Workspace
        from experiments.runs.methods import METHODS
        from experiments.runs.prepare import load, prepare
        from experiments.runs.redunet import construct, make_encoder

        spec, plain = self._specs(seed)
        data = prepare(spec, load(spec))
        invariant = make_encoder(spec, data.sizes.in_channels)
        construct(invariant, data.train, spec, num_classes=data.sizes.num_classes)
        network = invariant.network
        fitted = METHODS["ce"].fit(plain, data, Workspace(torch.device("cpu")))
        encoder = METHODS["ce"].load(plain, data.sizes, fitted.kept[fitted.history[-1]["epoch"]])
        encoder.train(False)
        head = encoder.classifier()
        assert head is not None
        assert network.lifting is not None

        def by_head(X: Tensor) -> Tensor:
            return torch.nn.functional.linear(encoder(X), *head).argmax(1)

        kinds: dict[str, Callable[[Tensor], Tensor]] = {
            "pixels": lambda X: X,
            "lifted pixels": network.lifting,
        }
        for depth in sorted({min(5, len(network.layers)), len(network.layers)}):
            kinds[f"ReduNet, {depth} layers"] = functools.partial(network, layers=depth)
        with torch.no_grad():
            rows = [row_of("ResNet, own head", by_head, data, every=self.every)]
            return rows + [by_subspaces(*kind, data, every=self.every) for kind in kinds.items()]


def row_of(
    name: str,
    predict: Callable[[Tensor], Tensor],
    data: Prepared,
    dimensions: int | None = None,
    *,
    every: int,
) -> Row:
    """Classify the held-out digits, and the test digits under the first of so many shifts."""
    from mcr2.data import to_float

    assert data.validation is not None
    moved = all_shifts(to_float(data.test.images))[::every]
    found = [_accuracy(predict(X), data.test) for X in moved]
    held_out = _accuracy(predict(to_float(data.validation.images)), data.validation)
    accuracies = zip(MEASURED, (found[0], sum(found) / len(found), min(found)), strict=True)
    return {"features": name, "dimensions": dimensions, "held_out": held_out, **dict(accuracies)}


def by_subspaces(
    name: str, features: Callable[[Tensor], Tensor], data: Prepared, *, every: int
) -> Row:
    """Fit shift subspaces, choose their dimensions on the held-out digits, and classify."""
    from mcr2.data import to_float

    validation = data.validation
    assert validation is not None
    train = features(to_float(data.train.images))
    spectra = shift_spectra(train, data.train.labels, data.sizes.num_classes)
    held_out = features(to_float(validation.images))
    tried = [max(1, round(fraction * train[0].numel())) for fraction in FRACTIONS]

    def predict(Z: Tensor, dimensions: int) -> Tensor:
        return residuals(Z, spectra, dimensions).argmin(1)

    # The first of equals has the fewest.
    best = max(tried, key=lambda n: _accuracy(predict(held_out, n), validation))
    return row_of(name, lambda X: predict(features(X), best), data, best, every=every)


def _accuracy(guesses: Tensor, split: Split) -> float:
    return float((guesses == split.labels).double().mean())


def all_shifts(images: Tensor) -> list[Tensor]:
    """Return the images under every circular shift, the identity first."""
    H, W = images.shape[2:]
    return [images.roll((i, j), (2, 3)) for i in range(H) for j in range(W)]


def shift_spectra(Z: Tensor, labels: Tensor, num_classes: int) -> list[tuple[Tensor, Tensor]]:
    """Return for each class the energies, falling, and principal directions of all its shifts."""
    import torch

    found = []
    for k in range(num_classes):
        rows = torch.cat([X.flatten(1) for X in all_shifts(Z[labels == k].double())])
        energies, directions = torch.linalg.eigh(rows.T @ rows)
        found.append((energies.flip(0), directions.flip(1)))
    return found


def residuals(Z: Tensor, spectra: Sequence[tuple[Tensor, Tensor]], dimensions: int) -> Tensor:
    """Return squared distances ``(m, K)`` to subspaces of so many dimensions, or a few fewer.

    Example:
        >>> import torch
        >>> stripes, plain = [[1.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]
        >>> Z = torch.tensor([[stripes], [plain]])
        >>> residuals(Z.roll(1, -1), shift_spectra(Z, torch.tensor([0, 1]), 2), 2)[0].abs()
        tensor([0., 1.], dtype=torch.float64)
    """
    import torch

    flat = Z.double().flatten(1)
    found = []
    for energies, directions in spectra:
        # Shifts of a frequency have equal energies: they stay together, or no shift of a subspace
        # would be the same subspace.
        beyond = energies[dimensions:][:1].sum() + 1e-9 * energies[0]
        inside = flat @ directions[:, energies > beyond]
        found.append(flat.square().sum(1) - inside.square().sum(1))
    # Classes of pixels may have the same subspace: the first is taken, whatever rounding says.
    return torch.stack(found, dim=1).round(decimals=9)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw for each kind of features the accuracy as they are, mean and worst of the shifts."""
    from experiments.report import canvas

    figure, axes = canvas.panels(1, 1, 7, 2.5)
    names = [row["features"] for row in rows[::-1]]
    for key, marker, colour in zip(MEASURED, "osx", canvas.COLOURS, strict=False):
        values, name = [row[key] for row in rows[::-1]], key.replace("_", " ")
        axes[0, 0].plot(values, names, marker, color=colour, label=name)
    axes[0, 0].set(xlim=(0, 1.02), xlabel="accuracy on the test digits")
    axes[0, 0].legend(fontsize=9)
    canvas.save(figure, path)
