"""The study's figures, each drawn from cells and records alone: :data:`FIGURES`, by file name.

A method has one colour in all of them; where both are shown, training samples are drawn solid and
test samples dashed. Bars are 95 % intervals over seeds, bands the range over seeds: an interval of
three seeds is wider than most axes. A method that is constructed has layers where others have
epochs, and is drawn over them; a history of one entry is a point. Records that failed and measures
that are null leave gaps, nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from experiments.report.canvas import (
    colours_of,
    limits,
    log_y,
    panels,
    pyplot,
    save,
    say,
    short_names,
)
from experiments.report.statistics import Cells, Estimate, over_seeds
from experiments.report.tables import CLEAN, DIVERSITY, LABELS, MEMORIZATION, order, reading
from mcr2.evaluation import COMMON_READOUT, measure_key
from mcr2.records import Record
from mcr2.selection import SELECTIONS

#: Line and marker of each split.
SPLITS = {"train": "-", "test": "--"}

REDRAWN = "share of training labels redrawn"


@dataclass(frozen=True)
class Study:
    """What figures are drawn of.

    Attributes:
        dataset: its name.
        cells: rows of ``table.json``.
        records: the runs behind them, failed ones too.
    """

    dataset: str
    cells: Cells
    records: Sequence[Record]

    @cached_property
    def names(self) -> dict[str, str]:
        """Methods in the order given, and what they are called."""
        return short_names(list(dict.fromkeys(cell["method"] for cell in self.cells)))

    @cached_property
    def colours(self) -> dict[str, str]:
        """Each method's colour."""
        return colours_of(list(self.names))

    @cached_property
    def ratios(self) -> list[float]:
        """Shares of redrawn labels, rising."""
        return sorted({cell["ratio"] for cell in self.cells})

    @property
    def ends(self) -> list[float]:
        """The smallest and the largest ratio, once where they are one."""
        return sorted({self.ratios[0], self.ratios[-1]})

    def runs(self, method: str, ratio: float) -> list[Record]:
        """Return the finished runs that the last epoch is read from, a record a seed."""
        return [
            r
            for r in self.records
            if (r.status, r.spec["method"], r.spec["ratio"]) == ("finished", method, ratio)
            and (r.spec["selections"] is None or "last" in r.spec["selections"])
        ]


@dataclass(frozen=True)
class Point:
    """A measure at one epoch: its mean and range over seeds."""

    epoch: int
    mean: float
    low: float
    high: float


def curve(records: Iterable[Record], key: Callable[[Record], str]) -> list[Point]:
    """Return a measure along training, over the seeds that have it at an epoch."""
    at: dict[int, list[float]] = {}
    for record in records:
        for entry in record.history:
            value = _finite(entry["measures"].get(key(record)))
            if value is not None:
                at.setdefault(entry["epoch"], []).append(value)
    return [Point(e, sum(v) / len(v), min(v), max(v)) for e, v in sorted(at.items())]


