"""A user's own images in folders: ``train/CLASS/*`` and ``test/CLASS/*``, decoded once to memory.

``scan`` lists the files and refuses what is not such a folder; ``decode`` reads the images.
``scan_classes`` and ``decode_classes`` do so of one folder of classes, ``CLASS/*``.
"""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mcr2.data.splits import Decoded, as_split
from mcr2.files import MOST_BYTES, Array, check_size, naming

# Named, because Pillow would otherwise try every format it knows, and it hands some of them (EPS)
# to other programs.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_GREY = ("1", "L", "LA", "La")


def scan(root: Path) -> list[Path]:
    """List the images of a folder, whose path is resolved: by train and test, class and name.

    Hidden files and folders (``.…``) and those that Windows leaves behind are passed over.
    """
    found: list[Path] = []
    classes: dict[str, set[str]] = {}
    for which in ("train", "test"):
        if not (root / which).is_dir():
            raise ValueError(
                f"{root}: no folder {which}/; an image folder holds train/CLASS/* and test/CLASS/*"
            )
        images = scan_classes(root / which, root)
        classes[which] = {image.parent.name for image in images}
        found += images
    for here, there in (("train", "test"), ("test", "train")):
        if lacking := sorted(classes[here] - classes[there]):
            raise ValueError(f"{root / there}: no class folder {lacking[0]}, which {here}/ has")
    return found


def scan_classes(folder: Path, root: Path) -> list[Path]:
    """List the images of one folder of classes, ``CLASS/*``, below a root that links stay inside.

    What is passed over and refused is as for :func:`scan`.
    """
    found: list[Path] = []
    folders = _inside(folder, root)
    for each in folders:
        if not each.is_dir():
            raise ValueError(f"{each}: not a class folder; images belong in {folder.name}/CLASS/")
        images = _inside(each, root)
        if not images:
            raise ValueError(f"{each}: an empty class folder")
        for image in images:
            if not image.is_file():  # a folder, or a pipe that would never end
                raise ValueError(f"{image}: not a file; a class folder holds images only")
        found += images
    if len(folders) < 2:
        raise ValueError(f"{folder}: {len(folders)} class folders; at least 2 are needed")
    return found


def _inside(folder: Path, root: Path) -> list[Path]:
    """What a folder holds, sorted by name, once nothing of it leads out of the root."""
    with naming(folder):
        found = sorted(folder.iterdir(), key=lambda path: path.name)
    kept = [p for p in found if p.name[0] != "." and p.name not in ("Thumbs.db", "desktop.ini")]
    for path in (folder, *kept):
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
            raise ValueError(f"{path}: a link out of {root}; only what lies inside is read")
    return kept


def decode(paths: list[Path], image_size: int | None) -> Decoded:
    """Read the images that ``scan`` lists; their labels are taken as clean."""
    classes, images, y = _decode_all(paths, image_size)
    n = sum(path.parents[1].name == "train" for path in paths)
    train, test = as_split(images[:n], y[:n], y[:n]), as_split(images[n:], y[n:], y[n:])
    return Decoded(classes, train, test)


def decode_classes(paths: list[Path], image_size: int | None) -> Decoded:
    """Read the images that ``scan_classes`` lists; there is no test image, the truth is unknown."""
    classes, images, y = _decode_all(paths, image_size)
    return Decoded(classes, as_split(images, y, None), as_split(images[:0], y[:0], y[:0]))


def _decode_all(paths: list[Path], image_size: int | None) -> tuple[tuple[str, ...], Array, Tensor]:
    """Read images: the names of their classes, (N, H, W, C) uint8, and labels.

    One channel where all images are grey, otherwise three. Transparency and orientation tags are
    ignored, and an animation is its first frame. With ``image_size`` all get that many pixels a
    side, whatever their shape, by Pillow's bilinear filter, which smooths where it shrinks.
    """
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # damaged metadata, which nothing here uses
        # All headers first: a last image of another size is known in seconds, not minutes.
        headers = list(pool.map(_header, paths))
        width, height = headers[0][0] if image_size is None else (image_size, image_size)
        channels = 1 if all(mode in _GREY for _, mode in headers) else 3
        for path, (size, _) in zip(paths, headers, strict=True):
            if image_size is None and size != (width, height):
                raise ValueError(
                    f"{path}: {size[0]}×{size[1]} pixels (width × height), but {paths[0]} has "
                    f"{width}×{height}; image_size (--image-size) resizes all to one size"
                )
        # What is resized may grow: then the limit is that of all data.
        stored = MOST_BYTES if image_size else sum(path.stat().st_size for path in paths)
        with naming(os.path.commonpath(paths)):
            check_size(len(paths) * height * width * channels, stored)
        images = np.empty((len(paths), height, width, channels), np.uint8)
        list(pool.map(partial(_decode, resize=image_size is not None), paths, images))
    classes, labels = np.unique([path.parent.name for path in paths], return_inverse=True)
    return tuple(classes.tolist()), images, torch.from_numpy(labels)


def _header(path: Path) -> tuple[tuple[int, int], str]:
    from PIL import Image, UnidentifiedImageError

    with naming(path):
        try:
            with Image.open(path, formats=_FORMATS) as image:
                size, mode = image.size, image.mode
        except UnidentifiedImageError as error:
            raise ValueError(f"not an image; allowed are {', '.join(_FORMATS)}") from error
        if mode[0] in "IF":  # of 16 or 32 bits
            wanted = "allowed are images of 8 bits a channel"
            raise ValueError(f"Pillow's mode {mode}, floats or more than 8 bits; {wanted}")
    return size, mode


def _decode(path: Path, out: Array, resize: bool) -> None:
    """Write an image into ``out``, (H, W, C)."""
    from PIL import Image

    height, width, channels = out.shape
    with naming(path), Image.open(path, formats=_FORMATS) as image:
        pixels = image.convert("L" if channels == 1 else "RGB")
        if resize:
            pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
        out[...] = np.asarray(pixels).reshape(out.shape)
