"""The label-noise study through its command line: what it leaves, shares, repeats and survives."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import scipy.stats
import torch

from experiments.commands.cli import main
from experiments.report import FIGURES, Estimate
from experiments.report.tables import flat_row
from experiments.runs import runner
from experiments.runs.methods import find_method
from experiments.runs.runner import Machine, read_encoder, read_run, run, terminal_epoch
from experiments.runs.specs import RunSpec
from experiments.studies.label_noise import PAPER
from mcr2.data import DATASETS, availability
from mcr2.records import Record
from mcr2.training import TrainingConfig

ROOT = Path(__file__).resolve().parents[1]
SELECTIONS = ("last", "noisy_validation", "patience", "clean_validation", "oracle")

#: What makes a run of a second; the methods' batch sizes differ, as in the recipe.
CHEAP = ["--subset", "200", "--set", "backbone=resnet10_w8", "batch_size=50"]
SMALL = [*CHEAP, "evaluate_every=1"]
BOTH = [*SMALL, "mcr2.batch_size=90"]

#: Types of the documented keys of a finished cell.
KEYS = {
    "method": str,
    "selection": str,
    "readout": str,
    "ratio": float,
    "seed": int,
    "test_accuracy": float,
    "fit_noisy": float,
    "fit_corrupted": float | None,
    "recovered": float | None,
    "epochs": int,
    "steps": int,
    "wall_seconds": float,
    "status": str,
    "reason": str | None,
}


def mcr2(*arguments):
    """Run the command line here; return its status and what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        status = main([str(a) for a in arguments])
    return status, out.getvalue()


def table(out, *arguments, small=SMALL):
    status, printed = mcr2("table", "--out", out, "--jobs", 2, *small, *arguments)
    return status, printed, json.loads((out / "table.json").read_text())


def records(out):
    """The records of a study by method, ratio and seed."""
    found = [Record.load(path) for path in sorted((out / "runs").glob("*/record.json"))]
    return {(r.spec["method"], r.spec["ratio"], r.spec["seed"]): r for r in found}


def stamps(out):
    """When and with what each record and its weights were written."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in (out / "runs").glob("*/*")
        if path.suffix in (".json", ".safetensors")
    }


def timeless(cells):
    return [{k: v for k, v in cell.items() if k != "wall_seconds"} for cell in cells]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study of 2 methods x 2 ratios x 1 seed, and what it printed."""
    out = tmp_path_factory.mktemp("study") / "out"
    status, printed, _ = table(out, "--epochs", 2, "--ratios", 0, 0.5, small=BOTH)
    assert status == 0
    return out, printed


@pytest.fixture(scope="module")
def extended(study, tmp_path_factory):
    """The same study extended by a ratio and a seed, and the stamps of what was there before."""
    out = tmp_path_factory.mktemp("extended") / "out"
    shutil.copytree(study[0], out)
    before = stamps(out)
    larger = ["--ratios", 0.5, 0, 0.2, "--seeds", 1, 0]
    status, _, _ = table(out, "--epochs", 2, *larger, small=BOTH)
    assert status == 0
    return out, before


def test_table_json_holds_the_documented_keys(study):
    value = json.loads((study[0] / "table.json").read_text())
    assert value["dataset"] == "digits"
    assert value["recipe"] == "quick"
    assert value["environment"]["torch"] == torch.__version__
    assert {"python", "numpy", "device", "threads"} <= value["environment"].keys()
    for cell in value["cells"]:
        for key, kind in KEYS.items():
            assert isinstance(cell[key], kind), key
        assert (cell["status"], cell["reason"]) == ("finished", None)
        for measure in ("test_accuracy", "fit_noisy", "fit_corrupted", "recovered"):
            assert cell[measure] is None or 0 <= cell[measure] <= 1
        assert cell["wall_seconds"] > 0
        assert cell["epochs"] == 2


def test_one_cell_a_method_ratio_seed_and_selection(study):
    cells = json.loads((study[0] / "table.json").read_text())["cells"]
    names = [(c["method"], c["ratio"], c["seed"], c["selection"]) for c in cells]
    assert sorted(names) == sorted(
        (method, ratio, 0, rule)
        for method in ("ce", "mcr2")
        for ratio in (0.0, 0.5)
        for rule in SELECTIONS
    )
    assert {c["method"]: c["readout"] for c in cells} == {
        "ce": "head",
        "mcr2": "nearest_subspace@3",
    }


