"""What a study reports: intervals, paired differences, digits, tables, and figures of any results.

Results are made here: numbers of our choosing under the keys that an evaluation uses.
"""

import csv
import json
import struct
import zlib
from dataclasses import replace
from itertools import product
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.report.axis import RATIO, Axis
from experiments.report.canvas import COLOURS
from experiments.report.evaluation import run_table
from experiments.report.figures import FIGURES, write_figures
from experiments.report.results import Results, short_names
from experiments.report.rows import rows_of
from experiments.report.statistics import Estimate, difference, estimate
from experiments.report.table import Table
from experiments.report.tables import (
    TABLES,
    differences,
    family_tables,
    shown_measures,
    write_tables,
)
from experiments.runs.executors import Outcome
from experiments.runs.runner import PlannedRun
from experiments.runs.specs import RunSpec
from mcr2.evaluation.catalogue import FAMILIES, MEASURES, Measure
from mcr2.records import Record, Run, RunEvaluation
from mcr2.selection import SELECTIONS

K, D = 4, 6
EPOCHS = (0, 5, 10, 15)
LAYERS = (0, 2, 4)
READOUTS = {"ce": "head", "redunet": "class_mean"}
USERS = "/some/where/of/a/user/loss.py:Pull"
EPS = Axis("eps_sq", "squared distortion ε²")


def own_readout(method):
    return READOUTS.get(method, "nearest_subspace@3")


def number(*parts):
    """A number in (0, 1) that depends on nothing but its names."""
    return (zlib.crc32(repr(parts).encode()) % 9973 + 1) / 9975


def measured(method, where, seed, epoch, full):
    """Measures under an evaluation's keys: all different numbers."""

    def at(key):
        measures[key] = number(method, where, seed, epoch, key)

    measures = {}
    linear = ["ridge", "head"] if method == "ce" else ["ridge"]
    for split, labels in (("train", "noisy"), ("test", "clean")):
        for name in ("participation_ratio", "dim95"):
            at(f"features/{split}/-/-/{name}")
        for name in ("nc1", "cdnv", "nc2_etf", "mean_energy", "coherence", "class_dim95"):
            at(f"features/{split}/{labels}/-/{name}")
        at(f"features/{split}/{labels}/-/reduction")
        measures[f"features/{split}/{labels}/-/means_reliable"] = 1
        for by in linear:
            at(f"features/{split}/{labels}/{by}/nc3")
            at(f"features/{split}/{labels}/{by}/nc4")
    for by in linear:
        for q in ("q05", "q50", "q95"):
            at(f"features/train/noisy/{by}/margin_normalised_{q}")
    readouts = {own_readout(method), "ridge", *(("knn@5", "linear_svm") if full else ())}
    for by in readouts:
        at(f"features/test/clean/{by}/accuracy")
        at(f"features/validation/noisy/{by}/accuracy")
        at(f"features/train/noisy/{by}/fit_noisy")
        for name in ("fit_corrupted", "recovered"):
            at(f"features/train/noisy/{by}/{name}")
            if where["ratio"] == 0:
                measures[f"features/train/noisy/{by}/{name}"] = None
    if full and where["ratio"] > 0:
        at("features/test/clean/ridge+clean/accuracy")
    return measures


def profiles(method, where, seed):
    rng = np.random.default_rng(zlib.crc32(repr((method, where, seed)).encode()))

    def spectrum():
        values = np.sort(rng.random(D))[::-1]
        return (values / values.sum()).tolist()

    labels = np.repeat(np.arange(K), 3)
    return {
        **{f"features/{split}/-/-/spectrum": spectrum() for split in ("train", "test")},
        "features/train/noisy/-/class_spectra": [spectrum() for _ in range(K)],
        "features/test/clean/-/class_spectra": [spectrum() for _ in range(K)],
        "features/test/clean/-/abs_cosine": rng.random((3 * K, 3 * K)).round(3).tolist(),
        "features/test/clean/-/abs_cosine_labels": labels.tolist(),
    }


