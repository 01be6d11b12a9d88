"""Blur, exposure and text are found where they are and nowhere else; they never drop an image."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.trainer.dataset import defective_images
from tests.trainer.dataset.image_files import encoded
from trainer.dataset.images.image_quality import (
    Quality,
    _directions,
    _may_be_text,
    _without_rules,
    find_text,
    measure_quality,
    quality_findings,
)
from trainer.protocol.report import Finding, FindingKind


def found(image: Image.Image) -> list[Finding]:
    return quality_findings(measure_quality(np.asarray(image)))


def kinds(image: Image.Image) -> list[FindingKind]:
    return [finding.kind for finding in found(image)]


@pytest.mark.parametrize("sigma_px", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_blurred_image_is_kept_with_a_warning(seed: int, sigma_px: float) -> None:
    (finding,) = found(defective_images.blurred(defective_images.scene(seed), sigma_px))
    assert finding.kind is FindingKind.BLUR
    assert finding.action == "kept"
    assert finding.measure is not None
    assert finding.threshold is not None
    assert finding.measure > finding.threshold


def test_the_measured_blur_is_close_to_the_blur() -> None:
    measured = [
        measure_quality(np.asarray(defective_images.blurred(defective_images.scene(4), sigma))).blur_p10
        for sigma in (0.8, 1.5, 2.5)
    ]
    assert all(width is not None for width in measured)
    assert measured == sorted(measured, key=lambda width: width or 0.0)
    assert measured[2] == pytest.approx(2.0, abs=0.5)


def test_movement_blurs_one_direction() -> None:
    quality = measure_quality(np.asarray(defective_images.moved(defective_images.scene(0), 21)))
    assert quality.blur_p10 is not None
    assert quality.blur_p10 < 1.0
    (finding,) = quality_findings(quality)
    assert (finding.kind, finding.measure) == (FindingKind.BLUR, quality.blur_worst_direction)


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(defective_images.scene(3), id="a sharp scene"),
        pytest.param(defective_images.portrait(defective_images.scene(3)), id="a portrait before a blurred background"),
        pytest.param(defective_images.sky(), id="a clear sky"),
        pytest.param(defective_images.drawing(0), id="a flat drawing"),
        pytest.param(defective_images.pixel_art(), id="pixel art, enlarged"),
        pytest.param(defective_images.pixel_art(1, 32, 2), id="pixel art, small"),
    ],
)
def test_a_good_image_has_no_findings(image: Image.Image) -> None:
    assert found(image) == []


def test_blur_is_not_measured_with_too_few_edges() -> None:
    quality = measure_quality(np.asarray(defective_images.sky()))
    assert quality.edges < 60
    assert quality.blur_p10 is None
    assert quality.blur_worst_direction is None


def test_a_large_image_is_measured_at_training_size() -> None:
    large = defective_images.scene(0).resize((2560, 2048), Image.Resampling.NEAREST)
    soft = defective_images.blurred(large, 3.0)
    assert kinds(soft) == []
    assert kinds(soft.crop((960, 768, 1600, 1280))) == [FindingKind.BLUR]


@pytest.mark.parametrize("color", [(255, 255, 255), (0, 0, 0), (35, 30, 47)])
def test_one_flat_color_is_kept_with_a_warning(color: tuple[int, int, int]) -> None:
    (finding,) = found(Image.new("RGB", (300, 200), color))
    assert (finding.kind, finding.action) == (FindingKind.BLANK, "kept")


def test_a_thin_line_on_white_is_nearly_blank() -> None:
    image = Image.new("RGB", (400, 400), "white")
    (blank,) = found(image)
    ImageDraw.Draw(image).line((50, 200, 350, 200), fill="black", width=3)
    (nearly,) = found(image)
    assert blank.kind is nearly.kind is FindingKind.BLANK
    assert blank.message != nearly.message


def test_a_thin_line_is_seen_wherever_it_is() -> None:
    """Half of the rows are looked at first."""
    for top in range(0, 400, 20):
        image = Image.new("RGB", (400, 400), "white")
        ImageDraw.Draw(image).line((50, top, 350, top), fill="black", width=3)
        assert measure_quality(np.asarray(image)).deviation > 1


@pytest.mark.parametrize(
    ("gain", "offset", "kind", "threshold"),
    [
        (0.12, 0, FindingKind.TOO_DARK, 40),
        (0.2, 200, FindingKind.WASHED_OUT, 64),
        (0.07, 120, FindingKind.WASHED_OUT, 24),
    ],
)
def test_dark_pale_and_dull_images_are_distinguished(
    gain: float, offset: float, kind: FindingKind, threshold: int
) -> None:
    (finding,) = found(defective_images.levels(defective_images.scene(0), gain, offset))
    assert (finding.kind, finding.action, finding.threshold) == (kind, "kept", threshold)


def test_a_moderately_dark_or_bright_image_has_no_findings() -> None:
    assert kinds(defective_images.levels(defective_images.scene(0), 0.4, 0)) == []
    assert kinds(defective_images.levels(defective_images.scene(0), 0.4, 150)) == []


def test_a_pale_drawing_on_white_paper_is_not_washed_out() -> None:
    image = Image.new("RGB", (400, 400), "white")
    ImageDraw.Draw(image).ellipse((120, 120, 280, 280), fill=(225, 225, 230))
    assert kinds(image) == []


def test_measures_are_deterministic_and_survive_json() -> None:
    quality = measure_quality(np.asarray(defective_images.scene(5)))
    assert Quality(**json.loads(json.dumps(dataclasses.asdict(quality)))) == quality
    assert measure_quality(np.asarray(defective_images.scene(5))) == quality


@pytest.mark.parametrize("size", [(1, 1), (2, 50), (50, 1), (5, 4), (3000, 3)])
def test_images_of_any_size_are_measured(size: tuple[int, int]) -> None:
    quality = measure_quality(np.asarray(Image.new("RGB", size, (200, 10, 10))))
    assert quality.edges == 0
    assert (quality.p1, quality.p99) == (67, 67)


def as_jpeg(image: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, "JPEG", quality=80))).convert("RGB")


@pytest.mark.parametrize("size", [(640, 640, 13), (1200, 400, 15), (750, 1334, 22), (1920, 1080, 16)])
def test_a_quarter_of_the_rows_is_enough_to_find_a_page(size: tuple[int, int, int]) -> None:
    for seed in range(3):
        page = defective_images.page(seed, *size, is_dark=bool(seed % 2))
        lines, _share = find_text(np.asarray(page.convert("L"), dtype=np.uint8))
        assert lines >= 10
        assert measure_quality(np.asarray(page)).text_lines == pytest.approx(lines, rel=0.05)


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("draw", [defective_images.page, defective_images.file_manager])
@pytest.mark.parametrize("seed", [0, 1])
def test_pages_and_file_managers_are_screenshots(draw: Callable[..., Image.Image], seed: int, is_dark: bool) -> None:
    image = draw(seed, is_dark=is_dark)
    assert FindingKind.SCREENSHOT in kinds(image)
    assert FindingKind.SCREENSHOT in kinds(as_jpeg(image))


@pytest.mark.parametrize(("width", "height", "size_px"), [(1920, 1080, 16), (750, 1334, 22), (3000, 1800, 34)])
def test_screens_of_any_size_are_screenshots(width: int, height: int, size_px: int) -> None:
    assert FindingKind.SCREENSHOT in kinds(defective_images.page(3, width, height, size_px))


def test_a_screenshot_is_kept_with_a_warning() -> None:
    quality = measure_quality(np.asarray(defective_images.page()))
    assert (quality.text_lines, quality.text_share) == (25, 1.0)
    (finding,) = quality_findings(quality)
    assert (finding.kind, finding.action, finding.measure) == (FindingKind.SCREENSHOT, "kept", 1.0)


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(defective_images.city(), id="houses with rows of windows"),
        pytest.param(defective_images.city(7), id="other houses"),
        pytest.param(defective_images.poster(), id="a poster with a title"),
        pytest.param(defective_images.map_with_names(), id="names scattered over a map"),
        pytest.param(defective_images.scene(0), id="a photograph"),
        pytest.param(defective_images.drawing(0, 512), id="a drawing"),
        pytest.param(defective_images.pixel_art(3, 64, 8), id="pixel art"),
        pytest.param(Image.new("RGB", (640, 480), "white"), id="white paper"),
    ],
)
def test_images_with_rows_letters_or_flat_colors_are_not_screenshots(image: Image.Image) -> None:
    assert FindingKind.SCREENSHOT not in kinds(image)


def test_text_on_a_photograph_is_not_a_screenshot() -> None:
    photograph = defective_images.scene(1)
    photograph.paste(defective_images.page(0, 200, 150), (20, 20))
    assert FindingKind.SCREENSHOT not in kinds(photograph)


@pytest.mark.parametrize(
    ("lines", "share", "is_found"), [(6, 0.7, False), (6, 0.95, True), (20, 0.7, True), (4, 1.0, False)]
)
def test_an_image_with_few_lines_must_be_nearly_all_text(lines: int, share: float, is_found: bool) -> None:
    quality = dataclasses.replace(
        measure_quality(np.asarray(defective_images.scene(0))), text_lines=lines, text_share=share
    )
    assert (FindingKind.SCREENSHOT in [finding.kind for finding in quality_findings(quality)]) is is_found


def test_directions_are_those_of_the_angles() -> None:
    across, down = np.random.default_rng(0).integers(-1020, 1021, (2, 20_000)).astype(np.float32)
    by_angle = np.rint(np.arctan2(down, across) * np.float32(4 / np.pi)).astype(np.int64) & 3
    assert (_directions(across, down) == by_angle).all()


def test_steps_between_the_rows_that_are_glanced_at_are_no_marks() -> None:
    """Paper that is shaded softly differs from one band to the next; only the text on it counts."""
    rows, columns = np.mgrid[:768, :1600]
    shade = 135 + 70 * np.sin(rows * np.pi / 128) * np.sin(columns * np.pi / 40)
    page = Image.fromarray(shade.astype(np.uint8)).convert("RGB")
    draw = ImageDraw.Draw(page)
    for top in (72, 200, 328):
        draw.text((40, top), "a line of small letters here", "black")
    assert _may_be_text(np.asarray(page))


@pytest.mark.parametrize("seed", range(5))
def test_lines_are_cleared_as_by_a_plain_opening(seed: int) -> None:
    rng = np.random.default_rng(seed)
    marks = (rng.random((240, 320)) < 0.2).astype(np.uint8)
    for length in rng.integers(10, 200, 30):
        row, column = rng.integers(0, 240), rng.integers(0, 320)
        marks[row : row + length, column] = 1
    marks[:31, 7] = marks[-31:, 9] = 1  # half a line at either border
    opened = cv2.morphologyEx(marks, cv2.MORPH_OPEN, np.ones((60, 1), np.uint8))
    assert np.array_equal(_without_rules(marks, 60, is_upright=True), cv2.subtract(marks, opened))
    level = np.ascontiguousarray(marks.T)
    assert np.array_equal(_without_rules(level, 60, is_upright=False), cv2.subtract(level, np.asarray(opened).T))
