"""A picture with what a classifier says of it, as PNG: a sign and a colour say whether it is right."""

from __future__ import annotations

import os
from pathlib import Path

from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from trainer.report.strangers import plain

_RIGHT, _WRONG, _INK = "#3f94d6", "#d9663f", "#ffffff"
#: Sides, px: as large as a tile of a gallery.
_SIDE, _STRIP, _FRAME, _LETTERS = 256, 38, 6, 20


def draw_verdict(path: Path, picture: Image.Image, *, said: str, confidence: float, is_right: bool) -> Path:
    """The picture in a frame, and below it `✓ cat 97 %` or `✗ dog 61 %`; `confidence` is 0..1."""
    colour = _RIGHT if is_right else _WRONG
    sheet = Image.new("RGB", (_SIDE, _SIDE), colour)
    room = (_SIDE - 2 * _FRAME, _SIDE - _STRIP - _FRAME)
    scale = min(room[0] / picture.width, room[1] / picture.height)
    tile = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    sheet.paste("#1e1f22", (_FRAME, _FRAME, _FRAME + room[0], _FRAME + room[1]))
    sheet.paste(tile, (_FRAME + (room[0] - tile.width) // 2, _FRAME + (room[1] - tile.height) // 2))
    _write(sheet, f"{'✓' if is_right else '✗'} {plain(said)}", f"{confidence:.0%}")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes that share a training may draw the same at once: each into a file of its own.
    part = path.with_suffix(f".{os.getpid()}.part")
    sheet.save(part, format="PNG")
    part.replace(path)
    return path


def _write(sheet: Image.Image, words: str, share: str) -> None:
    """Words at the left, cut where they are long, the share at the right."""
    # The charts' font: Pillow's own has no signs.
    font = ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"), _LETTERS)
    room = _SIDE - 3 * _FRAME - 8 - font.getlength(share)
    if font.getlength(words) > room:
        while words and font.getlength(words + "…") > room:
            words = words[:-1]
        words = words.rstrip() + "…"
    draw = ImageDraw.Draw(sheet)
    middle = _SIDE - _STRIP // 2
    draw.text((_FRAME + 2, middle), words, font=font, fill=_INK, anchor="lm")
    draw.text((_SIDE - _FRAME - 2, middle), share, font=font, fill=_INK, anchor="rm")