def make_run(method, where, seed, failed=False):
    made = method == "redunet"
    epochs = LAYERS if made else EPOCHS
    history = [
        {
            "epoch": e,
            "lr": None if made else 0.1,
            "measures": measured(method, where, seed, e, full=False),
        }
        for e in epochs
    ]
    readout = own_readout(method)
    spec = {"method": method, "seed": seed, **where}
    status, reason = ("failed", "the loss stopped being finite") if failed else ("finished", None)
    wrong, data = round(1000 * where["ratio"]), {"name": "digits", "train": 900, "validation": 100}
    noise = {"kind": "symmetric", "redrawn": wrong, "wrong": wrong}
    proof = {"labels": f"digest of ratio {where['ratio']:g}, seed {seed}"}
    made_of = ("0", spec, status, reason, {}, data, noise, proof, {})
    record = Record(*made_of, readout, epochs[-1], 10, 1.0, 0.1, history, {})
    rules = {}
    for number, rule in enumerate(SELECTIONS):
        measures = measured(method, where, seed, epochs[-1], full=True)
        measures[f"features/test/clean/{readout}/accuracy"] -= number / 1000
        chosen = {"epoch": epochs[-1], "validation_accuracy": None, "standard_error": None}
        rules[rule] = {**chosen, "measures": measures, "profiles": profiles(method, where, seed)}
    evaluation = RunEvaluation(
        "0", 1, readout, 5 if method == "ce" else None, "h", (), rules, 0.1, {}
    )
    name = "-".join(map(str, (Path(method).name, *where.values(), seed)))
    return Run(Path(name), record, None if failed else evaluation)


def make_results(methods, ratios, seeds, failed=(), lost=(), axis=None, values=(None,)):
    """Results of a study in which some runs failed and others left no record."""
    axes, rows, runs = (axis, RATIO) if axis else (RATIO,), [], []
    for seed, value, ratio, method in product(seeds, values, ratios, methods):
        where = {"ratio": ratio} | ({axis.name: value} if axis else {})
        options = ((axis.name, value),) if axis else ()
        spec = RunSpec(method, ratio=ratio, seed=seed, options=options)
        name = (method, ratio, seed)
        run = make_run(method, where, seed, name in failed)
        runs += [] if name in lost else [run]
        planned = PlannedRun(spec, "0", "0", run.folder)
        rows += rows_of(Outcome(planned, None if name in lost else run, run.record.reason), axes)
    return Results("digits", axes, rows, runs)


def values(results, name, method, selection="last", **where):
    """A scalar's values over seeds, read from rows by hand."""
    found = []
    for row in results.rows:
        if all(row[k] == v for k, v in {"method": method, "selection": selection, **where}.items()):
            found.append(row["measures"].get(name) if "/" in name else row[name])
    return [v for v in found if v is not None]


# --- statistics


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8))
def test_the_interval_is_students(sample):
    found = estimate(sample)
    sem = scipy.stats.sem(sample)
    assert found.count == len(sample)
    assert found.mean == pytest.approx(np.mean(sample), abs=1e-9)
    if sem > 1e-9:
        low, high = scipy.stats.t.interval(0.95, len(sample) - 1, np.mean(sample), sem)
        assert found.half_width == pytest.approx((high - low) / 2, rel=1e-6)


def test_one_seed_has_no_interval_and_none_has_no_mean():
    assert estimate([0.25]) == Estimate(0.25, None, 1)
    assert estimate([0.25]).text(3) == "0.250"
    assert estimate([]) is None
    assert estimate([0.5, 0.5, 0.5]).half_width == 0


@pytest.mark.parametrize(
    "mean, half, places, text",
    [
        (0.57213, 0.104, 3, "0.57±0.10"),
        (0.57213, 0.0423, 3, "0.57±0.04"),
        (0.57213, 0.0163, 3, "0.572±0.016"),
        (0.57213, 0.00004, 3, "0.572±0.000"),
        (0.57213, 0.0996, 3, "0.57±0.10"),
        (0.57213, 0.3, 3, "0.6±0.3"),
        (0.57213, None, 3, "0.572"),
        (12.345, 2.3, None, "12±2"),
        (12.345, 1.3, None, "12.3±1.3"),
        (1234.5, 230.0, None, "1200±200"),
        (12.345, None, None, "12.3"),
        (0.012345, None, None, "0.0123"),
        (7, None, None, "7"),
        (0.000123, 0.00002, None, "(1.2±0.2)e-4"),
        (0.000123, None, None, "1.23e-4"),
        (2.5e7, 3e6, None, "(2.5±0.3)e7"),
        (0.0, 0.0, None, "0±0"),
        (0.0, None, None, "0"),
        (-0.0004, 0.03, 3, "0.00±0.03"),
    ],
)
def test_no_more_digits_than_the_seeds_support(mean, half, places, text):
    assert Estimate(mean, half, 3).text(places) == text


@pytest.mark.parametrize("mean, text", [(0.03, "+0.03"), (-0.03, "-0.03"), (-0.0004, "+0.00")])
def test_a_difference_has_its_sign(mean, text):
    assert Estimate(mean, 0.02, 3).text(3, signed=True) == f"{text}±0.02"


