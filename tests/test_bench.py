"""Benchmarks, estimates, TensorBoard, and studies whose early stopping has runs of its own."""

import json
import multiprocessing
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from experiments.bench import BENCHES, metrics
from experiments.commands.cli import main, parse
from experiments.runs import estimate
from experiments.runs.grid import grid
from experiments.runs.machine import Machine
from experiments.runs.methods import find_method
from experiments.runs.prepare import load, prepare
from experiments.runs.recipes import CPU, PAPER, QUICK, RECIPES, Recipe
from experiments.runs.runner import PlannedRun, run
from experiments.runs.specs import RunSpec
from mcr2.data import num_batches
from mcr2.metrics.collapse import NeuralCollapse
from mcr2.training import TrainingConfig

TINY = RunSpec("ce", subset=100, backbone="resnet10_w8", feature_dim=16, validation=0.0)
CONFIG = TrainingConfig(epochs=2, batch_size=50, evaluate_every=1)
SHARED_OUT = Recipe("tiny", "", TINY, {"ce": CONFIG, "mcr2": CONFIG}, early_stopping_share=0.2)
SMALL = ["--subset", "100"]
ALONE = ["--seeds", "0"]


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A small default recipe with a second run for early stopping, and an empty working folder."""
    monkeypatch.setitem(RECIPES, "quick", SHARED_OUT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ------------------------------------------------------------------------------------- benchmarks


def bench(name, *arguments):
    """Run a benchmark once a thing on one thread, and return its rows."""
    options = ["--threads", "1", "--repeats", "1", "--out", "x.json"]
    assert main(["bench", name, *arguments, *options]) == 0
    with open("x.json") as file:
        figures = json.load(file)
    assert (figures["bench"], figures["threads"]) == (name, 1)
    assert figures["environment"]["cpus"]
    return figures["rows"]


def test_bench_step_times_a_step_and_its_parts_and_prints_each_row(tiny, capsys):
    rows = bench("step", *SMALL)
    header, *printed = capsys.readouterr().out.splitlines()
    assert [row["method"] for row in rows] == ["ce", "mcr2"]
    for row, line in zip(rows, printed, strict=True):
        times = [row[name] for name in ("step", "network", "data", "objective", "optimiser")]
        assert min(times) > 0
        assert row["ratio"] == pytest.approx(row["step"] / row["network"])
        assert header.split() == list(row)
        assert line.split()[0] == row["method"]
        assert float(line.split()[-1]) == pytest.approx(row["ratio"], rel=1e-3)
    (row,) = bench("step", *SMALL, "--methods", "mcr2", "--set", "micro_batch=25")
    assert row["step"] > 0


def test_bench_micro_batch_measures_what_batch_normalisation_changes(tiny, monkeypatch):
    monkeypatch.setattr("experiments.bench.micro_batch.PIECES", (1, 4))
    whole, piece = bench("micro_batch", *SMALL, "--methods", "mcr2")
    assert (whole["micro_batch"], whole["training"]) == (None, 0.0)
    assert piece["micro_batch"] == 13
    assert piece["evaluating"] < 1e-3 < piece["training"]


def test_bench_processes_measures_what_they_send(tiny):
    *alone, shared = bench("processes", *SMALL, "--methods", "mcr2")
    assert [(row["processes"], row["threads"]) for row in (*alone, shared)] == [
        (1, 1),
        (1, 2),
        (2, 1),
    ]
    assert [row["formula_MB"] for row in alone] == [0, 0]
    assert shared["ideal"] == pytest.approx(alone[0]["seconds"] / 2)
    assert shared["local"] > 0.01  # rates of halves are not rates of the whole
    if shared["sent_MB"] is not None:  # with what protocols add
        assert shared["formula_MB"] < shared["sent_MB"] < 2 * shared["formula_MB"]


def test_bench_redunet_times_forms_that_make_the_same_network(tiny, monkeypatch):
    sizes = ((24, (3, 4, 6), 3), (24, (2, 3, 5), 2), (40, (30,), 4))
    monkeypatch.setattr("experiments.bench.redunet.SIZES", sizes)
    rows = bench("redunet")
    assert [row["samples"] for row in rows] == ["24 x 3x4x6", "24 x 2x3x5", "40 x 30"]
    for row in rows:
        assert row["features"] < 1e-3
        assert row["rates"] < 1e-5
        assert row["ratio"] == pytest.approx(row["plain ms"] / row["ours ms"])


@pytest.mark.parametrize("N, d, K", [(400, 24, 4), (300, 6, 12), (120, 40, 10)])
@pytest.mark.parametrize("spread", [0.2, 1.0, 3.0])
def test_both_forms_of_collapse_agree(N, d, K, spread):
    data = metrics.clusters(N, d, K, spread=spread)
    plain = metrics.plain(*data)
    unmeasured = {"means_reliable", "classes", "absent", "smallest_class"}
    assert plain.keys() == {f.name for f in fields(NeuralCollapse)} - unmeasured
    assert metrics.difference(plain, metrics.ours(*data)) < 1e-5


def test_bench_metrics_times_both_spreads(tiny, monkeypatch):
    monkeypatch.setattr(metrics, "SIZES", ((100, 5, 3),))
    rows = bench("metrics")
    assert [row["spread"] for row in rows] == list(metrics.SPREADS)
    for row in rows:
        assert (row["N"], row["d"], row["K"]) == (100, 5, 3)
        assert row["difference"] < 1e-5
        assert row["ratio"] == pytest.approx(row["plain ms"] / row["ours ms"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["stepp"], "unknown benchmark 'stepp'; choose from " + ", ".join(BENCHES)),
        (["step", "--repeats", "0"], "repeats is 0; it must be at least 1"),
        (["step", "--recipe", "slow"], "slow"),
        (["step", "--methods", "cee"], "unknown method 'cee'"),
        (["step", "--methods", "redunet"], "redunet is not trained by steps"),
        (["step", "--threads", "0"], "threads is 0; it must be between 1 and 1024"),
        (["step", "--out", "."], "is a folder"),
        (["rates", "--recipe", "paper"], "--recipe"),
    ],
    ids=str,
)
def test_a_benchmark_that_cannot_be_run_is_one_line(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


# -------------------------------------------------------------------------- what options turn into


@pytest.mark.parametrize(
    "options, changes",
    [
        (["--micro-batch", "25"], {"micro_batch": 25}),
        (["--amp"], {"amp": True}),
        (["--compile"], {"compile": True}),
        (["--tf32"], {"tf32": True}),
        ([], {}),
    ],
    ids=str,
)
def test_options_are_settings_of_the_training(options, changes):
    for command in ("table", "train"):
        settings = parse([command, *options]).settings()
        (spec,) = grid(QUICK, ["mcr2"], [0.0], [0], settings=settings)
        assert spec.training == replace(QUICK.training["mcr2"], **changes)
        assert spec.shuffle


def test_accumulation_of_rates_is_refused_before_anything_is_run(tiny, capsys):
    arguments = ["table", *SMALL, *ALONE, "--micro-batch", "25", "--set", "accumulate=true"]
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert "RateReduction is not additive" in err
    assert "micro_batch=25 by itself gives the exact gradient" in err
    assert err.count("\n") == 1
    assert list(tiny.iterdir()) == []


# ------------------------------------------------------------- early stopping from runs of its own


def test_early_stopping_has_runs_of_its_own_where_nothing_is_held_out(tiny, capsys):
    out = tiny / "out"
    assert (
        main(["table", *SMALL, *ALONE, "--methods", "ce", "--ratios", "0.5", "--out", str(out)])
        == 0
    )
    printed = capsys.readouterr().out
    table = json.loads((out / "table.json").read_text())
    rows = {row["selection"]: row for row in table["rows"]}
    early = ("noisy_validation", "patience", "clean_validation")
    assert rows.keys() == {"last", "oracle", *early}
    assert rows["last"]["run"] == rows["oracle"]["run"] != rows["noisy_validation"]["run"]
    assert len({rows[rule]["run"] for rule in early}) == 1
    sizes = {}
    for rule, row in rows.items():
        files = (out / "runs" / row["run"] / f"{name}.json" for name in ("record", "evaluation"))
        record, evaluation = (json.loads(file.read_text()) for file in files)
        assert rule in evaluation["selections"]
        sizes[rule] = record["data"]["train"], record["data"]["validation"]
        assert record["noise"]["redrawn"] == 50
    held_out = dict.fromkeys(early, (80, 20))
    assert sizes == {"last": (100, 0), "oracle": (100, 0)} | held_out
    note = f"{', '.join(early)} come from runs of their own, which held out 20% of the training"
    assert any(line.startswith(note) for line in table["notes"])
    assert note in " ".join(printed.split())
    assert note in (out / "table.md").read_text()


def test_a_recipes_subset_is_of_named_data_sets_that_are_larger():
    for dataset, subset in (("cifar10", 10_000), ("digits", None), ("own.npz", None)):
        (spec,) = grid(CPU, ["ce"], [0.0], [0], fields={"dataset": dataset, "subset": None})
        assert spec.subset == subset
    (spec,) = grid(CPU, ["ce"], [0.0], [0], fields={"dataset": "cifar10", "subset": 500})
    assert spec.subset == 500
    assert CPU.spec("ce", additive=True).subset == 10_000


def test_a_recipe_that_holds_out_has_one_run_for_all_rows():
    for recipe, settings in ((QUICK, []), (PAPER, ["validation=0.1"])):
        runs = grid(recipe, ["ce", "mcr2"], [0.0, 0.5], [0], settings=settings)
        assert len(runs) == 4
        assert {run.selections for run in runs} == {None}
    # A setting of one method leaves the other's two runs alone.
    runs = grid(PAPER, ["ce", "mcr2"], [0.0], [0], settings=["ce.validation=0.1"])
    assert [(r.method, r.validation) for r in runs] == [("ce", 0.1), ("mcr2", 0.0), ("mcr2", 0.1)]


# --------------------------------------------------------------------------------------- estimates


def test_an_estimate_measures_and_writes_nothing(tiny, capsys):
    assert (
        main(["table", *SMALL, *ALONE, "--estimate", "--jobs", "2", "--set", "batch_size=20"]) == 0
    )
    printed = capsys.readouterr().out
    assert printed.startswith("Estimate for 24 runs on ")
    assert "last, oracle" in printed
    assert "one after the other" in printed
    assert list(tiny.iterdir()) == []


def test_what_is_finished_is_not_estimated(tiny, capsys):
    arguments = ["table", *SMALL, *ALONE, "--methods", "ce", "--ratios", "0", "--out", "out"]
    assert main(arguments) == 0
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    assert main([*arguments, "--estimate"]) == 0
    assert "all 2 runs are finished" in capsys.readouterr().out
    record = next(Path("out").glob("runs/*/record.json"))
    record.write_text("damaged")
    before[record] = record.stat().st_mtime_ns
    assert main([*arguments, "--estimate"]) == 0
    assert "Estimate for 1 run " in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before


def test_an_estimate_adds_up():
    spec = replace(
        TINY, ratio=0.5, training=replace(CONFIG, epochs=7, evaluate_every=3), validation=0.2
    )
    found = estimate.Probe(
        start=2.0,
        step=0.1,
        batch=50.0,
        image=0.001,
        evaluation=0.5,
        selected=3.0,
        final=4.0,
        memory=10**9,
        weights=1000,
        optimizer=900,
        train=100,
        test=40,
        needs_epoch_features=False,
    )
    got = estimate.run_estimate(PlannedRun(spec, "", "", Path()), found)
    assert got.steps == 7 * num_batches(80, 50) == 14
    # Evaluations at 0, 3, 6 and 7, and full ones of the last and at most four more epochs.
    looks = 4 * (0.14 + 0.5) + (0.14 + 4.0) + 4 * (0.14 + 3.0)
    assert got.seconds == pytest.approx(2.0 + 14 * 0.1 * 40 / 50 + looks)
    assert got.disk == 5 * 1000
    assert got.checkpoint == 6 * 1000 + 900
    latched = replace(found, needs_epoch_features=True)
    more = estimate.run_estimate(PlannedRun(spec, "", "", Path()), latched)
    assert more.seconds == pytest.approx(got.seconds + 7 * 80 * 0.001)


RAISES = """
from mcr2.objectives import Objective


