"""Double descent: does test error rise and fall again with width, or with epochs?

    mcr2 study double_descent

90 runs of the recipe ``quick`` at 100 epochs, about 7 minutes on two cores, after half a minute of
least squares on random features. Belkin et al. (2019) say that test error peaks where a model can
just fit its training labels and falls beyond; Nakkiran et al. (2020) that it does so over width and
over epochs, the more the more labels are wrong. Expect random ReLU features to peak where there are
as many of them as samples; in the small ResNets expect little, for all but the narrowest may fit
all labels: where a peak does not show, the study says so.

Axes: the width, in random features or channels of the first stage, and the share of labels redrawn;
epochs run along the curves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from experiments.report.axis import RATIO, Axis
from experiments.report.statistics import matching, shown, value_of, verdict
from experiments.report.table import Table
from experiments.studies.claims import ClaimStudy
from experiments.studies.engine import one_spec
from experiments.studies.measured import over_seeds, values_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from experiments.report.results import Results
    from experiments.runs.executors import Executor, Outcome
    from experiments.runs.runner import PlannedRun
    from experiments.runs.specs import RunSpec
    from mcr2.data import Split

#: A peak of less than this above the lowest errors on both of its sides is not one.
LEAST_RISE = 0.03

#: Errors along training are medians of so many evaluations: single ones jump.
MEDIAN_OF = 3

#: A peak of random features stands at the number of samples if it is off by no more than a factor.
NEAR = 1.5

#: Errors of random features, by what tables and figures call them.
ERRORS = {"train error": "train_error", "test error": "test_error"}

WIDTH = Axis("width", "channels of the first stage")


# --- random features


def min_norm_errors(
    train: Split, test: Split, num_classes: int, widths: Sequence[int], *, seed: int
) -> list[tuple[float, float]]:
    """Return errors on train and test of least squares on the first of ReLU features, by width.

    Features are max(W x, 0) with rows w ~ N(0, I) and x the pixels, centred on those of train.
    Targets are one-hot, less 1/K; of all minima the least squares solution has the least norm.

    Reference: Belkin, Hsu, Ma & Mandal, "Reconciling modern machine-learning practice and the
    classical bias-variance trade-off", PNAS 2019, for random Fourier and ReLU features.
    """
    import torch

    from mcr2.data import to_float

    pixels = [to_float(split.images).flatten(1).double() for split in (train, test)]
    X, T = (each - pixels[0].mean(0) for each in pixels)
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(X.shape[1], max(widths), generator=generator, dtype=torch.float64)
    Y = torch.nn.functional.one_hot(train.labels.long(), num_classes).double() - 1 / num_classes
    P, Q = (X @ W).relu(), (T @ W).relu()

    def error(scores: Tensor, labels: Tensor) -> float:
        return float((scores.argmax(1) != labels).double().mean())

    found = []
    for width in widths:
        solution = torch.linalg.lstsq(P[:, :width], Y, driver="gelsd").solution
        fits = (P[:, :width] @ solution, train.labels), (Q[:, :width] @ solution, test.labels)
        found.append((error(*fits[0]), error(*fits[1])))
    return found


# --- claims


class Peak(NamedTuple):
    """An inner point of a curve, and how far it stands above the lower of its two sides' lows."""

    at: float
    rise: float


def peak(at: Sequence[float], errors: Sequence[float]) -> Peak | None:
    """Return the point that stands highest above the lowest errors before it and after it.

    None of fewer than three points. Where errors never rise and fall again its rise is 0 or less.

    Example:
        >>> peak([100, 500, 5000], [0.12, 0.76, 0.17]).at
        500
    """
    inner = range(1, len(errors) - 1)
    rises = {i: errors[i] - max(min(errors[:i]), min(errors[i + 1 :])) for i in inner}
    best = max(rises, key=lambda i: rises[i], default=None)
    return None if best is None else Peak(at[best], rises[best])


def rises_and_falls(at: Sequence[float], errors: Sequence[float]) -> bool | None:
    """Whether there is a peak that counts."""
    found = peak(at, errors)
    return None if found is None else found.rise >= LEAST_RISE


def peaks_near(at: Sequence[float], errors: Sequence[float], samples: int) -> bool | None:
    """Whether there is a peak that counts, at about as many features as samples."""
    found = peak(at, errors)
    if found is None:
        return None
    return found.rise >= LEAST_RISE and samples / NEAR <= found.at <= samples * NEAR


def smooth(errors: Sequence[float]) -> list[float]:
    """Return running medians; ends have fewer values.

    Example:
        >>> smooth([0.9, 0.2, 0.6, 0.1, 0.1])
        [0.55, 0.6, 0.2, 0.1, 0.1]
    """
    from statistics import median

    half = MEDIAN_OF // 2
    return [median(errors[max(i - half, 0) : i + half + 1]) for i in range(len(errors))]


