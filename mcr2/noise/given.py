"""Noisy labels that come with the data, in a file."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcr2 import checks
from mcr2.files import Array, naming, read_array, read_arrays, read_table
from mcr2.noise.base import Given, IntArray, Noise
from mcr2.noise.pt import read_pt

#: What a file of several arrays calls the true labels, and where its labels belong.
INDEX = "index"
BESIDE = {"clean": "clean", "clean_label": "clean", INDEX: INDEX}

_WRITTEN = re.compile(
    r"(?P<file>.+?\.(npy|npz|csv|pt))(#(?P<key>[^+#]+))?(\+(?P<on_top>.*))?", re.IGNORECASE
)


@dataclass(frozen=True)
class GivenLabels(Noise):
    """The labels of a file, as annotators gave them: at ratio 0 the data's own, at 1 the file's.

    With ``+symmetric`` behind it, symmetric noise is drawn on top, and the ratio is its ratio.

    Args:
        labels: ``FILE#KEY``. An ``.npy`` file (N,) has no key. An ``.npz`` file has arrays: KEY,
            perhaps ``clean``, perhaps ``index``. A ``.csv`` file has columns: ``label`` or KEY, and
            ``index`` or ``file``, perhaps ``clean``. A ``.pt`` file is one of CIFAR-10N's or
            CIFAR-100N's (a dictionary of NumPy arrays). True labels that a file brings must be
            those of the data.

    Labels are those of the whole training set, in its order, whatever part of it is used; where an
    index or the path of an image stands beside them, in any order.

    Reference:
        Wei et al., "Learning with Noisy Labels Revisited: A Study Using Real-World Human
        Annotations", ICLR 2022 (CIFAR-10N, CIFAR-100N).
    """

    labels: str

    def __post_init__(self) -> None:
        super().__post_init__()
        found = _WRITTEN.fullmatch(self.labels)
        if found is None:
            allowed = "FILE.npy, FILE.npz#KEY, FILE.csv, FILE.csv#COLUMN or FILE.pt#KEY"
            raise ValueError(f"given:{self.labels}: write {allowed}, perhaps with +symmetric")
        kind, key, on_top = found[2].lower(), found["key"], found["on_top"]
        if (key is None) != (kind == "npy") and kind != "csv":
            how = (
                "has one array, write no #KEY" if kind == "npy" else f"needs a key: FILE.{kind}#KEY"
            )
            raise ValueError(f"given:{self.labels}: an .{kind} file {how}")
        if on_top not in (None, "symmetric"):
            raise ValueError(f"given:{self.labels}: only symmetric noise is drawn on top of labels")
        if on_top is None and self.ratio not in (0, 1):
            raise ValueError(
                f"given:{self.labels}: ratio is {self.ratio:g}; it must be 0 (the data's labels) "
                "or 1 (the file's)"
            )

    @property
    def ratios(self) -> tuple[float, ...] | None:
        """The data's labels and the file's; those of symmetric noise where it is on top."""
        return (0.0, 1.0) if self._part("on_top") is None else None

    @property
    def file(self) -> str:
        """The file of labels."""
        return str(self._part("file"))

    def _part(self, name: str) -> str | None:
        found = _WRITTEN.fullmatch(self.labels)
        return None if found is None else found[name]

    def _start(self, given: Given) -> IntArray:
        labels = read_labels(Path(self.file), self._part("key"), given)
        return labels if self._part("on_top") or self.ratio == 1 else super()._start(given)

    def _choose(self, rs: np.random.RandomState, given: Given) -> IntArray:
        if self._part("on_top"):
            return super()._choose(rs, given)
        return np.arange(len(given.labels) if self.ratio == 1 else 0)

    def _redraw(self, rs: np.random.RandomState, given: Given, indices: IntArray) -> IntArray:
        if self._part("on_top"):
            return rs.choice(np.arange(given.num_classes), size=len(indices), replace=True)
        return self._start(given)[indices]


def read_labels(path: Path, key: str | None, given: Given) -> IntArray:
    """Return a file's labels (N,) of the samples given; true ones that it brings must be theirs."""
    read = {".npy": _npy, ".npz": _npz, ".csv": _csv, ".pt": _pt}[path.suffix.lower()]
    columns = read(path, key or "label")
    with naming(path):
        count = len(given.labels)
        places, files = np.arange(count), None
        total = count
        if given.places is not None:
            places, total = given.places.index.numpy(), given.places.total
            files = given.places.files
        if "file" in columns:
            order, names = _by_file(columns["file"], files)
            if set(columns["labels"].tolist()) <= set(names):
                numbers = {name: number for number, name in enumerate(names)}
                columns["labels"] = np.array([numbers[name] for name in columns["labels"]])
        elif _fits(columns, total):
            order = columns[INDEX]
        else:
            order = np.arange(len(columns["labels"]))
            if len(order) != total:
                raise ValueError(f"{len(order):,} labels; there are {total:,} training samples")
        labels = _integers(columns, "labels", None if key is None else key)
        at = np.full(total, -1)
        at[order] = np.arange(len(order))
        at = at[places]
        if (lacking := int((at < 0).sum())) > 0:
            raise ValueError(f"no label for {lacking:,} of {count:,} training samples")
        noisy = labels[at]
        if "clean" in columns and given.clean_labels is not None:
            clean, true = _integers(columns, "clean")[at], given.clean_labels.numpy()
            if differ := int(((clean != true) & (true >= 0)).sum()):
                raise ValueError(
                    f"its true labels are not those of the data for {differ:,} of {count:,} "
                    "training samples: another order, or other data"
                )
        return checks.labels(noisy, given.num_classes).numpy().copy()


