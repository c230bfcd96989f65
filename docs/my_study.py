"""Does early stopping gain more with few images? `mcr2 study docs/my_study.py:MyStudy`

Six runs of the recipe `quick`, about a minute on two cores.
"""

from dataclasses import dataclass, replace

from experiments.report.axis import RATIO, Axis
from experiments.report.canvas import panels
from experiments.report.table import Table
from experiments.studies.engine import GridStudy

RULES = {"last": "-", "noisy_validation": "--"}


def stopping(results):
    """Draw test accuracy against the number of images, a colour a method, a style a rule."""
    figure, axes = panels(1, 1, 6, 4)
    for line in results.lines:
        for rule, style in RULES.items():
            means = [e and e.mean for e in results.estimates("test_accuracy", line.where, rule)]
            label = f"{line.label}, {rule}"
            axes[0, 0].plot(results.values(), means, style, color=line.colour, label=label)
    axes[0, 0].set(xlabel=results.axes[0].title, ylabel="test accuracy")
    axes[0, 0].legend()
    return figure


def stopping_table(results):
    """Return the same numbers, with intervals, as a table."""
    rows = [
        (*results.named(case), rule, *map(str, results.estimates("test_accuracy", case, rule)))
        for case in results.cases
        for rule in RULES
    ]
    header = ("method", "ratio", "selection", *map(str, results.values()))
    title = f"Test accuracy by {results.axes[0].title} ({results.interval})"
    return Table(title, header, tuple(rows), left=3)


@dataclass(frozen=True)
class MyStudy(GridStudy):
    """Train on few and on many images, some of them labelled wrong."""

    methods: tuple[str, ...] = ("ce", "mcr2")
    """Names of methods, or path/to/file.py:Class of an Objective."""
    sizes: tuple[int, ...] = (300, 600, 1200)
    """Numbers of training images, stratified by class."""
    ratios: tuple[float, ...] = (0.4,)
    """Shares of the training labels to redraw."""

    name = "my_study"
    tables = (stopping_table, "memorization", "diversity")
    figures = (stopping, "participation")

    def study_axes(self):
        return (Axis("subset", "number of training images"), RATIO)

    def specs(self):
        return [replace(spec, subset=n) for n in self.sizes for spec in self.grid(self.methods)]
