"""What all studies share."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar


class Study:
    """A study: its fields are its command line's options."""

    name: ClassVar[str]

    def prepare(self) -> Callable[[], int]:
        """Check everything, and return what runs the study and returns the exit status."""
        raise NotImplementedError