@given(st.floats(1e-3, 1e4), st.floats(1e-6, 1e4))
def test_what_is_shown_is_what_was_measured_up_to_its_last_digit(mean, half):
    text = Estimate(mean, half, 3).text()
    scale = 1.0
    if ")e" in text:
        text, exponent = text[1:].split(")e")
        scale = 10.0 ** int(exponent)
    shown_mean, shown_half = text.split("±")
    decimals = len(shown_mean.partition(".")[2])
    assert len(shown_half.partition(".")[2]) == decimals
    # One digit or two are kept: at worst 0.25 for 0.2, rounded by half of its last place.
    assert float(shown_half) * scale == pytest.approx(half, rel=0.26)
    assert abs(float(shown_mean) * scale - mean) <= 0.51 * half + 1e-9


def test_differences_are_paired_by_seed():
    results = make_results(["ce", "mcr2"], [0.2], [0, 1, 2])
    ours, theirs = (values(results, "test_accuracy", m) for m in ("mcr2", "ce"))
    found = difference(results.rows, "mcr2", "ce", "last", {"ratio": 0.2})
    low, high = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.estimate.mean == pytest.approx((low + high) / 2)
    assert found.estimate.half_width == pytest.approx((high - low) / 2)
    assert (found.seeds, found.unpaired) == ((0, 1, 2), ())
    assert found in differences(results)


def test_runs_on_other_labels_are_not_paired():
    results = make_results(["ce", "mcr2"], [0.2], [0, 1, 2])
    for row in results.rows:
        if (row["method"], row["seed"]) == ("mcr2", 1):
            row["labels"] = "another digest"
    found = difference(results.rows, "mcr2", "ce", "last", {"ratio": 0.2})
    assert (found.seeds, found.unpaired) == ((0, 2), (1,))
    ours, theirs = (values(results, "test_accuracy", m) for m in ("mcr2", "ce"))
    expected = [ours[0] - theirs[0], ours[2] - theirs[2]]
    assert found.estimate.mean == pytest.approx(np.mean(expected))
    text = TABLES["differences"](results).text()
    assert "Not paired" in text
    assert "mcr2 and ce at ratio 0.2, last, seed 1" in text


def test_a_seed_that_one_method_lacks_is_left_out_and_counted():
    results = make_results(["ce", "mcr2"], [0.2], [0, 1, 2], lost=[("ce", 0.2, 1)])
    found = difference(results.rows, "mcr2", "ce", "last", {"ratio": 0.2})
    assert (found.seeds, found.unpaired) == ((0, 2), ())
    assert all(row[2].endswith(" (2)") for row in TABLES["differences"](results).rows)


@pytest.mark.parametrize("methods, lost", [(["mcr2"], []), (["ce"], []), (["ce", "mcr2"], ["ce"])])
def test_there_is_no_difference_without_both_methods(methods, lost):
    results = make_results(methods, [0.0], [0], lost=[(m, 0.0, 0) for m in lost])
    assert TABLES["differences"](results) is None


# --- tables


def entries(table):
    return {row[: table.left]: row[table.left :] for row in table.rows}


def test_accuracies_are_means_with_intervals():
    results = make_results(["ce", "mcr2"], [0.0, 0.3], [0, 1, 2])
    results = replace(results, reference={"paper, CIFAR-10": {"ce": {0.3: 0.791}}})
    table = TABLES["accuracy"](results)
    assert "mean ± half-width of the 95 % interval over 3 seeds" in table.title
    assert table.header == ("method", "selection", "readout", "0", "0.3")
    rows = entries(table)
    for method in ("ce", "mcr2"):
        for rule in SELECTIONS:
            row = rows[method, rule, own_readout(method)]
            for ratio, entry in zip((0.0, 0.3), row, strict=True):
                sample = values(results, "test_accuracy", method, rule, ratio=ratio)
                half = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(sample)
                assert entry == Estimate(np.mean(sample), half, 3).text(3)
    assert rows["ce", "last", "paper, CIFAR-10"] == ("-", "0.791")


def test_one_seed_is_said_to_have_no_interval():
    for table in tables_of(make_results(["ce", "mcr2"], [0.3], [4])):
        assert "±" not in table.text()
        assert "one seed: no interval" in table.title


def test_an_entry_over_fewer_seeds_says_how_many():
    results = make_results(["ce", "mcr2"], [0.3], [0, 1, 2], failed=[("ce", 0.3, 1)])
    rows = entries(TABLES["accuracy"](results))
    assert rows["ce", "last", "head"][0].endswith(" (2)")
    assert "(" not in rows["mcr2", "last", "nearest_subspace@3"][0]


