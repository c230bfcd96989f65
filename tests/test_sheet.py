"""A contact sheet shows its images, each over its caption."""

import numpy as np
import pytest
import torch

from experiments.report import sheet
from experiments.report.sheet import MOST, contact_sheet


@pytest.fixture
def drawn(monkeypatch):
    """Keep the figure that a sheet is made of."""
    kept = []
    save = sheet.save

    def keep(figure, path):
        kept.append(figure)
        save(figure, path)

    monkeypatch.setattr(sheet, "save", keep)
    return kept


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 5, MOST])
def test_every_image_is_there_as_it_is_over_its_caption(channels, count, drawn, tmp_path):
    images = torch.randint(40, 90, (count, channels, 6, 5), dtype=torch.uint8)
    captions = [f"given {i}\ntrue _$x$" for i in range(count)]
    contact_sheet(tmp_path / "sheet.png", images, captions, "suspects")
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    panels = [axes for axes in drawn[0].axes if axes.images]
    assert len(panels) == count
    for panel, image, caption in zip(panels, images, captions, strict=True):
        (shown,) = panel.images
        assert np.array_equal(shown.get_array(), image.permute(1, 2, 0).squeeze(2).numpy())
        assert (shown.norm.vmin, shown.norm.vmax) == (0, 255)
        assert panel.get_title() == caption.replace("$", r"\$")


def test_images_of_several_sizes_stand_on_one_sheet(tmp_path):
    images = [torch.zeros(1, 8, 8, dtype=torch.uint8), torch.zeros(3, 4, 6, dtype=torch.uint8)]
    contact_sheet(tmp_path / "sheet.png", images, ["a", "b"], "two")
    assert (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    "shape, captions, message",
    [
        ((0, 1, 4, 4), 0, "images of a page is 0; it must be between 1 and 64"),
        ((65, 1, 4, 4), 65, "images of a page is 65"),
        ((3, 1, 4, 4), 2, "there are 2 captions of 3 images"),
        ((1, 2, 4, 4), 1, r"an image has shape \(2, 4, 4\); it must be \(1 or 3, H, W\)"),
    ],
)
def test_what_makes_no_page_is_refused_and_nothing_is_written(shape, captions, message, tmp_path):
    images = torch.zeros(shape, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        contact_sheet(tmp_path / "sheet.png", images, ["x"] * captions, "none")
    assert not list(tmp_path.iterdir())
