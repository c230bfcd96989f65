"""``mcr2 audit``: of features, images, folders and runs; what it leaves, cleans and refuses."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.commands.cli import main
from experiments.report.audit import Findings, cell, write_samples
from experiments.runs.runner import reopen
from mcr2.audit import audit, pixel_features, quality
from mcr2.data import load_dataset, load_training
from mcr2.evaluation import read_features
from mcr2.readouts import fit_readout
from mcr2.records import load_run

SMALL = ["--subset", "120", "--epochs", "2", "--seed", "3"]
SMALL += ["--set", "backbone=resnet10_w8", "batch_size=60", "evaluate_every=1"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def digits():
    """Images of digits, their labels with every tenth wrong, and the true ones."""
    split = load_dataset("digits", subset=300).train
    y = split.labels.clone()
    y[::10] = (y[::10] + 1) % 10
    return split.images, y, split.labels


def rows_of(folder):
    with open(f"{folder}/audit.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def facts_of(folder):
    with open(f"{folder}/audit.json", encoding="utf-8") as file:
        return json.load(file)


def test_features_of_a_file(place, digits, capsys):
    images, y, true = digits
    H = images.flatten(1).float().numpy()
    np.savez("f.npz", features=H, labels=y, clean_labels=true)
    assert main(["audit", "f.npz", "--out", "report", "--compare"]) == 0
    printed = capsys.readouterr().out
    assert "f.npz: 300 samples of 10 classes, features of the file" in printed
    rows, facts, found = rows_of("report"), facts_of("report"), audit(H, y)
    assert list(rows[0])[:5] == [
        *("index", "given_label", "suggested_label", "label_score", "is_label_issue")
    ]
    assert [int(row["index"]) for row in rows] == found.ranking.tolist()
    assert rows[0]["is_label_issue"] == "True"
    scores = [float(row["label_score"]) for row in rows]
    assert scores == sorted(scores)  # small where suspicious, as cleanlab's
    for row in rows:
        i = int(row["index"])
        assert float(row["score"]) == float(found.scores[i])
        assert (row["given_label"], row["true_label"]) == (str(int(y[i])), str(int(true[i])))
        assert row["suggested_label"] == row["predicted_label"] == str(int(found.suggested[i]))
        assert row["is_wrong"] == str(bool(y[i] != true[i]))
        assert row["is_label_issue"] == str(row["given_label"] != row["suggested_label"])
    assert facts["truth"]["wrong"] == 30
    expected = quality(found.scores, y, true)
    assert facts["truth"]["quality"]["coding_length"]["auroc"] == expected.auroc
    assert {"knn", "ridge_cv", "subspace", "ensemble"} < set(facts["truth"]["quality"])
    assert [one["method"] for one in facts["estimates"]] == ["disagreement", "confident_joint"]
    assert {path.name for path in (place / "report").iterdir()} == {
        *("audit.csv", "audit.json", "suggestions.png")
    }
    assert main(["audit", "f.npz", "--out", "report", "--score", "knn"]) == 0  # made anew
    assert facts_of("report")["score"] == "knn"


def test_compressed_and_half_precision_features_without_truth(place, digits, capsys):
    images, y, _ = digits
    H = images.flatten(1).half().numpy()
    np.savez("plain.npz", features=H, labels=y)
    np.savez_compressed("packed.npz", features=H, labels=y)
    for name in ("plain", "packed"):
        assert main(["audit", f"{name}.npz", "--out", name]) == 0
    assert rows_of("plain") == rows_of("packed")
    assert "truth" not in capsys.readouterr().out
    assert facts_of("plain")["truth"] is None
    assert "is_wrong" not in rows_of("plain")[0]
    mapped, read = (read_features("plain.npz", mapped=each).train.features for each in (1, 0))
    assert torch.equal(mapped, read)
    mapped[0] = 7  # does not reach the file
    assert torch.equal(read_features("plain.npz").train.features, read)


def test_a_mapped_array_lies_within_its_file(place):
    np.savez("f.npz", features=np.ones((50, 4), np.float32), labels=np.arange(50) % 2)
    content = (place / "f.npz").read_bytes()
    longer = content.replace(b"(50, 4)", b"(99, 4)", 1)
    (place / "longer.npz").write_bytes(longer)
    with pytest.raises(ValueError, match=r"longer\.npz: array features: .* not as long"):
        read_features("longer.npz", mapped=True)


def test_images_of_a_file_by_their_pixels_and_a_cleaned_file(place, digits, capsys):
    images, y, true = digits
    np.savez("im.npz", x_train=images.numpy(), y_train=y, y_train_clean=true)
    before = (place / "im.npz").read_bytes()
    assert main(["audit", "im.npz", "--out", "report", "--pages", "2"]) == 0
    found = audit(pixel_features(images), y)
    assert [int(row["index"]) for row in rows_of("report")] == found.ranking.tolist()
    assert (place / "report/sheet-2.png").is_file()

    drop = ["audit", "im.npz", "--apply", "drop", "--share", "0.1", "--out", "dropped.npz"]
    assert main(drop) == 0
    kept = load_training("dropped.npz")
    index = sorted(set(range(300)) - set(found.ranking[:30].tolist()))
    assert torch.equal(kept.split.images, images[index])
    assert torch.equal(kept.split.labels, y[index])
    assert torch.equal(kept.split.clean_labels, true[index])
    with np.load("dropped.npz") as arrays:
        assert arrays["index"].tolist() == index

    assert main([*drop[:3], "relabel", *drop[4:7], "relabelled.npz"]) == 0
    changed = int((found.suggested != y)[found.ranking[:30]].sum())
    told = f"300 samples, {changed} of the 30 most suspicious samples relabelled"
    assert told in capsys.readouterr().out
    expected = y.clone()
    expected[found.ranking[:30]] = found.suggested[found.ranking[:30]]
    assert torch.equal(load_training("relabelled.npz").split.labels, expected)
    assert (expected != true).sum() < (y != true).sum()

    # Never over what is there: neither the data nor anything else, nor a link to nothing.
    (place / "link.npz").symlink_to("nothing.npz")
    for there in ("im.npz", "dropped.npz", "link.npz"):
        assert main([*drop[:-1], there]) == 2
        assert "never over one" in capsys.readouterr().err
    assert (place / "im.npz").read_bytes() == before
    assert not (place / "nothing.npz").exists()


def test_a_cleaned_file_of_features_keeps_all_that_was_in_it(place, digits):
    images, y, _ = digits
    H = images.flatten(1).float().numpy()
    W = np.random.default_rng(0).normal(size=(10, 64))
    np.savez("f.npz", features=H, labels=y, weight=W, test_features=H[:5], test_labels=y[:5])
    clean = ["--apply", "drop", "--share", "0.05", "--out", "cleaned.npz"]
    assert main(["audit", "f.npz", "--score", "own_head_margin", *clean]) == 0
    found = read_features("cleaned.npz")
    assert len(found.train.features) == 285
    assert np.array_equal(found.head[0], W)
    assert torch.equal(found.test.labels, y[:5])


def test_a_flat_folder_with_hostile_names(place, digits, capsys):
    images, y, _ = digits
    names = ["=1+1", "+a", "-b", "@c", "\tx", "a,b", 'q"q', "line\nbreak", "$x$", "plain"]
    for i, (image, label) in enumerate(zip(images, y, strict=True)):
        folder = place / "flat" / names[int(label)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / f"{i:03}.png")
    assert main(["audit", "flat", "--out", "report"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    rows = rows_of("report")
    labels = {row[name] for row in rows for name in ("given_label", "suggested_label")}
    assert labels == {
        *("'=1+1", "'+a", "'-b", "'@c", "\\tx", "a,b", 'q"q', "line\\nbreak", "$x$", "plain")
    }
    assert facts_of("report")["classes"] == sorted(names)
    for row in rows[:50]:
        index = int(row["file"][-7:-4])  # which digit is in the file
        assert row["given_label"] == cell(names[int(y[index])])
        assert row["file"] == cell(f"{names[int(y[index])]}/{index:03}.png")
    assert (place / "report/sheet-1.png").is_file()
    clean = ["--apply", "relabel", "--share", "0.1", "--out", "cleaned.npz"]
    assert main(["audit", "flat", *clean]) == 0
    assert load_training("cleaned.npz").classes == tuple(sorted(names))


def test_a_network_is_trained_first(place, digits, capsys):
    images, y, _ = digits
    np.savez("im.npz", x_train=images[:120].numpy(), y_train=y[:120])
    options = ["--train", "--recipe", "quick", *SMALL[2:]]
    assert main(["audit", "im.npz", *options, "--score", "aum", "--out", "report"]) == 0
    facts = facts_of("report")
    assert (facts["features"], facts["score"]) == ("ce after 2 epochs", "aum")
    again = ["audit", "im.npz", *options, "--score", "aum", "--out", "again"]
    assert main(again) == 0
    assert rows_of("again") == rows_of("report")
    assert main(["audit", "im.npz", *options, "--method", "mcr2", "--score", "aum"]) == 2
    assert "needs a classifier; mcr2 has none" in capsys.readouterr().err


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of runs of a second, of cross-entropy and of MCR²."""
    root = tmp_path_factory.mktemp("runs")
    for method in ("ce", "mcr2"):
        options = ["--method", method, "--ratio", "0.3", "--out", str(root / method)]
        assert main(["train", *SMALL, *options]) == 0
    return root


