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
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from experiments.report.canvas import label, limits, log_y, panels, save, say
from experiments.report.results import Line, Results, are_numbers, value_text
from experiments.report.statistics import Estimate
from experiments.report.tables import LABELS, MEMORIZATION, read_by
from mcr2.evaluation import COMMON_READOUT, measure_key
from mcr2.evaluation.catalogue import MEASURES
from mcr2.records import Run

#: A matplotlib figure, or several by file name.
Drawn: TypeAlias = Any

#: What lines in grey say in a legend.
Styles: TypeAlias = Mapping[str, Mapping[str, Any]]

#: Line of each split.
SPLITS = {"train": "-", "test": "--"}
TRAIN_TEST: Styles = {f"{split} samples": {"linestyle": line} for split, line in SPLITS.items()}

#: The readout by which a method's accuracy is reported.
OWN = "own"


class Point(NamedTuple):
    """A measure at one epoch: its mean and range over seeds."""

    x: int
    mean: float
    low: float
    high: float


def _points(values: Mapping[int, Sequence[float]]) -> list[Point]:
    return [Point(x, sum(v) / len(v), min(v), max(v)) for x, v in sorted(values.items())]


def curve(runs: Iterable[Run], measure: str, split: str, readout: str = "-") -> list[Point]:
    """Return a measure along training, over the runs that have it at an epoch."""
    at: dict[int, list[float]] = {}
    for run in runs:
        by = run.record.readout if readout == OWN else readout
        key = measure_key(measure, split=split, labels=LABELS[split], readout=by)
        for entry in run.record.history:
            value = entry["measures"].get(key)
            if value is not None and math.isfinite(value):
                at.setdefault(entry["epoch"], []).append(value)
    return _points(at)


def profile(run: Run, key: str) -> Any:
    """Return a profile of the last epoch by its key, None where the run has none."""
    chosen = {} if run.evaluation is None else run.evaluation.selections.get("last", {})
    return chosen.get("profiles", {}).get(key)


def _runs(results: Results, line: Line, value: Any) -> list[Run]:
    return results.runs_of(**line.where, **{results.axes[0].name: value})


def _some(values: Sequence[Any], most: int) -> list[Any]:
    """Return at most so many values, the ends among them, evenly."""
    if len(values) <= most:
        return list(values)
    step = (len(values) - 1) / (most - 1)
    return [values[round(i * step)] for i in range(most)]


def _title(measure: str, *more: str) -> str:
    return textwrap.fill(", ".join((MEASURES[measure].title, *more)), 32)


def _accuracy_label(results: Results) -> str:
    return f"test accuracy, {label(results.dataset, 24)}"


def _handles(styles: Styles) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], **{"color": "0.35", "label": label(name), **look})
        for name, look in styles.items()
    ]


def _legend(figure: Any, results: Results, styles: Styles | None = None) -> None:
    """Name colours, and line styles in grey, above all panels."""
    lines = {line.label: {"color": line.colour, "linewidth": 3} for line in results.lines}
    handles = _handles({**lines, **(styles or {})})
    wide = 0.085 * max(len(handle.get_label()) for handle in handles) + 0.7  # inches, about
    columns = max(1, min(len(handles), int(figure.get_figwidth() / wide)))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=columns, fontsize=10, frameon=False
    )


# --- against the first axis


class _Scale:
    """Where the values of the first axis stand: numbers as they are, others one after another.

    Numbers that span a factor of 8 with widening gaps stand on a logarithmic axis.
    """

    def __init__(self, results: Results) -> None:
        self.values, self.title = results.values(), results.axes[0].title
        self.numbers = are_numbers(self.values)
        self.at = self.values if self.numbers else list(range(len(self.values)))
        gaps = [b - a for a, b in pairwise(self.at)]
        wide = self.at[0] > 0 and self.at[-1] >= 8 * self.at[0]
        self.logarithmic = wide and max(gaps) >= 3 * min(gaps)

    def beside(self, x: float, place: float) -> float:
        """Return x moved by a hundredth of the axis a place, that bars do not hide each other."""
        if self.logarithmic:
            return float(x * (self.at[-1] / self.at[0]) ** (place / 100))
        return x + ((self.at[-1] - self.at[0]) or 1.0) * place / 100

    def dress(self, axes: Any) -> None:
        """Give a panel this axis."""
        if self.logarithmic:
            axes.set_xscale("log")
            axes.set_xticks([], minor=True)
        if not self.numbers or len(self.at) <= 8:
            axes.set_xticks(self.at, [label(value_text(v), 20) for v in self.values])
        axes.set_xlabel(self.title)


