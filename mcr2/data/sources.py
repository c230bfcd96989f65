"""Where data sets are found and downloaded: ``DATASETS``, ``availability``, ``load_dataset``."""

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mcr2.checks import choice, integer
from mcr2.data import folder, readers
from mcr2.data.batching import step_imbalance, stratified_subset
from mcr2.data.cache import cached
from mcr2.data.npz import AXES, LABELS_ARE, read_npz
from mcr2.data.readers import plain_or_gz, torchvision_class
from mcr2.data.splits import Dataset, Decoded, Places, Split

SYSTEM_ROOT = "/usr/share/datasets"
"""Where packages of Debian put data sets; looked in last."""


@dataclass(frozen=True)
class Source:
    """Where a named data set comes from.

    Args:
        description: one line for a reader.
        read: makes its arrays from the folder in which its files were found.
        flip, shift: as a ``Dataset`` has them.
        files: what must lie in that folder, each as it is or as ``.gz``; nothing for data that
            come with scikit-learn.
        folders: where in a root that folder may be, first match wins; downloads go to the first.
        download: puts the files somewhere under a given, empty root; any exception is a failure.
        advice: what a user can do where nothing is found, beside naming a root.
    """

    description: str
    read: Callable[[Path], Decoded]
    flip: bool
    shift: int
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    download: Callable[[Path], object] | None = None
    advice: str = ""


def availability(data_root: str | Path | None = None) -> dict[str, tuple[Path | None, list[Path]]]:
    """By name in ``DATASETS`` where it is, or None, and where it is looked for; reads nothing.

    Example:
        >>> str(availability()["digits"][0])
        'scikit-learn'
    """
    return {name: _find(source, data_root) for name, source in DATASETS.items()}


def load_dataset(
    name_or_path: str | Path,
    *,
    data_root: str | Path | None = None,
    subset: int | None = None,
    subset_seed: int = 0,
    image_size: int | None = None,
    axes: str | None = None,
    labels_are: str | None = None,
    classes: int | Sequence[int] | None = None,
    imbalance: float = 1.0,
    download: bool = True,
) -> Dataset:
    """Load a named data set, an ``.npz`` file or an image folder; ``docs/data.md`` says more.

    Named ones are looked for in ``data_root``, ``$MCR2_DATA``, ``~/.cache/mcr2`` (under
    ``$XDG_CACHE_HOME`` where that is set) and ``SYSTEM_ROOT``; if they are in none, torchvision
    downloads them into the first that is given.

    An ``.npz`` file holds ``x_train, y_train, x_test, y_test`` and perhaps ``y_train_clean``,
    ``classes``, ``axes`` and ``labels_are``; an image folder holds ``train/CLASS/*`` and
    ``test/CLASS/*``. Nothing in a user's files is executed; their images are never mirrored, and
    shifted by 4 pixels from a smaller side of 32 on, by 2 from 16 on, else by 1.

    Args:
        name_or_path: a name in ``DATASETS``, a path ending in ``.npz``, or a folder.
        data_root, download: folder to look in first; whether to download what is not found.
        subset, subset_seed: how many training images to keep, see ``stratified_subset``.
        classes: those to keep, relabelled in this order, or how many of the first ones, before a
            subset is taken; None keeps all. See ``Dataset.of_classes``.
        imbalance: R, by which the later half of the classes is made smaller at last, with the
            subset's seed; see ``step_imbalance``.
        image_size: pixels a side that the images of a folder are resized to.
        axes: "NCHW" or "NHWC", how the images of an ``.npz`` file lie; None asks the file.
        labels_are: "noisy" where the training labels may be wrong: the true ones are then
            ``y_train_clean``, or unknown (None). "clean" where they are the true ones. None asks
            the file, and is "clean" where it does not say. Test labels are taken as clean.

    Raises:
        TypeError, ValueError: unknown name, malformed file (named, with what is wrong), impossible
            subset or classes, or an ``image_size`` or ``axes`` for what does not take it.
        FileNotFoundError: not found and not downloaded: what was looked for, where, what to do.

    Example:
        >>> load_dataset("digits", subset=100).train
        Split(100 images of 1×8×8 on cpu, 0 labelled wrong)
    """
    name = str(name_or_path)
    path = Path(name).expanduser()
    is_named, is_npz = name in DATASETS, name.lower().endswith(".npz")
    _check_options(name, image_size, axes, labels_are)
    if is_named:
        dataset = _load_named(name, data_root, download)
    elif is_npz:
        dataset = _own(path, read_npz(path, axes, labels_are))
    elif name and os.path.isdir(path):
        dataset = _load_folder(path, image_size)
    elif os.sep in name and not os.path.exists(path):
        raise FileNotFoundError(f"{name} not found: name an existing .npz file or image folder")
    else:
        raise ValueError(
            f"unknown data set {name!r}; choose from {', '.join(DATASETS)}, a path ending in "
            ".npz, or a folder that holds train/CLASS/* and test/CLASS/*"
        )
    if labels_are == "noisy" and not is_npz:
        dataset = replace(dataset, train=replace(dataset.train, clean_labels=None))
    if classes is not None:
        if not isinstance(classes, Sequence):
            classes = range(integer("classes", classes, 2, dataset.num_classes))
        dataset = dataset.of_classes(classes)
    train = dataset.train
    if subset is not None:
        train = train.select(stratified_subset(train.labels, subset, subset_seed))
    if imbalance != 1:
        kept = step_imbalance(train.labels, dataset.num_classes, imbalance, subset_seed)
        train = train.select(kept)
    return replace(dataset, train=train)