def curves(results: Results, name: str, **where: Any) -> list[list[float]]:
    """Return errors over the first axis, a curve a seed: 1 − a scalar of rows at the last epoch."""
    found: dict[int, dict[Any, float]] = {}
    for row in matching(results.rows, selection="last", **where):
        right = value_of(row, name)
        if right is not None:
            found.setdefault(row["seed"], {})[row[results.axes[0].name]] = 1 - right
    values = results.values()
    return [[held[v] for v in values] for held in found.values() if len(held) == len(values)]


def along(results: Results, **where: Any) -> list[tuple[list[int], list[float]]]:
    """Return epochs and smoothed test errors of each run."""
    from experiments.report.figures import OWN, curve

    found = []
    for run in results.runs_of(**where):
        points = curve([run], "accuracy", "test", OWN)
        found.append(([p.x for p in points], smooth([1 - p.mean for p in points])))
    return found


def verdicts(results: Results, samples: int) -> list[str]:
    """Return a line for each claim."""
    widths, numbers = results.values(), numbers_of(results)
    features, by_width, by_epoch = {}, {}, {}
    for ratio in results.values(RATIO):
        found = values_at(results, "test_error", "features", numbers, ratio=ratio)
        each = zip(*found, strict=True)  # seed by seed
        features[f"ratio {ratio:g}"] = [peaks_near(numbers, test, samples) for test in each]
    for case in results.cases:
        name, ratio = results.named(case)
        called = f"{name} at ratio {ratio}"
        tests = curves(results, "test_accuracy", **case)
        by_width[called] = [rises_and_falls(widths, errors) for errors in tests]
        for width in widths:
            each_run = along(results, **case, width=width)
            by_epoch[f"{called}, width {width}"] = [rises_and_falls(*run) for run in each_run]
    least = f"in every seed an inner point is at least {LEAST_RISE:g} above the lowest test error"
    return [
        verdict(
            "Test error of random features peaks where they are as many as samples",
            features,
            f"{least} on each side, and within a factor of {NEAR:g} of {samples} features",
        ),
        verdict(
            "Test error of the ResNet rises and falls again with its width",
            by_width,
            f"{least} on each side (last epoch, own readout)",
        ),
        verdict(
            "Test error of the ResNet rises and falls again with epochs",
            by_epoch,
            f"{least} on each side (medians of {MEDIAN_OF} evaluations)",
        ),
    ]


# --- table and figures


def numbers_of(results: Results) -> list[int]:
    """Return the numbers of random features."""
    return list(dict.fromkeys(row["features"] for row in results.extra))


def feature_table(results: Results) -> Table | None:
    """Return errors of random features by their number."""
    numbers = numbers_of(results)
    rows = []
    for ratio, (name, key) in product(results.values(RATIO), ERRORS.items()):
        found = (over_seeds(results, key, ratio=ratio, features=number) for number in numbers)
        rows.append((f"{ratio:g}", name, *(shown(each, results.seeds, 3) for each in found)))
    title = f"Least squares on random ReLU features, by their number ({results.interval})"
    return Table(title, ("ratio", "", *map(str, numbers)), tuple(rows), left=2)


def random_features(results: Results) -> Any:
    """Draw test and train error of random features against their number, a shade a ratio."""
    from experiments.report import canvas

    ratios, numbers = results.values(RATIO), numbers_of(results)
    figure, axes = canvas.panels(1, 2, 4.2, 3.2, sharey=True)
    for panel, (name, key) in zip(axes[0, ::-1], ERRORS.items(), strict=True):
        for ratio, shade in zip(ratios, canvas.shades(len(ratios)), strict=True):
            each = values_at(results, key, "features", numbers, ratio=ratio)
            canvas.mean_and_range(panel, numbers, each, shade, label=f"ratio {ratio:g}")
        panel.set_xscale("log")
        panel.set(title=f"{name}, random features", xlabel="number of features")
    axes[0, 0].set_ylabel("error")
    canvas.name_lines(axes[0, 0])
    return figure


def error_by_width(results: Results) -> Any:
    """Draw test and train error against the width of the network, a shade a ratio."""
    from experiments.report import canvas

    ratios, widths = results.values(RATIO), results.values()
    figure, axes = canvas.panels(2, len(results.names), 4.2, 2.8, sharex=True, sharey="row")
    errors = {"test error": "test_accuracy", "train error": "fit_noisy"}
    for row, (called, scalar) in zip(axes, errors.items(), strict=True):
        for panel, (method, name) in zip(row, results.names.items(), strict=True):
            for ratio, shade in zip(ratios, canvas.shades(len(ratios)), strict=True):
                each = curves(results, scalar, method=method, ratio=ratio)
                columns = list(zip(*each, strict=True)) or [()] * len(widths)
                canvas.mean_and_range(panel, widths, columns, shade, label=f"ratio {ratio:g}")
            panel.set_xscale("log", base=2)
            panel.set_xticks(widths, list(map(str, widths)))
            panel.minorticks_off()  # which cannot be where nothing is drawn
            panel.set_title(canvas.label(f"{name}: {called}"), fontsize=11)
        row[0].set(ylabel="error, by own readout", ylim=(0, None))
    canvas.name_lines(axes[0, 0])
    figure.supxlabel(results.axes[0].title, fontsize=10)
    return figure


