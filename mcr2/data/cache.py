"""Decoded arrays kept on disk, so that a data set is decompressed or decoded only once.

An entry is a folder: ``train.npy`` and ``test.npy``, mapped into memory rather than read, so that
parallel runs share them, and ``rest.npz`` with labels, class names, checksums of the images and a
fingerprint of the files they were made from. An entry that does not fit, whatever the reason, is
made anew; a place that cannot be written to is done without. Nothing in an entry is a pickle.
"""

import contextlib
import hashlib
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from mcr2.data.splits import Array, Decoded

_FORMAT = 1  # to be raised whenever a reader makes other arrays of the same files

Stamp = tuple[str, int, int]


def stamps(paths: Iterable[Path]) -> tuple[Stamp, ...]:
    """Name, size in bytes and time of modification (ns) of each file."""
    found = [(path.name, path.stat()) for path in paths]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def cached(
    cache: Path,
    name: str,
    source: Path,
    files: tuple[Stamp, ...],
    variant: object,
    read: Callable[[], Decoded],
) -> Decoded:
    """What ``read`` returns, from ``cache`` where it is there and the files are unchanged.

    Args:
        cache: folder of all entries.
        name: for a reader of that folder.
        source: folder of the files. With name and variant it says which entry is meant, so that
            changed files replace their entry instead of adding one.
        files: stamps of all files that are read.
        variant: what the arrays depend on beside the files.
        read: makes the arrays.
    """
    where = repr((name, str(source.absolute()), variant))
    label = re.sub(r"[^\w.-]", "_", name)[:40]
    entry = cache / f"{label}-{hashlib.sha256(where.encode(errors='replace')).hexdigest()[:16]}"
    made_from = repr((_FORMAT, where, files)).encode(errors="replace")
    fingerprint = hashlib.sha256(made_from).hexdigest()
    found = _load(entry, fingerprint)
    if found is not None:
        return found
    decoded = read()
    with contextlib.suppress(OSError):  # read-only, or full: then every start reads the files
        _save(entry, fingerprint, decoded)
    return decoded


def _load(entry: Path, fingerprint: str) -> Decoded | None:
    if not os.path.isfile(entry / "rest.npz"):
        return None
    try:
        with np.load(entry / "rest.npz", allow_pickle=False) as rest:
            if str(rest["fingerprint"]) != fingerprint:
                return None
            images = []
            for which, checksum in zip(("train", "test"), rest["checksums"], strict=True):
                # Copy on write: torch takes no read-only memory, and nobody writes to it.
                array = np.load(entry / f"{which}.npy", mmap_mode="c", allow_pickle=False)
                if array.dtype != np.uint8 or _checksum(array) != int(checksum):
                    return None
                images.append(array)
            classes = tuple(str(name) for name in rest["classes"])
            return Decoded(images[0], rest["train"], images[1], rest["test"], classes)
    except Exception:  # NumPy and zipfile stumble over damaged bytes in many ways; all mean: anew
        return None


def _save(entry: Path, fingerprint: str, decoded: Decoded) -> None:
    entry.mkdir(parents=True, exist_ok=True)
    images = [np.ascontiguousarray(decoded.train_images), np.ascontiguousarray(decoded.test_images)]
    for which, array in zip(("train", "test"), images, strict=True):
        _write(entry / f"{which}.npy", partial(np.save, arr=array))
    rest = partial(
        np.savez,
        fingerprint=np.array(fingerprint),
        checksums=np.array([_checksum(array) for array in images], np.int64),
        classes=np.array(decoded.classes),
        train=np.asarray(decoded.train_labels, np.int64),
        test=np.asarray(decoded.test_labels, np.int64),
    )
    # Last: what it says about the images is then true, or found to be false by their checksums.
    _write(entry / "rest.npz", rest)


def _write(path: Path, save: Callable[[Path], object]) -> None:
    """Write beside the destination and move: a process that has the old file mapped keeps it."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as staging:
        save(Path(staging) / path.name)
        (Path(staging) / path.name).replace(path)


def _checksum(array: Array) -> int:
    return zlib.crc32(array.data, zlib.crc32(repr(array.shape).encode()))
