"""Decoded arrays kept on disk, so that a data set is decompressed or decoded only once.

An entry is a folder of ``.npy`` files: images, which are mapped into memory rather than read, so
that parallel runs share them, labels, class names, and a digest of it all and of the files it was
made from. What does not fit, whatever the reason, is made anew; a place that cannot be written to
is done without. Nothing in an entry is a pickle, and no link is followed.
"""

import contextlib
import hashlib
import re
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from mcr2.data.files import Array
from mcr2.data.splits import Arrays, Decoded

_FORMAT = 3  # to be raised whenever a reader makes other arrays of the same files
_NAMES = ("classes", *(f"{which}_{part}" for which in ("train", "test") for part in Arrays._fields))


def cached(
    cache: Path,
    name: str,
    source: Path,
    files: Iterable[Path],
    variant: object,
    read: Callable[[], Decoded],
) -> Decoded:
    """What ``read`` returns, from the folder ``cache`` where it is there and up to date.

    Name, folder of the files and ``variant`` (what the arrays depend on beside them) say which
    entry is meant; it is replaced when a file's name, size or time of modification changes.
    """
    where = repr((name, str(source.absolute()), variant))
    label = re.sub(r"[^\w.-]", "_", name)[:40]
    entry = cache / f"{label}-{_sha256(where)[:16]}"
    stats = [(str(path.relative_to(source)), path.stat()) for path in files]
    stamps = [(below, found.st_size, found.st_mtime_ns) for below, found in stats]
    fingerprint = repr((_FORMAT, where, stamps))
    if entry.is_symlink():
        return read()
    try:
        return _load(entry, fingerprint)
    except Exception:  # NumPy stumbles over damaged bytes in many ways; all mean: anew
        decoded = read()
    with contextlib.suppress(OSError):  # read-only, or full: then every start reads the files
        _save(entry, fingerprint, decoded)
    return decoded


def _load(entry: Path, fingerprint: str) -> Decoded:
    held: dict[str, Array] = {}
    for name in (*_NAMES, "digest"):
        path = entry / f"{name}.npy"
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError("a link, or a pipe that would never end")
        # Copy on write: torch takes no read-only memory, and nobody writes to it.
        copy = name.endswith("images")
        held[name] = np.load(path, mmap_mode="c" if copy else None, allow_pickle=False)
    if str(held.pop("digest")) != _digest(fingerprint, held):
        raise ValueError("damaged, or made from other files")
    classes, *arrays = held.values()
    train, test = (Arrays(x, y, c if len(c) else None) for x, y, c in (arrays[:3], arrays[3:]))
    return Decoded(tuple(classes.tolist()), train, test)


def _save(entry: Path, fingerprint: str, decoded: Decoded) -> None:
    entry.mkdir(parents=True, exist_ok=True)
    found = (np.array(decoded.classes), *decoded.train, *decoded.test)
    held = {
        name: np.empty(0) if array is None else np.ascontiguousarray(array)
        for name, array in zip(_NAMES, found, strict=True)
    }
    # Last: what it says about the others is then true, or found to be false.
    held["digest"] = np.array(_digest(fingerprint, held))
    # Beside the destination, and moved: a process that has an old file mapped keeps it.
    with tempfile.TemporaryDirectory(dir=entry, prefix=".writing-") as staging:
        for name, array in held.items():
            np.save(Path(staging) / f"{name}.npy", array)
        for name in held:
            (Path(staging) / f"{name}.npy").replace(entry / f"{name}.npy")


def _digest(fingerprint: str, held: dict[str, Array]) -> str:
    """SHA-256 over everything, of which the arrays count by their CRC-32."""
    sums = [
        (name, array.shape, array.dtype.str, zlib.crc32(np.ascontiguousarray(array).data))
        for name, array in held.items()
    ]
    return _sha256(repr((fingerprint, sums)))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
