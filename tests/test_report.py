"""What a study reports: intervals, paired differences, digits, tables, and figures of any records.

Records are made here: numbers of our choosing under the keys that an evaluation uses.
"""

import csv
import json
import struct
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.report import (
    FIGURES,
    Estimate,
    accuracy_table,
    clean_readout_table,
    collapse_table,
    difference,
    difference_table,
    diversity_table,
    estimate,
    memorization_table,
    readout_table,
    write_figures,
    write_tables,
)
from experiments.report.canvas import pyplot
from experiments.report.figures import Study
from experiments.report.tables import BELIEF, COLLAPSE, DIVERSITY, Table
from experiments.runs.runner import Cell, Outcome
from experiments.runs.specs import RunSpec, as_dict
from experiments.studies.label_noise import cells_of
from mcr2.records import Record
from mcr2.selection import SELECTIONS

K, D = 4, 6
EPOCHS = (0, 5, 10, 15)
LAYERS = (0, 2, 4)
READOUTS = {"ce": "head", "redunet": "class_mean"}
USERS = "/some/where/of/a/user/loss.py:Pull"


def own_readout(method):
    return READOUTS.get(method, "nearest_subspace@3")


def number(*parts):
    """A number in (0, 1) that depends on nothing but its names."""
    return (zlib.crc32(repr(parts).encode()) % 9973 + 1) / 9975


def reading(method, ratio, seed, epoch, full):
    """Measures under an evaluation's keys: all different numbers."""

    def at(key):
        measures[key] = number(method, ratio, seed, epoch, key)

    measures = {}
    linear = ["ridge", "head"] if method == "ce" else ["ridge"]
    for split, labels in (("train", "noisy"), ("test", "clean")):
        for name in ("participation_ratio", "dim95", "effective_rank"):
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
            if ratio == 0:
                measures[f"features/train/noisy/{by}/{name}"] = None
    if full and ratio > 0:
        at("features/test/clean/ridge+clean/accuracy")
    return measures


def profiles(method, ratio, seed):
    rng = np.random.default_rng(zlib.crc32(repr((method, ratio, seed)).encode()))

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


def make_record(method, ratio, seed, failed=False):
    epochs = LAYERS if method == "redunet" else EPOCHS
    history = [
        {"epoch": e, "step": e, "measures": reading(method, ratio, seed, e, full=False)}
        for e in epochs
    ]
    chosen = {
        "epoch": epochs[-1],
        "validation_accuracy": 0.5,
        "standard_error": 0.04,
        "measures": reading(method, ratio, seed, epochs[-1], full=True),
        "profiles": profiles(method, ratio, seed),
    }
    return Record(
        key="0",
        spec=as_dict(RunSpec(method, ratio=ratio, seed=seed)),
        status="failed" if failed else "finished",
        reason="the loss stopped being finite" if failed else None,
        seeds={},
        data={"validation": 144},
        noise={"wrong": round(1000 * ratio)},
        proof={"labels": f"digest of ratio {ratio:g}, seed {seed}"},
        environment={},
        readout=own_readout(method),
        epochs=epochs[-1],
        steps=10,
        wall_seconds=1.0,
        evaluation_seconds=0.1,
        terminal_epoch=5 if method == "ce" else None,
        history=history,
        selections={} if failed else dict.fromkeys(SELECTIONS, chosen),
    )


def outcome_of(record, method, ratio, seed):
    cell = Cell(RunSpec(method, ratio=ratio, seed=seed), "0", "0", Path(f"{method}-{ratio}-{seed}"))
    return Outcome(cell, record, None if record else "its process was killed")


def make_study(methods, ratios, seeds, failed=(), lost=()):
    """Cells and records of a study in which some runs failed and others left no record."""
    outcomes = []
    for seed in seeds:
        for ratio in ratios:
            for method in methods:
                name = (method, ratio, seed)
                record = None if name in lost else make_record(*name, failed=name in failed)
                outcomes.append(outcome_of(record, *name))
    cells = [row for outcome in outcomes for row in cells_of(outcome)]
    return cells, [o.record for o in outcomes if o.record is not None]


def values(cells, name, method, ratio, selection="last"):
    """A scalar's values over seeds, read from cells by hand."""
    found = []
    for c in cells:
        if (c["method"], c["ratio"], c["selection"]) == (method, ratio, selection):
            found.append(c["measures"].get(name) if "/" in name else c[name])
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


