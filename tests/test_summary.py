"""What a study prints at its end: a screen, and sentences that the intervals bear out."""

from itertools import product

import numpy as np
import pytest

from experiments.report.axis import RATIO, Axis
from experiments.report.results import Results
from experiments.report.statistics import estimate
from experiments.report.summary import conclusion, fitting, note_lines, summary_tables
from experiments.report.table import Table, wrap
from mcr2.selection import SELECTIONS

RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def results(accuracy, methods=("ce", "mcr2"), ratios=RATIOS, seeds=(0, 1, 2), axis=RATIO, **more):
    """Results with ``accuracy(method, ratio, seed, rule)`` and no runs."""
    rows = [
        {
            "method": method,
            "selection": rule,
            "readout": "head" if method == "ce" else "nearest_subspace@3",
            axis.name: value,
            "seed": seed,
            "test_accuracy": accuracy(method, value, seed, rule),
            "fit_noisy": 0.9,
            "fit_corrupted": 0.5 if value else None,
            "recovered": 0.25 if value else None,
            "labels": f"{value} {seed}",
            "status": "finished",
            "run": f"{method}-{value}-{seed}",
            "measures": {},
        }
        for seed, value, method, rule in product(seeds, ratios, methods, SELECTIONS)
    ]
    return Results("digits", (axis,), rows, (), **more)


def gain(method, ratio, seed, rule):
    """mcr2 gains from ratio 0.3 on, at the last epoch only; redunet loses everywhere."""
    wobble = 0.004 * seed
    if method == "mcr2":
        return (
            0.8
            - ratio / 2
            + wobble
            + (0.2 + 0.01 * seed) * (ratio >= 0.3) * (rule == "last")
            + (0.02 * (seed - 1) * (ratio < 0.3 or rule != "last"))
        )
    return 0.8 - ratio / 2 + wobble - (0.3 + 0.01 * seed) * (method == "redunet")


PUBLISHED = {"CIFAR-10, ResNet-18": {m: dict.fromkeys(RATIOS, 0.9) for m in ("ce", "mcr2")}}


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_default_table_with_three_methods_fits_a_screen(width):
    rng = np.random.default_rng(0)
    table = results(
        lambda *where: gain(*where) + rng.normal(0, 0.004),
        ("ce", "mcr2", "redunet"),
        reference=PUBLISHED,
    )
    notes = [
        "noisy_validation, patience, clean_validation come from runs of their own, which held out "
        "10% of the training samples to choose the epoch by; last and oracle from runs that held "
        "out nothing",
        *(
            f"{name}: terminal phase (fit_noisy ≥ 0.99 three times running) not reached, "
            "18 of 18 runs, fit_noisy 0.270 to 0.748"
            for name in ("ce", "mcr2", "redunet")
        ),
        "mcr2 fails the clean-label check: 0.93±0.02 at ratio 0 against 0.99±0.01 of ce, more than "
        "0.02 under it; underfitting can pass for robustness",
    ]
    blocks = [fitting(each, width) for each in summary_tables(table)]
    blocks.append("\n".join(note_lines(notes, width, "mcr2 show results/quick-digits notes")))
    blocks.append("\n".join(line for s in conclusion(table) for line in wrap(s, width)))
    lines = "\n\n".join(blocks).splitlines()
    assert max(map(len, lines)) <= width
    # An empty line stands before, and behind an empty line and two that say where the rest is.
    assert len(lines) + 4 <= 50
    # Every number that is printed is there in full, with or without its leading zero.
    (line, *_) = (line for line in blocks[0].splitlines() if line.startswith("  ce "))
    for value, text in zip(RATIOS, line.split()[1:], strict=True):
        found = table.over_seeds("test_accuracy", method="ce", selection="last", ratio=value)
        assert text in (str(found), str(found).replace("0.", "."))


def test_the_conclusion_is_what_the_intervals_say():
    table = results(gain, ("ce", "mcr2", "redunet"))
    last, early = conclusion(table)
    at = estimate([gain("mcr2", 0.5, s, "last") - gain("ce", 0.5, s, "last") for s in range(3)])
    assert last == (
        f"At the last epoch, mcr2 is above ce at ratio 0.3 to 0.5 ({at.text(3, signed=True)} at "
        "0.5), not told apart from ce at ratio 0 to 0.2; redunet is below ce at ratio 0 to 0.5 "
        "(-0.31±0.02 at 0.5)."
    )
    assert early.startswith(
        "Stopped early on noisy labels, mcr2 is not told apart from ce at ratio 0 to 0.5; "
    )
    assert early.endswith("; it undoes mcr2's difference at ratio 0.3 to 0.5.")


def test_a_single_seed_has_no_interval_and_the_conclusion_says_so():
    last, early = conclusion(results(gain, seeds=(0,)))
    assert last == (
        "At the last epoch, ratio 0.5: mcr2 +0.200 (less ce, one seed and so no interval)."
    )
    assert early.startswith("Stopped early on noisy labels, ratio 0.5: mcr2 ")


def test_without_a_baseline_the_conclusion_is_where_accuracy_is_highest():
    axis = Axis("eps_sq", "squared distortion ε²")
    peak = results(
        lambda _, value, seed, __: 0.9 - abs(value - 0.5) / 10 + seed / 1000,
        ("mcr2",),
        (0.1, 0.5, 2.0),
        axis=axis,
    )
    last, _ = conclusion(peak)
    assert "mcr2 is most accurate at eps_sq 0.5 (0.901±0.002), least at eps_sq 2" in last
    assert conclusion(results(lambda *_: None)) == []


def test_a_conclusion_about_three_settings_says_how_many_more_there_are():
    many = results(lambda method, *_: 0.5, ("mcr2", "vmcr2", "tcr", "ole"))
    last, _ = conclusion(many)
    assert "tcr is most accurate at" in last
    assert "ole" not in last
    assert last.endswith("; 1 further setting in the table.")


def test_memorization_is_a_line_a_method():
    *_, table = summary_tables(results(gain))
    assert table.title.startswith("Memorization at the last epoch, ratio 0.5")
    assert table.rows == (
        ("ce", "head", "0.900±0.000", "0.500±0.000", "0.250±0.000"),
        ("mcr2", "nearest_subspace@3", "0.900±0.000", "0.500±0.000", "0.250±0.000"),
    )


def test_a_heading_widens_no_column():
    rows = (("a heading that is long", "", ""), ("  x", "0.5", "0.25"))
    lines = Table("t", ("", "0", "1"), rows, left=1).text(40).splitlines()
    assert lines[3] == "a heading that is long"
    assert lines[4] == "  x  0.5  0.25"


def test_notes_that_are_many_are_counted():
    assert note_lines(["a", "b"], 40, "more") == ["a", "b"]
    lines = note_lines([f"note {i}" for i in range(30)], 40, "mcr2 show out notes")
    assert len(lines) == 6
    assert lines[-1] == "... and 25 more: mcr2 show out notes"
