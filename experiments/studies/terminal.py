"""Long past zero error: what collapses, under which loss, and what a fixed classifier changes.

    mcr2 study terminal

48 runs of the recipe ``quick``, 120 epochs each, about 8 minutes on two cores. Papyan et al.
(2020) say that NC1 to NC4 go on falling after the training error is zero, and that test accuracy
gains meanwhile; Zhu et al. (2022) that cross-entropy, squared error and label smoothing collapse
alike; Zhu et al. (2021) that a classifier fixed at a simplex frame, and d = K feature dimensions,
cost no accuracy and save parameters. Expect all measures to fall, test accuracy to stand still, and
differences between losses smaller than those between seeds.

Axes: the feature dimension d (K and the recipe's), weight decay, the share of labels redrawn. Two
settings are *equivalent* where the 90 % interval of their paired difference in test accuracy over
seeds lies within ± ``MARGIN``, stated here before anything was measured (two one-sided tests at
5 %): a difference that is merely not significant proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from experiments.report.axis import RATIO, Axis
from experiments.report.statistics import estimate, matching, shown, value_of, verdict
from experiments.report.table import Table
from experiments.studies.claims import ClaimStudy, check_heads

if TYPE_CHECKING:
    from experiments.report.results import Results
    from experiments.runs.specs import RunSpec
    from mcr2.records import Record, Run

#: Equivalent settings differ by less than this in test accuracy.
MARGIN = 0.01

#: Test accuracy has suffered where it falls by more than this in the terminal phase.
TOLERANCE = 0.005

#: NC1 to NC4, of the training samples: a measure, and the classifier that it is about.
COLLAPSE = {"nc1": "-", "nc2_etf": "-", "nc3": "head", "nc4": "head"}
CLAIMS = {
    "nc1": "variability within classes (NC1) goes on falling",
    "nc2_etf": "class means (NC2) go on towards a simplex frame",
    "nc3": "the classifier (NC3) goes on towards the class means",
    "nc4": "decisions (NC4) go on towards those of the nearest class mean",
}

DIMENSION = Axis("feature_dim", "feature dimension d")
DECAY = Axis("weight_decay", "weight decay")

#: A classifier that is not learnt, and the same loss with one that is.
FIXED, LEARNT = "fixed_etf", "ce"


class Course(NamedTuple):
    """A measure where the terminal phase begins, and at the last epoch."""

    begin: float
    end: float


def course(run: Run, key: str) -> Course | None:
    """Return the course of a measure; None without a terminal phase of two evaluations at least."""
    began = None if run.evaluation is None else run.evaluation.terminal_epoch
    history = run.record.history
    if began is None or history[-1]["epoch"] <= began:
        return None
    values = [
        entry["measures"].get(key)
        for entry in (next(e for e in history if e["epoch"] == began), history[-1])
    ]
    return None if None in values else Course(*values)


def settings_of(results: Results) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every setting, with what it is called."""
    for case in results.cases:
        for dim in results.values():
            name, decay, ratio = results.named(case)
            noisy = f" ratio {ratio}" if len(results.values(RATIO)) > 1 else ""
            yield f"{name} d={dim} decay={decay}{noisy}", case | {DIMENSION.name: dim}


# --- claims


def falls(found: Course | None) -> bool | None:
    """Whether a measure is lower at the last epoch than where the terminal phase begins.

    One that is zero at both has nowhere to go.

    Example:
        >>> falls(Course(0.2, 0.1)), falls(Course(0.0, 0.0)), falls(None)
        (True, True, None)
    """
    return None if found is None else found.end < found.begin or found == (0, 0)


def keeps(found: Course | None) -> bool | None:
    """Whether test accuracy does not suffer in the terminal phase."""
    return None if found is None else found.end >= found.begin - TOLERANCE


class Equivalence(NamedTuple):
    """The mean of paired differences, the half-width of its 90 % interval, and how many pairs."""

    mean: float
    half_width: float
    pairs: int

    @property
    def holds(self) -> bool:
        """Whether the interval lies within the margin."""
        return abs(self.mean) + self.half_width <= MARGIN

    @property
    def is_refuted(self) -> bool:
        """Whether the interval lies outside the margin."""
        return abs(self.mean) - self.half_width > MARGIN


def equivalence(differences: Sequence[float]) -> Equivalence | None:
    """Test paired differences, one a seed, for equivalence; None of fewer than two.

    Example:
        >>> equivalence([0.001, -0.002, 0.0]).holds, equivalence([0.03, 0.031]).is_refuted
        (True, True)
    """
    import math
    from statistics import mean, stdev

    from scipy.special import stdtrit

    n = len(differences)
    if n < 2:
        return None
    half = float(stdtrit(n - 1, 0.95)) * stdev(differences) / math.sqrt(n)
    return Equivalence(mean(differences), half, n)