#: A scalar's name, the selection rule it is of, and how it is drawn.
Scalar: TypeAlias = tuple[str, str, str]


def _across(
    results: Results, scalars: Mapping[str, Sequence[Scalar]], width: float = 3.2
) -> tuple[Any, Any, list[Estimate | None]]:
    """Draw scalars against the first axis, a panel a title; return the estimates too."""
    figure, axes = panels(1, len(scalars), width, 3.2)
    scale, found = _Scale(results), []
    for panel, (title, drawn) in zip(axes[0], scalars.items(), strict=True):
        for measure, rule, style in drawn:
            for number, line in enumerate(results.lines):
                values = results.estimates(measure, line.where, rule)
                place = number - (len(results.lines) - 1) / 2
                at = [scale.beside(x, place) for x in scale.at]
                _bars(panel, line, style, at, values)
                found += values
        panel.set_title(title, fontsize=11)
        scale.dress(panel)
    return figure, axes[0], found


def _bars(
    axes: Any, line: Line, style: str, at: Sequence[float], values: Sequence[Estimate | None]
) -> None:
    """Draw estimates with their intervals; a mean over settings has none."""
    points = [(x, e.mean, e.half_width or 0.0) for x, e in zip(at, values, strict=True) if e]
    if points:
        x, mean, half = zip(*points, strict=True)
        axes.errorbar(
            x,
            mean,
            half if any(half) and not line.averaged else None,
            color=line.colour,
            mfc=line.colour if style == "-" else "white",
            linestyle=style,
            marker="o",
            markersize=4,
            elinewidth=1,
            capsize=2.5,
        )


def _lowest(values: Iterable[Estimate | None]) -> float:
    """Return how far down an axis of shares should reach: wide intervals are cut."""
    return max(0.0, min([0.95, *(v.mean - min(v.half_width or 0, 0.12) for v in values if v)]))


def draw_accuracy(results: Results) -> Drawn:
    """Test accuracy, a panel for all selection rules that agree."""
    agreeing: dict[tuple[Any, ...], list[str]] = {}
    for rule in results.rules:
        cases = (results.estimates("test_accuracy", line.where, rule) for line in results.lines)
        agreeing.setdefault(tuple(map(tuple, cases)), []).append(rule)
    scalars = {
        "\n".join(rules).replace("_", " "): [("test_accuracy", rules[0], "-")]
        for rules in agreeing.values()
    }
    figure, axes, found = _across(results, scalars, 2.6 if len(scalars) > 3 else 3.2)
    for panel in axes:
        panel.set_xlabel("")
        limits(panel, _lowest(found), 1.0)
        panel.label_outer()
    axes[0].set_ylabel(_accuracy_label(results))
    figure.supxlabel(results.axes[0].title, fontsize=10)
    _legend(figure, results)
    return figure


def draw_memorization(results: Results) -> Drawn:
    """What the networks of the last epoch made of their training labels."""
    figure, axes, _ = _across(results, {_title(m): [(m, "last", "-")] for m in MEMORIZATION})
    for panel in axes:
        limits(panel, 0, 1)
    axes[0].set_ylabel("share, at the last epoch")
    _legend(figure, results)
    return figure


def draw_participation(results: Results) -> Drawn:
    """Dimensions of all features and of a class at the last epoch."""

    def scalars(measure: str) -> list[Scalar]:
        by = {s: "-" if MEASURES[measure].per == "features" else LABELS[s] for s in SPLITS}
        keys = {s: measure_key(measure, split=s, labels=labels) for s, labels in by.items()}
        return [(keys[split], "last", style) for split, style in SPLITS.items()]

    measures = ("participation_ratio", "dim95", "class_dim95")
    figure, axes, _ = _across(results, {_title(m): scalars(m) for m in measures})
    for panel in axes:
        panel.set_ylim(bottom=0)
    axes[0].set_ylabel("dimensions, at the last epoch")
    _legend(figure, results, TRAIN_TEST)
    return figure


