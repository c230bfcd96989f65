"""Digits under all their circular shifts: pixels, a plain ResNet, and a shift-invariant ReduNet.

    python -m experiments.studies.shifts

All 64 circular shifts of every 8 × 8 test digit are classified; nothing was shifted in training,
but for the plain network's usual augmentation by one pixel. Two minutes on one core.

Features of images are read by *shift subspaces*: for each class the leading principal directions
of all shifts of its training features. How far a sample is from such a subspace does not change as
the sample is shifted, whatever the features are, raw pixels too: invariance comes from the readout,
and what counts is how well classes are told apart on those terms. The number of directions is
chosen on held-out training digits, for every kind of features separately.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.report import Table
from experiments.runs.methods import METHODS, Prepared, Workspace
from experiments.runs.recipes import QUICK
from experiments.runs.redunet import construct, make_encoder
from experiments.runs.runner import load, prepare
from experiments.runs.specs import RunSpec, vary
from mcr2.data import Split, to_float
from mcr2.redunet import ReduNet

#: Shares of all directions that are tried for the subspaces.
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

#: The shift-invariant network: 16 random filters.
SETTINGS = ("lifting=16", "layers=20", "eta=0.5", "eps_sq=0.1", "lam=500")

#: After how many of its layers it is read, beside all.
EARLY = 5


@dataclass(frozen=True)
class ShiftSubspaces:
    """For each class, principal directions of all circular shifts of its samples.

    The second moment of all shifts is block-diagonal over frequencies, so that its directions come
    from one C × C matrix a frequency; those of a frequency that stands for two count twice.

    Attributes:
        energies: eigenvalues ``(K, F, C)``.
        directions: eigenvectors ``(K, F, C, C)``, columns.
        weights: dimensions that each frequency stands for, 1 or 2, ``(F,)``.
    """

    energies: Tensor
    directions: Tensor
    weights: Tensor

    @classmethod
    def fit(cls, Z: Tensor, labels: Tensor, num_classes: int) -> ShiftSubspaces:
        """Fit on images ``(m, C, H, W)`` of any kind."""
        S, weights = _spectrum(Z)
        grams = torch.stack([S[:, labels == k].mH @ S[:, labels == k] for k in range(num_classes)])
        return cls(*torch.linalg.eigh(grams), weights)

    def residuals(self, Z: Tensor, dimensions: int) -> Tensor:
        """Return squared distances ``(m, K)`` to subspaces of so many dimensions, or one fewer.

        Example:
            >>> stripes, plain = [[1.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]
            >>> Z = torch.tensor([[stripes], [plain]])
            >>> readout = ShiftSubspaces.fit(Z, torch.tensor([0, 1]), 2)
            >>> readout.residuals(Z.roll(1, -1), 2)[0]
            tensor([0., 1.], dtype=torch.float64)
        """
        S, weights = _spectrum(Z)
        squares = (S.abs().square().sum(-1) * weights[:, None]).sum(0)
        found = []
        for energies, directions in zip(self.energies, self.directions, strict=True):
            falling, order = energies.flatten().sort(descending=True)
            spent = weights[:, None].expand_as(energies).flatten()[order].cumsum(0)
            # Directions of f and −f have equal energy and go together. Rounding has some, too.
            beyond = falling[spent > dimensions]
            floor = 1e-12 * falling[0] if len(beyond) == 0 else beyond[0] * (1 + 1e-9)
            kept = energies > torch.maximum(floor, 1e-12 * falling[0])
            inside = (S @ directions).abs().square() * kept[:, None]
            found.append(squares - (inside.sum(-1) * weights[:, None]).sum(0))
        return torch.stack(found, dim=1)


def _spectrum(Z: Tensor) -> tuple[Tensor, Tensor]:
    """Return half the spectrum ``(F, m, C)`` and how many frequencies each one stands for."""
    S = torch.fft.rfft2(Z.double(), norm="ortho")
    counts = torch.full(S.shape[2:], 2.0, dtype=torch.float64)
    counts[:, 0] = 1
    if Z.shape[-1] % 2 == 0:
        counts[:, -1] = 1
    return S.flatten(2).permute(2, 0, 1), counts.flatten()


def all_shifts(images: Tensor) -> list[Tensor]:
    """Return the images under every circular shift, the identity first."""
    H, W = images.shape[2:]
    return [images.roll((i, j), (2, 3)) for i in range(H) for j in range(W)]


@dataclass(frozen=True)
class Reading:
    """How one kind of features reads the test digits.

    Attributes:
        name: of the features and the readout.
        unshifted: accuracy on the test digits as they are.
        shifted: mean accuracy over all their circular shifts.
        worst: the lowest accuracy of a shift.
        validation: accuracy on the held-out digits as they are.
        dimensions: of the shift subspaces; None for a head.
    """

    name: str
    unshifted: float
    shifted: float
    worst: float
    validation: float
    dimensions: int | None = None


def read(
    name: str,
    predict: Callable[[Tensor], Tensor],
    data: Prepared,
    dimensions: int | None = None,
    *,
    every: int = 1,
) -> Reading:
    """Classify the test digits under every shift, or under the first of so many."""
    assert data.validation is not None
    moved = all_shifts(to_float(data.test.images))[::every]
    accuracies = [_accuracy(predict(X), data.test) for X in moved]
    held_out = _accuracy(predict(to_float(data.validation.images)), data.validation)
    mean = sum(accuracies) / len(accuracies)
    return Reading(name, accuracies[0], mean, min(accuracies), held_out, dimensions)


def read_by_subspaces(
    name: str, features: Callable[[Tensor], Tensor], data: Prepared, *, every: int = 1
) -> Reading:
    """Fit shift subspaces, choose their dimensions on the held-out digits, and read."""
    assert data.validation is not None
    train = features(to_float(data.train.images))
    readout = ShiftSubspaces.fit(train, data.train.labels, data.sizes.num_classes)
    held_out = features(to_float(data.validation.images))
    tried = [max(1, round(share * train[0].numel())) for share in SHARES]
    best = max(  # the first of equals has the fewest
        tried, key=lambda n: _accuracy(readout.residuals(held_out, n).argmin(1), data.validation)
    )
    return read(
        name, lambda X: readout.residuals(features(X), best).argmin(1), data, best, every=every
    )


def _accuracy(guesses: Tensor, split: Split) -> float:
    return float((guesses == split.labels).double().mean())


def constructed(spec: RunSpec, data: Prepared) -> ReduNet:
    """Return the shift-invariant network of a spec."""
    encoder = make_encoder(spec, data.sizes.in_channels)
    construct(encoder, data.train, spec, num_classes=data.sizes.num_classes)
    return encoder.network


def compare(
    seed: int = 0,
    settings: Sequence[str] = SETTINGS,
    epochs: int | None = None,
    *,
    every: int = 1,
) -> list[Reading]:
    """Read the shifted digits by each kind of features.

    Args:
        seed: of held-out digits, filters and the plain network.
        settings: options of the ReduNet.
        epochs: of the plain network, instead of the recipe's.
        every: read under one shift of so many.
    """
    spec = QUICK.spec("redunet", additive=False, seed=seed)
    for text in settings:
        name, _, value = text.partition("=")
        spec = vary(spec, name, value, METHODS["redunet"].options)
    data = prepare(spec, load(spec))
    network = constructed(spec, data)
    assert network.lifting is not None
    plain = QUICK.spec("ce", additive=True, seed=seed)
    if epochs is not None:
        plain = vary(plain, "epochs", str(epochs))
    fitted = METHODS["ce"].fit(plain, data, Workspace(torch.device("cpu")))
    encoder = METHODS["ce"].load(plain, data.sizes, fitted.kept[fitted.history[-1]["epoch"]])
    head = encoder.classifier()
    assert head is not None
    weight, bias = head
    encoder.train(False)

    def logits(X: Tensor) -> Tensor:
        scores: Tensor = torch.nn.functional.linear(encoder(X), weight, bias)
        return scores

    with torch.no_grad():
        return [
            read("plain ResNet, own head", lambda X: logits(X).argmax(1), data, every=every),
            read_by_subspaces("pixels, shift subspaces", lambda X: X, data, every=every),
            read_by_subspaces("lifted pixels, shift subspaces", network.lifting, data, every=every),
            *(
                read_by_subspaces(
                    f"ReduNet, {depth} layers, shift subspaces",
                    functools.partial(network, layers=depth),
                    data,
                    every=every,
                )
                for depth in (EARLY, len(network.layers))
            ),
        ]


def table(readings: Sequence[Reading]) -> Table:
    """Lay readings out as text."""
    return Table(
        "Test digits: accuracy as they are, and over all 64 circular shifts",
        ("features", "validation", "dimensions", "as they are", "shifted", "worst shift"),
        tuple(
            (
                r.name,
                f"{r.validation:.3f}",
                "-" if r.dimensions is None else str(r.dimensions),
                f"{r.unshifted:.3f}",
                f"{r.shifted:.3f}",
                f"{r.worst:.3f}",
            )
            for r in readings
        ),
        left=1,
    )


def main(arguments: Sequence[str]) -> None:
    """Compare with the seed given, 0 by default, and print."""
    torch.set_num_threads(1)
    print(table(compare(int(arguments[0]) if arguments else 0)).text())


if __name__ == "__main__":
    main(sys.argv[1:])
