"""Images side by side as PNG: samples of an epoch, base beside best, originals beside variants, and predictions."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from trainer.exchange.files import atomic_write
from trainer.protocol.text import _, ngettext
from trainer.report.templating import sanitize

#: Discord's dark theme, as in the charts.
BACKGROUND, _TEXT, _DIM = "#2b2d31", "#dbdee1", "#949ba4"
_GAP = 12
#: Side of a tile, px: small images are enlarged to be seen in a channel, large ones made smaller.
_TILE = 256
#: A channel shows a sheet at about half its width, and the text must stay readable.
_CAPTION_SIZE, _CAPTION_HEIGHT = 21, 54
_HEADING_SIZE, _HEADING_HEIGHT = 26, 40

#: Originals on a sheet of variants: enough to judge the settings.
MAX_ROWS = 8
_ORIGINAL = "#5bb5f5"
_VARIANTS_GAP, _VARIANTS_MARGIN, _VARIANTS_HEADING = 8, 16, 34
#: A wider sheet would be made too small in a channel; a tile is 72 to 184 px wide.
_VARIANTS_WIDTH, _VARIANTS_TILES = 1500, (72, 184)

_RIGHT, _WRONG = "#3f94d6", "#d9663f"
#: Of a prediction, px: the strip with its text, and the frame.
_STRIP, _FRAME, _LETTERS = 38, 6, 20

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_gallery(path: Path, images: Sequence[Image.Image], captions: Sequence[str], *, columns: int = 4) -> Path:
    """Draw all images with their prompts below, at most `columns` in a row."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    cell_height = _TILE + _CAPTION_HEIGHT
    sheet = _blank(columns, rows * (cell_height + _GAP) + _GAP)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(index, columns)
        corner = (_GAP + column * (_TILE + _GAP), _GAP + row * (cell_height + _GAP))
        _paste(sheet, image, corner)
        _write(sheet, caption, (corner[0], corner[1] + _TILE + 4), _TILE, lines=2)
    return save_png(sheet, path)


def draw_comparison(
    path: Path,
    *,
    base: Sequence[Image.Image],
    best: Sequence[Image.Image],
    captions: Sequence[str],
    headings: tuple[str, str],
) -> Path:
    """Draw the base model's samples in the upper row and the trained model's below, same prompts and seeds."""
    row_height = _HEADING_HEIGHT + _TILE + _GAP
    sheet = _blank(len(base), 2 * row_height + _CAPTION_HEIGHT + _GAP)
    for row, (heading, images) in enumerate(zip(headings, (base, best), strict=True)):
        top = _GAP + row * row_height
        _write(sheet, heading, (_GAP, top), sheet.width, lines=1, size=_HEADING_SIZE, color=_TEXT)
        for column, image in enumerate(images):
            _paste(sheet, image, (_GAP + column * (_TILE + _GAP), top + _HEADING_HEIGHT))
    for column, caption in enumerate(captions):
        _write(sheet, caption, (_GAP + column * (_TILE + _GAP), 2 * row_height + 4), _TILE, lines=2)
    return save_png(sheet, path)


