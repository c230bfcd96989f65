"""A titled table of text, for a terminal and in Markdown.

What stands in a table may be anybody's text (names of methods, classes, data sets and files): a
terminal is sent no control character of it, and Markdown none of its marks.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

#: Text on a terminal is folded at this many columns.
WIDTH = 120

#: What means something in Markdown; an underscore only outside words.
_MARKS = re.compile(r"[\\`*\[\]<&|~#$]|(?<![^\W_])_|_(?![^\W_])")


def visible(text: str) -> str:
    r"""Return a text with control characters written out.

    Example:
        >>> print(visible("red\x1b[31m\n"))
        red\x1b[31m\n
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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


@dataclass(frozen=True)
class Table:
    """A titled table of text: a header and rows of equal length.

    Attributes:
        title: one sentence.
        header, rows: the text.
        left: how many columns name a row; they are aligned to the left, what is behind them to
            the right.
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
        shown = replace(
            self,
            header=tuple(map(visible, self.header)),
            rows=tuple(tuple(map(visible, row)) for row in self.rows),
        )
        title, notes = [visible(self.title)], list(map(visible, self.notes))
        if width is not None:
            wrapper = textwrap.TextWrapper(width, break_on_hyphens=False)
            title = wrapper.wrap(title[0])
            notes = list(chain(*map(wrapper.wrap, notes)))
        return "\n".join([*title, "\n\n".join(shown._blocks(width)), *notes])

    def _blocks(self, width: int | None) -> list[str]:
        """Return the table's columns in blocks, each behind the columns that name its rows."""
        columns = list(zip(self.header, *self.rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        names = list(range(min(self.left, len(widths))))
        blocks = [list(names)]
        for column in range(len(names), len(widths)):
            wide = sum(widths[c] + 2 for c in blocks[-1]) + widths[column]
            if width is not None and wide > width and len(blocks[-1]) > len(names):
                blocks.append(list(names))
            blocks[-1].append(column)

        def line(entries: Sequence[str], block: Sequence[int]) -> str:
            return "  ".join(
                entries[c].ljust(widths[c]) if c < self.left else entries[c].rjust(widths[c])
                for c in block
            ).rstrip()

        found = []
        for block in blocks:
            header, *lines = (line(entries, block) for entries in (self.header, *self.rows))
            rule = "-" * max(map(len, (header, *lines)))
            found.append("\n".join([header, rule, *lines]))
        return found

    def markdown(self) -> str:
        """Return the table in Markdown."""
        marks = [":--" if c < self.left else "--:" for c in range(len(self.header))]
        header, *rows = (tuple(map(escape_markdown, row)) for row in (self.header, *self.rows))
        lines = ["| " + " | ".join(row) + " |" for row in (header, marks, *rows)]
        notes = "".join(f"\n\n{escape_markdown(note)}" for note in self.notes)
        return f"**{escape_markdown(self.title)}**\n\n" + "\n".join(lines) + notes