def draw_settings(results: Results) -> dict[str, Drawn]:
    """For each axis: accuracy, and what became of wrong labels; the other axes are lines."""
    varied = [axis for axis in results.axes if len(results.values(axis)) > 1]
    return {a.name: _draw_setting(results.along(a)) for a in varied or results.axes[:1]}


def _draw_setting(results: Results) -> Drawn:
    styles = {"last": "-", "noisy_validation": "--", "oracle": ":"}
    rules = [rule for rule in styles if rule in results.rules]
    rules = rules[:1] if len(results.lines) > 1 else rules
    became = {"fit_corrupted": "-", "recovered": "--"}
    scalars = {
        "accuracy": [("test_accuracy", rule, styles[rule]) for rule in rules],
        "wrong labels, at the last epoch": [(m, "last", style) for m, style in became.items()],
    }
    figure, (left, right), _ = _across(results, scalars, 4.5)
    left.set_ylabel(_accuracy_label(results))
    right.set_ylabel("share of the wrong labels")
    limits(right, 0, 1)
    named = {rule.replace("_", " "): {"linestyle": styles[rule]} for rule in rules}
    left.legend(handles=_handles(named), fontsize=9, frameon=False)
    named = {MEASURES[m].title: {"linestyle": style} for m, style in became.items()}
    right.legend(handles=_handles(named), fontsize=9, frameon=False)
    _legend(figure, results)
    return figure


def draw_readouts(results: Results) -> Drawn:
    """Test accuracy by every readout fitted on the labels trained on, at the ends."""
    keys = [key for key in read_by(results) if key.layer == "features"]
    lines, ends = results.lines, results.ends
    height = max(0.24, 0.1 * len(lines)) * max(len(keys), 4) + 0.6
    figure, axes = panels(1, len(ends), 4.6, height, sharey=True)
    look = {"marker": "o", "markersize": 5, "elinewidth": 1, "capsize": 2}
    for panel, value in zip(axes[0], ends, strict=True):
        found = []
        for place, line in enumerate(lines):
            shift = min(0.18, 0.8 / len(lines)) * (place - (len(lines) - 1) / 2)
            for number, key in enumerate(keys):
                e = results.estimates(str(key), line.where)[results.values().index(value)]
                found.append(e)
                if e is not None:
                    half = None if line.averaged else e.half_width
                    panel.errorbar(e.mean, number + shift, xerr=half, color=line.colour, **look)
        panel.set_title(label(results.at(value)), fontsize=11)
        panel.set_xlabel(_accuracy_label(results))
        panel.set_xlim(_lowest(found) - 0.02, 1.02)
    axes[0, 0].set_yticks(range(len(keys)), [label(key.readout) for key in keys], fontsize=9)
    axes[0, 0].set_ylim(max(len(keys), 1) - 0.4, -0.6)
    _legend(figure, results)
    return figure


# --- along training


class _Panel(NamedTuple):
    """A panel along training: what runs it is of, and what draws them in a colour."""

    title: str
    course: str
    value: Any
    draw: Callable[[Any, Sequence[Run], str], None]


def _courses(results: Results) -> dict[str, list[Line]]:
    """Return what lines run over: epochs where a network is trained, layers where it is made.

    A network that took steps without a learning rate was constructed layer by layer.
    """
    found: dict[str, list[Line]] = {"epoch": [], "layer": []}
    for line in results.lines:
        records = [run.record for run in results.runs_of(**line.where)]
        made = any(r.steps > 0 and r.history[-1].get("lr") is None for r in records)
        found["layer" if made else "epoch"].append(line)
    return {course: lines for course, lines in found.items() if lines}


def _along_training(
    results: Results, grid: Sequence[Sequence[_Panel]], width: float, **how: Any
) -> tuple[Any, Any]:
    """Draw panels along training, those of layers apart from those of epochs."""
    figure, axes = panels(len(grid), len(grid[0]), width, 2.6, **how)
    courses = _courses(results)
    for panel, one in zip(axes.flat, (one for row in grid for one in row), strict=True):
        for line in courses[one.course]:
            one.draw(panel, _runs(results, line, one.value), line.colour)
        if not panel.lines:
            say(panel, "nothing was measured")
        panel.set_title(one.title, fontsize=11)
        panel.set_xlabel(one.course)
    return figure, axes


