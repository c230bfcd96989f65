"""What studies of claims share: runs read at their last epoch, and verdicts on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.studies.engine import GridStudy

if TYPE_CHECKING:
    from experiments.report.results import Results
    from experiments.runs.specs import RunSpec

#: The stages of a named backbone before its features. Left out are ``pool``, the last of them
#: averaged as each is when measured, and ``projection``, the features before they are scaled.
STAGES = ("stem", "stage1", "stage2", "stage3")


@dataclass(frozen=True)
class ClaimStudy(GridStudy):
    """What is claimed of networks, held against them at their last epoch: nothing is held out."""

    #: Functions of :class:`Results` that return lines, a verdict each; settings of all runs.
    claims: ClassVar[tuple[Any, ...]] = ()
    fixed: ClassVar[tuple[str, ...]] = ()

    methods: tuple[str, ...] = ("ce", "mcr2")
    """Names of methods, or path/to/file.py:Class of an Objective."""
    ratios: tuple[float, ...] = (0.0,)
    """Shares of the training labels to redraw."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run of everything a seed."""

    def settings(self) -> list[str]:
        """Return what the study fixes, then the settings given, which may change it."""
        return ["validation=0", "selections=last", *self.fixed, *super().settings()]

    def specs(self) -> list[RunSpec]:
        """Return the specs, seed by seed, ratio by ratio."""
        return self.grid(self.methods)

    def conclusion(self, results: Results) -> list[str]:
        """Return what became of the claims."""
        return [line for claim in self.claims for line in claim(results)]


@dataclass(frozen=True)
class LayerStudy(ClaimStudy):
    """A study of every layer: of the stages of trained networks, and of ReduNets."""

    methods: tuple[str, ...] = ("ce", "mcr2", "redunet")
    """Names of methods, or path/to/file.py:Class of an Objective."""
    layers: tuple[str, ...] = STAGES
    """Stages of trained networks to measure before their features."""
    ratios: tuple[float, ...] = (0.0, 0.5)
    """Shares of the training labels to redraw."""

    def settings(self) -> list[str]:
        """Return which layers of trained networks are measured, then the other settings."""
        from experiments.runs.methods import find_method

        trained = [method for method in self.methods if find_method(method).trained]
        layers = "+".join(self.layers)
        return [*(f"{method}.measured_layers={layers}" for method in trained), *super().settings()]


def check_heads(methods: Sequence[str]) -> None:
    """Refuse methods without a classifier of their own.

    Raises:
        ValueError: one has none.
    """
    from experiments.runs.methods import find_method

    for method in methods:
        if find_method(method).readout != "head":
            own = "ce, ls, mse and fixed_etf have"
            raise ValueError(f"{method} has no classifier of its own; {own}")
