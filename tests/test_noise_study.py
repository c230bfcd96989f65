"""Noise of every kind through the command line: studies, what they show, and mistakes."""

import contextlib
import io
import json
import shutil

import numpy as np
import pytest
import torch

from experiments.commands.cli import main
from experiments.report.tables import confusions
from experiments.runs.methods import METHODS
from experiments.runs.prepare import load, load_other, prepare
from experiments.runs.runner import run_key
from experiments.runs.specs import RunSpec
from experiments.studies.label_noise import LabelNoise
from mcr2.evaluation import Labelled, evaluate_features, measure_key
from mcr2.metrics.memorization import confusion, memorization
from mcr2.records import load_run

SMALL = ["--subset", 200, "--set", "backbone=resnet10_w8", "batch_size=50", "evaluate_every=1"]
SMALL += ["--epochs", 1, "--methods", "ce", "--jobs", 1, "--seeds", 0]


def mcr2(*arguments):
    """Run the command line here; return its status, what it printed and what it complained of."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelNoise, "figures", ("accuracy", "confusion"))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([str(a) for a in arguments])
    return status, out.getvalue(), err.getvalue()


def rows(out):
    return json.loads((out / "table.json").read_text())["rows"]


def folder_of_runs(out):
    return [load_run(path.parent) for path in sorted(out.glob("runs/*/record.json"))]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A file of other images, in colour and of another size."""
    rs = np.random.RandomState(0)
    x, y = rs.randint(0, 256, (150, 3, 12, 12), dtype=np.uint8), np.arange(150) % 2
    path = tmp_path_factory.mktemp("foreign") / "foreign.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x[:9], y_test=y[:9])
    return path


@pytest.fixture(scope="module")
def open_set(foreign, tmp_path_factory):
    """A study of open-set noise, and what it printed."""
    out = tmp_path_factory.mktemp("study") / "out"
    noise = ("--noise", f"open_set:{foreign}", "--ratios", 0, 0.25)
    status, printed, err = mcr2("table", "--out", out, *noise, *SMALL)
    assert status == 0, err
    return out, printed


def test_a_study_of_open_set_noise_counts_what_has_no_true_class(open_set):
    out, _ = open_set
    for row in rows(out):
        assert row["redrawn"] == row["wrong"] == row["ratio"]
        assert row["recovered"] is None
        assert (row["fit_corrupted"] is None) == (row["ratio"] == 0)
    shown = mcr2("show", out)[1]
    assert "none of these  fit_corrupted" in shown
    assert "wrong    0.000  0.250" in shown
    assert (out / "confusion.png").read_bytes().startswith(b"\x89PNG")
    noisy = next(r for r in folder_of_runs(out) if r.record.spec["ratio"] == 0.25)
    measures = noisy.evaluation.selections["last"]["measures"]
    key = measure_key("accuracy", split="validation", labels="clean", readout="head")
    assert 0 <= measures[key] <= 1
    assert not any("/train_wrong/clean/" in key for key in measures)
    assert measures[measure_key("classes_present", split="train", labels="clean")] == 10


def test_open_set_noise_measures_again_alike_and_finds_its_images_beside_it(
    open_set, foreign, tmp_path, monkeypatch
):
    place = tmp_path / "moved"
    shutil.copytree(open_set[0], place)
    status, printed, err = mcr2("evaluate", next(place.glob("runs/*ratio0.25*")))
    assert (status, "are the same as in evaluation.json" in printed) == (0, True), err
    hidden = foreign.with_suffix(".hidden")
    foreign.rename(hidden)
    try:
        run = next(place.glob("runs/*ratio0.25*"))
        status, _, err = mcr2("evaluate", run)
        assert (status, "is gone; say where it is with --noise-from" in err) == (2, True)
        shutil.copy(hidden, place / foreign.name)
        status, printed, _ = mcr2("evaluate", run)
        assert (status, "are the same as in evaluation.json" in printed) == (0, True)
        elsewhere = shutil.copy(hidden, tmp_path / "elsewhere.npz")
        (place / foreign.name).unlink()
        assert mcr2("reread", place, "--noise-from", elsewhere)[0] == 0
        assert "none of these" in mcr2("show", place)[1]
        x = np.zeros((150, 3, 12, 12), np.uint8)
        y = np.arange(150) % 2
        np.savez(place / foreign.name, x_train=x, y_train=y, x_test=x[:9] + 1, y_test=y[:9])
        status, _, err = mcr2("evaluate", run)
        assert (status, "is not the noise that" in err) == (2, True)
    finally:
        hidden.rename(foreign)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """A file of noisy labels of the digits, and these labels."""
    true = load(RunSpec("ce")).train.labels.numpy()
    noisy = np.where(np.arange(len(true)) % 3 == 0, (true + 1) % 10, true)
    path = tmp_path_factory.mktemp("labels") / "labels.npz"
    np.savez(path, human=noisy, clean=true)
    return path