def test_the_interval_of_three_seeds_by_hand():
    # t with 2 degrees of freedom at 0.975 is 4.302653; s = 1.
    assert estimate([1.0, 2.0, 3.0]).half_width == pytest.approx(4.302653 / 3**0.5, rel=1e-6)


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


def test_a_difference_has_its_sign():
    assert Estimate(0.03, 0.02, 3).text(3, signed=True) == "+0.03±0.02"
    assert Estimate(-0.03, 0.02, 3).text(3, signed=True) == "-0.03±0.02"
    assert Estimate(-0.0004, 0.02, 3).text(3, signed=True) == "+0.00±0.02"


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
    cells, _ = make_study(["ce", "mcr2"], [0.2], [0, 1, 2])
    ours, theirs = (values(cells, "test_accuracy", m, 0.2) for m in ("mcr2", "ce"))
    found = difference(cells, "mcr2", "ce", "last", 0.2)
    low, high = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.estimate.mean == pytest.approx((low + high) / 2)
    assert found.estimate.half_width == pytest.approx((high - low) / 2)
    assert (found.seeds, found.unpaired) == ((0, 1, 2), ())


def test_runs_on_other_labels_are_not_paired():
    cells, _ = make_study(["ce", "mcr2"], [0.2], [0, 1, 2])
    for cell in cells:
        if (cell["method"], cell["seed"]) == ("mcr2", 1):
            cell["labels"] = "another digest"
    found = difference(cells, "mcr2", "ce", "last", 0.2)
    assert (found.seeds, found.unpaired) == ((0, 2), (1,))
    ours, theirs = (values(cells, "test_accuracy", m, 0.2) for m in ("mcr2", "ce"))
    expected = [ours[0] - theirs[0], ours[2] - theirs[2]]
    assert found.estimate.mean == pytest.approx(np.mean(expected))
    text = difference_table(cells).text()
    assert "Not paired" in text
    assert "mcr2 and ce at ratio 0.2, last, seed 1" in text


def test_a_seed_that_one_method_lacks_is_left_out_and_counted():
    cells, _ = make_study(["ce", "mcr2"], [0.2], [0, 1, 2], lost=[("ce", 0.2, 1)])
    found = difference(cells, "mcr2", "ce", "last", 0.2)
    assert (found.seeds, found.unpaired) == ((0, 2), ())
    assert all(row[2].endswith(" (2)") for row in difference_table(cells).rows)


def test_there_is_no_difference_without_both_methods():
    assert difference_table(make_study(["mcr2"], [0.0], [0])[0]) is None
    assert difference_table(make_study(["ce"], [0.0], [0])[0]) is None
    lost = [("ce", 0.0, 0)]
    assert difference_table(make_study(["ce", "mcr2"], [0.0], [0], lost=lost)[0]) is None


# --- tables


def rows_of(table):
    return {row[: table.left]: row[table.left :] for row in table.rows}


def test_accuracies_are_means_with_intervals():
    cells, _ = make_study(["ce", "mcr2"], [0.0, 0.3], [0, 1, 2])
    table = accuracy_table(cells, "digits", {"ce": {0.3: 0.791}})
    assert "mean ± half-width of the 95 % interval over 3 seeds" in table.title
    assert table.header == ("method", "selection", "readout", "0", "0.3")
    rows = rows_of(table)
    for method in ("ce", "mcr2"):
        for rule in SELECTIONS:
            row = rows[method, rule, own_readout(method)]
            for ratio, entry in zip((0.0, 0.3), row, strict=True):
                sample = values(cells, "test_accuracy", method, ratio, rule)
                half = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(sample)
                assert entry == Estimate(np.mean(sample), half, 3).text(3)
    assert rows["ce", "paper: last", "CIFAR-10, ResNet-18"] == ("-", "0.791")


def test_one_seed_is_said_to_have_no_interval():
    cells, _ = make_study(["ce", "mcr2"], [0.3], [4])
    for make in (difference_table, memorization_table, diversity_table, readout_table):
        assert "±" not in make(cells).text()
    assert "one seed: no interval" in accuracy_table(cells, "digits", {}).title
    assert "one seed: no interval" in difference_table(cells).title


def test_an_entry_over_fewer_seeds_says_how_many():
    cells, _ = make_study(["ce", "mcr2"], [0.3], [0, 1, 2], failed=[("ce", 0.3, 1)])
    rows = rows_of(accuracy_table(cells, "digits", {}))
    assert rows["ce", "last", "head"][0].endswith(" (2)")
    assert "(" not in rows["mcr2", "last", "nearest_subspace@3"][0]


