"""The label-noise study: methods x ratios x seeds, read by one evaluator, beside the paper's.

    mcr2 table --out results/quick

A study's folder holds ``study.json`` (what it is a study of), ``runs/`` (a folder a cell) and
the tables and figures. The same command continues it, and a larger grid extends it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from experiments import report
from experiments.report.live import StudyView
from experiments.runs.methods import METHODS, find_method, rules_for
from experiments.runs.runner import Cell, Machine, Outcome, run_cells
from experiments.runs.specs import Recipe, RunSpec, vary
from mcr2.evaluation import measure_key
from mcr2.records import Record, Run, environment, read_json, write_json
from mcr2.selection import NEED_VALIDATION, SELECTIONS

RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)

#: Test accuracy after Chan et al. (2021), "ReduNet", the table on label corruption: CIFAR-10,
#: ResNet-18, ratios 0 to 0.5. The code behind the cross-entropy row was never published.
PAPER: dict[str, dict[str, dict[float, float]]] = {
    "paper, CIFAR-10, ResNet-18": {
        "ce": dict(zip(RATIOS, (0.939, 0.909, 0.861, 0.791, 0.724, 0.603), strict=True)),
        "mcr2": dict(zip(RATIOS, (0.940, 0.911, 0.897, 0.881, 0.866, 0.843), strict=True)),
    }
}

#: A method more than this under cross-entropy on clean labels is not competent: underfitting
#: can pass for robustness.
COMPETENCE = 0.02

STUDY = "study.json"

#: What all runs of a grid share, or what spans it: set by options of their own, not by ``--set``.
GRID_FIELDS = ("dataset", "subset", "image_size", "noise", "ratio", "seed")


def grid(
    recipe: Recipe,
    methods: Sequence[str],
    ratios: Sequence[float],
    seeds: Sequence[int],
    *,
    fields: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
) -> list[RunSpec]:
    """Return the specs of a study, cheapest order for a reader: seed by seed, ratio by ratio.

    A recipe with an ``early_stopping_share`` makes two of each: one that holds nothing out, for
    every rule but those of early stopping, and one with that share for these. A ``validation``
    among the settings makes it one again, which serves what it can.

    Args:
        recipe: fills in everything but method, ratio and seed.
        methods: names of methods.
        ratios: shares of labels to redraw.
        seeds: runs of each.
        fields: fields of the spec that replace the recipe's.
        settings: ``FIELD=VALUE`` for all methods or ``METHOD.FIELD=VALUE`` for one.

    Raises:
        ValueError: an unknown method or field, a value that a spec refuses, a repetition.

    Example:
        >>> from experiments.runs.recipes import QUICK
        >>> specs = grid(QUICK, ["ce", "mcr2"], [0.0, 0.5], [0], settings=["mcr2.lr=0.02"])
        >>> [(s.method, s.ratio, s.training.lr == 0.02) for s in specs]
        [('ce', 0.0, False), ('mcr2', 0.0, True), ('ce', 0.5, False), ('mcr2', 0.5, True)]
    """
    for name, values in (("methods", methods), ("ratios", ratios), ("seeds", seeds)):
        if not values:
            raise ValueError(f"{name} is empty; give at least one")
        if len(set(values)) < len(values):
            raise ValueError(f"{name} has repetitions: {' '.join(map(str, values))}")
    found = {name: find_method(name) for name in methods}
    parsed = [_setting(text, methods) for text in settings]
    for owner, field, text in parsed:
        if field in GRID_FIELDS:
            raise ValueError(f"--set {field}={text}: {field} has an option of its own")
        # Raises where no method takes the field; where one does not, it is passed over below.
        takers = [found[owner]] if owner else list(found.values())
        vary(recipe.base, field, text, frozenset().union(*(m.options for m in takers)))
    others = {
        name: frozenset().union(*(m.options for m in found.values())) - found[name].options
        for name in methods
    }
    specs = []
    for seed in seeds:
        for ratio in ratios:
            for name, method in found.items():
                spec = recipe.spec(
                    name, additive=method.additive, ratio=ratio, seed=seed, **(fields or {})
                )
                for owner, field, text in parsed:
                    if owner == name or (owner is None and field not in others[name]):
                        spec = vary(spec, field, text, method.options)
                set_here = {field for owner, field, _ in parsed if owner in (None, name)}
                share = recipe.early_stopping_share
                if share is None or set_here & {"validation", "selections"}:
                    specs.append(spec)
                    continue
                rest = tuple(rule for rule in SELECTIONS if rule not in NEED_VALIDATION)
                specs.append(replace(spec, validation=0.0, selections=rest))
                specs.append(replace(spec, validation=share, selections=NEED_VALIDATION))
    return specs


def _setting(text: str, methods: Sequence[str]) -> tuple[str | None, str, str]:
    """Split ``[METHOD.]FIELD=VALUE``; a method's name may itself hold dots."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text!r} is not of the form [METHOD.]FIELD=VALUE")
    for method in methods:
        if name.startswith(f"{method}."):
            return method, name.removeprefix(f"{method}."), value
    owner = name.partition(".")[0]
    if owner in METHODS:
        raise ValueError(f"--set {text}: {owner} is not among the methods {' '.join(methods)}")
    return None, name, value


