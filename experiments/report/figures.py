"""The figures of a study, each drawn from its results alone: :data:`FIGURES`, by file name.

A method has one colour in all of them; where further axes are varied, each setting has its own.
Where both are shown, training samples are drawn solid and test samples dashed. Bars are 95 %
intervals over seeds, bands the range over seeds: an interval of three seeds is wider than most
axes. A network that is constructed layer by layer has panels of its own, for layers are not
epochs. Runs that failed and measures that are null leave gaps, nothing more.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.report.canvas import (
    COLOURS,
    cosines,
    label,
    limits,
    log_y,
    panels,
    save,
    say,
    shares,
    svg,
)
from experiments.report.results import Line, Results, are_numbers, constructed, value_text
from experiments.report.statistics import Estimate
from experiments.report.table import count_of
from experiments.report.tables import (
    LABELS,
    MEMORIZATION,
    classes_of,
    confusions,
    read_by,
    standing_key,
)
from mcr2.evaluation import COMMON_READOUT, measure_key
from mcr2.evaluation.catalogue import MEASURES
from mcr2.evaluation.results import FEATURES
from mcr2.records import Run

#: Line of each split.
SPLITS = {"train": "-", "test": "--"}

#: Colours of selection rules, where a single method has no need of its own.
_RULE_COLOURS = (COLOURS[1], COLOURS[0], COLOURS[6])

#: The readout by which a method's accuracy is reported.
OWN = "own"

#: What lines in grey say in a legend.
Styles = Mapping[str, Mapping[str, Any]]

TRAIN_TEST: Styles = {f"{split} samples": {"linestyle": line} for split, line in SPLITS.items()}


class Point(NamedTuple):
    """A measure at one epoch: its mean and range over seeds."""

    x: int
    mean: float
    low: float
    high: float


def _points(values: Mapping[int, Sequence[float]]) -> list[Point]:
    return [Point(x, sum(v) / len(v), min(v), max(v)) for x, v in sorted(values.items())]


def curve(
    runs: Iterable[Run], measure: str, split: str, readout: str = "-", layer: str = FEATURES
) -> list[Point]:
    """Return a measure along training, over the runs that have it at an epoch."""
    at: dict[int, list[float]] = {}
    for run in runs:
        by = run.record.readout if readout == OWN else readout
        key = standing_key(measure, split, by, layer)
        for entry in run.record.history:
            value = entry["measures"].get(key)
            if value is not None and math.isfinite(value):
                at.setdefault(entry["epoch"], []).append(value)
    return _points(at)


def _profile(run: Run, key: str) -> Any:
    """Return a profile of the last epoch by its key, None where the run has none."""
    chosen = run.evaluation.selections.get("last", {}) if run.evaluation else {}
    return chosen.get("profiles", {}).get(key)


def _some(values: Sequence[Any], most: int) -> list[Any]:
    """Return at most so many values, the ends among them, evenly."""
    places = np.linspace(0, len(values) - 1, min(most, len(values)))
    return [values[round(i)] for i in places]


def _title(measure: str, readout: str = "-") -> str:
    by = "" if readout == "-" else f" ({readout})"
    return textwrap.fill(f"{measure}{by}: {MEASURES[measure].title}", 34)


def _accuracy_label(results: Results) -> str:
    return f"test accuracy, {label(results.dataset, 24)}"


def _handles(styles: Styles) -> list[Any]:
    from matplotlib.lines import Line2D

    grey = {"color": "0.35"}
    return [Line2D([], [], **{**grey, "label": label(n), **look}) for n, look in styles.items()]


def _legend(figure: Any, results: Results, styles: Styles | None = None) -> None:
    """Name the colours of lines, and line styles in grey, above all panels."""
    legend(figure, {line.label: line.colour for line in results.lines}, styles)


def legend(figure: Any, colours: Mapping[str, str], styles: Styles | None = None) -> None:
    """Name colours, and line styles in grey, above all panels: those that are drawn."""
    from matplotlib.colors import to_hex

    lines = {name: {"color": colour, "linewidth": 3} for name, colour in colours.items()}
    drawn = [line for axes in figure.axes for line in axes.lines if len(line.get_xdata())]
    seen = {to_hex(line.get_color()) for line in drawn}
    kept = {name: lines[name] for name, colour in colours.items() if to_hex(colour) in seen}
    looks = {name: look for name, look in (styles or {}).items() if any(map(_like(look), drawn))}
    handles = _handles({**(kept or lines), **looks})
    wide = [0.08 * len(handle.get_label()) + 0.65 for handle in handles]  # inches, about
    room = figure.get_figwidth()
    columns = len(handles) if sum(wide) <= room else max(1, int(room / max(wide)))
    look = {"fontsize": 10, "frameon": False, "handlelength": 1.6, "columnspacing": 1.4}
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, **look)


def _like(look: Mapping[str, Any]) -> Callable[[Any], bool]:
    """Return what tells whether a line is drawn as a legend says: by its marker, shade or style."""
    if look.get("linestyle") == "none":
        face = look.get("mfc")
        return lambda line: (
            line.get_marker() == look["marker"]
            and (face is None or line.get_markerfacecolor() == face)
        )
    if "alpha" in look:
        return lambda line: line.get_alpha() is not None or "linewidth" in look
    return lambda line: line.get_linestyle() == look.get("linestyle")


# --- scalars with their intervals over seeds

#: A scalar's name, the selection rule it is of, and the line it is drawn with.
Scalar = tuple[str, str, str]


def _across(
    results: Results,
    scalars: Mapping[str, Sequence[Scalar]],
    ylabel: str,
    styles: Styles | None = None,
    width: float = 3.2,
    named: bool = True,
) -> tuple[Any, Any, list[list[Estimate | None]]]:
    """Draw scalars against the first axis, a panel a title; return each panel's estimates too."""
    figure, axes = panels(1, len(scalars), width, 3.2, sharex=True)
    found: list[list[Estimate | None]] = []
    for panel, (title, drawn) in zip(axes[0], scalars.items(), strict=True):
        at = _first_axis(panel, results)
        found.append([])
        for part, (measure, rule, style) in enumerate(drawn):
            for number, line in enumerate(results.lines):
                values = results.estimates(measure, line.where, rule)
                found[-1] += values
                alone = len(results.lines) == 1  # then its scalars stand beside each other
                place, of = (part, len(drawn)) if alone else (number, len(results.lines))
                places = at(place - (of - 1) / 2)
                face = line.colour if style == "-" else "white"
                look: dict[str, Any] = {"linestyle": style, "mfc": face, "markersize": 4}
                _bars(panel, line, places, values, shares="/" not in measure, **look)
        panel.set_title(title, fontsize=11)
    axes[0, 0].set_ylabel(ylabel)
    if named:
        _legend(figure, results, styles)
    return figure, axes[0], found


