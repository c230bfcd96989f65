"""How features collapse from layer to layer, without and with wrong labels.

    mcr2 study layers

18 runs of the recipe ``quick``, about 12 minutes on two cores. Expect classes to separate by about
the same factor from stage to stage where labels are right (He & Su 2023), the mismatch between
ridge and the nearest class mean to fall with depth (Ben-Shaul & Dekel 2022; Hui et al. 2022), and
with half of the labels redrawn cross-entropy to collapse in its last layers only.

Axes: the layer, the share of labels redrawn. A trained network's layers are its stages, averaged
over positions, and its features; ReduNet's are its own, and its input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from experiments.report.axis import LAYER, RATIO, Axis
from experiments.report.statistics import estimate, matching, shown, value_of, verdict
from experiments.report.table import Table
from experiments.studies.claims import LayerStudy

if TYPE_CHECKING:
    from experiments.report.results import Results
    from mcr2.metrics.equiseparation import Equiseparation

#: The law of separation holds where depth explains at least this share of the variance of log D.
LEAST_R_SQUARED = 0.9

#: A share of samples that rises by no more than this, from a layer to the next, has not risen.
TOLERANCE = 0.01

#: Collapse has begun where at most this share of the training samples is nearer to another class's
#: mean than to that of its label.
BEGUN = 0.05

#: The error of the nearest class mean: on train by the labels trained on, on test by the true ones.
ERROR = "class_mean error"

#: What is measured at a layer, with the readout that it is by, and what panels call it.
COLLAPSE = {"nc1": "-", "cdnv": "-", ERROR: "class_mean", "nc4": "ridge"}
DIMENSIONS = {"participation_ratio": "-", "rate": "-", "compressed_rate": "-", "reduction": "-"}
TITLES = {
    "nc1": "nc1: tr(Σ_W Σ_B⁺)/K",
    "cdnv": "cdnv",
    ERROR: "error of the nearest class mean",
    "nc4": "mismatch nc4 (by ridge)",
    "participation_ratio": "participation ratio",
    "rate": "R (nats)",
    "compressed_rate": "R_c (nats)",
    "reduction": "ΔR (nats)",
}

#: A measure of one run from its first layer to its last; None where it is undefined.
Profile: TypeAlias = Sequence[float | None]


def profiles(results: Results, measure: str, split: str, **where: Any) -> dict[int, Profile]:
    """Return a measure by layer, a profile a seed."""
    found: dict[int, list[float | None]] = {}
    for row in matching(results.rows, status="finished", **where):
        found.setdefault(row["seed"], []).append(of_row(row, measure, split))
    return dict(found)


def of_row(row: Mapping[str, Any], measure: str, split: str) -> float | None:
    """Return a measure of a row, which is a layer of a run.

    None are also measures about class means that hold too little of the features.
    """
    from experiments.report.tables import RELIABLE, standing_key

    if measure == ERROR:
        right = value_of(row, "fit_noisy" if split == "train" else "test_accuracy")
        return None if right is None else 1 - right
    if measure in COLLAPSE and not value_of(row, standing_key(RELIABLE, split)):
        return None
    return value_of(row, standing_key(measure, split, (COLLAPSE | DIMENSIONS)[measure]))


# --- claims


def law_of(nc1: Profile) -> Equiseparation | None:
    """Fit the law of separation to a profile of nc1; None of fewer than three layers.

    Every layer that is measured counts as one: ρ is from one of them to the next.
    """
    from mcr2.metrics.equiseparation import equiseparation

    points = [(depth, value) for depth, value in enumerate(nc1) if value is not None and value > 0]
    if len(points) < 3:
        return None
    depths, values = zip(*points, strict=True)
    return equiseparation(values, depths)


def separates_evenly(nc1: Profile) -> bool | None:
    """Whether every layer separates classes by about the same factor."""
    law = law_of(nc1)
    if law is None:
        return None
    return law.rho < 1 and law.r_squared is not None and law.r_squared >= LEAST_R_SQUARED


def never_rises(shares: Profile) -> bool | None:
    """Whether a share falls or stays from each layer to the next, up to the tolerance.

    Example:
        >>> never_rises([0.5, 0.2, 0.205]), never_rises([0.5, 0.2, 0.3]), never_rises([0.5])
        (True, False, None)
    """
    values = [value for value in shares if value is not None]
    return all(b <= a + TOLERANCE for a, b in pairwise(values)) if len(values) > 1 else None


def beginning(errors: Profile) -> int:
    """Return from which layer on collapse has begun, counted from 0; one past the last for none.

    Example:
        >>> beginning([0.5, 0.04, 0.3, 0.02, 0.0]), beginning([0.5, 0.4])
        (3, 2)
    """
    before = [i for i, value in enumerate(errors) if value is None or value > BEGUN]
    return before[-1] + 1 if before else 0


def begins_later(clean: Profile, noisy: Profile) -> bool | None:
    """Whether wrong labels move the layer where collapse begins; None where it never begins."""
    begun = beginning(clean)
    return None if begun == len(clean) else beginning(noisy) > begun


def verdicts(results: Results) -> list[str]:
    """Return a line for each claim."""

    def by_case(
        measure: str, judge: Callable[[Profile], bool | None]
    ) -> dict[str, list[bool | None]]:
        return {
            " at ratio ".join(results.named(case)): [
                judge(each) for each in profiles(results, measure, "train", **case).values()
            ]
            for case in results.cases
        }

    lines = [
        verdict(
            "Every layer separates the classes of the training samples by about the same factor",
            by_case("nc1", separates_evenly),
            f"in every seed ρ < 1 and R² ≥ {LEAST_R_SQUARED:g} of log nc1 against the layer",
        ),
        verdict(
            "The mismatch of ridge and the nearest class mean does not increase with depth",
            by_case("nc4", never_rises),
            "in every seed no layer's share of the training samples exceeds the one before by more "
            f"than {TOLERANCE:g}",
        ),
    ]
    low, *_, high = (*results.values(RATIO), results.values(RATIO)[-1])
    moved = {}
    for method, name in results.names.items():
        clean, noisy = (
            profiles(results, ERROR, "train", method=method, ratio=r) for r in (low, high)
        )
        seeds = sorted(clean.keys() & noisy.keys())
        moved[name] = [begins_later(clean[s], noisy[s]) for s in seeds]
    if low < high:
        lines.append(
            verdict(
                "Wrong labels move the layer where collapse begins towards the last",
                moved,
                "in every seed the layer from which on the nearest class mean is wrong for at most "
                f"{BEGUN:g} of the training labels is later at ratio {high:g} than at {low:g}",
            )
        )
    return lines


# --- tables


def kinds(results: Results) -> Iterator[Results]:
    """Yield the results of the methods that have the same layers."""
    found: dict[tuple[str, ...], list[str]] = {}
    for method in results.names:
        rows = (row for row in results.rows if row["method"] == method)
        found.setdefault(tuple(dict.fromkeys(row["layer"] for row in rows)), []).append(method)
    for methods in found.values():
        yield replace(results, rows=[row for row in results.rows if row["method"] in methods])


def layer_tables(results: Results) -> list[Table]:
    """Return all measures by layer, a table for the methods that have the same layers."""
    return [layer_table(part) for part in kinds(results)]


def layer_table(results: Results) -> Table:
    """Return all measures by layer, methods and ratios beneath each other."""

    def entry(measure: str, split: str, **where: Any) -> str:
        values = [of_row(row, measure, split) for row in matching(results.rows, **where)]
        return shown(estimate([v for v in values if v is not None]), results.seeds)

    layers = results.values()
    rows = tuple(
        (
            measure,
            split,
            *results.named(case),
            *(entry(measure, split, **case, layer=layer) for layer in layers),
        )
        for measure in COLLAPSE | DIMENSIONS
        for split in ("train", "test")
        for case in results.cases
    )
    title = (
        "Layers at the last epoch: collapse, error of the nearest class mean, its mismatch with "
        "ridge (nc4), dimension, coding rates; train by the labels trained on, test by the true "
        f"ones ({results.interval})"
    )
    note = "- where class means hold too little of the features for a measure about them"
    header = ("measure", "split", "method", "ratio", *layers)
    return Table(title, header, rows, left=4, notes=(note,))


def law_table(results: Results) -> Table:
    """Return ρ and R² of the law of separation, and the layer where collapse begins."""
    rows = []
    for part in kinds(results):
        names = (*part.values(), "none")
        for case in part.cases:
            for split in ("train", "test"):
                nc1 = profiles(part, "nc1", split, **case).values()
                laws = [law for law in map(law_of, nc1) if law is not None]
                rho = estimate([law.rho for law in laws])
                fit = estimate([law.r_squared for law in laws if law.r_squared is not None])
                errors = profiles(part, ERROR, split, **case).values()
                begun = ", ".join(dict.fromkeys(names[beginning(each)] for each in errors))
                entries = (shown(rho, part.seeds, 3), shown(fit, part.seeds, 3), begun or "-")
                rows.append((*part.named(case), split, *entries))
    title = (
        "Separation: least squares of log nc1 = log a + l log ρ over measured layers l, and the "
        f"layer from which on at most {BEGUN:g} of the samples are nearer to another class's mean "
        f"({results.interval})"
    )
    header = ("method", "ratio", "split", "ρ", "R²", "collapse begins at")
    return Table(title, header, tuple(rows), left=3)


# --- figures


def by_layer(results: Results) -> dict[str, Any]:
    """Draw every measure against depth: a figure for collapse, one for dimension and rates."""
    figures = {"collapse_by_layer": COLLAPSE, "rates_by_layer": DIMENSIONS}
    return {name: draw_by_layer(results, measures) for name, measures in figures.items()}


def draw_by_layer(results: Results, measures: Mapping[str, str]) -> Any:
    """Draw measures against relative depth, a column a measure, a row a ratio."""
    from experiments.report import canvas
    from experiments.report.figures import SPLITS, TRAIN_TEST, legend

    ratios = results.values(RATIO)
    figure, axes = canvas.panels(len(ratios), len(measures), 3.0, 2.5, sharex=True)
    for row, ratio in zip(axes, ratios, strict=True):
        for panel, measure in zip(row, measures, strict=True):
            for method in results.names:
                for split, style in SPLITS.items():
                    found = profiles(results, measure, split, method=method, ratio=ratio)
                    each = list(zip(*found.values(), strict=True))  # layer by layer
                    depth = [i / max(len(each) - 1, 1) for i in range(len(each))]
                    marked, colour = f".{style}", results.colours[method]
                    canvas.mean_and_range(panel, depth, each, colour, marked)
            if measure in ("nc1", "cdnv"):
                canvas.log_y(panel)
            else:
                panel.set_ylim(bottom=0)
        row[0].set_ylabel(canvas.label(f"ratio {ratio:g}"))
    for panel, measure in zip(axes[0], measures, strict=True):
        panel.set_title(TITLES[measure], fontsize=11)
    figure.supxlabel("depth, from the first layer (0) to the features (1)", fontsize=10)
    legend(figure, {n: results.colours[m] for m, n in results.names.items()}, TRAIN_TEST)
    return figure


def layers_along(results: Results) -> Any:
    """Draw nc1 of the training samples along training, a shade a layer."""
    from experiments.report import canvas
    from experiments.report.figures import curve
    from experiments.report.results import constructed

    ratios, runs = results.values(RATIO), {m: results.runs_of(m) for m in results.names}
    trained = [m for m, each in runs.items() if each and not constructed(each[0].record)]
    figure, axes = canvas.panels(len(ratios), max(len(trained), 1), 4.0, 2.7, sharex=True)
    for row, ratio in zip(axes, ratios, strict=True):
        for panel, method in zip(row, trained, strict=False):
            names = [*runs[method][0].record.spec["measured_layers"], "features"]
            for layer, shade in zip(names, canvas.shades(len(names)), strict=True):
                points = curve(results.runs_of(method, ratio=ratio), "nc1", "train", layer=layer)
                at, means = [p.x for p in points], [p.mean for p in points]
                panel.plot(at, means, color=shade, label=canvas.label(layer))
            canvas.log_y(panel)
            title = f"{results.names[method]}, ratio {ratio:g}"
            panel.set(title=canvas.label(title), xlabel="epoch")
        row[0].set_ylabel("nc1, train samples")
    canvas.name_lines(axes[0, -1], loc="upper left", bbox_to_anchor=(1.02, 1))
    return figure


@dataclass(frozen=True)
class Layers(LayerStudy):
    """Measure collapse and coding rates at every layer, with and without wrong labels."""

    name: ClassVar[str] = "layers"
    tables = (law_table, layer_tables)
    figures = (by_layer, layers_along)
    claims = (verdicts,)

    def study_axes(self) -> tuple[Axis, ...]:
        """Return the layer, and the ratio."""
        return (LAYER, RATIO)