def _finite(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _same(
    measure: str, split: str, labels: str = "-", readout: str = "-"
) -> Callable[[Record], str]:
    """Return what gives the key of a measure, the same of every record."""
    key = measure_key(measure, split=split, labels=labels, readout=readout)
    return lambda record: key


def _own(measure: str, split: str) -> Callable[[Record], str]:
    """Return what gives the key of a measure by a record's own readout."""
    return lambda record: measure_key(
        measure, split=split, labels=LABELS[split], readout=record.readout
    )


def _draw(axes: Any, points: Sequence[Point], colour: str, line: Any, **look: Any) -> None:
    """Draw a curve and the range over seeds around it; a single point as a marker."""
    if not points:
        return
    x = [p.epoch for p in points]
    if len(points) == 1:
        (point,) = points
        axes.errorbar(
            x,
            [point.mean],
            [[point.mean - point.low], [point.high - point.mean]],
            color=colour,
            mfc=colour if line == "-" else "white",
            marker="o",
            capsize=3,
            **look,
        )
        return
    axes.plot(x, [p.mean for p in points], color=colour, linestyle=line, linewidth=1.5, **look)
    low, high = [p.low for p in points], [p.high for p in points]
    if low != high:
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _bars(
    axes: Any, study: Study, method: str, values: Sequence[Estimate | None], line: str = "-"
) -> None:
    """Draw estimates against the ratio, methods a little beside each other."""
    place = list(study.names).index(method) - (len(study.names) - 1) / 2
    reach = (study.ratios[-1] - study.ratios[0]) or 1.0
    points = [
        (ratio + 0.012 * reach * place, e)
        for ratio, e in zip(study.ratios, values, strict=True)
        if e is not None
    ]
    if not points:
        return
    colour = study.colours[method]
    if len(study.ratios) <= 8:
        axes.set_xticks(study.ratios, [f"{r:g}" for r in study.ratios])
    axes.errorbar(
        [x for x, _ in points],
        [e.mean for _, e in points],
        [e.half_width or 0.0 for _, e in points] if any(e.half_width for _, e in points) else None,
        color=colour,
        mfc=colour if line == "-" else "white",
        linestyle=line,
        marker="o",
        markersize=4,
        elinewidth=1,
        capsize=2.5,
    )


def _estimates(
    study: Study, measure: str, method: str, rule: str = "last"
) -> list[Estimate | None]:
    return [over_seeds(study.cells, measure, method, rule, ratio) for ratio in study.ratios]


def _lowest(values: Iterable[Estimate | None]) -> float:
    """Return how far down an axis of shares should reach: wide intervals are cut."""
    return max(0.0, min([0.95, *(v.mean - min(v.half_width or 0, 0.12) for v in values if v)]))


def _legend(
    figure: Any, study: Study, styles: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Name colours, and line styles in grey, above all panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=study.colours[m], linewidth=3, label=name)
        for m, name in study.names.items()
    ]
    handles += [
        Line2D([], [], **({"color": "0.35"} | dict(look)), label=label)
        for label, look in (styles or {}).items()
    ]
    # About what a letter and a handle take, in inches; matplotlib fills column by column, the
    # first ones with one handle more.
    needs = [0.085 * len(handle.get_label()) + 0.7 for handle in handles]

    def width(columns: int) -> float:
        rows, longer = divmod(len(needs), columns)
        starts = [n * rows + min(n, longer) for n in range(columns + 1)]
        return sum(max(needs[a:b]) for a, b in pairwise(starts))

    fitting = [n for n in range(1, len(needs) + 1) if width(n) <= figure.get_figwidth()]
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=max(fitting, default=1),
        fontsize=10,
        frameon=False,
    )


TRAIN_TEST = {f"{split} samples": {"linestyle": line} for split, line in SPLITS.items()}