def _first_axis(panel: Any, results: Results) -> Callable[[float], list[float]]:
    """Give a panel the first axis; return where its values stand so many hundredths of it aside.

    Numbers that span a factor of 8 with widening gaps stand on a logarithmic axis, others as they
    are, and what is not a number in turn.
    """
    values = results.values()
    at = values if are_numbers(values) else list(range(len(values)))
    gaps = [b - a for a, b in pairwise(at)]
    log = at[-1] >= 8 * at[0] > 0 and max(gaps) >= 3 * min(gaps)
    if log:
        panel.set_xscale("log")
        panel.set_xticks([], minor=True)
    if len(at) <= 8 or at is not values:
        panel.set_xticks(at, [label(value_text(v), 20) for v in values])
    panel.set_xlabel(results.axes[0].title)
    if log:
        return lambda aside: [x * (at[-1] / at[0]) ** (aside / 100) for x in at]
    return lambda aside: [x + ((at[-1] - at[0]) or 1) * aside / 100 for x in at]


def _bars(
    panel: Any,
    line: Line,
    at: Sequence[float],
    values: Sequence[Estimate | None],
    *,
    upright: bool = True,
    shares: bool = True,
    **look: Any,
) -> None:
    """Draw a line's estimates with their intervals, upright or flat; of shares within 0 and 1."""
    points = [(x, e.mean, *_ends(e, shares)) for x, e in zip(at, values, strict=True) if e]
    if points:
        x, mean, low, high = zip(*points, strict=True)
        below, above = np.subtract(mean, low), np.subtract(high, mean)
        reach = [below, above] if low != high and not line.averaged else None
        look |= {"marker": "o", "color": line.colour, "elinewidth": 1, "capsize": 2.5}
        panel.errorbar(*((x, mean, reach) if upright else (mean, x, None, reach)), **look)


