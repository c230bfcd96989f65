"""Ablations through the command line: what they run, leave, read without running, and refuse."""

import json
from itertools import product

import numpy as np
import pytest

from experiments.commands.cli import main
from experiments.studies.ablations import ABLATIONS, Ablation, ablate
from mcr2.records import load_run
from mcr2.selection import SELECTIONS

#: What makes a run of a second.
SMALL = ["--subset", "100", "--epochs", "2", "--set", "backbone=resnet10_w8", "evaluate_every=1"]
GRID = ["--vary", "eps_sq=0.1,2", "--vary", "n_components=3,1,5"]


def ablation(out, *arguments, status=0):
    assert main(["ablate", "--out", str(out), "--jobs", "2", *SMALL, *arguments]) == status
    return json.loads((out / "table.json").read_text())


def stamps(out):
    return {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/*.json")}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Two values of ε², three numbers of components in the readout: two runs."""
    out = tmp_path_factory.mktemp("ablation") / "out"
    return out, ablation(out, *GRID)


def test_a_row_for_every_setting_seed_and_selection(grid):
    out, value = grid
    assert {key: value[key] for key in ("method", "dataset", "recipe", "varied")} == {
        "method": "mcr2",
        "dataset": "digits",
        "recipe": "quick",
        "varied": {"eps_sq": [0.1, 2.0], "n_components": [1, 3, 5]},
    }
    rows = [(row["eps_sq"], row["n_components"], row["selection"]) for row in value["rows"]]
    assert sorted(rows) == sorted(product((0.1, 2), (1, 3, 5), SELECTIONS))
    assert {(row["method"], row["ratio"]) for row in value["rows"]} == {("mcr2", 0.3)}
    text = (out / "table.md").read_text(encoding="utf-8")
    assert "| method | eps_sq | n_components | ratio | steps |" in text
    assert {path.stem for path in out.glob("*.png")} == {"eps_sq", "n_components"}


def test_components_are_read_from_the_evaluations_and_train_nothing(grid):
    out, value = grid
    found = {path.parent.name: load_run(path.parent) for path in out.glob("runs/*/record.json")}
    assert len(found) == 2
    for row in value["rows"]:
        record, evaluation = found[row["run"]].record, found[row["run"]].evaluation
        assert record.spec["n_components"] == 3
        assert dict(record.spec["options"])["eps_sq"] == row["eps_sq"]
        chosen, readout = evaluation.selections[row["selection"]], row["readout"]
        assert readout == f"nearest_subspace@{row['n_components']}"
        assert row["selected_epoch"] == chosen["epoch"]
        for name, key in {
            "test_accuracy": f"features/test/clean/{readout}/accuracy",
            "fit_corrupted": f"features/train/noisy/{readout}/fit_corrupted",
            "validation_accuracy": f"features/validation/noisy/{readout}/accuracy",
        }.items():
            assert row[name] == chosen["measures"][key]
        a, n = row["validation_accuracy"], record.data["validation"]
        assert row["validation_standard_error"] == pytest.approx((a * (1 - a) / n) ** 0.5)


def test_finished_runs_are_only_read_and_more_values_extend(grid, capsys):
    out, value = grid
    before = stamps(out)
    assert ablation(out, *GRID)["rows"] == value["rows"]
    assert stamps(out) == before
    more = ablation(out, "--vary", "eps_sq=0.1,1,2", "n_components=3,1")
    assert {path: stamps(out)[path] for path in before} == before
    assert len(list(out.glob("runs/*/record.json"))) == 3
    assert {row["eps_sq"] for row in more["rows"]} == {0.1, 1.0, 2.0}
    # Of other fields it is another ablation.
    capsys.readouterr()
    assert main(["ablate", "--out", str(out), *SMALL, "--vary", "batch_size=50,60"]) == 2
    assert "holds the study" in capsys.readouterr().err


def test_any_field_can_be_varied_also_those_of_training_and_of_names(tmp_path):
    rows = ablate(
        "ce",
        ["epochs=0", "streams.backbone=1,none", "readout=ridge"],
        ratios=(0.0,),
        subset=60,
        set=("backbone=resnet10_w8",),
        out=tmp_path / "out",
        jobs=2,
    )
    found = {(row["epochs"], row["streams.backbone"], row["readout"]) for row in rows}
    assert found == {(0, 1, "ridge"), (0, None, "ridge")}


def test_a_run_that_fails_is_a_row_with_a_reason(tmp_path, capsys):
    value = ablation(tmp_path / "out", "--vary", "lr=0.1,1e30", status=1)
    assert "mcr2, lr 1e+30, ratio 0.3, seed 0: failed, " in capsys.readouterr().out
    assert {(row["lr"], row["status"]) for row in value["rows"]} == {
        (0.1, "finished"),
        (1e30, "failed"),
    }


@pytest.mark.parametrize("name", ABLATIONS)
def test_a_ready_made_ablation_can_be_planned(name, tmp_path):
    study = Ablation(preset=name, out=tmp_path / "out")
    planned, _ = study.plan()
    values = [len(texts) for field, texts in study.varied.items() if field != "n_components"]
    assert len(planned) == len({one.folder for one in planned}) == np.prod(values)
    assert not (tmp_path / "out").exists()


MISTAKES = {
    "": "nothing is varied; give FIELD=V1,V2,... or a preset",
    "--vary": "nothing is varied",
    "--vary eps_sq": "--vary 'eps_sq' is not of the form FIELD=V1,V2,...",
    "--vary epsilon=1": "unknown field 'epsilon'; choose from accumulate",
    "--vary eps_sq=1 --vary eps_sq=2": "eps_sq is varied twice",
    "--vary eps_sq=1,1.0": "eps_sq has repetitions: 1,1.0",
    "--vary eps_sq=0.1 --set eps_sq=1": "eps_sq is set and varied",
    "--vary epochs=1 --epochs 2": "epochs is set and varied",
    "--vary ratio=0,0.3": "ratio has an option of its own",
    "--vary dataset=digits,mnist": "dataset has an option of its own",
    "--vary eps_sq=-1": "eps_sq is -1",
    "--vary eps_sq=": "--vary eps_sq: a value is empty; give FIELD=V1,V2,...",
    "--vary lr=fast": "lr='fast' is not a value of type float",
    "--vary n_components=4": "n_components=4 is not among the readouts evaluated, 1, 2, 3, 5, 10",
    "--vary n_components=64": "n_components is 64; it must be between 1 and 63",
    "--vary n_components=5 feature_dim=64,4": "n_components is 5; it must be between 1 and 3",
    "--vary n_components=1 --method ce": "that of ce is head; --set readout=nearest_subspace",
    "--vary projection=mlp,none --set feature_dim=32": "without a projection it must be the pooled",
    "--preset everything": "unknown preset 'everything'; choose from eps_sq, gamma",
    "--preset eps_sq --method ce": "unknown field 'eps_sq'",
    "--vary eps_sq=1 --method svm": "unknown method 'svm'",
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
