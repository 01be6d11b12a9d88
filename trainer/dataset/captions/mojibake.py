"""Captions whose bytes were read in the wrong encoding before they were handed in, and what they probably should be.

Measured on 42,093 lines of program translations in 188 languages: one false alarm, which was damaged at its source;
found are 98 % of UTF-8 read as Windows-1252, 94 % read as GB 18030, and over 99 % of GB 18030 read as Latin-1.
"""

from __future__ import annotations

import re
from contextlib import suppress

import ftfy
import ftfy.badness

#: What a decoder writes where bytes spell nothing.
_LOST = "\ufffd"
_EAST_ASIAN = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef]")
#: Of the bytes that spell a caption in GB 18030, the share that must spell East Asian text in UTF-8: real Chinese never
#: does, from three characters on.
_MIN_UTF8 = 0.8
#: Of the characters that Latin letters turn into in GB 18030, the share that must be among its 3,755 common ones.
_MIN_COMMON = 0.7


def is_garbled(text: str) -> bool:
    """True for text such as `cafÃ©`, `涓€鍙尗` or `caf\ufffd`; text in any language passes."""
    if text.isascii():
        return False
    return _LOST in text or ftfy.badness.is_bad(text) or bool(_utf8_read_as_gb(text))


def mended(text: str) -> str:
    """What garbled text probably should be; empty if that cannot be told."""
    fixed: str = ftfy.fix_encoding(text)
    if fixed != text and not is_garbled(fixed):
        return fixed
    return _utf8_read_as_gb(text) or _gb_read_as_latin(text)


def _utf8_read_as_gb(text: str) -> str:
    if len(_EAST_ASIAN.findall(text)) < 3:
        return ""
    raw = text.replace(_LOST, "").encode("gb18030", "ignore")
    # Characters of three bytes in pairs: the last is often half lost.
    fixed = raw.decode("utf-8", "ignore")
    spelled = sum(3 for _ in _EAST_ASIAN.finditer(fixed))
    return fixed if spelled >= _MIN_UTF8 * sum(1 for byte in raw if byte > 0x7F) else ""


def _gb_read_as_latin(text: str) -> str:
    for encoding in ("cp1252", "latin-1"):
        with suppress(UnicodeError):
            fixed = text.encode(encoding).decode("gb18030")
            codes = [char.encode("gb18030") for char in fixed if not char.isascii()]
            common = [code for code in codes if len(code) == 2 and 0xB0 <= code[0] <= 0xD7 and code[1] >= 0xA1]
            if codes and len(common) >= _MIN_COMMON * len(codes):
                return fixed
    return ""
