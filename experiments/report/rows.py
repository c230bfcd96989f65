"""Runs -> the rows of ``table.json``: one run at one selection rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from experiments.report.tables import MEMORIZATION, shown_measures
from experiments.runs.executors import Outcome
from experiments.runs.method import rules_for
from experiments.runs.specs import RunSpec, field_value
from mcr2.evaluation import measure_key
from mcr2.metrics.accuracy import standard_error

if TYPE_CHECKING:
    from experiments.report.axis import Axis

Row = dict[str, Any]


def rows_of(outcome: Outcome, axes: Sequence[Axis], readout: str | None = None) -> list[Row]:
    """Return a run's rows, one for each selection rule that it serves.

    A run that failed has its rows too, with null measures and the reason. ``labels`` is the
    record's digest of the labels trained on, by which runs are paired; ``measures`` holds, under
    their keys, those that the catalogue says are shown, and accuracies by every readout.

    Args:
        outcome: how the run ended.
        axes: what the study varies; a row has an entry for each.
        readout: what its accuracies are by, of the readouts that were evaluated; None takes the
            run's own, which also selected the epochs.
    """
    spec, run = outcome.planned.spec, outcome.run
    record, evaluation = (run.record, run.evaluation) if run is not None else (None, None)
    by = readout or (record.readout if record is not None else "")
    rows = []
    for rule in rules_for(spec) if evaluation is None else evaluation.selections:
        row: Row = {
            "method": spec.method,
            "selection": rule,
            "readout": by or None,
            **{axis.name: axis_value(spec, axis.name) for axis in axes},
            "seed": spec.seed,
            "test_accuracy": None,
            **dict.fromkeys(MEMORIZATION),
            "selected_epoch": None,
            "validation_accuracy": None,
            "validation_standard_error": None,
            "wrong_labels": None if record is None else record.noise["wrong"],
            "labels": None if record is None else record.proof.get("labels"),
            "epochs": 0 if record is None else record.epochs,
            "steps": 0 if record is None else record.steps,
            "wall_seconds": 0.0
            if record is None
            else record.wall_seconds + (evaluation.seconds if evaluation else 0.0),
            "status": "failed" if record is None else record.status,
            "reason": outcome.failure,
            "run": outcome.planned.folder.name,
            "measures": {},
        }
        if record is not None and evaluation is not None:
            chosen = evaluation.selections[rule]
            measures = chosen["measures"]

            def of(measure: str, split: str, labels: str, measures: Any = measures) -> Any:
                return measures.get(measure_key(measure, split=split, labels=labels, readout=by))

            accuracy, error = chosen["validation_accuracy"], chosen["standard_error"]
            if by != record.readout and accuracy is not None:
                accuracy = of("accuracy", "validation", "noisy")
                error = accuracy and standard_error(accuracy, record.data["validation"])
            row |= {
                "selected_epoch": chosen["epoch"],
                "validation_accuracy": accuracy,
                "validation_standard_error": error,
                "test_accuracy": of("accuracy", "test", "clean"),
                "measures": shown_measures(measures),
                **{name: of(name, "train", "noisy") for name in MEMORIZATION},
            }
        rows.append(row)
    return rows


def axis_value(spec: RunSpec, name: str) -> Any:
    """Return a spec's value on an axis; None for an objective's option left to its default."""
    try:
        return field_value(spec, name)
    except KeyError:
        return None
