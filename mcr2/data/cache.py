"""Decoded arrays kept on disk, so that a data set is decompressed or decoded only once.

An entry is a folder: ``train.npy`` and ``test.npy``, mapped into memory rather than read, so that
parallel runs share them, and ``rest.npz`` with labels, class names and a digest of it all and of
the files it was made from. What does not fit, whatever the reason, is made anew; a place that
cannot be written to is done without. Nothing in an entry is a pickle, and no link is followed.
"""

import contextlib
import hashlib
import re
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mcr2.data.files import read_arrays
from mcr2.data.splits import Arrays, Decoded

_FORMAT = 2  # to be raised whenever a reader makes other arrays of the same files


def cached(
    cache: Path,
    name: str,
    source: Path,
    files: Iterable[Path],
    variant: object,
    read: Callable[[], Decoded],
) -> Decoded:
    """What ``read`` returns, from ``cache`` where it is there and the files are unchanged.

    Args:
        cache: folder of all entries.
        name, source, variant: name of the data, folder of the files, what the arrays depend on
            beside them: they say which entry is meant, which changed files then replace.
        files: all files that are read: their names, sizes and times of modification count.
        read: makes the arrays.
    """
    where = repr((name, str(source.absolute()), variant))
    label = re.sub(r"[^\w.-]", "_", name)[:40]
    entry = cache / f"{label}-{hashlib.sha256(where.encode(errors='replace')).hexdigest()[:16]}"
    stats = [(str(path.relative_to(source)), path.stat()) for path in files]
    stamps = [(below, found.st_size, found.st_mtime_ns) for below, found in stats]
    fingerprint = repr((_FORMAT, where, stamps))
    if entry.is_symlink():
        return read()
    try:
        return _load(entry, fingerprint)
    except Exception:  # NumPy and zipfile stumble over damaged bytes in many ways; all mean: anew
        decoded = read()
    with contextlib.suppress(OSError):  # read-only, or full: then every start reads the files
        _save(entry, fingerprint, decoded)
    return decoded


def _load(entry: Path, fingerprint: str) -> Decoded:
    for file in ("train.npy", "test.npy", "rest.npz"):
        if not stat.S_ISREG((entry / file).lstat().st_mode):
            raise ValueError("a link, or a pipe that would never end")
    held = read_arrays(
        entry / "rest.npz", ("digest", "classes", "train", "test"), ("train_clean", "test_clean")
    )
    splits = []
    for which in ("train", "test"):
        # Copy on write: torch takes no read-only memory, and nobody writes to it.
        images = np.load(entry / f"{which}.npy", mmap_mode="c", allow_pickle=False)
        splits.append(Arrays(images, held[which], held.get(f"{which}_clean")))
    found = Decoded(tuple(held["classes"].tolist()), *splits)
    if str(held["digest"]) != _digest(fingerprint, found):
        raise ValueError("damaged, or made from other files")
    return found


def _save(entry: Path, fingerprint: str, decoded: Decoded) -> None:
    entry.mkdir(parents=True, exist_ok=True)
    for left in entry.glob(".writing-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    rest: dict[str, Any] = {"classes": np.array(decoded.classes)}
    rest["digest"] = np.array(_digest(fingerprint, decoded))
    for which, split in (("train", decoded.train), ("test", decoded.test)):
        _write(entry / f"{which}.npy", partial(np.save, arr=np.ascontiguousarray(split.images)))
        rest[which] = split.labels
        if split.clean_labels is not None:
            rest[f"{which}_clean"] = split.clean_labels
    # Last: what it says about the images is then true, or found to be false by its digest.
    _write(entry / "rest.npz", lambda path: np.savez(path, **rest))


def _write(path: Path, save: Callable[[Path], object]) -> None:
    """Write beside the destination and move: a process that has the old file mapped keeps it."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as staging:
        save(Path(staging) / path.name)
        (Path(staging) / path.name).replace(path)


def _digest(fingerprint: str, decoded: Decoded) -> str:
    """SHA-256 over everything; images, which are nearly all of it, count by their CRC-32."""
    digest = hashlib.sha256(repr((fingerprint, decoded.classes)).encode())
    for images, *labels in (decoded.train, decoded.test):
        pixels = np.ascontiguousarray(images)
        digest.update(repr((pixels.shape, pixels.dtype.str, zlib.crc32(pixels.data))).encode())
        for y in labels:
            digest.update(b"unknown" if y is None else y.astype("<i8").tobytes())
    return digest.hexdigest()
