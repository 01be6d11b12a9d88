"""Pages and captures of a screen are noticed; pictures that merely have rows, letters or flat colours are not."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tests.trainer.dataset import defects
from tests.trainer.dataset.making import encoded
from trainer.dataset.images.quality import findings_of, measure
from trainer.dataset.images.screenshots import Text, screenshot_finding
from trainer.protocol.report import FindingKind

Drawn = Callable[..., Image.Image]


def is_screenshot(image: Image.Image) -> bool:
    return FindingKind.SCREENSHOT in [finding.kind for finding in findings_of(measure(np.asarray(image)))]


def as_jpeg(image: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, "JPEG", quality=80))).convert("RGB")


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("draw", [defects.page, defects.file_manager])
@pytest.mark.parametrize("seed", [0, 1])
def test_pages_and_file_managers_are_screenshots(draw: Drawn, seed: int, is_dark: bool) -> None:
    picture = draw(seed, is_dark=is_dark)
    assert is_screenshot(picture)
    assert is_screenshot(as_jpeg(picture))


@pytest.mark.parametrize(("width", "height", "size_px"), [(1920, 1080, 16), (750, 1334, 22), (3000, 1800, 34)])
def test_screens_of_any_size_are_screenshots(width: int, height: int, size_px: int) -> None:
    assert is_screenshot(defects.page(3, width, height, size_px))


def test_the_warning_counts_lines_and_keeps_the_picture() -> None:
    (finding,) = findings_of(measure(np.asarray(defects.page())))
    assert finding.action == "kept"
    assert finding.message.startswith("looks like a screenshot or a page: 25 lines of text hold 100% of what is drawn")


@pytest.mark.parametrize(
    "picture",
    [
        pytest.param(defects.city(), id="houses with rows of windows"),
        pytest.param(defects.city(7), id="other houses"),
        pytest.param(defects.poster(), id="a poster with a title"),
        pytest.param(defects.map_with_names(), id="names strewn over a map"),
        pytest.param(defects.scene(0), id="a photograph"),
        pytest.param(defects.drawing(0, 512), id="a drawing"),
        pytest.param(defects.pixel_art(3, 64, 8), id="pixel art"),
        pytest.param(Image.new("RGB", (640, 480), "white"), id="white paper"),
    ],
)
def test_pictures_are_no_screenshots(picture: Image.Image) -> None:
    assert not is_screenshot(picture)


def test_text_on_a_picture_that_is_not_flat_is_no_screenshot() -> None:
    photograph = defects.scene(1)
    photograph.paste(defects.page(0, 200, 150), (20, 20))
    assert not is_screenshot(photograph)


def test_of_few_lines_nearly_everything_must_be_text() -> None:
    assert screenshot_finding(Text(lines=6, share=0.7)) is None
    assert screenshot_finding(Text(lines=6, share=0.95)) is not None
    assert screenshot_finding(Text(lines=20, share=0.7)) is not None
    assert screenshot_finding(Text(lines=4, share=1.0)) is None
