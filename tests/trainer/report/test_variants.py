"""A sheet shows originals beside their variants, at a width that a channel can show."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from trainer.report.variants import MAX_ROWS, draw_variants

COLOURS = ("red", "green", "blue", "orange", "purple", "teal", "brown", "gold", "navy", "olive")


def row(colour: str, count: int, size: tuple[int, int] = (64, 64)) -> tuple[Image.Image, list[Image.Image]]:
    return Image.new("RGB", size, colour), [Image.new("RGB", size, (10 * n, 250, 10 * n)) for n in range(count)]


def colours_of(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        pixels = sheet.convert("RGB")
    found = pixels.getcolors(pixels.width * pixels.height) or []
    return {colour for count, colour in found if count > 500 and isinstance(colour, tuple)}


def test_every_original_and_every_variant_is_on_the_sheet(tmp_path: Path) -> None:
    path = draw_variants(tmp_path / "charts" / "sheet.png", [row("red", 4), row("blue", 4, (96, 48))])

    assert {(255, 0, 0), (0, 0, 255), *((10 * n, 250, 10 * n) for n in range(4))} <= colours_of(path)


@pytest.mark.parametrize("variants", [1, 4, 16])
@pytest.mark.parametrize("rows", [1, 10])
def test_a_sheet_is_never_too_wide_and_holds_eight_originals_at_most(tmp_path: Path, variants: int, rows: int) -> None:
    path = draw_variants(tmp_path / "sheet.png", [row(colour, variants) for colour in COLOURS[:rows]])

    with Image.open(path) as sheet:
        assert sheet.width <= 1500
    shown = colours_of(path)
    assert {(10 * n, 250, 10 * n) for n in range(variants)} <= shown
    originals = {Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in COLOURS}
    assert len(originals & shown) == min(rows, MAX_ROWS)


@pytest.mark.parametrize("rows", [[], [row("red", 0)]])
def test_a_sheet_of_nothing_is_refused(tmp_path: Path, rows: list[tuple[Image.Image, list[Image.Image]]]) -> None:
    with pytest.raises(ValueError, match="needs originals with variants"):
        draw_variants(tmp_path / "sheet.png", rows)