def test_geometry_is_shown_for_every_method_and_split():
    results = make_results(["ce", "mcr2"], [0.0, 0.3], [0])
    shown = {**entries(TABLES["diversity"](results)), **entries(TABLES["collapse"](results))}
    for measure, labels, by in (
        ("dim95", {"train": "-", "test": "-"}, "-"),
        ("coherence", {"train": "noisy", "test": "clean"}, "-"),
        ("nc1", {"train": "noisy", "test": "clean"}, "-"),
        ("nc3", {"train": "noisy", "test": "clean"}, "ridge"),
    ):
        name = measure if by == "-" else f"{measure} ({by})"
        for split in ("train", "test"):
            key = f"features/{split}/{labels[split]}/{by}/{measure}"
            for method in ("ce", "mcr2"):
                for ratio, entry in zip((0.0, 0.3), shown[name, split, method], strict=True):
                    (value,) = values(results, key, method, ratio=ratio)
                    assert float(entry) == pytest.approx(value, rel=5e-3)
    assert ("nc4 (head)", "train", "ce") in shown
    assert ("nc4 (head)", "train", "mcr2") not in shown
    assert TABLES["collapse"](results).notes == ()


def test_collapse_about_vanishing_means_is_flagged():
    results = make_results(["ce", "mcr2"], [0.0, 0.3], [0, 1])
    for row in results.rows:
        if (row["method"], row["ratio"], row["seed"]) == ("mcr2", 0.3, 1):
            row["measures"]["features/train/noisy/-/means_reliable"] = 0
    table = TABLES["collapse"](results)
    for (_, split, method), (clean, noisy) in entries(table).items():
        assert not clean.endswith("*")
        assert noisy.endswith("*") == ((split, method) == ("train", "mcr2"))
    assert "not reliable" in table.text()
    assert r"\*" in table.markdown()
    assert "*" not in TABLES["diversity"](results).text()


def test_a_shown_measure_of_a_new_family_has_a_table_without_an_edit(monkeypatch):
    monkeypatch.setitem(FAMILIES, "beauty", "Beauty of features")
    monkeypatch.setitem(MEASURES, "charm", Measure("charm", "", "beauty", "classes", shown=True))
    found = {"features/train/noisy/-/charm": 0.5, "features/validation/noisy/-/charm": 0.1}
    assert list(shown_measures(found)) == ["features/train/noisy/-/charm"]
    results = make_results(["ce"], [0.3], [0])
    for row in results.rows:
        row["measures"] = shown_measures(found)
    tables = family_tables()
    assert set(tables) == {"diversity", "collapse", "beauty"}
    assert tables["beauty"](results).title.startswith("Beauty of features, at the last epoch")
    assert entries(tables["beauty"](results)) == {("charm", "train", "ce"): ("0.500",)}


def test_measures_at_other_layers_stand_in_rows_of_their_own():
    results = make_results(["ce"], [0.3], [0])
    for row in results.rows:
        for name in ("test/clean/-/nc1", "test/clean/ridge/accuracy"):
            row["measures"][f"stage2/{name}"] = 0.25
    rows = entries(TABLES["collapse"](results))
    assert rows["stage2: nc1", "test", "ce"] == ("0.250",)
    assert ("nc1", "test", "ce") in rows
    assert entries(TABLES["readouts"](results))["stage2: ridge", "", "ce"] == ("0.250",)


def test_readouts_fitted_on_clean_labels_stand_apart():
    results = make_results(["ce", "mcr2"], [0.0, 0.3], [0])
    rows = entries(TABLES["readouts"](results))
    assert ("head", ">", "ce") in rows
    assert ("nearest_subspace@3", ">", "mcr2") in rows
    assert ("ridge", "", "ce") in rows
    assert ("head", "", "mcr2") not in rows
    order = ["head", "nearest_subspace@3", "ridge", "linear_svm", "knn@5"]
    assert list(dict.fromkeys(name for name, *_ in rows)) == order
    clean = entries(TABLES["readouts_clean"](results))
    assert list(clean) == [("ridge+clean", "", "ce"), ("ridge+clean", "", "mcr2")]
    (value,) = values(results, "features/test/clean/ridge+clean/accuracy", "ce", ratio=0.3)
    assert clean["ridge+clean", "", "ce"] == ("-", f"{value:.3f}")
    assert TABLES["readouts_clean"](make_results(["ce"], [0.0], [0])) is None


def test_another_axis_makes_columns_and_the_further_ones_rows():
    results = make_results(["ce", "mcr2"], [0, 0.3], [0, 1], axis=EPS, values=[2.0, 0.1])
    table = TABLES["memorization"](results)
    assert table.header == ("method", "ratio", "measure", "readout", "0.1", "2")
    sample = values(results, "fit_noisy", "mcr2", ratio=0.3, eps_sq=2.0)
    row = entries(table)["mcr2", "0.3", "fit_noisy", "nearest_subspace@3"]
    assert row[1] == estimate(sample).text(3)
    (first, *_) = (d for d in differences(results) if d.selection == "last")
    assert first.where == {"eps_sq": 0.1, "ratio": 0}
    rows = entries(TABLES["settings"](results))
    assert len(rows) == 8
    assert rows["mcr2", "2", "0.3", "10"][len(SELECTIONS)] == estimate(sample).text(3)
    for table in tables_of(results):
        assert {"ratio", "method"} <= set(table.header) or table.header[0] == "methods"


