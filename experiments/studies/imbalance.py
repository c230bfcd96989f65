"""Do classifiers of small classes fall together, and does the rate keep small classes apart?

    mcr2 study imbalance

36 runs of the recipe ``quick``, 100 epochs each, about 9 minutes on two cores. Half of the classes
have n training images, the others n/R. Fang et al. (2021) show of their layer-peeled model, solved
here too, that the classifiers of the small classes draw together as R grows, and from some R on
point the same way (minority collapse); Ji et al. (2022) that without constraints the optimum of
cross-entropy, reached ever more slowly, stays a simplex frame. Expect cross-entropy's cosines to
rise with R, on few images not as far as the optimum's, and accuracy on small classes to fall; of
MCR² no classifier can collapse, and the total rate rewards classes for lying apart.

Axes: R. Between small classes are measured, as means over pairs: the cosine of their classifiers
(rows of W as they are), that of their class means (less the mean of all class means), and the
overlap of their leading directions, |cosine|, which needs neither a classifier nor a mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.report.axis import Axis
from experiments.report.statistics import verdict
from experiments.report.table import Table, entry
from experiments.studies.measured import (
    MeasuredStudy,
    Row,
    by_seed,
    entries,
    over_axis,
    rise,
    values_at,
)

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.report.results import Results
    from experiments.runs.runner import PlannedRun
    from experiments.runs.specs import RunSpec

#: A cosine has risen, and an accuracy has fallen, by no less.
LEAST_CHANGE = 0.05

#: A network is at the optimum of the layer-peeled model if its cosine is off by no more.
NEAR = 0.1

IMBALANCE = Axis("imbalance", "imbalance R")

#: What is measured, and what tables and figures call it.
MEASURES = {
    "classifiers": "cosine of classifiers, small classes",
    "means": "cosine of class means, small classes",
    "overlap": "overlap of leading directions, small classes",
    "small": "test accuracy on small classes",
    "large": "test accuracy on large classes",
}

#: In the layer-peeled model there are no samples.
OPTIMUM = ("classifiers", "means")


def mean_cosine(rows: Tensor) -> float:
    """Return the mean cosine over pairs of rows ``(k, d)``.

    Example:
        >>> import torch
        >>> mean_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]]))
        0.3333333333333333
    """
    import torch

    units = torch.nn.functional.normalize(rows.double())
    i, j = torch.triu_indices(len(units), len(units), 1)
    return float((units @ units.T)[i, j].mean())


def between(means: Tensor, weight: Tensor | None) -> Row:
    """Return mean cosines between the later half of classes, of W ``(K, d)`` and class means."""
    small = (len(means) + 1) // 2
    return {
        "classifiers": None if weight is None else mean_cosine(weight[small:]),
        "means": mean_cosine((means - means.mean(0))[small:]),
    }


def overlap(features: Tensor, labels: Tensor, classes: Sequence[int]) -> float:
    """Return the mean |cosine| over pairs of classes of their leading directions, uncentred."""
    import torch

    leading = torch.stack(
        [
            torch.linalg.svd(features[labels == k].double(), full_matrices=False)[2][0]
            for k in classes
        ]
    )
    i, j = torch.triu_indices(len(classes), len(classes), 1)
    return float((leading @ leading.T).abs()[i, j].mean())


def optimum(counts: Sequence[int]) -> Row:
    """Return what is measured between small classes at the layer-peeled model's optimum."""
    from experiments.studies.unconstrained import layer_peeled

    found = layer_peeled(counts)
    return between(found.features, found.weight)


# --- claims


def changes(results: Results, name: str, sign: int) -> dict[str, list[bool | None]]:
    """Whether a measure rises (sign 1) or falls (−1) with R, by method and seed."""
    rises = {
        called: [
            rise(each, results.values()) for each in over_axis(results, name, method=m).values()
        ]
        for m, called in results.names.items()
    }
    return {
        called: [None if found is None else sign * found >= LEAST_CHANGE for found in each]
        for called, each in rises.items()
    }


