"""Which evaluation of a run's history is reported: :data:`SELECTIONS`, by name.

A history is the sequence of a run's evaluations, oldest first, the one before training (epoch 0)
among them. A rule maps what it may see of it to an index. Rules run *online*: on a history that
has grown by one evaluation a rule returns either the newest index or the one it returned before,
so that a trainer needs to keep only the checkpoints selected so far. A new rule is one function
of a sequence of accuracies and its entry in :data:`SELECTIONS`, which says what it sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mcr2 import checks
from mcr2.metrics.accuracy import standard_error


@dataclass(frozen=True)
class Candidate:
    """What selection sees of one evaluation.

    Args:
        epoch: epochs trained; 0 is before training.
        validation_accuracy: on the held-out share, against its *noisy* labels; None without one.
        test_accuracy: on the test set; None where it was not measured.
        validation_clean_accuracy: on the held-out share, against its true labels, if known.
    """

    epoch: int
    validation_accuracy: float | None = None
    test_accuracy: float | None = None
    validation_clean_accuracy: float | None = None


#: Accuracies of a history, None or NaN where there is none.
Accuracies = Sequence[float | None]

#: Evaluations without improvement after which :func:`patience` stops. A convention, not tuned.
PATIENCE = 5


def best(accuracies: Accuracies) -> int | None:
    """Return the first of the largest accuracies, or None where there is none."""
    numbers = [(a, -i) for i, a in enumerate(accuracies) if a is not None and not math.isnan(a)]
    return -max(numbers)[1] if numbers else None


def patience(accuracies: Accuracies) -> int | None:
    """Return the best one up to a stop: early stopping as it saves time.

    The run would be stopped at the first evaluation that is :data:`PATIENCE` evaluations past
    the best one so far. What comes after the stop is not looked at, however good.
    """
    for end in range(1, len(accuracies) + 1):
        found = best(accuracies[:end])
        if found is not None and end - 1 - found >= PATIENCE:
            return found
    return best(accuracies)


@dataclass(frozen=True)
class Rule:
    """Chooses an index, or None, by the field of :class:`Candidate` that it ``sees``."""

    choose: Callable[[Accuracies], int | None]
    sees: str


#: Selection rules by name. Of equal accuracies they take the earliest. A user has the held-out
#: labels with their noise; ``clean_validation`` is a diagnostic; no honest rule beats ``oracle``.
SELECTIONS: dict[str, Rule] = {
    "last": Rule(lambda epochs: len(epochs) - 1, "epoch"),
    "noisy_validation": Rule(best, "validation_accuracy"),
    "patience": Rule(patience, "validation_accuracy"),
    "clean_validation": Rule(best, "validation_clean_accuracy"),
    "oracle": Rule(best, "test_accuracy"),
}

#: Those that need a held-out share.
NEED_VALIDATION = tuple(n for n, rule in SELECTIONS.items() if rule.sees.startswith("validation"))


def select(rule: str, history: Sequence[Candidate]) -> int:
    """Return the index of the evaluation that a rule reports.

    Accuracies that are None or NaN are never selected by a rule that looks at them.

    Args:
        rule: a name in :data:`SELECTIONS`.
        history: evaluations, epochs rising.

    Raises:
        ValueError: an unknown rule, an empty history, epochs that do not rise, or no evaluation
            with the accuracy that the rule needs.

    Example:
        >>> history = [Candidate(0, 0.1, 0.1), Candidate(5, 0.4, 0.7), Candidate(10, 0.3, 0.8)]
        >>> [select(rule, history) for rule in ("last", "noisy_validation", "oracle")]
        [2, 1, 2]
    """
    checks.choice("selection", rule, SELECTIONS)
    if not history:
        raise ValueError("the history is empty: there is no evaluation to select")
    epochs = [c.epoch for c in history]
    if any(b <= a for a, b in pairwise(epochs)):
        raise ValueError(f"epochs must rise along the history; got {epochs}")
    sees = SELECTIONS[rule].sees
    found = SELECTIONS[rule].choose([getattr(c, sees) for c in history])
    if found is None:
        held = " (was a validation share held out?)" if rule in NEED_VALIDATION else ""
        raise ValueError(f"selection {rule!r} needs a {sees}; no evaluation has one{held}")
    return found


@dataclass(frozen=True)
class Selection:
    """The evaluation a rule selected, with the uncertainty of what it was selected by.

    ``standard_error`` is that of the noisy validation accuracy, None where nothing was held out.
    Epochs within about one of it cannot be told apart by the rule.
    """

    rule: str
    epoch: int
    validation_accuracy: float | None
    standard_error: float | None


def make_selection(rule: str, history: Sequence[Candidate], *, n_validation: int) -> Selection:
    """Apply a rule and describe what it selected.

    Raises:
        ValueError: as :func:`select`; no sample held out beside a validation accuracy.

    Example:
        >>> history = [Candidate(0, 0.1, 0.1), Candidate(5, 0.5, 0.7)]
        >>> make_selection("noisy_validation", history, n_validation=100)
        Selection(rule='noisy_validation', epoch=5, validation_accuracy=0.5, standard_error=0.05)
    """
    chosen = history[select(rule, history)]
    accuracy = chosen.validation_accuracy
    error = None if accuracy is None else standard_error(accuracy, n_validation)
    return Selection(rule, chosen.epoch, accuracy, error)