def _ends(value: Estimate, shares: bool = True) -> tuple[float, float]:
    """Return the ends of an interval; of a share, within 0 and 1."""
    low, high = value.mean - (value.half_width or 0.0), value.mean + (value.half_width or 0.0)
    # A mean that rounding carried out of its bounds stays within its own interval.
    return (
        (max(low, min(0.0, value.mean)), min(high, max(1.0, value.mean))) if shares else (low, high)
    )


def _span(values: Iterable[Estimate | None], least: float = 0.05) -> tuple[float, float]:
    """Return from where to where an axis of shares reaches: all intervals, no bar is clipped."""
    ends = [_ends(value) for value in values if value]
    low, high = min((e[0] for e in ends), default=0.0), max((e[1] for e in ends), default=1.0)
    return (min(low, max(0.0, high - least)), high)


def draw_accuracy(results: Results) -> Any:
    """Test accuracy, a panel for all selection rules that agree."""
    agreeing: dict[tuple[Any, ...], list[str]] = {}
    for rule in results.rules:
        cases = (results.estimates("test_accuracy", line.where, rule) for line in results.lines)
        agreeing.setdefault(tuple(map(tuple, cases)), []).append(rule)
    scalars = {
        "\n".join(rules).replace("_", " "): [("test_accuracy", rules[0], "-")]
        for rules in agreeing.values()
    }
    width = 2.6 if len(scalars) > 3 else 3.2
    figure, axes, found = _across(results, scalars, _accuracy_label(results), width=width)
    for panel in axes:
        panel.set_xlabel("")
        limits(panel, *_span(chain(*found)))
        panel.label_outer()
    figure.supxlabel(results.axes[0].title, fontsize=10)
    return figure


def draw_memorization(results: Results) -> Any:
    """What the networks of the last epoch made of their training labels."""
    scalars = {_title(m): [(m, "last", "-")] for m in MEMORIZATION}
    figure, axes, _ = _across(results, scalars, "share, at the last epoch")
    for panel in axes:
        limits(panel, 0, 1)
        panel.label_outer()
    return figure


def draw_participation(results: Results) -> Any:
    """Dimensions of all features and of a class at the last epoch."""
    scalars: dict[str, list[Scalar]] = {}
    for measure in ("participation_ratio", "dim95", "class_dim95"):
        for split, style in SPLITS.items():
            scalar = (standing_key(measure, split), "last", style)
            scalars.setdefault(_title(measure), []).append(scalar)
    figure, axes, _ = _across(results, scalars, "dimensions, at the last epoch", TRAIN_TEST)
    for panel in axes:
        panel.set_ylim(bottom=0)
    return figure


def draw_settings(results: Results) -> dict[str, Any]:
    """For each axis: accuracy, and what became of wrong labels; the other axes are lines."""
    varied = [axis for axis in results.axes if len(results.values(axis)) > 1]
    return {a.name: _draw_setting(results.along(a)) for a in varied or results.axes[:1]}