def tables_of(results):
    return [table for make in TABLES.values() if (table := make(results)) is not None]


def test_text_is_readable_at_120_columns():
    methods = ["ce", "mcr2", "vmcr2", "tcr", "redunet", USERS]
    results = make_results(methods, [0, 0.1, 0.2, 0.3, 0.4, 0.5], [0, 1, 2])
    for table in tables_of(results):
        text = table.text(120)
        assert max(map(len, text.splitlines())) <= 120
        for row in table.rows:
            for entry in row:
                assert entry in text
        assert table.title.split() == text.split()[: len(table.title.split())]
        assert "loss.py:Pull" in text or table.header[0] == "share"
        assert "/some/where" not in text


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=12),
    st.integers(0, 3),
    st.integers(10, 80),
)
def test_a_folded_table_has_every_entry_behind_the_names_of_its_row(widths, labels, width):
    header = tuple(chr(97 + i) * w for i, w in enumerate(widths))
    row = tuple(chr(65 + i) * w for i, w in enumerate(widths))
    table = Table("title", header, (row,), left=labels)
    lines = table.text(width).splitlines()
    blocks = [line.split() for line in lines if line[:1].isupper() or line.strip()[:1].isupper()]
    names, rest = row[:labels], row[labels:]
    assert all(tuple(block[: len(names)]) == names for block in blocks)
    assert [entry for block in blocks for entry in block[len(names) :]] == list(rest)
    narrowest = sum(widths[:labels]) + 2 * len(names) + max(widths[labels:], default=0)
    if narrowest <= width:
        assert max(map(len, lines)) <= width


def test_tables_of_runs_that_all_failed_are_gaps():
    names = [(m, r, 0) for m in ("ce", "mcr2") for r in (0.0, 0.3)]
    results = make_results(["ce", "mcr2"], [0, 0.3], [0], failed=names[:2], lost=names[2:])
    assert len(results.runs) == 2
    for table in tables_of(results):
        if table.header[0] != "share":  # labels were redrawn all the same
            assert all(set(row[table.left :]) <= {"-"} for row in table.rows)


def test_measures_are_columns_of_the_csv(tmp_path):
    results = make_results(["ce", "mcr2"], [0.3], [0], lost=[("ce", 0.3, 0)])
    tables = {table.title: table for table in tables_of(results)}
    write_tables(tmp_path, results, tables, {"dataset": "digits"}, ["n"])
    held = json.loads((tmp_path / "table.json").read_text())
    assert held["rows"] == results.rows
    assert (held["dataset"], held["notes"]) == ("digits", ["n"])
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    row = rows[len(SELECTIONS)]
    (mcr2,) = (r for r in results.rows if (r["method"], r["selection"]) == ("mcr2", "last"))
    for key, value in mcr2["measures"].items():
        assert row[key] == ("" if value is None else str(value))
        assert rows[0][key] == ""
    assert "**Test accuracy on digits" in (tmp_path / "table.md").read_text()


def test_a_run_has_a_row_for_every_selection_rule():
    table = run_table(make_run("ce", {"ratio": 0.3}, 7))
    assert [row[0] for row in table.rows] == list(SELECTIONS)
    name, took = "ce on digits at ratio 0.3, seed 7", "15 epochs, 10 steps, 1 s"
    assert table.title == f"{name}: {took}; 300 labels redrawn, 300 wrong"
    assert run_table(make_run("ce", {"ratio": 0.3}, 7, failed=True)).rows == ()
    # A rule of later date may choose an epoch whose weights were not kept.
    run = make_run("ce", {"ratio": 0.3}, 7)
    run.evaluation.selections["last"]["measures"] = {}
    assert run_table(run).rows[0][3:] == ("-",) * 4


NASTY = ["a|b.py:*C*", "\x1b[31mred\n.py:D", "$x_{.py:E$", "_<b>_.py:F", "long" * 40]


def test_names_are_data_in_tables():
    results = replace(make_results(NASTY, [0.3], [0]), dataset="my\x1b[2J|set")
    for table in tables_of(results):
        assert all(c.isprintable() or c == "\n" for c in table.text(120) + table.markdown())
        assert max(map(len, table.text(120).splitlines())) <= 120
        for line in table.markdown().splitlines()[2:]:
            unescaped = line.replace(r"\\", "").replace(r"\|", "")
            assert unescaped.count("|") in (0, len(table.header) + 1)
            assert "<b>" not in unescaped.replace(r"\<", "")
    assert len(set(short_names([*NASTY, "long" * 40 + "g"]).values())) == len(NASTY) + 1


