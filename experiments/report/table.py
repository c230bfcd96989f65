"""A titled table of text, for a terminal and in Markdown.

What stands in a table may be anybody's text (names of methods, classes, data sets and files): a
terminal is sent no control character of it, and Markdown none of its marks.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from experiments.runs.terminal import visible

#: Text that is not for a terminal is folded at this many columns.
WIDTH = 120

#: What means something in Markdown; an underscore only outside words.
_MARKS = re.compile(r"[\\`*\[\]<&|~#$]|(?<![^\W_])_|_(?![^\W_])")


def short(text: str, most: int = 40) -> str:
    """Return a name, visible, without its middle where it is longer than ``most`` characters.

    Example:
        >>> short("features_of_everything.npz", 12)
        'featur…g.npz'
    """
    text = visible(text)
    head, tail = most // 2, most - most // 2 - 1
    return text if len(text) <= most else f"{text[:head]}…{text[-tail:]}"


def escape_markdown(text: str) -> str:
    r"""Return a text as Markdown that reads as it.

    Example:
        >>> print(escape_markdown("a|b <b> *x* nc2_etf _y_"))
        a\|b \<b> \*x\* nc2_etf \_y\_
    """
    return _MARKS.sub(r"\\\g<0>", visible(text))


def terminal_width() -> int:
    """Return how many columns the terminal has, :data:`WIDTH` where there is none."""
    return max(40, shutil.get_terminal_size((WIDTH, 24)).columns)


def wrap(text: str, width: int) -> list[str]:
    """Return anybody's text as lines of at most ``width`` columns, visible."""
    return textwrap.wrap(visible(text), width, break_on_hyphens=False) or [""]


def count_of(number: int, what: str) -> str:
    """Return a number of things, in the singular where it is one.

    Example:
        >>> count_of(1, "run"), count_of(2, "run"), count_of(0, "run")
        ('1 run', '2 runs', '0 runs')
    """
    return f"{number} {what}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Return a time in the unit in which a person would say it.

    Example:
        >>> duration(100), duration(200), duration(9000)
        ('100 s', '3 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def entry(value: Any) -> str:
    """Return a number, a text or a list as an entry of a table; a dash for None.

    Example:
        >>> entry(0.5), entry(1e-9), entry(None), entry(3)
        ('0.5000', '1.00e-09', '-', '3')
    """
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.2e}"


@dataclass(frozen=True)
class Table:
    """A titled table of text: a header and rows of equal length.

    A row with an entry in its first column alone is a heading, and as wide as it needs to be.

    Attributes:
        left: how many columns name a row; they are aligned to the left, the others to the right.
        notes: lines beneath it.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 3
    notes: tuple[str, ...] = ()

    def text(self, width: int | None = None) -> str:
        """Return the table in columns, numbers to the right.

        Args:
            width: fold what is wider: columns that do not fit make a block of their own beneath,
                each behind the columns that name its rows; None never folds.
        """
        title, notes = [visible(self.title)], list(map(visible, self.notes))
        if width is not None:
            title = wrap(self.title, width)
            notes = list(chain(*(wrap(note, width) for note in self.notes)))
        lines = [list(map(visible, row)) for row in (self.header, *self.rows)]
        needed = [row for row in lines if any(row[1:]) or len(row) == 1]
        columns = [
            [entry.ljust(wide) if number < self.left else entry.rjust(wide) for entry in column]
            for number, column in enumerate(zip(*lines, strict=True))
            for wide in [max(len(row[number]) for row in needed)]
        ]
        names = columns[: self.left]
        blocks = [list(names)]
        for column in columns[self.left :]:
            wide = sum(len(c[0]) + 2 for c in blocks[-1]) + len(column[0])
            if width is not None and wide > width and len(blocks[-1]) > len(names):
                blocks.append(list(names))
            blocks[-1].append(column)
        return "\n".join([*title, "\n\n".join(map(_joined, blocks)), *notes])

    def markdown(self) -> str:
        """Return the table in Markdown."""
        marks = [":--" if c < self.left else "--:" for c in range(len(self.header))]
        header, *rows = (tuple(map(escape_markdown, row)) for row in (self.header, *self.rows))
        lines = ["| " + " | ".join(row) + " |" for row in (header, marks, *rows)]
        notes = "".join(f"\n\n{escape_markdown(note)}" for note in self.notes)
        return f"**{escape_markdown(self.title)}**\n\n" + "\n".join(lines) + notes


def _joined(columns: Sequence[Sequence[str]]) -> str:
    """Return padded columns beside each other, the first line ruled off."""
    header, *lines = ("  ".join(entries).rstrip() for entries in zip(*columns, strict=True))
    return "\n".join([header, "-" * max(map(len, (header, *lines))), *lines])
