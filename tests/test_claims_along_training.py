"""The rate plane, memorization and dilation, double descent: their claims, tables and figures."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.commands.cli import main
from experiments.report.axis import RATIO
from experiments.report.canvas import svg
from experiments.report.results import Results
from experiments.report.statistics import in_every_seed, verdict
from experiments.studies import double_descent, memorization_dilation, rate_plane
from experiments.studies.double_descent import WIDTH, min_norm_errors, peak, peaks_near, smooth
from experiments.studies.memorization_dilation import Point, dilation, grows, spreads_less
from experiments.studies.rate_plane import Rates
from mcr2.data import Split, load_dataset, to_float


def outcomes(lines):
    """What the lines of verdicts say."""
    return [line.partition(": ")[2].partition(" (")[0].partition(".")[0] for line in lines]


SMALL = "--subset 60 --epochs 4 --seeds 0 --jobs 1 --set evaluate_every=1 backbone=resnet10_w8"


def study(name, out, *options):
    """Run a study at a tiny size; return its ``table.json`` and the names of its figures."""
    assert main(["study", name, "--out", str(out), *SMALL.split(), *options]) == 0
    value = json.loads((out / "table.json").read_text())
    return value, {path.stem for path in out.glob("*.png")}


def made_up(runs, axes=(RATIO,), extra=()):
    """Results of runs of two seeds: (method, ratio, width) -> what a history has at each epoch."""
    rows, held = [], []
    for seed in (0, 1):
        for (method, ratio, width), history in runs.items():
            folder = Path(f"{method}-{ratio}-{width}-{seed}")
            spec = {"seed": seed, "measured_layers": [], "width": width}
            entries = [{"epoch": i, "lr": 0.1, "measures": m} for i, m in enumerate(history)]
            noise, data = {"wrong": round(100 * ratio)}, {"train": 100, "validation": 0}
            record = SimpleNamespace(
                spec=spec, history=entries, steps=9, readout="ridge", noise=noise, data=data
            )
            held.append(SimpleNamespace(folder=folder, record=record, evaluation=None))
            right = history[-1].get("features/test/clean/ridge/accuracy")
            rows.append(
                {"method": method, "ratio": ratio, "width": width, "seed": seed, "measures": {}}
                | {"selection": "last", "status": "finished", "run": folder.name}
                | {"test_accuracy": right}
            )
    return Results("digits", axes, rows, held, extra=extra)


def test_a_verdict_says_where_a_claim_holds():
    assert verdict("It", {"a": True, "b": None}, "c").startswith("It: holds (a).")
    assert verdict("It", {"a": None}, "c") == "It: not measured. Criterion: c."
    seeds = {"a": [True, None], "b": [True, False], "c": [None], "d": []}
    assert verdict("It", seeds, "c").startswith("It: holds in part (a; not b).")
    many = dict.fromkeys("abcdefghi", False)
    assert verdict("It", many, "c").startswith("It: does not hold here (9 cases).")
    assert verdict("It", dict.fromkeys(many, True), "c") == "It: holds (9 cases). Criterion: c."
    assert verdict("It", {**many, "j": True}, "c").startswith("It: holds in part (j; not 9 cases).")
    assert [in_every_seed(x) for x in ([True, None], [True, False], [None], [])] == [
        True,
        False,
        None,
        None,
    ]


# ------------------------------------------------------------------------------- the rate plane


def rates(*pairs):
    keys = ("features/train/noisy/-/rate", "features/train/noisy/-/compressed_rate")
    return [dict(zip(keys, pair, strict=True)) for pair in pairs]


def test_verdicts_of_the_rate_plane():
    phases, none = rates((5, 4), (9, 6), (9, 3)), rates((9, 6), (5, 4), (3, 2.9))
    # One layer only: nothing is said of depth.
    said = ["holds", "holds", "not measured"]
    assert outcomes(rate_plane.verdicts(made_up({("mcr2", 0.0, 1): phases}))) == said
    said = ["does not hold here", "does not hold here", "not measured"]
    assert outcomes(rate_plane.verdicts(made_up({("ce", 0.0, 1): none}))) == said
    both = rate_plane.verdicts(made_up({("mcr2", 0.0, 1): phases, ("ce", 0.0, 1): none}))
    assert "holds in part (mcr2 at ratio 0; not ce at ratio 0)" in both[1]
    assert rate_plane.compresses_with_depth([Rates(0, 4, 3), Rates(1, 9, 3), Rates(2, 6, 2)])
    assert not rate_plane.compresses_with_depth([Rates(0, 4, 2), Rates(1, 4, 3)])


def test_features_that_are_zero_have_no_rate_to_compare():
    dead = made_up({("mcr2", 0.0, 1): rates((0, 0), (0, 0))})
    assert [row[-1] for row in rate_plane.plane_table(dead).rows] == ["-"] * 3
    assert outcomes(rate_plane.verdicts(dead))[-1] == "not measured"
    assert rate_plane.compresses_with_depth([Rates(0, 4, 2), Rates(1, 0, 0)]) is None


def test_the_study_of_the_rate_plane(tmp_path, capsys):
    options = ("--layers", "stem", "stage3", "--ratios", "0.5", "--methods", "ce", "redunet")
    value, figures = study("rate_plane", tmp_path / "out", *options)
    assert figures == {"rate_plane", "rate_plane_layers"}
    assert [row["method"] for row in value["rows"]] == ["ce", "redunet"]
    text = (tmp_path / "out/table.md").read_text(encoding="utf-8")
    assert "| redunet | 0.5 | test | last | 20 |" in text
    assert "mutual information" not in text + capsys.readouterr().out
    assert outcomes(value["conclusion"])[0] in ("holds", "holds in part", "does not hold here")


# ---------------------------------------------------------------- memorised labels and dilation


def memories(*pairs):
    keys = ("features/train/noisy/ridge/fit_corrupted", "features/test/clean/-/nc1_ratio")
    return [dict(zip(keys, pair, strict=True)) for pair in pairs]


def spread(variances, memorised=1.0, method="ce"):
    """Runs that end at these variances, a ratio each."""
    return {
        (method, ratio, 1): memories((0.0, 3.0), (memorised, variance))
        for ratio, variance in variances.items()
    }


def test_claims_of_memorization_and_dilation():
    def at(*variances, share=1.0):
        return {r: Point(9, share, share * r, v) for r, v in zip((0, 0.2, 0.4), variances)}  # noqa: B905

    assert grows(at(1, 2, 3))
    assert not grows(at(3, 2, 1))
    assert grows(at(1, 2, 3, share=0.0)) is None  # nothing was memorised
    assert grows(at(1, 2)) is None
    assert dilation(at(1, 2, 3)) == 3
    assert dilation({0.2: Point(9, 1.0, 0.2, 1.0)}) is None
    assert spreads_less(at(1, 1, 2, share=0.5), at(1, 1, 3))
    assert not spreads_less(at(1, 1, 4, share=0.5), at(1, 1, 3))
    assert not spreads_less(at(1, 1, 2), at(1, 1, 3))  # it memorises as many


def test_verdicts_of_memorization_and_dilation():
    baseline = spread({0.0: 1.0, 0.2: 2.0, 0.4: 3.0})
    (line,) = memorization_dilation.verdicts(made_up(baseline))
    assert outcomes([line]) == ["holds"]
    less = spread({0.0: 1.0, 0.2: 1.5, 0.4: 2.0}, memorised=0.3, method="mcr2")
    assert outcomes(memorization_dilation.verdicts(made_up(baseline | less))) == ["holds"] * 2
    shrinks = spread({0.0: 1.0, 0.2: 0.9, 0.4: 0.8}, method="mcr2")
    assert outcomes(memorization_dilation.verdicts(made_up(baseline | shrinks))) == [
        "holds in part",
        "does not hold here",
    ]


def test_the_study_of_memorization_and_dilation(tmp_path):
    options = ("--ratios", "0", "0.2", "0.5", "--methods", "ce")
    value, figures = study("memorization_dilation", tmp_path / "out", *options)
    assert figures == {"memorization_dilation"}
    assert value["conclusion"][0].startswith("Test features spread within classes")
    text = (tmp_path / "out/table.md").read_text(encoding="utf-8")
    (line,) = (part for part in text.splitlines() if part.startswith("| ce | memorised, of all"))
    for row, shown in zip(value["rows"], line.split(" | ")[2:], strict=True):
        share = (row["fit_corrupted"] or 0) * row["wrong_labels"] / 60
        assert float(shown.strip("| ")) == pytest.approx(share, abs=6e-4)


# -------------------------------------------------------------------------------- double descent


def test_random_features_are_min_norm_least_squares():
    data = load_dataset("digits", subset=60)
    train, test = data.train, Split(data.test.images[:50], data.test.labels[:50])
    found = min_norm_errors(train, test, 10, (5, 30, 200), seed=4)
    W = torch.randn(64, 200, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    X, T = (to_float(s.images).flatten(1).double().numpy() for s in (train, test))
    T, X = T - X.mean(0), X - X.mean(0)
    Y = np.eye(10)[train.labels] - 0.1
    for width, errors in zip((5, 30, 200), found, strict=True):
        P, Q = (np.maximum(A @ W.numpy()[:, :width], 0) for A in (X, T))
        solution = np.linalg.pinv(P) @ Y
        for F, labels, error in ((P, train.labels, errors[0]), (Q, test.labels, errors[1])):
            expected = ((F @ solution).argmax(1) != labels.numpy()).mean()
            assert error == pytest.approx(expected, abs=1e-9)
    assert found[-1][0] == 0  # more features than samples fit any labels


def test_claims_of_double_descent():
    assert peak([1, 2, 4, 8], [0.5, 0.1, 0.4, 0.2]) == (4, pytest.approx(0.2))
    assert peak([1, 2, 4], [0.5, 0.3, 0.1]).rise < 0
    assert peak([1, 2], [0.5, 0.1]) is None
    assert peaks_near([100, 500, 5000], [0.1, 0.7, 0.2], 500)
    assert not peaks_near([100, 500, 5000], [0.1, 0.7, 0.2], 5000)
    assert not peaks_near([100, 500, 5000], [0.5, 0.4, 0.2], 500)
    assert smooth([0.9, 0.2, 0.8, 0.2, 0.2])[1:] == [0.8, 0.2, 0.2, 0.2]


def networks(errors):
    """Runs of cross-entropy by width, whose test error goes from 0.9 to 0.5 to these."""
    key = "features/test/clean/ridge/accuracy"
    return {
        ("ce", 0.1, width): [{key: 1 - e} for e in (0.9, 0.9, 0.5, 0.5, error, error)]
        for width, error in errors.items()
    }


def features(errors):
    return [
        {"seed": seed, "ratio": 0.1, "features": number, "train_error": 0, "test_error": error}
        for seed in (0, 1)
        for number, error in errors.items()
    ]


def test_verdicts_of_double_descent():
    shows = made_up(
        networks({1: 0.4, 2: 0.1, 4: 0.3, 8: 0.05}),
        (WIDTH, RATIO),
        features({100: 0.2, 500: 0.8, 5000: 0.1}),
    )
    lines = double_descent.verdicts(shows, 500)
    assert outcomes(lines) == ["holds", "holds", "does not hold here"]
    falls = made_up(
        networks({1: 0.4, 2: 0.3, 4: 0.2}),
        (WIDTH, RATIO),
        features({100: 0.8, 500: 0.4, 5000: 0.1}),
    )
    assert outcomes(double_descent.verdicts(falls, 500)) == ["does not hold here"] * 3
    runs, key = networks({1: 0.4, 2: 0.4}), "features/test/clean/ridge/accuracy"
    runs["ce", 0.1, 2] = [{key: 1 - e} for e in (0.9, 0.2, 0.2, 0.5, 0.5, 0.1, 0.1)]
    lines = double_descent.verdicts(made_up(runs, (WIDTH, RATIO), shows.extra), 500)
    assert outcomes(lines) == ["holds", "not measured", "holds in part"]
    assert "ce at ratio 0.1, width 2; not ce at ratio 0.1, width 1" in lines[-1]


def test_widths_of_which_no_run_finished_leave_an_empty_figure():
    results = made_up(networks({1: 0.4, 2: 0.3, 4: 0.2}), (WIDTH, RATIO))
    failed = [row | {"test_accuracy": None, "fit_noisy": None} for row in results.rows]
    figure = double_descent.error_by_width(replace(results, rows=failed, runs=[]))
    assert svg(figure).startswith(b"<?xml")


def test_the_study_of_double_descent(tmp_path, capsys):
    options = ["--ratios", "0.2", "--methods", "ce", "--widths", "2", "1", "--samples", "50"]
    options += ["--features", "50", "10", "200"]
    out = tmp_path / "out"
    value, figures = study("double_descent", out, *options)
    assert figures == {"random_features", "error_by_width", "error_by_epoch"}
    assert [row["width"] for row in value["rows"]] == [1, 2]
    held = [(row["features"], row["ratio"]) for row in value["random_features"]]
    assert held == [(10, 0.2), (50, 0.2), (200, 0.2)]
    assert len({path.name.split("-")[1] for path in (out / "runs").iterdir()}) == 2
    for wrong, said in {
        "--features 0": "features is 0",
        "--widths 2 2": "widths has repetitions: 2 2",
        "--methods redunet": "redunet is constructed: it has neither a width nor epochs",
        "--samples 100000": "100000",
        "--set width=3": "width is set and varied",
        "--set backbone=docs/my_backbone.py:Net": "has a width of its own",
    }.items():
        command = ["study", "double_descent", "--out", str(tmp_path / "no"), *wrong.split()]
        assert main(command) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