def test_geometry_is_shown_for_every_method_and_split():
    cells, _ = make_study(["ce", "mcr2"], [0.0, 0.3], [0])
    diverse, collapsed = rows_of(diversity_table(cells)), rows_of(collapse_table(cells))
    for table, scalars in ((diverse, DIVERSITY), (collapsed, COLLAPSE)):
        for scalar in scalars:
            for split in ("train", "test"):
                for method in ("ce", "mcr2"):
                    if method == "mcr2" and scalar.readout == "head":
                        assert (str(scalar), split, method) not in table
                        continue
                    for ratio, entry in zip(
                        (0.0, 0.3), table[str(scalar), split, method], strict=True
                    ):
                        (value,) = values(cells, scalar.key(split), method, ratio)
                        assert float(entry) == pytest.approx(value, rel=5e-3)
    assert collapse_table(cells).notes == ()


def test_collapse_about_vanishing_means_is_flagged():
    cells, _ = make_study(["ce", "mcr2"], [0.0, 0.3], [0, 1])
    for cell in cells:
        if (cell["method"], cell["ratio"], cell["seed"]) == ("mcr2", 0.3, 1):
            cell["measures"][BELIEF[1].key("train")] = 0
    table = collapse_table(cells)
    for (_, split, method), (clean, noisy) in rows_of(table).items():
        assert not clean.endswith("*")
        assert noisy.endswith("*") == ((split, method) == ("train", "mcr2"))
    assert "not to be believed" in table.text()
    assert r"\*" in table.markdown()
    assert "*" not in diversity_table(cells).text()


def test_readouts_fitted_on_clean_labels_stand_apart():
    cells, _ = make_study(["ce", "mcr2"], [0.0, 0.3], [0])
    rows = rows_of(readout_table(cells))
    assert ("head", ">", "ce") in rows
    assert ("nearest_subspace@3", ">", "mcr2") in rows
    assert ("ridge", "", "ce") in rows
    assert ("head", "", "mcr2") not in rows
    assert list(dict.fromkeys(name for name, *_ in rows)) == [
        "head",
        "nearest_subspace@3",
        "ridge",
        "linear_svm",
        "knn@5",
    ]
    clean = rows_of(clean_readout_table(cells))
    assert list(clean) == [("ridge+clean", "", "ce"), ("ridge+clean", "", "mcr2")]
    (value,) = values(cells, "features/test/clean/ridge+clean/accuracy", "ce", 0.3)
    assert clean["ridge+clean", "", "ce"] == ("-", f"{value:.3f}")
    assert clean_readout_table(make_study(["ce"], [0.0], [0])[0]) is None


def tables_of(cells):
    makers = (
        difference_table,
        memorization_table,
        diversity_table,
        collapse_table,
        readout_table,
        clean_readout_table,
    )
    tables = [accuracy_table(cells, "digits", {}), *(make(cells) for make in makers)]
    return [table for table in tables if table is not None]


def test_text_is_readable_at_120_columns():
    methods = ["ce", "mcr2", "vmcr2", "tcr", "redunet", USERS]
    cells, _ = make_study(methods, [0, 0.1, 0.2, 0.3, 0.4, 0.5], [0, 1, 2])
    for table in tables_of(cells):
        text = table.text(120)
        assert max(map(len, text.splitlines())) <= 120
        for row in table.rows:
            for entry in row:
                assert entry in text
        assert table.title.split() == text.split()[: len(table.title.split())]
        assert "loss.py:Pull" in text
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
    names, entries = row[:labels], row[labels:]
    assert all(tuple(block[: len(names)]) == names for block in blocks)
    assert [entry for block in blocks for entry in block[len(names) :]] == list(entries)
    narrowest = sum(widths[:labels]) + 2 * len(names) + max(widths[labels:], default=0)
    if narrowest <= width:
        assert max(map(len, lines)) <= width


def test_tables_of_runs_that_all_failed_are_gaps():
    names = [(m, r, 0) for m in ("ce", "mcr2") for r in (0.0, 0.3)]
    cells, records = make_study(["ce", "mcr2"], [0.0, 0.3], [0], failed=names[:2], lost=names[2:])
    assert len(records) == 2
    for table in tables_of(cells):
        assert all(set(row[table.left :]) <= {"-"} for row in table.rows)