def _draw(axes: Any, points: Sequence[Point], colour: str, line: str, **look: Any) -> None:
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


def draw_collapse(results: Results) -> Drawn:
    """Neural collapse along training, at the ends of the first axis."""
    readouts = {"nc1": "-", "nc2_etf": "-", "nc3": COMMON_READOUT, "nc4": COMMON_READOUT}
    titles = {m: _title(m, *(() if by == "-" else (by,))) for m, by in readouts.items()}
    grid = [
        [
            _Panel(titles[m], course, value, partial(_draw_collapse, measure=m, readout=by))
            for m, by in readouts.items()
        ]
        for course in _courses(results)
        for value in results.ends
    ]
    figure, axes = _along_training(results, grid, 3.0)
    for row, panels_of in zip(axes, grid, strict=True):
        row[0].set_ylabel(label(results.at(panels_of[0].value)))
    styles = {
        "own head, train samples": {"linestyle": ":"},
        "means near 0: not reliable": {"alpha": 0.3},
    }
    _legend(figure, results, {**TRAIN_TEST, **styles})
    return figure


def _draw_collapse(
    axes: Any, runs: Sequence[Run], colour: str, *, measure: str, readout: str
) -> None:
    """Draw a measure of collapse, faint where class means hold too little of the features."""
    for split, style in SPLITS.items():
        points = curve(runs, measure, split, readout)
        doubted = {p.x for p in curve(runs, "means_reliable", split) if p.low < 1}
        if doubted:
            _draw(axes, points, colour, style, alpha=0.25)
            gap = dict.fromkeys(("mean", "low", "high"), math.nan)
            points = [p._replace(**gap) if p.x in doubted else p for p in points]
        _draw(axes, points, colour, style)
    if readout != "-":
        _draw(axes, curve(runs, measure, "train", "head"), colour, ":")
    if measure == "nc4":
        axes.set_ylim(bottom=0)
    else:
        log_y(axes)


def draw_margins(results: Results) -> Drawn:
    """Normalised margins of the training samples along training, by classifier."""
    titles = {COMMON_READOUT: "ridge on the features", "head": "own head"}
    grid = [
        [
            _Panel(
                f"{title}, {label(results.at(value))}", course, value, partial(_draw_margins, by)
            )
            for value in results.ends
        ]
        for course in _courses(results)
        for by, title in titles.items()
        if by == COMMON_READOUT or course == "epoch"  # what is constructed has no head
    ]
    figure, axes = _along_training(results, grid, 4.2, sharey="row")
    for panel in axes.flat:
        panel.axhline(0, color="0.3", linewidth=0.8)
    for panel in axes[:, 0]:
        panel.set_ylabel("normalised margin")
    band = {"linewidth": 8, "alpha": 0.3}
    styles = {"median": {"linestyle": "-"}, "5 % to 95 % of the training samples": band}
    _legend(figure, results, styles)
    return figure


def _draw_margins(readout: str, axes: Any, runs: Sequence[Run], colour: str) -> None:
    """Draw the median margin and a band of nine tenths of the samples, means over seeds."""
    low, middle, high = (
        {p.x: p.mean for p in curve(runs, f"margin_normalised_{q}", "train", readout)}
        for q in ("q05", "q50", "q95")
    )
    points = [Point(x, m, low.get(x, m), high.get(x, m)) for x, m in middle.items()]
    _draw(axes, points, colour, "-")


def draw_errors(results: Results) -> Drawn:
    """Training and test error along training, with the beginning of the terminal phase."""
    values = _some(results.values(), 4)
    grid = [
        [_Panel(label(results.at(value)), course, value, _draw_errors) for value in values]
        for course in _courses(results)
    ]
    figure, axes = _along_training(results, grid, 3.2, sharey=True)
    limits(axes[0, 0], 0, 1)
    for panel in axes[:, 0]:
        panel.set_ylabel("error, by own readout")
    styles = {
        "train, labels trained on": {"linestyle": "-"},
        "test": {"linestyle": "--"},
        "terminal phase begins": {"marker": "^", "linestyle": "none"},
    }
    _legend(figure, results, styles)
    return figure


