"""Which score finds wrong labels, in which features, under which noise.

    mcr2 study audits
    mcr2 study audits --datasets digits fashion_mnist --noises symmetric@0.1 symmetric@0.4 \\
        --features pixels ce ce@noisy_validation mcr2 --seeds 0 1 2

Labels of a data set are corrupted, and audited by every score on every kind of features: pixels
with nothing trained, and the features of networks that were trained on the corrupted labels, by the
recipe ``quick`` for digits and ``cpu`` for other data. Cleanlab's scores stand beside ours where it
is installed. By default eight audits and four runs, two minutes on two cores.

Expect scores of pixels to differ where classes overlap, features of a network that has fitted its
wrong labels to hide them, and features of an earlier epoch to show them.

Left behind are ``runs/`` (a folder a run, never run twice), ``audits/`` (a file an audit, written
as they come and never made twice), and ``audits.json``, ``audits.csv``, ``audits.md`` and
``audits.png`` of them all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from experiments.report.statistics import matching, mean_of
from experiments.report.table import WIDTH, Table, escape_markdown
from experiments.runs.options import ExecutorOptions
from experiments.runs.terminal import say
from experiments.studies.engine import Study, claim_folder, dataset_name, failures, run_cells

if TYPE_CHECKING:
    from experiments.runs.executors import Executor, Outcome
    from experiments.runs.machine import Machine
    from experiments.runs.runner import PlannedRun
    from experiments.runs.specs import RunSpec
    from experiments.runs.subjects import Subject

Row = dict[str, Any]

#: Recipes by data set; of others ``cpu``.
RECIPE_OF = {"digits": "quick"}

#: What is told of scores, by key of a row.
MEASURES = {
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "precision_at_count": "Precision at the true count",
}
ESTIMATES = {
    "estimated": "Estimated share of wrong labels",
    "transition_error": "Estimated transition, off by",
}

#: Raised where an audit of the same name is made otherwise than before.
AUDIT_FORMAT = 1


class Unit(NamedTuple):
    """One audit: of the labels of a run, on pixels or on the run's features at a rule's epoch."""

    planned: PlannedRun
    features: str
    path: Path

    @property
    def names(self) -> Row:
        """What tells its rows from others'."""
        spec = self.planned.spec
        noise = f"{dataset_name(spec.noise) if '/' in spec.noise else spec.noise}@{spec.ratio:g}"
        names = {"dataset": dataset_name(spec.dataset), "noise": noise}
        return {**names, "features": self.features, "seed": spec.seed}