def test_measures_are_columns_of_the_csv(tmp_path):
    cells, _ = make_study(["ce", "mcr2"], [0.3], [0], lost=[("ce", 0.3, 0)])
    write_tables(tmp_path, cells, tables=tables_of(cells), facts={"dataset": "digits"}, notes=["n"])
    held = json.loads((tmp_path / "table.json").read_text())
    assert held["cells"] == cells
    assert held["notes"] == ["n"]
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    row = rows[len(SELECTIONS)]
    (mcr2,) = (c for c in cells if (c["method"], c["selection"]) == ("mcr2", "last"))
    for key, value in mcr2["measures"].items():
        assert row[key] == ("" if value is None else str(value))
        assert rows[0][key] == ""
    assert "**Test accuracy on digits" in (tmp_path / "table.md").read_text()


# --- figures


def draw(name, study):
    """Draw a figure in full, small and without its slow layout; return it."""
    figure = FIGURES[name](study)
    figure.set_layout_engine("none")
    figure.set_dpi(30)
    figure.canvas.draw()
    pyplot().close(figure)
    return figure


SIX = ["ce", "mcr2", "vmcr2", "ole", "redunet", USERS]
STUDIES = {
    "three seeds": make_study(["ce", "mcr2"], [0.0, 0.3], [0, 1, 2]),
    "six methods, some failed": make_study(
        SIX,
        [0.0, 0.5],
        [0, 1],
        failed=[("mcr2", 0.5, 0), ("ce", 0.5, 0), ("ce", 0.5, 1), ("redunet", 0.5, 1)],
        lost=[("ole", 0.5, 0), (USERS, 0.0, 0), (USERS, 0.0, 1)],
    ),
    "one method, one seed": make_study(["mcr2"], [0.3], [0]),
    "no wrong label": make_study(["ce", "mcr2"], [0.0], [0]),
    "all failed": make_study(
        ["ce"], [0.0, 0.3], [0], failed=[("ce", 0.0, 0)], lost=[("ce", 0.3, 0)]
    ),
}


def emptied(study):
    """The same study, every measure null and every profile missing."""
    cells, records = study
    cells = [
        {**c, "test_accuracy": None, "fit_noisy": None, "measures": dict.fromkeys(c["measures"])}
        for c in cells
    ]
    records = [
        replace(
            record,
            history=[{**e, "measures": dict.fromkeys(e["measures"])} for e in record.history],
            selections={rule: {**s, "profiles": {}} for rule, s in record.selections.items()},
        )
        for record in records
    ]
    return cells, records