def _draw_errors(axes: Any, runs: Sequence[Run], colour: str) -> None:
    for measure, split in (("fit_noisy", "train"), ("accuracy", "test")):
        right = curve(runs, measure, split, OWN)
        wrong = [Point(p.x, 1 - p.mean, 1 - p.high, 1 - p.low) for p in right]
        _draw(axes, wrong, colour, SPLITS[split])
    began = [run.evaluation.terminal_epoch for run in runs if run.evaluation is not None]
    at = [epoch for epoch in began if epoch is not None]
    look: dict[str, Any] = {"marker": "^", "markersize": 7, "clip_on": False, "zorder": 5}
    axes.plot(at, [0.0] * len(at), color=colour, linestyle="none", **look)


def draw_matched_memorization(results: Results) -> Drawn:
    """Test accuracy against the share of wrong labels fitted along each run, a line a seed.

    At the same abscissa networks have memorised as much; the higher one is the more accurate.
    """
    traced = {
        value: [(line, run) for line in results.lines for run in _runs(results, line, value)]
        for value in results.values()
    }
    wrong = [value for value, runs in traced.items() if any(_path(run, OWN) for _, run in runs)]
    values = wrong[-1:] if len(wrong) < 3 else [wrong[-1], wrong[(len(wrong) - 1) // 2]]
    figure, axes = panels(max(len(values), 1), 2, 4.2, 3.6, sharex=True, sharey=True)
    titles = {COMMON_READOUT: "common ridge readout", OWN: "each method's own readout"}
    for column, (readout, title) in zip(axes.T, titles.items(), strict=True):
        column[0].set_title(f"both axes by {title}", fontsize=11)
        if not values:
            say(column[0], "no training label is wrong")
        for panel, value in zip(column, values, strict=False):
            for line, run in traced[value]:
                _trace(panel, _path(run, readout), line.colour)
        column[-1].set_xlabel("share of the wrong labels fitted")
    for panel, value in zip(axes[:, 0], values, strict=False):
        panel.set_ylabel(f"test accuracy, {label(results.at(value))}")
    limits(axes[0, 0], 0, 1)
    axes[0, 0].set_xlim(-0.04, 1.04)
    styles = {
        "before training": {"marker": "o", "mfc": "white", "linestyle": "none"},
        "last epoch": {"marker": "o", "linestyle": "none"},
    }
    _legend(figure, results, styles)
    return figure


def _path(run: Run, readout: str) -> list[tuple[float, float]]:
    """Return (wrong labels fitted, test accuracy) along a run."""
    fitted = {p.x: p.mean for p in curve([run], "fit_corrupted", "train", readout)}
    accuracy = {p.x: p.mean for p in curve([run], "accuracy", "test", readout)}
    return [(fitted[x], accuracy[x]) for x in fitted if x in accuracy]


def _trace(axes: Any, path: Sequence[tuple[float, float]], colour: str) -> None:
    """Draw a run's path: thin, an open marker where it starts, a full one where it ends."""
    if not path:
        return
    x, y = zip(*path, strict=True)
    if len(path) > 1:
        axes.plot(x, y, color=colour, linewidth=0.9, alpha=0.8)
        axes.plot(x[:1], y[:1], color=colour, marker="o", markersize=5, mfc="white", zorder=4)
        start, end = max(pairwise(path), key=lambda step: math.dist(*step))
        arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 0.9, "mutation_scale": 9}
        if start != end:
            axes.annotate("", xy=end, xytext=start, arrowprops=arrow)
    axes.plot(x[-1:], y[-1:], color=colour, marker="o", markersize=6, linestyle="none", zorder=5)


# --- profiles of the last epoch


def draw_spectra(results: Results) -> Drawn:
    """Spectra of all features and of a class at the last epoch, a column a value."""
    kinds = {"spectrum": "all features", "class_spectra": "mean over classes"}
    values = _some(results.values(), 4)
    figure, axes = panels(2, len(values), 3.0, 2.6, sharex=True, sharey=True)
    for row, (kind, title) in zip(axes, kinds.items(), strict=True):
        for panel, value in zip(row, values, strict=True):
            for line in results.lines:
                runs = _runs(results, line, value)
                for split, style in SPLITS.items():
                    labels = "-" if kind == "spectrum" else LABELS[split]
                    points = _spectrum(runs, measure_key(kind, split=split, labels=labels))
                    _draw(panel, points, line.colour, style)
            log_y(panel)
        row[0].set_ylabel(f"{title}:\nshare of the energy")
    drawn = [v for panel in axes.flat for line in panel.lines for v in line.get_ydata() if v > 0]
    if drawn:  # below a millionth of the energy is rounding
        axes[0, 0].set_ylim(max(1e-6, 0.5 * min(drawn)), 1.5)
    for column, value in zip(axes.T, values, strict=True):
        column[0].set_title(label(results.at(value)), fontsize=11)
        column[1].set_xlabel("component")
    _legend(figure, results, TRAIN_TEST)
    return figure


def _spectrum(runs: Sequence[Run], key: str) -> list[Point]:
    """Return a spectrum over seeds, its components numbered from 1; of classes, their mean."""
    found = [values for run in runs if (values := profile(run, key))]
    means = [
        [sum(each) / len(each) for each in zip(*v, strict=True)] if isinstance(v[0], list) else v
        for v in found
    ]
    return _points(dict(enumerate(zip(*means, strict=False), start=1)))


def draw_cosines(results: Results) -> Drawn:
    """|cosine| between test samples sorted by class at the last epoch; one seed of each."""
    values = _some(results.values(), 8)
    side = 1.9 if len(values) > 3 else 2.6
    figure, axes = panels(len(results.lines), len(values), side, side)
    key = measure_key("abs_cosine", split="test", labels="clean")
    image = None
    for row, line in zip(axes, results.lines, strict=True):
        for panel, value in zip(row, values, strict=True):
            panel.grid(False)
            panel.set(xticks=[], yticks=[], box_aspect=1)
            found = [run for run in _runs(results, line, value) if profile(run, key)]
            if not found:
                say(panel, "no run")
                continue
            cosines = profile(found[0], key)
            cosines = [[math.nan if v is None else v for v in each] for each in cosines]
            image = panel.imshow(cosines, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
            _name_classes(panel, profile(found[0], f"{key}_labels") or [])
        row[0].set_ylabel(label(line.label), fontsize=12, color=line.colour, fontweight="bold")
    for panel, value in zip(axes[0], values, strict=True):
        panel.set_title(label(results.at(value)), fontsize=11)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30)
        bar.set_label("|cosine| of two test samples' features")
    figure.supxlabel("test samples, sorted by class", fontsize=10)
    return figure


def _name_classes(panel: Any, labels: Sequence[int]) -> None:
    """Name the classes of samples in the middle of each, where they are not too many."""
    places = {k: [i for i, v in enumerate(labels) if v == k] for k in dict.fromkeys(labels)}
    if len(places) <= 20:
        at = [sum(each) / len(each) for each in places.values()]
        panel.set_xticks(at, list(map(str, places)), fontsize=7)
        panel.set_yticks(at, list(map(str, places)), fontsize=7)
        panel.tick_params(length=0)
        panel.label_outer()


#: Figures of a study by file name; one that makes several gives each the name of an axis.
FIGURES: dict[str, Callable[[Results], Drawn]] = {
    "accuracy": draw_accuracy,
    "memorization": draw_memorization,
    "matched_memorization": draw_matched_memorization,
    "participation": draw_participation,
    "nc": draw_collapse,
    "spectra": draw_spectra,
    "cosines": draw_cosines,
    "margins": draw_margins,
    "errors": draw_errors,
    "readouts": draw_readouts,
    "settings": draw_settings,
}


def write_figures(out: Path, results: Results, names: Iterable[str] = tuple(FIGURES)) -> None:
    """Draw figures of :data:`FIGURES` into ``out``."""
    for name in names:
        drawn = FIGURES[name](results)
        for file, figure in (drawn if isinstance(drawn, dict) else {name: drawn}).items():
            save(figure, out / f"{file}.png")
