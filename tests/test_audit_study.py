"""``mcr2 study audits``: what it measures, leaves and never does twice."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.bench.audit import neighbours, write_clusters
from experiments.commands.cli import main
from experiments.runs.machine import Machine
from experiments.studies.audits import Audits, tables
from mcr2.audit import audit, pixel_features, quality
from mcr2.data import load_dataset
from mcr2.noise import parse_noise
from mcr2.records import load_run

SMALL = ["--noises", "symmetric@0.3", "--features", "pixels", "ce", "mcr2@noisy_validation"]
SMALL += ["--epochs", "1", "--set", "backbone=resnet10_w8", "--jobs", "2"]


def files(out, pattern):
    return {path: path.stat().st_mtime_ns for path in out.glob(pattern)}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study of a small data set in a file."""
    root = tmp_path_factory.mktemp("audits")
    split = load_dataset("digits", subset=200).train
    x, y = split.images.numpy(), split.labels.numpy()
    np.savez(root / "few.npz", x_train=x[:150], y_train=y[:150], x_test=x[150:], y_test=y[150:])
    arguments = ["study", "audits", "--datasets", str(root / "few.npz"), *SMALL]
    arguments += ["--out", str(root / "out")]
    assert main(arguments) == 0
    return root / "out", arguments


def test_rows_are_of_the_labels_that_runs_were_given(study):
    out, _ = study
    rows = json.loads((out / "audits.json").read_text())["rows"]
    assert {row["features"] for row in rows} == {"pixels", "ce", "mcr2@noisy_validation"}
    assert {(row["dataset"], row["noise"], row["samples"]) for row in rows} == {
        ("few", "symmetric@0.3", 150)
    }
    split = load_dataset(out.parent / "few.npz").train
    noise = parse_noise("symmetric", 0.3).apply(split, num_classes=10, seed=0)
    assert {row["wrong"] for row in rows} == {float(noise.wrong.double().mean())}
    (row,) = (r for r in rows if (r["features"], r["score"]) == ("pixels", "coding_length"))
    found = audit(pixel_features(split.images), noise.labels)
    assert row["auroc"] == quality(found.scores, noise.labels, noise.truth).auroc
    assert row["estimated"] == float(found.is_label_issue.double().mean())
    runs = [load_run(path.parent) for path in out.glob("runs/*/record.json")]
    assert {run.record.noise["hash"] for run in runs} == {noise.hash}
    scores = {r["score"] for r in rows if r["features"] == "ce"}
    assert {"own_head_margin", "aum", "ensemble", "confident_joint"} < scores


def test_what_it_leaves(study):
    out, _ = study
    with open(out / "audits.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(json.loads((out / "audits.json").read_text())["rows"])
    text = (out / "audits.md").read_text()
    for title in ("AUROC", "Average precision", "Precision at the true count", "transition"):
        assert f"{title}, " in text or title in text
    assert (out / "audits.png").stat().st_size > 10_000


def test_what_is_finished_is_not_done_again(study, capsys):
    out, arguments = study
    audits, weights = files(out, "audits/*"), files(out, "runs/*/*.safetensors")
    assert len(audits) == 3
    damaged, *_ = audits
    damaged.write_text("{}")
    # More noise extends it; a damaged audit is made again, and no run.
    more = [*arguments[:5], "symmetric@0.3", "symmetric@0.5", *arguments[6:]]
    assert arguments[4] == "--noises"
    assert main(more) == 0
    assert "set aside" in capsys.readouterr().err
    again = files(out, "audits/*.json")
    assert len(again) == 6
    assert {p: t for p, t in again.items() if audits.get(p) == t}.keys() == audits.keys() - {
        damaged
    }
    now = files(out, "runs/*/*.safetensors")
    assert weights.items() <= now.items()


def test_pixels_need_no_run_and_one_audit_whatever_is_trained(tmp_path):
    few = Audits(features=("pixels",), noises=("symmetric@0.2",), seeds=(0, 1))
    more = Audits(features=("mcr2", "pixels"), noises=("symmetric@0.2",), seeds=(0, 1), epochs=3)
    machine = Machine("cpu")
    paths = [{u.path for u in s.units(tmp_path, machine)} for s in (few, more)]
    assert len(paths[0]) == 2
    assert paths[0] < paths[1]
    assert main(["study", "audits", "--features", "pixels", "--out", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out/runs").exists()


def test_tables_have_means_with_intervals_over_seeds():
    shared = {"dataset": "d", "noise": "n", "features": "f", "score": "s", "wrong": 0.1}
    rows = [{**shared, "seed": seed, "auroc": 0.8 + 0.02 * seed} for seed in (0, 1, 2)]
    (table,) = tables(rows, {"auroc": "AUROC"})
    assert table.title == "AUROC, d, features f (3 seeds)"
    # Student's: t = 4.303 with two degrees of freedom, s = 0.02.
    assert table.rows == (("s", "0.82±0.05"),)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--noises symmetric@2", "ratio is 2.0; it must be between 0 and 1"),
        ("--noises guess@0.1", "unknown noise 'guess'"),
        ("--features ce@guess", "unknown selection 'guess'; choose from last"),
        ("--features pixels@last", "pixels are of no epoch"),
        ("--features guess", "unknown method 'guess'"),
        ("--datasets nothing", "unknown data set 'nothing'"),
        ("--seeds 0 0", "give each once"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "audits", *arguments.split()]) == 2
    assert message in capsys.readouterr().err
    assert not list(Path().iterdir())


def test_the_benchmark_finds_neighbours_and_wrong_labels(tmp_path):
    H, y, true = write_clusters(tmp_path / "x.npy", 1500, 8, 3)
    Z = H / np.linalg.norm(H, axis=1, keepdims=True)
    cosines = Z[:1000] @ Z.T
    expected = np.sort(cosines, axis=1)[:, ::-1][:, :10]
    found = np.take_along_axis(cosines, neighbours(H).numpy(), axis=1)
    assert np.allclose(found, expected, atol=1e-5)
    assert 0.05 < float((y != true).double().mean()) < 0.15
    assert quality(audit(H, y).scores, y, true).auroc > 0.7


def test_the_benchmark_times_each_score(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.bench.audit.SIZES", ((600, 8, 3),))
    out = tmp_path / "x.json"
    assert main(["bench", "audit", "--threads", "1", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["score"] for row in rows][:4] == [
        *("coding_length", "... 2 iterations", "ridge_cv", "knn")
    ]
    assert all(row["seconds"] > 0 for row in rows)
    assert min(row["AUROC"] for row in rows[:3]) > 0.6
