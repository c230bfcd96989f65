"""Runs -> the rows of ``table.json``: one run at one selection rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.axis import LAYER, Axis
from experiments.report.results import constructed
from experiments.report.tables import MEMORIZATION, shown_measures, standing_measures
from experiments.runs.executors import Outcome
from experiments.runs.method import CLASS_MEAN, rules_for
from experiments.runs.specs import RunSpec, field_value
from mcr2.evaluation import Key, measure_key
from mcr2.evaluation.results import FEATURES
from mcr2.metrics.accuracy import standard_error
from mcr2.records import Record


def rows_of(
    outcome: Outcome, axes: Sequence[Axis], readout: str | None = None
) -> list[dict[str, Any]]:
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
    record, evaluation = (None, None) if run is None else (run.record, run.evaluation)
    by = readout or (record.readout if record else None)
    selections = evaluation.selections if evaluation else {key: {} for key in rules_for(spec)}
    seconds = evaluation.seconds if evaluation else 0.0
    rows = []
    for rule, chosen in selections.items():
        measures = chosen.get("measures", {})

        def of(measure: str, split: str, labels: str, measures: Any = measures) -> Any:
            key = measure_key(measure, split=split, labels=labels, readout=by or "-")
            return measures.get(key)

        accuracy, error = chosen.get("validation_accuracy"), chosen.get("standard_error")
        if record and by != record.readout and accuracy is not None:
            accuracy = of("accuracy", "validation", "noisy")
            error = accuracy and standard_error(accuracy, record.data["validation"])
        row = {
            "method": spec.method,
            "selection": rule,
            "readout": by,
            **{axis.name: axis_value(spec, axis.name) for axis in axes},
            "seed": spec.seed,
            "test_accuracy": of("accuracy", "test", "clean"),
            **{name: of(name, "train", "noisy") for name in MEMORIZATION},
            "selected_epoch": chosen.get("epoch"),
            "validation_accuracy": accuracy,
            "validation_standard_error": error,
            "wrong_labels": record.noise["wrong"] if record else None,
            "labels": record.proof.get("labels") if record else None,
            "epochs": record.epochs if record else 0,
            "steps": record.steps if record else 0,
            "wall_seconds": record.wall_seconds + seconds if record else 0.0,
            "status": record.status if record else "failed",
            "reason": outcome.failure,
            "run": outcome.planned.folder.name,
            "measures": shown_measures(measures),
        }
        rows.append(row)
    return rows


def layer_rows(outcome: Outcome, axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """Return a run's rows at its last epoch, one for each layer, the first layer first.

    A row is as one of :func:`rows_of` for the features of its ``layer``: in the keys of its
    measures ``features`` are those of the layer, and its accuracies are by the nearest class mean,
    which every layer has. Measures are those of a history.
    """
    rows = [row for row in rows_of(outcome, axes) if row["selection"] == "last"]
    record = None if outcome.run is None else outcome.run.record
    done = record and record.status == "finished"
    layers = measures_by_layer(record) if record and done else {FEATURES: {}}

    def by_means(measures: Mapping[str, Any], measure: str, split: str, labels: str) -> Any:
        return measures.get(measure_key(measure, split=split, labels=labels, readout=CLASS_MEAN))

    return [
        row
        | {
            LAYER.name: layer,
            "readout": CLASS_MEAN,
            "test_accuracy": by_means(found, "accuracy", "test", "clean"),
            **{name: by_means(found, name, "train", "noisy") for name in MEMORIZATION},
            "validation_accuracy": None,
            "validation_standard_error": None,
            "measures": standing_measures(found),
        }
        for row in rows
        for layer, found in layers.items()
    ]


def measures_by_layer(record: Record) -> dict[str, dict[str, Any]]:
    """Return the measures of a run's layers at its last epoch, with ``features`` in their keys.

    They are the spec's ``measured_layers`` and the features; of a network that was constructed
    layer by layer, the layers that it was evaluated after, ``layer0`` being its input.
    """
    if constructed(record):
        return {f"layer{entry['epoch']}": entry["measures"] for entry in record.history}
    found: dict[str, dict[str, Any]] = {
        layer: {} for layer in (*record.spec["measured_layers"], FEATURES)
    }
    for text, value in record.history[-1]["measures"].items() if record.history else ():
        key = Key.parse(text)
        if key.layer in found:
            found[key.layer][str(key._replace(layer=FEATURES))] = value
    return found


def axis_value(spec: RunSpec, name: str) -> Any:
    """Return a spec's value on an axis; None for an objective's option left to its default."""
    try:
        return field_value(spec, name)
    except KeyError:
        return None
