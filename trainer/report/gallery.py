"""Images side by side as PNG: samples of an epoch, base beside best, originals beside variants, and predictions."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache, wraps
from importlib.util import find_spec
from pathlib import Path
from typing import ParamSpec, TypeVar

from PIL import Image, ImageDraw, ImageFont

from trainer.exchange.files import atomic_write
from trainer.protocol.text import ENGLISH, _, current_language, ngettext, percent, sanitize, speaking
from trainer.trigger import has_trigger

#: Discord's dark theme, as in the charts.
BACKGROUND, _TEXT, _DIM = "#2b2d31", "#f2f3f5", "#b5bac1"
_GAP = 12
#: Side of a tile, px: small images are enlarged to be seen in a channel, large ones made smaller.
_TILE = 256
#: Images this many times smaller than a tile are shown with their pixels: blurred, they would look like bad samples.
_PIXEL_ART = 3
#: A phone shows a sheet 285 px wide, whatever its own width is; letters have 11 px there.
_PHONE_WIDTH, _PHONE_LETTERS = 285, 11
_CAPTION_LINES = 3
#: From the top of a line to its baseline, as a share of the size: DejaVu's.
_ASCENT = 0.928
#: Above a column of a comparison; with four columns a line has about ten letters.
_HEADING_LINES, _NOTE_LINES = 4, 2
#: Prompts in a comparison: a higher image would not be seen at once.
MAX_COMPARED = 4

#: Originals on a sheet of variants: enough to judge the settings.
MAX_ROWS = 8
_ORIGINAL = "#5bb5f5"
_VARIANTS_GAP, _VARIANTS_MARGIN, _VARIANTS_HEADING = 8, 16, 34
#: A wider sheet would be made too small in a channel; a tile is 72 to 184 px wide.
_VARIANTS_WIDTH, _VARIANTS_TILES = 1500, (72, 184)

_RIGHT, _WRONG = "#3f94d6", "#d9663f"
#: Of a prediction, px: the strip with its text, and the frame.
_STRIP, _FRAME, _LETTERS = 38, 6, 20

#: Chinese, Japanese and Korean, and fonts that have them, if one of them is installed.
_CJK = re.compile("[\u2e80-\uffef]")
_CJK_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "PingFang.ttc",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "msgothic.ttc",
)
_CJK_LANGUAGES = frozenset({"zh_CN"})

P = ParamSpec("P")
T = TypeVar("T")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True)
class SampleCaption:
    """What stands below an image: a text, and a fainter line."""

    text: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ComparedColumn:
    """One column of a comparison: a heading, a fainter line below it, and an image for each prompt."""

    heading: str
    note: str
    images: Sequence[Image.Image]


@dataclass(frozen=True, kw_only=True)
class GridRow:
    """One row of a grid: files of images, each with a label above it, and what they have in common above the row."""

    heading: str
    images: Sequence[Path]
    labels: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class GridSection:
    """The rows of one prompt, and the prompt."""

    heading: str
    rows: Sequence[GridRow]


def drawn(draw: Callable[P, T]) -> Callable[P, T]:
    """Draw in English where no font with the letters of the current language is installed."""

    @wraps(draw)
    def drawing(*arguments: P.args, **options: P.kwargs) -> T:
        is_drawable = current_language() not in _CJK_LANGUAGES or _has_cjk_font()
        with speaking(current_language() if is_drawable else ENGLISH):
            return draw(*arguments, **options)

    return drawing


@cache
def _has_cjk_font() -> bool:
    for name in _CJK_FONTS:
        with suppress(OSError):
            ImageFont.truetype(name, 12)
            return True
    return False


@drawn
def sample_captions(samples: Sequence[tuple[str, int]], trigger: str = "") -> list[SampleCaption]:
    """Return the captions of samples, given as (prompt, seed): a prompt stands once, and its further seeds follow.

    Args:
        samples: In order.
        trigger: A prompt without this word is a control: it shows what else the training has changed.
    """
    captions = []
    several_seeds = len({seed for _prompt, seed in samples}) > 1
    for index, (prompt, seed) in enumerate(samples):
        is_again = index > 0 and samples[index - 1][0] == prompt
        notes = [_("seed {seed}", seed=seed)] if several_seeds else []
        if trigger and not is_again and not has_trigger(prompt, trigger):
            notes.append(_("control, without “{trigger}”", trigger=trigger))
        text = _("the same prompt") if is_again else prompt or _("(no prompt)")
        captions.append(SampleCaption(text=text, note=_(" · ").join(notes)))
    return captions


@drawn
def draw_gallery(path: Path, images: Sequence[Image.Image], captions: Sequence[SampleCaption]) -> Path:
    """Draw all images with their captions below: two in a row, three if there are more than four."""
    columns = min(len(images), 2 if len(images) <= 4 else 3)
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    size = _letters(_width(columns))
    heights = [_TILE + max(_caption_height(captions[index], size) for index in row) + _GAP for row in rows]
    sheet = _blank(columns, sum(heights) + _GAP)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, index in enumerate(row):
            corner = (_GAP + column * (_TILE + _GAP), top)
            _paste(sheet, images[index], corner)
            _write_caption(sheet, captions[index], (corner[0], top + _TILE + 4), size)
        top += height
    return save_png(sheet, path)


@drawn
def draw_comparison(path: Path, columns: Sequence[ComparedColumn], captions: Sequence[str]) -> Path:
    """Draw images beside each other, a row for each prompt, at most `MAX_COMPARED`, and its prompt above the row."""
    size = _letters(_width(len(columns)))
    line, room = size + 6, _width(len(columns)) - 2 * _GAP
    prompts = [_wrap(text, text_font(text, size), room, 2) for text in captions[:MAX_COMPARED]]
    heights = [len(lines) * line + _TILE + 2 * _GAP for lines in prompts]
    headings = [_heading_lines(column, size) for column in columns]
    top = max(map(len, headings)) * line + 2 * _GAP
    sheet = _blank(len(columns), top + sum(heights))
    for number, lines_of_column in enumerate(headings):
        for row, (text, is_bold) in enumerate(lines_of_column):
            at = (_GAP + number * (_TILE + _GAP), _GAP + row * line)
            _write_line(sheet, text, at, size, color=_TEXT if is_bold else _DIM, is_bold=is_bold)
    for row, (lines, height) in enumerate(zip(prompts, heights, strict=True)):
        for number, text in enumerate(lines):
            _write_line(sheet, text, (_GAP, top + number * line), size, width=room)
        for number, column in enumerate(columns):
            _paste(sheet, column.images[row], (_GAP + number * (_TILE + _GAP), top + len(lines) * line + 4))
        top += height
    return save_png(sheet, path)


def _heading_lines(column: ComparedColumn, size: int) -> list[tuple[str, bool]]:
    """The lines above a column, those of its heading in bold."""
    heading = _wrap(column.heading, text_font(column.heading, size, is_bold=True), _TILE, _HEADING_LINES)
    note = _wrap(column.note, text_font(column.note, size), _TILE, _NOTE_LINES)
    return [*((text, True) for text in heading), *((text, False) for text in note)]


@drawn
def draw_grid(path: Path, sections: Sequence[GridSection], size: tuple[int, int]) -> Path:
    """Draw sections one below the other, each a table of images of this size with their labels."""
    columns = max(2, *(len(row.images) for section in sections for row in section.rows))
    letters, room = _letters(_width(columns)), _width(columns) - 2 * _GAP
    line, tile = letters + 6, (_TILE, min(2 * _TILE, round(_TILE * size[1] / size[0])))
    headings = [_wrap(section.heading, text_font(section.heading, letters), room, 2) for section in sections]
    heights = [
        [line * (bool(row.heading) + any(row.labels)) + tile[1] + _GAP for row in section.rows] for section in sections
    ]
    sheet = _blank(columns, _GAP + sum(len(lines) * line + _GAP for lines in headings) + sum(map(sum, heights)))
    top = _GAP
    for section, lines, row_heights in zip(sections, headings, heights, strict=True):
        for text in lines:
            _write_line(sheet, text, (_GAP, top), letters, width=room, is_bold=True)
            top += line
        for row, height in zip(section.rows, row_heights, strict=True):
            _draw_grid_row(sheet, row, top, letters, tile)
            top += height
        top += _GAP
    return save_png(sheet, path)


def _draw_grid_row(sheet: Image.Image, row: GridRow, top: int, letters: int, tile: tuple[int, int]) -> None:
    if row.heading:
        _write_line(sheet, row.heading, (_GAP, top), letters, width=sheet.width - 2 * _GAP)
        top += letters + 6
    for column, (path, label) in enumerate(zip(row.images, row.labels, strict=True)):
        left = _GAP + column * (_TILE + _GAP)
        if label:
            _write_line(sheet, label, (left, top), letters, color=_DIM)
        with Image.open(path) as image:
            _paste(sheet, image.convert("RGB"), (left, top + (letters + 6) * any(row.labels)), tile)


@drawn
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
    original, heading = _("original"), ngettext("variant", "variants", columns - 1)
    draw, font = ImageDraw.Draw(sheet), text_font(original + heading, 15)
    draw.text((_VARIANTS_MARGIN, _VARIANTS_HEADING / 2), original, fill=_ORIGINAL, font=font, anchor="lm")
    left = _VARIANTS_MARGIN + tile + _VARIANTS_GAP
    draw.text((left, _VARIANTS_HEADING / 2), heading, fill=_DIM, font=font, anchor="lm")
    top = _VARIANTS_HEADING
    for row, row_height in zip(images, heights, strict=True):
        for column, image in enumerate(row):
            corner = (_VARIANTS_MARGIN + column * (tile + _VARIANTS_GAP), top)
            _paste_variant(sheet, image, corner, (tile, row_height), is_original=column == 0)
        top += row_height + _VARIANTS_GAP
    return save_png(sheet, path)


@drawn
def draw_prediction(path: Path, image: Image.Image, *, label: str, confidence: float, is_right: bool) -> Path:
    """Draw an image in a colored frame, and below it `✓ cat 97%` or `✗ dog 61%`; `confidence` is 0 to 1."""
    color = _RIGHT if is_right else _WRONG
    sheet = Image.new("RGB", (_TILE, _TILE), color)
    room = (_TILE - 2 * _FRAME, _TILE - _STRIP - _FRAME)
    tile = image.resize(_fit(image, room), Image.Resampling.BICUBIC)
    sheet.paste("#1e1f22", (_FRAME, _FRAME, _FRAME + room[0], _FRAME + room[1]))
    sheet.paste(tile, (_FRAME + (room[0] - tile.width) // 2, _FRAME + (room[1] - tile.height) // 2))
    text, share = f"{'✓' if is_right else '✗'} {sanitize(label)}", percent(confidence)
    # Pillow's own font has no check marks.
    font = text_font(text, _LETTERS, is_bold=True)
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


def text_font(text: str, size: int, *, is_bold: bool = False) -> Font:
    """Return a font that has the letters of a text, as far as one is installed."""
    names = _CJK_FONTS if _CJK.search(text) else ()
    return _load_font((*names, "DejaVuSans-Bold.ttf" if is_bold else "DejaVuSans.ttf"), size)


@lru_cache
def _load_font(names: tuple[str, ...], size: int) -> Font:
    """Load the first font that is installed; the last one is matplotlib's, which knows more scripts than Pillow's."""
    for name in names[:-1]:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    spec = find_spec("matplotlib")  # Not imported: that takes half a second.
    folder = Path(spec.origin if spec and spec.origin else "").parent / "mpl-data" / "fonts" / "ttf"
    try:
        return ImageFont.truetype(str(folder / names[-1]), size)
    except OSError:
        return ImageFont.load_default(size)


def shorten(text: str, font: Font, width: float) -> str:
    """Cut `text` to `width` px, ending in `…` if it is longer."""
    if font.getlength(text) <= width:
        return text
    # Twenty measurements instead of one for each letter that is cut.
    length = bisect_right(range(len(text)), width, key=lambda end: font.getlength(text[:end] + "…")) - 1
    return text[: max(length, 0)].rstrip() + "…"


def _width(columns: int) -> int:
    return columns * (_TILE + _GAP) + _GAP


def _letters(width: int) -> int:
    """The height of letters that a phone shows large enough, on a sheet of this width."""
    return max(16, -(-_PHONE_LETTERS * width // _PHONE_WIDTH))


def _blank(columns: int, height: int) -> Image.Image:
    return Image.new("RGB", (_width(columns), height), BACKGROUND)


def _fit(image: Image.Image, room: tuple[int, int]) -> tuple[int, int]:
    scale = min(room[0] / image.width, room[1] / image.height)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _paste(
    sheet: Image.Image, image: Image.Image, corner: tuple[int, int], room: tuple[int, int] = (_TILE, _TILE)
) -> None:
    is_small = max(image.size) * _PIXEL_ART <= _TILE
    way = Image.Resampling.NEAREST if is_small else Image.Resampling.BICUBIC
    tile = image.resize(_fit(image, room), way)
    sheet.paste(tile, (corner[0] + (room[0] - tile.width) // 2, corner[1] + (room[1] - tile.height) // 2))


def _paste_variant(
    sheet: Image.Image, image: Image.Image, corner: tuple[int, int], cell: tuple[int, int], *, is_original: bool
) -> None:
    size = _fit(image, (cell[0], cell[0]))
    at = corner[0] + (cell[0] - size[0]) // 2, corner[1] + (cell[1] - size[1]) // 2
    sheet.paste(image.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0), at)
    if is_original:
        frame = (at[0] - 2, at[1] - 2, at[0] + size[0] + 1, at[1] + size[1] + 1)
        ImageDraw.Draw(sheet).rectangle(frame, outline=_ORIGINAL, width=2)


def _caption_lines(caption: SampleCaption, size: int) -> list[str]:
    return _wrap(caption.text, text_font(caption.text, size), _TILE, _CAPTION_LINES)


def _note_lines(caption: SampleCaption, size: int) -> list[str]:
    return _wrap(caption.note, text_font(caption.note, size), _TILE, _CAPTION_LINES) if caption.note else []


def _caption_height(caption: SampleCaption, size: int) -> int:
    return (len(_caption_lines(caption, size)) + len(_note_lines(caption, size))) * (size + 5) + 6


def _write_caption(sheet: Image.Image, caption: SampleCaption, at: tuple[int, int], size: int) -> None:
    lines = [(line, _TEXT) for line in _caption_lines(caption, size)]
    lines += [(line, _DIM) for line in _note_lines(caption, size)]
    for number, (line, color) in enumerate(lines):
        _write_line(sheet, line, (at[0], at[1] + number * (size + 5)), size, color=color)


def _write_line(
    sheet: Image.Image,
    text: str,
    at: tuple[int, int],
    size: int,
    *,
    width: int = _TILE,
    color: str = _TEXT,
    is_bold: bool = False,
) -> None:
    line = sanitize(text)
    font = text_font(line, size, is_bold=is_bold)
    # On one baseline in all fonts: those with Chinese letters have a higher line, whose foot an image would cover.
    baseline = at[0], at[1] + math.ceil(_ASCENT * size)
    ImageDraw.Draw(sheet).text(baseline, shorten(line, font, width), font=font, fill=color, anchor="ls")


def _wrap(text: str, font: Font, width: int, lines: int) -> list[str]:
    """Wrap `text` to at most `lines` lines of `width` px, ending in `…` if it is longer."""
    wrapped = [""]
    for piece in _pieces(sanitize(text)):
        longer = wrapped[-1] + piece
        if not wrapped[-1] or font.getlength(longer.rstrip()) <= width:
            wrapped[-1] = longer
        elif len(wrapped) == lines:
            wrapped[-1] += "…"
            break
        else:
            wrapped.append(piece)
    return [shorten(line.rstrip(), font, width) for line in wrapped]


def _pieces(text: str) -> Iterable[str]:
    """Split a text where a line may break: after a word, and at each Chinese or Japanese character."""
    return (found.group() for found in re.finditer(rf"{_CJK.pattern}\s*|(?:(?!{_CJK.pattern})\S)+\s*", text))
