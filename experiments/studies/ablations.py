"""Ablations: one method, some of its settings varied, evaluated as in the table.

    mcr2 ablate --method mcr2 --vary eps_sq=0.1,0.5,1,2 --ratios 0.3 --seeds 0 1 2
    mcr2 ablate --preset components

From Python, ``ablate("mcr2", ["eps_sq=0.1,0.5,1,2"], seeds=(0, 1, 2))`` returns the table's rows.

Cost: a run of the recipe ``quick`` takes half a minute on one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import tyro

from experiments.report.axis import RATIO, Axis
from experiments.studies.engine import GridStudy

if TYPE_CHECKING:
    from experiments.report.results import Results
    from experiments.runs.executors import Outcome
    from experiments.runs.methods import Method
    from experiments.runs.specs import RunSpec

#: What is never varied: options of their own span the grid by them, or name the one data set.
FIXED = ("ratio", "seed", "dataset", "image_size")

#: Varied in the evaluation only: every record is evaluated at several numbers of components, and
#: training does not depend on it.
COMPONENTS = "n_components"

#: What axes are called.
TITLES = {
    "eps_sq": "squared distortion ε²",
    "gamma1": "γ₁",
    "gamma2": "γ₂",
    "batch_size": "batch size asked for (samples)",
    "feature_dim": "feature dimension d",
    COMPONENTS: "components of a class in the readout",
    "lr": "peak learning rate",
}


class Preset(NamedTuple):
    """A ready-made ablation: which fields it varies, and what that needs."""

    vary: tuple[str, ...]
    settings: tuple[str, ...] = ()


#: Ready-made ablations by name.
ABLATIONS: dict[str, Preset] = {
    "eps_sq": Preset(("eps_sq=0.1,0.25,0.5,1,2",)),
    # In the total rate, and before it.
    "gamma": Preset(("gamma1=0.5,1,2", "gamma2=1,2,4")),
    # Rates see a batch, not the data set.
    "batch_size": Preset(("batch_size=128,256,512,1024,1437",)),
    "feature_dim": Preset(("feature_dim=16,32,64,128",)),
    # Of a class's subspace in the readout: trains nothing anew.
    "components": Preset((f"{COMPONENTS}=1,2,3,5,10",)),
    # Without a projection the features are the pooled ones, 4 times the width.
    "projection": Preset(("projection=mlp,none",), ("backbone=resnet8_w16", "feature_dim=64")),
    "width": Preset(("backbone=resnet8_w8,resnet8_w16,resnet8_w32",)),
}


@dataclass(frozen=True)
class Ablation(GridStudy):
    """Vary settings of one method, and print and plot what each does.

    The same command continues an interrupted ablation, and more values, ratios or seeds extend it.
    """

    vary: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """FIELD=V1,V2,...: any field of a run, its training or its objective; all combinations."""
    preset: str | None = None
    """Ready-made: eps_sq, gamma, batch_size, feature_dim, components, projection or width."""
    method: str = "mcr2"
    """ce, ls, mse, fixed_etf, mcr2, vmcr2, tcr, ole, redunet, or path/to/file.py:Class,
    package.module:Class."""
    ratios: tuple[float, ...] = (0.3,)
    """Shares of the training labels to redraw."""

    name: ClassVar[str] = "ablation"
    tables = ("settings",)
    figures = ("settings",)
    large = True

    def study_axes(self) -> tuple[Axis, ...]:
        """Return the varied fields, and the ratio."""
        return (*(Axis(name, TITLES.get(name, name)) for name in self.varied), RATIO)

    @cached_property
    def found_preset(self) -> Preset:
        """What is ready-made: nothing where no preset is given."""
        from mcr2 import checks

        if self.preset is None:
            return Preset(())
        return ABLATIONS[checks.choice("preset", self.preset, ABLATIONS)]

    @cached_property
    def varied(self) -> dict[str, list[str]]:
        """The values of every varied field, as text, in the order given."""
        given = [*self.found_preset.vary, *(text for group in self.vary for text in group)]
        return _parse(given, self.settings())

    def settings(self) -> list[str]:
        """Return the preset's settings, then those given."""
        return [*self.found_preset.settings, *super().settings()]

    def specs(self) -> list[RunSpec]:
        """Return the product of all values; the number of components does not multiply runs."""
        from experiments.runs.methods import find_method
        from experiments.runs.specs import vary

        found = find_method(self.method)
        specs = self.grid([self.method])
        values = {
            name: _values(specs[0], name, texts, found) for name, texts in self.varied.items()
        }
        for name, texts in self.varied.items():
            if name != COMPONENTS:
                specs = [vary(s, name, text, found.options) for s in specs for text in texts]
        for spec in specs if COMPONENTS in values else ():
            _check_components(spec, found, values[COMPONENTS])
        return specs

    def identity(self) -> dict[str, Any]:
        """Return what the folder is an ablation of."""
        return {"method": self.method, "fields": sorted(self.varied)}

    def default_out(self) -> Path:
        """Return the folder of the ablation where none is given."""
        from experiments.runs.runner import short_name

        fields = "+".join(self.varied)
        name = f"ablate-{short_name(self.method)}-{fields}-{self.recipe}-{self.dataset_name()}"
        return Path("results") / name

    def rows(self, outcome: Outcome) -> list[dict[str, Any]]:
        """Return a run's rows, once for each number of components."""
        from experiments.report.rows import rows_of

        if COMPONENTS not in self.varied:
            return rows_of(outcome, self.study_axes())
        name = "" if outcome.run is None else outcome.run.record.readout.partition("@")[0]
        return [
            row | {COMPONENTS: count}
            for count in map(int, self.varied[COMPONENTS])
            for row in rows_of(outcome, self.study_axes(), name and f"{name}@{count}")
        ]

    def facts(self, results: Results) -> dict[str, Any]:
        """Return what was varied."""
        values = {axis.name: results.values(axis) for axis in self.study_axes()[:-1]}
        return {"method": self.method, "varied": values}


