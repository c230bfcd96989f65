"""Which evaluation of a run's history is reported: :data:`SELECTIONS`, by name.

A history is the sequence of a run's evaluations, oldest first, the one before training (epoch 0)
among them. A rule maps it to an index. Rules run *online*: on a history that has grown by one
evaluation a rule returns either the newest index or the one it returned before, so a trainer
needs to keep only the checkpoints selected so far. A new rule is one function, its entry in
:data:`SELECTIONS`, and a docstring that says what it may know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mcr2.metrics.accuracy import standard_error


@dataclass(frozen=True)
class Candidate:
    """What selection sees of one evaluation.

    Args:
        epoch: epochs trained; 0 is before training.
        validation_accuracy: on the held-out share, against its *noisy* labels; None where
            nothing is held out.
        test_accuracy: on the test set; None where it was not measured.
        validation_clean_accuracy: on the held-out share, against its true labels; None where
            these are unknown.
    """

    epoch: int
    validation_accuracy: float | None = None
    test_accuracy: float | None = None
    validation_clean_accuracy: float | None = None


Rule = Callable[[Sequence[Candidate]], int]

#: Evaluations without improvement after which :func:`patience` stops. A convention, not tuned.
PATIENCE = 5


def last(history: Sequence[Candidate]) -> int:
    """Select the last evaluation. May know: nothing."""
    return len(history) - 1


def noisy_validation(history: Sequence[Candidate]) -> int:
    """Select the best noisy validation accuracy, the earliest of equals: early stopping.

    May know: the labels of the held-out share as the user has them, noise included; no clean
    label and no test sample.
    """
    best = _first_best([c.validation_accuracy for c in history])
    if best is None:
        raise ValueError(_without_validation("noisy_validation", "a validation accuracy"))
    return best


def patience(history: Sequence[Candidate]) -> int:
    """Select the best noisy validation accuracy up to a stop: early stopping as it saves time.

    The run would be stopped at the first evaluation that is :data:`PATIENCE` evaluations past
    the best one so far, and that best one is selected, the earliest of equals. What comes after
    the stop is not looked at, however good.

    May know: what ``noisy_validation`` may, and of that only what came before the stop.
    """
    accuracies = [c.validation_accuracy for c in history]
    for end in range(1, len(accuracies) + 1):
        best = _first_best(accuracies[:end])
        if best is not None and end - 1 - best >= PATIENCE:
            return best
    best = _first_best(accuracies)
    if best is None:
        raise ValueError(_without_validation("patience", "a validation accuracy"))
    return best


def clean_validation(history: Sequence[Candidate]) -> int:
    """Select the best validation accuracy by *true* labels, the earliest of equals: a diagnostic.

    Beside ``noisy_validation`` it says what the noise in the held-out labels costs the choice.

    May know: the true labels of the held-out share, which a user with noisy labels does not
    have; no test sample.
    """
    best = _first_best([c.validation_clean_accuracy for c in history])
    if best is None:
        raise ValueError(
            _without_validation("clean_validation", "a validation accuracy by clean labels")
        )
    return best


def oracle(history: Sequence[Candidate]) -> int:
    """Select the best test accuracy, the earliest of equals: for reference only.

    May know: the test labels. What no honest rule can beat, never a method's result.
    """
    best = _first_best([c.test_accuracy for c in history])
    if best is None:
        raise ValueError("selection 'oracle' needs a test accuracy; no evaluation has one")
    return best


#: Selection rules by name.
SELECTIONS: dict[str, Rule] = {
    "last": last,
    "noisy_validation": noisy_validation,
    "patience": patience,
    "clean_validation": clean_validation,
    "oracle": oracle,
}

#: Those that need a held-out share.
NEED_VALIDATION = ("noisy_validation", "patience", "clean_validation")


def select(rule: str, history: Sequence[Candidate]) -> int:
    """Return the index of the evaluation that a rule reports.

    Args:
        rule: a name in :data:`SELECTIONS`.
        history: evaluations, epochs rising.

    Returns:
        An index into ``history``. Accuracies that are None or NaN are never selected by a rule
        that looks at them.

    Raises:
        ValueError: an unknown rule, an empty history, epochs that do not rise, or no evaluation
            with the accuracy that the rule needs.

    Example:
        >>> history = [Candidate(0, 0.1, 0.1), Candidate(5, 0.4, 0.7), Candidate(10, 0.3, 0.8)]
        >>> [select(rule, history) for rule in ("last", "noisy_validation", "oracle")]
        [2, 1, 2]
    """
    if rule not in SELECTIONS:
        raise ValueError(f"unknown selection {rule!r}; choose from {', '.join(SELECTIONS)}")
    if not history:
        raise ValueError("the history is empty: there is no evaluation to select")
    epochs = [c.epoch for c in history]
    if any(b <= a for a, b in pairwise(epochs)):
        raise ValueError(f"epochs must rise along the history; got {epochs}")
    return SELECTIONS[rule](history)


@dataclass(frozen=True)
class Selection:
    """The evaluation a rule selected, with the uncertainty of what it was selected by.

    Args:
        rule: name in :data:`SELECTIONS`.
        epoch: epoch of the selected evaluation.
        index: its place in the history.
        validation_accuracy: its noisy validation accuracy a, or None.
        standard_error: binomial, ``sqrt(a (1 - a) / n)`` for n held-out samples, or None. Epochs
            within about one of it cannot be told apart by the rule.
    """

    rule: str
    epoch: int
    index: int
    validation_accuracy: float | None
    standard_error: float | None


def make_selection(rule: str, history: Sequence[Candidate], *, n_validation: int) -> Selection:
    """Apply a rule and describe what it selected.

    Args:
        rule: a name in :data:`SELECTIONS`.
        history: evaluations, epochs rising.
        n_validation: held-out samples; 0 where nothing is held out.

    Raises:
        ValueError: as :func:`select`; a negative ``n_validation``, or none held out beside a
            validation accuracy.

    Example:
        >>> history = [Candidate(0, 0.1, 0.1), Candidate(5, 0.5, 0.7)]
        >>> make_selection("noisy_validation", history, n_validation=100)
        Selection(rule='noisy_validation', epoch=5, index=1, validation_accuracy=0.5,
                  standard_error=0.05)
    """
    index = select(rule, history)
    chosen = history[index]
    accuracy = chosen.validation_accuracy
    if n_validation < 0 or (accuracy is not None and n_validation == 0):
        raise ValueError(
            f"n_validation is {n_validation} beside a validation accuracy of {accuracy}; it is "
            "the number of held-out samples"
        )
    error = None if accuracy is None else standard_error(accuracy, n_validation)
    return Selection(rule, chosen.epoch, index, accuracy, error)


def _without_validation(rule: str, accuracy: str) -> str:
    return (
        f"selection {rule!r} needs {accuracy}; no evaluation has one "
        "(was a validation share held out?)"
    )


def _first_best(values: Sequence[float | None]) -> int | None:
    """Return the index of the first largest number, or None where there is none."""
    numbers = [(v, -i) for i, v in enumerate(values) if v is not None and not math.isnan(v)]
    return -max(numbers)[1] if numbers else None