def paired(results: Results, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[float]:
    """Return test accuracies of a setting less those of another, by runs on the same labels."""

    def of(where: Mapping[str, Any]) -> dict[tuple[int, str], float]:
        rows = matching(results.rows, selection="last", **where)
        values = {(row["seed"], row["labels"]): value_of(row, "test_accuracy") for row in rows}
        return {pair: value for pair, value in values.items() if value is not None}

    ours, theirs = of(one), of(other)
    return [ours[pair] - theirs[pair] for pair in sorted(ours.keys() & theirs.keys())]


def compared(results: Results) -> dict[str, dict[str, Equivalence | None]]:
    """Return by claim, and by setting, what was found of each equivalence."""
    fixed: dict[str, Equivalence | None] = {}
    small: dict[str, Equivalence | None] = {}
    dims = results.values()
    for name, where in settings_of(results):
        if where["method"] == FIXED and LEARNT in results.names:
            other = where | {"method": LEARNT}
            fixed[name] = equivalence(paired(results, where, other))
        if where[DIMENSION.name] == dims[0] and len(dims) > 1:
            other = where | {DIMENSION.name: dims[-1]}
            small[name] = equivalence(paired(results, where, other))
    found = {
        "A fixed simplex classifier is equivalent to a learnt one": fixed,
        f"d = {dims[0]} is equivalent to d = {dims[-1]}": small,
    }
    return {claim: each for claim, each in found.items() if each}


def verdicts(results: Results) -> list[str]:
    """Return a line for each claim."""
    from experiments.report.tables import standing_key

    def in_the_end(
        key: str, judge: Callable[[Course | None], bool | None]
    ) -> dict[str, list[bool | None]]:
        return {
            name: [judge(course(run, key)) for run in results.runs_of(**where)]
            for name, where in settings_of(results)
        }

    lines = [
        verdict(
            f"Past zero error {claim}",
            in_the_end(standing_key(name, "train", COLLAPSE[name]), falls),
            f"in every seed {name} is lower at the last epoch than where the terminal phase "
            "begins, or zero at both",
        )
        for name, claim in CLAIMS.items()
    ]
    lines.append(
        verdict(
            "Past zero error test accuracy does not suffer",
            in_the_end(standing_key("accuracy", "test", "head"), keeps),
            f"in every seed it falls by at most {TOLERANCE:g} in the terminal phase",
        )
    )
    criterion = f"the 90 % interval of the paired difference lies within ±{MARGIN:g}"
    for claim, each in compared(results).items():
        found = {name: one for name, one in each.items() if one is not None}
        decided = {n: one.holds for n, one in found.items() if one.holds or one.is_refuted}
        left = [name for name in found if name not in decided]
        if decided or not left:
            lines.append(verdict(claim, decided, criterion))
        if left:
            lines.append(
                f"{claim}: open for {', '.join(left)}, where the interval reaches across "
                f"±{MARGIN:g} with so few seeds"
            )
    return lines


# --- tables and figure


def parameters(record: Record) -> int:
    """Return how many parameters of a run's network are trained, those of the loss included."""
    from dataclasses import fields

    from experiments.runs.methods import untrained
    from experiments.runs.prepare import Sizes
    from experiments.runs.specs import from_dict

    sizes = Sizes(**{field.name: record.data[field.name] for field in fields(Sizes)})
    network = untrained(from_dict(record.spec), sizes)
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def collapse_table(results: Results) -> Table:
    """Return accuracy, parameters and NC1 to NC4 of every setting."""
    from experiments.report.tables import standing_key

    rows = []
    found_runs = [(where, results.runs_of(**where)) for _, where in settings_of(results)]
    held = [(where, runs, parameters(runs[0].record)) for where, runs in found_runs if runs]
    most = max((count for *_, count in held), default=0)
    for where, runs, count in held:
        began = [run.evaluation.terminal_epoch for run in runs if run.evaluation]
        begun = [epoch for epoch in began if epoch is not None]
        keys = [standing_key("accuracy", "test", "head")]
        keys += [standing_key(measure, "train", by) for measure, by in COLLAPSE.items()]
        courses = [course(run, keys[0]) for run in runs]
        entries = [
            shown(estimate(begun), results.seeds),
            shown(estimate([found.begin for found in courses if found]), results.seeds, 3),
        ]
        for key in keys:
            values = [run.record.history[-1]["measures"].get(key) for run in runs]
            found = estimate([value for value in values if value is not None])
            entries.append(shown(found, results.seeds, 3 if key == keys[0] else None))
        method, decay, ratio = results.named(where)
        setting = (method, str(where[DIMENSION.name]), decay, ratio)
        rows.append((*setting, str(count), str(most - count), *entries))
    title = (
        "Past zero error: where the terminal phase begins, test accuracy there and at the last "
        f"epoch, and collapse of the training samples at the last ({results.interval})"
    )
    header = ("method", "d", "decay", "ratio", "parameters", "saved", "begins", "accuracy there")
    return Table(title, (*header, "accuracy", *COLLAPSE), tuple(rows), left=4)


def equivalence_table(results: Results) -> Table | None:
    """Return the paired differences that equivalence is decided by."""
    rows: list[tuple[str, ...]] = []
    for claim, each in compared(results).items():
        rows.append((claim, *[""] * 4))
        for name, found in each.items():
            if found is not None:
                half, low, high = found.half_width, found.mean, found.mean
                interval = f"[{low - half:+.4f}, {high + half:+.4f}]"
                held = "yes" if found.holds else "no" if found.is_refuted else "open"
                rows.append((name, str(found.pairs), f"{found.mean:+.4f}", interval, held))
    title = f"Paired differences in test accuracy at the last epoch, for a margin of ±{MARGIN:g}"
    header = ("setting, less what it is compared with", "pairs", "difference", "90 % interval")
    return Table(title, (*header, "equivalent"), tuple(rows), left=1) if rows else None


def terminal(results: Results) -> Any:
    """Draw NC1 to NC4 of the training samples and test accuracy over epochs, a row a setting."""
    from experiments.report import canvas
    from experiments.report.figures import curve, draw_curve, legend

    rows = [(dim, decay) for dim in results.values() for decay in results.values(DECAY)]
    columns = {name: ("train", by) for name, by in COLLAPSE.items()}
    columns["accuracy"] = ("test", "head")
    figure, axes = canvas.panels(len(rows), len(columns), 2.7, 2.1, sharex=True, sharey="col")
    for panels, (dim, decay) in zip(axes, rows, strict=True):
        for panel, (measure, (split, by)) in zip(panels, columns.items(), strict=True):
            for method in results.names:
                where = {DIMENSION.name: dim, DECAY.name: decay, "ratio": results.values(RATIO)[0]}
                points = curve(results.runs_of(method, **where), measure, split, by)
                draw_curve(panel, points, results.colours[method])
        panels[0].set_ylabel(f"d = {dim}\ndecay {decay:g}")
    for place, measure in enumerate(columns):
        if measure == "nc4":  # which is zero in the end
            axes[0, place].set_ylim(bottom=0)
        elif measure != "accuracy":
            canvas.log_y(*axes[:, place])
        else:
            top = max(
                (v for p in axes[:, place] for ln in p.lines for v in ln.get_ydata()), default=1
            )
            axes[0, place].set_ylim(max(top - 0.15, 0), min(top + 0.02, 1))
        split = columns[measure][0]
        axes[0, place].set_title(f"{measure}, {split}", fontsize=11)
    figure.supxlabel("epoch", fontsize=10)
    legend(figure, {name: results.colours[m] for m, name in results.names.items()})
    return figure


@dataclass(frozen=True)
class Terminal(ClaimStudy):
    """Train long past zero error: collapse by loss, feature dimension and weight decay."""

    methods: tuple[str, ...] = ("ce", "mse", "ls", "fixed_etf")
    """Names of methods that have a linear classifier of their own."""
    dims: tuple[int, ...] | None = None
    """Feature dimensions; by default the number of classes, and the recipe's."""
    decays: tuple[float, ...] = (0.0, 5e-4)
    """Weight decays."""
    epochs: int | None = 120
    """Epochs of every run."""

    name: ClassVar[str] = "terminal"
    tables = (collapse_table, equivalence_table)
    figures = (terminal,)
    claims = (verdicts,)
    large = True
    fixed = ("evaluate_every=5",)

    def study_axes(self) -> tuple[Axis, ...]:
        """Return feature dimension, weight decay and ratio."""
        return (DIMENSION, DECAY, RATIO)

    @cached_property
    def dimensions(self) -> list[int]:
        """The feature dimensions, rising."""
        from experiments.runs.prepare import load

        if self.dims is not None:
            return sorted(set(self.dims))
        spec = self.grid(self.methods)[0]
        return sorted({load(spec, self.data_root).num_classes, spec.feature_dim})

    def specs(self) -> list[RunSpec]:
        """Return the specs, seed by seed."""
        check_heads(self.methods)
        return [
            replace(
                spec,
                feature_dim=dim,
                n_components=min(spec.n_components, max(dim - 1, 1)),  # of two classes, 1
                training=replace(spec.training, weight_decay=decay),
            )
            for spec in self.grid(self.methods)
            for dim in self.dimensions
            for decay in sorted(set(self.decays))
        ]