def _draw_setting(results: Results) -> Any:
    rules = [r for r in ("last", "noisy_validation", "oracle") if r in results.rules]
    became = {"fit_corrupted": "-", "recovered": "--"}
    if len(results.lines) > 1:  # colours are lines' already
        rules = rules[:1]
    fixed = [a for a in results.axes[1:] if len(results.values(a)) == 1]
    parts = [f"{axis.name} {value_text(results.values(axis)[0])}" for axis in fixed]
    by_rule = len(rules) > 1  # a single line, whose name is in the title
    parts = [line.label for line in results.lines] * by_rule + parts
    parts += ["last epoch"] * (not by_rule) + [count_of(results.seeds, "seed")]
    scalars: dict[str, list[Scalar]] = {
        label(f"accuracy: {', '.join(parts)}", 48): [("test_accuracy", r, "-") for r in rules],
        "wrong labels, last epoch": [(m, "last", style) for m, style in became.items()],
    }
    ylabel = _accuracy_label(results)
    figure, axes, found = _across(results, scalars, ylabel, width=4.5, named=not by_rule)
    limits(axes[0], _span(found[0])[0], 1)
    limits(axes[1], 0, 1)
    axes[1].set_ylabel("share of the wrong labels")
    looks = [{name: {"linestyle": style} for name, style in became.items()}]
    if by_rule:
        colours = dict(zip(rules, _RULE_COLOURS, strict=False))
        for bars, colour in zip(axes[0].containers, colours.values(), strict=False):
            for part in bars.get_children():
                part.set_color(colour)
                if hasattr(part, "set_markerfacecolor"):  # markers and caps have their own
                    part.set(markerfacecolor=colour, markeredgecolor=colour)
        looks.insert(0, {rule: {"color": colour} for rule, colour in colours.items()})
    for panel, look in zip(axes[-len(looks) :], looks, strict=True):
        panel.legend(handles=_handles(look), fontsize=9, frameon=False)
    return figure


def draw_readouts(results: Results) -> Any:
    """Test accuracy by every readout fitted on the labels trained on, at the ends."""
    keys = [key for key in read_by(results) if key.layer == FEATURES]
    lines, ends = results.lines, results.ends
    height = max(0.24, 0.1 * len(lines)) * max(len(keys), 4) + 0.6
    figure, axes = panels(1, len(ends), 4.6, height, sharey=True)
    for panel, value in zip(axes[0], ends, strict=True):
        found: list[Estimate | None] = []
        for number, line in enumerate(lines):
            where = {**line.where, "selection": "last", results.axes[0].name: value}
            values = [results.over_seeds(str(key), **where) for key in keys]
            shift = min(0.18, 0.8 / len(lines)) * (number - (len(lines) - 1) / 2)
            at = [place + shift for place in range(len(keys))]
            _bars(panel, line, at, values, upright=False, linestyle="none", markersize=5)
            found += values
        panel.set_title(label(results.at(value)), fontsize=11)
        panel.set_xlabel(_accuracy_label(results))
        low, high = _span(found)
        panel.set_xlim(low - 0.02, high + 0.02)
        panel.locator_params(axis="x", nbins=6)
    axes[0, 0].set_yticks(range(len(keys)), [label(key.readout) for key in keys], fontsize=9)
    axes[0, 0].set_ylim(max(len(keys), 1) - 0.4, -0.6)
    _legend(figure, results)
    return figure


# --- runs: along training, and profiles of the last epoch


def _runs(
    panel: Any,
    results: Results,
    lines: Iterable[Line],
    value: Any,
    draw: Callable[[Any, Sequence[Run], str], None],
    title: str,
    xlabel: str,
) -> None:
    """Draw the runs of lines at a value of the first axis, each line by ``draw`` in its colour."""
    for line in lines:
        draw(panel, results.runs_of(**line.where, **{results.axes[0].name: value}), line.colour)
    if not panel.lines:
        say(panel, "nothing was measured")
    panel.set_title(title, fontsize=11)
    panel.set_xlabel(xlabel)


