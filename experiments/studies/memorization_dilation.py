"""Memorised wrong labels dilate classes: variance within classes of test features against memory.

    mcr2 study memorization_dilation

36 runs of the recipe ``quick``, some minutes on two cores. Nguyen et al. (2022) say that a
network which memorises wrong labels moves the samples that carry them out of their class, and
dilates the class on test samples; label smoothing would do less of both. Expect cross-entropy to
memorise every wrong label, and its test features to spread with the number of those; MCR² to
memorise fewer and to spread less.

Axes: the share of labels redrawn; epochs run along the curves. Variance within classes is
``nc1_ratio`` = tr Σ_W / tr Σ_B of the test samples by their true labels, which does not depend on
the scale of features; a wrong label is memorised where a method's own readout predicts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from experiments.report.axis import RATIO
from experiments.report.statistics import Estimate, estimate, shown, verdict
from experiments.report.table import Table
from experiments.studies.claims import ClaimStudy

if TYPE_CHECKING:
    from experiments.report.results import Results
    from mcr2.records import Run

#: Rank correlation from which on variance is said to grow with what is memorised.
LEAST_CORRELATION = 0.8

#: The method that the others are compared with.
BASELINE = "ce"

#: The variance within classes, over that between them.
VARIANCE = "nc1_ratio"


class Point(NamedTuple):
    """A network at an epoch: what it memorised, and the variance within classes on test.

    ``of_wrong`` is the share of the wrong labels that were memorised, ``of_all`` their share of all
    training labels.
    """

    epoch: int
    of_wrong: float
    of_all: float
    variance: float


def points(run: Run) -> list[Point]:
    """Return a run's points along training; with no wrong label nothing is memorised."""
    from experiments.report.tables import standing_key

    record = run.record
    wrong, variance = record.noise["wrong"], standing_key(VARIANCE, "test")
    fitted = standing_key("fit_corrupted", "train", record.readout)
    found = []
    for entry in record.history:
        memorised = entry["measures"].get(fitted) or 0.0
        value = entry["measures"].get(variance)
        if value is not None and wrong is not None:
            # The wrong labels of the held-out share, if there is one, are as frequent.
            share = wrong / (record.data["train"] + record.data["validation"])
            found.append(Point(entry["epoch"], memorised, memorised * share, value))
    return found


def finals(results: Results, method: str) -> dict[int, dict[float, Point]]:
    """Return the last point of a method's runs, by seed and ratio."""
    found: dict[int, dict[float, Point]] = {}
    for ratio in results.values(RATIO):
        for run in results.runs_of(method, ratio=ratio):
            for point in points(run)[-1:]:
                found.setdefault(run.record.spec["seed"], {})[ratio] = point
    return found


# --- claims


def grows(by_ratio: Mapping[float, Point]) -> bool | None:
    """Whether variance grows with the memorised labels' share of all, over ratios.

    None where fewer than three ratios, or nothing that varies, leave no correlation.

    Example:
        >>> grows({r: Point(9, 1.0, r, 0.1 + r) for r in (0.0, 0.1, 0.2)})
        True
    """
    import math

    from scipy.stats import spearmanr

    memorised = [point.of_all for point in by_ratio.values()]
    variances = [point.variance for point in by_ratio.values()]
    if min(len(set(memorised)), len(set(variances))) < 3:
        return None
    correlation = float(spearmanr(memorised, variances).statistic)
    return None if math.isnan(correlation) else correlation >= LEAST_CORRELATION


def dilation(by_ratio: Mapping[float, Point]) -> float | None:
    """Return by what factor the variance at the highest ratio exceeds that without wrong labels."""
    if 0 not in by_ratio or max(by_ratio) == 0 or by_ratio[0].variance <= 0:
        return None
    return by_ratio[max(by_ratio)].variance / by_ratio[0].variance


def spreads_less(own: Mapping[float, Point], baseline: Mapping[float, Point]) -> bool | None:
    """Whether a method memorises fewer wrong labels than the baseline, and dilates less."""
    ours, theirs = dilation(own), dilation(baseline)
    if ours is None or theirs is None or max(own) != max(baseline):
        return None
    return own[max(own)].of_wrong < baseline[max(own)].of_wrong and ours < theirs