def draw_variants(path: Path, rows: Sequence[tuple[Image.Image, Sequence[Image.Image]]]) -> Path:
    """Draw each original and its variants in a row, at most `MAX_ROWS`, and as many variants as fit the width.

    Raises:
        ValueError: there are no rows, or a row has no variants.
    """
    rows = rows[:MAX_ROWS]
    if not rows or not all(variants for _original, variants in rows):
        raise ValueError("a sheet needs originals with variants")
    columns = 1 + max(len(variants) for _original, variants in rows)
    room = _VARIANTS_WIDTH - 2 * _VARIANTS_MARGIN
    tile = max(_VARIANTS_TILES[0], min(_VARIANTS_TILES[1], room // columns - _VARIANTS_GAP))
    columns = min(columns, room // (tile + _VARIANTS_GAP))
    images = [[original, *variants[: columns - 1]] for original, variants in rows]
    heights = [max(_fit(image, (tile, tile))[1] for image in row) for row in images]
    width = 2 * _VARIANTS_MARGIN + columns * (tile + _VARIANTS_GAP) - _VARIANTS_GAP
    height = _VARIANTS_HEADING + sum(heights) + _VARIANTS_GAP * len(heights) + _VARIANTS_MARGIN
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    draw.text((_VARIANTS_MARGIN, _VARIANTS_HEADING / 2), _("original"), fill=_ORIGINAL, font=font, anchor="lm")
    heading = ngettext("variant", "variants", columns - 1)
    left = _VARIANTS_MARGIN + tile + _VARIANTS_GAP
    draw.text((left, _VARIANTS_HEADING / 2), heading, fill=_DIM, font=font, anchor="lm")
    top = _VARIANTS_HEADING
    for row, row_height in zip(images, heights, strict=True):
        for column, image in enumerate(row):
            corner = (_VARIANTS_MARGIN + column * (tile + _VARIANTS_GAP), top)
            _paste_variant(sheet, image, corner, (tile, row_height), is_original=column == 0)
        top += row_height + _VARIANTS_GAP
    return save_png(sheet, path)


def draw_prediction(path: Path, image: Image.Image, *, label: str, confidence: float, is_right: bool) -> Path:
    """Draw an image in a colored frame, and below it `✓ cat 97%` or `✗ dog 61%`; `confidence` is 0 to 1."""
    color = _RIGHT if is_right else _WRONG
    sheet = Image.new("RGB", (_TILE, _TILE), color)
    room = (_TILE - 2 * _FRAME, _TILE - _STRIP - _FRAME)
    tile = image.resize(_fit(image, room), Image.Resampling.BICUBIC)
    sheet.paste("#1e1f22", (_FRAME, _FRAME, _FRAME + room[0], _FRAME + room[1]))
    sheet.paste(tile, (_FRAME + (room[0] - tile.width) // 2, _FRAME + (room[1] - tile.height) // 2))
    text, share = f"{'✓' if is_right else '✗'} {sanitize(label)}", f"{confidence:.0%}"
    # Pillow's own font has no check marks.
    font = load_font("DejaVuSans-Bold.ttf", _LETTERS)
    draw, middle = ImageDraw.Draw(sheet), _TILE - _STRIP // 2
    text = shorten(text, font, _TILE - 3 * _FRAME - 8 - font.getlength(share))
    draw.text((_FRAME + 2, middle), text, font=font, fill="#ffffff", anchor="lm")
    draw.text((_TILE - _FRAME - 2, middle), share, font=font, fill="#ffffff", anchor="rm")
    return save_png(sheet, path)


def save_png(sheet: Image.Image, path: Path) -> Path:
    """Write a sheet as PNG, creating its folder; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        # Without `optimize`, which takes four times as long for 2 % of the size.
        sheet.save(partial, format="PNG")
    return path


@lru_cache
def load_font(name: str, size: int) -> Font:
    """Load one of matplotlib's fonts, which know more scripts and signs than Pillow's own."""
    spec = find_spec("matplotlib")  # Not imported: that takes half a second.
    folder = Path(spec.origin if spec and spec.origin else "").parent / "mpl-data" / "fonts" / "ttf"
    try:
        return ImageFont.truetype(str(folder / name), size)
    except OSError:
        return ImageFont.load_default(size)


def shorten(text: str, font: Font, width: float) -> str:
    """Cut `text` to `width` px, ending in `…` if it is longer."""
    if font.getlength(text) <= width:
        return text
    # Twenty measurements instead of one for each letter that is cut.
    length = bisect_right(range(len(text)), width, key=lambda end: font.getlength(text[:end] + "…")) - 1
    return text[: max(length, 0)].rstrip() + "…"


def _blank(columns: int, height: int) -> Image.Image:
    return Image.new("RGB", (columns * (_TILE + _GAP) + _GAP, height), BACKGROUND)


def _fit(image: Image.Image, room: tuple[int, int]) -> tuple[int, int]:
    scale = min(room[0] / image.width, room[1] / image.height)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _paste(sheet: Image.Image, image: Image.Image, corner: tuple[int, int]) -> None:
    tile = image.resize(_fit(image, (_TILE, _TILE)), Image.Resampling.BICUBIC)
    sheet.paste(tile, (corner[0] + (_TILE - tile.width) // 2, corner[1] + (_TILE - tile.height) // 2))


def _paste_variant(
    sheet: Image.Image, image: Image.Image, corner: tuple[int, int], cell: tuple[int, int], *, is_original: bool
) -> None:
    size = _fit(image, (cell[0], cell[0]))
    at = corner[0] + (cell[0] - size[0]) // 2, corner[1] + (cell[1] - size[1]) // 2
    sheet.paste(image.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0), at)
    if is_original:
        frame = (at[0] - 2, at[1] - 2, at[0] + size[0] + 1, at[1] + size[1] + 1)
        ImageDraw.Draw(sheet).rectangle(frame, outline=_ORIGINAL, width=2)


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
    for number, line in enumerate(_wrap(text, font, width, lines)):
        draw.text((at[0], at[1] + number * (size + 3)), line, font=font, fill=color)


def _wrap(text: str, font: Font, width: int, lines: int) -> list[str]:
    """Wrap `text` to at most `lines` lines of `width` px, ending in `…` if it is longer."""
    wrapped = [""]
    for word in text.split():
        longer = f"{wrapped[-1]} {word}".strip()
        if not wrapped[-1] or font.getlength(longer) <= width:
            wrapped[-1] = longer
        else:
            wrapped.append(word)
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], wrapped[lines - 1] + " …"]
    return [shorten(line, font, width) for line in wrapped]