# --- figures


def draw(name, results):
    """Draw a figure in full, small and without its slow layout; return it, or several."""
    drawn = FIGURES[name](results)
    for figure in drawn.values() if isinstance(drawn, dict) else [drawn]:
        figure.set_layout_engine("none")
        figure.set_dpi(30)
        figure.canvas.draw()
    return drawn


def emptied(results):
    """The same results, every measure null and every profile missing."""
    rows = [
        {**r, "test_accuracy": None, "fit_noisy": None, "measures": dict.fromkeys(r["measures"])}
        for r in results.rows
    ]

    def empty(run):
        history = [{**e, "measures": dict.fromkeys(e["measures"])} for e in run.record.history]
        rules = {rule: {**s, "profiles": {}} for rule, s in run.evaluation.selections.items()}
        evaluation = replace(run.evaluation, selections=rules)
        return Run(run.folder, replace(run.record, history=history), evaluation)

    return replace(results, rows=rows, runs=list(map(empty, results.runs)))


SIX = ["ce", "mcr2", "vmcr2", "ole", "redunet", USERS]
THREE_SEEDS = make_results(["ce", "mcr2"], [0.0, 0.3], [0, 1, 2])
SOME_FAILED = make_results(
    SIX,
    [0.0, 0.5],
    [0, 1],
    failed=[("mcr2", 0.5, 0), ("ce", 0.5, 0), ("ce", 0.5, 1), ("redunet", 0.5, 1)],
    lost=[("ole", 0.5, 0), (USERS, 0.0, 0), (USERS, 0.0, 1)],
)
MANY_SETTINGS = make_results(
    ["mcr2"], [0.1, 0.3], [0], axis=Axis("width", "width"), values=["a", "b", "c", "d$", (1, 2)]
)
STUDIES = {
    "three seeds": THREE_SEEDS,
    "six methods, some failed": SOME_FAILED,
    "one method, one seed": make_results(["mcr2"], [0.3], [0]),
    "no wrong label": make_results(["ce", "mcr2"], [0.0], [0]),
    "all failed": make_results(
        ["ce"], [0.0, 0.3], [0], failed=[("ce", 0.0, 0)], lost=[("ce", 0.3, 0)]
    ),
    "all null": emptied(THREE_SEEDS),
    "two axes": make_results(["ce", "mcr2"], [0, 0.3], [0, 1], axis=EPS, values=[0.1, 0.2, 2.0]),
    "many settings": MANY_SETTINGS,
    "nasty names": replace(make_results(NASTY, [0.3], [0]), dataset="$\\frac{$"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("study", STUDIES)
def test_every_figure_can_be_drawn_of_any_results(study, name):
    draw(name, STUDIES[study])


def test_figures_are_files_that_show_every_method(tmp_path):
    write_figures(tmp_path, THREE_SEEDS)
    names = {*FIGURES, "ratio"} - {"settings", "confusion"}  # of noise that is not uniform
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png" for name in names}
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert min(struct.unpack(">II", content[16:24])) >= 300
        pixels = matplotlib.image.imread(path)[..., :3].reshape(-1, 3)
        for colour in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0)):  # of ce and of mcr2
            near = np.abs(pixels - np.array(colour) / 255).max(axis=1) < 0.02
            assert near.sum() > 50, path.name


def lines(axes, colour):
    return [line for line in axes.lines if line.get_color() == colour and len(line.get_xdata())]


def history(results, method, ratio, key):
    """A measure's values (seed, epoch), read from records by hand."""
    return np.array(
        [
            [entry["measures"][key] for entry in run.record.history]
            for run in results.runs
            if (run.record.spec["method"], run.record.spec["ratio"]) == (method, ratio)
        ]
    )


BLUE, ORANGE = COLOURS[:2]


def test_selection_rules_that_agree_share_a_panel():
    assert len(draw("accuracy", THREE_SEEDS).axes) == len(SELECTIONS)
    accuracies = {
        (r["method"], r["seed"], r["ratio"]): r["test_accuracy"] for r in THREE_SEEDS.rows
    }
    rows = [
        {**r, "test_accuracy": accuracies[r["method"], r["seed"], r["ratio"]]}
        if r["selection"] in ("last", "oracle")
        else r
        for r in THREE_SEEDS.rows
    ]
    titles = [a.get_title() for a in draw("accuracy", replace(THREE_SEEDS, rows=rows)).axes]
    assert titles[0] == "last\noracle"
    assert len(titles) == len(SELECTIONS) - 1


