"""Ablations: one method, some of its settings varied, read by the same evaluator as the table.

    mcr2 ablate --method mcr2 --vary eps_sq=0.1,0.5,1,2 --ratios 0.3 --seeds 0 1 2
    mcr2 ablate --preset components

From Python:

    from experiments.studies.ablations import ablate

    for row in ablate("mcr2", ["eps_sq=0.1,0.5,1,2"], ratios=[0.3], seeds=[0, 1, 2]):
        print(row["eps_sq"], row["seed"], row["selection"], row["test_accuracy"])

An ablation's folder is that of a study: ``study.json``, ``runs/``, tables, and a figure for each
varied field. The same command continues it, and more values, ratios or seeds extend it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments import report
from experiments.runs.methods import Method, find_method, readout_for
from experiments.runs.recipes import QUICK
from experiments.runs.runner import Cell, Machine, Outcome, extra_readouts, finished, load, plan
from experiments.runs.specs import Recipe, RunSpec, field_value, vary
from experiments.studies.label_noise import (
    cells_of,
    claim,
    conduct,
    failures,
    grid,
    not_terminal,
    runs_of,
)
from mcr2.readouts import WITH_COMPONENTS

#: What is never varied: options of their own span the grid by them, or name the one data set.
FIXED = ("ratio", "seed", "dataset", "image_size")

#: Varied by reading: every record holds the readings at several numbers of components, and
#: training does not depend on it.
COMPONENTS = "n_components"


#: What axes are called.
AXES = {
    "eps_sq": "squared distortion ε²",
    "gamma1": "γ₁",
    "gamma2": "γ₂",
    "batch_size": "batch size asked for (samples)",
    "feature_dim": "feature dimension d",
    COMPONENTS: "components of a class in the readout",
    "lr": "peak learning rate",
}


@dataclass(frozen=True)
class Preset:
    """A ready-made ablation: what it asks, which fields it varies, and what that needs."""

    about: str
    vary: tuple[str, ...]
    settings: tuple[str, ...] = ()


#: Ready-made ablations by name.
ABLATIONS: dict[str, Preset] = {
    "eps_sq": Preset("the distortion ε²", ("eps_sq=0.1,0.25,0.5,1,2",)),
    "gamma": Preset(
        "γ₁ in the total rate against γ₂ before it", ("gamma1=0.5,1,2", "gamma2=1,2,4")
    ),
    "batch_size": Preset(
        "samples a step: rates see a batch, not the data set", ("batch_size=128,256,512,1024,1437",)
    ),
    "feature_dim": Preset("dimensions of the features", ("feature_dim=16,32,64,128",)),
    "components": Preset(
        "dimensions of a class's subspace in the readout; trains nothing anew",
        (f"{COMPONENTS}=1,2,3,5,10",),
    ),
    # Without a projection the features are the pooled ones, 8 times the width.
    "projection": Preset(
        "the two layers before the features", ("projection=mlp,none",), ("feature_dim=128",)
    ),
    "width": Preset("channels", ("backbone=resnet10_w8,resnet10_w16,resnet10_w32",)),
}


def find_preset(name: str) -> Preset:
    """Return a ready-made ablation by its name.

    Raises:
        ValueError: no such ablation; the message lists those there are.
    """
    if name not in ABLATIONS:
        raise ValueError(f"unknown preset {name!r}; choose from {', '.join(ABLATIONS)}")
    return ABLATIONS[name]


@dataclass(frozen=True)
class Ablation:
    """A planned ablation: everything checked, nothing run.

    Attributes:
        method, dataset, recipe: what it is an ablation of.
        varied: the values of every varied field, in the order given.
        cells: its runs; the number of components does not multiply them.
        machine: device and threads of each.
        out: its folder.
    """

    method: str
    dataset: str
    recipe: str
    varied: Mapping[str, tuple[Any, ...]]
    cells: tuple[Cell, ...]
    machine: Machine
    out: Path

    def run(self, jobs: int = 1) -> list[dict[str, Any]]:
        """Run what is not finished, ``jobs`` at a time; print, write and return the rows."""
        axes = (*(report.Axis(name, AXES.get(name, name)) for name in self.varied), report.RATIO)
        results = conduct(
            self.cells,
            self.out,
            results=lambda outcomes: report.Results(
                self.dataset,
                axes,
                [row for outcome in outcomes for row in self.rows(outcome)],
                runs_of(outcomes),
            ),
            tables=["settings"],
            figures=["settings"],
            notes=lambda outcomes, _: [
                *failures(outcomes, self.detail),
                *_terminal(outcomes),
            ],
            facts={
                "method": self.method,
                "dataset": self.dataset,
                "recipe": self.recipe,
                "varied": {name: list(values) for name, values in self.varied.items()},
            },
            jobs=jobs,
            machine=self.machine,
            detail=self.detail,
        )
        return [dict(row) for row in results.rows]

    def rows(self, outcome: Outcome) -> list[dict[str, Any]]:
        """Return a run's rows: those of a study, with the varied fields behind the method."""
        settings = self._settings(outcome.cell.spec)
        rows = []
        for count in self.varied.get(COMPONENTS, (None,)):
            readout = None
            if count is not None:
                settings[COMPONENTS] = count
                if outcome.record is not None:
                    readout = f"{outcome.record.readout.partition('@')[0]}@{count}"
            for row in cells_of(outcome, readout):
                method = row.pop("method")
                # A varied field keeps its name where a row has one of it: what was asked for.
                rows.append({"method": method, **(settings | (row | settings))})
        return rows

    def detail(self, spec: RunSpec) -> str:
        """Return what tells a run from the others of its ratio and seed."""
        return "".join(f", {name}={value}" for name, value in self._settings(spec).items())

    def _settings(self, spec: RunSpec) -> dict[str, Any]:
        return {name: field_value(spec, name) for name in self.varied if name != COMPONENTS}


