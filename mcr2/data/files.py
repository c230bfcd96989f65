"""What may be opened, and how much of it: files come from anywhere.

A size in a header is compared with limits of ours before memory is asked for, and nothing that is
read can run code.
"""

import contextlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

Array = npt.NDArray[Any]

MOST_BYTES = 64 << 30
"""No file is decoded to more bytes than these."""

MOST_GROWTH = 1000
"""Nor to more than 64 MiB and this many times its own size: deflate reaches 1,032 at most."""


@contextlib.contextmanager
def naming(path: object) -> Iterator[None]:
    """Turn whatever goes wrong with a file into a ValueError of one line that names the file."""
    try:
        yield
    except Exception as error:  # libraries stumble over damaged bytes in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, TypeError | ValueError):
            reason = f"cannot be read ({reason})"
        raise ValueError(f"{path}: {reason}") from error


def check_size(claimed: int, stored: int) -> None:
    """Refuse bytes ``claimed`` after decoding that are too many for those ``stored`` in a file."""
    most = min(MOST_BYTES, (64 << 20) + MOST_GROWTH * stored)
    if claimed > most:
        raise ValueError(f"{claimed:,} bytes when decoded; the limit is {most:,}")


def read_arrays(path: Path, needed: Sequence[str], allowed: Sequence[str]) -> dict[str, Array]:
    """Read the arrays of an ``.npz`` file that are needed or allowed; others are not looked at."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} not found: name an existing .npz file")
    with naming(path):
        if not os.path.isfile(path):  # a pipe would never end
            raise ValueError("not a file")
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            keys = [key for key in (*needed, *allowed) if f"{key}.npy" in names]
            claimed = sum(archive.getinfo(f"{key}.npy").file_size for key in keys)
            check_size(claimed, path.stat().st_size)
            for name in names:  # an array under a damaged name would be missed without a word
                archive.open(name).close()
            arrays = {key: _member(archive, key) for key in keys}
        if missing := [key for key in needed if key not in arrays]:
            raise ValueError(
                f"no array {', '.join(missing)}; needed are {', '.join(needed)}, and allowed "
                f"besides {', '.join(allowed)}"
            )
    return arrays


def _member(archive: zipfile.ZipFile, key: str) -> Array:
    info = archive.getinfo(f"{key}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"array {key} is compressed in a way that NumPy does not write")
    with naming(f"array {key}"), archive.open(info) as stream:
        array = npy.read_array(stream, allow_pickle=False)
        if array.dtype.itemsize == 0 or stream.read(1):
            raise ValueError(f"{array.dtype} {array.shape} is not as long as the file")
        return np.asarray(array)
