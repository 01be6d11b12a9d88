"""Contact sheets: every picture of a dataset at a glance, by split, and what was dropped with the reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from trainer.protocol.report import DatasetReport, FindingKind, Split
from trainer.protocol.report import Image as ReportImage

PICTURES_PER_SHEET = 60
_COLUMNS = 8
_CELL, _GAP, _MARGIN = 168, 12, 20
_LABEL_HEIGHT, _HEADING_HEIGHT = 38, 40

#: Discord's dark theme, as in the charts.
_PAPER, _CARD, _EDGE, _INK, _FAINT = "#2b2d31", "#383a40", "#4a4d55", "#f2f3f5", "#a4a9b3"
_COLOURS = {Split.TRAIN: "#5bb5f5", Split.VALIDATION: "#f0b232", Split.TEST: "#b58cf0"}
_DROPPED_COLOUR = "#ed6a6a"
#: For captions in Chinese, Japanese or Korean, where the machine has one of them.
_CJK_FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "Arial Unicode.ttf", "msgothic.ttc")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True)
class _Tile:
    """One picture on a sheet."""

    number: int
    thumbnail: Path | None
    #: The line under the picture, and the fainter one below it.
    line: str
    note: str


@dataclass(frozen=True, kw_only=True)
class _Section:
    """Pictures under one heading."""

    heading: str
    colour: str
    tiles: tuple[_Tile, ...]

    @property
    def rows(self) -> int:
        return math.ceil(len(self.tiles) / _COLUMNS)


def draw_sheets(report: DatasetReport, thumbnails: Mapping[int, Path], folder: Path) -> list[Path]:
    """Draw the sheets of a prepared dataset as PNG files into `folder`: kept pictures first, then the dropped.

    `thumbnails` holds small pictures by number, which is the place in `report.images`, from 1.
    """
    kept = [section for side in Split if (section := _of_split(report, thumbnails, side)).tiles]
    dropped = _of_dropped(report, thumbnails)
    files: list[Path] = []
    for name, sections in (("kept", kept), ("dropped", [dropped] if dropped.tiles else [])):
        for page, held in enumerate(_pages(sections), start=1):
            file = folder / f"{name}-{page}.png"
            _draw_page(held).save(file, "PNG", optimize=True)
            files.append(file)
    return files


def _of_split(report: DatasetReport, thumbnails: Mapping[int, Path], side: Split) -> _Section:
    tiles = tuple(
        _Tile(number=number, thumbnail=thumbnails.get(number), line=image.caption or "(no caption)", note=_note(image))
        for number, image in enumerate(report.images, start=1)
        if image.status == "kept" and image.split is side
    )
    return _Section(heading=f"{side.capitalize()} · {_pictures(len(tiles))}", colour=_COLOURS[side], tiles=tiles)


def _of_dropped(report: DatasetReport, thumbnails: Mapping[int, Path]) -> _Section:
    tiles = tuple(
        _Tile(
            number=number,
            thumbnail=thumbnails.get(number),
            line=", ".join(f.kind.replace("_", " ") for f in image.findings if f.action == "dropped"),
            note=_name(image.source),
        )
        for number, image in enumerate(report.images, start=1)
        if image.status == "dropped"
    )
    return _Section(heading=f"Dropped · {_pictures(len(tiles))}", colour=_DROPPED_COLOUR, tiles=tiles)


def _note(image: ReportImage) -> str:
    size = f"{image.width}×{image.height}"
    is_near = any(finding.kind is FindingKind.NEAR_DUPLICATE for finding in image.findings)
    return f"{size} · near no. {image.group}" if is_near else size


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def _name(source: str) -> str:
    return source.rpartition("!")[2].rpartition("/")[2]


def _pages(sections: Sequence[_Section]) -> Iterator[list[_Section]]:
    """Sections cut so that no page holds more than `PICTURES_PER_SHEET`; a cut section says that it goes on."""
    page: list[_Section] = []
    room = PICTURES_PER_SHEET
    for section in sections:
        tiles, heading = section.tiles, section.heading
        while tiles:
            # A heading with fewer pictures than a row at the foot of a page reads badly.
            if room < min(_COLUMNS, len(tiles)):
                yield page
                page, room = [], PICTURES_PER_SHEET
            # Whole rows, unless the section ends here.
            taken = len(tiles) if len(tiles) <= room else room // _COLUMNS * _COLUMNS
            page.append(_Section(heading=heading, colour=section.colour, tiles=tiles[:taken]))
            tiles, room = tiles[taken:], room - taken
            heading = f"{section.heading} (continued)"
    if page:
        yield page


def _draw_page(sections: Sequence[_Section]) -> Image.Image:
    columns = max(min(_COLUMNS, len(section.tiles)) for section in sections)
    width = 2 * _MARGIN + max(columns, 3) * (_CELL + _GAP) - _GAP
    row_height = _CELL + _LABEL_HEIGHT + _GAP
    height = 2 * _MARGIN + sum(_HEADING_HEIGHT + section.rows * row_height for section in sections) - _GAP
    page = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(page)
    y = _MARGIN
    for section in sections:
        draw.rounded_rectangle((_MARGIN, y + 3, _MARGIN + 6, y + 25), radius=3, fill=section.colour)
        draw.text((_MARGIN + 16, y + 14), section.heading, fill=_INK, font=_font(20, False), anchor="lm")
        y += _HEADING_HEIGHT
        for index, tile in enumerate(section.tiles):
            row, column = divmod(index, _COLUMNS)
            _draw_tile(page, draw, tile, (_MARGIN + column * (_CELL + _GAP), y + row * row_height), section.colour)
        y += section.rows * row_height
    return page


def _draw_tile(page: Image.Image, draw: ImageDraw.ImageDraw, tile: _Tile, at: tuple[int, int], colour: str) -> None:
    x, y = at
    frame = (x, y, x + _CELL - 1, y + _CELL + _LABEL_HEIGHT - 1)
    draw.rounded_rectangle(frame, radius=6, fill=_CARD, outline=_EDGE)
    if tile.thumbnail is None:
        draw.text((x + _CELL / 2, y + _CELL / 2), "cannot be shown", fill=_FAINT, font=_font(13, False), anchor="mm")
    else:
        picture = _thumbnail(tile.thumbnail)
        page.paste(picture, (x + (_CELL - picture.width) // 2, y + (_CELL - picture.height) // 2))
    _draw_text(draw, f"{tile.number}  {tile.line}", (x + 7, y + _CELL + 3), 13, _INK)
    _draw_text(draw, tile.note, (x + 7, y + _CELL + 20), 11, _FAINT)
    draw.rectangle((x + 1, frame[3] - 2, frame[2] - 1, frame[3] - 1), fill=colour)


def _thumbnail(path: Path) -> Image.Image:
    side = _CELL - 12
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    share = min(side / picture.width, side / picture.height, 1.0)
    return picture.resize((max(1, round(picture.width * share)), max(1, round(picture.height * share))))


def _draw_text(draw: ImageDraw.ImageDraw, text: str, at: tuple[int, int], size: int, colour: str) -> None:
    font = _font(size, any("\u2e80" <= char <= "\uffef" for char in text))
    room = _CELL - 14
    if font.getlength(text) > room:
        # A caption may be long: measure no more of it than could ever fit.
        text = text[: room // 2]
        while text and font.getlength(text + "…") > room:
            text = text[:-1]
        text = text.rstrip() + "…"
    draw.text(at, text, fill=colour, font=font)


@lru_cache
def _font(size: int, is_cjk: bool) -> Font:
    """The charts' font, which knows Latin, Greek, Cyrillic, Hebrew and Arabic; Pillow's own lacks even `×`."""
    spec = find_spec("matplotlib")  # found, not imported: that costs half a second
    charts_font = Path(spec.origin if spec and spec.origin else "").parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
    for name in (*(_CJK_FONTS if is_cjk else ()), str(charts_font)):
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
