"""A contact sheet: images in rows and columns with captions, a page as PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.report.canvas import label, panels, save
from mcr2 import checks

if TYPE_CHECKING:
    from torch import Tensor

#: Images of a page.
MOST = 64


def contact_sheet(
    path: Path, images: Tensor | Sequence[Tensor], captions: Sequence[str], title: str
) -> None:
    """Write images with their captions beneath them as one page.

    Args:
        path: the PNG file.
        images: ``(n, C, H, W)`` uint8, or as many ``(C, H, W)``; n is at most :data:`MOST`, C is 1
            for grey values or 3 for colours.
        captions: n texts of one or two lines.
        title: stands above the page.

    Raises:
        ValueError: another number of captions than of images, more images than a page holds, or
            images of another number of channels.
    """
    checks.integer("images of a page", len(images), 1, MOST)
    if len(captions) != len(images):
        raise ValueError(f"there are {len(captions)} captions of {len(images)} images")
    for image in images:
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise ValueError(f"an image has shape {tuple(image.shape)}; it must be (1 or 3, H, W)")
    columns = min(8, max(4, math.ceil(math.sqrt(len(images)))))
    figure, axes = panels(math.ceil(len(images) / columns), columns, 1.6, 1.75)
    for panel in axes.flat:
        panel.axis("off")
    for panel, image, caption in zip(axes.flat, images, captions, strict=False):
        pixels = image.cpu().permute(1, 2, 0).numpy()
        # Grey values as they are: matplotlib would stretch each image to its own extremes.
        panel.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        lines = [label(line, 24) for line in caption.split("\n")]
        panel.set_title("\n".join(lines), y=-0.02, pad=0, va="top", fontsize=9)
    figure.suptitle(label(title, 100), fontsize=12)
    save(figure, path)