class Raises(Objective):
    def loss(self, features, labels, context):
        raise ArithmeticError("no such loss\\nand more")


class Ends(Objective):
    def loss(self, features, labels, context):
        import os

        os._exit(9)
"""


@pytest.mark.parametrize(
    "name, message",
    [("Raises", "ArithmeticError: no such loss"), ("Ends", "its process was ended from outside")],
)
def test_a_loss_that_cannot_be_estimated_is_one_line(name, message, tiny, capsys):
    (tiny / "raises.py").write_text(RAISES)
    arguments = ["--methods", "ce", f"raises.py:{name}", "--jobs", "2", "--estimate"]
    assert main(["table", *SMALL, *ALONE, *arguments]) == 1
    err = capsys.readouterr().err
    assert (
        err == f"mcr2: raises.py:{name} cannot be measured: {message}" + err.partition(message)[2]
    )
    assert err.count("\n") == 1


def test_an_estimate_times_the_very_evaluation_of_a_run(monkeypatch):
    """What a run measures in training comes from one place, and an estimate calls it."""
    calls = []

    def counted(*arguments):
        measure = along(*arguments)
        return lambda encoder: calls.append(encoder) or measure(encoder)

    along = estimate.evaluator_along
    monkeypatch.setattr(estimate, "evaluator_along", counted)
    monkeypatch.setattr(estimate, "SECONDS", 0.0)
    spec = replace(TINY, ratio=0.5, training=CONFIG)
    data = prepare(spec, load(spec))
    encoder = find_method("ce").build(spec, data.sizes)
    measurement = estimate.Measurement(spec, data, torch.device("cpu"), encoder)
    ours, theirs = multiprocessing.Pipe()
    ours.send(None)
    found = measurement.probe(1.5, measurement.time_steps(theirs))
    assert len(calls) >= 1
    assert ours.poll()  # it said when it was warm
    assert (found.start, found.batch, found.train, found.test) == (1.5, 50.0, 100, 360)
    assert min(found.step, found.image, found.evaluation, found.selected, found.final) > 0
    momentum = 4 * sum(p.numel() for p in encoder.parameters())
    assert (found.optimizer, found.weights > momentum) == (momentum, True)


# ------------------------------------------------------------------------------------- TensorBoard


def test_tensorboard_gets_the_history_of_a_run(tmp_path):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs the extra tensorboard",
    )
    spec = replace(TINY, validation=0.2, training=CONFIG)
    record = run(spec, tmp_path / "run", Machine("cpu", tensorboard=True)).record
    written = events.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    written.Reload()
    for tag in ("train/lr", "train/loss", "train/cross_entropy"):
        assert tag in written.Tags()["scalars"]
    for key in record.history[0]["measures"]:
        expected = {
            e["epoch"]: e["measures"][key] for e in record.history if e["measures"][key] is not None
        }
        if expected:
            got = {event.step: event.value for event in written.Scalars(key)}
            assert got == pytest.approx(expected)
    assert [event.value for event in written.Scalars("train/lr")] == pytest.approx(
        [entry["lr"] for entry in record.history]
    )


def test_without_tensorboard_one_line_says_what_to_install(tiny, capsys, monkeypatch):
    monkeypatch.setattr("experiments.runs.tensorboard_log.find_spec", lambda name: None)
    for command in ("table", "train"):
        assert main([command, *SMALL, "--tensorboard"]) == 2
        err = capsys.readouterr().err
        assert "--tensorboard needs the package tensorboard" in err
        assert "pip install" in err
        assert err.count("\n") == 1
    assert list(tiny.iterdir()) == []
