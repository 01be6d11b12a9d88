"""Captions from strangers: their encoding, and what must not reach a model or a terminal."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
#: Characters without a shape that are not in category Cf.
_INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"


class CaptionError(ValueError):
    """Bytes that spell no text in any encoding that captions come in; the message is a clause for a sentence."""


def read_caption(data: bytes) -> str:
    """The caption that a sidecar holds, on one line; empty if it holds nothing visible.

    Raises:
        CaptionError: the bytes are no text.
    """
    return clean(decode_text(data))


def clean(text: str) -> str:
    """The text on one line, without ANSI sequences, control, bidi and zero-width characters."""
    text = _ANSI.sub("", text)
    kept = "".join(char if char.isspace() or _is_visible(char) else "" for char in text)
    return unicodedata.normalize("NFC", " ".join(kept.split()))


def _is_visible(char: str) -> bool:
    # Cf holds the bidi controls, zero-width (non-)joiners and spaces, and byte order marks.
    return unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Cn", "Co") and char not in _INVISIBLE


def decode_text(data: bytes) -> str:
    """Text by byte order mark, else NUL pattern, else strict UTF-8, else the most plausible legacy encoding.

    Raises:
        CaptionError: none of them fits.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return _strict(data, encoding)
    if encoding := _utf16_by_nuls(data):
        return _strict(data, encoding)
    if b"\0" in data:
        raise CaptionError("it is not a text")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return _most_plausible(data)
    if _mixes_alphabets(text):
        with suppress(CaptionError):
            return _most_plausible(data)
    return text


def _mixes_alphabets(text: str) -> bool:
    """True for what short Chinese in GB 18030 looks like where it happens to be valid UTF-8: words in two alphabets."""
    if any(char > "\u07ff" for char in text if _alphabet(char)):
        return False
    alphabets = [_alphabet(char) for char in text]
    return any(one and other and one != other for one, other in pairwise(alphabets))


def _alphabet(char: str) -> str:
    """The script of a letter or mark beyond ASCII, empty for all else."""
    if char.isascii() or unicodedata.category(char)[0] not in "LM":
        return ""
    script = unicodedata.name(char, "").split(" ")[0]
    return "" if script == "COMBINING" else script


def _strict(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise CaptionError(f"it claims to be {encoding.upper()} and is not") from error


def _utf16_by_nuls(data: bytes) -> str:
    """UTF-16 without a mark: in text of mostly Latin letters every other byte is NUL."""
    if len(data) < 2 or len(data) % 2:
        return ""
    even, odd = data[::2].count(0), data[1::2].count(0)
    if odd > 0.4 * len(data) / 2 and even == 0:
        return "utf-16-le"
    return "utf-16-be" if even > 0.4 * len(data) / 2 and odd == 0 else ""


def _most_plausible(data: bytes) -> str:
    candidates: list[tuple[float, str]] = []
    for encoding, is_common in _LEGACY:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if any(unicodedata.category(char) in ("Cc", "Co", "Cn") and not char.isspace() for char in text):
            continue
        candidates.append((_plausibility(text, is_common), text))
    if not candidates:
        raise CaptionError("its encoding is unknown")
    # The first of equals: encodings stand in the order of how often captions come in them.
    return max(candidates, key=lambda candidate: candidate[0])[1]


def _plausibility(text: str, is_common: Callable[[str], bool]) -> float:
    """Mean over the characters beyond ASCII, weighted by the bytes that they stand for."""
    if text.isascii():
        return 0.0
    weights = list(_weights(text, is_common))
    return sum(weights) / len(weights)


def _weights(text: str, is_common: Callable[[str], bool]) -> Iterator[float]:
    for before, char, after in zip(" " + text[:-1], text, text[1:] + " ", strict=True):
        if char.isascii():
            continue
        if "\u00c0" <= char <= "\u024f":
            # An accented letter stands alone among plain ones ("café"); runs of them are misread Chinese.
            neighbours = (before, after)
            alone = all(other.isascii() for other in neighbours)
            yield 1.0 if alone and any(other.isalpha() for other in neighbours) else 0.2
        elif char in "‘’“”–—…€£°·«»":
            yield 0.7
        else:
            yield 1.0 if is_common(char) else 0.1


def _lead_within(encoding: str, first: int, last: int) -> Callable[[str], bool]:
    """Characters whose first byte lies in the rows that the encoding's authors gave to common characters."""

    def is_common(char: str) -> bool:
        raw = char.encode(encoding)
        return len(raw) == 2 and first <= raw[0] <= last

    return is_common


def _is_common_gb(char: str) -> bool:
    # GB 2312 rows 16-55, its 3,755 common characters, lie within A1-FE in both bytes; row A3 is full-width punctuation.
    raw = char.encode("gb18030")
    return len(raw) == 2 and raw[1] >= 0xA1 and (0xB0 <= raw[0] <= 0xD7 or raw[0] in (0xA1, 0xA3))


def _is_common_shift_jis(char: str) -> bool:
    raw = char.encode("cp932")
    return "\u3040" <= char <= "\u30ff" or (len(raw) == 2 and (0x88 <= raw[0] <= 0x97 or raw[0] == 0x81))


#: Legacy encodings, and which of their characters are common.
_LEGACY: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("gb18030", _is_common_gb),
    ("big5", _lead_within("big5", 0xA1, 0xC6)),
    ("cp932", _is_common_shift_jis),
    ("cp1252", lambda _: False),
)
