"""Decoded arrays kept on disk, so that a data set is decompressed or decoded only once.

An entry is a folder: ``train.npy`` and ``test.npy``, mapped into memory rather than read, so that
parallel runs share them, and ``rest.npz`` with labels, class names, a fingerprint of the files they
were made from and a digest of everything. An entry that does not fit, whatever the reason, is made
anew; a place that cannot be written to is done without. Nothing in an entry is a pickle, and no
link is followed from it.
"""

import contextlib
import hashlib
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from mcr2.data.files import is_plain, read_arrays
from mcr2.data.splits import Decoded

_FORMAT = 2  # to be raised whenever a reader makes other arrays of the same files

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
    train, test, rest = (entry / file for file in ("train.npy", "test.npy", "rest.npz"))
    if not all(map(is_plain, (train, test, rest))):
        raise ValueError("not an entry")
    held = read_arrays(rest, ("fingerprint", "digest", "classes", "train", "test"), ("clean",))
    if str(held["fingerprint"]) != fingerprint:
        raise ValueError("made from other files")
    # Copy on write: torch takes no read-only memory, and nobody writes to it.
    images = [np.load(path, mmap_mode="c", allow_pickle=False) for path in (train, test)]
    classes = tuple(held["classes"].tolist())
    found = Decoded(images[0], held["train"], images[1], held["test"], classes, held.get("clean"))
    if str(held["digest"]) != _digest(fingerprint, found):
        raise ValueError("damaged")
    return found


def _save(entry: Path, fingerprint: str, decoded: Decoded) -> None:
    entry.mkdir(parents=True, exist_ok=True)
    train, test = map(np.ascontiguousarray, (decoded.train_images, decoded.test_images))
    decoded = decoded._replace(train_images=train, test_images=test)
    _write(entry / "train.npy", partial(np.save, arr=train))
    _write(entry / "test.npy", partial(np.save, arr=test))
    arrays = {
        "fingerprint": np.array(fingerprint),
        "digest": np.array(_digest(fingerprint, decoded)),
        "classes": np.array(decoded.classes),
        "train": decoded.train_labels,
        "test": decoded.test_labels,
    }
    if decoded.train_clean is not None:
        arrays["clean"] = decoded.train_clean
    # Last: what it says about the images is then true, or found to be false by its digest.
    _write(entry / "rest.npz", partial(np.savez, **arrays))


def _write(path: Path, save: Callable[[Path], object]) -> None:
    """Write beside the destination and move: a process that has the old file mapped keeps it."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as staging:
        save(Path(staging) / path.name)
        (Path(staging) / path.name).replace(path)


def _digest(fingerprint: str, decoded: Decoded) -> str:
    """SHA-256 over everything; images, which are nearly all of it, count by their CRC-32."""
    digest = hashlib.sha256(repr((fingerprint, decoded.classes)).encode())
    for images in (decoded.train_images, decoded.test_images):
        digest.update(repr((images.shape, images.dtype.str, zlib.crc32(images.data))).encode())
    for labels in (decoded.train_labels, decoded.test_labels, decoded.train_clean):
        digest.update(b"unknown" if labels is None else labels.astype("<i8").tobytes())
    return digest.hexdigest()