def plan_ablation(
    method: str,
    varied: Sequence[str],
    *,
    recipe: Recipe = QUICK,
    ratios: Sequence[float] = (0.3,),
    seeds: Sequence[int] = (0,),
    fields: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
    machine: Machine | None = None,
    out: Path | None = None,
) -> Ablation:
    """Check an ablation and give its runs their folders; run nothing.

    Args:
        method: name of the method.
        varied: ``FIELD=V1,V2,...``, any field of a run, its training or its objective; the runs
            are the product of them all. The parts of a tuple are joined by ``+``.
        recipe: fills in everything else.
        ratios: shares of labels to redraw.
        seeds: runs of each.
        fields: fields of the spec that replace the recipe's, for example the data set.
        settings: ``FIELD=VALUE`` for all runs.
        machine: device and threads of each run.
        out: folder of the ablation; by default one in ``results`` named after it.

    Raises:
        ValueError, TypeError: what cannot be meant or run, in one line.
    """
    machine = machine or Machine()
    found = find_method(method)
    specs = grid(recipe, [method], ratios, seeds, fields=fields, settings=settings)
    texts = _parse(varied, settings)
    values = {name: _values(specs[0], name, given, found) for name, given in texts.items()}
    for name, given in texts.items():
        if name != COMPONENTS:
            specs = [vary(s, name, text, found.options) for s in specs for text in given]
    for spec in specs if COMPONENTS in values else ():
        _check_components(spec, found, values[COMPONENTS])
    base = grid(recipe, [method], ratios[:1], seeds[:1], fields=fields)[0]
    dataset = Path(base.dataset).resolve().name.removesuffix(".npz")
    if out is None:
        short = Path(method).name.replace(":", "-").replace(".py", "")
        out = Path("results") / f"ablate-{short}-{'+'.join(values)}-{recipe.name}-{dataset}"
    cells = plan(specs, out / "runs", machine)
    for cell in cells:
        finished(cell.folder, cell.key)  # a damaged record is a mistake too, found before runs are
    claim(
        out,
        {
            "study": "ablation",
            "method": method,
            "fields": sorted(values),
            "dataset": dataset,
            "recipe": recipe.name,
            "data": load(base, machine.data_root).content_hash()[:12],
        },
    )
    return Ablation(method, dataset, recipe.name, values, tuple(cells), machine, out)


def ablate(
    method: str, varied: Sequence[str], *, jobs: int = 1, **plan: Any
) -> list[dict[str, Any]]:
    """Run an ablation and return its rows, one for each run and selection rule.

    Args:
        method: name of the method.
        varied: ``FIELD=V1,V2,...``, as for :func:`plan_ablation`.
        jobs: runs at a time.
        plan: the further arguments of :func:`plan_ablation`.

    Returns:
        Rows with ``method``, the varied fields, ``selection``, ``ratio``, ``seed``,
        ``test_accuracy`` and the other keys of ``table.json``.
    """
    return plan_ablation(method, varied, **plan).run(jobs)


def _terminal(outcomes: Sequence[Outcome]) -> list[str]:
    """Say how many runs reached their terminal phase: a line a run would bury the table."""
    of = sum(o.record is not None and o.record.status == "finished" for o in outcomes)
    reached = of - len(not_terminal(outcomes))
    return [f"{reached} of {of} finished runs reached the terminal phase of training"]


def _parse(varied: Sequence[str], settings: Sequence[str]) -> dict[str, list[str]]:
    """Split every ``FIELD=V1,V2,...``."""
    if not varied:
        raise ValueError("nothing is varied; give FIELD=V1,V2,... or a preset")
    parsed: dict[str, list[str]] = {}
    for text in varied:
        name, equals, values = text.partition("=")
        if not equals:
            raise ValueError(f"--vary {text!r} is not of the form FIELD=V1,V2,...")
        if name in FIXED:
            raise ValueError(f"--vary {text}: {name} has an option of its own")
        if name in parsed:
            raise ValueError(f"{name} is varied twice; give its values together")
        if name in {setting.partition("=")[0].rpartition(".")[2] for setting in settings}:
            raise ValueError(f"{name} is set and varied; do one of them")
        parsed[name] = values.split(",")
    return parsed


def _values(spec: RunSpec, name: str, texts: Sequence[str], method: Method) -> tuple[Any, ...]:
    """Read the values of a field; any field of a spec is one of an objective's options, too."""
    values = tuple(field_value(vary(spec, name, t, method.options), name) for t in texts)
    if len(set(values)) < len(values):
        raise ValueError(f"{name} has repetitions: {','.join(texts)}")
    return values


def _check_components(spec: RunSpec, method: Method, counts: Sequence[int]) -> None:
    """Check that the record of a spec will hold the readings at these numbers."""
    readout = readout_for(spec, method).partition("@")[0]
    if readout not in WITH_COMPONENTS:
        raise ValueError(
            f"{COMPONENTS} varies subspace readouts, and {spec.method} is read by {readout}; "
            "--set readout=nearest_subspace changes that"
        )
    recorded = [name for name in extra_readouts(spec) if name.startswith(f"{readout}@")]
    for count in counts:
        replace(spec, n_components=count)  # raises where the features have too few dimensions
        if f"{readout}@{count}" not in recorded:
            known = ", ".join(name.partition("@")[2] for name in recorded)
            raise ValueError(
                f"{COMPONENTS}={count} is not among the readings of a record, {known}; "
                f"--set {COMPONENTS}={count} adds it"
            )