def test_a_study_of_given_labels_takes_the_datas_and_the_files(labels, tmp_path):
    out = tmp_path / "out"
    status, _, err = mcr2("table", "--out", out, "--noise", f"given:{labels}#human", *SMALL)
    assert status == 0, err
    assert sorted({row["ratio"] for row in rows(out)}) == [0, 1]
    full = next(r for r in folder_of_runs(out) if r.record.spec["ratio"] == 1)
    places = load(RunSpec("ce", subset=200)).train.places.index
    assert full.record.noise["redrawn"] == 200
    assert full.record.noise["wrong_indices"] == (places % 3 == 0).nonzero().flatten().tolist()
    assert "Wrong labels by true class" in mcr2("show", out)[1]
    assert str(labels) not in full.record.noise["content"]


def test_a_run_is_named_by_what_is_in_its_noises_file_not_where_it_is(labels, foreign, tmp_path):
    def key(noise):
        spec = RunSpec("ce", noise=noise, ratio=1.0, subset=100)
        return run_key(spec, load(spec), METHODS["ce"], load_other(spec))

    other = shutil.copy(labels, tmp_path / "copy.npz")
    first = key(f"given:{labels}#human")
    assert key(f"given:{other}#human") == first
    assert key(f"given:{other}#clean") != first
    np.savez(other, human=np.load(labels)["human"], clean=np.load(labels)["clean"], index=[0])
    assert key(f"given:{other}#human") != first
    foreigner = shutil.copy(foreign, tmp_path / "foreigner.npz")
    assert key(f"open_set:{foreign}") == key(f"open_set:{foreigner}")


def test_uniform_noise_is_not_read_class_by_class(tmp_path):
    out = tmp_path / "out"
    assert mcr2("table", "--out", out, "--ratios", 0.5, *SMALL)[0] == 0
    printed = mcr2("show", out)[1]
    assert "by true class" not in printed
    assert not (out / "confusion.png").exists()
    assert "redrawn  0.500" in printed


# --- mistakes


@pytest.mark.parametrize(
    "noise, message",
    [
        ("given:{labels}#worse", "no array worse"),
        ("given:{labels}#human+pair_flip", "only symmetric noise is drawn on top"),
        ("given:gone.npy", "gone.npy not found"),
        ("transition:gone.csv", "gone.csv not found"),
        ("asymmetric:gone.json", "gone.json not found"),
        ("asymmetric:0-10", "names class 10; there are 10 classes"),
        ("open_set:digits", "takes images of the data themselves"),
        ("open_set:gone.npz", "gone.npz"),
        ("pairflip", "unknown noise 'pairflip'; choose from symmetric"),
    ],
)
@pytest.mark.parametrize("command", ["table --ratios 1", "noise digits --ratio 1"])
def test_a_mistake_is_one_line_and_nothing_is_written(command, noise, message, labels, tmp_path):
    out, given = tmp_path / "out", noise.format(labels=labels)
    status, printed, err = mcr2(*command.split(), "--noise", given, "--out", out)
    assert (status, printed) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not out.exists()


def test_a_ratio_between_is_refused_where_labels_are_given(labels, tmp_path):
    noise = ("--noise", f"given:{labels}#human", "--out", tmp_path / "out")
    status, _, err = mcr2("table", *noise, "--ratios", 0, 0.5)
    assert (status, "ratio is 0.5; it must be 0 (the data's labels) or 1" in err) == (2, True)


