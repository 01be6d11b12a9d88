"""Sheets of variants fit the width of a channel; a prediction is framed in the color of its verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from trainer.report.gallery import MAX_ROWS, draw_prediction, draw_variants

COLORS = ("red", "green", "blue", "orange", "purple", "teal", "brown", "gold", "navy", "olive")


def row(color: str, count: int, size: tuple[int, int] = (64, 64)) -> tuple[Image.Image, list[Image.Image]]:
    return Image.new("RGB", size, color), [Image.new("RGB", size, (10 * n, 250, 10 * n)) for n in range(count)]


def colors_of(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        pixels = sheet.convert("RGB")
    found = pixels.getcolors(pixels.width * pixels.height) or []
    return {color for count, color in found if count > 500 and isinstance(color, tuple)}


def test_every_original_and_every_variant_is_on_the_sheet(tmp_path: Path) -> None:
    path = draw_variants(tmp_path / "charts" / "sheet.png", [row("red", 4), row("blue", 4, (96, 48))])

    assert {(255, 0, 0), (0, 0, 255), *((10 * n, 250, 10 * n) for n in range(4))} <= colors_of(path)


@pytest.mark.parametrize("variants", [1, 4, 16])
@pytest.mark.parametrize("rows", [1, 10])
def test_a_sheet_is_never_too_wide_and_holds_eight_originals_at_most(tmp_path: Path, variants: int, rows: int) -> None:
    path = draw_variants(tmp_path / "sheet.png", [row(color, variants) for color in COLORS[:rows]])

    with Image.open(path) as sheet:
        assert sheet.width <= 1500
    shown = colors_of(path)
    assert {(10 * n, 250, 10 * n) for n in range(variants)} <= shown
    originals = {Image.new("RGB", (1, 1), color).getpixel((0, 0)) for color in COLORS}
    assert len(originals & shown) == min(rows, MAX_ROWS)


@pytest.mark.parametrize("rows", [[], [row("red", 0)]])
def test_a_sheet_of_nothing_is_refused(tmp_path: Path, rows: list[tuple[Image.Image, list[Image.Image]]]) -> None:
    with pytest.raises(ValueError, match="needs originals with variants"):
        draw_variants(tmp_path / "sheet.png", rows)


def test_the_frame_of_a_prediction_shows_whether_it_is_right(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 80), "white")
    corners = []
    for is_right in (True, False):
        path = draw_prediction(
            tmp_path / "prediction.png", image, label="a name " * 9, confidence=0.5, is_right=is_right
        )
        with Image.open(path) as drawn:
            assert drawn.size == (256, 256)
            assert drawn.getpixel((128, 100)) == (255, 255, 255)
            corners.append(drawn.getpixel((0, 0)))
    assert corners[0] != corners[1]
