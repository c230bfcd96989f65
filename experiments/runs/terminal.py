"""What is said on a terminal: a line is anybody's text, and sends it no control character."""

from __future__ import annotations

import sys


def visible(text: str) -> str:
    r"""Return a text with control characters written out.

    Example:
        >>> print(visible("red\x1b[31m\n"))
        red\x1b[31m\n
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(text: str) -> None:
    """Print a line on standard output."""
    print(visible(text), flush=True)


def warn(text: object) -> None:
    """Print a line on standard error."""
    print(f"mcr2: {visible(' '.join(str(text).split()))}", file=sys.stderr)
