"""Samples, variants and predictions can be read where a channel shows them: on a phone, 285 px wide."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageChops

from trainer.protocol.text import speaking
from trainer.report import gallery
from trainer.report.gallery import (
    MAX_COMPARED,
    MAX_ROWS,
    ComparedColumn,
    SampleCaption,
    draw_comparison,
    draw_gallery,
    draw_prediction,
    draw_variants,
    sample_captions,
)

COLORS = ("red", "green", "blue", "orange", "purple", "teal", "brown", "gold", "navy", "olive")


def row(color: str, count: int, size: tuple[int, int] = (64, 64)) -> tuple[Image.Image, list[Image.Image]]:
    return Image.new("RGB", size, color), [Image.new("RGB", size, (10 * n, 250, 10 * n)) for n in range(count)]


def colors_of(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        pixels = sheet.convert("RGB")
    found = pixels.getcolors(pixels.width * pixels.height) or []
    return {color for count, color in found if count > 500 and isinstance(color, tuple)}


def test_a_caption_has_the_prompt_once_each_seed_and_what_is_a_control() -> None:
    samples = [("momo in snow", 7), ("momo in snow", 8), ("a red star", 9), ("", 10)]

    assert sample_captions(samples, "momo") == [
        SampleCaption(text="momo in snow", note="seed 7"),
        SampleCaption(text="the same prompt", note="seed 8"),
        SampleCaption(text="a red star", note="seed 9 · control, without “momo”"),
        SampleCaption(text="(no prompt)", note="seed 10 · control, without “momo”"),
    ]
    # Predictions of a classifier have no seeds.
    assert sample_captions([("cat", 0), ("dog", 0)]) == [SampleCaption(text="cat"), SampleCaption(text="dog")]


@pytest.mark.parametrize("count", [1, 2, 4, 5, 12])
def test_letters_of_samples_can_be_read_on_a_phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    sizes: list[int] = []
    font = gallery.text_font

    def recorded(text: str, size: int, *, is_bold: bool = False) -> gallery.Font:
        sizes.append(size)
        return font(text, size, is_bold=is_bold)

    monkeypatch.setattr(gallery, "text_font", recorded)
    images = [Image.new("RGB", (64, 64), COLORS[index % 10]) for index in range(count)]
    captions = [
        SampleCaption(text="a fox in a forest with a river " * 4, note=f"seed {index}") for index in range(count)
    ]
    columns = [ComparedColumn(heading="before", note="base model", images=images)] * 3

    for draw in (
        lambda path: draw_gallery(path, images, captions),
        lambda path: draw_comparison(path, columns, ["a fox"] * count),
    ):
        sizes.clear()
        with Image.open(draw(tmp_path / "sheet.png")) as sheet:
            assert min(sizes) * min(1, 285 / sheet.width) >= 11


def test_a_sheet_has_no_empty_strip_below_short_captions(tmp_path: Path) -> None:
    images = [Image.new("RGB", (64, 64), "red")] * 2
    short = draw_gallery(tmp_path / "short.png", images, [SampleCaption(text="a fox")] * 2)
    long = draw_gallery(tmp_path / "long.png", images, [SampleCaption(text="a fox in a forest with a river " * 4)] * 2)

    with Image.open(short) as one, Image.open(long) as other:
        assert one.height < other.height - 40


def test_a_comparison_shows_a_few_prompts_and_every_column(tmp_path: Path) -> None:
    columns = [
        ComparedColumn(heading=name, note="", images=[Image.new("RGB", (64, 64), color)] * 9)
        for name, color in (("before", "red"), ("after", "green"), ("your images", "blue"))
    ]

    path = draw_comparison(tmp_path / "x.png", columns, ["a fox"] * 9)

    assert {(255, 0, 0), (0, 128, 0), (0, 0, 255)} <= colors_of(path)
    with Image.open(path) as sheet:
        assert sheet.height < (MAX_COMPARED + 1) * 340


def test_a_long_name_of_a_column_takes_several_lines(tmp_path: Path) -> None:
    def height(heading: str) -> int:
        columns = [ComparedColumn(heading=heading, note="", images=[Image.new("RGB", (64, 64), "red")])] * 4
        with Image.open(draw_comparison(tmp_path / "x.png", columns, ["a fox"])) as sheet:
            return sheet.height

    # Four columns on a phone: 42 px for letters, 6 between lines.
    assert height("rank 8, alpha 16") == height("rank 8") + 48


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


def test_texts_are_drawn_in_english_where_no_font_has_chinese_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    with speaking("zh_CN"):
        for has_font, words in ((True, "（无提示词）"), (False, "(no prompt)")):
            monkeypatch.setattr(gallery, "_has_cjk_font", lambda has_font=has_font: has_font)
            assert gallery.sample_captions([("", 3)])[0].text == words


@pytest.mark.skipif(not gallery._has_cjk_font(), reason="no font with Chinese letters is installed")
@pytest.mark.parametrize("text", ["强度 0.6，底模", "a big strength, (0.6)"])
def test_a_line_has_room_above_what_is_below_it_in_any_font(text: str) -> None:
    blank = Image.new("RGB", (256, 64), gallery.BACKGROUND)
    sheet = blank.copy()
    gallery._write_line(sheet, text, (0, 0), 24)
    box = ImageChops.difference(sheet, blank).getbbox()
    assert box is not None
    assert 0 <= box[1] < box[3] <= 24 + 6
