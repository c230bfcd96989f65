"""Do test samples collapse, and does a larger training set help? It depends on when one stops.

    mcr2 study test_collapse

15 trainings on 100 to all of the digits, 100 epochs, about 5 minutes on two cores. Hui et al.
(2022, Fig. 7) measure collapse on test samples against the size of the training set; what is held
fixed meanwhile, the epochs or the loss, is a choice, and many epochs are many more steps on many
samples. Both are shown. Beside the measured CDNV stands bound (9) of the survey (Galanti et al.
2022), V_P ≤ (1 + A) V_S + B, with the test samples for P: see ``mcr2.metrics.bound``. Expect it to
hold for every pair of classes, several times above what is measured; CDNV on train to fall with
epochs by orders of magnitude, on test hardly.

Axes: the number of training images; the stop, ``equal loss`` (the first evaluation at which the
loss of the training samples, not augmented, is at most ``loss``) or ``equal epochs`` (the last).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.report.axis import Axis
from experiments.report.statistics import matching, verdict
from experiments.report.table import Table
from experiments.studies.engine import failures
from experiments.studies.measured import (
    MeasuredStudy,
    Row,
    entries,
    over_axis,
    rise,
    train_watched,
    values_at,
)

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.report.results import Results
    from experiments.runs.executors import Outcome
    from experiments.runs.prepare import Prepared
    from experiments.runs.runner import PlannedRun
    from experiments.runs.specs import RunSpec
    from mcr2.training import Encoder

SIZE = Axis("subset", "number of training images")

#: Where a training is looked at.
STOPS = ("equal loss", "equal epochs")

#: The least size by default; the others double it.
LEAST_SIZE = 100

#: Rounding of the features: the bound may be undercut by so small a part.
ROUNDING = 1e-6

#: CDNV, a mean over pairs of classes, and the bound and its parts, medians over pairs, with what
#: tables and figures call them, and the lines that they are drawn with.
MEASURES = {
    "cdnv_train": ("CDNV, train", ".-"),
    "cdnv_test": ("CDNV, test", ".--"),
    "cdnv_about_train": ("CDNV, test, about the training means", ".:"),
}
TERMS = {
    "median_test": ("CDNV, test (V_P)", ".--"),
    "A": ("A", ".-"),
    "B": ("B", ".:"),
    "bound": ("bound (1 + A) V_S + B", ".-."),
}


def measures_of(train: Tensor, y: Tensor, test: Tensor, z: Tensor, num_classes: int) -> Row:
    """Return CDNV on train, on test and about the training means, and the parts of the bound.

    ``violated`` counts the pairs of classes for which the bound does not hold.
    """
    from mcr2.metrics.bound import cdnv_bound
    from mcr2.metrics.collapse import neural_collapse
    from mcr2.metrics.moments import first_moments

    K = num_classes
    about = first_moments(train, y, num_classes=K)
    found = cdnv_bound(train, y, test, z, num_classes=K)

    def median(values: Tensor) -> float | None:
        return float(values.median()) if len(values) else None

    return {
        "cdnv_train": neural_collapse(train, y, num_classes=K).cdnv,
        "cdnv_test": neural_collapse(test, z, num_classes=K).cdnv,
        "cdnv_about_train": neural_collapse(test, z, num_classes=K, means=about).cdnv,
        **{name: median(getattr(found, name)) for name in ("A", "B", "bound")},
        "median_test": median(found.test),
        "pairs": len(found.test),
        "violated": int((found.bound < found.test * (1 - ROUNDING)).sum()),
    }


def observer(data: Prepared, device: Any) -> Callable[[Encoder], Row]:
    """Return what measures a network along its training: loss, errors, and :func:`measures_of`."""
    import torch

    from mcr2.evaluation import encode

    train, test, _ = data.on(device)

    def observe(encoder: Encoder) -> Row:
        H, G = encode(encoder, train.images), encode(encoder, test.images)
        with torch.no_grad():
            loss, _ = encoder.objective(H, train.labels)
        row = measures_of(H, train.labels, G, test.labels, data.sizes.num_classes)
        return {"loss": float(loss), **row}

    return observe


def stopped(history: Sequence[Mapping[str, Any]], loss: float) -> list[Row]:
    """Return the evaluations of a history as rows, and those at which one stops once more, named.

    Example:
        >>> entries = [{"epoch": e, "step": e, "measures": {"loss": 1 / (1 + e)}} for e in range(4)]
        >>> [(row["stop"], row["epoch"]) for row in stopped(entries, 0.4) if row["stop"]]
        [('equal loss', 2), ('equal epochs', 3)]
    """
    rows = [{"epoch": e["epoch"], "step": e["step"], **e["measures"]} for e in history]
    reached = [row for row in rows if row["loss"] <= loss][:1]
    chosen = zip(STOPS, (reached, rows[-1:]), strict=True)
    named = [row | {"stop": stop} for stop, found in chosen for row in found]
    return [row | {"stop": None} for row in rows] + named


# --- claims


def falls(results: Results, method: str, stop: str) -> dict[int, bool | None]:
    """Whether CDNV on test is smaller for the largest training set than the smallest, by seed."""
    found = over_axis(results, "cdnv_test", method=method, stop=stop)
    rises = {seed: rise(by_size, results.values()) for seed, by_size in found.items()}
    return {seed: None if value is None else value < 0 for seed, value in rises.items()}


def stays_apart(results: Results, method: str, stop: str) -> list[bool | None]:
    """Whether CDNV on test exceeds that on train at every size, seed by seed."""
    train, test = (
        over_axis(results, name, method=method, stop=stop) for name in ("cdnv_train", "cdnv_test")
    )
    return [
        all(test[seed][n] > train[seed][n] for n in test[seed].keys() & train[seed].keys())
        for seed in test.keys() & train.keys()
    ]


def stop_decides(results: Results, method: str) -> list[bool | None]:
    """Whether CDNV on test falls with the size at one stop and not at the other, seed by seed."""
    one, other = (falls(results, method, stop) for stop in STOPS)
    pairs = [(one[seed], other[seed]) for seed in one.keys() & other.keys()]
    return [None if None in pair else pair[0] != pair[1] for pair in pairs]


def verdicts(results: Results, loss: float) -> list[str]:
    """Return a line for each claim."""
    holds: dict[str, bool | None] = {}
    for method, name in results.names.items():
        rows = [row for row in matching(results.extra, method=method) if row["pairs"]]
        holds[name] = not any(row["violated"] for row in rows) if rows else None
    cases = list(product(results.names.items(), STOPS))
    ends = f"from {min(results.values())} to {max(results.values())} training images"
    return [
        verdict(
            "Bound (9) holds",
            holds,
            "for every pair of classes, at every evaluation of every training",
        ),
        verdict(
            "Test samples collapse more with a larger training set",
            {f"{n} at {s}": list(falls(results, m, s).values()) for (m, n), s in cases},
            f"in every seed CDNV on test falls {ends}; equal loss is {loss:g}",
        ),
        verdict(
            "Test samples collapse less than training samples",
            {f"{n} at {s}": stays_apart(results, m, s) for (m, n), s in cases},
            "in every seed and at every size CDNV on test exceeds that on train",
        ),
        verdict(
            "Where one stops decides whether a larger training set helps",
            {n: stop_decides(results, m) for m, n in results.names.items()},
            f"in every seed CDNV on test falls {ends} at one stop and does not at the other",
        ),
    ]


# --- table and figure


def size_table(results: Results) -> Table:
    """Return everything at both stops, by the size of the training set."""
    names = {"epoch": "epoch", "loss": "loss"}
    names |= {name: called for name, (called, _) in MEASURES.items()}
    names |= {name: f"median {called}" for name, (called, _) in TERMS.items()}
    rows = tuple(
        (called, stop, title, *entries(results, name, method=method, stop=stop))
        for (method, called), stop in product(results.names.items(), STOPS)
        for name, title in names.items()
    )
    title = (
        "Collapse of training and test samples by the number of training images; CDNV is a mean "
        f"over pairs of classes where no median is named ({results.interval})"
    )
    note = "(n) behind a value: the loss was reached in n seeds only; - in none"
    header = ("method", "stopped at", "measure", *map(str, results.values()))
    return Table(title, header, rows, left=3, notes=(note,))


def collapse_by_size(results: Results) -> Any:
    """Draw CDNV above and the bound's parts below against the size, a column a stop."""
    from experiments.report import canvas
    from experiments.report.figures import legend

    sizes = results.values()
    figure, axes = canvas.panels(2, len(STOPS), 4.4, 3.0, sharex=True, sharey="row")
    for row, drawn in zip(axes, (MEASURES, TERMS), strict=True):
        for panel, stop in zip(row, STOPS, strict=True):
            for method, (name, (_, style)) in product(results.names, drawn.items()):
                each = values_at(results, name, SIZE.name, sizes, method=method, stop=stop)
                canvas.mean_and_range(panel, sizes, each, results.colours[method], style)
            panel.set_xscale("log")
            panel.set_xticks(sizes, list(map(str, sizes)), fontsize=8)
            panel.minorticks_off()
            panel.set_title(f"stopped at {stop}", fontsize=11)
        canvas.log_y(*row)
        for called, style in drawn.values():
            row[-1].plot([], [], style, color="0.35", label=called)
        canvas.name_lines(row[-1], 8, loc="upper left", bbox_to_anchor=(1.02, 1), handlelength=3)
    axes[0, 0].set_ylabel("mean over pairs of classes")
    axes[1, 0].set_ylabel("median over pairs of classes")
    for panel in axes[1]:
        panel.set_xlabel(SIZE.title)
    legend(figure, {name: results.colours[m] for m, name in results.names.items()})
    return figure