def test_errors_are_one_less_accuracy_and_the_terminal_phase_is_marked():
    axes = draw("errors", THREE_SEEDS).axes[1]
    train, test, marks = lines(axes, BLUE)
    fits = history(THREE_SEEDS, "ce", 0.3, "features/train/noisy/head/fit_noisy")
    right = history(THREE_SEEDS, "ce", 0.3, "features/test/clean/head/accuracy")
    assert train.get_xdata() == pytest.approx(EPOCHS)
    assert train.get_ydata() == pytest.approx(1 - fits.mean(0))
    assert test.get_ydata() == pytest.approx(1 - right.mean(0))
    assert test.get_linestyle() == "--"
    assert list(marks.get_xdata()) == [5] * 3
    assert len(lines(axes, ORANGE)) == 2  # never in its terminal phase


def test_matched_memorization_follows_each_run():
    left, right = draw("matched_memorization", THREE_SEEDS).axes
    for axes, readouts in ((left, ("ridge", "ridge")), (right, ("head", "nearest_subspace@3"))):
        for method, colour, by in zip(("ce", "mcr2"), (BLUE, ORANGE), readouts, strict=True):
            x = history(THREE_SEEDS, method, 0.3, f"features/train/noisy/{by}/fit_corrupted")
            y = history(THREE_SEEDS, method, 0.3, f"features/test/clean/{by}/accuracy")
            paths = [line for line in lines(axes, colour) if len(line.get_xdata()) > 1]
            assert [list(line.get_xdata()) for line in paths] == x.tolist()
            assert [list(line.get_ydata()) for line in paths] == y.tolist()
    without = draw("matched_memorization", STUDIES["no wrong label"])
    assert "nothing was measured" in without.axes[0].texts[0].get_text()


def test_bars_of_shares_end_at_0_and_1_and_none_is_clipped():
    for axes in draw("accuracy", THREE_SEEDS).axes:
        low, high = axes.get_ylim()
        ends = [y for c in axes.containers for s in c.lines[2][0].get_segments() for y in s[:, 1]]
        assert low < min(ends) <= max(ends) < high
        assert 0 <= min(ends) <= max(ends) <= 1
    sample = values(THREE_SEEDS, "test_accuracy", "mcr2", ratio=0.3)
    (bars,) = (c for c in draw("accuracy", THREE_SEEDS).axes[0].containers if mean_of(c, sample))
    half = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(sample)
    low, high = bars.lines[2][0].get_segments()[1][:, 1]
    assert low == pytest.approx(max(0, np.mean(sample) - half))
    assert high == pytest.approx(min(1, np.mean(sample) + half))


def mean_of(container, sample):
    return container.lines[0].get_ydata()[1] == pytest.approx(np.mean(sample))


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_legend_names_what_is_drawn_and_nothing_else():
    assert legend(draw("nc", THREE_SEEDS)) == [
        *("ce", "mcr2", "train samples", "test samples", "own head, train")
    ]
    assert legend(draw("errors", THREE_SEEDS))[-1] == "terminal phase begins"
    only = legend(draw("errors", STUDIES["one method, one seed"]))
    assert only == ["mcr2", "train, labels trained on", "test"]


def test_a_single_method_has_a_colour_a_selection():
    results = make_results(["mcr2"], [0.3], [0, 1], axis=EPS, values=[0.1, 0.2])
    axes = draw("settings", results)["eps_sq"].axes[0]
    assert axes.get_title() == "accuracy: mcr2, ratio 0.3, 2 seeds"
    looks = [(c.lines[0], *c.lines[1]) for c in axes.containers]  # lines, and caps of their bars
    colours = [{x.get_color(), x.get_mec(), x.get_mfc()} for look in looks for x in look]
    assert len(colours) == 9
    assert all(len(each) == 1 for each in colours)
    assert len(set.union(*colours)) == 3
    assert axes.get_ylim()[1] == pytest.approx(1, abs=0.05)


def test_dimensions_have_intervals_over_seeds():
    axes = draw("participation", THREE_SEEDS).axes[0]
    (bars, *_) = (c for c in axes.containers if c.lines[0].get_color() == ORANGE)
    sample = values(THREE_SEEDS, "features/train/-/-/participation_ratio", "mcr2", ratio=0.3)
    line, _, (segments,) = bars.lines
    assert line.get_ydata()[1] == pytest.approx(np.mean(sample))
    low, high = segments.get_segments()[1][:, 1]
    half = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(sample)
    assert (high - low) / 2 == pytest.approx(half)