def _check_options(
    name: str, image_size: int | None, axes: str | None, labels_are: str | None
) -> None:
    """Refuse options that are not for what a name or a path stands for."""
    is_named, is_npz = name in DATASETS, name.lower().endswith(".npz")
    if image_size is not None:
        integer("image_size", image_size, 1)
        if is_named or is_npz:
            raise ValueError(f"image_size resizes the images of a folder, and {name} is not one")
    if axes is not None:
        choice("axes", axes, AXES)
        if not is_npz:
            raise ValueError(f"axes says how an .npz file's images lie, and {name} is not one")
    if labels_are is not None:
        choice("labels_are", labels_are, LABELS_ARE)


class Training(NamedTuple):
    """The training images of a data set, and what else it has.

    ``test`` is None where there are no test images; ``files`` are those of a folder, for each
    training image its path below it; the rest is as a ``Dataset`` has it.
    """

    name: str
    split: Split
    test: Split | None
    classes: tuple[str, ...]
    flip: bool
    shift: int
    source: str
    files: tuple[str, ...] | None = None


def load_training(name_or_path: str | Path, **options: Any) -> Training:
    """Load training images alone, as ``load_dataset`` does and with its arguments.

    Test images are not needed: an ``.npz`` file may lack ``x_test`` and ``y_test``, and a folder
    may hold just ``CLASS/*`` or ``train/CLASS/*``, whose labels are not taken as clean.

    Raises:
        TypeError, ValueError, FileNotFoundError: as ``load_dataset``.

    Example:
        >>> load_training("digits", subset=100).split
        Split(100 images of 1×8×8 on cpu, 0 labelled wrong)
    """
    name = str(name_or_path)
    path, is_named = Path(name).expanduser(), name in DATASETS
    image_size, axes, labels_are = (options.get(k) for k in ("image_size", "axes", "labels_are"))
    _check_options(name, image_size, axes, labels_are)
    subset, subset_seed = options.pop("subset", None), options.pop("subset_seed", 0)
    files: list[Path] = []
    is_folder = not is_named and os.path.isdir(path)
    if not is_named and name.lower().endswith(".npz"):
        decoded = read_npz(path, axes, labels_are, tested=False)
        found = _alone(path, decoded)
    elif is_folder and not _has_folders(path / "test"):
        root = path.resolve()
        classes = root / "train" if _has_folders(root / "train") else root
        files = folder.scan_classes(classes, root)
        found = _alone(root, _decoded(classes, files, image_size, folder.decode_classes))
    else:
        whole = load_dataset(name_or_path, **options)
        about = (whole.classes, whole.flip, whole.shift, whole.source)
        found = Training(whole.name, whole.train, whole.test, *about)
        if is_folder:
            listed = folder.scan(path.resolve())
            files = [image for image in listed if image.parents[1].name == "train"]
    names = tuple(str(file.relative_to(path.resolve())) for file in files)
    if subset is not None:
        index = stratified_subset(found.split.labels, subset, subset_seed)
        names = tuple(names[i] for i in index.tolist()) if names else ()
        found = found._replace(split=found.split.select(index))
    return found._replace(files=names or None)