def test_a_run_is_audited_on_all_its_training_samples(runs, place, capsys):
    opened = reopen(runs / "ce")
    record = load_run(runs / "ce").record
    labels, epochs = opened.data.corruption.labels, sorted(map(int, record.weights))
    assert main(["audit", str(runs / "ce"), "--out", "report", "--score", "aum"]) == 0
    rows, facts = rows_of("report"), facts_of("report")
    assert len(rows) == 120  # those held out, too
    assert facts["truth"]["wrong"] == record.noise["wrong"]
    given = {int(row["index"]): row["given_label"] for row in rows}
    assert [given[i] for i in range(120)] == [str(y) for y in labels.tolist()]
    # By hand: the mean over kept epochs of the head's margin.
    own = torch.zeros(120, dtype=torch.float64)
    for epoch in epochs:
        encoder = opened.encoder(epoch)
        encoder.eval()
        with torch.no_grad():
            H = encoder(opened.data.dataset.train.images.float() / 255)
            W, b = encoder.classifier()
            logits = (H @ W.T + (0 if b is None else b)).double()
        margins = logits[torch.arange(120), labels]
        own += margins - logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    scores = {int(row["index"]): float(row["score"]) for row in rows}
    assert np.allclose([-scores[i] for i in range(120)], own / len(epochs), atol=1e-4)
    rule = ["--selection", "noisy_validation", "--out", "early"]
    assert main(["audit", str(runs / "ce"), *rule]) == 0
    assert "(noisy_validation)" in facts_of("early")["features"]