def test_every_varied_axis_has_a_figure_and_the_others_are_lines():
    drawn = draw("settings", STUDIES["two axes"])
    assert list(drawn) == ["eps_sq", "ratio"]
    left = drawn["eps_sq"].axes[0]
    assert left.get_xscale() == "log"
    assert [c.lines[0].get_color() for c in left.containers] == list(COLOURS[:4])
    sample = values(STUDIES["two axes"], "test_accuracy", "ce", ratio=0.3, eps_sq=0.2)
    assert left.containers[1].lines[0].get_ydata()[1] == pytest.approx(np.mean(sample))


def test_more_settings_than_colours_are_averaged():
    drawn = draw("settings", MANY_SETTINGS)
    (label,) = (text.get_text() for text in drawn["ratio"].legends[0].get_texts()[:1])
    assert label == "width a"  # five lines
    many = make_results(["mcr2"], [0.1, 0.3], [0], axis=Axis("n", "n"), values=range(9))
    figure = draw("settings", many)["ratio"]
    assert figure.axes[0].get_title() == "accuracy: mcr2, mean over n, 1 seed"
    bars = figure.axes[0].containers[0]
    assert bars.lines[2] == ()  # an average over settings has no interval
    sample = values(many, "test_accuracy", "mcr2", ratio=0.3)
    assert bars.lines[0].get_ydata()[1] == pytest.approx(np.mean(sample))


def test_spectra_are_means_over_classes_and_seeds():
    axes = draw("spectra", THREE_SEEDS).axes[3]  # of classes, at the larger ratio
    _, test = lines(axes, ORANGE)
    key = "features/test/clean/-/class_spectra"
    found = [
        np.mean(run.evaluation.selections["last"]["profiles"][key], 0)
        for run in THREE_SEEDS.runs_of("mcr2", ratio=0.3)
    ]
    assert len(found) == 3
    assert test.get_xdata() == pytest.approx(np.arange(1, D + 1))
    assert test.get_ydata() == pytest.approx(np.mean(found, 0))


def test_collapse_that_is_not_reliable_is_faint():
    key = "features/train/noisy/-/means_reliable"
    first, *others = THREE_SEEDS.runs
    changed = [
        {**entry, "measures": entry["measures"] | {key: int(entry["epoch"] < 10)}}
        for entry in first.record.history
    ]
    # One seed in doubt is enough.
    first = replace(first, record=replace(first.record, history=changed))
    axes = draw("nc", replace(THREE_SEEDS, runs=[first, *others])).axes[0]
    faint, strong = [line for line in lines(axes, BLUE) if line.get_linestyle() == "-"]
    assert (faint.get_alpha(), strong.get_alpha()) == (0.25, None)
    assert np.isfinite(faint.get_ydata()).all()
    assert np.isfinite(strong.get_ydata()).tolist() == [True, True, False, False]


def test_a_constructed_network_is_drawn_over_its_layers_in_panels_of_its_own():
    epochs, _, layers, _ = draw("errors", SOME_FAILED).axes
    colour = SOME_FAILED.colours["redunet"]
    assert (epochs.get_xlabel(), layers.get_xlabel()) == ("epoch", "layer")
    assert lines(epochs, colour) == []
    train, test = lines(layers, colour)
    assert train.get_color() not in {line.get_color() for line in epochs.lines}
    fitted = history(SOME_FAILED, "redunet", 0.0, "features/train/noisy/class_mean/fit_noisy")
    assert train.get_ydata() == pytest.approx(1 - fitted.mean(0))
    for line in (train, test):
        assert tuple(line.get_xdata()) == LAYERS


def test_a_history_of_one_entry_is_a_point():
    runs = [
        replace(run, record=replace(run.record, history=run.record.history[:1]))
        for run in THREE_SEEDS.runs
    ]
    found = lines(draw("errors", replace(THREE_SEEDS, runs=runs)).axes[0], ORANGE)
    assert {line.get_marker() for line in found} == {"o", "_"}  # the point, and its bar's ends
    for line in found:
        assert (line.get_xdata() == [0]).all()


def test_a_method_has_one_colour_whatever_the_order():
    first = make_results(["mcr2", "tcr", "ce"], [0.0], [0])
    assert (first.colours["ce"], first.colours["mcr2"]) == (BLUE, ORANGE)
    assert len(set(SOME_FAILED.colours.values())) == 6


def test_figures_are_drawn_of_the_finished_runs_that_the_last_epoch_is_read_from():
    results = make_results(["mcr2"], [0.3], [0, 1, 2], failed=[("mcr2", 0.3, 1)])
    rows = [r for r in results.rows if (r["seed"], r["selection"]) != (2, "last")]
    assert replace(results, rows=rows).runs_of("mcr2", ratio=0.3) == results.runs[:1]
