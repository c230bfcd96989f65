"""Means over seeds with 95 % intervals, and differences between methods over the same seeds.

A row is one of ``table.json``: one run at one selection rule. Its scalars are named by their key in
the row (``test_accuracy``) or, where the name holds a ``/``, by their key among its ``measures``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, TypeAlias

Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Estimate:
    """A mean over ``count`` seeds and the half-width of its interval, None for a single seed."""

    mean: float
    half_width: float | None
    count: int

    def text(self, places: int | None = None, *, signed: bool = False) -> str:
        """Return ``mean±half-width`` with the digits that the half-width supports.

        The half-width keeps one significant digit, two where the first is a 1, and the mean as
        many decimals. Without a half-width, or with one of 0, the mean keeps ``places`` decimals,
        or three significant digits.

        Args:
            places: decimals at the most; None for no limit, then also powers of ten are used.
            signed: write a plus before a positive mean.

        Example:
            >>> Estimate(0.57213, 0.104, 3).text(3), Estimate(0.99721, 0.00012, 3).text(3)
            ('0.57±0.10', '0.997±0.000')
            >>> Estimate(12.345, 2.2, 3).text(), Estimate(0.000123, 0.00002, 3).text()
            ('12±2', '(1.2±0.2)e-4')
        """
        exponent, half, plus = 0, self.half_width, "+" if signed else ""
        size = max(abs(self.mean), half or 0.0)
        if places is None and size and not 1e-3 <= size < 1e5:
            exponent = math.floor(math.log10(size))
        value, half = self.mean / 10**exponent, None if half is None else half / 10**exponent
        if half:
            shown = supported_places(half)
            shown = shown if places is None else min(shown, places)
        elif places is not None:
            shown = places
        else:  # a count, of components say, is exact
            exact = isinstance(self.mean, int) or not value
            shown = 0 if exact else max(2 - math.floor(math.log10(abs(value))), 0)
        text = f"{round(value, shown):{plus}z.{max(shown, 0)}f}"
        if half is not None:
            text += f"±{round(half, shown):z.{max(shown, 0)}f}"
        if not exponent:
            return text
        return f"{text}e{exponent}" if half is None else f"({text})e{exponent}"

    def __str__(self) -> str:
        return self.text(3)


def supported_places(uncertainty: float) -> int:
    """Return the decimals that an uncertainty supports; negative ones are tens.

    They end at its first significant digit, at its second where the first is a 1.

    Example:
        >>> [supported_places(u) for u in (0.42, 0.14, 0.0199, 3.0, 14.0, 230.0)]
        [1, 2, 2, 0, 0, -2]
    """
    exponent = math.floor(math.log10(uncertainty))
    rounded = round(uncertainty / 10**exponent, 1)
    if rounded >= 10:  # 0.0999 is written 0.10
        exponent, rounded = exponent + 1, 1.0
    return (1 if rounded < 2 else 0) - exponent


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return mean and 95 % interval of values, one a seed; None of nothing.

    The half-width is ``t_{n-1, 0.975} · s / √n``, s the sample standard deviation (n - 1):
    Student's interval, which holds the mean of all seeds with probability 0.95 if results are
    normal over seeds. One value has none.

    Example:
        >>> str(estimate([0.8, 0.84])), str(estimate([0.8])), estimate([])
        ('0.8±0.3', '0.800', None)
    """
    from scipy.special import stdtrit

    if not values:
        return None
    n = len(values)
    if n == 1:
        return Estimate(values[0], None, 1)
    quantile = float(stdtrit(n - 1, 0.975))
    return Estimate(mean(values), quantile * stdev(values) / math.sqrt(n), n)


def shown(value: Estimate | None, seeds: int, places: int | None = None, **how: Any) -> str:
    """Return an entry: the estimate, in brackets over how many where that is not all ``seeds``.

    Example:
        >>> shown(Estimate(0.5, None, 1), 3, 3), shown(None, 3)
        ('0.500 (1)', '-')
    """
    if value is None:
        return "-"
    return value.text(places, **how) + ("" if value.count == seeds else f" ({value.count})")