@dataclass(frozen=True)
class Audits(ExecutorOptions, Study):
    """Compare how well scores find wrong labels, over data, noise, features and seeds."""

    datasets: tuple[str, ...] = ("digits",)
    """Names (see `mcr2 datasets`), .npz files or image folders, whose labels are the true ones."""
    noises: tuple[str, ...] = ("symmetric@0.1", "symmetric@0.4")
    """Kinds of noise with their ratio, KIND@RATIO; without one the ratio is 1."""
    features: tuple[str, ...] = ("pixels", "ce", "ce@noisy_validation", "mcr2")
    """pixels, or a method and the rule whose epoch it is, METHOD[@RULE], last by default."""
    seeds: tuple[int, ...] = (0,)
    """One draw of the noise and one training a seed."""
    epochs: int | None = None
    """Epochs of every training, instead of the recipe's."""
    set: tuple[str, ...] = ()
    """[METHOD.]FIELD=VALUE: any field of a run, its training or its objective."""
    out: Path | None = None
    """Folder of the study; results/audits by default."""
    data_root: str | None = None
    """Where data sets are looked for first."""

    name: ClassVar[str] = "audits"

    def prepare(self) -> Callable[[], int]:
        """Check everything, plan the runs and claim the folder."""
        from experiments.runs.executors import make_executor
        from experiments.runs.machine import Machine

        here = self.executor == "local"
        machine = Machine(self.device, self.threads, self.data_root, here=here)
        out = self.out or Path("results") / self.name
        executor = make_executor(self, machine, out)
        units = self.units(out, machine)
        claim_folder(out, {"study": self.name}, {})
        return lambda: self._run(units, out, machine, executor)

    def units(self, out: Path, machine: Machine) -> list[Unit]:
        """Return all audits, pixels first; nothing is run."""
        from experiments.runs.prepare import load_other, noise_content
        from experiments.runs.runner import plan
        from mcr2 import checks
        from mcr2.audit.with_cleanlab import installed
        from mcr2.records import content_key
        from mcr2.selection import SELECTIONS

        for name in ("datasets", "noises", "features", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} is {' '.join(map(str, values))!r}; give each once")
        kinds = {text: _method_and_rule(text) for text in self.features}
        for _, rule in kinds.values():
            checks.choice("selection", rule, SELECTIONS)
        # Pixels are of the labels that any method is given.
        methods = tuple(dict.fromkeys(m for m, _ in kinds.values() if m != "pixels")) or ("ce",)
        planned = plan(self._specs(methods), out / "runs", machine, ("dataset", "noise", "ratio"))
        units = []
        for text, (method, _) in sorted(kinds.items(), key=lambda kind: kind[1][0] != "pixels"):
            for one in planned:
                spec = one.spec
                if spec.method != (methods[0] if method == "pixels" else method):
                    continue
                noise = noise_content(spec, load_other(spec, self.data_root))
                drawn = [one.data, noise, spec.ratio, spec.streams.seeds(spec.seed)["noise"]]
                made_of = drawn if method == "pixels" else [one.key]
                key = content_key(AUDIT_FORMAT, installed(), text, made_of)
                unit = Unit(one, text, out)
                name = re.sub(r"[^\w.+@-]", "_", "-".join(map(str, unit.names.values())))
                units.append(unit._replace(path=out / "audits" / f"{name[:100]}-{key[:10]}.json"))
        return units

    def _specs(self, methods: Sequence[str]) -> list[RunSpec]:
        from experiments.runs.grid import grid
        from experiments.runs.recipes import find_recipe

        settings = [f"epochs={self.epochs}"] * (self.epochs is not None) + list(self.set)
        specs = []
        for dataset in self.datasets:
            recipe = find_recipe(RECIPE_OF.get(dataset, "cpu"))
            for noise, ratio in map(_kind_and_ratio, self.noises):
                fields = {"dataset": dataset, "noise": noise}
                how: dict[str, Any] = {"fields": fields, "settings": settings}
                specs += grid(recipe, methods, [ratio], sorted(self.seeds), **how)
        return specs

    def _run(self, units: Sequence[Unit], out: Path, machine: Machine, executor: Executor) -> int:
        """Make the audits that are missing, then show and write everything."""
        device = machine.configure_torch()
        missing = [unit for unit in units if held(unit) is None]
        pixels = [unit for unit in missing if unit.features == "pixels"]
        networks = [unit for unit in missing if unit.features != "pixels"]
        for unit in pixels:
            audit_unit(unit, self._subject(unit))
        outcomes = self._train(list(dict.fromkeys(u.planned for u in networks)), out, executor)
        failed = {one.planned for one in outcomes if one.failure is not None}
        for unit in networks:
            if unit.planned not in failed:
                audit_unit(unit, self._subject(unit))
        rows = [row for unit in units for row in held(unit) or ()]
        shown = tables(rows, {"auroc": MEASURES["auroc"]})
        print("\n" + "\n\n".join(table.text(WIDTH) for table in shown))
        notes = failures(outcomes, _describe)
        for note in notes:
            say(note)
        write(out, rows, [*tables(rows, MEASURES), *tables(rows, ESTIMATES)], notes, str(device))
        say(f"{len(units)} audits in {out}: audits.json, audits.csv, audits.md, audits.png")
        return int(bool(failed))

    def _subject(self, unit: Unit) -> Subject:
        """Return the samples of an audit."""
        from experiments.runs.prepare import prepared
        from experiments.runs.runner import reopen
        from experiments.runs.subjects import of_labels, of_run

        spec = unit.planned.spec
        if unit.features == "pixels":
            return of_labels(prepared(spec, self.data_root))
        opened = reopen(
            unit.planned.folder,
            device=self.device,
            threads=self.threads,
            data_root=self.data_root,
            code=[name for name in (spec.method, spec.backbone) if ":" in name],
        )
        return of_run(opened, _method_and_rule(unit.features)[1], along=True)

    def _train(self, planned: list[PlannedRun], out: Path, executor: Executor) -> list[Outcome]:
        if not planned:
            return []
        return run_cells(planned, out, executor, lambda _: "", _describe)


def _describe(spec: RunSpec) -> str:
    names = (spec.method, dataset_name(spec.dataset), f"{spec.noise}@{spec.ratio:g}")
    return f"{', '.join(names)}, seed {spec.seed}"


def _kind_and_ratio(text: str) -> tuple[str, float]:
    """Split ``KIND[@RATIO]``; a path in a kind may hold an @ of its own.

    Example:
        >>> _kind_and_ratio("symmetric@0.1"), _kind_and_ratio("given:a@b/labels.npz#worse")
        (('symmetric', 0.1), ('given:a@b/labels.npz#worse', 1.0))
    """
    kind, at, ratio = text.rpartition("@")
    try:
        return (kind, float(ratio)) if at else (text, 1.0)
    except ValueError:
        return text, 1.0


def _method_and_rule(text: str) -> tuple[str, str]:
    """Split ``METHOD[@RULE]``."""
    method, _, rule = text.partition("@")
    if method == "pixels" and rule:
        raise ValueError(f"features {text!r}: pixels are of no epoch")
    return method, rule or "last"


def held(unit: Unit) -> list[Row] | None:
    """Return the rows of an audit that was made; a damaged file is set aside."""
    from experiments.runs.runner import read_or_set_aside

    found = read_or_set_aside(unit.path)
    return None if found is None else list(found["rows"])