STUDIES["all null"] = emptied(STUDIES["three seeds"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("study", STUDIES)
def test_every_figure_can_be_drawn_of_any_records(study, name):
    draw(name, Study("digits", *STUDIES[study]))


def test_figures_are_files_that_show_every_method(tmp_path):
    write_figures(tmp_path, *STUDIES["three seeds"], "digits")
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png" for name in FIGURES}
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


def history(records, method, ratio, key):
    """A measure's values (seed, epoch), read from records by hand."""
    return np.array(
        [
            [entry["measures"][key] for entry in r.history]
            for r in records
            if (r.spec["method"], r.spec["ratio"]) == (method, ratio)
        ]
    )


BLUE, ORANGE = "#0072B2", "#D55E00"


def test_errors_are_one_less_accuracy_and_the_terminal_phase_is_marked():
    cells, records = STUDIES["three seeds"]
    axes = draw("errors", Study("digits", cells, records)).axes[1]
    train, test, *marks = lines(axes, BLUE)
    fits = history(records, "ce", 0.3, "features/train/noisy/head/fit_noisy")
    right = history(records, "ce", 0.3, "features/test/clean/head/accuracy")
    assert train.get_xdata() == pytest.approx(EPOCHS)
    assert train.get_ydata() == pytest.approx(1 - fits.mean(0))
    assert test.get_ydata() == pytest.approx(1 - right.mean(0))
    assert test.get_linestyle() == "--"
    assert [list(mark.get_xdata()) for mark in marks] == [[5]] * 3
    assert len(lines(axes, ORANGE)) == 2  # never in its terminal phase


def test_matched_memorization_follows_each_run():
    cells, records = STUDIES["three seeds"]
    left, right = draw("matched_memorization", Study("digits", cells, records)).axes
    for axes, readouts in ((left, ("ridge", "ridge")), (right, ("head", "nearest_subspace@3"))):
        for method, colour, by in zip(("ce", "mcr2"), (BLUE, ORANGE), readouts, strict=True):
            x = history(records, method, 0.3, f"features/train/noisy/{by}/fit_corrupted")
            y = history(records, method, 0.3, f"features/test/clean/{by}/accuracy")
            paths = [line for line in lines(axes, colour) if len(line.get_xdata()) > 1]
            assert [list(line.get_xdata()) for line in paths] == x.tolist()
            assert [list(line.get_ydata()) for line in paths] == y.tolist()
    without = draw("matched_memorization", Study("digits", *STUDIES["no wrong label"]))
    assert "no training label is wrong" in without.axes[0].texts[0].get_text()


def test_dimensions_have_intervals_over_seeds():
    cells, records = STUDIES["three seeds"]
    axes = draw("participation", Study("digits", cells, records)).axes[0]
    (bars, *_) = (c for c in axes.containers if c.lines[0].get_color() == ORANGE)
    sample = values(cells, "features/train/-/-/participation_ratio", "mcr2", 0.3)
    line, _, (segments,) = bars.lines
    assert line.get_ydata()[1] == pytest.approx(np.mean(sample))
    low, high = segments.get_segments()[1][:, 1]
    half = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(sample)
    assert (high - low) / 2 == pytest.approx(half)


def test_spectra_are_means_over_classes_and_seeds():
    cells, records = STUDIES["three seeds"]
    figure = draw("spectra", Study("digits", cells, records))
    axes = figure.axes[3]  # of classes, at the larger ratio
    _, test = lines(axes, ORANGE)
    key = "features/test/clean/-/class_spectra"
    found = [
        np.mean(r.selections["last"]["profiles"][key], 0)
        for r in records
        if (r.spec["method"], r.spec["ratio"]) == ("mcr2", 0.3)
    ]
    assert test.get_xdata() == pytest.approx(np.arange(1, D + 1))
    assert test.get_ydata() == pytest.approx(np.mean(found, 0))


@pytest.mark.parametrize(
    "doubted, stretches",
    [
        ({10, 15}, [([0, 5], 1.0), ([5, 10, 15], 0.25)]),
        ({0}, [([0, 5], 0.25), ([5, 10, 15], 1.0)]),
        (set(), [([0, 5, 10, 15], 1.0)]),
    ],
)
def test_collapse_that_is_not_believed_is_faint(doubted, stretches):
    cells, records = STUDIES["three seeds"]
    key = "features/train/noisy/-/means_reliable"

    def doubt(entry):
        return {**entry, "measures": entry["measures"] | {key: int(entry["epoch"] not in doubted)}}

    # One seed in doubt is enough.
    changed = [replace(records[0], history=[doubt(e) for e in records[0].history]), *records[1:]]
    axes = draw("nc", Study("digits", cells, changed)).axes[0]
    found = [line for line in lines(axes, BLUE) if line.get_linestyle() == "-"]
    assert [(list(line.get_xdata()), line.get_alpha()) for line in found] == stretches


def test_a_constructed_network_is_drawn_over_its_layers():
    cells, records = STUDIES["six methods, some failed"]
    study = Study("digits", cells, records)
    train, test = lines(draw("errors", study).axes[0], study.colours["redunet"])
    key = f"features/train/noisy/{own_readout('redunet')}/fit_noisy"
    fitted = history(records, "redunet", 0.0, key).mean(0)
    assert train.get_ydata() == pytest.approx(1 - fitted)
    for line in (train, test):
        assert tuple(line.get_xdata()) == LAYERS


def test_a_history_of_one_entry_is_a_point():
    cells, records = STUDIES["six methods, some failed"]
    records = [
        replace(r, history=r.history[:1]) if r.spec["method"] == "redunet" else r for r in records
    ]
    study = Study("digits", cells, records)
    found = lines(draw("errors", study).axes[0], study.colours["redunet"])
    assert {line.get_marker() for line in found} == {"o", "_"}  # the point, and the ends of its bar
    for line in found:
        assert (line.get_xdata() == [0]).all()


def test_a_method_has_one_colour_whatever_the_order():
    first = Study("digits", *make_study(["mcr2", "tcr", "ce"], [0.0], [0]))
    assert (first.colours["ce"], first.colours["mcr2"]) == (BLUE, ORANGE)
    assert len(set(Study("digits", *STUDIES["six methods, some failed"]).colours.values())) == 6


def test_figures_are_drawn_of_the_finished_runs_that_the_last_epoch_is_read_from():
    cells, records = STUDIES["one method, one seed"]
    (record,) = records
    other = replace(record, spec=asdict(RunSpec("mcr2", ratio=0.3, selections=("patience",))))
    failed = make_record("mcr2", 0.3, 1, failed=True)
    study = Study("digits", cells, [record, other, failed])
    assert study.runs("mcr2", 0.3) == [record]