def _alone(path: Path, decoded: Decoded) -> Training:
    """Return a user's own images, perhaps without test images."""
    split, test = decoded.train, decoded.test if len(decoded.test) else None
    return Training(path.name, split, test, decoded.classes, False, _own_shift(split), str(path))


def _has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_dir() for path in folder.iterdir())


def _own_shift(split: Split) -> int:
    side = min(split.images.shape[2:])  # all that is known of a user's own data
    return 4 if side >= 32 else 2 if side >= 16 else 1


def _own(path: Path, decoded: Decoded) -> Dataset:
    shift = _own_shift(decoded.train)
    return Dataset(path.name, **decoded._asdict(), flip=False, shift=shift, source=str(path))


def _load_folder(path: Path, image_size: int | None) -> Dataset:
    path = path.resolve()  # so that "." has a name
    images = folder.scan(path)
    found = _own(path, _decoded(path, images, image_size, folder.decode))
    files = [image.relative_to(path / "train").as_posix() for image in images[: len(found.train)]]
    places = Places(torch.arange(len(files)), len(files), tuple(files))
    return replace(found, train=replace(found.train, places=places))


def _decoded(
    path: Path,
    images: list[Path],
    image_size: int | None,
    decode: Callable[[list[Path], int | None], Decoded],
) -> Decoded:
    import PIL  # its version counts: another may decode or resize to other pixels

    variant = (str(path), image_size, PIL.__version__)
    read = partial(decode, images, image_size)
    return cached(_cache() / "decoded", path.name, variant, images, read)


def _load_named(name: str, data_root: str | Path | None, download: bool) -> Dataset:
    source = DATASETS[name]
    where, _ = _find(source, data_root)
    problem = "downloading is switched off"
    if where is None and download and source.download is not None:
        root = _roots(data_root)[0]
        problem = f"what was downloaded into {root} is not what was expected"
        try:
            _download(source, source.download, root)
        except Exception as error:  # whatever went wrong, the user needs the same line
            problem = f"the download failed ({' '.join(str(error).split()) or repr(error)})"
        where, _ = _find(source, data_root)
    if where is None:
        raise FileNotFoundError(
            f"{name} not found: looked for {source.files[0]} and {len(source.files) - 1} more in "
            f"{', '.join(map(str, _roots(data_root)))} (subfolder {' or '.join(source.folders)}); "
            f"{problem}; name the folder that holds it with --data-root or MCR2_DATA{source.advice}"
        )
    read = partial(source.read, where)
    files = [path for file in source.files if (path := plain_or_gz(where, file)) is not None]
    place = str(where.absolute())
    decoded = cached(_cache() / "decoded", name, place, files, read) if files else read()
    return Dataset(
        name, **decoded._asdict(), flip=source.flip, shift=source.shift, source=str(where)
    )


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mcr2"


def _roots(data_root: str | Path | None) -> list[Path]:
    """All roots, most specific first; the first is where downloads go."""
    given = (data_root, os.environ.get("MCR2_DATA") or None, _cache(), SYSTEM_ROOT)
    roots = [Path(root).expanduser() for root in given if root is not None]
    if data_root is not None and roots[0].exists() and not roots[0].is_dir():
        raise ValueError(f"the data root must be a folder, but {roots[0]} is a file")
    return roots


def _find(source: Source, data_root: str | Path | None) -> tuple[Path | None, list[Path]]:
    """The first folder that holds all files of a source, and all folders looked in."""
    roots = _roots(data_root)
    if not source.files:
        return Path("scikit-learn"), []
    looked = list(dict.fromkeys(root / sub for root in roots for sub in source.folders))
    for where in looked:
        if all(plain_or_gz(where, file) is not None for file in source.files):
            return where, looked
    return None, looked


