"""``mcr2 measure``: features from anywhere, measured as a run's own, and bad files refused."""

import json
import pickle
import re
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.commands.cli import main
from experiments.report.evaluation import agreement, evaluation_tables
from mcr2.evaluation import evaluate_features, read_features, standard_readouts

RNG = np.random.RandomState(0)
CLEAN = np.arange(60) % 3
LABELS = np.where(np.arange(60) % 10 == 0, (CLEAN + 1) % 3, CLEAN)
FEATURES = (3 * np.eye(3, 5)[CLEAN] + RNG.randn(60, 5)).astype(np.float32)
FINE = {
    "features": FEATURES,
    "labels": LABELS,
    "clean_labels": CLEAN,
    "weight": np.eye(3, 5, dtype=np.float32),
    "bias": np.zeros(3, np.float32),
    "test_features": FEATURES[:30] + 1,
    "test_labels": CLEAN[:30],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def measured(capsys, *arguments):
    assert main(["measure", *arguments, "--json", "out.json", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    with open("out.json", encoding="utf-8") as file:
        return printed, json.load(file)


def test_a_simplex_with_its_classifier_prints_zeros(place, capsys):
    corners = np.eye(4) - 1 / 4
    y = np.arange(40) % 4
    np.savez("etf.npz", features=corners[y], labels=y, weight=3 * corners)
    printed, value = measured(capsys, "etf.npz")
    assert "40 samples of 4 classes, 4 dimensions" in printed
    means = ("nc1", "nc1_ratio", "cdnv", "nc2_equinorm", "nc2_equiangular", "nc2_maxangle")
    keys = [f"features/train/noisy/-/{name}" for name in (*means, "nc2_etf")]
    for name in ("nc2_equinorm_w", "nc2_equiangular_w", "nc2_maxangle_w", "nc3", "nc3_etf", "nc4"):
        keys.append(f"features/train/noisy/head/{name}")
    assert max(abs(value["measures"][key]) for key in keys) < 1e-6
    (row,) = re.findall(r"^participation_ratio +(\S+)$", printed, re.M)
    assert float(row) == pytest.approx(3)
    assert value["num_classes"] == 4


def test_what_is_measured_is_what_evaluate_features_measures(place, capsys):
    np.savez("fine.npz", **FINE)
    printed, value = measured(capsys, "fine.npz")
    arrays = read_features("fine.npz")
    evaluation = evaluate_features(
        arrays.train,
        arrays.test,
        num_classes=3,
        readout="head",
        readouts=standard_readouts(5),
        head=arrays.head,
    )
    assert value["measures"] == dict(evaluation.measures)
    assert value["profiles"] == dict(evaluation.profiles)
    # A person sees every family, each measure in a row, and not one line a key.
    for family in ("Accuracy", "Rank and dimension of all", "Collapse of class", "Margins", "Cod"):
        assert f"\n{family}" in printed
    assert len(printed.splitlines()) < 100 < len(value["measures"])
    accuracy = value["measures"]["features/test/clean/knn@5/accuracy"]
    fitted_clean = value["measures"]["features/test/clean/knn@5+clean/accuracy"]
    (row,) = (line.split() for line in printed.splitlines() if line.startswith("knn@5 "))
    assert (row[1], row[-1]) == (f"{accuracy:.4f}", f"{fitted_clean:.4f}")


def test_every_measure_is_in_a_table(place):
    np.savez("fine.npz", **FINE)
    arrays = read_features("fine.npz")
    evaluation = evaluate_features(
        arrays.train, arrays.test, arrays.test, num_classes=3, readout="head", head=arrays.head
    )
    tables = evaluation_tables(evaluation.measures)
    shown = {row[0] for table in tables for row in table.rows}
    columns = set(tables[0].header)
    shown |= {"accuracy"} | ({"fit_noisy", "fit_corrupted", "recovered"} & columns)
    assert {key.rpartition("/")[2] for key in evaluation.measures} <= shown
    for table in tables:
        assert {len(row) for row in table.rows} == {len(table.header)}


def test_features_alone_will_do(place, capsys):
    np.savez("few.npz", features=FEATURES.astype(">f8"), labels=LABELS.astype(np.uint8))
    _, value = measured(capsys, "few.npz", "--readouts", "class_mean", "--num-classes", "3")
    readouts = {key.split("/")[3] for key in value["measures"]}
    assert readouts == {"-", "ridge", "class_mean"}
    assert {key.split("/")[1] for key in value["measures"]} == {"train"}
    np.savez("half.npz", **{**FINE, "features": FEATURES.astype(np.float16)})
    assert read_features("half.npz").train.features.dtype == torch.float16
    assert main(["measure", "half.npz", "--readouts", "ridge"]) == 0


def bad(**changes):
    arrays = {**FINE, **changes}
    return {name: array for name, array in arrays.items() if array is not None}


def edited(array, place, value):
    array = array.copy()
    array[place] = value
    return array


BAD = {
    "no labels": (bad(labels=None), "no array labels; needed are features, labels"),
    "negative": (bad(labels=edited(LABELS, 3, -1)), "-1 to 2; they must not be negative"),
    "beyond the weight": (bad(labels=edited(LABELS, 3, 3)), "with 3 classes they must be in 0 ..."),
    "clean labels": (bad(clean_labels=CLEAN + 1), "clean_labels run from 1 to 3"),
    "test labels": (bad(test_labels=CLEAN[:30] + 9), "test_labels run from 9 to 11"),
    "float labels": (bad(labels=LABELS.astype(float)), "labels must be integers"),
    "codes": (
        bad(labels=LABELS + 10**9, weight=None, bias=None),
        "makes 1000000003 classes; there",
    ),
    "NaN": (bad(features=edited(FEATURES, (0, 0), np.nan)), "features must be finite"),
    "huge": (bad(features=1e150 * FEATURES.astype(float)), "features go up to"),
    "tiny test": (
        bad(test_features=1e-150 * FEATURES[:30].astype(float)),
        "test_features go up to",
    ),
    "infinite weight": (bad(weight=edited(FINE["weight"], (0, 0), np.inf)), "weight must be fin"),
    "integers": (bad(features=FEATURES.astype(int)), "features must be a floating tensor or array"),
    "fewer labels": (bad(labels=LABELS[:-1]), "labels has shape (59,); it must be (60,)"),
    "narrow weight": (bad(weight=np.eye(3)), "weight has shape (3, 3); it must be (K, 5)"),
    "bias alone": (bad(weight=None), "bias without weight"),
    "test alone": (bad(test_labels=None), "test_features without test_labels"),
    "objects": (
        bad(features=FEATURES.astype(object)),
        "array features: Object arrays cannot be loaded",
    ),
    "complex": (bad(features=FEATURES + 0j), "not a complex64 array"),
}


def assert_mistake(arguments, fragment, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("mcr2: ")
    assert fragment in err


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_a_line(name, place, capsys):
    arrays, fragment = BAD[name]
    np.savez("bad.npz", **arrays)
    assert_mistake(["measure", "bad.npz", "--json", "out.json"], fragment, capsys)
    assert not (place / "out.json").exists()


class Trap:
    def __reduce__(self):
        return (open, ("sprung", "w"))


@pytest.mark.parametrize("damage", ["absent", "empty", "text", "cut", "pickle", "trap"])
def test_a_damaged_file_is_refused_and_nothing_in_it_is_run(damage, place, capsys):
    path = place / "bad.npz"
    np.savez(path, **FINE)
    whole = path.read_bytes()
    if damage == "absent":
        path.unlink()
    elif damage == "trap":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("features.npy", pickle.dumps(Trap()))
            file.writestr("labels.npy", pickle.dumps(Trap()))
    else:
        contents = {"empty": b"", "text": b"features", "cut": whole[: len(whole) // 2]}
        path.write_bytes(contents.get(damage, pickle.dumps(Trap())))
    assert_mistake(["measure", "bad.npz"], "bad.npz", capsys)
    assert not (place / "sprung").exists()


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ("--num-classes 2", "labels run from 0 to 2; with 2 classes"),
        (
            "--num-classes 1",
            "the number of classes given makes 1 classes; there must be at least 2",
        ),
        ("--num-classes 99999999999", "weight has shape (3, 5); it must be (99999999999, 5)"),
        ("--readouts svm", "unknown readout 'svm'"),
        ("--readouts head", "'head' is the weight in the file"),
        ("--threads 0", "threads is 0"),
        ("--threads 100000", "threads is 100000; it must be between 1 and"),
        ("--json .", "--json . is a folder"),
    ],
)
def test_mistaken_options_are_refused_in_a_line(arguments, fragment, place, capsys):
    np.savez("fine.npz", **FINE)
    assert_mistake(["measure", "fine.npz", *arguments.split()], fragment, capsys)


def test_what_is_missing_is_measured_around_and_said(place, capsys):
    few = np.where(np.arange(60) == 7, 2, LABELS % 2)
    np.savez("few.npz", features=FEATURES, labels=few, weight=np.eye(9, 5))
    printed, value = measured(capsys, "few.npz", "--readouts", "knn@9999")
    assert value["num_classes"] == 9
    assert value["measures"]["features/train/noisy/-/classes_present"] == 3
    assert value["measures"]["features/train/noisy/head/nc3"] > 0
    assert value["measures"]["features/train/noisy/knn@9999/fit_noisy"] is None
    for line in (
        "knn@9999 could not be fitted: k of 60 samples is 9999; it must be between 1 and 59",
        "train, noisy labels: no sample of 6 of 9 classes (3, 4, 5, 6, 7, 8)",
        "train, noisy labels: one sample only, hence no variance, of 1 of 9 classes (2)",
    ):
        assert line in printed.splitlines()
    alone = {"features": FEATURES, "labels": few}
    np.savez("alone.npz", **alone)
    assert read_features("alone.npz", num_classes=1000).num_classes == 1000
    with pytest.raises(ValueError, match=r"makes 99999999999 classes; .* at most 1000"):
        read_features("alone.npz", num_classes=99999999999)


def test_agreement_names_what_differs_and_not_all_of_it():
    kept = {"last": {"measures": {f"k{i}": float(i) for i in range(30)}}}
    same = {"last": dict(kept["last"]["measures"])}
    run = SimpleNamespace(evaluation=SimpleNamespace(selections=kept))
    (line,) = agreement(run, same)
    assert "all 30 measures are the same" in line
    moved = {"last": {key: value + (value > 14) for key, value in same["last"].items()}}
    first, *rest = agreement(run, moved)
    assert "15 of 30 measures differ" in first
    assert rest[0] == "last k15: 16.0000 now, 15.0000 in evaluation.json"
    assert len(rest) == 11
    assert rest[-1] == "... and 5 more"
