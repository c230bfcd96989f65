"""What all methods share: readouts, selection rules, evaluation along a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from experiments.runs.prepare import Prepared
from experiments.runs.specs import RunSpec
from mcr2.evaluation import Evaluation, ImageEncoder, evaluate, measure_key
from mcr2.readouts import WITH_COMPONENTS, parse_readout
from mcr2.selection import NEED_VALIDATION, SELECTIONS, Candidate, select
from mcr2.training import Progress, Watch, World

#: The readout by nearest class means, which every history has beside ``ridge``: of any layer.
CLASS_MEAN = "class_mean"


@dataclass(frozen=True)
class Workspace:
    """Where and how a run may work: its device, its checkpoint, whom it tells.

    ``progress`` is called once an epoch, ``log`` with every entry of the history, ``stop`` after
    every step: where it is true, the run writes its checkpoint and is interrupted.
    """

    device: torch.device
    checkpoint: Path | None = None
    checkpoint_seconds: float = 20.0
    progress: Callable[[Progress], None] | None = None
    log: Callable[[Mapping[str, Any]], None] | None = None
    stop: Callable[[], bool] | None = None
    world: World = field(default_factory=World)


class _HasReadout(Protocol):
    @property
    def readout(self) -> str: ...


def readout_for(spec: RunSpec, method: _HasReadout) -> str:
    """Return the full name of the readout that a run's accuracy is reported with.

    Example:
        >>> from experiments.runs.methods import METHODS
        >>> readout_for(RunSpec("mcr2", n_components=5), METHODS["mcr2"])
        'nearest_subspace@5'
    """
    name = spec.readout or method.readout
    if name in WITH_COMPONENTS:
        name = f"{name}@{spec.n_components}"
    parse_readout(name)
    return name


def rules_for(spec: RunSpec) -> tuple[str, ...]:
    """Return the selection rules that a run serves: without a held-out share, no validation.

    Raises:
        ValueError: it is to serve a rule that it cannot.
    """
    able = tuple(r for r in SELECTIONS if spec.validation > 0 or r not in NEED_VALIDATION)
    if spec.selections is None:
        return able
    if not_able := [rule for rule in spec.selections if rule not in able]:
        raise ValueError(
            f"selection {' and '.join(not_able)} needs a validation share; validation is 0"
        )
    return tuple(rule for rule in able if rule in spec.selections)


def candidates(history: Sequence[Mapping[str, Any]], readout: str) -> list[Candidate]:
    """Return what selection sees of a history's entries, by one readout's accuracies."""
    noisy, test, clean = (
        measure_key("accuracy", split=split, labels=labels, readout=readout)
        for split, labels in (("validation", "noisy"), ("test", "clean"), ("validation", "clean"))
    )
    return [
        Candidate(e["epoch"], *(e["measures"].get(key) for key in (noisy, test, clean)))
        for e in history
    ]


def rules_with(spec: RunSpec, points: Sequence[Candidate]) -> tuple[str, ...]:
    """Return those of a run's rules that have something to go by; some need the truth."""

    def seen(rule: str) -> bool:
        return any(getattr(point, SELECTIONS[rule].sees) is not None for point in points)

    return tuple(rule for rule in rules_for(spec) if seen(rule))


def evaluator_along(
    spec: RunSpec, data: Prepared, readout: str, device: torch.device
) -> Callable[[ImageEncoder], Evaluation]:
    """Return what evaluates an encoder along a run, by its readout, ridge and class means."""
    train, test, validation = data.on(device)

    def measure(encoder: ImageEncoder) -> Evaluation:
        return evaluate(
            encoder,
            train,
            test,
            validation,
            num_classes=data.sizes.num_classes,
            readout=readout,
            readouts=(CLASS_MEAN,),
            full=False,
            layers=spec.measured_layers,
        )

    return measure


def watch_for(spec: RunSpec, readout: str, data: Prepared, workspace: Workspace) -> Watch:
    """Return who evaluates a run, says which weights are kept, and is told."""
    measure = evaluator_along(spec, data, readout, workspace.device)

    def keep(history: Sequence[Mapping[str, Any]]) -> set[int]:
        points = candidates(history, readout)
        return {points[select(rule, points)].epoch for rule in rules_with(spec, points)}

    return Watch(
        evaluate=lambda encoder: measure(encoder).measures,
        keep=keep,
        log=workspace.log,
        progress=workspace.progress,
    )
