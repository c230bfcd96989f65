"""The plane of coding rates: R and R_c of every layer along training, a curve a method.

    mcr2 study rate_plane

18 runs of the recipe ``quick``, about 12 minutes on two cores. It is the picture of the information
bottleneck (Tishby & Zaslavsky 2015; Shwartz-Ziv & Tishby 2017) with rates in place of mutual
information: R of all samples for what a layer holds of the input, R_c, that of classes, for what it
holds beside the class, ΔR = R − R_c for the class. Rates at a distortion are finite and measured
without bins; they are not mutual information, and are not called so. Expect cross-entropy to lose
R and R_c together, MCR² to keep R, and ReduNet to raise R layer by layer.

Axes: the share of labels redrawn; epochs, or layers of ReduNet, run along the curves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from experiments.report.axis import RATIO
from experiments.report.statistics import estimate, shown, verdict
from experiments.report.table import Table
from experiments.studies.claims import LayerStudy

if TYPE_CHECKING:
    from experiments.report.results import Results
    from mcr2.records import Run

#: A rate that changes by less than this share of itself has not changed.
CHANGE = 0.1

#: R_c/R of a layer that exceeds the one before by no more than this has not risen.
TOLERANCE = 0.01


class Rates(NamedTuple):
    """R and R_c of a layer in nats, at an epoch or behind a constructed layer."""

    at: int
    rate: float
    compressed: float

    @property
    def share(self) -> float | None:
        """R_c/R; None of features that are zero."""
        return self.compressed / self.rate if self.rate else None


def path(runs: Sequence[Run], layer: str = "features", split: str = "train") -> list[Rates]:
    """Return the mean rates of a layer over runs, along training or construction."""
    from experiments.report.figures import curve

    R, R_c = (curve(runs, m, split, layer=layer) for m in ("rate", "compressed_rate"))
    return [Rates(p.x, p.mean, q.mean) for p, q in zip(R, R_c, strict=True)]


def last_by_layer(run: Run) -> list[Rates]:
    """Return the rates of a run's layers at its last epoch, from the first layer to the last."""
    from experiments.report.rows import measures_by_layer
    from experiments.report.tables import standing_key

    names = [standing_key(measure, "train") for measure in ("rate", "compressed_rate")]
    layers = enumerate(measures_by_layer(run.record).values())
    return [Rates(depth, *(measures[name] for name in names)) for depth, measures in layers]


# --- claims


def expands_then_compresses(along: Sequence[Rates]) -> bool | None:
    """Whether R_c rises first and falls afterwards, each by more than the change that counts.

    Example:
        >>> expands_then_compresses([Rates(0, 5, 2), Rates(1, 8, 4), Rates(2, 8, 3)])
        True
        >>> expands_then_compresses([Rates(0, 5, 2), Rates(1, 8, 4), Rates(2, 8, 4)])
        False
    """
    if len(along) < 3:
        return None
    values = [each.compressed for each in along]
    top = max(values)
    return top > (1 + CHANGE) * values[0] and values[-1] < (1 - CHANGE) * top


def keeps_rate(along: Sequence[Rates]) -> bool | None:
    """Whether the last R is as large as the largest before it, up to the change that counts.

    Example:
        >>> keeps_rate([Rates(0, 5, 2), Rates(1, 8, 4), Rates(2, 7.5, 3)])
        True
    """
    if len(along) < 2:
        return None
    return along[-1].rate >= (1 - CHANGE) * max(each.rate for each in along)


def compresses_with_depth(layers: Sequence[Rates]) -> bool | None:
    """Whether R_c/R falls or stays from each layer to the next, up to the tolerance."""
    pairs = list(pairwise(share for each in layers if (share := each.share) is not None))
    return all(b <= a + TOLERANCE for a, b in pairs) if pairs else None


def verdicts(results: Results) -> list[str]:
    """Return a line for each claim, judged of the training samples."""
    phases, kept, deeper = {}, {}, {}
    for (method, name), ratio in product(results.names.items(), results.values(RATIO)):
        runs, case = results.runs_of(method, ratio=ratio), f"{name} at ratio {ratio:g}"
        phases[case] = [expands_then_compresses(path([run])) for run in runs]
        kept[case] = [keeps_rate(path([run])) for run in runs]
        deeper[case] = [compresses_with_depth(last_by_layer(run)) for run in runs]
    return [
        verdict(
            "R_c of the features rises first and is compressed afterwards",
            phases,
            f"in every seed its largest value is more than {CHANGE:.0%} above the first, and the "
            f"last more than {CHANGE:.0%} below the largest",
        ),
        verdict(
            "R of the features is kept to the end",
            kept,
            f"in every seed the last is within {CHANGE:.0%} of the largest",
        ),
        verdict(
            "Deeper layers are more compressed",
            deeper,
            f"in every seed no layer's R_c/R at the last epoch exceeds the one before by more than "
            f"{TOLERANCE:g}",
        ),
    ]


