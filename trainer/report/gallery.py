"""Sample pictures side by side, as PNG: one epoch's samples, and base beside best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_BACKGROUND, _TEXT, _DIM = "#2b2d31", "#dbdee1", "#949ba4"
_GAP = 12
#: Sides of a tile, px: small pictures are enlarged to be seen in a channel, large ones made smaller.
_TILE = 256
#: A channel shows a sheet at about half its width: letters must bear that.
_CAPTION_SIZE, _CAPTION_HEIGHT = 21, 54
_HEADING_SIZE, _HEADING_HEIGHT = 26, 40


def draw_gallery(path: Path, pictures: Sequence[Image.Image], captions: Sequence[str], *, columns: int = 4) -> Path:
    """All pictures with their prompts below, at most `columns` in a row."""
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    cell_height = _TILE + _CAPTION_HEIGHT
    sheet = _blank(columns, rows * (cell_height + _GAP) + _GAP)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(index, columns)
        corner = (_GAP + column * (_TILE + _GAP), _GAP + row * (cell_height + _GAP))
        _paste(sheet, picture, corner)
        _write(sheet, caption, (corner[0], corner[1] + _TILE + 4), _TILE, lines=2)
    return _save(sheet, path)


def draw_comparison(
    path: Path,
    *,
    base: Sequence[Image.Image],
    best: Sequence[Image.Image],
    captions: Sequence[str],
    headings: tuple[str, str],
) -> Path:
    """The base model's samples in the upper row, the fine-tuned ones below, same prompts and seeds."""
    columns = len(base)
    row_height = _HEADING_HEIGHT + _TILE + _GAP
    sheet = _blank(columns, 2 * row_height + _CAPTION_HEIGHT + _GAP)
    for row, (heading, pictures) in enumerate(zip(headings, (base, best), strict=True)):
        top = _GAP + row * row_height
        _write(sheet, heading, (_GAP, top), sheet.width, lines=1, size=_HEADING_SIZE, color=_TEXT)
        for column, picture in enumerate(pictures):
            _paste(sheet, picture, (_GAP + column * (_TILE + _GAP), top + _HEADING_HEIGHT))
    for column, caption in enumerate(captions):
        _write(sheet, caption, (_GAP + column * (_TILE + _GAP), 2 * row_height + 4), _TILE, lines=2)
    return _save(sheet, path)


def _blank(columns: int, height: int) -> Image.Image:
    return Image.new("RGB", (columns * (_TILE + _GAP) + _GAP, height), _BACKGROUND)


def _paste(sheet: Image.Image, picture: Image.Image, corner: tuple[int, int]) -> None:
    scale = _TILE / max(picture.size)
    tile = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    sheet.paste(tile, (corner[0] + (_TILE - tile.width) // 2, corner[1] + (_TILE - tile.height) // 2))


def _write(
    sheet: Image.Image,
    text: str,
    at: tuple[int, int],
    width: int,
    *,
    lines: int,
    size: int = _CAPTION_SIZE,
    color: str = _DIM,
) -> None:
    font = ImageFont.load_default(size)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(_wrap(text, draw, font, width, lines)):
        draw.text((at[0], at[1] + number * (size + 3)), line, font=font, fill=color)


def _wrap(
    text: str, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int, lines: int
) -> list[str]:
    """`text` in at most `lines` lines of `width` px, ending in … where it is longer."""
    wrapped = [""]
    for word in text.split():
        longer = f"{wrapped[-1]} {word}".strip()
        if not wrapped[-1] or draw.textlength(longer, font=font) <= width:
            wrapped[-1] = longer
        else:
            wrapped.append(word)
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], wrapped[lines - 1] + " …"]
    return [_shorten(line, draw, font, width) for line in wrapped]


def _shorten(
    line: str, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int
) -> str:
    if draw.textlength(line, font=font) <= width:
        return line
    while line and draw.textlength(line + "…", font=font) > width:
        line = line[:-1]
    return line + "…"


def _save(sheet: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    sheet.save(part, format="PNG", optimize=True)
    part.replace(path)
    return path
