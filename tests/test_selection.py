"""Selection rules name the right evaluation, and never need a checkpoint already dropped."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcr2.selection import PATIENCE, SELECTIONS, Candidate, Selection, make_selection, select

shares = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1))


def history(validation, test=None, clean=None):
    """Evaluations by noisy validation, test and clean validation; those not given are alike."""
    test = validation if test is None else test
    clean = validation if clean is None else clean
    return [
        Candidate(5 * i, *accuracies)
        for i, accuracies in enumerate(zip(validation, test, clean, strict=True))
    ]


def test_each_rule_reads_its_own_accuracy():
    late = PATIENCE * [0.0]
    h = history(
        [0.1, 0.6, 0.5, 0.4, *late, 0.7, 0.2],
        [0.1, 0.7, 0.9, 0.6, *late, 0.8, 0.2],
        [0.1, 0.7, 0.8, 0.9, *late, 0.8, 0.2],
    )
    assert {rule: select(rule, h) for rule in SELECTIONS} == {
        "last": len(h) - 1,
        "noisy_validation": 4 + PATIENCE,
        "patience": 1,
        "clean_validation": 3,
        "oracle": 2,
    }


def stopped(accuracies):
    """Early stopping as a training loop would do it."""
    best, at, waited = -math.inf, None, 0
    for i, accuracy in enumerate(accuracies):
        if accuracy > best:
            best, at, waited = accuracy, i, 0
        else:
            waited += 1
        if waited == PATIENCE:
            break
    return at


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=40))
def test_patience_stops_as_a_loop_would(accuracies):
    assert select("patience", history(accuracies)) == stopped(accuracies)


def test_patience_ends_after_so_many_evaluations_without_improvement():
    rest = [0.5] * PATIENCE
    assert select("patience", history([0.1, 0.5, *rest[1:], 0.9])) == PATIENCE + 1
    assert select("patience", history([0.1, 0.5, *rest, 0.9])) == 1


@given(st.lists(shares, min_size=1, max_size=20), st.lists(shares, min_size=1, max_size=20))
def test_patience_never_looks_past_its_stop(before, after):
    h = history([*before, 1.0, *([0.0] * PATIENCE), *after])
    assert select("patience", h) <= len(before)


def test_ties_go_to_the_earliest():
    assert select("noisy_validation", history([0.2, 0.5, 0.5, 0.5])) == 1
    assert select("oracle", history([0.2, 0.5, 0.5, 0.5])) == 1
    assert select("patience", history([0.2, 0.5, 0.5, 0.5])) == 1
    assert select("clean_validation", history([0.2, 0.5, 0.5, 0.5])) == 1


def test_the_evaluation_before_training_can_be_selected():
    assert {select(rule, history([0.3])) for rule in SELECTIONS} == {0}
    assert select("noisy_validation", history([0.3, 0.2])) == 0


def test_nan_and_missing_accuracies_are_never_selected():
    for rule in ("noisy_validation", "patience", "clean_validation", "oracle"):
        assert select(rule, history([math.nan, None, 0.1, math.nan, 0.3, math.nan])) == 4
    assert select("last", history([0.1, math.nan])) == 1


@given(st.lists(st.tuples(shares, shares, shares), min_size=1, max_size=20))
def test_a_growing_history_selects_the_newest_or_what_it_selected_before(triples):
    h = history(*zip(*triples, strict=True))
    for rule in SELECTIONS:
        kept = None
        for n in range(1, len(h) + 1):
            chosen = select(rule, h[:n])
            assert chosen in (n - 1, kept)
            kept = chosen


@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=20))
def test_the_selected_accuracy_is_the_largest_and_the_first_such(pairs):
    validation, test = zip(*pairs, strict=True)
    h = history(validation, test)
    assert select("noisy_validation", h) == validation.index(max(validation))
    assert select("oracle", h) == test.index(max(test))


@given(st.lists(st.tuples(*[shares] * 5), min_size=1, max_size=15))
def test_rules_see_no_more_than_they_may(values):
    noisy, test, clean, other, another = zip(*values, strict=True)
    h = history(noisy, test, clean)
    for rule in ("last", "noisy_validation", "patience"):
        assert select(rule, h) == select(rule, history(noisy, other, another))
    assert select("clean_validation", h) == select("clean_validation", history(other, other, clean))
    assert select("oracle", h) == select("oracle", history(other, test, another))


def test_a_selection_carries_the_standard_error_of_the_validation_accuracy():
    h = history([0.1, 0.8, 0.5])
    got = make_selection("noisy_validation", h, n_validation=100)
    assert got == Selection("noisy_validation", 5, 0.8, pytest.approx(0.04))
    unheld = make_selection("last", history([None, None], [0.1, 0.2]), n_validation=0)
    assert unheld == Selection("last", 5, None, None)


@pytest.mark.parametrize(
    "rule, h, message",
    [
        ("best", history([0.1]), "choose from last, noisy_validation, patience"),
        ("last", [], "empty"),
        ("last", [Candidate(5), Candidate(5)], "rise"),
        ("noisy_validation", history([None, None], [0.1, 0.2]), "held out"),
        ("noisy_validation", history([math.nan]), "needs a validation_accuracy"),
        ("patience", history([None, math.nan], [0.1, 0.2]), "'patience'.* held out"),
        ("clean_validation", [Candidate(0, 0.5)], "'clean_validation' needs a validation_clean"),
        ("oracle", [Candidate(0, 0.5)], "needs a test_accuracy"),
    ],
)
def test_what_cannot_be_selected_is_named(rule, h, message):
    with pytest.raises(ValueError, match=message):
        select(rule, h)


@pytest.mark.parametrize("n", [0, -1])
def test_a_validation_accuracy_needs_validation_samples(n):
    with pytest.raises(ValueError, match=r"n is .*at least 1"):
        make_selection("last", history([0.5]), n_validation=n)