# --- mcr2 noise


@pytest.mark.parametrize("noise", ["pair_flip", "margin", "open_set:{foreign}"])
def test_noise_is_shown_before_it_is_used(noise, foreign, tmp_path):
    out, given = tmp_path / "out", noise.format(foreign=foreign)
    options = ("--subset", 300, "--noise", given, "--ratio", 0.2, "--seed", 3, "--out", out)
    status, printed, _ = mcr2("noise", "digits", *options)
    assert status == 0
    spec = RunSpec("ce", noise=given, ratio=0.2, seed=3, subset=300)
    held = json.loads((out / "noise.json").read_text())
    assert (
        f"of 300 labels {held['redrawn_share']:.1%} redrawn, {held['wrong_share']:.1%} wrong"
        in printed
    )
    assert held["wrong_share"] == len(held["wrong_indices"]) / 300
    data = prepare(spec, load(spec), load_other(spec))
    assert held["hash"] == data.corruption.hash
    assert held["indices"] == data.corruption.indices.tolist()
    assert all((out / f"{name}.png").exists() for name in ("transition", "sheet"))
    first = f"{data.corruption.transition[0, 0]:.3f}"
    assert first in printed.splitlines()[3]


# --- what is measured of samples without a true class


def test_measures_by_true_labels_are_those_of_the_samples_that_have_one():
    generator = torch.Generator().manual_seed(0)
    H = torch.randn(90, 6, generator=generator)
    truth = torch.arange(90) % 3
    given = torch.where(torch.arange(90) % 4 == 0, (truth + 1) % 3, truth)
    truth[:20] = -1
    whole = evaluate_features(Labelled(H, given, truth), Labelled(H, given), num_classes=3)
    known = evaluate_features(
        Labelled(H[20:], given[20:], truth[20:]), Labelled(H, given), num_classes=3
    )
    same = [k for k in known.measures if "/clean/" in k and ("/-/" in k or "+clean" in k)]
    same = [k for k in same if not k.endswith("_about_train")]  # about the means of all
    assert len(same) > 20
    assert {k: whole.measures[k] for k in same} == {k: known.measures[k] for k in same}
    nothing = evaluate_features(Labelled(H, given, truth * 0 - 1), num_classes=3)
    key = measure_key("fit_corrupted", split="train", labels="noisy", readout="ridge")
    fitted = measure_key("fit_noisy", split="train", labels="noisy", readout="ridge")
    assert nothing.measures[key] == nothing.measures[fitted]
    assert not any("/clean/" in key for key in nothing.measures)


def test_what_has_no_true_class_is_never_recovered():
    found = memorization([0, 1, 0, 1], [0, 0, 0, 1], [-1, 1, 1, 1])
    assert (found.fit_noisy, found.fit_corrupted, found.recovered) == (0.75, 2 / 3, 0.5)
    assert memorization([0, 1], [0, 1], [-1, 1]).recovered is None


def test_confusion_counts_like_a_loop():
    rs = np.random.RandomState(0)
    guess, noisy, true = rs.randint(0, 4, 200), rs.randint(0, 4, 200), rs.randint(-1, 4, 200)
    expected = np.zeros((3, 5, 4), int)
    for p, y, t in zip(guess, noisy, true, strict=True):
        expected[:, t % 5, y] += [1, p == y, p == t]
    assert confusion(guess, noisy, true, 4).tolist() == expected.tolist()


def test_a_study_sums_to_its_memorization(open_set):
    from experiments.report.axis import RATIO
    from experiments.report.results import Results

    out = open_set[0]
    results = Results("digits", (RATIO,), rows(out), folder_of_runs(out))
    (counts,) = confusions(results, method="ce", ratio=0.25)
    wrong = counts * (1 - np.eye(11, 10, dtype=int))
    row = next(r for r in rows(out) if r["ratio"] == 0.25 and r["selection"] == "last")
    assert wrong[1].sum() / wrong[0].sum() == pytest.approx(row["fit_corrupted"])
