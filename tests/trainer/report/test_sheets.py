"""Contact sheets hold every image once, on pages of a readable size, and stay few for a large set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from tests.trainer.report.sample_reports import found, report_image, report_of
from trainer.protocol.report import FindingKind, Image, Split
from trainer.report import sheets
from trainer.report.sheets import IMAGES_PER_SHEET, draw_sheets


def images_of(sides: Iterable[tuple[Split | None, int]]) -> list[Image]:
    order = [side for side, number in sides for _ in range(number)]
    return [report_image(number, side) for number, side in enumerate(order, start=1)]


def thumbnails_of(tmp_path: Path, numbers: Iterable[int]) -> dict[int, Path]:
    paths = {number: tmp_path / f"{number}.png" for number in numbers}
    for number, path in paths.items():
        Pillow.new("RGB", (192, 40 + number), (number, 200, 90)).save(path)
    return paths


def sections_of(images: Sequence[Image]) -> list[sheets._Section]:
    return sheets._of_kept(report_of(images), {})


def tiles_of(images: Sequence[Image]) -> list[sheets._Tile]:
    return [tile for section in sections_of(images) for tile in section.tiles]


def test_kept_images_come_first_and_the_dropped_ones_have_their_own_sheet(tmp_path: Path) -> None:
    images = images_of([(Split.TRAIN, 9), (Split.VALIDATION, 1), (Split.TEST, 1), (None, 2)])
    drawn = draw_sheets(report_of(images), thumbnails_of(tmp_path, range(1, 14)), tmp_path)
    assert [path.name for path in drawn] == ["kept-1.jpg", "dropped-1.jpg"]
    for path in drawn:
        with Pillow.open(path) as sheet:
            assert sheet.format == "JPEG"
            assert sheet.width == 1088


@pytest.mark.parametrize("sides", [(150, 20, 20), (25, 1, 1), (22, 9, 0), (1, 0, 0), (300, 45, 45)])
def test_pages_hold_each_image_once_and_no_more_than_fit(sides: tuple[int, int, int]) -> None:
    pages = list(sheets._pages(sections_of(images_of(zip(Split, sides, strict=True)))))
    assert all(sum(len(section.tiles) for section in page) <= IMAGES_PER_SHEET for page in pages)
    assert all(section.tiles for page in pages for section in page)
    numbers = [tile.number for page in pages for section in page for tile in section.tiles]
    assert numbers == list(range(1, sum(sides) + 1))


@pytest.mark.parametrize("sides", [(1400, 300, 300), (20_000, 3, 3), (700, 700, 700), (382, 5, 9), (411, 6, 6)])
def test_a_large_set_takes_sixteen_sheets_and_every_side_is_on_them(sides: tuple[int, int, int]) -> None:
    sections = sections_of(images_of(zip(Split, sides, strict=True)))
    assert len(list(sheets._pages(sections))) == 16
    assert [section.color for section in sections] == [sheets._COLORS[side] for side in Split]


def test_a_heading_counts_the_images_that_are_shown() -> None:
    headings = [section.heading for section in sections_of(images_of([(Split.TRAIN, 1400), (Split.TEST, 600)]))]
    assert headings == ["Train · 270 of 1,400 images", "Test · 115 of 600 images"]
    assert sections_of(images_of([(Split.TRAIN, 1)]))[0].heading == "Train · 1 image"


def test_a_large_set_shows_images_that_need_a_look_first_and_the_rest_evenly() -> None:
    blurred = {number: (found(FindingKind.BLUR),) for number in (3, 777, 1999)}
    images = [report_image(number, findings=blurred.get(number, ())) for number in range(1, 2001)]
    numbers = [tile.number for tile in tiles_of(images)]
    assert blurred.keys() <= set(numbers)
    assert len(numbers) == len(set(numbers)) == sheets._MOST_KEPT
    assert sum(number > 1000 for number in numbers) / len(numbers) == pytest.approx(0.5, abs=0.02)
    many = [
        report_image(number, findings=(found(FindingKind.BLUR),) if number > 900 else ()) for number in range(1, 2001)
    ]
    assert sum(tile.number <= 900 for tile in tiles_of(many)) > 90


def test_near_duplicates_stand_beside_each_other_with_the_number_of_their_group() -> None:
    near = (found(FindingKind.NEAR_DUPLICATE),)
    images = [
        report_image(1),
        report_image(2, group=2, findings=near),
        report_image(3),
        report_image(4, group=2, findings=near),
    ]
    tiles = tiles_of(images)
    assert [tile.number for tile in tiles] == [1, 2, 4, 3]
    assert [tile.note for tile in tiles] == [
        "100×80",
        "near no. 2",
        "near no. 2",
        "100×80",
    ]


def test_a_kept_image_names_its_findings_and_is_marked_if_it_needs_a_look() -> None:
    same, blur = found(FindingKind.CAPTION_IDENTICAL), found(FindingKind.BLUR)
    tiles = tiles_of(
        [
            report_image(1, findings=(same, blur)),
            report_image(2, findings=(same,)),
            report_image(3, findings=(blur,), decision="keep"),
            report_image(4, caption="", findings=(found(FindingKind.CAPTION_MISSING),)),
        ]
    )
    assert [(tile.note, tile.is_marked) for tile in tiles] == [
        ("blur, same caption", True),
        ("same caption", False),
        ("blur", False),
        ("100×80", False),
    ]
    assert tiles[3].line == "(no caption)"


def test_a_mark_is_drawn(tmp_path: Path) -> None:
    def marked_pixels(image: Image) -> int:
        (path,) = draw_sheets(report_of([image]), {}, tmp_path)
        with Pillow.open(path) as sheet:
            distance = np.abs(np.asarray(sheet, dtype=int) - (245, 196, 81)).max(axis=-1)
        return int((distance < 16).sum())

    assert marked_pixels(report_image(1, findings=(found(FindingKind.BLUR),))) > 100
    assert marked_pixels(report_image(1)) == 0


def test_a_dropped_image_names_the_reason_and_its_file() -> None:
    findings = (found(FindingKind.TOO_SMALL, "dropped"), found(FindingKind.CAPTION_MISSING))
    (tile,) = sheets._of_dropped(report_of([report_image(7, None, findings=findings)]), {}).tiles
    assert (tile.number, tile.line, tile.note) == (1, "too small", "7.png")


def test_dropped_images_take_six_sheets_at_most() -> None:
    section = sheets._of_dropped(report_of(images_of([(None, 5000)])), {})
    assert len(list(sheets._pages([section]))) == 6
    assert section.heading == "Dropped · 150 of 5,000 images"


def test_no_images_make_no_sheets(tmp_path: Path) -> None:
    assert draw_sheets(report_of([]), {}, tmp_path) == []


def test_captions_in_any_script_and_of_any_length_are_drawn(tmp_path: Path) -> None:
    captions = ["猫", "قطة", "word " * 500, "a\nb\tc", "\u202egnp.exe", "🐈"]
    images = [report_image(number, caption=caption) for number, caption in enumerate(captions, start=1)]
    assert len(draw_sheets(report_of(images), {}, tmp_path)) == 1