def audit_unit(unit: Unit, subject: Subject) -> None:
    """Audit samples by every score, compare with the truth, and write the rows."""
    import time

    from mcr2.audit import audit_all, estimates, make_given, quality, transition_error
    from mcr2.audit.unknown import realised
    from mcr2.records import environment, write_signed

    begin = time.perf_counter()
    true, y, K = subject.true, subject.labels.cpu(), subject.num_classes
    if true is None:
        raise ValueError(f"{unit.names}: no label is wrong, or nobody knows which; name some noise")
    given = make_given(subject.features, y, K, subject.head, subject.epochs)
    found, truth = audit_all(given), realised(y, true, K)
    shared = {**unit.names, "samples": len(y), "wrong": truth.wrong / len(y)}

    def told(estimate: Any) -> Row:
        off = transition_error(estimate.transition, truth.transition)
        return {"estimated": estimate.wrong / len(y), "transition_error": off}

    rows = []
    for name, one in found.items():
        good = asdict(quality(one.scores, y, true))
        measures = {key: good[key] for key in MEASURES}
        rows.append({**shared, "score": name, **measures, **told(one.estimate())})
    confident = estimates(given, found["coding_length"])[1]
    rows.append({**shared, "score": confident.method, **dict.fromkeys(MEASURES), **told(confident)})
    seconds = time.perf_counter() - begin
    write_signed(unit.path, {"rows": rows, "seconds": seconds, "environment": environment()})
    told_of = ", ".join(map(str, unit.names.values()))
    say(f"{told_of}: AUROC {rows[0]['auroc']:.3f} by {rows[0]['score']} ({seconds:.1f} s)")


def tables(rows: Sequence[Row], measures: dict[str, str]) -> list[Table]:
    """Return a table a measure, data set and kind of features: scores by noise."""
    made = []
    for measure, title in measures.items():
        for dataset, features in dict.fromkeys((r["dataset"], r["features"]) for r in rows):
            where = {"dataset": dataset, "features": features}
            own = matching(rows, **where)
            noises = list(dict.fromkeys(row["noise"] for row in own))
            lines = []
            for score in dict.fromkeys(row["score"] for row in own):
                cells = [mean_of(own, measure, noise=n, score=score) for n in noises]
                if any(cells):
                    lines.append((score, *("-" if c is None else str(c) for c in cells)))
            if measure == "estimated":
                truth = [mean_of(own, "wrong", noise=n, score=own[0]["score"]) for n in noises]
                lines.append(("truth", *map(str, truth)))
            seeds = len({row["seed"] for row in own})
            over = f"{seeds} seeds" if seeds > 1 else "one seed: no interval"
            heading = f"{title}, {dataset}, features {features} ({over})"
            made.append(Table(heading, ("score", *noises), tuple(lines), left=1))
    return made


def write(
    out: Path, rows: Sequence[Row], made: Sequence[Table], notes: Sequence[str], device: str
) -> None:
    """Write rows, tables and the figure into a folder."""
    from experiments.report.tables import csv_of
    from mcr2.records import environment, write_json, write_text

    where = {**environment(), "device": device}
    write_json(out / "audits.json", {"rows": rows, "notes": notes, "environment": where})
    write_text(out / "audits.csv", csv_of(rows))
    parts = [table.markdown() for table in made] + list(map(escape_markdown, notes))
    write_text(out / "audits.md", "\n\n".join(parts) + "\n")
    if rows:
        draw(out / "audits.png", rows)


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Draw the AUROC of every score by noise, a panel a data set and kind of features."""
    from experiments.report import canvas

    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    kinds = list(dict.fromkeys(row["features"] for row in rows))
    scores = list(dict.fromkeys(row["score"] for row in rows if row["auroc"] is not None))
    noises = list(dict.fromkeys(row["noise"] for row in rows))
    size = (len(datasets), len(kinds))
    figure, axes = canvas.panels(*size, 1.6 + 0.7 * len(noises), 3.2, sharey="row")
    for (i, dataset), (j, kind) in (
        (one, two) for one in enumerate(datasets) for two in enumerate(kinds)
    ):
        panel = axes[i, j]
        for n, score in enumerate(scores):
            names = {"dataset": dataset, "features": kind, "score": score}
            found = [mean_of(rows, "auroc", noise=noise, **names) for noise in noises]
            drawn = [(x, e) for x, e in enumerate(found) if e is not None]
            shift = 0.07 * (n - (len(scores) - 1) / 2)
            panel.errorbar(
                [x + shift for x, _ in drawn],
                [e.mean for _, e in drawn],
                [e.half_width or 0 for _, e in drawn],
                fmt="osD^vP*Xd<>"[n % 11],
                color=canvas.COLOURS[n % len(canvas.COLOURS)],
                markersize=5,
                linewidth=1,
                label=canvas.label(score),
            )
        panel.set_xticks(range(len(noises)), [canvas.label(n, 18) for n in noises], rotation=20)
        panel.set_xlim(-0.5, len(noises) - 0.5)
        panel.set_title(canvas.label(f"{dataset}, {kind}", 40), fontsize=10)
    means = [row["auroc"] for row in rows if row["auroc"] is not None]
    for panel in axes[:, 0]:
        panel.set_ylabel("AUROC of wrong labels")
    for panel in axes.flat:
        canvas.limits(panel, min(0.9, *means), 1)
    axes[0, -1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    canvas.save(figure, path)
