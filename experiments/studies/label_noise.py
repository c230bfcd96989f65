"""The label-noise study: methods x ratios x seeds, read by one evaluator, beside the paper's.

    mcr2 table
    mcr2 table --methods ce mcr2 redunet

Cost: 36 runs of the recipe ``quick`` take about four minutes on two cores. Expect cross-entropy to
fit every wrong label and to lose accuracy with the ratio, MCR² to fit few of them and to lose less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.studies.engine import COMPETENCE, GridStudy

if TYPE_CHECKING:
    from experiments.report.results import Results
    from experiments.runs.executors import Outcome
    from experiments.runs.specs import RunSpec

RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)

#: Test accuracy after Chan et al. (2021), "ReduNet", the table on label corruption: CIFAR-10,
#: ResNet-18, ratios 0 to 0.5; docs/table.md says what is known of how its rows were made.
PAPER: dict[str, dict[float, float]] = {
    "ce": dict(zip(RATIOS, (0.939, 0.909, 0.861, 0.791, 0.724, 0.603), strict=True)),
    "mcr2": dict(zip(RATIOS, (0.940, 0.911, 0.897, 0.881, 0.866, 0.843), strict=True)),
}


@dataclass(frozen=True)
class LabelNoise(GridStudy):
    """Train every method at every ratio and seed, and print the label-noise table.

    The same command continues an interrupted study; finished runs are never run twice, and more
    ratios, seeds or methods extend it.
    """

    methods: tuple[str, ...] = ("ce", "mcr2")
    """ce, ls, mse, fixed_etf, mcr2, vmcr2, tcr, ole, redunet, or path/to/file.py:Class,
    package.module:Class."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs."""

    name: ClassVar[str] = "label_noise"
    tables = (
        "accuracy",
        "noise",
        "differences",
        "memorization",
        "by_class",
        "families",
        "readouts",
        "readouts_clean",
    )
    figures = (
        "accuracy",
        "memorization",
        "matched_memorization",
        "participation",
        "nc",
        "spectra",
        "cosines",
        "margins",
        "errors",
        "confusion",
        "readouts",
    )

    def specs(self) -> list[RunSpec]:
        """Return the specs, in a reader's order: seed by seed, ratio by ratio."""
        return self.grid(self.methods)

    def default_out(self) -> Path:
        """Return the folder of the study where none is given."""
        return Path("results") / f"{self.recipe}-{self.dataset_name()}{self.noise_name()}"

    def reference(self) -> Mapping[str, Mapping[str, Mapping[float, float]]]:
        """Return the paper's rows, for orientation, on the recipe's own data and noise only."""
        from experiments.runs.recipes import find_recipe

        own = self.dataset in (None, find_recipe(self.recipe).base.dataset)
        return {"CIFAR-10, ResNet-18": PAPER} if own and self.noise == "symmetric" else {}

    def notes(self, outcomes: Sequence[Outcome], results: Results) -> list[str]:
        """Return lines beneath the tables."""
        return [
            *fails_clean_labels(results),
            *super().notes(outcomes, results),
            *separate_runs(outcomes),
        ]

    def facts(self, results: Results) -> dict[str, Any]:
        """Return the paired differences."""
        from experiments.report.tables import differences

        return {"differences": [asdict(d) for d in differences(results)]}


def fails_clean_labels(results: Results) -> list[str]:
    """Return a line for each method more than two points under cross-entropy at ratio 0."""
    where = {"method": "ce", "selection": "last", "ratio": 0.0}
    reference = results.over_seeds("test_accuracy", **where)
    if (wrong := results.over_seeds("wrong", **where)) is not None and wrong.mean > 0:
        return []  # labels of annotators are wrong before any is redrawn
    lines = []
    for method in results.names if reference is not None else ():
        own = results.over_seeds("test_accuracy", **where | {"method": method})
        if own is not None and reference is not None and own.mean < reference.mean - COMPETENCE:
            lines.append(
                f"{method} fails the clean-label check: {own} at ratio 0 against {reference} of "
                f"ce, more than {COMPETENCE:g} under it; underfitting can pass for robustness"
            )
    return lines


def separate_runs(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line where early stopping is reported from runs of its own."""
    from mcr2.selection import NEED_VALIDATION

    specs = [outcome.planned.spec for outcome in outcomes]
    return [
        f"{', '.join(NEED_VALIDATION)} come from runs of their own, which held out {share:.0%} of "
        "the training samples to choose the epoch by; last and oracle from runs that held out "
        "nothing"
        for share in sorted({s.validation for s in specs if s.selections == NEED_VALIDATION})
    ]
