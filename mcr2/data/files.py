"""What may be opened, and how much of it: files come from anywhere.

A size in a header is compared with limits of ours before memory is asked for, and nothing that is
read can run code.
"""

import math
import os
import zipfile
from collections.abc import Sequence
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


def check_size(what: object, claimed: int, stored: int) -> None:
    """Refuse bytes ``claimed`` after decoding that are too many for those ``stored`` in ``what``.

    Raises:
        ValueError: the claim is beyond ``MOST_BYTES`` or ``MOST_GROWTH``.

    Example:
        >>> check_size("x.gz", 1 << 28, stored=1000)
        Traceback (most recent call last):
        ...
        ValueError: x.gz takes 268,435,456 bytes when decoded; the limit is 68,108,864
    """
    most = min(MOST_BYTES, (64 << 20) + MOST_GROWTH * stored)
    if claimed > most:
        raise ValueError(f"{what} takes {claimed:,} bytes when decoded; the limit is {most:,}")


def read_arrays(path: Path, needed: Sequence[str], allowed: Sequence[str]) -> dict[str, Array]:
    """Read named arrays of an ``.npz`` file; others in it are not looked at.

    Args:
        path: the file.
        needed: arrays that it must hold.
        allowed: arrays that it may hold.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read, holds objects where numbers are wanted, is beyond the limits
            of ``check_size``, or lacks an array; the line names the file and what is allowed.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} not found: name an existing .npz file")
    try:
        if not os.path.isfile(path):  # a pipe would never end
            raise ValueError("not a file")
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            keys = [key for key in (*needed, *allowed) if f"{key}.npy" in names]
            claimed = sum(archive.getinfo(f"{key}.npy").file_size for key in keys)
            check_size("it", claimed, path.stat().st_size)
            for name in names:  # an array under a damaged name would be missed without a word
                archive.open(name).close()
            arrays = {key: _member(archive, key) for key in keys}
    except Exception as error:  # NumPy and zipfile stumble over damaged bytes in many ways
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if missing := [key for key in needed if key not in arrays]:
        raise ValueError(
            f"{path}: no array {', '.join(missing)}; needed are {', '.join(needed)}, and allowed "
            f"besides {', '.join(allowed)}"
        )
    return arrays


def _member(archive: zipfile.ZipFile, key: str) -> Array:
    info = archive.getinfo(f"{key}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"array {key} is compressed in a way that NumPy does not write")
    with archive.open(info) as stream:
        first = npy.read_magic(stream) == (1, 0)
        header = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
        shape, _, dtype = header(stream)
        if dtype.hasobject:
            raise ValueError(f"array {key} is an object array; allowed are plain numbers")
        claimed, follow = math.prod(shape) * dtype.itemsize, info.file_size - stream.tell()
        if claimed != follow or dtype.itemsize == 0:
            raise ValueError(
                f"array {key}: {dtype} {shape} is {claimed} bytes, but {follow} follow"
            )
        stream.seek(0)
        return np.asarray(npy.read_array(stream, allow_pickle=False))