def _courses(results: Results) -> dict[str, list[Line]]:
    """Return what lines run over: epochs where a network is trained, layers where it is made."""
    found: dict[str, list[Line]] = {"epoch": [], "layer": []}
    for line in results.lines:
        made = any(constructed(run.record) for run in results.runs_of(**line.where))
        found["layer" if made else "epoch"].append(line)
    return {course: lines for course, lines in found.items() if lines}


def draw_curve(
    axes: Any, points: Sequence[Point], colour: str, line: str = "-", **look: Any
) -> None:
    """Draw a curve and the range around it; a single point as a marker."""
    x, mean, low, high = zip(*points, strict=True) if points else ((), (), (), ())
    if len(points) == 1:
        reach = [[mean[0] - low[0]], [high[0] - mean[0]]]
        face = colour if line == "-" else "white"
        axes.errorbar(x, mean, reach, color=colour, mfc=face, marker="o", capsize=3, **look)
    elif points:
        axes.plot(x, mean, color=colour, linestyle=line, linewidth=1.5, **look)
        if low != high:
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def draw_collapse(results: Results) -> Any:
    """Neural collapse along training, at the ends of the first axis."""
    readouts = {"nc1": "-", "nc2_etf": "-", "nc3": COMMON_READOUT, "nc4": COMMON_READOUT}
    rows = [(*course, value) for course in _courses(results).items() for value in results.ends]
    figure, axes = panels(len(rows), len(readouts), 3.0, 2.6)
    for row, (course, lines, value) in zip(axes, rows, strict=True):
        for panel, (measure, readout) in zip(row, readouts.items(), strict=True):
            title = _title(measure, readout) if value == results.ends[0] else ""
            draw = partial(_draw_collapse, measure, readout)
            _runs(panel, results, lines, value, draw, title, course)
        row[0].set_ylabel(label(results.at(value)))
    head = {"own head, train": {"linestyle": ":"}}
    _legend(figure, results, {**TRAIN_TEST, **head, "not reliable": {"alpha": 0.3}})
    return figure


def _draw_collapse(measure: str, readout: str, axes: Any, runs: Sequence[Run], colour: str) -> None:
    """Draw a measure of collapse, faint where class means hold too little of the features."""
    for split, style in SPLITS.items():
        points = curve(runs, measure, split, readout)
        doubted = {p.x for p in curve(runs, "means_reliable", split) if p.low < 1}
        if doubted:
            draw_curve(axes, points, colour, style, alpha=0.25)
            gap = math.nan
            points = [Point(p.x, gap, gap, gap) if p.x in doubted else p for p in points]
        draw_curve(axes, points, colour, style)
    if readout != "-":
        draw_curve(axes, curve(runs, measure, "train", "head"), colour, ":")
    if measure == "nc4":
        axes.set_ylim(bottom=0)
    else:
        log_y(axes)


def draw_margins(results: Results) -> Any:
    """Normalised margins of the training samples along training, by classifier."""
    rows = [
        (*course, readout, title)
        for course in _courses(results).items()
        for readout, title in ((COMMON_READOUT, "ridge on the features"), ("head", "own head"))
        if readout != "head" or course[0] == "epoch"  # what is constructed has no head
    ]
    figure, axes = panels(len(rows), len(results.ends), 4.2, 2.6, sharey="row")
    for row, (course, lines, readout, title) in zip(axes, rows, strict=True):
        for panel, value in zip(row, results.ends, strict=True):
            title_here = f"{title}, {label(results.at(value))}"
            draw = partial(_draw_margins, readout)
            _runs(panel, results, lines, value, draw, title_here, course)
            panel.axhline(0, color="0.3", linewidth=0.8)
        row[0].set_ylabel("normalised margin")
    band = {"5 % to 95 % of the training samples": {"linewidth": 8, "alpha": 0.3}}
    _legend(figure, results, {"median": {"linestyle": "-"}, **band})
    return figure


