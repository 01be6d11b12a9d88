"""Untrusted caption text: decodes its bytes, removes invisible and control characters, and detects mojibake."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise

from trainer.protocol.text import _

#: Captions are cut here, wherever they come from: models read 75 tokens, or 512 with a T5, and each check of a caption
#: costs its length.
MAX_CAPTION_CHARACTERS = 4000
MAX_CLASS_CHARACTERS = 200
#: Of so many times the characters, invisible ones and spaces are removed.
_READ_FACTOR = 4

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
#: Characters without a glyph that are not in category Cf.
_INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"

#: What a decoder writes for invalid bytes.
_REPLACEMENT = "\ufffd"
_EAST_ASIAN = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef]")
#: Share of a caption's GB 18030 bytes that must form East Asian text in UTF-8. Real Chinese of three or more
#: characters never does.
_MIN_UTF8 = 0.8
#: Share of the characters decoded as GB 18030 that must be among its 3,755 common ones.
_MIN_COMMON = 0.7


class CaptionError(ValueError):
    """Bytes that are not text in any known encoding; the message is a clause for a sentence."""


def clean_text(text: str, most: int = MAX_CAPTION_CHARACTERS) -> str:
    """The text on one line, without ANSI sequences, control, bidi and zero-width characters, cut after `most`."""
    text = _ANSI.sub("", text[: _READ_FACTOR * most])
    kept = "".join(char if char.isspace() or _is_visible(char) else "" for char in text)
    line = unicodedata.normalize("NFC", " ".join(kept.split()))
    if len(line) <= most:
        return line
    head, _space, _cut_word = line[: most + 1].rpartition(" ")
    return (head or line[:most]).rstrip()


def _is_visible(char: str) -> bool:
    # Cf contains the bidi controls, zero-width (non-)joiners and spaces, and byte order marks.
    return unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Cn", "Co") and char not in _INVISIBLE


def decode_text(data: bytes) -> str:
    """Decode text by its byte order mark, its NULs, strict UTF-8, or the most plausible legacy encoding.

    Not charset-normalizer: it is often wrong on captions of five words.

    Raises:
        CaptionError: No encoding fits.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return _strict(data, encoding)
    if encoding := _utf16_by_nuls(data):
        return _strict(data, encoding)
    if b"\0" in data:
        raise CaptionError(_("it is not text"))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return _most_plausible(data)
    if _mixes_alphabets(text):
        with suppress(CaptionError):
            return _most_plausible(data)
    return text


def _strict(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise CaptionError(_("it claims to be {encoding} but is not", encoding=encoding.upper())) from error


def _utf16_by_nuls(data: bytes) -> str:
    """UTF-16 without a mark: every other byte of mostly Latin text is NUL."""
    if len(data) < 2 or len(data) % 2:
        return ""
    even, odd = data[::2].count(0), data[1::2].count(0)
    if odd > 0.4 * len(data) / 2 and even == 0:
        return "utf-16-le"
    return "utf-16-be" if even > 0.4 * len(data) / 2 and odd == 0 else ""


def _mixes_alphabets(text: str) -> bool:
    """True for words in two alphabets: short Chinese in GB 18030 can be valid UTF-8, and then looks like this."""
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
        raise CaptionError(_("its encoding is unknown"))
    # The first of equals: the encodings are ordered by how common they are.
    return max(candidates, key=lambda candidate: candidate[0])[1]


def _plausibility(text: str, is_common: Callable[[str], bool]) -> float:
    """Mean score of the characters beyond ASCII."""
    if text.isascii():
        return 0.0
    scores = list(_scores(text, is_common))
    return sum(scores) / len(scores)


def _scores(text: str, is_common: Callable[[str], bool]) -> Iterator[float]:
    for before, char, after in zip(" " + text[:-1], text, text[1:] + " ", strict=True):
        if char.isascii():
            continue
        if "\u00c0" <= char <= "\u024f":
            # An accented letter stands alone between plain ones ("café"); runs of them are misread Chinese.
            is_alone = before.isascii() and after.isascii()
            yield 1.0 if is_alone and (before.isalpha() or after.isalpha()) else 0.2
        elif char in "‘’“”–—…€£°·«»":
            yield 0.7
        else:
            yield 1.0 if is_common(char) else 0.1


def _is_frequent_gb(code: bytes) -> bool:
    """True for the 3,755 common characters of GB 2312: rows 16-55, within A1-FE in both bytes."""
    return len(code) == 2 and 0xB0 <= code[0] <= 0xD7 and code[1] >= 0xA1


def _is_common_gb(char: str) -> bool:
    code = char.encode("gb18030")
    # Rows A1 and A3 are punctuation.
    return _is_frequent_gb(code) or (len(code) == 2 and code[0] in (0xA1, 0xA3) and code[1] >= 0xA1)


def _is_common_big5(char: str) -> bool:
    code = char.encode("big5")
    return len(code) == 2 and 0xA1 <= code[0] <= 0xC6


def _is_common_shift_jis(char: str) -> bool:
    code = char.encode("cp932")
    return "\u3040" <= char <= "\u30ff" or (len(code) == 2 and (0x88 <= code[0] <= 0x97 or code[0] == 0x81))


#: Legacy encodings, and which of their characters are common.
_LEGACY: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("gb18030", _is_common_gb),
    ("big5", _is_common_big5),
    ("cp932", _is_common_shift_jis),
    ("cp1252", lambda char: False),
)


def is_garbled(text: str) -> bool:
    """True for text decoded in the wrong encoding, such as `cafÃ©`, `涓€鍙尗` or `caf\ufffd`.

    Measured on 42,093 lines of program translations in 188 languages: one false alarm, damaged at its source. It finds
    98 % of UTF-8 read as Windows-1252, 94 % read as GB 18030, and over 99 % of GB 18030 read as Latin-1.
    """
    if text.isascii():
        return False
    # Imported where it is used: decoding processes import this module and do not need it.
    import ftfy.badness

    return _REPLACEMENT in text or ftfy.badness.is_bad(text) or bool(_utf8_read_as_gb(text))


def fix_mojibake(text: str) -> str:
    """The probable original of a garbled text; empty if there is none."""
    import ftfy

    fixed: str = ftfy.fix_encoding(text)
    if fixed != text and not is_garbled(fixed):
        return fixed
    return _utf8_read_as_gb(text) or _gb_read_as_latin(text)


def _utf8_read_as_gb(text: str) -> str:
    if len(_EAST_ASIAN.findall(text)) < 3:
        return ""
    raw = text.replace(_REPLACEMENT, "").encode("gb18030", "ignore")
    # Three-byte characters were read as pairs, so half of the last one is often lost.
    fixed = raw.decode("utf-8", "ignore")
    east_asian_bytes = sum(3 for _match in _EAST_ASIAN.finditer(fixed))
    return fixed if east_asian_bytes >= _MIN_UTF8 * sum(1 for byte in raw if byte > 0x7F) else ""


def _gb_read_as_latin(text: str) -> str:
    for encoding in ("cp1252", "latin-1"):
        with suppress(UnicodeError):
            fixed = text.encode(encoding).decode("gb18030")
            codes = [char.encode("gb18030") for char in fixed if not char.isascii()]
            if codes and sum(map(_is_frequent_gb, codes)) >= _MIN_COMMON * len(codes):
                return fixed
    return ""