def error_by_epoch(results: Results) -> Any:
    """Draw test error along training, a shade a width, a row a method, a column a ratio."""
    from experiments.report import canvas
    from experiments.report.figures import OWN, curve

    ratios, widths = results.values(RATIO), results.values()
    shape = len(results.names), len(ratios)
    figure, axes = canvas.panels(*shape, 3.4, 2.7, sharex=True, sharey=True)
    for row, (method, name) in zip(axes, results.names.items(), strict=True):
        for panel, ratio in zip(row, ratios, strict=True):
            for each, shade in zip(widths, canvas.shades(len(widths)), strict=True):
                runs = results.runs_of(method, ratio=ratio, width=each)
                points = curve(runs, "accuracy", "test", OWN)
                errors = [1 - p.mean for p in points]
                panel.plot([p.x for p in points], errors, color=shade, label=f"width {each}")
            panel.set_title(canvas.label(f"{name}, ratio {ratio:g}"), fontsize=11)
        row[0].set_ylabel("test error, own readout")
    canvas.name_lines(axes[0, 0], 8)
    figure.supxlabel("epoch", fontsize=10)
    return figure


@dataclass(frozen=True)
class DoubleDescent(ClaimStudy):
    """Look for peaks of test error over width and over epochs, at several noise ratios."""

    widths: tuple[int, ...] = (1, 2, 3, 4, 8)
    """Channels of the ResNet's first stage."""
    features: tuple[int, ...] = (
        *(10, 20, 50, 100, 200, 300, 400, 450),
        *(500, 550, 600, 800, 1000, 2000, 5000),
    )
    """Numbers of random features."""
    samples: int = 500
    """Training images of the least squares on random features."""
    ratios: tuple[float, ...] = (0.0, 0.1, 0.2)
    """Shares of the training labels to redraw."""
    epochs: int | None = 100
    """Epochs of every method; None takes the recipe's."""

    name: ClassVar[str] = "double_descent"
    tables = (feature_table, "settings")
    figures = (random_features, error_by_width, error_by_epoch)
    fixed = ("evaluate_every=5",)
    large = True
    not_estimated = "least squares on random features"

    def study_axes(self) -> tuple[Axis, ...]:
        """Return the width of the network, and the ratio."""
        return (WIDTH, RATIO)

    def specs(self) -> list[RunSpec]:
        """Return the specs, narrow networks first."""
        from experiments.runs.methods import find_method

        for method in self.methods:
            if not find_method(method).trained:
                raise ValueError(f"{method} is constructed: it has neither a width nor epochs")
        runs = self.grid(self.methods)
        return [replace(spec, width=width) for width in sorted(self.widths) for spec in runs]

    def prepare(self) -> Callable[[], int]:
        """Check the random features too."""
        from experiments.runs.prepare import load
        from mcr2 import checks

        for name in ("widths", "features"):
            values = getattr(self, name)
            checks.integer(f"the number of {name}", len(values), 1)
            for value in values:
                checks.integer(name, value, 1)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} has repetitions: {' '.join(map(str, values))}")
        load(self._sampled(0.0, 0), self.data_root)
        return super().prepare()

    def _sampled(self, ratio: float, seed: int) -> RunSpec:
        """Return a spec of the images that random features are fitted on."""
        return replace(one_spec(self, self.methods[0], ratio, seed), subset=self.samples)

    @cached_property
    def feature_errors(self) -> list[dict[str, Any]]:
        """Errors of random features, a row for each seed, ratio and number of them."""
        import torch

        from experiments.runs.prepare import prepared

        torch.set_num_threads(self.threads)
        rows, numbers = [], sorted(self.features)
        for seed in sorted(self.seeds):
            for ratio in sorted(self.ratios):
                spec = self._sampled(ratio, seed)
                data = prepared(spec, self.data_root)
                sizes, stream = data.sizes, spec.streams.seeds(seed)["backbone"]
                found = min_norm_errors(
                    data.train, data.test, sizes.num_classes, numbers, seed=stream
                )
                for number, (train, test) in zip(numbers, found, strict=True):
                    row = {"seed": seed, "ratio": ratio, "features": number}
                    rows.append(row | {"train_error": train, "test_error": test})
        return rows

    def run(self, planned: Sequence[PlannedRun], out: Path, executor: Executor) -> int:
        """Fit the random features, then run what is not complete."""
        _ = self.feature_errors
        return super().run(planned, out, executor)

    def results(self, outcomes: Sequence[Outcome]) -> Results:
        """Return what tables and figures are made of, with the random features beside."""
        return replace(super().results(outcomes), extra=self.feature_errors)

    def conclusion(self, results: Results) -> list[str]:
        """Return what became of the claims."""
        return verdicts(results, self.samples)

    def facts(self, results: Results) -> dict[str, Any]:
        """Return the errors of random features."""
        return {"random_features": results.extra}
