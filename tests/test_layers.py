"""Layers: measured as their features extracted by hand are, a row each, and what is claimed."""

import json

import pytest
import torch
from sklearn.neighbors import NearestCentroid

from experiments.commands.cli import main
from experiments.report.axis import LAYER, RATIO
from experiments.report.results import Results
from experiments.report.rows import layer_rows
from experiments.runs.executors import Outcome
from experiments.runs.machine import Machine
from experiments.runs.method import CLASS_MEAN
from experiments.runs.methods import find_method
from experiments.runs.prepare import load, prepare
from experiments.runs.runner import PlannedRun, extra_readouts, run
from experiments.runs.specs import RunSpec
from experiments.studies.layers import begins_later, law_of, never_rises, separates_evenly, verdicts
from mcr2.data import to_float
from mcr2.evaluation import Labelled, evaluate_features
from mcr2.records import load_tensors
from mcr2.training import TrainingConfig

STAGES = ("stem", "stage1", "stage2", "stage3", "stage4", "pool", "projection")
TINY = {
    "ratio": 0.5,
    "subset": 100,
    "validation": 0.0,
    "selections": ("last",),
    "backbone": "resnet10_w8",
    "feature_dim": 16,
    "n_components": 2,
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run of each kind: (spec, run, data, encoder) by method."""
    training = TrainingConfig(epochs=2, batch_size=50, evaluate_every=1)
    specs = [
        RunSpec("ce", **TINY, width=2, training=training, measured_layers=STAGES),
        RunSpec("mcr2", **TINY, width=2, training=training, measured_layers=STAGES),
        RunSpec("redunet", **TINY, training=training, options=(("layers", 3),)),
    ]
    found = {}
    for spec in specs:
        made = run(spec, tmp_path_factory.mktemp(spec.method) / "run", Machine("cpu"))
        data = prepare(spec, load(spec))
        (kept,) = made.record.weights.values()
        state, _ = load_tensors(made.folder / kept["file"])
        encoder = find_method(spec.method).load(spec, data.sizes, state)
        encoder.train(False)
        found[spec.method] = spec, made, data, encoder
    return found


def of_stages(encoder, images):
    """The features of a ResNet's stages, one child after the other."""
    found, H = {}, to_float(images).contiguous(memory_format=torch.channels_last)
    for name, stage in encoder.backbone.named_children():
        H = stage(H)
        found[name] = H.mean(dim=(2, 3)) if H.ndim == 4 else H
    return found | {"features": encoder.objective.embed(H)}


@torch.no_grad()
def by_hand(method, encoder, images):
    """The features of every layer, by its name in rows."""
    if method != "redunet":
        return of_stages(encoder.to(memory_format=torch.channels_last), images)
    network, layers = encoder.network, encoder.network.layers
    found = {}
    for depth in range(len(layers) + 1):
        network.layers = layers[:depth]
        found[f"layer{depth}"] = network(to_float(images).flatten(1))
    network.layers = layers
    return found


def same(measures, expected, layer):
    """The measures of a layer are these, up to the rounding of another order of batches."""
    held = {k: v for k, v in measures.items() if k.startswith(f"{layer}/")}
    assert held.keys() == expected.keys()
    for key, value in expected.items():
        assert (held[key] is None) == (value is None), key
        assert value is None or held[key] == pytest.approx(value, rel=2e-3, abs=1e-4), key


@pytest.mark.parametrize("method", ["ce", "mcr2", "redunet"])
def test_every_measure_at_a_layer_is_that_of_its_features_extracted_by_hand(method, done):
    spec, made, data, encoder = done[method]
    extracted = [by_hand(method, encoder, split.images) for split in (data.train, data.test)]
    assert extracted[0].keys() == (
        {*STAGES, "features"} if method != "redunet" else {f"layer{n}" for n in range(4)}
    )
    for layer, train in extracted[0].items():
        constructed = layer.startswith("layer")
        history = made.record.history[int(layer[-1]) if constructed else -1]["measures"]
        called = "features" if constructed else layer
        own = made.record.readout if called == "features" else "ridge"
        head = encoder.classifier() if called == "features" else None

        def measured(full, readouts, train=train, layer=layer, called=called, own=own, head=head):
            return evaluate_features(
                Labelled(train, data.train.labels, data.train.clean_labels),
                Labelled(extracted[1][layer], data.test.labels),
                num_classes=data.sizes.num_classes,
                readout=own,
                readouts=readouts,
                head=head,
                full=full,
                layer=called,
            ).measures

        named = [n for n in (made.record.readout, CLASS_MEAN) if n != "head"]
        expected = measured(False, named)
        same(history, expected, called)
        if not constructed:  # of whose layers the last alone is evaluated in full
            whole = made.evaluation.selections["last"]["measures"]
            names = [n for n in (made.record.readout, *extra_readouts(spec)) if n != "head"]
            same(whole, measured(True, names), called)


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")
@pytest.mark.parametrize("method", ["ce", "redunet"])
def test_a_row_a_layer_reads_by_the_nearest_class_mean(method, done):
    spec, made, data, encoder = done[method]
    planned = PlannedRun(spec, made.record.key, "", made.folder)
    rows = layer_rows(Outcome(planned, made), (LAYER, RATIO))
    train, test = (by_hand(method, encoder, split.images) for split in (data.train, data.test))
    assert [row["layer"] for row in rows] == list(train)
    for row in rows:
        layer = row["layer"]
        means = NearestCentroid().fit(train[layer].numpy(), data.train.labels)
        right = means.score(test[layer].numpy(), data.test.labels)
        assert row["test_accuracy"] == pytest.approx(right, abs=3e-3)
        fitted = means.score(train[layer].numpy(), data.train.labels)
        assert row["fit_noisy"] == pytest.approx(fitted, abs=1e-3)
        assert (row["ratio"], row["readout"], row["selection"]) == (0.5, "class_mean", "last")
        assert row["measures"]["features/train/noisy/-/nc1"] > 0
        assert not any("/train/clean/" in key for key in row["measures"])
    assert len({row["measures"]["features/train/noisy/-/rate"] for row in rows}) > 2


def test_a_run_that_failed_has_a_row_without_measures(done):
    spec, made, _, _ = done["ce"]
    rows = layer_rows(Outcome(PlannedRun(spec, "", "", made.folder), None, "why"), (LAYER, RATIO))
    assert [(row["layer"], row["status"], row["measures"]) for row in rows] == [
        ("features", "failed", {})
    ]


# ------------------------------------------------------------------------------- what is claimed


def test_claims_of_a_profile():
    assert separates_evenly([8, 4.1, 2, 1])
    assert not separates_evenly([8, 8, 8, 1, 1, 1])  # separates, though not evenly
    assert not separates_evenly([1, 2, 4, 8])
    assert separates_evenly([4, None, 1]) is None
    # An undefined layer keeps its place.
    assert law_of([8, None, 2, 1]).rho == pytest.approx(0.5)
    assert never_rises([0.3, 0.1, None, 0.105])
    assert not never_rises([0.3, 0.1, 0.2, 0])
    assert begins_later([0.3, 0.0, 0.0], [0.6, 0.3, 0.0])
    assert not begins_later([0.3, 0.0, 0.0], [0.6, 0.0, 0.0])
    assert begins_later([0.3, 0.0], [0.3, 0.3])  # with wrong labels it never begins
    assert begins_later([0.3, 0.3], [0.3, 0.0]) is None


def made_up(nc1, nc4, errors):
    """Rows of one method, a ratio each, of two seeds: profiles by ratio."""
    rows = []
    for seed in (0, 1):
        for ratio in nc1:
            layers = enumerate(zip(nc1[ratio], nc4[ratio], errors[ratio], strict=True))
            for number, (one, four, error) in layers:
                measures = {
                    "features/train/noisy/-/means_reliable": 1,
                    "features/train/noisy/-/nc1": one,
                    "features/train/noisy/ridge/nc4": four,
                }
                rows.append(
                    {"method": "ce", "ratio": ratio, "seed": seed, "layer": f"stage{number}"}
                    | {"fit_noisy": 1 - error, "status": "finished", "measures": measures}
                )
    return Results("digits", (LAYER, RATIO), rows, ())


def found(line):
    return line.partition(": ")[2].partition(" (")[0].partition(".")[0]


def test_verdicts_follow_from_what_was_measured():
    even, falling = [8, 4, 2, 1], [0.4, 0.2, 0.1, 0.0]
    late = [0.6, 0.5, 0.4, 0.01]
    holds = made_up({0.0: even, 0.5: even}, {0.0: falling, 0.5: falling}, {0.0: falling, 0.5: late})
    late[1] = 0.02  # an early layer does not count where a later one is worse
    assert list(map(found, verdicts(holds))) == ["holds"] * 2 + ["does not hold here"]
    early = [0.4, 0.04, 0.0, 0.0]
    moved = made_up({0.0: even, 0.5: even}, {0.0: falling, 0.5: falling}, {0.0: early, 0.5: late})
    assert list(map(found, verdicts(moved))) == ["holds"] * 3
    jump = [8, 8, 8, 0.001]
    part = made_up({0.0: even, 0.5: jump}, {0.0: falling, 0.5: late}, {0.0: early, 0.5: early})
    assert list(map(found, verdicts(part))) == [
        "holds in part",
        "holds in part",
        "does not hold here",
    ]
    assert "ce at ratio 0; not ce at ratio 0.5" in verdicts(part)[0]


# ------------------------------------------------------------------------------------ the study


def test_the_study_end_to_end(tmp_path, capsys):
    out = tmp_path / "out"
    small = "--subset 100 --epochs 2 --seeds 0 --jobs 1 --layers stem stage4 --set width=2"
    small += " redunet.layers=2 evaluate_every=1"
    assert main(["study", "layers", "--out", str(out), *small.split()]) == 0
    printed = capsys.readouterr().out
    assert printed.count("Criterion: ") == 3
    value = json.loads((out / "table.json").read_text())
    layers = {}
    for row in value["rows"]:
        layers.setdefault((row["method"], row["ratio"]), []).append(row["layer"])
    trained, made = ["stem", "stage4", "features"], ["layer0", "layer1", "layer2"]
    assert layers == {
        (method, ratio): made if method == "redunet" else trained
        for method in ("ce", "mcr2", "redunet")
        for ratio in (0.0, 0.5)
    }
    assert {p.stem for p in out.glob("*.png")} == {
        "collapse_by_layer",
        "rates_by_layer",
        "layers_along",
    }
    text = (out / "table.md").read_text(encoding="utf-8")
    for measure in ("nc1", "class\\_mean error", "compressed\\_rate", "participation\\_ratio"):
        name = measure.replace("\\_", "_")
        assert f"| {name} | test | redunet | 0.5 |" in text
    # The same command shows what is there; a stage that there is not is refused in a line.
    assert main(["study", "layers", "--out", str(out), *small.split()]) == 0
    again = capsys.readouterr().out.partition("Separation")[2].split("\n\n")
    assert again[:-1] == printed.partition("Separation")[2].split("\n\n")[:-1]
    assert main(["study", "layers", "--layers", "stage9", "--out", str(tmp_path / "no")]) == 2
    assert "unknown layer 'stage9'" in capsys.readouterr().err