@dataclass(frozen=True)
class CollapseOnTest(MeasuredStudy):
    """Measure collapse of test samples, and the bound on it, by the size of the training set."""

    methods: tuple[str, ...] = ("ce",)
    """Names of methods whose loss is a mean over samples, so that a loss means the same at any
    size: ce, ls, mse, fixed_etf, or path/to/file.py:Class."""
    sizes: tuple[int, ...] | None = None
    """Numbers of training images; by default 100, doubled while there are more, and all."""
    loss: float = 0.05
    """Mean loss of the training samples that counts as equal."""
    epochs: int | None = 100
    """Epochs of every training."""

    name: ClassVar[str] = "test_collapse"
    measured_by = ("loss",)
    makes_runs = False
    tables = (size_table,)
    figures = (collapse_by_size,)
    fixed = ("evaluate_every=1",)

    def study_axes(self) -> tuple[Axis, ...]:
        """Return the size of the training set."""
        return (SIZE,)

    @cached_property
    def counts(self) -> list[int]:
        """The sizes of training sets, rising."""
        from experiments.runs.prepare import load

        if self.sizes is not None:
            return sorted(set(self.sizes))
        most = len(load(self.grid(self.methods)[0], self.data_root).train)
        found = [min(LEAST_SIZE, most)]
        while 2 * found[-1] < most:
            found.append(2 * found[-1])
        return sorted({*found, most})

    def specs(self) -> list[RunSpec]:
        """Return the specs, small training sets first."""
        from experiments.runs.methods import find_method
        from mcr2 import checks

        checks.positive("loss", self.loss)
        if self.sizes is not None and self.subset is not None:
            raise ValueError("subset and sizes both say how many images; give one of them")
        for method in self.methods:
            if not find_method(method).additive:
                raise ValueError(
                    f"the loss of {method} is not a mean over samples: at another size it means "
                    "another thing, and equal losses compare nothing"
                )
        runs = self.grid(self.methods)
        return [replace(spec, subset=count) for count in self.counts for spec in runs]

    def measure(self, planned: PlannedRun) -> list[Row]:
        """Train, measuring at every evaluation; name those at which one stops."""
        from experiments.runs.methods import untrained
        from experiments.runs.prepare import prepared
        from experiments.runs.trained import feed_for

        machine, spec = self.machine(), planned.spec
        device, data = machine.torch_device(), prepared(spec, machine.data_root)
        network, train = untrained(spec, data.sizes), data.train.to(device)
        observe = observer(data, device)
        result = train_watched(network, train, spec.training, feed_for(spec, data), observe)
        return stopped(result.history, self.loss)

    def notes(self, outcomes: Sequence[Outcome], results: Results) -> list[str]:
        """Return failures."""
        return failures(outcomes, self.describe)

    def conclusion(self, results: Results) -> list[str]:
        """Return what became of the claims."""
        return verdicts(results, self.loss)
