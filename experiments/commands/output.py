"""What commands leave where they are told to."""

from __future__ import annotations

import os
from pathlib import Path


def check_json(path: Path | None, option: str = "--json") -> None:
    """Refuse a place where no file can be written, before anything is spent.

    Raises:
        ValueError: it is a folder, lies in a file, or in a folder that cannot be written to.
    """
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; give a file")
    for parent in path.parents:
        if parent.exists():
            if not parent.is_dir():
                raise ValueError(f"{option} {path}: {parent} is a file, not a folder")
            if not os.access(parent, os.W_OK):
                raise ValueError(f"{option} {path}: {parent} cannot be written to")
            return
