"""Margins past separation: how they spread, where W turns, and how few samples suffice.

    mcr2 study margins

3 trainings of 100 epochs, each continued in seven ways from the moment of separation on, about 3
minutes on two cores. Soudry et al. (2018) show that on separable features the classifier turns, as
log t, towards the hard-margin SVM; Banburski et al. (2021) that margins of a network go on growing
past separation and draw together, and that from then on one sample in a hundred trains as well as
all of them. Expect the smallest margin to grow; the angle to the SVM of the same features, which
move meanwhile, to fall and not to vanish; and few samples to cost little where batch normalisation
still sees typical ones.

Axes: none; epochs run along the curves, at constant learning rate and without augmentation, so that
separation is that of the training samples as they are. Margins are q = w_yᵀh + b_y − max over the
other classes, normalised over ‖W‖_F · mean ‖h‖. *Separated* is the first epoch after which every
q > 0. A continuation takes as many steps as all samples would, on those of the smallest, of the
largest or of random margins at separation; batches are smaller where there are fewer samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.report.statistics import estimate, shown, verdict
from experiments.report.table import Table
from experiments.studies.claims import check_heads
from experiments.studies.engine import failures
from experiments.studies.measured import MeasuredStudy, Row, by_seed, over_seeds, train_watched

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.report.results import Results
    from experiments.runs.executors import Outcome
    from experiments.runs.runner import PlannedRun
    from experiments.runs.specs import RunSpec
    from mcr2.data import Split
    from mcr2.training import Encoder

#: Shares of the samples to go on with, and by which margins they are chosen.
SHARES = (1.0, 0.1, 0.01)
WHICH = ("smallest", "largest", "random")

#: Fewer samples have cost nothing where test accuracy is lower than with all by no more.
TOLERANCE = 0.01

#: Sorted margins are kept at so many places, evenly.
PLACES = 101

#: Rows along the training, and rows of what it was continued with.
COURSE, CONTINUED = "course", "continued"

#: Of a course: what tables call it.
MEASURES = {
    "epoch": "epoch",
    "train_accuracy": "training accuracy",
    "test_accuracy": "test accuracy",
    "min_raw": "smallest margin",
    "min_normalised": "smallest margin, normalised",
    "spread": "(q95 − q05)/q50 of margins",
    "angle": "angle of (W, b) to the SVM (degrees)",
}
LOOKS = {"separation": "at separation", "end": "at the end"}


def looks(epochs: int, count: int) -> list[int]:
    """Return at which epochs to look: 0, then so many from 1 to the last, evenly in log t.

    Example:
        >>> looks(100, 5)
        [0, 1, 3, 10, 32, 100]
    """
    if epochs < 2 or count < 2:
        return sorted({0, epochs})
    return sorted({0, *(round(epochs ** (i / (count - 1))) for i in range(count))})


def choose(order: Tensor, share: float, which: str, seed: int) -> Tensor:
    """Return the samples to go on with, of an ``order`` from the smallest margin to the largest.

    Example:
        >>> import torch
        >>> choose(torch.tensor([3, 0, 2, 1]), 0.5, "largest", seed=0)
        tensor([2, 1])
    """
    import torch

    count = max(2, round(share * len(order)))
    if which == "random":
        generator = torch.Generator().manual_seed(seed)
        return order[torch.randperm(len(order), generator=generator)[:count].to(order.device)]
    return order[:count] if which == "smallest" else order[-count:]


def margins_of(encoder: Encoder, train: Split, test: Split) -> tuple[Tensor, Row]:
    """Return samples from the smallest margin to the largest, and what is measured of margins."""
    from mcr2.evaluation import encode
    from mcr2.metrics.margins import margin_distribution

    H, head = encode(encoder, train.images), encoder.classifier()
    assert head is not None
    found = margin_distribution(H, train.labels, *head)
    q, scale = found.raw, found.scale or 1.0
    low, middle, high = (float(q.quantile(level)) for level in (0.05, 0.5, 0.95))
    scores = encode(encoder, test.images) @ head[0].T
    scores = scores if head[1] is None else scores + head[1]
    return found.order, {
        "train_accuracy": float((q > 0).double().mean()),
        "test_accuracy": float((scores.argmax(1) == test.labels).double().mean()),
        "min_raw": float(q[0]),
        "min_normalised": float(q[0]) / scale,
        "spread": (high - low) / middle if middle > 0 else None,
        "raw": quantiles(q),
        "normalised": quantiles(q / scale),
    }


def quantiles(sorted_values: Tensor) -> list[float]:
    """Return sorted values at so many places, both ends among them."""
    import torch

    places = torch.linspace(0, len(sorted_values) - 1, PLACES).round().long()
    return [float(f"{value:.6g}") for value in sorted_values.cpu()[places].tolist()]


def angle_to_svm(encoder: Encoder, train: Split) -> float | None:
    """Return the angle of (W, b) to the hard-margin SVM of the same features, in degrees.

    None where no classifier separates them.
    """
    import torch

    from mcr2.evaluation import encode
    from mcr2.metrics.hard_margin import angle, hard_margin

    head = encoder.classifier()
    assert head is not None
    H, K = encode(encoder, train.images), len(head[0])
    svm = hard_margin(H, train.labels, num_classes=K, bias=head[1] is not None)
    if svm is None:
        return None
    own, widest = head[0].double(), svm.weight
    if head[1] is not None and svm.bias is not None:
        own = torch.cat([own, head[1].double().unsqueeze(1)], 1)
        widest = torch.cat([widest, svm.bias.unsqueeze(1)], 1)
    return angle(own, widest)


@dataclass
class Observer:
    """Looks at a network after every epoch, and keeps it as it is once it separates.

    ``rows`` are of the epochs to look at and of that of separation; ``order`` are the samples by
    their margins then, ``separated`` the network.
    """

    train: Split
    test: Split
    at: Sequence[int]
    rows: list[Row] = field(default_factory=list)
    epoch: int = -1
    separated: Encoder | None = None
    order: Tensor | None = None
    since: int = 0

    def __call__(self, encoder: Encoder) -> dict[str, Any]:
        """Measure the network as it is now; nothing of it stands in the history."""
        self.epoch += 1
        order, row = margins_of(encoder, self.train, self.test)
        first = self.separated is None and row["min_raw"] > 0
        if first:
            self.separated, self.order, self.since = deepcopy(encoder), order, self.epoch
        if first or self.epoch in self.at:
            after = row["min_raw"] > 0
            look = "separation" if first else "end" if self.epoch == self.at[-1] else None
            self.rows.append(
                {
                    "kind": COURSE,
                    "epoch": self.epoch,
                    "look": look,
                    **row,
                    "angle": angle_to_svm(encoder, self.train) if after else None,
                }
            )
        return {}


# --- claims


def part(results: Results, kind: str) -> Results:
    """Return the results with the rows of a kind only."""
    return replace(results, extra=[row for row in results.extra if row["kind"] == kind])


def past_separation(results: Results, name: str, method: str) -> list[tuple[float, float]]:
    """Return a measure at separation and at the end, seed by seed, where both are there."""
    course = part(results, COURSE)
    begin, end = (by_seed(course, name, method=method, look=look) for look in LOOKS)
    return [(begin[seed], end[seed]) for seed in begin.keys() & end.keys()]


def suffices(results: Results, method: str, share: float, which: str) -> list[bool | None]:
    """Whether fewer samples lead to no lower test accuracy than all, seed by seed."""
    continued = part(results, CONTINUED)
    few, all_ = (
        by_seed(continued, "test_accuracy", method=method, **where)
        for where in ({"share": share, "which": which}, {"share": 1.0})
    )
    return [few[seed] >= all_[seed] - TOLERANCE for seed in few.keys() & all_.keys()]


def verdicts(results: Results) -> list[str]:
    """Return a line for each claim."""
    during = "from separation to the end"
    grows: Mapping[str, tuple[str, bool, str]] = {
        "Past separation the smallest margin goes on growing": (
            "min_normalised",
            True,
            "in every seed the smallest normalised margin is larger at the end than at separation",
        ),
        "Past separation W turns towards the hard-margin SVM": (
            "angle",
            False,
            f"in every seed the angle to the SVM of the same features falls {during}",
        ),
        "Past separation margins draw together": (
            "spread",
            False,
            f"in every seed (q95 − q05)/q50 of the margins falls {during}",
        ),
    }
    lines = []
    for claim, (name, upwards, criterion) in grows.items():
        moved = {
            called: [
                end > begin if upwards else end < begin
                for begin, end in past_separation(results, name, method)
            ]
            for method, called in results.names.items()
        }
        lines.append(verdict(claim, moved, criterion))
    for share in SHARES[1:]:
        cases = {
            f"{name} by {which} margins": suffices(results, method, share, which)
            for method, name in results.names.items()
            for which in WHICH
        }
        lines.append(
            verdict(
                f"From separation on {share:.0%} of the samples suffice",
                cases,
                f"in every seed test accuracy is at most {TOLERANCE:g} lower than with all of them",
            )
        )
    return lines


# --- tables and figures


def course_table(results: Results) -> Table:
    """Return what is measured at separation and at the end."""
    course = part(results, COURSE)
    rows = [
        (
            called,
            name,
            *(
                shown(over_seeds(course, measure, method=method, look=look), results.seeds)
                for look in LOOKS
            ),
        )
        for method, name in results.names.items()
        for measure, called in MEASURES.items()
    ]
    title = f"Margins of the training samples past separation ({results.interval})"
    return Table(title, ("measure", "method", *LOOKS.values()), tuple(rows), left=2)


def continued_table(results: Results) -> Table | None:
    """Return what became of the network by the samples it went on with."""
    continued, rows = part(results, CONTINUED), []
    for method, name in results.names.items():
        whole = by_seed(continued, "test_accuracy", method=method, share=1.0)
        for share, which in continuations():
            where = {"method": method, "share": share, "which": which}
            own = by_seed(continued, "test_accuracy", **where)
            if own:
                less = estimate([own[seed] - whole[seed] for seed in own.keys() & whole.keys()])
                entries = (
                    shown(over_seeds(continued, measure, **where), results.seeds, places)
                    for measure, places in (
                        ("samples", None),
                        ("steps", None),
                        ("test_accuracy", 3),
                        ("train_accuracy", 3),
                        ("min_normalised", None),
                    )
                )
                difference = shown(less, results.seeds, 3, signed=True)
                rows.append((name, f"{share:.0%}", which, *entries, difference))
    title = (
        "Going on from separation with fewer samples: accuracy on test and on all training "
        "samples, their smallest normalised margin, and test accuracy less that with all "
        f"({results.interval})"
    )
    header = ("method", "kept", "by margin", "samples", "steps", "test", "train", "smallest")
    return Table(title, (*header, "less"), tuple(rows), left=3) if rows else None


def continuations() -> list[tuple[float, str]]:
    """Return what a network goes on with: shares of the samples, and by which margins."""
    return [(1.0, "all"), *((share, which) for share in SHARES[1:] for which in WHICH)]


def margin_distributions(results: Results) -> Any:
    """Draw the sorted margins along training, raw and normalised, of the first seed of each method.

    A row a method, a shade an epoch, as in the figure of Banburski et al. (2021).
    """
    from experiments.report import canvas

    course = part(results, COURSE).extra
    kinds = {"raw": "margin", "normalised": "margin / (‖W‖ mean ‖h‖)"}
    figure, axes = canvas.panels(len(results.names), 2, 4.4, 3.1)
    for row, (method, name) in zip(axes, results.names.items(), strict=True):
        seeds = [each["seed"] for each in course if each["method"] == method]
        own = [r for r in course if r["method"] == method and r["seed"] == min(seeds)]
        for panel, (kind, ylabel) in zip(row, kinds.items(), strict=True):
            for each, shade in zip(own, canvas.shades(len(own)), strict=True):
                called = f"epoch {each['epoch']}"
                called += ", separated" if each["look"] == "separation" else ""
                share = [i / (PLACES - 1) for i in range(PLACES)]
                panel.plot(share, each[kind], color=shade, linewidth=1.2, label=called)
            panel.axhline(0, color="0.4", linewidth=0.8, zorder=0)
            panel.set(ylabel=ylabel, title=canvas.label(f"{name}, {kind}"))
            panel.set_xlabel("training samples, by margin (share)")
        canvas.name_lines(row[-1], 8, loc="upper left", bbox_to_anchor=(1.02, 1))
    return figure


def past_separation_figure(results: Results) -> Any:
    """Draw smallest margin, spread and angle over log t, and what fewer samples cost."""
    from experiments.report import canvas
    from experiments.report.figures import legend

    course, continued = part(results, COURSE).extra, part(results, CONTINUED)
    along = {name: MEASURES[name] for name in ("min_normalised", "spread", "angle")}
    figure, axes = canvas.panels(1, len(along) + 1, 3.4, 3.1)
    for panel, (name, called) in zip(axes[0], along.items(), strict=False):
        for method in results.names:
            for seed in dict.fromkeys(row["seed"] for row in course):
                rows = [r for r in course if (r["method"], r["seed"]) == (method, seed)]
                rows = [r for r in rows if r["epoch"] > 0 and r[name] is not None]
                x, colour = [r["epoch"] for r in rows], results.colours[method]
                panel.plot(x, [r[name] for r in rows], ".-", color=colour, linewidth=1)
                at = [i for i, r in enumerate(rows) if r["look"] == "separation"]
                panel.plot(x, [r[name] for r in rows], "o", color=colour, mfc="white", markevery=at)
        panel.set(xscale="log", xlim=(0.9, 1.1 * max([1, *(r["epoch"] for r in course)])))
        panel.set_xlabel("epoch (a line a seed)")
        panel.set_title(called, fontsize=11)
    axes[0, 1].set_ylim(bottom=0)
    axes[0, 2].set_ylim(bottom=0)
    last, cases = axes[0, -1], continuations()
    for number, method in enumerate(results.names):
        for place, (share, which) in enumerate(cases):
            where = {"method": method, "share": share, "which": which}
            values = list(by_seed(continued, "test_accuracy", **where).values())
            x = [place + 0.15 * number] * len(values)
            last.plot(x, values, "o", color=results.colours[method], markersize=5, alpha=0.7)
    kept = [f"{share:.0%} {which}" for share, which in cases]
    last.set_xticks(range(len(cases)), kept, rotation=60, fontsize=8, ha="right")
    last.set_title("test accuracy, by what was kept", fontsize=11)
    marks = {"separation": {"marker": "o", "mfc": "white", "linestyle": "none"}}
    legend(figure, {name: results.colours[m] for m, name in results.names.items()}, marks)
    return {"past_separation": figure}


@dataclass(frozen=True)
class MarginsStudy(MeasuredStudy):
    """Follow margins past separation, and go on with fewer samples from there."""

    methods: tuple[str, ...] = ("ce",)
    """Names of methods that have a linear classifier of their own."""
    looks: int = 10
    """At how many epochs to look, evenly in log t; each solves for an SVM, in seconds."""
    epochs: int | None = 100
    """Epochs of every training."""

    name: ClassVar[str] = "margins"
    measured_by = ("looks",)
    makes_runs = False
    tables = (course_table, continued_table)
    figures = (margin_distributions, past_separation_figure)
    claims = (verdicts,)
    not_estimated = "going on from separation, seven times, and an SVM at every look"
    #: At constant rate, on images as they are.
    fixed = ("schedule=constant", "lr=0.05", "shift=0", "flip=false", "evaluate_every=1")

    def specs(self) -> list[RunSpec]:
        """Return the specs, seed by seed."""
        from mcr2 import checks

        checks.integer("looks", self.looks, 2)
        checks.integer("the number of ratios", len(self.ratios), 1, 1)
        check_heads(self.methods)
        return self.grid(self.methods)

    def measure(self, planned: PlannedRun) -> list[Row]:
        """Train, looking at margins; then go on from separation with fewer samples."""
        from experiments.runs.methods import untrained
        from experiments.runs.prepare import prepared
        from experiments.runs.trained import feed_for

        machine, spec = self.machine(), planned.spec
        data = prepared(spec, machine.data_root)
        own, test, _ = data.on(machine.torch_device())
        observer = Observer(own, test, looks(spec.training.epochs, self.looks))
        feed = feed_for(spec, data)
        train_watched(untrained(spec, data.sizes), own, spec.training, feed, observer)
        if observer.separated is None:
            return observer.rows
        left = spec.training.epochs - observer.since
        return observer.rows + [
            go_on(observer, spec, feed, left, share, which)
            for share, which in continuations()
            if left > 0
        ]

    def notes(self, outcomes: Sequence[Outcome], results: Results) -> list[str]:
        """Return failures, who was never separated."""
        told = failures(outcomes, self.describe)
        course = part(results, COURSE).extra
        for outcome in outcomes:
            spec = outcome.planned.spec
            own = [r for r in course if (r["method"], r["seed"]) == (spec.method, spec.seed)]
            if own and not any(row["look"] == "separation" for row in own):
                told.append(f"{self.describe(spec)}: never separated, nothing to go on from")
        return told


def go_on(
    observer: Observer, spec: RunSpec, feed: Any, epochs: int, share: float, which: str
) -> Row:
    """Train the separated network on a share of the samples, as many steps as all would take."""
    from mcr2.data import mix_seed, num_batches

    own, batch = observer.train, spec.training.batch_size
    assert observer.order is not None
    kept = choose(observer.order, share, which, spec.seed)
    steps = epochs * num_batches(len(own), batch)
    rounds = max(1, round(steps / num_batches(len(kept), batch)))
    branch = deepcopy(observer.separated)
    assert branch is not None
    training = replace(spec.training, epochs=rounds, evaluate_every=rounds)
    draws = mix_seed("continued", feed.sampling_seed, observer.since)
    feed = replace(feed, sampling_seed=draws)
    result = train_watched(branch, own.select(kept), training, feed)
    _, row = margins_of(branch, own, observer.test)
    measured = {name: row[name] for name in ("test_accuracy", "train_accuracy", "min_normalised")}
    named = {"kind": CONTINUED, "share": share, "which": which}
    return named | {"samples": len(kept), "steps": result.steps, **measured}