def _download(source: Source, download: Callable[[Path], object], root: Path) -> None:
    """Download beside the destination and move what is needed: several processes may try."""
    root.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as staging:
        try:
            socket.setdefaulttimeout(30)  # torchvision sets none, and would wait for minutes
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for tables
                download(Path(staging))
        finally:
            socket.setdefaulttimeout(timeout)
        (root / source.folders[0]).mkdir(parents=True, exist_ok=True)
        for path in sorted(Path(staging).rglob("*")):
            if path.name.removesuffix(".gz") in source.files:
                path.replace(root / source.folders[0] / path.name)


def _torchvision(name: str, **parts: tuple[Any, ...]) -> Callable[[Path], object]:
    """A download by torchvision, which compares what it fetched with published checksums."""
    options = [{key: value} for key, values in parts.items() for value in values] or [{}]
    return lambda root: [torchvision_class(name)(root, download=True, **each) for each in options]


def _mnist(
    description: str, classes: str, name: str, *folders: str, flip: bool = False, advice: str = ""
) -> Source:
    """MNIST or its kin, known by their folders' names alone: they use the same file names."""
    read, get = partial(readers.read_idx_folder, classes=classes), _torchvision(name)
    return Source(description, read, flip, 2, readers.IDX_FILES, folders, get, advice)


def _cifar(description: str, name: str, folder: str, files: tuple[str, ...], kind: str) -> Source:
    read = partial(readers.read_cifar, torchvision_name=name, kind=kind)
    return Source(description, read, True, 4, files, (folder,), _torchvision(name))


_CIFAR100 = ("CIFAR100", "cifar-100-python", readers.CIFAR100_FILES)

#: Named data sets: where each is found, or how it is fetched.
DATASETS: dict[str, Source] = {
    "digits": Source(
        "1,797 handwritten digits, 8×8 grey, 10 classes", readers.read_digits, False, 1
    ),
    "fashion_mnist": _mnist(
        "70,000 pieces of clothing, 28×28 grey, 10 classes",
        "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot",
        "FashionMNIST",
        *("FashionMNIST/raw", "fashion-mnist", "."),
        flip=True,
        advice=", or install Debian's package dataset-fashion-mnist",
    ),
    "mnist": _mnist(
        "70,000 handwritten digits, 28×28 grey, 10 classes",
        "0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
        *("MNIST", "MNIST/raw", "mnist"),
    ),
    "kmnist": _mnist(
        "70,000 handwritten Japanese characters, 28×28 grey, 10 classes",
        "o, ki, su, tsu, na, ha, ma, ya, re, wo",
        *("KMNIST", "KMNIST/raw", "kmnist"),
    ),
    "cifar10": _cifar(
        "60,000 photographs, 32×32 colour, 10 classes",
        *("CIFAR10", "cifar-10-batches-py", readers.CIFAR10_FILES, ""),
    ),
    "cifar100": _cifar("60,000 photographs, 32×32 colour, 100 classes", *_CIFAR100, "fine_"),
    "cifar100_coarse": _cifar("the photographs of cifar100, 20 classes", *_CIFAR100, "coarse_"),
    "svhn": Source(
        "99,289 digits of house numbers, 32×32 colour, 10 classes",
        readers.read_svhn,
        flip=False,
        shift=2,  # a neighbouring digit lies close on either side
        files=readers.SVHN_FILES,
        folders=("svhn", "SVHN", "."),
        download=_torchvision("SVHN", split=("train", "test")),
    ),
    "stl10": Source(
        "13,000 photographs, 96×96 colour, 10 classes",
        readers.read_stl10,
        flip=True,
        shift=12,  # an eighth of the side, as for CIFAR
        files=readers.STL10_FILES,
        folders=("stl10_binary",),
        download=_torchvision("STL10"),
    ),
    "omniglot": Source(
        "32,460 hand-drawn characters, 28×28 grey, 1,623 classes",
        readers.read_omniglot,
        flip=False,
        shift=2,
        files=readers.OMNIGLOT_FILES,
        folders=("omniglot-py",),
        download=_torchvision("Omniglot", background=(True, False)),
    ),
}
