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
from trainer.report.strangers import plain
from trainer.report.wording import WORDING, asks_for_a_look, signs_of

PICTURES_PER_SHEET = 64
_COLUMNS = 8
#: Nobody pages through hundreds of sheets: of a large set some pictures stand for the others. Two rows are left free
#: for the ends of splits, so that the kept pictures never take more than ten sheets.
_MOST_KEPT, _MOST_DROPPED = 10 * PICTURES_PER_SHEET - 2 * _COLUMNS, 4 * PICTURES_PER_SHEET
_CELL, _GAP, _MARGIN = 168, 12, 20
_LABEL_HEIGHT, _HEADING_HEIGHT = 38, 40

#: Discord's dark theme, as in the charts.
_PAPER, _CARD, _EDGE, _INK, _FAINT = "#2b2d31", "#383a40", "#4a4d55", "#f2f3f5", "#a4a9b3"
_COLOURS = {Split.TRAIN: "#5bb5f5", Split.VALIDATION: "#f0b232", Split.TEST: "#b58cf0"}
_DROPPED_COLOUR = "#ed6a6a"
#: On pictures that a person should look at.
_MARK = "#f5c451"
#: Of a PNG: higher levels take seconds a sheet and save a few per cent.
_COMPRESSION = 4
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
    #: A person should look at it.
    is_marked: bool = False


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

    `thumbnails` holds small pictures by number, which is the place in `report.images`, from 1. At most ten sheets of
    kept pictures and four of dropped are drawn, whatever the size of the set: those that ask for a look before others.
    """
    dropped = _of_dropped(report, thumbnails)
    files: list[Path] = []
    for name, sections in (("kept", _of_kept(report, thumbnails)), ("dropped", [dropped] if dropped.tiles else [])):
        for page, held in enumerate(_pages(sections), start=1):
            file = folder / f"{name}-{page}.png"
            _draw_page(held).save(file, "PNG", compress_level=_COMPRESSION)
            files.append(file)
    return files


def _of_kept(report: DatasetReport, thumbnails: Mapping[int, Path]) -> list[_Section]:
    by_side: dict[Split, list[tuple[int, ReportImage]]] = {side: [] for side in Split}
    for number, image in enumerate(report.images, start=1):
        if image.status == "kept" and image.split is not None:
            by_side[image.split].append((number, image))
    total = sum(map(len, by_side.values()))
    sections = []
    for side, held in by_side.items():
        chosen = _choose(held, _room(len(held), total))
        if chosen:
            tiles = tuple(_tile(number, image, thumbnails.get(number)) for number, image in chosen)
            heading = f"{side.capitalize()} · {_pictures(len(chosen), len(held))}"
            sections.append(_Section(heading=heading, colour=_COLOURS[side], tiles=tiles))
    return sections


def _room(held: int, total: int) -> int:
    """How many of a side's pictures are drawn: all of a set that fits, else its share in whole rows, at least one."""
    if total <= _MOST_KEPT:
        return held
    return max(_MOST_KEPT * held // total // _COLUMNS * _COLUMNS, _COLUMNS)


def _choose(held: Sequence[tuple[int, ReportImage]], room: int) -> list[tuple[int, ReportImage]]:
    """At most `room` pictures, near duplicates side by side.

    Those that ask for a look come in first, up to half of the room; the rest is filled evenly from all others.
    """
    if len(held) > room:
        marked = _evenly([pair for pair in held if asks_for_a_look(pair[1])], room // 2)
        numbers = {number for number, _ in marked}
        others = [pair for pair in held if pair[0] not in numbers]
        held = [*marked, *_evenly(others, room - len(marked))]
    # A group goes by its lowest number.
    return sorted(held, key=lambda pair: (pair[1].group or pair[0], pair[0]))


def _evenly(pairs: Sequence[tuple[int, ReportImage]], room: int) -> list[tuple[int, ReportImage]]:
    if len(pairs) <= room:
        return list(pairs)
    return [pairs[index * len(pairs) // room] for index in range(room)]


def _of_dropped(report: DatasetReport, thumbnails: Mapping[int, Path]) -> _Section:
    gone = [(number, image) for number, image in enumerate(report.images, start=1) if image.status == "dropped"]
    chosen = _evenly(gone, _MOST_DROPPED)
    tiles = tuple(
        _Tile(number=number, thumbnail=thumbnails.get(number), line=_reasons(image), note=_name(image.source))
        for number, image in chosen
    )
    heading = f"Dropped · {_pictures(len(chosen), len(gone))}"
    return _Section(heading=heading, colour=_DROPPED_COLOUR, tiles=tiles)


def _tile(number: int, image: ReportImage, thumbnail: Path | None) -> _Tile:
    return _Tile(
        number=number,
        thumbnail=thumbnail,
        line=image.caption or "(no caption)",
        note=" · ".join(part for part in (_signs(image), f"{image.width}×{image.height}") if part),
        is_marked=asks_for_a_look(image),
    )


def _signs(image: ReportImage) -> str:
    """What was found, in a word each; the line above says already that a caption is missing."""
    near, missing = WORDING[FindingKind.NEAR_DUPLICATE].sign, WORDING[FindingKind.CAPTION_MISSING].sign
    signs = (f"near no. {image.group}" if sign == near else sign for sign in signs_of(image) if sign != missing)
    return ", ".join(signs)


def _reasons(image: ReportImage) -> str:
    return ", ".join(WORDING[finding.kind].sign for finding in image.findings if finding.action == "dropped")


def _pictures(shown: int, held: int) -> str:
    pictures = "1 picture" if held == 1 else f"{held:,} pictures"
    return pictures if shown == held else f"{shown:,} of {pictures}"


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
    _draw_text(draw, f"{tile.number} · {tile.line}", (x + 7, y + _CELL + 3), 13, _INK)
    _draw_text(draw, tile.note, (x + 7, y + _CELL + 20), 11, _MARK if tile.is_marked else _FAINT)
    if tile.is_marked:
        draw.ellipse((x + _CELL - 27, y + 7, x + _CELL - 8, y + 26), fill=_MARK, outline=_CARD, width=2)
        draw.text((x + _CELL - 17, y + 17), "!", fill=_PAPER, font=_font(13, False), anchor="mm")
    draw.rectangle((x + 1, frame[3] - 2, frame[2] - 1, frame[3] - 1), fill=colour)


def _thumbnail(path: Path) -> Image.Image:
    side = _CELL - 12
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    share = min(side / picture.width, side / picture.height, 1.0)
    return picture.resize((max(1, round(picture.width * share)), max(1, round(picture.height * share))))


def _draw_text(draw: ImageDraw.ImageDraw, text: str, at: tuple[int, int], size: int, colour: str) -> None:
    room = _CELL - 14
    # A caption may be long: look at no more of it than could ever fit. A line break, Pillow refuses to measure.
    line = plain(text[: 2 * room])
    font = _font(size, any("\u2e80" <= char <= "\uffef" for char in line))
    if font.getlength(line) > room:
        line = line[: room // 2]
        while line and font.getlength(line + "…") > room:
            line = line[:-1]
        line = line.rstrip() + "…"
    draw.text(at, line, fill=colour, font=font)


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