def draw_accuracy(study: Study) -> Any:
    """Test accuracy against the ratio, a panel a selection rule."""
    rules = [r for r in SELECTIONS if any(c["selection"] == r for c in study.cells)]
    columns = min(3, len(rules))
    rows = -(-len(rules) // columns)
    figure, axes = panels(rows, columns, 3.2, 2.7, sharex=True, sharey=True)
    found = []
    for panel, rule in zip(axes.flat, rules, strict=False):
        for method in study.names:
            values = _estimates(study, "test_accuracy", method, rule)
            _bars(panel, study, method, values)
            found += values
        panel.set_title(rule.replace("_", " "), fontsize=11)
    limits(axes.flat[0], _lowest(found), 1.0)
    for panel in axes.flat[len(rules) :]:
        panel.remove()
    for number in range(columns):
        bottom = axes.flat[max(n for n in range(len(rules)) if n % columns == number)]
        bottom.tick_params(labelbottom=True)
    for panel in axes[:, 0]:
        panel.set_ylabel(f"test accuracy, {study.dataset}")
    figure.supxlabel(REDRAWN, fontsize=10)
    _legend(figure, study)
    return figure


def draw_memorization(study: Study) -> Any:
    """What the networks of the last epoch made of their training labels, against the ratio."""
    figure, axes = panels(1, len(MEMORIZATION), 3.2, 3.2, sharex=True, sharey=True)
    for panel, (measure, title) in zip(axes[0], MEMORIZATION.items(), strict=True):
        for method in study.names:
            _bars(panel, study, method, _estimates(study, measure, method))
        panel.set_title(title, fontsize=11)
        panel.set_xlabel(REDRAWN)
        limits(panel, 0, 1)
    axes[0, 0].set_ylabel("share, at the last epoch")
    _legend(figure, study)
    return figure


def draw_participation(study: Study) -> Any:
    """Dimensions of all features and of a class at the last epoch, against the ratio."""
    titles = {
        "participation_ratio": "participation ratio",
        "dim95": "components with 95 % of energy",
        "class_dim95": "with 95 % of a class's energy",
    }
    figure, axes = panels(1, len(titles), 3.2, 3.2, sharex=True)
    scalars = {scalar.measure: scalar for scalar in DIVERSITY}
    for panel, (measure, title) in zip(axes[0], titles.items(), strict=True):
        for method in study.names:
            for split, line in SPLITS.items():
                values = _estimates(study, scalars[measure].key(split), method)
                _bars(panel, study, method, values, line)
        panel.set_title(title, fontsize=11)
        panel.set_xlabel(REDRAWN)
        panel.set_ylim(bottom=0)
    axes[0, 0].set_ylabel("dimensions, at the last epoch")
    _legend(figure, study, TRAIN_TEST)
    return figure


#: NC measures over epochs: what they are called and the classifier they are about.
COLLAPSE_PANELS = {
    "nc1": ("NC1: spread within classes", "-"),
    "nc2_etf": ("NC2: means from a simplex", "-"),
    "nc3": ("NC3: ridge from the means", COMMON_READOUT),
    "nc4": ("NC4: ridge, nearest mean differ", COMMON_READOUT),
}


def draw_collapse(study: Study) -> Any:
    """Neural collapse along training, at the smallest and the largest ratio."""
    figure, axes = panels(len(study.ends), len(COLLAPSE_PANELS), 3.0, 2.6, sharex=True)
    for row, ratio in zip(axes, study.ends, strict=True):
        for panel, (measure, (title, readout)) in zip(row, COLLAPSE_PANELS.items(), strict=True):
            for method, colour in study.colours.items():
                runs = study.runs(method, ratio)
                for split, line in SPLITS.items():
                    labels = LABELS[split]
                    points = curve(runs, _same(measure, split, labels, readout))
                    doubted = {
                        p.epoch
                        for p in curve(runs, _same("means_reliable", split, labels))
                        if p.low < 1
                    }
                    # Faint where class means hold too little of the features to be believed.
                    for faint, some in _stretches(points, doubted):
                        _draw(panel, some, colour, line, alpha=0.25 if faint else 1.0)
                if readout != "-":
                    head = curve(runs, _same(measure, "train", LABELS["train"], "head"))
                    _draw(panel, head, colour, ":")
            if measure == "nc4":
                panel.set_ylim(bottom=0)
            else:
                log_y(panel)
            if ratio == study.ends[0]:
                panel.set_title(title, fontsize=11)
            if ratio == study.ends[-1]:
                panel.set_xlabel("epoch")
        row[0].set_ylabel(f"ratio {ratio:g}")
    styles = {
        "own head, train samples": {"linestyle": ":"},
        "means near 0: not to be believed": {"alpha": 0.3},
    }
    _legend(figure, study, TRAIN_TEST | styles)
    return figure


def _stretches(points: Sequence[Point], marked: set[int]) -> list[tuple[bool, list[Point]]]:
    """Cut a curve into stretches that are marked or not; a line is where one of its ends is."""
    if len(points) == 1:
        return [(points[0].epoch in marked, list(points))]
    stretches: list[tuple[bool, list[Point]]] = []
    for start, end in pairwise(points):
        mark = bool({start.epoch, end.epoch} & marked)
        if stretches and stretches[-1][0] == mark:
            stretches[-1][1].append(end)
        else:
            stretches.append((mark, [start, end]))
    return stretches


def profile(record: Record, key: str) -> Any:
    """Return a profile of the last epoch by its key, None where the record has none."""
    return record.selections.get("last", {}).get("profiles", {}).get(key)


def _some(ratios: Sequence[float], most: int) -> list[float]:
    """Return at most so many ratios, the ends among them, evenly."""
    if len(ratios) <= most:
        return list(ratios)
    step = (len(ratios) - 1) / (most - 1)
    return [ratios[round(i * step)] for i in range(most)]


def draw_spectra(study: Study) -> Any:
    """Spectra of all features and of a class at the last epoch, a column a ratio."""
    ratios = _some(study.ratios, 4)
    kinds = ("spectrum", "class_spectra")
    figure, axes = panels(2, len(ratios), 3.0, 2.6, sharex=True, sharey=True)
    for column, ratio in zip(axes.T, ratios, strict=True):
        column[0].set_title(f"ratio {ratio:g}", fontsize=11)
        for panel, kind in zip(column, kinds, strict=True):
            for method in study.names:
                for split, line in SPLITS.items():
                    labels = "-" if kind == "spectrum" else LABELS[split]
                    key = measure_key(kind, split=split, labels=labels)
                    points = _spectrum(study.runs(method, ratio), key)
                    _draw(panel, points, study.colours[method], line)
            log_y(panel)
        column[1].set_xlabel("component")
    drawn = [v for panel in axes.flat for line in panel.lines for v in line.get_ydata()]
    if any(v > 0 for v in drawn):
        # Below a millionth of the energy is rounding.
        axes[0, 0].set_ylim(max(1e-6, 0.5 * min(v for v in drawn if v > 0)), 1.5)
    axes[0, 0].set_ylabel("all features:\nshare of the energy")
    axes[1, 0].set_ylabel("mean over classes:\nshare of the energy")
    _legend(figure, study, TRAIN_TEST)
    return figure


def _spectrum(records: Sequence[Record], key: str) -> list[Point]:
    """Return a spectrum over seeds, its components numbered from 1; of classes, their mean."""
    found = []
    for record in records:
        values = profile(record, key)
        if values and isinstance(values[0], list):
            values = [sum(each) / len(each) for each in zip(*values, strict=True)]
        if values and all(_finite(v) is not None for v in values):
            found.append(values)
    return [
        Point(number, sum(each) / len(each), min(each), max(each))
        for number, each in enumerate(zip(*found, strict=False), start=1)
    ]


def draw_cosines(study: Study) -> Any:
    """|cosine| between test samples sorted by class at the last epoch; one seed of each."""
    columns, rows = len(study.ratios), len(study.names)
    side = 1.9 if columns > 3 else 2.6
    figure, axes = pyplot().subplots(
        rows,
        columns,
        figsize=(max(side * columns + 0.9, 5.0), side * rows + 0.6),
        squeeze=False,
        layout="constrained",
    )
    key = measure_key("abs_cosine", split="test", labels="clean")
    image = None
    for number, (row, (method, name)) in enumerate(zip(axes, study.names.items(), strict=True)):
        for panel, ratio in zip(row, study.ratios, strict=True):
            panel.set(xticks=[], yticks=[], box_aspect=1)
            if number == 0:
                panel.set_title(f"ratio {ratio:g}", fontsize=11)
            found = [r for r in study.runs(method, ratio) if profile(r, key)]
            if not found:
                say(panel, "no run")
                continue
            values = [
                [math.nan if v is None else v for v in line] for line in profile(found[0], key)
            ]
            image = panel.imshow(values, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
            labels = profile(found[0], f"{key}_labels") or []
            if labels and len(set(labels)) <= 20:
                middles = {k: [i for i, v in enumerate(labels) if v == k] for k in labels}
                at = [sum(places) / len(places) for places in middles.values()]
                if panel is row[0]:
                    panel.set_yticks(at, [str(k) for k in middles], fontsize=7)
                if number == rows - 1:
                    panel.set_xticks(at, [str(k) for k in middles], fontsize=7)
                panel.tick_params(length=0)
        row[0].set_ylabel(name, fontsize=12, color=study.colours[method], fontweight="bold")
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30)
        bar.set_label("|cosine| of two test samples' features")
    figure.supxlabel("test samples, sorted by class", fontsize=10)
    return figure


def draw_margins(study: Study) -> Any:
    """Normalised margins of the training samples along training, by classifier and ratio."""
    readouts = {COMMON_READOUT: "ridge on the features", "head": "own head, where there is one"}
    figure, axes = panels(2, len(study.ends), 4.2, 2.6, sharex=True, sharey="row")
    for row, (readout, title) in zip(axes, readouts.items(), strict=True):
        for panel, ratio in zip(row, study.ends, strict=True):
            for method in study.names:
                runs = study.runs(method, ratio)

                def quantile(q: str, runs: Any = runs, readout: str = readout) -> list[Point]:
                    key = _same(f"margin_normalised_{q}", "train", "noisy", readout)
                    return curve(runs, key)

                colour = study.colours[method]
                middle, low, high = quantile("q50"), quantile("q05"), quantile("q95")
                _draw(panel, [Point(p.epoch, p.mean, p.mean, p.mean) for p in middle], colour, "-")
                if len(middle) > 1 and len(low) == len(high) == len(middle):
                    panel.fill_between(
                        [p.epoch for p in low],
                        [p.mean for p in low],
                        [p.mean for p in high],
                        color=colour,
                        alpha=0.15,
                        linewidth=0,
                    )
                for edge in (low, high):
                    if len(edge) > 1:
                        x, y = [p.epoch for p in edge], [p.mean for p in edge]
                        panel.plot(x, y, color=colour, linestyle=":", linewidth=1)
            panel.axhline(0, color="0.3", linewidth=0.8)
            if len(panel.lines) == 1:
                say(panel, "nothing was measured")
            panel.set_title(f"{title}, ratio {ratio:g}", fontsize=10)
    for panel in axes[-1]:
        panel.set_xlabel("epoch")
    for panel in axes[:, 0]:
        panel.set_ylabel("normalised margin")
    styles = {
        "median": {"linestyle": "-"},
        "5 % and 95 % of the training samples": {"linestyle": ":"},
    }
    _legend(figure, study, styles)
    return figure


def draw_errors(study: Study) -> Any:
    """Training and test error along training, with the beginning of the terminal phase."""
    ratios = _some(study.ratios, 6)
    columns = min(3, len(ratios))
    figure, axes = panels(-(-len(ratios) // columns), columns, 3.2, 2.6, sharex=True, sharey=True)
    for number, (panel, ratio) in enumerate(zip(axes.flat, ratios, strict=False)):
        for method in study.names:
            colour = study.colours[method]
            runs = study.runs(method, ratio)
            for key, line in ((_own("fit_noisy", "train"), "-"), (_own("accuracy", "test"), "--")):
                points = [
                    Point(p.epoch, 1 - p.mean, 1 - p.high, 1 - p.low) for p in curve(runs, key)
                ]
                _draw(panel, points, colour, line)
            for record in runs:
                if record.terminal_epoch is not None:
                    panel.plot(
                        [record.terminal_epoch],
                        [0.0],
                        color=colour,
                        marker="^",
                        markersize=7,
                        linestyle="none",
                        clip_on=False,
                        zorder=5,
                    )
        panel.set_title(f"ratio {ratio:g}", fontsize=11)
        if number + columns >= len(ratios):
            panel.tick_params(labelbottom=True)
    figure.supxlabel("epoch", fontsize=10)
    limits(axes.flat[0], 0, 1)
    for panel in axes.flat[len(ratios) :]:
        panel.remove()
    for panel in axes[:, 0]:
        panel.set_ylabel("error, by own readout")
    styles = {
        "train, labels trained on": {"linestyle": "-"},
        "test": {"linestyle": "--"},
        "terminal phase begins": {"marker": "^", "linestyle": "none"},
    }
    _legend(figure, study, styles)
    return figure


def draw_matched_memorization(study: Study) -> Any:
    """Test accuracy against the share of wrong labels fitted along each run, a line a seed.

    At the same abscissa networks have memorised as much; the higher one is the more accurate.
    """
    wrong = [
        r for r in study.ratios if any(_path(run) for m in study.names for run in study.runs(m, r))
    ]
    ratios = wrong[-1:]
    if len(wrong) > 2:
        ratios = [wrong[-1], wrong[(len(wrong) - 1) // 2]]
    figure, axes = panels(max(len(ratios), 1), 2, 4.2, 3.6, sharex=True, sharey=True)
    titles = ("both axes by the common ridge readout", "both axes by each method's own readout")
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title, fontsize=11)
        if not ratios:
            say(panel, "no training label is wrong at these ratios")
    for row, ratio in zip(axes, ratios, strict=False):
        for panel, readout in zip(row, (COMMON_READOUT, None), strict=True):
            for method in study.names:
                for record in study.runs(method, ratio):
                    _trace(panel, _path(record, readout), study.colours[method])
        row[0].set_ylabel(f"test accuracy, ratio {ratio:g}")
    for panel in axes[-1]:
        panel.set_xlabel("share of the wrong labels fitted")
    for panel in axes.flat:
        limits(panel, 0, 1)
        panel.set_xlim(-0.04, 1.04)
    styles = {
        "before training": {"marker": "o", "mfc": "white", "linestyle": "none"},
        "last epoch": {"marker": "o", "linestyle": "none"},
    }
    _legend(figure, study, styles)
    return figure


def _path(record: Record, readout: str | None = None) -> list[tuple[float, float]]:
    """Return (wrong labels fitted, test accuracy) along a run, by its own readout or another."""
    by = readout or record.readout
    keys = (
        measure_key("fit_corrupted", split="train", labels="noisy", readout=by),
        measure_key("accuracy", split="test", labels="clean", readout=by),
    )
    pairs = [tuple(_finite(e["measures"].get(key)) for key in keys) for e in record.history]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _trace(axes: Any, path: Sequence[tuple[float, float]], colour: str) -> None:
    """Draw a run's path: thin, an open marker where it starts, a full one where it ends."""
    if not path:
        return
    x, y = [p[0] for p in path], [p[1] for p in path]
    if len(path) > 1:
        axes.plot(x, y, color=colour, linewidth=0.9, alpha=0.8)
        axes.plot(x[:1], y[:1], color=colour, marker="o", markersize=5, mfc="white", zorder=4)
        steps = [math.dist(a, b) for a, b in pairwise(path)]
        # Arrows where a third and two thirds of the way are behind.
        for part in (1 / 3, 2 / 3):
            gone, number = 0.0, 0
            while number < len(steps) - 1 and gone + steps[number] < part * sum(steps):
                gone, number = gone + steps[number], number + 1
            if steps[number] > 0:
                axes.annotate(
                    "",
                    xy=path[number + 1],
                    xytext=path[number],
                    arrowprops={
                        "arrowstyle": "-|>",
                        "color": colour,
                        "linewidth": 0.9,
                        "mutation_scale": 9,
                    },
                )
    axes.plot(x[-1:], y[-1:], color=colour, marker="o", markersize=6, linestyle="none", zorder=5)


def draw_readouts(study: Study) -> Any:
    """Test accuracy by every readout fitted on the labels trained on, at the ends of the ratios."""
    keys = dict.fromkeys(key for cell in study.cells for key in cell["measures"] if reading(key))
    readouts = sorted((r for r in map(reading, keys) if r and not r.endswith(CLEAN)), key=order)
    height = max(0.24, 0.1 * len(study.names)) * max(len(readouts), 4) + 0.6
    figure, axes = panels(1, len(study.ends), 4.6, height, sharey=True)
    for panel, ratio in zip(axes[0], study.ends, strict=True):
        found = []
        for place, method in enumerate(study.names):
            shift = min(0.18, 0.8 / len(study.names)) * (place - (len(study.names) - 1) / 2)
            for number, readout in enumerate(readouts):
                key = measure_key("accuracy", split="test", labels="clean", readout=readout)
                value = over_seeds(study.cells, key, method, "last", ratio)
                found.append(value)
                if value is not None:
                    _dot(panel, value, number + shift, study.colours[method])
        panel.set_title(f"ratio {ratio:g}", fontsize=11)
        panel.set_xlabel(f"test accuracy, {study.dataset}")
        panel.set_xlim(_lowest(found) - 0.02, 1.02)
    axes[0, 0].set_yticks(range(len(readouts)), readouts, fontsize=9)
    axes[0, 0].set_ylim(max(len(readouts), 1) - 0.4, -0.6)
    _legend(figure, study)
    return figure


def _dot(axes: Any, value: Estimate, height: float, colour: str) -> None:
    axes.errorbar(
        [value.mean],
        [height],
        xerr=value.half_width,
        color=colour,
        marker="o",
        markersize=5,
        elinewidth=1,
        capsize=2,
    )


#: Figures by file name.
FIGURES: dict[str, Callable[[Study], Any]] = {
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
}


def write_figures(out: Path, cells: Cells, records: Sequence[Record], dataset: str) -> None:
    """Draw every figure of :data:`FIGURES` into ``out``.

    Args:
        out: folder of the study.
        cells: rows of ``table.json``.
        records: of the runs that left one.
        dataset: its name.
    """
    study = Study(dataset, cells, records)
    for name, draw in FIGURES.items():
        save(draw(study), out / f"{name}.png")