def _draw_margins(readout: str, axes: Any, runs: Sequence[Run], colour: str) -> None:
    """Draw the median margin and a band of nine tenths of the samples, means over seeds."""
    low, middle, high = (
        {p.x: p.mean for p in curve(runs, f"margin_normalised_{q}", "train", readout)}
        for q in ("q05", "q50", "q95")
    )
    points = [Point(x, m, low.get(x, m), high.get(x, m)) for x, m in middle.items()]
    draw_curve(axes, points, colour, "-")


def draw_errors(results: Results) -> Any:
    """Training and test error along training, with the beginning of the terminal phase."""
    courses, values = _courses(results), _some(results.values(), 4)
    figure, axes = panels(len(courses), len(values), 3.2, 2.6, sharey=True)
    for row, (course, lines) in zip(axes, courses.items(), strict=True):
        for panel, value in zip(row, values, strict=True):
            title = label(results.at(value))
            _runs(panel, results, lines, value, _draw_errors, title, course)
        row[0].set_ylabel("error, by own readout")
    limits(axes[0, 0], 0, 1)
    began = {"terminal phase begins": {"marker": "^", "linestyle": "none"}}
    train = {"train, labels trained on": {"linestyle": "-"}}
    _legend(figure, results, {**train, "test": {"linestyle": "--"}, **began})
    return figure


def _draw_errors(axes: Any, runs: Sequence[Run], colour: str) -> None:
    for measure, split in (("fit_noisy", "train"), ("accuracy", "test")):
        right = curve(runs, measure, split, OWN)
        wrong = [Point(p.x, 1 - p.mean, 1 - p.high, 1 - p.low) for p in right]
        draw_curve(axes, wrong, colour, SPLITS[split])
    began = [run.evaluation.terminal_epoch for run in runs if run.evaluation is not None]
    at = [epoch for epoch in began if epoch is not None]
    if at:
        axes.plot(at, [0] * len(at), "^", color=colour, markersize=7, clip_on=False, zorder=5)


