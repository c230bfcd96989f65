"""What may be opened, and how much of it: files come from anywhere.

A size in a header is compared with limits of ours before memory is asked for, and nothing that is
read can run code.
"""

import contextlib
import csv
import hashlib
import math
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

MOST_TEXT = 64 << 20
"""Nor is a file of text longer than these."""

MOST_GROWTH = 1000
"""Nor to more than 64 MiB and this many times its own size: deflate reaches 1,032 at most."""


@contextlib.contextmanager
def naming(path: object) -> Iterator[None]:
    """Turn whatever goes wrong with a file into a ValueError of one line that names the file."""
    try:
        yield
    except Exception as error:  # libraries stumble over damaged bytes in many ways
        if str(error).startswith(f"{path}"):
            raise  # it was named where it was opened
        reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, TypeError | ValueError):
            reason = f"cannot be read ({reason})"
        raise ValueError(f"{path}: {reason}") from error


def check_size(claimed: int, stored: int) -> None:
    """Refuse bytes ``claimed`` after decoding that are too many for those ``stored`` in a file."""
    most = min(MOST_BYTES, (64 << 20) + MOST_GROWTH * stored)
    if claimed > most:
        raise ValueError(f"{claimed:,} bytes when decoded; the limit is {most:,}")


def _existing(path: Path, what: str) -> None:
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} not found: name an existing {what} file")
    if not os.path.isfile(path):  # a pipe would never end
        raise ValueError(f"{path}: not a file")


def digest(path: Path) -> str:
    """Return SHA-256 of a file's content, in hexadecimal."""
    _existing(path, path.suffix)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path) -> str:
    """Read a small file of UTF-8 text."""
    _existing(path, path.suffix)
    with naming(path):
        if path.stat().st_size > MOST_TEXT:
            raise ValueError(f"{path.stat().st_size:,} bytes of text; the limit is {MOST_TEXT:,}")
        return path.read_text("utf-8-sig")


def read_table(path: Path) -> list[list[str]]:
    """Read the rows of a CSV file, all of one length; blank lines are passed over."""
    with naming(path):
        rows = [
            [entry.strip() for entry in row] for row in csv.reader(read_text(path).splitlines())
        ]
        rows = [row for row in rows if any(row)]
        for number, row in enumerate(rows, start=1):
            if len(row) != len(rows[0]):
                raise ValueError(f"row {number} has {len(row)} entries, the first {len(rows[0])}")
        return rows


def read_array(path: Path) -> Array:
    """Read the array of an ``.npy`` file."""
    _existing(path, ".npy")
    with naming(path):
        # Mapped, so that a header that claims more than there is asks for no memory.
        array = np.lib.format.open_memmap(path, mode="r")
        if array.dtype.itemsize == 0 or array.offset + array.nbytes != path.stat().st_size:
            raise ValueError(f"{array.dtype} {array.shape} is not as long as the file")
        return np.array(array)


def read_arrays(
    path: Path, needed: Sequence[str], allowed: Sequence[str], mapped: Sequence[str] = ()
) -> dict[str, Array]:
    """Read the arrays of an ``.npz`` file that are needed or allowed; others are not looked at.

    Those of ``mapped`` that are stored uncompressed are mapped into memory rather than read, and
    their checksum is not looked at; what is written to them does not reach the file.
    """
    _existing(path, ".npz")
    with naming(path):
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            keys = [key for key in (*needed, *allowed) if f"{key}.npy" in names]
            claimed = sum(archive.getinfo(f"{key}.npy").file_size for key in keys)
            check_size(claimed, path.stat().st_size)
            for name in names:  # an array under a damaged name would be missed without a word
                archive.open(name).close()
            arrays = {key: _member(archive, key, path, key in mapped) for key in keys}
        if missing := [key for key in needed if key not in arrays]:
            raise ValueError(
                f"no array {', '.join(missing)}; needed are {', '.join(needed)}, and allowed "
                f"besides {', '.join(allowed)}"
            )
    return arrays


def _member(archive: zipfile.ZipFile, key: str, path: Path, mapped: bool) -> Array:
    info = archive.getinfo(f"{key}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"array {key} is compressed in a way that NumPy does not write")
    if mapped and info.compress_type == zipfile.ZIP_STORED:
        with naming(f"array {key}"):
            return _map(path, info)
    with naming(f"array {key}"), archive.open(info) as stream:
        array = npy.read_array(stream, allow_pickle=False)
        if array.dtype.itemsize == 0 or stream.read(1):
            raise ValueError(f"{array.dtype} {array.shape} is not as long as the file")
        return np.asarray(array)


def _map(path: Path, info: zipfile.ZipInfo) -> Array:
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        local = file.read(30)  # its name and extra field may be longer than in the directory
        names = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        begin = file.seek(info.header_offset + 30 + names)
        version = npy.read_magic(file)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = header(file)
        offset = file.tell()
    held = begin + info.file_size - offset
    if dtype.hasobject or dtype.itemsize == 0 or dtype.itemsize * math.prod(shape) != held:
        raise ValueError(f"{dtype} {shape} is not as long as the file")
    return np.memmap(path, dtype, "c", offset, shape, "F" if fortran else "C")
