"""Decoded images kept on disk, so that a data set is decompressed or decoded only once.

An entry is a safetensors file, whose images are mapped into memory rather than read, so that
parallel runs share them, with a digest of it all and of the files it was made from. What does not
fit, whatever the reason, is made anew; a place that cannot be written to is done without. Nothing
in an entry is a pickle, and no link is followed.
"""

import contextlib
import hashlib
import json
import re
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from mcr2.data.splits import Decoded, Split

_FORMAT = 3  # to be raised whenever a reader makes other arrays of the same files


def cached(
    cache: Path, name: str, variant: object, files: Iterable[Path], read: Callable[[], Decoded]
) -> Decoded:
    """What ``read`` returns, from the folder ``cache`` where it is there and up to date.

    The name and ``variant`` (where the files are, what the images depend on beside them) say which
    entry is meant; it is replaced when a file's name, size or time of modification changes.
    """
    where = repr((name, variant))
    label = re.sub(r"[^\w.-]", "_", name)[:40]
    entry = cache / f"{label}-{_sha256(where)[:16]}.safetensors"
    stats = [(str(path), path.stat()) for path in files]
    stamps = [(path, found.st_size, found.st_mtime_ns) for path, found in stats]
    fingerprint = repr((_FORMAT, where, stamps))
    try:
        return _load(entry, fingerprint)
    except Exception:  # whatever is missing or damaged, it is made anew
        decoded = read()
    with contextlib.suppress(
        OSError, SafetensorError
    ):  # read-only, or full: then every start reads the files
        _save(entry, fingerprint, decoded)
    return decoded


def _load(entry: Path, fingerprint: str) -> Decoded:
    if not stat.S_ISREG(entry.lstat().st_mode):
        raise ValueError("a link, or a pipe that would never end")
    with safe_open(entry, "pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = file.metadata()
    if about["digest"] != _digest(fingerprint, about["classes"], held):
        raise ValueError("damaged, or made from other files")
    train, test = (
        Split(held[f"{s}.images"].permute(0, 3, 1, 2), held[f"{s}.labels"], held.get(f"{s}.true"))
        for s in ("train", "test")
    )
    return Decoded(tuple(json.loads(about["classes"])), train, test)


def _save(entry: Path, fingerprint: str, decoded: Decoded) -> None:
    held = {}
    for s, split in (("train", decoded.train), ("test", decoded.test)):
        held[f"{s}.images"] = split.images.permute(0, 2, 3, 1).contiguous()
        held[f"{s}.labels"] = split.labels
        if split.clean_labels is not None:
            held[f"{s}.true"] = split.clean_labels
    classes = json.dumps(decoded.classes)
    about = {"classes": classes, "digest": _digest(fingerprint, classes, held)}
    entry.parent.mkdir(parents=True, exist_ok=True)
    for left in entry.parent.glob(".writing-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    # Beside the destination, and moved: a process that has an old file mapped keeps it.
    with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".writing-") as staging:
        # NumPy's, since PyTorch's refuses tensors that share memory.
        save_file({k: x.numpy() for k, x in held.items()}, Path(staging) / entry.name, about)
        (Path(staging) / entry.name).replace(entry)


def _digest(fingerprint: str, classes: str, held: dict[str, Tensor]) -> str:
    """SHA-256 over everything, of which the tensors count by their CRC-32."""
    sums = [(name, x.dtype, x.shape, zlib.crc32(x.numpy().data)) for name, x in held.items()]
    return _sha256(repr((fingerprint, classes, sorted(sums))))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