# --- table and figures


def plane_table(results: Results) -> Table:
    """Return R, R_c and R_c/R of the features along their curves, at three places."""

    def places(along: Sequence[Rates]) -> list[tuple[str, Rates]]:
        top = max(along, key=lambda each: each.compressed)
        return [("first", along[0]), ("largest R_c", top), ("last", along[-1])]

    rows = []
    for (method, name), ratio in product(results.names.items(), results.values(RATIO)):
        for split in ("train", "test"):
            paths = [path([run], split=split) for run in results.runs_of(method, ratio=ratio)]
            found = [dict(places(along)) for along in paths if along]
            for place in found[0] if found else ():
                values = [each[place] for each in found]
                columns = (
                    [each.at for each in values],
                    [each.rate for each in values],
                    [each.compressed for each in values],
                    [share for each in values if (share := each.share) is not None],
                )
                entries = (shown(estimate(column), results.seeds) for column in columns)
                rows.append((name, f"{ratio:g}", split, place, *entries))
    title = (
        "Coding rates of the features along training, or behind the layers of ReduNet, in nats, by "
        f"the labels trained on and the true ones of test ({results.interval})"
    )
    header = ("method", "ratio", "split", "place", "epoch or layer", "R", "R_c", "R_c/R")
    return Table(title, header, tuple(rows), left=4)


def rate_plane(results: Results) -> Any:
    """Draw the features' path in the plane, a curve a method, a column a ratio, a row a split."""
    from experiments.report import canvas
    from experiments.report.figures import legend

    ratios = results.values(RATIO)
    figure, axes = canvas.panels(2, len(ratios), 4.2, 3.2, sharex=True, sharey=True)
    for row, split in zip(axes, ("train", "test"), strict=True):
        for panel, ratio in zip(row, ratios, strict=True):
            for method, colour in results.colours.items():
                if method in results.names:
                    found = path(results.runs_of(method, ratio=ratio), split=split)
                    draw_path(panel, found, colour)
            panel.set_title(canvas.label(f"{split} samples, ratio {ratio:g}"), fontsize=11)
            dress(panel)
            panel.label_outer()
    marker = {"marker": "o", "linestyle": "none"}
    styles = {"first": {**marker, "mfc": "white"}, "last": marker, "R_c = R": {"linestyle": ":"}}
    legend(figure, {n: results.colours[m] for m, n in results.names.items()}, styles)
    return figure


def rate_plane_layers(results: Results) -> Any:
    """Draw the path of every layer along training, a shade a layer; the last epoch is joined."""
    from experiments.report import canvas

    ratios = results.values(RATIO)
    figure, axes = canvas.panels(len(ratios), len(results.names), 3.6, 3.0)
    for row, ratio in zip(axes, ratios, strict=True):
        for panel, (method, name) in zip(row, results.names.items(), strict=True):
            runs = results.runs_of(method, ratio=ratio)
            layers = [*runs[0].record.spec["measured_layers"], "features"] if runs else []
            ends = []
            for layer, shade in zip(layers, canvas.shades(len(layers)), strict=True):
                found = path(runs, layer)
                draw_path(panel, found, shade, canvas.label(layer))
                ends += found[-1:]
            points = [(each.rate, each.compressed) for each in ends]
            if len(points) > 1:
                panel.plot(*zip(*points, strict=True), "--", color="0.5", linewidth=1, zorder=1)
            dress(panel)
            panel.set_title(canvas.label(f"{name}, ratio {ratio:g}"), fontsize=11)
            if len(layers) > 1 and ratio == ratios[0]:
                canvas.name_lines(panel, 8)
    return figure


def draw_path(panel: Any, along: Sequence[Rates], colour: Any, name: str | None = None) -> None:
    """Draw a path, from an open marker to a full one."""
    if along:
        R, R_c = [each.rate for each in along], [each.compressed for each in along]
        panel.plot(R, R_c, ".-", color=colour, linewidth=1.2, markersize=3, label=name)
        panel.plot(R[0], R_c[0], "o", color=colour, mfc="white", markersize=6, zorder=4)
        panel.plot(R[-1], R_c[-1], "o", color=colour, markersize=6, zorder=5)


def dress(panel: Any) -> None:
    """Draw where R_c = R, and name the axes."""
    panel.axline((0, 0), slope=1, linestyle=":", color="0.35", linewidth=1, zorder=0)
    panel.set(xlabel="R of all samples (nats)", ylabel="R_c of classes (nats)")


@dataclass(frozen=True)
class RatePlane(LayerStudy):
    """Follow every layer in the plane of coding rates, R and R_c, along training."""

    name: ClassVar[str] = "rate_plane"
    tables = (plane_table,)
    figures = (rate_plane, rate_plane_layers)
    claims = (verdicts,)