def test_a_run_without_a_head(runs, place, capsys):
    assert main(["audit", str(runs / "mcr2"), "--out", "report", "--compare"]) == 0
    found = facts_of("report")["truth"]["quality"]
    assert "aum" in found  # by its own readout
    assert "own_head_margin" not in found
    assert main(["audit", str(runs / "mcr2"), "--score", "own_head_margin"]) == 2
    assert "needs a classifier" in capsys.readouterr().err
    opened = reopen(runs / "mcr2")
    readout = opened.run.record.readout
    assert fit_readout(readout, torch.eye(4), [0, 1, 0, 1], num_classes=2)
    assert main(["audit", str(runs / "mcr2"), "--selection", "guess"]) == 2
    assert "choose from last" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("nowhere.npz", "nowhere.npz not found"),
        ("nothing", "unknown data set 'nothing'"),
        ("digits --score guess", "unknown score 'guess'; choose from coding_length"),
        ("digits --score aum", "score 'aum' needs a training; digits has none"),
        ("digits --epochs 3", "--epochs is for --train only"),
        ("digits --selection last2", "--selection is for a run only"),
        ("digits --num-classes 3", "--num-classes is for features only"),
        ("f.npz --train", "--train is for images only"),
        ("f.npz --score own_head_margin", "needs a classifier; f.npz has none"),
        ("f.npz --share 0.1", "--share is of --apply"),
        ("f.npz --apply drop --out x.npz", "--apply drop needs --share and --out FILE.npz"),
        ("f.npz --apply drop --share 0.1", "--apply drop needs --share and --out FILE.npz"),
        ("f.npz --apply drop --share 0.1 --out x", "needs --share and --out FILE.npz"),
        ("f.npz --apply drop --share 1 --out x.npz", "share is 1.0; it must be above 0 and below"),
        ("f.npz --apply keep --share 1 --out x.npz", "keep"),
        ("f.npz --out full", "--out full holds something else"),
        ("f.npz --out f.npz", "--out f.npz is a file"),
        ("f.npz --iterations 0", "iterations is 0; it must be at least 1"),
        ("nan.npz", "features must be finite"),
        ("one.npz", "labels are 1"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_left(arguments, message, place, capsys):
    H, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
    np.savez("f.npz", features=H, labels=y)
    np.savez("nan.npz", features=H * np.nan, labels=y)
    np.savez("one.npz", features=H, labels=y * 0 + 1)
    (place / "full").mkdir()
    (place / "full/notes.txt").write_text("mine")
    before = sorted(place.rglob("*"))
    assert main(["audit", *arguments.split()]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert sorted(place.rglob("*")) == before


def test_a_table_of_samples_is_written_whole(tmp_path):
    H, y = np.random.default_rng(0).normal(size=(30, 3)), np.arange(30) % 2
    true = torch.from_numpy(np.where(np.arange(30) == 7, -1, y))
    found = Findings(audit(H, y), ("\udcff", "b"), true, (), {})
    write_samples(tmp_path / "audit.csv", found)  # a folder's name need not be Unicode
    rows = rows_of(tmp_path)
    assert {row["given_label"] for row in rows} == {"\\udcff", "b"}
    assert {r["index"]: r["true_label"] for r in rows if r["is_wrong"] == "True"} == {"7": ""}