def _fits(columns: dict[str, Array], total: int) -> bool:
    """Whether an index says where labels belong among ``total`` samples.

    One that runs further numbers the samples of other data, of which these are a part: then the
    labels must come in the order of these, which the true labels beside them show.
    """
    if INDEX not in columns:
        return False
    index = columns[INDEX] = _integers(columns, INDEX)
    if len(np.unique(index)) < len(index):
        raise ValueError("an index stands twice")
    if len(index) and index.min() >= 0 and index.max() < total:
        return True
    if len(index) != total or "clean" not in columns:
        span = f"the index runs from {index.min()} to {index.max()}" if len(index) else "no labels"
        raise ValueError(f"{span}; there are {total:,} training samples")
    return False


def _by_file(given: Array, files: Any) -> tuple[IntArray, list[str]]:
    """Return where labels belong by the paths of their images, and the names of the classes."""
    if files is None:
        raise ValueError("labels by file are for an image folder; write an index")
    places = {name: place for place, name in enumerate(files)}
    order = []
    for name in map(str, given.tolist()):
        found = places.get(name, places.get(name.removeprefix("train/")))
        if found is None:
            raise ValueError(f"{name} is not an image of the training folder")
        order.append(found)
    if len(set(order)) < len(order):
        raise ValueError("an image stands twice")
    return np.array(order, np.int64), sorted({name.partition("/")[0] for name in files})


def _integers(columns: dict[str, Array], name: str, called: str | None = None) -> IntArray:
    """Return a column as int64."""
    column = columns[name]
    if column.dtype.kind == "U":
        try:
            column = np.array([int(entry) for entry in column.tolist()], np.int64)
        except ValueError as error:
            raise ValueError(f"{called or name}: {error}; labels are class numbers") from None
    if column.dtype.kind not in "iu" or column.ndim != 1 or len(column) != len(columns["labels"]):
        what = checks.describe(column)
        raise ValueError(f"{called or name} is {what}; it must be integers, one a sample")
    return column.astype(np.int64)


def _npy(path: Path, key: str) -> dict[str, Array]:
    labels = read_array(path)
    if labels.ndim != 1:
        raise ValueError(f"{path}: labels of shape {labels.shape}; it must be (N,)")
    return {"labels": labels}


def _npz(path: Path, key: str) -> dict[str, Array]:
    return _named(read_arrays(path, (key,), tuple(BESIDE)), path, key)


def _pt(path: Path, key: str) -> dict[str, Array]:
    return _named(read_pt(path), path, key)


def _named(arrays: dict[str, Array], path: Path, key: str) -> dict[str, Array]:
    """Return labels, and the true ones and the index beside them, of named arrays."""
    if key not in arrays:
        raise ValueError(f"{path}: no labels {key!r}; choose from {', '.join(sorted(arrays))}")
    if arrays[key].ndim != 1:
        raise ValueError(f"{path}: {key} has shape {arrays[key].shape}; it must be (N,)")
    beside = {BESIDE[name]: array for name, array in arrays.items() if name in BESIDE}
    return beside | {"labels": arrays[key]}


def _csv(path: Path, key: str) -> dict[str, Array]:
    header, *rows = read_table(path) or [[]]
    by = [name for name in (INDEX, "file") if name in header]
    if key not in header or len(by) != 1 or len(set(header)) < len(header):
        allowed = f"needed are {key} and one of index, file, and allowed besides clean"
        raise ValueError(f"{path}: columns {', '.join(header) or 'none'}; {allowed}")
    columns = dict(zip(header, np.array(rows, np.str_).reshape(-1, len(header)).T, strict=True))
    return {"labels": columns[key]} | {n: columns[n] for n in (*by, "clean") if n in header}