def test_there_is_nothing_to_memorise_at_ratio_0(study):
    for cell in json.loads((study[0] / "table.json").read_text())["cells"]:
        undefined = cell["ratio"] == 0
        assert (cell["fit_corrupted"] is None) == undefined
        assert (cell["recovered"] is None) == undefined
        assert (cell["wrong_labels"] == 0) == undefined


def test_the_cells_are_what_the_records_say(study):
    out, _ = study
    found = records(out)
    for cell in json.loads((out / "table.json").read_text())["cells"]:
        record = found[cell["method"], cell["ratio"], cell["seed"]]
        measures = record.selections[cell["selection"]]["measures"]
        by = record.readout
        assert cell["test_accuracy"] == measures[f"features/test/clean/{by}/accuracy"]
        assert cell["fit_noisy"] == measures[f"features/train/noisy/{by}/fit_noisy"]
        assert cell["fit_corrupted"] == measures[f"features/train/noisy/{by}/fit_corrupted"]
        assert cell["recovered"] == measures[f"features/train/noisy/{by}/recovered"]
        assert (cell["epochs"], cell["steps"]) == (record.epochs, record.steps)
        assert cell["labels"] == record.proof["labels"]
        for key, value in cell["measures"].items():
            assert value == measures.get(key)
        for key in ("features/train/noisy/-/nc1", "features/test/-/-/participation_ratio"):
            assert cell["measures"][key] == measures[key] is not None
        history = [entry["epoch"] for entry in record.history]
        assert history == [0, 1, 2]
        assert cell["selected_epoch"] in history


def test_the_oracle_is_at_least_as_good_as_any_other_selection(study):
    cells = json.loads((study[0] / "table.json").read_text())["cells"]
    accuracy = {(c["method"], c["ratio"], c["selection"]): c["test_accuracy"] for c in cells}
    for (method, ratio, _), value in accuracy.items():
        assert value <= accuracy[method, ratio, "oracle"]


def test_table_csv_has_the_cells_as_rows(study):
    out, _ = study
    cells = json.loads((out / "table.json").read_text())["cells"]
    with (out / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = dict.fromkeys(name for cell in cells for name in flat_row(cell))
    for row, cell in zip(rows, cells, strict=True):
        flat = flat_row(cell)
        assert list(row) == list(names)
        values = {name: flat.get(name) for name in names}
        assert row == {k: "" if v is None else str(v) for k, v in values.items()}


def test_table_md_has_all_tables(study):
    text = (study[0] / "table.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert sum(line.startswith("| method | selection | readout | 0 | 0.5 |") for line in lines) == 1
    assert sum(line.startswith("| method | measure | readout | 0 | 0.5 |") for line in lines) == 1
    assert sum(line.startswith("| methods | selection | 0 | 0.5 |") for line in lines) == 1
    assert sum(line.startswith("| measure | split | method | 0 | 0.5 |") for line in lines) == 2
    assert sum(line.startswith("| readout |  | method | 0 | 0.5 |") for line in lines) == 2
    for method in ("ce", "mcr2"):
        for rule in SELECTIONS:
            assert any(line.startswith(f"| {method} | {rule} |") for line in lines)
        paper = f"| {PAPER[method][0.0]:.3f} | {PAPER[method][0.5]:.3f} |"
        assert any("paper" in line and line.endswith(paper) for line in lines)


def test_the_tables_are_printed_as_they_are_written(study):
    out, printed = study
    cells = json.loads((out / "table.json").read_text())["cells"]
    for cell in cells:
        (row,) = (
            line.split()
            for line in printed.splitlines()
            if line.startswith(f"{cell['method']} ")
            and line.split()[1:3] == [cell["selection"], cell["readout"]]
        )
        assert f"{cell['test_accuracy']:.3f}" == row[3 if cell["ratio"] == 0 else 4]
    for words in ("fit_noisy", "fit_corrupted", "recovered", "paper: last", "one seed"):
        assert words in printed
    assert "ce at ratio 0.5, seed 0: terminal phase not reached (fit_noisy 0." in printed


@pytest.mark.parametrize("name", [f"{name}.png" for name in FIGURES])
def test_the_figures_show_something(study, name):
    content = (study[0] / name).read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert min(width, height) >= 300
    pixels = matplotlib.image.imread(study[0] / name)[..., :3].reshape(-1, 3)
    # The two methods' colours, #0072B2 and #D55E00, are both there.
    for colour in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0)):
        near = np.abs(pixels - np.array(colour) / 255).max(axis=1) < 0.02
        assert near.sum() > 50