def ablate(method: str, varied: Sequence[str], **options: Any) -> list[dict[str, Any]]:
    """Run an ablation and return its rows, one for each run and selection rule.

    Args:
        method: name of the method.
        varied: ``FIELD=V1,V2,...``, any field of a run, its training or its objective; the runs are
            the product of them all. The parts of a tuple are joined by ``+``.
        options: further fields of :class:`Ablation`: ``ratios``, ``seeds``, ``dataset``, ``out``...

    Returns:
        Rows with ``method``, the varied fields, ``selection``, ``ratio``, ``seed``,
        ``test_accuracy`` and the other keys of ``table.json``.

    Raises:
        ValueError, TypeError: what cannot be meant or run, in one line.
    """
    from mcr2.records import read_json

    study = Ablation(method=method, vary=(tuple(varied),), **options)
    study.prepare()()
    table: dict[str, Any] = read_json((study.out or study.default_out()) / "table.json")
    return list(table["rows"])


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
    from experiments.runs.specs import field_value, vary

    values = tuple(field_value(vary(spec, name, t, method.options), name) for t in texts)
    if "" in values:
        raise ValueError(f"--vary {name}: a value is empty; give FIELD=V1,V2,...")
    if len(set(values)) < len(values):
        raise ValueError(f"{name} has repetitions: {','.join(texts)}")
    return values


def _check_components(spec: RunSpec, method: Method, counts: Sequence[int]) -> None:
    """Check that the evaluation of a spec will hold the readouts at these numbers."""
    from experiments.runs.method import readout_for
    from experiments.runs.runner import extra_readouts
    from mcr2.readouts import WITH_COMPONENTS

    readout = readout_for(spec, method).partition("@")[0]
    if readout not in WITH_COMPONENTS:
        raise ValueError(
            f"{COMPONENTS} varies subspace readouts; that of {spec.method} is {readout}; "
            "--set readout=nearest_subspace changes that"
        )
    recorded = [name for name in extra_readouts(spec) if name.startswith(f"{readout}@")]
    for count in counts:
        replace(spec, n_components=count)  # raises where the features have too few dimensions
        if f"{readout}@{count}" not in recorded:
            known = ", ".join(name.partition("@")[2] for name in recorded)
            raise ValueError(
                f"{COMPONENTS}={count} is not among the readouts evaluated, {known}; "
                f"--set {COMPONENTS}={count} adds it"
            )
