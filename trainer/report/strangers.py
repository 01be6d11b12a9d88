"""Strangers' words, made safe to be shown: file names, classes and captions come from whoever uploaded them."""

from __future__ import annotations

import unicodedata

#: They turn the direction of all text after them, also outside of the name that holds them.
_TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def plain(text: object) -> str:
    """Any words in one line, without signs that act on what stands around them."""
    shown = " ".join(str(text).split())
    return "".join("\ufffd" if c in _TURNS or unicodedata.category(c) in {"Cc", "Cs"} else c for c in shown)