def test_finished_cells_are_only_read(study):
    out, printed = study
    before = stamps(out)
    status, again, value = table(out, "--epochs", 2, "--ratios", 0, 0.5, small=BOTH)
    assert status == 0
    assert stamps(out) == before
    tables = printed[printed.index("Test accuracy") : printed.rindex("\n4 runs in")]
    assert tables in again
    assert len(value["cells"]) == 4 * len(SELECTIONS)


def test_an_extended_study_runs_only_what_is_new(extended):
    out, before = extended
    after = stamps(out)
    assert {path: after[path] for path in before} == before
    assert len(records(out)) == 2 * 3 * 2
    cells = json.loads((out / "table.json").read_text())["cells"]
    assert len(cells) == 2 * 3 * 2 * len(SELECTIONS)
    text = (out / "table.md").read_text(encoding="utf-8")
    assert "mean ± half-width of the 95 % interval over 2 seeds" in text
    last = [c for c in cells if (c["method"], c["selection"], c["ratio"]) == ("ce", "last", 0.2)]
    sample = [cell["test_accuracy"] for cell in last]
    half = scipy.stats.t.ppf(0.975, 1) * scipy.stats.sem(sample)
    assert Estimate(np.mean(sample), half, 2).text(3) in text
    # Both methods saw the same labels, so that each seed is a pair.
    value = json.loads((out / "table.json").read_text())
    (paired,) = (d for d in value["differences"] if (d["selection"], d["ratio"]) == ("last", 0.2))
    twins = [c for c in cells if (c["method"], c["selection"], c["ratio"]) == ("mcr2", "last", 0.2)]
    differences = [b["test_accuracy"] - a for a, b in zip(sample, twins, strict=True)]
    assert paired["seeds"] == [0, 1]
    assert paired["estimate"]["mean"] == pytest.approx(np.mean(differences))


def test_the_records_prove_a_fair_comparison(extended):
    found = records(extended[0])
    for ratio in (0.0, 0.2, 0.5):
        for seed in (0, 1):
            ce, mcr2 = found["ce", ratio, seed], found["mcr2", ratio, seed]
            for name in ("backbone", "feature_dim", "projection", "stem_stride", "shift", "flip"):
                assert ce.spec[name] == mcr2.spec[name]
            # "sampling" is the first epoch's order of samples, "augmentation" its pixels.
            shared = {"initial_weights", "labels", "held_out", "sampling", "augmentation"}
            assert ce.proof.keys() == shared
            assert ce.proof == mcr2.proof
            assert ce.seeds == mcr2.seeds
            assert ce.noise == mcr2.noise
            assert ce.data == mcr2.data
            assert ce.steps > mcr2.steps  # although their batches differ


def test_a_proof_tells_runs_apart_that_share_nothing(extended):
    found = records(extended[0])
    first, other = found["ce", 0.5, 0], found["ce", 0.5, 1]
    assert not set(first.proof.values()) & set(other.proof.values())


def test_the_ratio_changes_labels_and_nothing_else(extended):
    found = records(extended[0])
    for method in ("ce", "mcr2"):
        proofs = [found[method, ratio, 0].proof for ratio in (0.0, 0.2, 0.5)]
        for name in ("initial_weights", "held_out", "sampling", "augmentation"):
            assert len({proof[name] for proof in proofs}) == 1
        assert len({proof["labels"] for proof in proofs}) == 3


def test_corrupted_sets_are_nested(extended):
    found = records(extended[0])
    for seed in (0, 1):
        noise = {ratio: found["ce", ratio, seed].noise for ratio in (0.0, 0.2, 0.5)}
        assert [len(noise[r]["indices"]) for r in noise] == [0, 40, 100]
        assert noise[0.0]["wrong_indices"] == []
        assert set(noise[0.2]["indices"]) < set(noise[0.5]["indices"])
        assert set(noise[0.2]["wrong_indices"]) < set(noise[0.5]["wrong_indices"])
        for one in noise.values():
            assert set(one["wrong_indices"]) <= set(one["indices"])
            assert one["wrong"] == len(one["wrong_indices"])


