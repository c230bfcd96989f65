"""Transfer, test collapse, the terminal phase, margins and imbalance: measures, verdicts, files."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from experiments.commands.cli import main
from experiments.report.results import Results
from experiments.runs.machine import Machine
from experiments.runs.runner import kept_encoder, plan
from experiments.runs.specs import from_dict
from experiments.studies import collapse_on_test, imbalance, margins, terminal, transfer
from experiments.studies.collapse_on_test import CollapseOnTest
from experiments.studies.imbalance import Imbalance
from experiments.studies.margins import MarginsStudy
from experiments.studies.terminal import Terminal
from experiments.studies.transfer import Transfer
from mcr2.data import load_dataset, to_float
from mcr2.records import load_run, read_signed

OMNIGLOT = Path(__file__).parents[2] / "shared/data/omniglot-small.npz"

#: What makes a run of a second.
SMALL = ["--epochs", "2", "--threads", "1", "--jobs", "1", "--seeds", "0"]
NETWORK = ["--set", "backbone=resnet10_w8", "batch_size=50"]


def study(name, out, *options, settings=()):
    """Run a study as its command does, and return what its table.json says."""
    command = ["study", name, "--out", str(out), *SMALL, *options, *NETWORK, *settings]
    assert main(command) == 0
    return json.loads((out / "table.json").read_text())


def stamps(out):
    return {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*.json")}


def made_up(kind, extra, rows=None, runs=()):
    """Results with these measured rows; those of runs name methods and values of the axes."""
    axes = kind().study_axes()
    if rows is None:
        keys = ("method", "seed", *(axis.name for axis in axes))
        rows = [{key: row[key] for key in keys} for row in extra]
    return Results("made up", axes, rows, runs, extra=extra)


def said(lines, claim):
    """What a verdict says of a claim, up to its first bracket or full stop."""
    (line,) = (line for line in lines if line.startswith(claim))
    assert "Criterion: " in line
    return line.removeprefix(f"{claim}: ").partition(" (")[0].partition(".")[0]


def simplex(K):
    return math.sqrt(K / (K - 1)) * (torch.eye(K, dtype=torch.float64) - 1 / K)


def cdnv_by_loops(H, y):
    """CDNV as its definition reads."""
    H, y = np.asarray(H, dtype=np.float64), np.asarray(y)
    means = {k: H[y == k].mean(0) for k in set(y)}
    spread = {k: ((H[y == k] - means[k]) ** 2).sum(1).mean() for k in set(y)}
    pairs = [(i, j) for i in means for j in means if i < j]
    return np.mean(
        [(spread[i] + spread[j]) / (2 * ((means[i] - means[j]) ** 2).sum()) for i, j in pairs]
    )


# --- transfer -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transferred(tmp_path_factory):
    out = tmp_path_factory.mktemp("transfer") / "out"
    options = ["--sources", "2", "4", "--held-out", "3", "--methods", "ce", "--episodes", "5"]
    return out, study("transfer", out, *options, "--layers", "stage2"), options


def test_transfer_measures_what_features_extracted_by_hand_say(transferred):
    out, value, _ = transferred
    rows = value["measured"]
    assert [(r["classes"], r["layer"]) for r in rows] == [
        (count, layer) for count in (2, 4) for layer in ("pixels", "stage2", "features")
    ]
    whole = load_dataset("digits")
    for folder in (out / "runs").iterdir():
        record = load_run(folder).record
        spec = from_dict(record.spec)
        (planned,) = plan([spec], out, Machine())
        assert planned.key == record.key
        encoder, data = kept_encoder(replace(planned, folder=folder), Machine())
        assert data.dataset.classes == whole.classes[: spec.classes[0]]
        kept = {}
        encoder.backbone.stage2.register_forward_hook(
            lambda _module, _given, made, kept=kept: kept.update(stage2=made.mean((2, 3)))
        )
        encoder.eval()
        held_out = whole.of_classes([7, 8, 9])
        splits = {"train": (data.train,), "test": (data.test,)}
        splits["held_out"] = (held_out.train, held_out.test)
        for name, parts in splits.items():
            images = to_float(torch.cat([part.images for part in parts]))
            y = torch.cat([part.labels for part in parts])
            with torch.no_grad():
                found = {"features": encoder(images), **kept, "pixels": images.flatten(1)}
            for row in rows:
                if row["classes"] == spec.classes[0]:
                    expected = cdnv_by_loops(found[row["layer"]], y)
                    assert row[f"cdnv_{name}"] == pytest.approx(expected, rel=1e-4)


def test_transfer_goes_on_from_what_was_measured(transferred, capsys):
    out, value, options = transferred
    before = stamps(out)
    assert study("transfer", out, *options, "--layers", "stage2")["measured"] == value["measured"]
    assert stamps(out) == before
    assert {path.stem for path in out.glob("*.png")} == {"transfer"}
    printed = capsys.readouterr().out
    assert "CDNV of the features, by number of source classes" in printed
    # Other episodes are measured anew, and no run is.
    more = study("transfer", out, *options[:-1], "6", "--layers", "stage2")
    after = {path: stamp for path, stamp in stamps(out).items() if before[path] != stamp}
    assert {path.name for path in after} == {"measured.json"}
    assert more["measured"] != value["measured"]


def test_what_was_measured_and_damaged_is_measured_again(transferred, capsys):
    out, _, options = transferred
    path = next(iter(out.glob("runs/*/measured.json")))
    rows = read_signed(path)["rows"]
    path.write_text(path.read_text().replace("0.", "1.", 1))
    study("transfer", out, *options[:-1], "6", "--layers", "stage2")
    assert read_signed(path)["rows"] == rows
    assert "set aside as measured.json.damaged" in capsys.readouterr().err


def test_a_measurement_that_fails_is_a_failed_row(tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(Imbalance, "measure", fail)
    command = ["study", "imbalance", "--out", str(tmp_path / "out"), *SMALL, "--subset", "60"]
    assert main([*command, "--methods", "ce", "--imbalances", "1", *NETWORK]) == 1
    assert "ce, imbalance 1, seed 0: failed, RuntimeError: no such luck" in capsys.readouterr().out
    assert next(tmp_path.glob("out/runs/*/error.txt")).read_text().startswith("RuntimeError")


def layer_row(method, seed, count, cdnv, accuracy, layer="features"):
    row = {"method": method, "seed": seed, "classes": count, "layer": layer, "cdnv_held_out": cdnv}
    return row | {"class_mean_5": accuracy}


@pytest.mark.parametrize("sign", [1, -1])
def test_verdicts_on_transfer_follow_the_measurements(sign):
    extra = []
    for seed in range(3):
        for i, count in enumerate((2, 5, 10)):
            up = 0.5 + sign * 0.1 * i + 0.01 * seed
            extra.append(layer_row("ce", seed, count, 1 - up, up))
            extra.append(layer_row("mcr2", seed, count, 1 - up, up + sign * 0.05))
            for method in ("ce", "mcr2"):
                extra.append(layer_row(method, seed, count, None, 0.6, "pixels"))
                extra.append(layer_row(method, seed, count, None, up - sign * 0.1, "stage1"))
    lines = transfer.verdicts(made_up(Transfer, extra))
    verdict = "holds" if sign > 0 else "does not hold here"
    for claim in (
        "Held-out classes are the more collapsed the more source classes there were",
        "Held-out classes are told apart the better the more source classes there were",
        "Features tell held-out classes apart better than pixels do",
        "Features of mcr2 transfer better than those of ce",
    ):
        assert said(lines, claim) == verdict
    assert said(lines, "Held-out classes that are more collapsed are told apart better") == "holds"
    opposite = "does not hold here" if sign > 0 else "holds"
    assert said(lines, "A stage of the network transfers better than the features") == opposite


def test_collapse_may_not_go_with_accuracy():
    extra = [
        layer_row("ce", seed, count, 0.1 * count, 0.1 * count, layer)
        for seed in (0, 1)
        for count in (2, 5)
        for layer in ("pixels", "features")
    ]
    lines = transfer.verdicts(made_up(Transfer, extra))
    claim = "Held-out classes that are more collapsed are told apart better"
    assert said(lines, claim) == "does not hold here"


@pytest.mark.skipif(not OMNIGLOT.exists(), reason="needs ../shared/data (Omniglot's small sets)")
def test_transfer_on_many_classes_of_a_file(tmp_path):
    options = ["--dataset", str(OMNIGLOT), "--sources", "5", "--held-out", "12", "--layers"]
    how = ["--epochs", "1", "--methods", "mcr2", "--episodes", "3"]
    command = ["study", "transfer", "--out", str(tmp_path / "out"), *SMALL[2:], *options, "stage3"]
    assert main([*command, *how, *NETWORK, "stem_stride=2"]) == 0
    rows = json.loads((tmp_path / "out/table.json").read_text())["measured"]
    assert [row["ways"] for row in rows] == [5, 5, 5]
    assert all(0 <= row["ridge_1"] <= 1 for row in rows)


# --- test collapse ------------------------------------------------------------------------------


def test_collapsed_features_have_no_variability_and_no_bound():
    y = torch.arange(50) % 5
    found = collapse_on_test.measures_of(simplex(5)[y], y, 3 * simplex(5)[y], y, 5)
    zero = ("cdnv_train", "cdnv_test", "cdnv_about_train")
    assert found["cdnv_about_train"] > 0.1  # the training means are elsewhere
    assert [found[name] for name in zero[:2]] == pytest.approx([0, 0], abs=1e-12)
    assert (found["pairs"], found["violated"]) == (10, 0)
    same = collapse_on_test.measures_of(simplex(5)[y], y, simplex(5)[y], y, 5)
    assert [same[name] for name in (*zero, "A", "B", "bound")] == pytest.approx([0] * 6, abs=1e-12)


def test_test_collapse_end_to_end(tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--sizes", "60", "120", "--loss", "2.4"]
    rows = study("test_collapse", out, *options)["measured"]
    assert {(row["subset"], row["stop"]) for row in rows} >= {(60, "equal epochs"), (120, None)}
    assert not any(row["violated"] for row in rows)
    for size in (60, 120):
        along = [r for r in rows if r["subset"] == size and r["stop"] is None]
        assert [row["epoch"] for row in along] == [0, 1, 2]
        reached = [row for row in along if row["loss"] <= 2.4][:1]
        stops = {r["stop"]: r for r in rows if r["subset"] == size and r["stop"]}
        assert [r["epoch"] for r in reached] == [
            row["epoch"] for stop, row in stops.items() if stop == "equal loss"
        ]
        assert stops["equal epochs"] == along[-1] | {"stop": "equal epochs"}
    assert "Bound (9) holds: holds (ce)" in capsys.readouterr().out
    assert (out / "collapse_by_size.png").stat().st_size > 10_000
    before = stamps(out)
    study("test_collapse", out, *options)
    assert stamps(out) == before


def size_rows(at_loss, at_epochs, train=0.01, violated=0):
    """Rows of two seeds with CDNV on test at two sizes, by stop."""
    return [
        {"method": "ce", "seed": seed, "subset": size, "stop": stop, "cdnv_test": value}
        | {"cdnv_train": train, "pairs": 10, "violated": violated}
        for seed in (0, 1)
        for stop, values in zip(collapse_on_test.STOPS, (at_loss, at_epochs), strict=True)
        for size, value in zip((100, 800), values, strict=True)
    ]


def test_verdicts_on_test_collapse_follow_the_measurements():
    both = size_rows((0.4, 0.2), (0.4, 0.1))
    lines = collapse_on_test.verdicts(made_up(CollapseOnTest, both), 0.05)
    assert said(lines, "Bound (9) holds") == "holds"
    assert said(lines, "Test samples collapse more with a larger training set") == "holds"
    assert said(lines, "Test samples collapse less than training samples") == "holds"
    decides = "Where one stops decides whether a larger training set helps"
    assert said(lines, decides) == "does not hold here"

    mixed = size_rows((0.2, 0.4), (0.4, 0.1), train=0.3, violated=1)
    lines = collapse_on_test.verdicts(made_up(CollapseOnTest, mixed), 0.05)
    assert said(lines, "Bound (9) holds") == "does not hold here"
    assert said(lines, "Test samples collapse more with a larger training set") == "holds in part"
    assert said(lines, "Test samples collapse less than training samples") == "does not hold here"
    assert said(lines, decides) == "holds"


# --- terminal -----------------------------------------------------------------------------------


@given(st.lists(st.floats(-0.03, 0.03), min_size=2, max_size=8))
@settings(max_examples=60, deadline=None)
def test_equivalence_is_two_one_sided_tests(differences):
    found = terminal.equivalence(differences)
    if np.std(differences) < 1e-9:
        assert found.holds == (abs(found.mean) <= terminal.MARGIN)
        return
    above = ttest_1samp(differences, -terminal.MARGIN, alternative="greater").pvalue
    below = ttest_1samp(differences, terminal.MARGIN, alternative="less").pvalue
    if abs(max(above, below) - 0.05) > 1e-9:
        assert found.holds == (max(above, below) < 0.05)
    assert not (found.holds and found.is_refuted)


def test_one_seed_says_nothing_of_equivalence():
    assert terminal.equivalence([0.0]) is None


def test_terminal_end_to_end(tmp_path):
    out = tmp_path / "out"
    options = ["--methods", "ce", "fixed_etf", "--decays", "0", "--subset", "60"]
    value = study("terminal", out, *options, settings=["evaluate_every=1"])
    assert {(row["method"], row["feature_dim"]) for row in value["rows"]} == {
        (method, dim) for method in ("ce", "fixed_etf") for dim in (10, 64)
    }
    assert (out / "terminal.png").stat().st_size > 10_000
    counts = {}
    for folder in (out / "runs").iterdir():
        record = load_run(folder).record
        where = record.spec["method"], record.spec["feature_dim"]
        counts[where] = terminal.parameters(record)
    # The classifier, K (d + 1), is what is not learnt.
    assert counts["ce", 64] - counts["fixed_etf", 64] == 10 * 65
    assert counts["ce", 10] - counts["fixed_etf", 10] == 10 * 11
    assert counts["ce", 64] > counts["ce", 10]


def terminal_run(name, seed, begin, end, accuracy):
    """A run whose terminal phase begins at epoch 10 of 20, with measures there and at the end."""
    parts = ("-/nc1", "-/nc2_etf", "head/nc3", "head/nc4")
    measures = {f"features/train/noisy/{part}": (begin, end) for part in parts}
    measures["features/test/clean/head/accuracy"] = accuracy
    history = [
        {"epoch": epoch, "measures": {key: pair[i] for key, pair in measures.items()}}
        for i, epoch in enumerate((10, 20))
    ]
    return SimpleNamespace(
        folder=Path(f"{name}-{seed}"),
        record=SimpleNamespace(history=history, spec={"method": name}),
        evaluation=SimpleNamespace(terminal_epoch=10),
    )


def terminal_results(end, accuracy, fixed):
    """Results of cross-entropy and a fixed classifier, the latter so much better."""
    rows, runs = [], []
    for seed in range(3):
        for name, more in (("ce", 0.0), ("fixed_etf", fixed)):
            runs.append(terminal_run(name, seed, 0.2, end, (0.95, accuracy)))
            row = {"method": name, "feature_dim": 64, "weight_decay": 0.0, "ratio": 0.0}
            row |= {"seed": seed, "selection": "last", "status": "finished", "labels": "same"}
            value = 0.95 + 0.001 * seed + more * (1 + 0.01 * seed)
            rows.append(row | {"run": f"{name}-{seed}", "test_accuracy": value})
    return made_up(Terminal, (), rows, runs)


def test_verdicts_on_the_terminal_phase_follow_the_measurements():
    equivalent = "A fixed simplex classifier is equivalent to a learnt one"
    lines = terminal.verdicts(terminal_results(end=0.1, accuracy=0.96, fixed=0.001))
    for claim in terminal.CLAIMS.values():
        assert said(lines, f"Past zero error {claim}") == "holds"
    assert said(lines, "Past zero error test accuracy does not suffer") == "holds"
    assert said(lines, equivalent) == "holds"

    lines = terminal.verdicts(terminal_results(end=0.3, accuracy=0.9, fixed=-0.04))
    for claim in terminal.CLAIMS.values():
        assert said(lines, f"Past zero error {claim}") == "does not hold here"
    assert said(lines, "Past zero error test accuracy does not suffer") == "does not hold here"
    assert said(lines, equivalent) == "does not hold here"

    results = terminal_results(end=0.1, accuracy=0.96, fixed=0.0)
    for row in results.rows:
        if row["method"] == "ce":
            row["test_accuracy"] += 0.03 * (row["seed"] - 1)
    assert f"{equivalent}: open for fixed_etf d=64" in "\n".join(terminal.verdicts(results))


# --- margins ------------------------------------------------------------------------------------


def test_collapsed_classes_have_equal_margins_and_the_widest_classifier():
    K, n = 4, 5
    y = torch.arange(K * n) % K
    W = simplex(K).float()
    encoder = SimpleNamespace(training=False, train=lambda _: None, classifier=lambda: (W, None))
    found = replaced(encoder, W[y])
    split = SimpleNamespace(images=torch.zeros(K * n, 1, 2, 2, dtype=torch.uint8), labels=y)
    _, row = margins.margins_of(found, split, split)
    # w_y·w_y − w_y·w_j = 1 + 1/(K − 1); ‖W‖_F · mean ‖h‖ = √K.
    assert row["raw"] == pytest.approx([K / (K - 1)] * margins.PLACES, rel=1e-5)
    assert row["min_normalised"] == pytest.approx(K / (K - 1) / math.sqrt(K), rel=1e-5)
    assert row["spread"] == pytest.approx(0, abs=1e-5)
    assert (row["train_accuracy"], row["test_accuracy"]) == (1, 1)
    assert margins.angle_to_svm(found, split) == pytest.approx(0, abs=1e-3)


def replaced(encoder, features):
    """An encoder that returns these features, whatever the images."""

    class Fixed:
        training = False

        def __call__(self, images):
            return features[: len(images)]

        def train(self, mode=True):
            return self

        def classifier(self):
            return encoder.classifier()

    return Fixed()


@given(n=st.integers(2, 300), share=st.sampled_from(margins.SHARES), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_samples_are_chosen_by_their_margins(n, share, seed):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    count = max(2, round(share * n))
    kept = {w: margins.choose(order, share, w, seed).tolist() for w in margins.WHICH}
    assert kept["smallest"] == order[:count].tolist()
    assert kept["largest"] == order[n - count :].tolist()
    assert len(set(kept["random"])) == count
    assert kept["random"] == margins.choose(order, share, "random", seed).tolist()


def test_margins_end_to_end(tmp_path, capsys):
    out = tmp_path / "out"
    command = [
        "study",
        "margins",
        "--out",
        str(out),
        *SMALL[2:],
        "--epochs",
        "20",
        "--subset",
        "60",
    ]
    assert main([*command, "--looks", "3", *NETWORK, "batch_size=30"]) == 0
    rows = json.loads((out / "table.json").read_text())["measured"]
    course = [row for row in rows if row["kind"] == "course"]
    assert {0, 1, 20} <= {row["epoch"] for row in course}
    for row in course:
        assert row["raw"] == sorted(row["raw"])
        assert (row["min_raw"] > 0) == (row["angle"] is not None) == (row["train_accuracy"] == 1)
    (begin,) = (row["epoch"] for row in course if row["look"] == "separation")
    continued = [row for row in rows if row["kind"] == "continued"]
    assert [(r["share"], r["which"], r["samples"]) for r in continued] == [
        (share, which, {1.0: 60, 0.1: 6, 0.01: 2}[share])
        for share, which in margins.continuations()
    ]
    # As many steps as all samples would take.
    assert {row["steps"] for row in continued} == {2 * (20 - begin)}
    names = {"margin_distributions", "past_separation"}
    assert {path.stem for path in out.glob("*.png")} == names
    assert "Past separation the smallest margin goes on growing: " in capsys.readouterr().out


def margin_rows(end, few):
    """Rows of two seeds: a course from separation on, and continuations."""
    rows = []
    for seed in (0, 1):
        base = {"method": "ce", "seed": seed, "ratio": 0.0}
        for look, grown, fallen in (("separation", 0.1, 30.0), ("end", *end)):
            measured = {"min_normalised": grown, "angle": fallen, "spread": fallen}
            rows.append(base | {"kind": "course", "look": look, **measured})
        for share, which in margins.continuations():
            accuracy = 0.95 if share == 1 else few
            named = {"kind": "continued", "share": share, "which": which}
            rows.append(base | named | {"test_accuracy": accuracy})
    return rows


def test_verdicts_on_margins_follow_the_measurements():
    claims = (
        "Past separation the smallest margin goes on growing",
        "Past separation W turns towards the hard-margin SVM",
        "Past separation margins draw together",
        "From separation on 10% of the samples suffice",
        "From separation on 1% of the samples suffice",
    )
    lines = margins.verdicts(made_up(MarginsStudy, margin_rows(end=(0.2, 20.0), few=0.945)))
    assert [said(lines, claim) for claim in claims] == ["holds"] * 5
    lines = margins.verdicts(made_up(MarginsStudy, margin_rows(end=(0.05, 40.0), few=0.8)))
    assert [said(lines, claim) for claim in claims] == ["does not hold here"] * 5


# --- imbalance ----------------------------------------------------------------------------------


def test_cosines_between_small_classes_of_exact_frames():
    K = 6
    found = imbalance.between(simplex(K) + 7, simplex(K))  # means are centred, W is not
    assert found == pytest.approx({"classifiers": -1 / (K - 1), "means": -1 / (K - 1)})
    y = torch.arange(24) % K
    assert imbalance.overlap(torch.eye(K)[y], y, [3, 4, 5]) == pytest.approx(0, abs=1e-12)
    # The sign of a sample, which ΔR does not see, does not count.
    signs = torch.tensor([1.0, -1.0]).repeat_interleave(12)[:, None]
    assert imbalance.overlap(signs * torch.eye(K)[y % 2], y, [3, 5]) == pytest.approx(1)


def test_the_optimum_is_that_of_minority_collapse():
    found = {ratio: imbalance.optimum([100] * 5 + [100 // ratio] * 5) for ratio in (1, 10, 100)}
    cosines = [found[ratio]["classifiers"] for ratio in (1, 10, 100)]
    assert cosines == pytest.approx([-1 / 9, 0.517, 1.0], abs=2e-3)


def test_imbalance_end_to_end(tmp_path):
    out = tmp_path / "out"
    options = ["--methods", "ce", "mcr2", "--imbalances", "1", "4", "--subset", "120"]
    rows = study("imbalance", out, *options)["measured"]
    assert {(r["method"], r["imbalance"], r["n_large"], r["n_small"]) for r in rows} == {
        (method, ratio, 12, 12 / ratio) for method in ("ce", "mcr2") for ratio in (1, 4)
    }
    for row in rows:
        assert (row["classifiers"] is None) == (row["method"] == "mcr2")
        folder = next(out.glob(f"runs/{row['method']}-imbalance{row['imbalance']}-*"))
        measures = load_run(folder).evaluation.selections["last"]["measures"]
        by = "head" if row["method"] == "ce" else "nearest_subspace@3"
        test = load_dataset("digits").test.labels
        small = float((test >= 5).double().mean())
        accuracy = small * row["small"] + (1 - small) * row["large"]
        assert accuracy == pytest.approx(measures[f"features/test/clean/{by}/accuracy"])
    assert (out / "imbalance.png").stat().st_size > 10_000


def imbalance_rows(sign):
    """Rows of two seeds in which everything claimed happens, or its opposite."""
    rows = []
    for seed in (0, 1):
        for ratio, up in ((1.0, 0.0), (64.0, 0.4 * sign)):
            best = {"optimum_classifiers": max(up, 0), "optimum_means": up}
            for method in ("ce", "mcr2"):
                ours = 0.1 * sign * (method == "mcr2")
                row = {"method": method, "seed": seed, "imbalance": ratio, **best}
                row |= {"classifiers": up if method == "ce" else None, "means": up}
                rows.append(row | {"overlap": 0.5 - ours, "small": 0.5 - up + ours})
    return rows


@pytest.mark.parametrize("sign", [1, -1])
def test_verdicts_on_imbalance_follow_the_measurements(sign):
    lines = imbalance.verdicts(made_up(Imbalance, imbalance_rows(sign)))
    expected = "holds" if sign > 0 else "does not hold here"
    for claim in (
        "Classifiers of small classes draw together as classes grow unequal",
        "They do so as the layer-peeled model's optimum does",
        "Class means of small classes draw together as classes grow unequal",
        "Small classes are classified worse as classes grow unequal",
        "The rate keeps small classes further apart than cross-entropy does",
        "The rate classifies small classes better than cross-entropy does",
    ):
        assert said(lines, claim) == expected


# --- on other data ------------------------------------------------------------------------------


def test_two_classes_have_a_terminal_phase_and_three_no_transfer():
    specs = Terminal(methods=("ce",), dims=(2, 3, 64), decays=(0.0,), seeds=(0,)).specs()
    assert [(s.feature_dim, s.n_components) for s in specs] == [(2, 1), (3, 2), (64, 3)]
    study = Transfer(sources=(2,))
    study.__dict__["all_classes"] = 3
    with pytest.raises(ValueError, match="3 classes are too few to hold 2 of them out"):
        _ = study.held_out_classes


@pytest.mark.parametrize("name", ["imbalance", "test_collapse"])
def test_noise_may_come_from_other_data(name, tmp_path):
    images, labels = np.arange(60 * 64).reshape(60, 1, 8, 8) % 251, np.arange(60) % 2
    other = tmp_path / "other.npz"
    images = images.astype(np.uint8)
    np.savez(other, x_train=images, y_train=labels, x_test=images, y_test=labels)
    options = ["--noise", f"open_set:{other}", "--ratios", "0.3", "--methods", "ce"]
    sizes = ["--sizes", "60"]
    if name == "imbalance":
        sizes = ["--imbalances", "2", "--subset", "120"]
    assert study(name, tmp_path / "out", *options, *sizes)["measured"]


def test_an_estimate_says_what_it_leaves_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiments.report.estimate.report_estimate", lambda *_: "an hour")
    assert main(["study", "margins", "--out", str(tmp_path / "new"), "--estimate"]) == 0
    assert capsys.readouterr().out == (
        "an hour\nnot counted: going on from separation, seven times, and an SVM at every look\n"
    )


# --- mistakes -----------------------------------------------------------------------------------

MISTAKES = {
    "transfer --sources 9": "sources is 9; it must be between 2 and 8",
    "transfer --layers stage9": "unknown layers 'stage9'; choose from stem, stage1",
    "transfer --held-out 6": "held_out is 6; it must be between 2 and 5",
    "transfer --set classes=3": "classes is set and varied; do one of them",
    "transfer --episodes 1": "episodes is 1",
    "transfer --ratios 0 0.2": "the number of ratios is 2; it must be between 1 and 1",
    "test_collapse --methods mcr2": "the loss of mcr2 is not a mean over samples",
    "test_collapse --loss 0": "loss is 0",
    "test_collapse --sizes 60 --subset 50": "subset and sizes both say how many images",
    "terminal --methods mcr2": "mcr2 has no classifier of its own",
    "terminal --set weight_decay=0": "weight_decay is set and varied",
    "margins --looks 1": "looks is 1",
    "margins --methods mcr2": "mcr2 has no classifier of its own",
    "imbalance --imbalances 0.5": "imbalance is 0.5; it must be at least 1",
}


@pytest.mark.parametrize("options", MISTAKES)
def test_a_mistake_is_one_line(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["study", *options.split(), "--out", "new"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert MISTAKES[options] in err
    assert list(tmp_path.iterdir()) == []
