"""The trigger word in a caption: one rule for the report, `prepare --trigger`, the training, and textual inversion."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import regex


def trigger_pattern(trigger: str) -> str:
    """A regular expression for the trigger word as a whole word, in the syntax of both `regex` and `tokenizers`.

    Whole is what CLIP's tokenizer keeps apart: it splits text into runs of letters of any script, single digits, and
    runs of other symbols. So `momo` is a word of `momo_(series)`, `momo's` and `momo2`, but not of `momos` and of
    `momo的照片`, which is one run. A number stays whole too: `zk1` is not in `zk12`.
    """
    parts = unicodedata.normalize("NFC", trigger).split()
    if not parts:
        return r"(?!)"
    return _edge(parts[0][0], "(?<!{})") + r"\s+".join(map(re.escape, parts)) + _edge(parts[-1][-1], "(?!{})")


def has_trigger(caption: str, trigger: str) -> bool:
    """True if the caption contains the trigger word as a whole word, ignoring case."""
    return _compiled(trigger).search(unicodedata.normalize("NFC", caption)) is not None


def with_trigger(caption: str, trigger: str) -> str:
    """The caption, preceded by the trigger word unless it contains it."""
    word = " ".join(trigger.split())
    if not word or has_trigger(caption, word):
        return caption
    return f"{word}, {caption}" if caption else word


def _edge(char: str, around: str) -> str:
    for of_kind in (r"\p{L}", r"\p{N}"):
        if regex.match(of_kind, char):
            return around.format(of_kind)
    return ""


@lru_cache(maxsize=256)
def _compiled(trigger: str) -> regex.Pattern[str]:
    return regex.compile(trigger_pattern(trigger), regex.IGNORECASE)