def test_evaluate_reads_what_the_record_says(study, tmp_path):
    out, _ = study
    for path in sorted((out / "runs").iterdir()):
        before = stamps(out)
        status, printed = mcr2("evaluate", path, "--threads", 1)
        assert status == 0
        for family in ("Accuracy", "Rank", "Collapse", "Margins", "Coding rates"):
            assert f"\n{family}" in printed
        assert "measures are the same as the record's" in printed
        assert stamps(out) == before
    # Weights of another training, under the name of these: what is read again differs.
    other = next(p for p in (out / "runs").iterdir() if p.name.startswith("ce-r0-"))
    copy = tmp_path / "run"
    shutil.copytree(path, copy)
    chosen = Record.load(copy / "record.json").selections["last"]["weights"]
    if path.name.startswith("mcr2"):
        other = next(p for p in (out / "runs").iterdir() if p.name.startswith("mcr2-r0-"))
    shutil.copy(other / chosen, copy / chosen)
    _, printed = mcr2("evaluate", copy, "--threads", 1)
    assert re.search(r"measures differ from the record's\nlast features/", printed)
    record, readings = read_run(path, device="cpu")
    assert readings.keys() == record.selections.keys() == set(SELECTIONS)
    for rule, reading in readings.items():
        assert dict(reading.measures) == record.selections[rule]["measures"]
        assert dict(reading.profiles) == record.selections[rule]["profiles"]
    status, printed = mcr2("evaluate", path, "--measure", "test/clean", "--json", tmp_path / "m")
    assert status == 0
    assert " same " in printed
    assert "differs" not in printed
    written = json.loads((tmp_path / "m").read_text())["selections"]
    for rule, chosen in record.selections.items():
        assert written[rule] == {key: chosen[key] for key in ("epoch", "measures", "profiles")}


def test_a_record_says_what_evaluation_cost_and_where_the_terminal_phase_began(study):
    for record in records(study[0]).values():
        assert 0 < record.evaluation_seconds < record.wall_seconds
        assert record.wall_seconds > record.history[-1]["seconds"]
        assert record.terminal_epoch is None
    history = [
        {"epoch": 5 * i, "measures": {"features/train/noisy/head/fit_noisy": fit}}
        for i, fit in enumerate((0.99, 0.98, 0.99, 0.995, 1.0, 0.9))
    ]
    assert terminal_epoch(history, "head") == 10
    assert terminal_epoch(history[:4], "head") is None


def test_an_epoch_that_several_rules_select_is_read_once(monkeypatch, tmp_path):
    read = []

    def counting(encoder, *arguments, final):
        read.append(encoder)
        return read_encoder(encoder, *arguments, final=final)

    monkeypatch.setattr(runner, "read_encoder", counting)
    training = TrainingConfig(epochs=1, batch_size=50)
    spec = RunSpec("ce", subset=100, backbone="resnet10_w8", training=training)
    record = run(spec, tmp_path, Machine("cpu"))
    assert len(record.selections) == len(SELECTIONS)
    assert len(read) == len({chosen["epoch"] for chosen in record.selections.values()})
    for chosen in record.selections.values():
        solved = "features/test/clean/linear_svm/accuracy" in chosen["measures"]
        assert solved == (chosen["epoch"] == record.epochs)
    read.clear()
    read_run(tmp_path, device="cpu")
    assert len(read) == len({chosen["epoch"] for chosen in record.selections.values()})


def test_train_leaves_a_record_and_does_not_train_twice(study, tmp_path):
    out = tmp_path / "run"
    arguments = ["train", "--method", "mcr2", "--ratio", 0.5, "--out", out, "--epochs", 2]
    arguments += [*BOTH, "--threads", 1]
    status, printed = mcr2(*arguments)
    assert status == 0
    record = Record.load(out / "record.json")
    assert record.status == "finished"
    accuracy = record.selections["last"]["measures"][
        "features/test/clean/nearest_subspace@3/accuracy"
    ]
    assert f"{accuracy:.4f}" in printed
    # One run alone is the cell of a study.
    twin = records(study[0])["mcr2", 0.5, 0]
    assert record.key == twin.key
    assert record.selections == twin.selections
    before = (out / "record.json").stat().st_mtime_ns
    assert mcr2(*arguments) == (0, printed)
    assert (out / "record.json").stat().st_mtime_ns == before