def verdicts(results: Results) -> list[str]:
    """Return a line for each claim."""
    last = {method: finals(results, method) for method in results.names}
    lines = [
        verdict(
            "Test features spread within classes as more wrong labels are memorised",
            {n: list(map(grows, last[m].values())) for m, n in results.names.items()},
            "in every seed the rank correlation over ratios of nc1_ratio on test and the memorised "
            f"labels' share of all training labels is at least {LEAST_CORRELATION:g} (last epoch)",
        )
    ]
    compared = {}
    for method, name in results.names.items():
        if method != BASELINE and BASELINE in last:
            seeds = sorted(last[method].keys() & last[BASELINE].keys())
            compared[name] = [spreads_less(last[method][s], last[BASELINE][s]) for s in seeds]
    if compared:
        lines.append(
            verdict(
                f"Less is memorised than by {BASELINE}, and classes dilate less",
                compared,
                "in every seed, at the highest ratio and the last epoch, the share of wrong labels "
                "fitted is smaller, and so is nc1_ratio on test over that at ratio 0",
            )
        )
    return lines


# --- table and figure


def dilation_table(results: Results) -> Table:
    """Return what was memorised and the variance within classes at the last epoch, by ratio."""
    from experiments.report.tables import standing_key

    ratios, rows = results.values(), []
    for case in results.cases:
        last = finals(results, case["method"]).values()
        at = [[found[ratio] for found in last if ratio in found] for ratio in ratios]
        lines: dict[str, list[Estimate | None]] = {
            "wrong labels memorised": results.estimates("fit_corrupted", case),
            "memorised, of all labels": [estimate([p.of_all for p in each]) for each in at],
            f"{VARIANCE} on test": [estimate([p.variance for p in each]) for each in at],
            **{
                f"{name} on test": results.estimates(standing_key(name, "test"), case)
                for name in ("nc1", "cdnv")
            },
            "test accuracy": results.estimates("test_accuracy", case),
        }
        for name, values in lines.items():
            rows.append((*results.named(case), name, *(shown(v, results.seeds) for v in values)))
    title = (
        "Memorised wrong labels and variance within classes of test samples at the last epoch (by "
        f"{results.axes[0].title}; {results.interval})"
    )
    header = ("method", "measure", *(f"{ratio:g}" for ratio in ratios))
    return Table(title, header, tuple(rows), left=2)


def memorization_dilation(results: Results) -> Any:
    """Draw variance against memory: along training, a line a ratio, and at the last epoch."""
    from experiments.report import canvas
    from experiments.report.figures import legend

    count = len(results.names)
    figure, axes = canvas.panels(1, count + 1, 3.6, 3.2, sharey=True)
    noisy = [ratio for ratio in results.values() if ratio > 0]
    for panel, (method, name) in zip(axes[0], results.names.items(), strict=False):
        for ratio, shade in zip(noisy, canvas.shades(len(noisy)), strict=True):
            for number, run in enumerate(results.runs_of(method, ratio=ratio)):
                found = points(run)
                x, y = [each.of_wrong for each in found], [each.variance for each in found]
                called = canvas.label(f"ratio {ratio:g}") if number == 0 else None
                panel.plot(x, y, color=shade, linewidth=1, label=called)
                panel.plot(x[-1:], y[-1:], "o", color=shade, markersize=5)
        panel.set(title=canvas.label(f"{name}, along training"), xlim=(-0.03, 1.03))
        panel.set_xlabel("share of the wrong labels memorised")
        canvas.name_lines(panel)
    final = axes[0, -1]
    for method in results.names:
        for last in finals(results, method).values():
            x, y = ([p.of_all for p in last.values()], [p.variance for p in last.values()])
            final.plot(x, y, "o-", color=results.colours[method], linewidth=1, markersize=5)
    final.set(title="last epoch, a line a seed")
    final.set_xlabel("wrong labels memorised / all labels")
    axes[0, 0].set_ylabel("tr Σ_W / tr Σ_B of the test samples")
    canvas.log_y(*axes[0])
    end = {"last epoch": {"marker": "o", "linestyle": "none"}}
    legend(figure, {n: results.colours[m] for m, n in results.names.items()}, end)
    return figure


@dataclass(frozen=True)
class MemorizationDilation(ClaimStudy):
    """Measure how test features spread within classes as wrong labels are memorised."""

    methods: tuple[str, ...] = ("ce", "ls", "mcr2")
    """Names of methods, or path/to/file.py:Class of an Objective."""
    ratios: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5)
    """Shares of the training labels to redraw."""

    name: ClassVar[str] = "memorization_dilation"
    tables = (dilation_table, "accuracy")
    figures = (memorization_dilation,)
    claims = (verdicts,)
