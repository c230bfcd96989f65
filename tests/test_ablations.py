"""Ablations through the command line: what they run, leave, read without running, and refuse."""

import contextlib
import csv
import io
import json
import struct

import matplotlib.image
import numpy as np
import pytest
import scipy.stats

from experiments.commands.cli import main
from experiments.report import Estimate
from experiments.report.tables import flat_row
from experiments.runs.methods import METHODS
from experiments.runs.runner import Machine
from experiments.runs.specs import RunSpec, field_value, vary
from experiments.studies.ablations import ABLATIONS, ablate, plan_ablation
from mcr2.records import Record
from mcr2.selection import SELECTIONS

#: What makes a run of a second.
SMALL = ["--subset", "100", "--epochs", "2", "--set", "backbone=resnet10_w8", "evaluate_every=1"]
SETTINGS = ("backbone=resnet10_w8", "evaluate_every=1", "epochs=2")


def mcr2(*arguments):
    """Run the command line here; return its status and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(a) for a in arguments])
    return status, out.getvalue() or err.getvalue()


def ablation(out, *arguments):
    status, printed = mcr2("ablate", "--out", out, "--jobs", 2, *SMALL, *arguments)
    assert status == 0, printed
    return json.loads((out / "table.json").read_text()), printed


def stamps(out):
    return {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/*.json")}


GRID = ["--vary", "eps_sq=0.1,2", "--seeds", 0, 1, "--vary", "n_components=3,1,5"]


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Two values of ε², two seeds, three readings: four runs."""
    out = tmp_path_factory.mktemp("ablation") / "out"
    value, printed = ablation(out, *GRID)
    return out, value, printed


def test_a_cell_for_every_setting_seed_and_selection(grid):
    out, value, _ = grid
    assert {k: value[k] for k in ("method", "dataset", "recipe", "varied")} == {
        "method": "mcr2",
        "dataset": "digits",
        "recipe": "quick",
        "varied": {"eps_sq": [0.1, 2.0], "n_components": [3, 1, 5]},
    }
    assert value["environment"]["threads"] == 1
    cells = value["cells"]
    keys = [(c["eps_sq"], c["n_components"], c["seed"], c["selection"]) for c in cells]
    assert sorted(keys) == sorted(
        (eps_sq, n, seed, rule)
        for eps_sq in (0.1, 2)
        for n in (1, 3, 5)
        for seed in (0, 1)
        for rule in SELECTIONS
    )
    assert all(cell["readout"] == f"nearest_subspace@{cell['n_components']}" for cell in cells)
    assert all((cell["method"], cell["ratio"]) == ("mcr2", 0.3) for cell in cells)
    with (out / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # Only the last epoch is read by every readout: elsewhere such a column is empty.
    flat = [{k: "" if v is None else str(v) for k, v in flat_row(c).items()} for c in cells]
    assert rows == [dict.fromkeys(rows[0], "") | row for row in flat]
    assert all(set(row) <= set(rows[0]) for row in flat)


def test_components_are_read_from_the_records_and_train_nothing(grid):
    out, value, _ = grid
    records = {path.parent.name: Record.load(path) for path in out.glob("runs/*/record.json")}
    assert len(records) == 4
    for cell in value["cells"]:
        record = records[cell["run"]]
        assert record.spec["n_components"] == 3
        assert ["eps_sq", cell["eps_sq"]] in [list(pair) for pair in record.spec["options"]]
        chosen = record.selections[cell["selection"]]
        assert cell["selected_epoch"] == chosen["epoch"]
        readout = cell["readout"]
        key = f"features/test/clean/{readout}/accuracy"
        assert cell["test_accuracy"] == chosen["measures"][key]
        key = f"features/train/noisy/{readout}/fit_corrupted"
        assert cell["fit_corrupted"] == chosen["measures"][key]
        key = f"features/validation/noisy/{readout}/accuracy"
        a = chosen["measures"][key]
        assert cell["validation_accuracy"] == a
        n = record.data["validation"]
        assert cell["validation_standard_error"] == pytest.approx((a * (1 - a) / n) ** 0.5)


def test_the_table_has_mean_and_interval_of_every_setting(grid):
    out, value, printed = grid
    text = (out / "table.md").read_text(encoding="utf-8")
    assert "mean ± half-width of the 95 % interval over 2 seeds" in text
    assert "| eps_sq | n_components | ratio | steps | last |" in text
    for eps_sq in (0.1, 2.0):
        sample = [
            c["test_accuracy"]
            for c in value["cells"]
            if (c["eps_sq"], c["n_components"], c["selection"]) == (eps_sq, 5, "last")
        ]
        half = scipy.stats.t.ppf(0.975, 1) * scipy.stats.sem(sample)
        shown = Estimate(np.mean(sample), half, 2).text(3)
        (line,) = (row for row in text.splitlines() if row.startswith(f"| {eps_sq:g} | 5 |"))
        assert shown in line
        assert shown in printed


@pytest.mark.parametrize("name", ["eps_sq", "n_components"])
def test_every_varied_field_has_a_figure_that_shows_something(grid, name):
    content = (grid[0] / f"{name}.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert min(width, height) >= 400
    pixels = matplotlib.image.imread(grid[0] / f"{name}.png")[..., :3].reshape(-1, 3)
    for colour in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0)):  # a line for each value of the other field
        near = np.abs(pixels - np.array(colour) / 255).max(axis=1) < 0.02
        assert near.sum() > 100