def best_of(results: Results, name: str) -> dict[float, float]:
    """Return a measure of the layer-peeled optimum by R."""
    return {row["imbalance"]: row[f"optimum_{name}"] for row in results.extra}


def near(results: Results, method: str) -> list[bool | None]:
    """Whether classifiers are as far together as at the optimum, at every R, seed by seed."""
    best = best_of(results, "classifiers")
    return [
        all(abs(value - best[ratio]) <= NEAR for ratio, value in each.items())
        for each in over_axis(results, "classifiers", method=method).values()
    ]


def less(results: Results, name: str, sign: int) -> list[bool | None]:
    """Whether mcr2 has less of a measure than ce (sign 1), or more (−1), at the largest R."""
    most = max(results.values())
    ours, theirs = (by_seed(results, name, method=m, imbalance=most) for m in ("mcr2", "ce"))
    return [sign * (theirs[seed] - ours[seed]) > 0 for seed in ours.keys() & theirs.keys()]


def verdicts(results: Results) -> list[str]:
    """Return a line for each claim."""
    ratios = results.values()
    ends = f"from R = {min(ratios):g} to {max(ratios):g}"
    lines = [
        verdict(
            "Classifiers of small classes draw together as classes grow unequal",
            changes(results, "classifiers", 1),
            f"in every seed their mean cosine rises by at least {LEAST_CHANGE:g} {ends}",
        ),
        verdict(
            "They do so as the layer-peeled model's optimum does",
            {name: near(results, m) for m, name in results.names.items()},
            f"in every seed, at every R, the mean cosine is off by at most {NEAR:g}",
        ),
        verdict(
            "Class means of small classes draw together as classes grow unequal",
            changes(results, "means", 1),
            f"in every seed their mean cosine rises by at least {LEAST_CHANGE:g} {ends}",
        ),
        verdict(
            "Small classes are classified worse as classes grow unequal",
            changes(results, "small", -1),
            f"in every seed test accuracy on them falls by at least {LEAST_CHANGE:g} {ends}",
        ),
    ]
    if {"ce", "mcr2"} <= results.names.keys():
        case = f"R = {max(ratios):g}"
        lines += [
            verdict(
                "The rate keeps small classes further apart than cross-entropy does",
                {case: less(results, "overlap", 1)},
                "in every seed their leading directions overlap less",
            ),
            verdict(
                "The rate classifies small classes better than cross-entropy does",
                {case: less(results, "small", -1)},
                "in every seed test accuracy on them is higher, each by its own readout",
            ),
        ]
    return lines


# --- table and figure


def imbalance_table(results: Results) -> Table:
    """Return all measures by R, and the optimum's."""
    ratios, rows = results.values(), []
    for name, called in MEASURES.items():
        for method, short in results.names.items():
            found = entries(results, name, 3, method=method)
            if set(found) != {"-"}:
                rows.append((called, short, *found))
        if name in OPTIMUM:
            best = best_of(results, name)
            rows.append((called, "layer-peeled optimum", *(entry(best.get(r)) for r in ratios)))
    sizes = {row["imbalance"]: (row["n_large"], row["n_small"]) for row in results.extra}
    for called, place in (("images of a large class", 0), ("images of a small class", 1)):
        rows.append((called, "-", *(entry(sizes[r][place]) if r in sizes else "-" for r in ratios)))
    title = f"Large and small classes at the last epoch, by {IMBALANCE.title} ({results.interval})"
    return Table(title, ("measure", "method", *(f"{r:g}" for r in ratios)), tuple(rows), left=2)


