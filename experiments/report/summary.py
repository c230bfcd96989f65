"""What a study prints when it ends: a screen, where all its tables would be a book.

The accuracy at the last epoch and stopped early, what methods gain over the baseline, a line of
memorization a method, and sentences computed from the intervals.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from experiments.report.results import Results, value_text
from experiments.report.statistics import Difference, Estimate, shown
from experiments.report.table import Table, count_of, short, wrap
from experiments.report.tables import MEMORIZATION, differences

#: Rules that are printed: what a user gets who trains to the end, and who stops early. The first
#: and the last words of the conclusion are about them.
PRINTED = {"last": "At the last epoch", "noisy_validation": "Stopped early on noisy labels"}

#: Lines of notes that are printed; the others are in the report.
MOST_NOTES = 6


def summary_tables(results: Results, baseline: str = "ce") -> list[Table]:
    """Return accuracy, differences and memorization, as far as they fit a screen."""
    made = (accuracy(results), gains(results, baseline), memorization(results))
    return [table for table in made if table is not None]


def fitting(table: Table, width: int) -> str:
    """Return a table as text, its numbers without leading zeros where only that makes it fit.

    Example:
        >>> print(fitting(Table("t", ("a", "b"), (("x", "0.57±0.10"),), left=1), 10))
        t
        a        b
        ----------
        x  .57±.10
    """
    rows = [
        (*row[: table.left], *(re.sub(r"(?<![\d.])0\.(?=\d)", ".", e) for e in row[table.left :]))
        for row in table.rows
    ]
    shorter = replace(table, rows=tuple(rows))
    fits = [max(map(len, each.text().splitlines()[1:])) <= width for each in (table, shorter)]
    return (shorter if fits == [False, True] else table).text(width)


def _name(results: Results, case: Mapping[str, Any]) -> str:
    """Return what a case is called: its method, and the values of what else is varied."""
    varied = [axis for axis in results.axes[1:] if len(results.values(axis)) > 1]
    settings = (f"{axis.name} {value_text(case[axis.name])}" for axis in varied)
    return ", ".join([results.names[case["method"]], *settings])


def _grouped(
    results: Results, title: str, groups: Mapping[str, Sequence[tuple[str, Sequence[str]]]]
) -> Table | None:
    """Return groups of rows, each beneath its heading; None where all are empty."""
    values = list(map(value_text, results.values()))
    rows: list[tuple[str, ...]] = []
    for heading, lines in groups.items():
        if lines:
            rows.append((heading, *("" for _ in values)))
            rows += [(f"  {name}", *entries) for name, entries in lines]
    return Table(title, ("", *values), tuple(rows), left=1) if rows else None


def accuracy(results: Results) -> Table | None:
    """Return test accuracy at the printed rules, and published figures beneath."""
    groups: dict[str, list[tuple[str, Sequence[str]]]] = {}
    for rule in PRINTED:
        for case in results.cases if rule in results.rules else ():
            found = results.estimates("test_accuracy", case, rule)
            entries = [shown(value, results.seeds, 3) for value in found]
            groups.setdefault(rule, []).append((_name(results, case), entries))
    for source, figures in results.reference.items():
        groups[f"published: {source}"] = [
            (method, [f"{known[v]:.3f}" if v in known else "-" for v in results.values()])
            for method, known in figures.items()
        ]
    title = f"Test accuracy on {short(results.dataset)}, by {results.axes[0].title} "
    return _grouped(results, f"{title}({results.interval})", groups)


def _compared(results: Results, rule: str, baseline: str) -> dict[str, dict[Any, Difference]]:
    """Return paired differences at a rule: name of the case -> value of the first axis -> it."""
    axis = results.axes[0].name
    found: dict[str, dict[Any, Difference]] = {}
    for each in differences(results, baseline):
        if each.selection == rule and each.estimate is not None:
            name = _name(results, {"method": each.method, **each.where})
            found.setdefault(name, {})[each.where[axis]] = each
    return found


def gains(results: Results, baseline: str = "ce") -> Table | None:
    """Return what methods gain over the baseline at the printed rules, paired."""
    groups = {
        rule: [
            (name, [shown(_of(by, v), results.seeds, 3, signed=True) for v in results.values()])
            for name, by in _compared(results, rule, baseline).items()
        ]
        for rule in PRINTED
    }
    return _grouped(results, f"Difference to {baseline}, paired: same seed, same labels", groups)


def _of(by: Mapping[Any, Difference], value: Any) -> Estimate | None:
    return by[value].estimate if value in by else None


def memorization(results: Results) -> Table | None:
    """Return a line a method: what its last epoch made of the training labels, most of them wrong.

    It is of the last value of the first axis at which anything was measured.
    """
    axis = results.axes[0].name
    for value in reversed(results.values()):
        rows = []
        for case in results.cases:
            found = [
                results.over_seeds(m, selection="last", **case, **{axis: value})
                for m in MEMORIZATION
            ]
            entries = (shown(each, results.seeds, 3) for each in found)
            if any(found):
                rows.append((_name(results, case), results.readout_of(**case), *entries))
        if rows:
            title = f"Memorization at the last epoch, {results.at(value)}: shares of labels"
            return Table(title, ("", "readout", *MEMORIZATION), tuple(rows), left=2)
    return None


# --- sentences


def listed(values: Sequence[Any], among: Sequence[Any]) -> str:
    """Return values of an axis in words; three or more that follow each other as a range.

    Example:
        >>> listed([0.1, 0.3], [0, 0.1, 0.2, 0.3]), listed([0.1, 0.2, 0.3], [0, 0.1, 0.2, 0.3])
        ('0.1 and 0.3', '0.1 to 0.3')
    """
    names = list(map(value_text, values))
    places = [list(among).index(value) for value in values]
    if len(places) > 2 and places == list(range(places[0], places[-1] + 1)):
        return f"{names[0]} to {names[-1]}"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def side(estimate: Estimate | None) -> str:
    """Return where a difference lies: above or below zero, or "open" where its interval has it.

    Example:
        >>> [side(Estimate(0.2, half, 3)) for half in (0.1, 0.3)], side(Estimate(0.2, None, 1))
        (['above', 'open'], 'open')
    """
    if estimate is None or estimate.half_width is None:
        return "open"
    if abs(estimate.mean) <= estimate.half_width:
        return "open"
    return "above" if estimate.mean > 0 else "below"


def conclusion(results: Results, baseline: str = "ce") -> list[str]:
    """Return what the intervals say, a sentence for each printed rule; nothing where they cannot.

    A method is above or below the baseline where the 95 % interval of their paired difference
    excludes zero. Early stopping undoes a difference where its interval does not.
    """
    rules = [rule for rule in PRINTED if rule in results.rules]
    by_rule = {rule: _compared(results, rule, baseline) for rule in rules}
    if not any(by_rule.values()):
        return [s for rule in rules if (s := _extremes(results, rule))]
    if results.seeds == 1:
        return [s for rule in rules if (s := _one_seed(results, rule, by_rule[rule], baseline))]
    sentences = []
    for rule, found in by_rule.items():
        parts = [_verdict(results, name, by, baseline) for name, by in found.items()]
        if rule != rules[0]:
            undone = [_undone(results, name, by_rule[rules[0]], by) for name, by in found.items()]
            parts += filter(None, undone)
        if parts:
            sentences.append(f"{PRINTED[rule]}, {'; '.join(parts)}.")
    return sentences


def _sides(results: Results, by: Mapping[Any, Difference]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for value in results.values():
        if value in by:
            found.setdefault(side(by[value].estimate), []).append(value)
    return found


def _verdict(results: Results, name: str, by: Mapping[Any, Difference], baseline: str) -> str:
    """Return where a method is above the baseline, where below, where it cannot be told."""
    axis, values, parts = results.axes[0].name, results.values(), []
    sides = _sides(results, by)
    for which in ("above", "below"):
        if which in sides:
            at = sides[which][-1]
            size = f"{_of(by, at).text(3, signed=True)} at {value_text(at)}"  # type: ignore[union-attr]
            where = listed(sides[which], values)
            parts.append(f"{which} {baseline} at {axis} {where} ({size})")
    if "open" in sides:
        parts.append(f"not told apart from {baseline} at {axis} {listed(sides['open'], values)}")
    return f"{name} is {', '.join(parts)}"


def _undone(
    results: Results,
    name: str,
    first: Mapping[str, Mapping[Any, Difference]],
    by: Mapping[Any, Difference],
) -> str:
    """Return at which values early stopping leaves nothing of a difference of the last epoch."""
    undone = [
        value
        for which, values in _sides(results, first.get(name, {})).items()
        for value in values
        if which != "open" and value in by and side(by[value].estimate) != which
    ]
    at = listed(undone, results.values()) if undone else ""
    return f"it undoes {name}'s difference at {results.axes[0].name} {at}" if undone else ""


def _one_seed(
    results: Results, rule: str, found: Mapping[str, Mapping[Any, Difference]], baseline: str
) -> str:
    """Return the differences of a single seed at the last value, which no interval supports."""
    value = results.values()[-1]
    sizes = [(name, _of(by, value)) for name, by in found.items()]
    parts = [f"{name} {each.text(3, signed=True)}" for name, each in sizes if each]
    less = f"less {baseline}, one seed and so no interval"
    return f"{PRINTED[rule]}, {results.at(value)}: {', '.join(parts)} ({less})." if parts else ""


def _extremes(results: Results, rule: str) -> str:
    """Return where accuracy is highest and where lowest; nothing to compare with a baseline."""
    parts = []
    for case in results.cases[:3]:
        values = zip(results.values(), results.estimates("test_accuracy", case, rule), strict=True)
        known = [(value, each) for value, each in values if each is not None]
        if len(known) > 1:
            ordered = sorted(known, key=lambda pair: pair[1].mean)
            low, high = (
                f"{results.at(v)} ({each.text(3)})" for v, each in ordered[:: len(known) - 1]
            )
            parts.append(f"{_name(results, case)} is most accurate at {high}, least at {low}")
    more = len(results.cases) - 3
    if parts and more > 0:
        parts.append(f"{count_of(more, 'further setting')} in the table")
    return f"{PRINTED[rule]}, {'; '.join(parts)}." if parts else ""


def note_lines(notes: Sequence[str], width: int, more: str) -> list[str]:
    """Return notes as lines, as many as fit in :data:`MOST_NOTES`, and where the others are."""
    lines: list[str] = []
    for number, note in enumerate(notes):
        wrapped = wrap(note, width)
        if lines and len(lines) + len(wrapped) > MOST_NOTES - (number < len(notes) - 1):
            return [*lines, f"... and {len(notes) - number} more: {more}"]
        lines += wrapped
    return lines