def test_finished_runs_are_only_read_and_more_values_extend(grid):
    out, value, _ = grid
    before = stamps(out)
    again, _ = ablation(out, *GRID)
    assert stamps(out) == before
    assert again["cells"] == value["cells"]
    more, _ = ablation(out, "--vary", "eps_sq=0.1,1,2", "n_components=3,1", "--seeds", 0)
    assert {path: stamps(out)[path] for path in before} == before
    assert len(list(out.glob("runs/*/record.json"))) == 5
    assert {cell["eps_sq"] for cell in more["cells"]} == {0.1, 1.0, 2.0}


def test_any_field_can_be_varied_also_those_of_training_and_of_names(tmp_path):
    rows = ablate(
        "ce",
        ["epochs=0", "streams.backbone=1,none", "readout=head,ridge"],
        ratios=[0.0],
        fields={"subset": 60},
        settings=SETTINGS[:1],
        machine=Machine("cpu"),
        out=tmp_path / "out",
        jobs=2,
    )
    found = {(r["epochs"], r["streams.backbone"], r["readout"]) for r in rows}
    assert found == {(0, s, r) for s in (1, None) for r in ("head", "ridge")}
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == {
        "epochs",
        "streams.backbone",
        "readout",
    }


def test_a_run_that_fails_is_a_row_with_a_reason(tmp_path):
    status, printed = mcr2(
        "ablate", "--out", tmp_path / "out", "--jobs", 1, *SMALL, "--vary", "lr=0.1,1e30"
    )
    assert status == 1
    assert "mcr2 at ratio 0.3, seed 0, lr=1e+30: failed, " in printed
    cells = json.loads((tmp_path / "out" / "table.json").read_text())["cells"]
    assert {(c["lr"], c["status"]) for c in cells} == {(0.1, "finished"), (1e30, "failed")}
    assert (tmp_path / "out" / "lr.png").exists()


@pytest.mark.parametrize("name", ABLATIONS)
def test_a_ready_made_ablation_can_be_planned(name, tmp_path):
    preset = ABLATIONS[name]
    planned = plan_ablation("mcr2", preset.vary, settings=preset.settings, out=tmp_path / "out")
    values = [len(v) for field, v in planned.varied.items() if field != "n_components"]
    assert len(planned.cells) == np.prod(values)
    assert not (tmp_path / "out" / "runs").exists()


def test_what_vary_sets_is_what_field_value_reads():
    spec, options = RunSpec("mcr2"), METHODS["mcr2"].options
    for name, text, value in [
        ("eps_sq", "0.1", 0.1),
        ("batch_size", "64", 64),
        ("milestones", "2+4", (2, 4)),
        ("streams.noise", "7", 7),
        ("flip", "none", None),
        ("projection", "none", "none"),
    ]:
        assert field_value(vary(spec, name, text, options), name) == value
    with pytest.raises(KeyError):
        field_value(spec, "eps_sq")


MISTAKES = {
    "": "nothing is varied",
    "--vary": "nothing is varied",
    "--vary eps_sq": "--vary 'eps_sq' is not of the form FIELD=V1,V2,...",
    "--vary epsilon=1": "'epsilon' is no field of a run; choose from accumulate",
    "--vary eps_sq=1 --vary eps_sq=2": "eps_sq is varied twice",
    "--vary eps_sq=1,1.0": "eps_sq has repetitions: 1,1.0",
    "--vary eps_sq=0.1 --set eps_sq=1": "eps_sq is set and varied",
    "--vary epochs=1 --epochs 2": "epochs is set and varied",
    "--vary ratio=0,0.3": "ratio has an option of its own",
    "--vary dataset=digits,mnist": "dataset has an option of its own",
    "--vary eps_sq=-1": "eps_sq is -1",
    "--vary eps_sq=": "eps_sq must be a number, not str",
    "--vary lr=fast": "lr='fast' is not a value of type float",
    "--vary n_components=4": "n_components=4 is not among the readings of a record, 1, 2, 3, 5, 10",
    "--vary n_components=64": "n_components is 64; it must be between 1 and 63",
    "--vary n_components=5 feature_dim=64,4": "n_components is 5; it must be between 1 and 3",
    "--vary n_components=1 --method ce": "ce is read by head",
    "--vary projection=mlp,none": "without a projection it is the pooled width",
    "--preset everything": "unknown preset 'everything'; choose from eps_sq, gamma",
    "--preset eps_sq --method ce": "'eps_sq' is no field of a run",
    "--vary eps_sq=1 --method svm": "unknown method 'svm'",
    "--vary eps_sq=1 --jobs 0": "jobs is 0",
    "--vary eps_sq=1 --seeds 0 --seeds 1": "--seeds is given twice",
    "--varied eps_sq=1": "Unrecognized options: --varied",
}


@pytest.mark.parametrize("options", MISTAKES)
def test_a_mistake_is_one_line(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["ablate", "--out", "new", *options.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert MISTAKES[options] in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_ablation_is_left_alone(grid, capsys):
    before = stamps(grid[0])
    arguments = ["--out", str(grid[0]), *SMALL, "--vary", "batch_size=50,60"]
    assert main(["ablate", *arguments]) == 2
    assert "holds the study" in capsys.readouterr().err
    assert main(["table", "--out", str(grid[0]), *SMALL]) == 2
    assert "holds the study" in capsys.readouterr().err
    assert stamps(grid[0]) == before
