"""Contact sheets hold every picture once, on pages that a person can look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image as Pillow

from trainer.protocol.report import Counts, DatasetReport, Finding, FindingKind, Image, Split
from trainer.report import sheets
from trainer.report.sheets import PICTURES_PER_SHEET, draw_sheets


def make_report(sides: Sequence[Split | None]) -> DatasetReport:
    gone = (Finding(kind=FindingKind.CORRUPT, action="dropped", message="it is damaged"),)
    images = tuple(
        Image(
            source=f"a.zip!folder/{number}.png",
            status="kept" if side else "dropped",
            findings=() if side else gone,
            split=side,
            caption="a caption that is far too long to stand under any picture" if number % 2 else "猫",
            width=100,
            height=80,
        )
        for number, side in enumerate(sides, start=1)
    )
    counts = Counts(images=0, kept=0, dropped=0, refused=0, train=0, validation=0, test=0, captioned=0)
    return DatasetReport(digest="", counts=counts, summary="", images=images, resolution=64)


def thumbnails_of(tmp_path: Path, numbers: range) -> dict[int, Path]:
    paths = {number: tmp_path / f"{number}.png" for number in numbers}
    for number, path in paths.items():
        Pillow.new("RGB", (192, 40 + number), (number, 200, 90)).save(path)
    return paths


def test_kept_pictures_come_first_and_the_dropped_have_a_sheet_of_their_own(tmp_path: Path) -> None:
    report = make_report([Split.TRAIN] * 9 + [Split.VALIDATION, Split.TEST, None, None])
    drawn = draw_sheets(report, thumbnails_of(tmp_path, range(1, 13)), tmp_path)
    assert [path.name for path in drawn] == ["kept-1.png", "dropped-1.png"]
    for path in drawn:
        with Pillow.open(path) as sheet:
            assert sheet.format == "PNG"
            assert sheet.width <= 1500


@pytest.mark.parametrize("sides", [(150, 20, 20), (60, 1, 1), (57, 9, 0), (1, 0, 0), (0, 0, 130)])
def test_pages_hold_each_picture_once_and_no_more_than_fit(sides: tuple[int, int, int]) -> None:
    report = make_report([side for side, count in zip(Split, sides, strict=True) for _ in range(count)])
    sections = [sheets._of_split(report, {}, side) for side in Split]
    pages = list(sheets._pages([section for section in sections if section.tiles]))
    assert all(sum(len(section.tiles) for section in page) <= PICTURES_PER_SHEET for page in pages)
    assert all(section.tiles for page in pages for section in page)
    numbers = [tile.number for page in pages for section in page for tile in section.tiles]
    assert numbers == list(range(1, sum(sides) + 1))


def test_no_pictures_make_no_sheets(tmp_path: Path) -> None:
    assert draw_sheets(make_report([]), {}, tmp_path) == []