def claim(out: Path, identity: Mapping[str, Any]) -> None:
    """Make ``out`` the folder of a study, or check that it already is that study's.

    Raises:
        ValueError: the folder holds something else, or a study of something else.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a new or an empty folder")
    marker = out / STUDY
    if marker.exists():
        held = read_json(marker)
        if held != dict(identity):
            raise ValueError(
                f"--out {out} holds the study {held}; this one is {dict(identity)}: "
                "choose another folder"
            )
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"--out {out} holds something else; give a new or an empty folder")
    else:
        write_json(marker, identity)


def cells_of(outcome: Outcome, readout: str | None = None) -> list[dict[str, Any]]:
    """Return a run's rows of ``table.json``, one for each selection rule.

    A run that failed has its rows too, with null measures and the reason. ``labels`` is the
    record's digest of the labels trained on, by which runs are paired; ``measures`` holds, under
    the record's keys, what the tables show of the features and by every readout.

    Args:
        outcome: how the run ended.
        readout: what it is read by, of those that its record was read by; None takes its own,
            which also selected the epochs.
    """
    spec, record = outcome.cell.spec, outcome.record
    by = readout or (record.readout if record is not None else "")
    rows = []
    for rule in rules_for(spec):
        row: dict[str, Any] = {
            "method": spec.method,
            "selection": rule,
            "readout": by or None,
            "ratio": spec.ratio,
            "seed": spec.seed,
            "test_accuracy": None,
            "fit_noisy": None,
            "fit_corrupted": None,
            "recovered": None,
            "selected_epoch": None,
            "validation_accuracy": None,
            "validation_standard_error": None,
            "wrong_labels": None if record is None else record.noise["wrong"],
            "labels": None if record is None else record.proof.get("labels"),
            "epochs": 0 if record is None else record.epochs,
            "steps": 0 if record is None else record.steps,
            "wall_seconds": 0.0 if record is None else record.wall_seconds,
            "status": "failed" if record is None else record.status,
            "reason": outcome.error if record is None else record.reason,
            "run": outcome.cell.folder.name,
            "measures": {},
        }
        if record is not None and rule in record.selections:
            chosen = record.selections[rule]
            accuracy, error = chosen["validation_accuracy"], chosen["standard_error"]
            if by != record.readout and accuracy is not None:
                accuracy = _measure(record, rule, "accuracy", "validation", "noisy", by)
                error = math.sqrt(accuracy * (1 - accuracy) / record.data["validation"])
            row |= {
                "selected_epoch": chosen["epoch"],
                "validation_accuracy": accuracy,
                "validation_standard_error": error,
                "test_accuracy": _measure(record, rule, "accuracy", "test", "clean", by),
                "measures": report.shown_measures(chosen["measures"]),
            }
            for name in ("fit_noisy", "fit_corrupted", "recovered"):
                row[name] = _measure(record, rule, name, "train", "noisy", by)
        rows.append(row)
    return rows


def _measure(record: Record, rule: str, measure: str, split: str, labels: str, readout: str) -> Any:
    key = measure_key(measure, split=split, labels=labels, readout=readout)
    return record.selections[rule]["measures"][key]


def runs_of(outcomes: Sequence[Outcome]) -> list[Run]:
    """Return the runs that left a record."""
    return [Run(o.cell.folder, o.record, o.evaluation) for o in outcomes if o.record is not None]


def _plain(_: RunSpec) -> str:
    return ""


def _name(spec: RunSpec) -> str:
    served = f", for {' and '.join(spec.selections)}" if spec.selections else ""
    return f"{spec.method} at ratio {spec.ratio:g}, seed {spec.seed}{served}"


def not_terminal(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line for each run that did not reach the terminal phase of training.

    The terminal phase begins where ``fit_noisy``, by the method's own readout, stays at 0.99 or
    above for three evaluations running.
    """
    lines = []
    for outcome in outcomes:
        record = outcome.record
        if record is None or record.status != "finished":
            continue
        key = measure_key("fit_noisy", split="train", labels="noisy", readout=record.readout)
        fit = record.history[-1]["measures"][key]
        if record.terminal_epoch is None:
            lines.append(
                f"{_name(outcome.cell.spec)}: terminal phase not reached ("
                f"fit_noisy {fit:.3f} after {record.epochs} epochs)"
            )
    return lines


