"""What models write, as a caption: without their marks, their stammer, and their way of beginning."""

from __future__ import annotations

import re

#: About what 75 tokens hold, characters.
MAX_CHARACTERS = 400

#: `<s>`, `</s>`, `<pad>`, `<loc_123>`, `<|endoftext|>`, `[SEP]`.
_MARKS = re.compile(r"<\|?/?[a-zA-Z_]+\d*\|?>|\[(?:CLS|SEP|PAD|MASK|UNK|DEC|ENC)\]|\ufffd")
#: The same one to eight words again and again, as small models write.
_STAMMER = re.compile(r"\b((?:[\w'’-]+[,;]?\s+){0,7}?[\w'’-]+)(?:[,;]?\s+\1\b)+", re.IGNORECASE)
#: BLIP writes `arafed` before many a noun: a word of its training data that means nothing.
_INVENTED = re.compile(r"\b(?:an? )?araf(?:ed|fe)\b\s*", re.IGNORECASE)
_OPENING = re.compile(
    r"^(?:the|this) (?:image|picture|photo|photograph) (?:shows|depicts|features|is of)\s+|"
    r"^(?:in|on) (?:the|this) (?:image|picture|photo) (?:we can see|there (?:is|are))\s+",
    re.IGNORECASE,
)


def cleaned(text: str) -> str:
    """One line of plain words, at most `MAX_CHARACTERS` of them, cut at the end of a sentence or of a word."""
    text = _INVENTED.sub("", _MARKS.sub(" ", text))
    text = _OPENING.sub("", " ".join(text.split()))
    before = ""
    while before != text:
        before, text = text, _STAMMER.sub(r"\1", text)
    text = _shortened(re.sub(r"\s+([,.;:!?])", r"\1", text).strip(" ,;:"))
    return text[:-1] if text.endswith(".") and text.count(".") == 1 else text


def _shortened(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    head = text[: MAX_CHARACTERS + 1]
    end = max(head.rfind(mark) for mark in (". ", "! ", "? "))
    if end > 0:
        return head[: end + 1]
    return head[: max(head.rfind(" "), 0) or MAX_CHARACTERS].rstrip(" ,;:")