def verdict(
    claim: str, cases: Mapping[str, bool | Sequence[bool | None] | None], criterion: str
) -> str:
    """Return the line that says whether a claim holds in the cases where it could be decided.

    It *holds* where it does so in all of them, *holds in part* where in some, and *does not hold
    here* where in none.

    Args:
        claim: what is claimed.
        cases: whether it holds, by the name of a case, or whether it does seed by seed: it must in
            every seed where it was measured. None where it was not.
        criterion: by which each was decided.

    Example:
        >>> verdict("Water boils", {"at 90 °C": False, "at 100 °C": True}, "there are bubbles")
        'Water boils: holds in part (at 100 °C; not at 90 °C). Criterion: there are bubbles.'
    """
    decided = {n: in_every_seed(v) if isinstance(v, Sequence) else v for n, v in cases.items()}

    def named(wanted: bool) -> str:
        names = [name for name, found in decided.items() if found == wanted]
        return ", ".join(names) if len(names) <= 8 else f"{len(names)} cases"

    holds, fails = named(True), named(False)
    if holds and fails:
        found = f"holds in part ({holds}; not {fails})"
    elif holds:
        found = f"holds ({holds})"
    else:
        found = f"does not hold here ({fails})" if fails else "not measured"
    return f"{claim}: {found}. Criterion: {criterion}."


def in_every_seed(found: Sequence[bool | None]) -> bool | None:
    """Return whether something holds in each seed where it was measured; None of none."""
    known = [value for value in found if value is not None]
    return all(known) if known else None


def value_of(row: Row, name: str) -> float | None:
    """Return a row's scalar by its name, None where it is undefined or not finite.

    Example:
        >>> row = {"test_accuracy": 0.5, "measures": {"features/test/-/-/dim95": 7}}
        >>> value_of(row, "test_accuracy"), value_of(row, "features/test/-/-/dim95")
        (0.5, 7)
    """
    value = row["measures"].get(name) if "/" in name else row[name]
    return None if value is None or not math.isfinite(value) else value


def matching(rows: Sequence[Row], **values: Any) -> list[Row]:
    """Return the rows that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def mean_of(rows: Sequence[Row], name: str, **values: Any) -> Estimate | None:
    """Return the estimate of a scalar over the rows that have these values and it."""
    found = (value_of(row, name) for row in matching(rows, **values))
    return estimate([value for value in found if value is not None])


@dataclass(frozen=True)
class Difference:
    """One method less another at one selection and value of every axis, seed by seed."""

    method: str
    baseline: str
    selection: str
    where: Mapping[str, Any]
    estimate: Estimate | None  # None where no seed could be paired
    seeds: tuple[int, ...]  # those that were paired
    unpaired: tuple[int, ...]  # those that both have, but with other corrupted labels


def difference(
    rows: Sequence[Row], method: str, baseline: str, selection: str, where: Mapping[str, Any]
) -> Difference:
    """Return the paired difference of test accuracies, ``method - baseline``.

    A pair is two runs of one seed that were trained on the same labels: the digests of labels
    that their records hold as proof (``labels`` in a row) agree. What a seed does to both
    methods cancels in the difference, so that its interval may be narrower than either mean's.
    """

    def accuracies(name: str) -> dict[int, tuple[float, str]]:
        found = matching(rows, method=name, selection=selection, **where)
        values = {row["seed"]: (value_of(row, "test_accuracy"), row["labels"]) for row in found}
        return {seed: (v, labels) for seed, (v, labels) in values.items() if v is not None}

    ours, theirs = accuracies(method), accuracies(baseline)
    shared = sorted(ours.keys() & theirs.keys())
    paired = tuple(s for s in shared if ours[s][1] == theirs[s][1])
    unpaired = tuple(s for s in shared if s not in paired)
    found = estimate([ours[s][0] - theirs[s][0] for s in paired])
    return Difference(method, baseline, selection, where, found, paired, unpaired)