def not_competent(results: report.Results) -> list[str]:
    """Return a line for each method more than two points under cross-entropy at ratio 0."""
    where = {"selection": "last", "ratio": 0.0}
    reference = results.over_seeds("test_accuracy", method="ce", **where)
    if reference is None:
        return []
    lines = []
    for method in results.names:
        own = results.over_seeds("test_accuracy", method=method, **where)
        if own is not None and own.mean < reference.mean - COMPETENCE:
            lines.append(
                f"{method} is not competent at ratio 0: {own} against {reference} of ce, more "
                f"than {COMPETENCE:g} under it; underfitting can pass for robustness"
            )
    return lines


def separate_runs(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line where early stopping is reported from runs of its own."""
    own = {
        outcome.cell.spec.validation
        for outcome in outcomes
        if outcome.cell.spec.selections == NEED_VALIDATION
    }
    return [
        f"{', '.join(NEED_VALIDATION)} are read from runs of their own, which held out {share:.0%} "
        "of the training samples to choose the epoch by; last and oracle from runs that held out "
        "nothing"
        for share in sorted(own)
    ]


def failures(outcomes: Sequence[Outcome], detail: Callable[[RunSpec], str] = _plain) -> list[str]:
    """Return a line for each run that failed, with the reason."""
    lines = []
    for outcome in outcomes:
        record = outcome.record
        reason = outcome.error if record is None else record.reason
        if record is None or record.status == "failed":
            lines.append(f"{_name(outcome.cell.spec)}{detail(outcome.cell.spec)}: failed, {reason}")
    return lines


def conduct(
    cells: Sequence[Cell],
    out: Path,
    *,
    results: Callable[[Sequence[Outcome]], report.Results],
    tables: Sequence[str],
    figures: Sequence[str],
    notes: Callable[[Sequence[Outcome], report.Results], list[str]],
    facts: Mapping[str, Any],
    jobs: int,
    machine: Machine,
    detail: Callable[[RunSpec], str] = _plain,
    derived: Callable[[report.Results], Mapping[str, Any]] = lambda _: {},
) -> report.Results:
    """Run the cells of any study, show them, and leave its tables and figures in ``out``.

    Args:
        cells: what to run; finished ones are only read.
        out: folder of the study.
        results: what tables and figures are functions of, from how the runs ended.
        tables: names of ``report.TABLES``; the first one is shown meanwhile.
        figures: names of ``report.FIGURES``.
        notes: lines beneath the tables.
        facts: what ``table.json`` says of the whole study.
        jobs: processes at a time.
        machine: device and threads of each.
        detail: what tells runs of one method, ratio and seed apart.
        derived: what ``table.json`` says of the study beside ``facts``, from the results.

    Returns:
        The results, with rows of failed runs too.
    """

    def table(outcomes: Sequence[Outcome]) -> str:
        first = report.TABLES[tables[0]](results(outcomes))
        return "" if first is None else first.text(report.WIDTH)

    start = time.perf_counter()
    with StudyView(len(cells), table, lambda cell: _name(cell.spec) + detail(cell.spec)) as view:
        outcomes = run_cells(cells, jobs=jobs, machine=machine, watch=view.show)
    found = results(outcomes)
    made = [report.TABLES[name](found) for name in tables]
    shown = [one for one in made if one is not None]
    lines = notes(outcomes, found)
    used = {**environment(), "device": str(machine.torch_device()), **asdict(machine)}
    told = {**facts, "environment": used, **derived(found)}
    report.write_tables(out, found, shown, told, lines)
    report.write_figures(out, found, figures)
    print("\n" + "\n\n".join(part.text(report.WIDTH) for part in shown))
    if lines:
        print("\n" + "\n".join(lines))
    spent = time.perf_counter() - start
    print(f"\n{len(cells)} runs in {out} ({spent:.0f} s): table.json, table.csv, table.md, figures")
    return found


def run_study(
    cells: Sequence[Cell],
    out: Path,
    *,
    dataset: str,
    recipe: Recipe,
    jobs: int,
    machine: Machine,
) -> int:
    """Run the cells of a study, print its tables and write them and the figures into ``out``.

    Returns:
        0, or 1 where a run failed.
    """
    results = conduct(
        cells,
        out,
        results=lambda outcomes: report.Results(
            dataset,
            (report.RATIO,),
            [row for outcome in outcomes for row in cells_of(outcome)],
            runs_of(outcomes),
            PAPER,
        ),
        tables=[name for name in report.TABLES if name != "settings"],
        figures=[name for name in report.FIGURES if name != "settings"],
        notes=lambda outcomes, results: [
            *separate_runs(outcomes),
            *failures(outcomes),
            *not_terminal(outcomes),
            *not_competent(results),
        ],
        facts={"dataset": dataset, "recipe": recipe.name},
        jobs=jobs,
        machine=machine,
        derived=lambda results: {"differences": [asdict(d) for d in report.differences(results)]},
    )
    return 1 if any(row["status"] == "failed" for row in results.rows) else 0
