"""An ablation's table, and a figure for each varied field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.report.canvas import COLOURS, pyplot, save
from experiments.report.statistics import Cells, matching
from experiments.report.tables import MEMORIZATION, Table, over_what, shown
from mcr2.selection import SELECTIONS


def ablation_table(cells: Cells, fields: Sequence[str], method: str, dataset: str) -> Table:
    """Return an ablation: settings and ratios as rows, accuracy and memorization as columns.

    Args:
        cells: rows of the ablation.
        fields: names of the varied fields.
        method: what is ablated.
        dataset: on what.
    """
    rules = [rule for rule in SELECTIONS if any(c["selection"] == rule for c in cells)]
    seeds = len({c["seed"] for c in cells})
    rows = []
    for values in dict.fromkeys(tuple(c[f] for f in (*fields, "ratio")) for c in cells):
        setting = dict(zip((*fields, "ratio"), values, strict=True))
        accuracies = [matching(cells, **setting, selection=r)("test_accuracy") for r in rules]
        last = matching(cells, **setting, selection="last")
        estimates = [*accuracies, *(last(measure) for measure in MEMORIZATION)]
        steps = {
            c["steps"]
            for c in cells
            if c["status"] == "finished" and all(c[f] == v for f, v in setting.items())
        }
        entries = (shown(e, seeds, 3) for e in estimates)
        rows.append((*map(_value, values), ", ".join(map(str, sorted(steps))) or "-", *entries))
    readouts = ", ".join(sorted({c["readout"].partition("@")[0] for c in cells if c["readout"]}))
    return Table(
        f"{method} on {dataset}: test accuracy by {readouts or 'its readout'} at the last and the "
        f"selected epochs, memorization at the last ({over_what(cells)})",
        (*fields, "ratio", "steps", *rules, *MEMORIZATION),
        tuple(rows),
        left=len(fields) + 2,
    )


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_value, value)) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


#: Selection rules that are drawn, and how; the table has them all.
LINES = {"last": "-", "noisy_validation": "--", "oracle": ":"}

#: What axes are called.
AXES = {
    "eps_sq": "squared distortion ε²",
    "gamma1": "γ₁",
    "gamma2": "γ₂",
    "batch_size": "batch size asked for (samples)",
    "feature_dim": "feature dimension d",
    "n_components": "components of a class in the readout",
    "lr": "peak learning rate",
}


def write_ablation_figures(out: Path, cells: Cells, fields: Sequence[str], title: str) -> None:
    """Draw a figure for each varied field into ``out``: accuracy, and what became of wrong labels.

    The other varied fields, and the ratio where there are several, are lines of their own; where
    that would be more lines than colours, the figure averages over them and says so. Bars are 95 %
    intervals over seeds; an average over settings has none.
    """
    for name in fields:
        others = [f for f in (*fields, "ratio") if f != name and len({c[f] for c in cells}) > 1]
        groups = list(dict.fromkeys(tuple(c[f] for f in others) for c in cells))
        averaged = len(groups) > len(COLOURS)
        lines = {
            ", ".join(f"{f}={_value(v)}" for f, v in zip(others, group, strict=True)): [
                c for c in cells if tuple(c[f] for f in others) == group
            ]
            for group in groups
        }
        if averaged:
            lines = {f"mean over {', '.join(others)}": list(cells)}
        _draw_ablation(out / f"{name}.png", name, lines, title, averaged)


def _draw_ablation(
    path: Path, name: str, lines: Mapping[str, Cells], title: str, averaged: bool
) -> None:
    plt = pyplot()
    all_cells = [cell for cells in lines.values() for cell in cells]
    values = list(dict.fromkeys(cell[name] for cell in all_cells))
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if numbers:
        values.sort()
    at = values if numbers else list(range(len(values)))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.6), layout="constrained")

    logarithmic = numbers and min(at) > 0 and max(at) >= 8 * min(at)
    reach = max(at) / min(at) if logarithmic else max(at) - min(at)

    def aside(x: float, place: int) -> float:
        """Move a point by a hundredth of the axis a place, that bars do not hide each other."""
        return x * reach ** (place / 100) if logarithmic else x + reach * place / 100

    def draw(axes: Any, measure: str, cells: Any, rule: str, place: int = 0, **look: Any) -> None:
        estimates = [matching(cells, **{name: v}, selection=rule)(measure) for v in values]
        points = [(aside(x, place), e) for x, e in zip(at, estimates, strict=True) if e]
        error = [0.0 if averaged else e.half_width or 0.0 for _, e in points]
        axes.errorbar(
            [x for x, _ in points],
            [e.mean for _, e in points],
            error if any(error) else None,
            marker="o",
            markersize=4,
            elinewidth=1,
            capsize=3,
            **look,
        )

    alone = len(lines) == 1
    rules = [r for r in LINES if any(c["selection"] == r for c in all_cells)]
    for place, ((label, cells), colour) in enumerate(zip(lines.items(), COLOURS, strict=False)):
        for number, rule in enumerate(rules if alone else rules[:1]):
            called = rule.replace("_", " ")
            called = f"{label}: {called}" if label and not alone else called
            draw(
                left,
                "test_accuracy",
                cells,
                rule,
                place + number,
                color=colour,
                linestyle=LINES[rule],
                label=called,
            )
        for measure, line in (("fit_corrupted", "-"), ("recovered", "--")):
            called = MEMORIZATION[measure].rpartition(" ")[2]
            draw(right, measure, cells, "last", place, color=colour, linestyle=line, label=called)
    if alone and "" not in lines:
        title = f"{title}, {next(iter(lines))}"
    figure.suptitle(title, fontsize=11)
    left.set(ylabel="test accuracy", title="accuracy")
    right.set(ylabel="share of the wrong labels", title="wrong labels at the last epoch")
    right.set_ylim(-0.03, 1.03)
    left.legend(fontsize=9, frameon=False)
    handles, labels = right.get_legend_handles_labels()
    right.legend(handles[:2], labels[:2], fontsize=9, frameon=False)
    for axes in (left, right):
        if logarithmic:
            axes.set_xscale("log")
        axes.set_xticks(at, [_value(v) for v in values])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(AXES.get(name, name))
        axes.grid(alpha=0.3)
    save(figure, path)