def test_datasets_lists_what_is_there_and_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, printed = mcr2("datasets", "--data-root", tmp_path)
    assert status == 0
    rows = {line.split()[0]: line for line in printed.splitlines()[3:]}
    assert list(rows) == list(DATASETS)
    for row in availability(tmp_path):
        where = row.found or f"missing; looked in {tmp_path}"
        assert f"  {where}" in rows[row.name]


LOSS = """
from mcr2.objectives import Objective

class Pull(Objective):
    def loss(self, features, labels, context):
        return STRENGTH * (features**2).mean(), {}
"""


def test_editing_a_loss_runs_its_cells_anew_and_no_others(tmp_path):
    file = tmp_path / "loss.py"
    file.write_text(LOSS.replace("STRENGTH", "0.1"))
    arguments = ["--methods", "mcr2", f"{file}:Pull", "--ratios", 0, "--epochs", 1]
    out = tmp_path / "out"
    assert table(out, *arguments)[0] == 0
    first = stamps(out)
    assert table(out, *arguments)[0] == 0
    assert stamps(out) == first
    # The same size, perhaps within the same second: only the content tells.
    file.write_text(LOSS.replace("STRENGTH", "0.9"))
    status, _, value = table(out, *arguments)
    assert status == 0
    second = stamps(out)
    assert {path: second[path] for path in first} == first
    new = {path.parent.name for path in second.keys() - first.keys()}
    assert len(new) == 1
    assert new.pop().startswith("loss-Pull-r0-s0-")
    assert len({cell["run"] for cell in value["cells"]}) == 2
    runs = {path.parent for path in (out / "runs").glob("loss-Pull*/record.json")}
    losses = {Record.load(run / "record.json").history[-1]["loss"] for run in runs}
    assert len(losses) == len(runs) == 2
    # Only the run of the file as it is now can be read again.
    assert sorted(mcr2("evaluate", run, "--threads", 1)[0] for run in runs) == [0, 2]


def test_an_edit_within_one_second_is_not_hidden_by_cached_bytecode(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "loss.py"
    values = []
    for strength in ("0.1", "0.9"):
        file.write_text(LOSS.replace("STRENGTH", strength))
        os.utime(file, (10**9, 10**9))
        method = find_method(f"{file}:Pull")
        (module,) = (m for m in list(sys.modules.values()) if vars(m).get("__file__") == str(file))
        loss, _ = module.Pull(2)(torch.ones(2, 2), torch.tensor([0, 1]))
        values.append((method.fingerprint, float(loss)))
    (first, weak), (second, strong) = values
    assert first != second
    assert weak != strong
    assert not (tmp_path / "__pycache__").exists()


FAILING = """
from pathlib import Path
from mcr2.objectives import Objective

class Raises(Objective):
    def loss(self, features, labels, context):
        if not Path(__file__).with_name("mended").exists():
            raise RuntimeError("this loss is not ready")
        return features.sum(), {}

class Vanishes(Objective):
    def loss(self, features, labels, context):
        return features.sum() * float("nan"), {}
"""


def test_a_run_that_fails_has_a_reason_and_the_others_finish(tmp_path):
    file = tmp_path / "failing.py"
    file.write_text(FAILING)
    out = tmp_path / "out"
    methods = ["ce", f"{file}:Raises", f"{file}:Vanishes"]
    arguments = ["--methods", *methods, "--ratios", 0.5, "--epochs", 1]

    def by_method(value):
        return {c["method"]: c for c in value["cells"] if c["selection"] == "last"}

    status, printed, value = table(out, *arguments)
    assert status == 1
    cells = by_method(value)
    assert list(cells) == methods
    ce, raises, vanishes = (cells[m] for m in methods)
    assert ce["status"] == "finished"
    assert (raises["status"], vanishes["status"]) == ("failed", "failed")
    assert "RuntimeError: this loss is not ready" in raises["reason"]
    assert "loss stopped being finite in epoch 1" in vanishes["reason"]
    for failed in (raises, vanishes):
        for measure in ("test_accuracy", "fit_noisy", "fit_corrupted", "recovered"):
            assert failed[measure] is None
        assert f"failed, {failed['reason']}" in printed
        assert failed["reason"] in (out / "table.md").read_text(encoding="utf-8")
    assert {c["selection"] for c in value["cells"] if c["status"] == "failed"} == set(SELECTIONS)
    assert (out / "accuracy.png").exists()

    # An exception may be mended from outside and is tried again; a loss that is not finite would
    # stop being finite again.
    before = stamps(out)
    (tmp_path / "mended").touch()
    status, _, value = table(out, *arguments)
    assert status == 1
    cells = by_method(value)
    assert [cells[m]["status"] for m in methods] == ["finished", "finished", "failed"]
    assert cells[methods[2]] == vanishes
    after = stamps(out)
    kept = {path for path in before if not path.parent.name.startswith("failing-Raises")}
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}