def draw_matched_memorization(results: Results) -> Any:
    """Test accuracy against the share of wrong labels fitted along each run, a line a seed.

    At the same abscissa networks have memorised as much; the higher one is the more accurate.
    """
    fitted = zip(results.values(), results.estimates("fit_corrupted", {}), strict=True)
    wrong = [value for value, estimate in fitted if estimate] or results.ends[-1:]
    values = [wrong[-1], wrong[(len(wrong) - 1) // 2]] if len(wrong) > 2 else wrong[-1:]
    readouts = {COMMON_READOUT: "the common ridge readout", OWN: "each method's own readout"}
    figure, axes = panels(len(values), 2, 4.2, 3.6, sharex=True, sharey=True)
    for row, value in zip(axes, values, strict=True):
        for panel, (readout, name) in zip(row, readouts.items(), strict=True):
            title = f"both axes by {name}" if value == values[0] else ""
            xlabel = "share of the wrong labels fitted"
            draw = partial(_draw_paths, readout)
            _runs(panel, results, results.lines, value, draw, title, xlabel)
        row[0].set_ylabel(f"test accuracy, {label(results.at(value))}")
    right = [y for panel in axes.flat for line in panel.lines for y in line.get_ydata()]
    limits(axes[0, 0], min(right, default=0.0), max(right, default=1.0))
    # Most paths end below 0.15: above a hundredth the axis is logarithmic.
    axes[0, 0].set_xscale("symlog", linthresh=0.01, linscale=0.4)
    ticks = [0, 0.01, 0.03, 0.1, 0.3, 1]
    axes[0, 0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[0, 0].set_xticks([], minor=True)
    axes[0, 0].set_xlim(-0.001, 1.2)
    ends = {"before training": _START, "last epoch": _END}
    _legend(figure, results, {name: {**look, "linestyle": "none"} for name, look in ends.items()})
    return figure


#: A path starts in a ring, which stays visible around the dot it ends in where both coincide.
_START = {"marker": "o", "markersize": 8, "mfc": "none"}
_END = {"marker": "o", "markersize": 4}


def _draw_paths(readout: str, axes: Any, runs: Sequence[Run], colour: str) -> None:
    """Draw each run's path: a ring where it starts, a dot where it ends."""
    for run in runs:
        fitted = {p.x: p.mean for p in curve([run], "fit_corrupted", "train", readout)}
        right = {p.x: p.mean for p in curve([run], "accuracy", "test", readout)}
        path = [(fitted[x], right[x]) for x in fitted if x in right]
        if len(path) > 1:
            axes.plot(*zip(*path, strict=True), color=colour, linewidth=0.9, alpha=0.8)
            axes.plot(*path[0], color=colour, zorder=4, **_START)
            start, end = max(pairwise(path), key=lambda step: math.dist(*step))
            arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 0.9, "mutation_scale": 9}
            if start != end:
                axes.annotate("", xy=end, xytext=start, arrowprops=arrow)
        if path:
            axes.plot(*path[-1], color=colour, zorder=5, **_END)


def draw_spectra(results: Results) -> Any:
    """Spectra of all features and of a class at the last epoch, a column a value."""
    kinds = {"spectrum": "all features", "class_spectra": "mean over classes"}
    values = _some(results.values(), 4)
    figure, axes = panels(2, len(values), 3.0, 2.6, sharex=True, sharey=True)
    for row, (kind, name) in zip(axes, kinds.items(), strict=True):
        for panel, value in zip(row, values, strict=True):
            title, draw = label(results.at(value)), partial(_draw_spectra, kind)
            _runs(panel, results, results.lines, value, draw, title, "component")
        row[0].set_ylabel(f"{name}:\nshare of the energy")
    drawn = [v for panel in axes.flat for line in panel.lines for v in line.get_ydata() if v > 0]
    if drawn:  # below a millionth of the energy is rounding
        axes[0, 0].set_ylim(max(1e-6, 0.5 * min(drawn)), 1.5)
    _legend(figure, results, TRAIN_TEST)
    return figure


def _draw_spectra(kind: str, axes: Any, runs: Sequence[Run], colour: str) -> None:
    """Draw a spectrum over seeds, its components numbered from 1; of classes, their mean."""
    for split, style in SPLITS.items():
        labels = "-" if kind == "spectrum" else LABELS[split]
        key = measure_key(kind, split=split, labels=labels)
        found = [np.atleast_2d(values) for run in runs if (values := _profile(run, key))]
        means = [each.mean(axis=0).tolist() for each in found]
        draw_curve(
            axes, _points(dict(enumerate(zip(*means, strict=False), start=1))), colour, style
        )
    log_y(axes)


def draw_cosines(results: Results) -> Any:
    """|cosine| between test samples sorted by class at the last epoch; one seed of each."""
    values = _some(results.values(), 8)
    side = 1.9 if len(values) > 3 else 2.6
    figure, axes = panels(len(results.lines), len(values), side, side)
    figure.get_layout_engine().set(w_pad=0.12)  # names of rows stand near the edge
    key = measure_key("abs_cosine", split="test", labels="clean")
    image = None
    for row, line in zip(axes, results.lines, strict=True):
        for panel, value in zip(row, values, strict=True):
            runs = results.runs_of(**line.where, **{results.axes[0].name: value})
            run = next((run for run in runs if _profile(run, key)), None)
            if run is None:
                panel.set(xticks=[], yticks=[], box_aspect=1)
                say(panel, "no run")
            else:
                matrix = np.array(_profile(run, key), dtype=float)  # null is not a number
                image = cosines(panel, matrix, _profile(run, f"{key}_labels") or [])
                panel.label_outer()
        row[0].set_ylabel(label(line.label, 20), fontsize=12, color=line.colour, fontweight="bold")
    for panel, value in zip(axes[0], values, strict=True):
        panel.set_title(label(results.at(value)), fontsize=11)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30)
        bar.set_label("|cosine| of two test samples' features")
    figure.supxlabel("test samples, sorted by class", fontsize=10)
    return figure


def draw_confusion(results: Results) -> Any:
    """What became of training labels, by true class and label, at the largest value; all seeds.

    Nothing is drawn of noise that is the same for every class.
    """
    value = results.values()[-1]
    found = {
        line.label: confusions(results, **line.where, **{results.axes[0].name: value})
        for line in results.lines
    }
    found = {name: sum(each) for name, each in found.items() if each}
    if not found:
        return {}
    figure, axes = panels(len(found), 4, 2.7, 2.7)
    classes, image = classes_of(results), None
    for row, (name, (every, as_given, as_true)) in zip(axes, found.items(), strict=True):
        K = every.shape[1]
        present = slice(0, K + bool(every[K].any()))
        other = every - as_given - as_true + np.eye(K + 1, K) * as_given
        totals = np.maximum(every.sum(axis=1, keepdims=True), 1)
        shown = {"share of a class labelled so": np.where(every > 0, every / totals, np.nan)}
        for title, part in (
            ("predicted as labelled", as_given),
            ("predicted as the true class", as_true),
            ("predicted as another", other),
        ):
            shown[title] = np.where(every > 0, part / np.maximum(every, 1), np.nan)
        for panel, (title, matrix) in zip(row, shown.items(), strict=True):
            image = shares(panel, matrix[present], classes[:K], classes[present])
            panel.set_title(title, fontsize=10)
            panel.label_outer()
        line = next(line for line in results.lines if line.label == name)
        called = label(f"{name}: true class", 40)
        row[0].set_ylabel(called, fontsize=10, color=line.colour, fontweight="bold")
    figure.colorbar(image, ax=axes, shrink=0.8, aspect=30).set_label("share of training samples")
    figure.supxlabel(f"label trained on, {label(results.at(value))}", fontsize=10)
    return figure


#: Figures of a study by file name; one that makes several gives each the name of an axis.
FIGURES: dict[str, Callable[[Results], Any]] = {
    "accuracy": draw_accuracy,
    "memorization": draw_memorization,
    "matched_memorization": draw_matched_memorization,
    "participation": draw_participation,
    "nc": draw_collapse,
    "spectra": draw_spectra,
    "cosines": draw_cosines,
    "margins": draw_margins,
    "errors": draw_errors,
    "confusion": draw_confusion,
    "readouts": draw_readouts,
    "settings": draw_settings,
}


class Drawing(NamedTuple):
    """A figure for a page: its content, of which type it is, and what it shows in words."""

    content: bytes
    type: str
    about: str


def draw_all(
    results: Results, figures: Iterable[Any], out: Path | None = None
) -> dict[str, Drawing]:
    """Draw figures, names of :data:`FIGURES` or functions of results, and return them as SVG.

    Args:
        results: what they show.
        figures: which.
        out: folder for the same as PNG.
    """
    found = {}
    for one in figures:
        name, draw = (one, FIGURES[one]) if isinstance(one, str) else (one.__name__, one)
        drawn = draw(results)
        for file, figure in (drawn if isinstance(drawn, dict) else {name: drawn}).items():
            about = (draw.__doc__ or name).strip().partition("\n")[0]
            found[file] = Drawing(svg(figure), "image/svg+xml", about)
            figure.set_layout_engine("none")  # it stays as it is now
            if out is not None:
                save(figure, out / f"{file}.png")
    return found


def write_figures(
    out: Path, results: Results, figures: Iterable[Any] = tuple(FIGURES)
) -> dict[str, Drawing]:
    """Draw figures into ``out`` as PNG, and return them as SVG, see :func:`draw_all`."""
    return draw_all(results, figures, out)
