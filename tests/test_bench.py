"""Benchmarks, estimates, TensorBoard, and studies whose early stopping has runs of its own."""

import json
import multiprocessing
from dataclasses import replace

import pytest
import torch

import experiments.runs.recipes
from experiments.bench import BENCHES
from experiments.commands.cli import main
from experiments.runs import estimate, methods
from experiments.runs.recipes import CPU, PAPER, QUICK
from experiments.runs.runner import Cell, Machine, load, prepare, run
from experiments.runs.specs import Recipe, RunSpec
from experiments.studies.label_noise import grid
from mcr2.data import num_batches
from mcr2.training import TrainingConfig

TINY = RunSpec("ce", subset=100, backbone="resnet10_w8", feature_dim=16, validation=0.0)
CONFIG = TrainingConfig(epochs=2, batch_size=50, evaluate_every=1)
SHARED_OUT = Recipe("tiny", "", TINY, {"ce": CONFIG, "mcr2": CONFIG}, early_stopping_share=0.2)
SMALL = ["--recipe", "tiny", "--subset", "100"]


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A recipe with a second run for early stopping, and an empty working folder."""
    monkeypatch.setitem(experiments.runs.recipes.RECIPES, "tiny", SHARED_OUT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ------------------------------------------------------------------------------------- benchmarks


def test_bench_step_times_a_step_and_its_parts_and_prints_each_row(tiny, capsys):
    arguments = ["bench", "step", *SMALL, "--repeats", "3", "--threads", "1", "--out", "x.json"]
    assert main(arguments) == 0
    header, *rows, note = capsys.readouterr().out.splitlines()
    figures = json.loads((tiny / "x.json").read_text())
    assert [step["method"] for step in figures["steps"]] == ["ce", "mcr2"]
    for step, row in zip(figures["steps"], rows, strict=True):
        times = [step[name] for name in ("step", "network", "data", "objective", "optimiser")]
        assert min(times) > 0
        assert step["ratio"] == pytest.approx(step["step"] / step["network"])
        assert header.split() == list(step)
        assert row.split()[0] == step["method"]
        assert float(row.split()[-1]) == pytest.approx(step["ratio"], rel=1e-3)
    assert "medians of 3 on cpu" in note
    assert figures["environment"]["cpus"]


def test_bench_step_knows_micro_batches(tiny):
    arguments = ["--methods", "mcr2", "--set", "micro_batch=25", "--repeats", "1"]
    assert main(["bench", "step", *SMALL, *arguments, "--threads", "1"]) == 0


def test_bench_micro_batch_measures_what_batch_normalisation_changes(tiny, monkeypatch, capsys):
    monkeypatch.setattr("experiments.bench.micro_batch.PIECES", (1, 4))
    arguments = ["--methods", "mcr2", "--repeats", "1", "--threads", "1", "--out", "x.json"]
    assert main(["bench", "micro_batch", *SMALL, *arguments]) == 0
    whole, piece = json.loads((tiny / "x.json").read_text())["micro_batches"]
    assert (whole["micro_batch"], whole["BN training"]) == (None, 0.0)
    assert piece["micro_batch"] == 13
    assert piece["BN evaluating"] < 1e-3 < piece["BN training"]
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_benchmarks_of_functions_are_handed_threads_and_repeats(tiny, capsys, monkeypatch):
    asked = {}

    def fake(**given):
        asked.update(given)
        return {"rows": [1.5]}

    monkeypatch.setattr("experiments.bench.metrics.run", fake)
    monkeypatch.setattr("experiments.bench.metrics.table", json.dumps)
    arguments = ["--threads", "1", "--repeats", "2", "--out", "x.json"]
    assert main(["bench", "metrics", *arguments]) == 0
    assert asked == {"threads": 1, "repeats": 2}
    assert json.loads(capsys.readouterr().out) == {"rows": [1.5]}
    assert json.loads((tiny / "x.json").read_text())["rows"] == [1.5]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["bench", "stepp"], "unknown benchmark 'stepp'; choose from " + ", ".join(BENCHES)),
        (["bench", "step", "--repeats", "0"], "repeats is 0; it must be at least 1"),
        (
            ["bench", "step", "--recipe", "slow"],
            "unknown recipe 'slow'; choose from quick, cpu, paper",
        ),
        (["bench", "step", "--methods", "cee"], "unknown method 'cee'"),
        (["bench", "step", "--threads", "0"], "threads is 0"),
        (["bench", "step", "--out", "."], "is a folder"),
        (["bench", "rates", "--recipe", "paper"], "the benchmark rates takes no --recipe"),
        (["bench", "metrics", "--threads", "0"], "threads is 0; it must be at least 1"),
        (["bench"], "Missing from mcr2 bench: STR step: a training step"),
    ],
    ids=str,
)
def test_a_benchmark_that_cannot_be_run_is_one_line(arguments, message, capsys):
    assert main(arguments) == 2
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
    from experiments.commands.cli import _settings, parse

    for command in ("table", "train"):
        (spec,) = grid(QUICK, ["mcr2"], [0.0], [0], settings=_settings(parse([command, *options])))
        assert spec.training == replace(QUICK.training["mcr2"], **changes)
        assert spec.shuffle


def test_accumulation_of_rates_is_refused_before_anything_is_run(tiny, capsys):
    arguments = ["table", *SMALL, "--micro-batch", "25", "--set", "accumulate=true"]
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert "RateReduction is not additive" in err
    assert "micro_batch=25 by itself gives the exact gradient" in err
    assert err.count("\n") == 1
    assert list(tiny.iterdir()) == []


# ------------------------------------------------------------- early stopping from runs of its own


def test_early_stopping_has_runs_of_its_own_where_nothing_is_held_out(tiny, capsys):
    out = tiny / "out"
    assert main(["table", *SMALL, "--methods", "ce", "--ratios", "0.5", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    table = json.loads((out / "table.json").read_text())
    rows = {cell["selection"]: cell for cell in table["cells"]}
    early = ("noisy_validation", "patience", "clean_validation")
    assert rows.keys() == {"last", "oracle", *early}
    assert rows["last"]["run"] == rows["oracle"]["run"] != rows["noisy_validation"]["run"]
    assert len({rows[rule]["run"] for rule in early}) == 1
    sizes = {}
    for rule, row in rows.items():
        record = json.loads((out / "runs" / row["run"] / "record.json").read_text())
        assert rule in record["selections"]
        sizes[rule] = record["data"]["train"], record["data"]["validation"]
        assert record["noise"]["redrawn"] == 50
    held_out = dict.fromkeys(early, (80, 20))
    assert sizes == {"last": (100, 0), "oracle": (100, 0)} | held_out
    note = f"{', '.join(early)} are read from runs of their own, which held out 20% of the training"
    assert any(line.startswith(note) for line in table["notes"])
    assert note in printed
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
    assert main(["table", *SMALL, "--estimate", "--jobs", "2", "--set", "batch_size=20"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Estimate for 24 runs on ")
    assert "last, oracle" in printed
    assert "one after the other" in printed
    assert list(tiny.iterdir()) == []


def test_what_is_finished_is_not_estimated(tiny, capsys):
    arguments = ["table", *SMALL, "--methods", "ce", "--ratios", "0", "--out", "out"]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main([*arguments, "--estimate"]) == 0
    assert "all 2 runs are finished" in capsys.readouterr().out


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
    got = estimate.cell_estimate(Cell(spec, "", "", None), found)
    assert got.steps == 7 * num_batches(80, 50) == 14
    # Evaluations at 0, 3, 6 and 7, and full ones of the last and at most four more epochs.
    looks = 4 * (0.14 + 0.5) + (0.14 + 4.0) + 4 * (0.14 + 3.0)
    assert got.seconds == pytest.approx(2.0 + 14 * 0.1 * 40 / 50 + looks)
    assert got.disk == 5 * 1000
    assert got.checkpoint == 6 * 1000 + 900
    latched = replace(found, needs_epoch_features=True)
    more = estimate.cell_estimate(Cell(spec, "", "", None), latched)
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
    assert main(["table", *SMALL, *arguments]) == 1
    err = capsys.readouterr().err
    assert (
        err == f"mcr2: raises.py:{name} cannot be measured: {message}" + err.partition(message)[2]
    )
    assert err.count("\n") == 1


def test_an_estimate_times_the_very_evaluation_of_a_run(monkeypatch):
    """What a run reads in training comes from one place, and an estimate calls it."""
    calls = []

    def counted(*arguments):
        read = reader(*arguments)
        return lambda encoder: calls.append(encoder) or read(encoder)

    reader = methods.reader
    monkeypatch.setattr(methods, "reader", counted)
    monkeypatch.setattr(estimate, "SECONDS", 0.0)
    spec = replace(TINY, ratio=0.5, training=CONFIG)
    data = prepare(spec, load(spec))
    encoder = methods.find_method("ce").build(spec, data.sizes)
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
    record = run(spec, tmp_path / "run", Machine("cpu", tensorboard=True))
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