class KilledError(Exception):
    pass


def content(record):
    """A record without its times."""
    value = asdict(record)
    del value["wall_seconds"], value["evaluation_seconds"]
    for entry in value["history"]:
        del entry["seconds"]
    return value


@pytest.mark.parametrize("method", ["ce", "mcr2"])
def test_a_run_killed_in_its_middle_continues_to_the_same_record(method, tmp_path):
    training = TrainingConfig(epochs=5, batch_size=50, evaluate_every=2)
    spec = RunSpec(method, subset=150, ratio=0.5, backbone="resnet10_w8", training=training)
    machine = Machine("cpu")
    whole = run(spec, tmp_path / "whole", machine)

    def kill(told):
        if told.epoch == 3:
            raise KilledError

    with pytest.raises(KilledError):
        run(spec, tmp_path / "killed", machine, progress=kill, checkpoint_seconds=0)
    assert not (tmp_path / "killed" / "record.json").exists()
    assert (tmp_path / "killed" / "checkpoint.pt").exists()

    told = []
    record = run(spec, tmp_path / "killed", machine, progress=lambda p: told.append(p.epoch))
    assert told == [4, 5]
    assert content(record) == content(whole)
    assert not (tmp_path / "killed" / "checkpoint.pt").exists()
    for chosen in whole.selections.values():
        name = chosen["weights"]
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def living(group):
    """Members of a process group that are not zombies; those may wait for a lazy init."""
    if Path("/proc/self/stat").exists():
        states = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, member = path.read_text().rpartition(")")[2].split()[:3]
                states.append((member, state))
    else:
        listing = subprocess.run(
            ["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True, check=True
        )
        states = [line.split()[:2] for line in listing.stdout.splitlines()]
    return [state for member, state in states if int(member) == group and state[0] != "Z"]


def until(condition, seconds):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_study_killed_in_its_middle_continues_to_the_same_cells(tmp_path):
    arguments = ["--epochs", "8", "--ratios", "0", "0.5"]
    out = tmp_path / "killed"
    command = ["table", "--out", out, "--jobs", "2", *CHEAP, *arguments]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.commands", *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:

        def in_the_middle():
            assert process.poll() is None, "the study ended before it could be killed"
            done = {path.parent for path in out.glob("runs/*/record.json")}
            begun = {path.parent for path in out.glob("runs/*/progress.json")}
            return done and begun - done

        until(in_the_middle, 60)
        assert len(living(process.pid)) > 1
        process.kill()
        process.wait()
        until(lambda: not living(process.pid), 5)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert not (out / "table.json").exists()
    before = stamps(out)
    finished = {path: stamp for path, stamp in before.items() if path.name == "record.json"}
    assert 1 <= len(finished) < 4

    status, _, resumed = table(out, *arguments, small=CHEAP)
    assert status == 0
    after = stamps(out)
    assert {path: after[path] for path in finished} == finished
    status, _, whole = table(tmp_path / "whole", *arguments, small=CHEAP)
    assert status == 0
    assert len(whole["cells"]) == 2 * 2 * len(SELECTIONS)
    assert timeless(resumed["cells"]) == timeless(whole["cells"])