def imbalance(results: Results) -> Any:
    """Draw all measures against R, the optimum's in grey."""
    from experiments.report import canvas
    from experiments.report.figures import legend

    ratios = results.values()
    drawn = {name: called for name, called in MEASURES.items() if name != "large"}
    figure, axes = canvas.panels(1, len(drawn), 3.2, 3.1, sharex=True)
    for panel, (name, called) in zip(axes[0], drawn.items(), strict=True):
        for method in results.names:
            colour = results.colours[method]
            styles = {name: ".-"} | ({"large": ".--"} if name == "small" else {})
            for measure, style in styles.items():
                each = values_at(results, measure, IMBALANCE.name, ratios, method=method)
                canvas.mean_and_range(panel, ratios, each, colour, style)
        if name in OPTIMUM:
            best = best_of(results, name)
            x = [r for r in ratios if r in best]
            panel.plot(x, [best[r] for r in x], ":", color="0.35", label="layer-peeled optimum")
            canvas.name_lines(panel, 8, handlelength=3)
        panel.set_title(called.replace(", small classes", ",\nsmall classes"), fontsize=11)
        if name not in OPTIMUM:
            canvas.limits(panel, 0, 1)
        if max(ratios) >= 8 * min(ratios):
            panel.set_xscale("log")
            panel.minorticks_off()
        panel.set_xticks(ratios, [f"{r:g}" for r in ratios])
        panel.set_xlabel(IMBALANCE.title)
    axes[0, -1].set_title("test accuracy,\nsmall (solid) and large classes", fontsize=11)
    legend(figure, {name: results.colours[m] for m, name in results.names.items()})
    return figure


@dataclass(frozen=True)
class Imbalance(MeasuredStudy):
    """Make half of the classes R times smaller: do classifiers and features of these collapse?"""

    methods: tuple[str, ...] = ("ce", "mse", "mcr2")
    """Names of methods, or path/to/file.py:Class of an Objective."""
    imbalances: tuple[float, ...] = (1.0, 4.0, 16.0, 64.0)
    """R, by which the later half of the classes is smaller."""
    epochs: int | None = 100
    """Epochs of every run."""

    name: ClassVar[str] = "imbalance"
    tables = (imbalance_table,)
    figures = (imbalance,)
    claims = (verdicts,)
    large = True

    def study_axes(self) -> tuple[Axis, ...]:
        """Return R."""
        return (IMBALANCE,)

    def specs(self) -> list[RunSpec]:
        """Return the specs, equal classes first."""
        from mcr2 import checks

        checks.integer("the number of imbalances", len(self.imbalances), 1)
        runs = self.grid(self.methods)
        return [replace(spec, imbalance=r) for r in sorted(set(self.imbalances)) for spec in runs]

    def measure(self, planned: PlannedRun) -> list[Row]:
        """Measure small classes of a run, and of the layer-peeled model with as many samples."""
        import torch

        from experiments.runs.method import readout_for
        from experiments.runs.methods import find_method
        from experiments.runs.runner import kept_encoder
        from mcr2.evaluation import encode
        from mcr2.readouts import fit_readout

        spec, machine = planned.spec, self.machine()
        encoder, data = kept_encoder(planned, machine)
        train, test, _ = data.on(machine.torch_device())
        K, y = data.sizes.num_classes, train.labels
        H, G = encode(encoder, train.images), encode(encoder, test.images)
        head, small = encoder.classifier(), (K + 1) // 2
        means = torch.stack([H[y == k].mean(0) for k in range(K)])
        readout = readout_for(spec, find_method(spec.method))
        fitted = fit_readout(readout, H, y, num_classes=K, head=head)
        right = (fitted.predict(G) == test.labels).double()
        counts = y.bincount(minlength=K).tolist()
        best = {f"optimum_{name}": value for name, value in optimum(counts).items()}
        return [
            {
                **between(means, None if head is None else head[0]),
                "overlap": overlap(H, y, range(small, K)),
                "small": float(right[test.labels >= small].mean()),
                "large": float(right[test.labels < small].mean()),
                "n_large": round(sum(counts[:small]) / small),
                "n_small": round(sum(counts[small:]) / (K - small)),
                **best,
            }
        ]
