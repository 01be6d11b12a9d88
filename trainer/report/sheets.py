"""Contact sheets of a dataset: the kept images by split, and the dropped ones with the reasons."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from trainer.protocol.finding_labels import label, needs_a_look, short_labels
from trainer.protocol.report import DatasetReport, FindingKind, Split
from trainer.protocol.report import Image as ReportImage
from trainer.protocol.text import _, ngettext, sanitize
from trainer.report.gallery import BACKGROUND, drawn, shorten, text_font
from trainer.report.templating import side_words

IMAGES_PER_SHEET = 25
_COLUMNS = 5
#: Hundreds of sheets are of no use: of a large set some images stand for the others. Two rows are left free for the
#: ends of splits, so that the kept images never take more than 16 sheets.
_MOST_KEPT, _MOST_DROPPED = 16 * IMAGES_PER_SHEET - 2 * _COLUMNS, 6 * IMAGES_PER_SHEET
_CELL, _GAP, _MARGIN = 200, 12, 20
#: Letters, px: a channel shows a sheet at half its width on a desktop (550 px), and at a quarter on a phone (285 px),
#: where the numbers still have 11 px.
_NUMBER_SIZE, _LINE_SIZE, _HEADING_SIZE = 42, 23, 30
_LABEL_HEIGHT, _HEADING_HEIGHT = 62, 52

#: Discord's dark theme, as in the charts.
_CARD, _EDGE, _INK, _FAINT = "#383a40", "#4a4d55", "#f2f3f5", "#a4a9b3"
_COLORS = {Split.TRAIN: "#5bb5f5", Split.VALIDATION: "#f0b232", Split.TEST: "#b58cf0"}
_DROPPED_COLOR = "#ed6a6a"
#: On images that a person should look at.
_MARK = "#f5c451"
#: Of a JPEG with full colors: letters stay sharp, for half the bytes of a PNG and a tenth of its time.
_QUALITY = 88


@dataclass(frozen=True, kw_only=True)
class _Tile:
    number: int
    thumbnail: Path | None
    #: The line below the image, and the one below that: what was found in it, or its size.
    line: str
    note: str
    #: A person should look at it.
    is_marked: bool = False


@dataclass(frozen=True, kw_only=True)
class _Section:
    """Images under one heading."""

    heading: str
    color: str
    tiles: tuple[_Tile, ...]

    @property
    def rows(self) -> int:
        return math.ceil(len(self.tiles) / _COLUMNS)


@drawn
def draw_sheets(report: DatasetReport, thumbnails: Mapping[int, Path], folder: Path) -> list[Path]:
    """Draw the sheets of a prepared dataset as JPEG files into `folder`: the kept images, then the dropped ones.

    At most 16 sheets of kept images and six of dropped ones are drawn; images that need a look come first.

    Args:
        report: The report of the dataset.
        thumbnails: Small images by number, which is the index in `report.images` plus 1.
        folder: Must exist.
    """
    dropped = _of_dropped(report, thumbnails)
    files: list[Path] = []
    for name, sections in (("kept", _of_kept(report, thumbnails)), ("dropped", [dropped] if dropped.tiles else [])):
        for page, held in enumerate(_pages(sections), start=1):
            file = folder / f"{name}-{page}.jpg"
            _draw_page(held).save(file, "JPEG", quality=_QUALITY, subsampling=0)
            files.append(file)
    return files


def _of_kept(report: DatasetReport, thumbnails: Mapping[int, Path]) -> list[_Section]:
    by_side: dict[Split, list[tuple[int, ReportImage]]] = {side: [] for side in Split}
    for number, image in enumerate(report.images, start=1):
        if image.status == "kept" and image.split is not None:
            by_side[image.split].append((number, image))
    total = sum(map(len, by_side.values()))
    sections = []
    for side, images in by_side.items():
        chosen = _choose(images, _room(len(images), total))
        if chosen:
            tiles = tuple(_tile(number, image, thumbnails.get(number)) for number, image in chosen)
            heading = f"{side_words(side).capitalize()} · {_count(len(chosen), len(images))}"
            sections.append(_Section(heading=heading, color=_COLORS[side], tiles=tiles))
    return sections


def _room(images: int, total: int) -> int:
    """How many images of a split are drawn: all if the set fits, else its share in whole rows, at least one row."""
    if total <= _MOST_KEPT:
        return images
    return max(_MOST_KEPT * images // total // _COLUMNS * _COLUMNS, _COLUMNS)


def _choose(images: Sequence[tuple[int, ReportImage]], room: int) -> list[tuple[int, ReportImage]]:
    """Choose at most `room` images, near duplicates side by side.

    Those that need a look take up to half of the room; the rest is filled evenly from all others.
    """
    if len(images) > room:
        marked = _evenly([pair for pair in images if needs_a_look(pair[1])], room // 2)
        numbers = {number for number, _image in marked}
        others = [pair for pair in images if pair[0] not in numbers]
        images = [*marked, *_evenly(others, room - len(marked))]
    # A group is sorted by its lowest number.
    return sorted(images, key=lambda pair: (pair[1].group or pair[0], pair[0]))


def _evenly(pairs: Sequence[tuple[int, ReportImage]], room: int) -> list[tuple[int, ReportImage]]:
    if len(pairs) <= room:
        return list(pairs)
    return [pairs[index * len(pairs) // room] for index in range(room)]


def _of_dropped(report: DatasetReport, thumbnails: Mapping[int, Path]) -> _Section:
    dropped = [(number, image) for number, image in enumerate(report.images, start=1) if image.status == "dropped"]
    chosen = _evenly(dropped, _MOST_DROPPED)
    tiles = tuple(
        _Tile(number=number, thumbnail=thumbnails.get(number), line=_reasons(image), note=_name(image.source))
        for number, image in chosen
    )
    heading = _("Dropped · {count}", count=_count(len(chosen), len(dropped)))
    return _Section(heading=heading, color=_DROPPED_COLOR, tiles=tiles)


def _tile(number: int, image: ReportImage, thumbnail: Path | None) -> _Tile:
    return _Tile(
        number=number,
        thumbnail=thumbnail,
        line=image.caption or _("(no caption)"),
        note=_signs(image) or f"{image.width}×{image.height}",
        is_marked=needs_a_look(image),
    )


def _signs(image: ReportImage) -> str:
    """The short labels of its findings; that a caption is missing is in the line above already."""
    near, missing = label(FindingKind.NEAR_DUPLICATE).short, label(FindingKind.CAPTION_MISSING).short
    labels = (
        _("near no. {n}", n=image.group) if label == near else label
        for label in short_labels(image)
        if label != missing
    )
    return ", ".join(labels)


def _reasons(image: ReportImage) -> str:
    return ", ".join(label(finding.kind).short for finding in image.findings if finding.action == "dropped")


def _count(shown: int, total: int) -> str:
    images = ngettext("{n} image", "{n} images", total)
    return images if shown == total else _("{shown:,} of {images}", shown=shown, images=images)


def _name(source: str) -> str:
    return source.rpartition("!")[2].rpartition("/")[2]


def _pages(sections: Sequence[_Section]) -> Iterator[list[_Section]]:
    """Split the sections so that no page holds more than `IMAGES_PER_SHEET`."""
    page: list[_Section] = []
    room = IMAGES_PER_SHEET
    for section in sections:
        tiles, heading = section.tiles, section.heading
        while tiles:
            # No heading with less than a row of images at the end of a page.
            if room < min(_COLUMNS, len(tiles)):
                yield page
                page, room = [], IMAGES_PER_SHEET
            # Whole rows, unless the section ends here.
            taken = len(tiles) if len(tiles) <= room else room // _COLUMNS * _COLUMNS
            page.append(_Section(heading=heading, color=section.color, tiles=tiles[:taken]))
            tiles, room = tiles[taken:], room - taken
            heading = _("{heading} (continued)", heading=section.heading)
    if page:
        yield page


def _draw_page(sections: Sequence[_Section]) -> Image.Image:
    # Always as wide: a narrower sheet would be enlarged, and a heading would not fit above one image.
    width = 2 * _MARGIN + _COLUMNS * (_CELL + _GAP) - _GAP
    row_height = _CELL + _LABEL_HEIGHT + _GAP
    height = 2 * _MARGIN + sum(_HEADING_HEIGHT + section.rows * row_height for section in sections) - _GAP
    page = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(page)
    y = _MARGIN
    for section in sections:
        draw.rounded_rectangle((_MARGIN, y + 3, _MARGIN + 8, y + 35), radius=4, fill=section.color)
        font = text_font(section.heading, _HEADING_SIZE)
        draw.text((_MARGIN + 20, y + 19), section.heading, fill=_INK, font=font, anchor="lm")
        y += _HEADING_HEIGHT
        for index, tile in enumerate(section.tiles):
            row, column = divmod(index, _COLUMNS)
            _draw_tile(page, draw, tile, (_MARGIN + column * (_CELL + _GAP), y + row * row_height), section.color)
        y += section.rows * row_height
    return page


def _draw_tile(page: Image.Image, draw: ImageDraw.ImageDraw, tile: _Tile, at: tuple[int, int], color: str) -> None:
    x, y = at
    frame = (x, y, x + _CELL - 1, y + _CELL + _LABEL_HEIGHT - 1)
    draw.rounded_rectangle(frame, radius=8, fill=_CARD, outline=_MARK if tile.is_marked else _EDGE, width=3)
    if tile.thumbnail is None:
        words = _("cannot be shown")
        draw.text((x + _CELL / 2, y + _CELL * 0.7), words, fill=_FAINT, font=text_font(words, 22), anchor="mm")
    else:
        image = _thumbnail(tile.thumbnail)
        page.paste(image, (x + (_CELL - image.width) // 2, y + (_CELL - image.height) // 2))
    _draw_number(draw, tile, (x, y))
    _draw_text(draw, tile.line, (x + 9, y + _CELL + 1), _INK)
    _draw_text(draw, tile.note, (x + 9, y + _CELL + 28), _MARK if tile.is_marked else _FAINT)
    draw.rectangle((x + 3, frame[3] - 4, frame[2] - 3, frame[3] - 2), fill=color)


def _draw_number(draw: ImageDraw.ImageDraw, tile: _Tile, at: tuple[int, int]) -> None:
    """Draw the image's number in its corner, in yellow with a `!` if a person should look at it."""
    text = f"{tile.number} !" if tile.is_marked else str(tile.number)
    font = text_font(text, _NUMBER_SIZE, is_bold=True)
    fill, ink = (_MARK, BACKGROUND) if tile.is_marked else (BACKGROUND, _INK)
    box = (at[0], at[1], at[0] + font.getlength(text) + 18, at[1] + _NUMBER_SIZE + 8)
    draw.rounded_rectangle(box, radius=8, fill=fill)
    draw.text((at[0] + 9, at[1] + (_NUMBER_SIZE + 8) / 2), text, fill=ink, font=font, anchor="lm")


def _thumbnail(path: Path) -> Image.Image:
    side = _CELL - 12
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    image.thumbnail((side, side), reducing_gap=2.0)
    return image


def _draw_text(draw: ImageDraw.ImageDraw, text: str, at: tuple[int, int], color: str) -> None:
    room = _CELL - 18
    # A caption may be long; no more than this could fit. Pillow refuses to measure a line break.
    line = sanitize(text[: 2 * room])
    font = text_font(line, _LINE_SIZE)
    draw.text(at, shorten(line, font, room), fill=color, font=font)
