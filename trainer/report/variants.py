"""A contact sheet of originals beside their variants, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

#: Originals that a sheet shows: enough to judge the settings by.
MAX_ROWS = 8
#: Discord's dark theme, as in the other sheets.
_PAPER, _TEXT, _DIM, _ORIGINAL = "#2b2d31", "#f2f3f5", "#a4a9b3", "#5bb5f5"
_GAP, _MARGIN, _HEADING = 8, 16, 34
#: A sheet is no wider than this, so that a channel does not shrink it away; tiles are 72 to 184 px.
_WIDTH, _TILES = 1500, (72, 184)


def draw_variants(path: Path, rows: Sequence[tuple[Image.Image, Sequence[Image.Image]]]) -> Path:
    """Each original and its variants in a row, `MAX_ROWS` at most, as many variants as fit the width.

    Raises:
        ValueError: there are no rows, or a row has no variants.
    """
    rows = rows[:MAX_ROWS]
    if not rows or not all(variants for _, variants in rows):
        raise ValueError("a sheet needs originals with variants")
    columns = 1 + max(len(variants) for _, variants in rows)
    tile = max(_TILES[0], min(_TILES[1], (_WIDTH - 2 * _MARGIN) // columns - _GAP))
    columns = min(columns, (_WIDTH - 2 * _MARGIN) // (tile + _GAP))
    heights = [_row_height([original, *variants[: columns - 1]], tile) for original, variants in rows]
    width = 2 * _MARGIN + columns * (tile + _GAP) - _GAP
    sheet = Image.new("RGB", (width, _HEADING + sum(heights) + _GAP * len(heights) + _MARGIN), _PAPER)
    _draw_headings(sheet, tile, columns - 1)
    top = _HEADING
    for (original, variants), height in zip(rows, heights, strict=True):
        for column, picture in enumerate([original, *variants[: columns - 1]]):
            _paste(sheet, picture, (_MARGIN + column * (tile + _GAP), top), tile, height, is_original=column == 0)
        top += height + _GAP
    return _save(sheet, path)


def _draw_headings(sheet: Image.Image, tile: int, variants: int) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    draw.text((_MARGIN, _HEADING / 2), "original", fill=_ORIGINAL, font=font, anchor="lm")
    heading = "variants" if variants > 1 else "variant"
    draw.text((_MARGIN + tile + _GAP, _HEADING / 2), heading, fill=_DIM, font=font, anchor="lm")


def _row_height(pictures: Sequence[Image.Image], tile: int) -> int:
    return max(_scaled(picture, tile)[1] for picture in pictures)


def _scaled(picture: Image.Image, tile: int) -> tuple[int, int]:
    scale = tile / max(picture.size)
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))


def _paste(
    sheet: Image.Image, picture: Image.Image, corner: tuple[int, int], tile: int, height: int, *, is_original: bool
) -> None:
    size = _scaled(picture, tile)
    at = corner[0] + (tile - size[0]) // 2, corner[1] + (height - size[1]) // 2
    sheet.paste(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0), at)
    if is_original:
        frame = (at[0] - 2, at[1] - 2, at[0] + size[0] + 1, at[1] + size[1] + 1)
        ImageDraw.Draw(sheet).rectangle(frame, outline=_ORIGINAL, width=2)


def _save(sheet: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    sheet.save(part, format="PNG", optimize=True)
    part.replace(path)
    return path
