"""The caption rules of a dataset: replace and strip words, add a prefix, a suffix and the trigger word."""

from __future__ import annotations

import re
from functools import lru_cache

from trainer.protocol.edits import CaptionRules, Replacement
from trainer.trigger import with_trigger

#: Captions do not grow beyond this, characters: fifty replacements that double each other would fill the memory.
MAX_GROWN_CHARACTERS = 2000
#: Removing a word can bring together words that another rule replaces; rules that feed each other end here.
_MAX_PASSES = 4
#: Removing a phrase can bring its words together again; that is followed so many times.
_MAX_STRIPS = 8

#: Han, kana, Hangul and Thai put no space between words.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_LETTER = rf"[^\W{_UNSPACED}]"
_STARTS_WORD = rf"(?<!{_LETTER})(?<!{_LETTER}[-'’])"
_ENDS_WORD = rf"(?!{_LETTER})(?![-'’]{_LETTER})"
_IS_UNSPACED = re.compile(rf"[{_UNSPACED}\u3000-\u303f\uff00-\uffef]")

#: Spaces or underscores that may be between the words of a phrase.
_MAX_GAP = 8

_CLOSING = {")": "(", "]": "[", "}": "{"}
#: What remains of `(masterpiece:1.2)` without its word, and of other brackets.
_EMPTY_WEIGHT, _EMPTY = re.compile(r"\s*(?::\s*[\d.]*\s*)?"), re.compile(r"\s*")
_REPEATED_COMMAS = re.compile(r"\s*([,，、])(?:\s*[,，、])+")


def apply_rules(caption: str, rules: CaptionRules) -> str:
    """Apply replace, strip, prefix, suffix and trigger, in this order.

    What is already there is not added again: applying the rules twice changes nothing, unless one replacement produces
    the words that another one replaces.
    """
    # With a leading comma, the prefix would look like a trigger.
    text = " ".join(caption.split()).lstrip(" ,，、")
    after_trigger = _after_leading_trigger(text, rules.trigger)
    # A leading trigger stays in front even if it occurs again later.
    keep_trigger = bool(after_trigger)
    body = _replace_and_strip(text if after_trigger is None else after_trigger, rules)
    whole = _join(_join(_fold_spaces(rules.prefix), body), _fold_spaces(rules.suffix))
    if keep_trigger:
        return ", ".join(part for part in (_fold_spaces(rules.trigger), whole) if part)
    return with_trigger(whole, rules.trigger)


def contains_words(caption: str, words: str) -> bool:
    """True if the caption contains `words` as whole words (`cat`, not `cats`), ignoring case."""
    return bool(words.strip()) and _phrase(words).search(caption) is not None


def _replace_and_strip(text: str, rules: CaptionRules) -> str:
    """Replace and strip between prefix and suffix until nothing changes."""
    limit = max(len(text), MAX_GROWN_CHARACTERS)
    for _pass in range(_MAX_PASSES):
        before = text
        text = _without_affixes(text, rules)
        for replacement in rules.replace:
            text = _replaced(text, replacement)[:limit]
        for words in rules.strip:
            text = _without(text, words)
        if text == before:
            break
    return text


def _replaced(text: str, replacement: Replacement) -> str:
    """Replace `old` by `new`, except where it is already part of `new`: `cat` in `black cat`."""
    old, new = replacement.old, replacement.new
    if not new.strip() and old.strip() not in ("", "_", "-"):
        return _without(text, old)
    pattern = _either(new, old) if contains_words(new, old) else _phrase(old)
    return " ".join(pattern.sub(lambda _match: new, text).split())


def _without(text: str, words: str) -> str:
    if not contains_words(text, words):
        return text
    pattern = _phrase(words)
    for _pass in range(_MAX_STRIPS):
        if not pattern.search(text):
            break
        text = _tidy(pattern.sub("", text))
    return text


def _tidy(text: str) -> str:
    """Remove empty brackets, repeated commas, and commas at either end."""
    text = _without_empty_brackets(text)
    text = _REPEATED_COMMAS.sub(r"\1", " ".join(text.split()))
    return re.sub(r"\s+([,，、])", r"\1", text).strip(" ,，、")


def _without_empty_brackets(text: str) -> str:
    """Remove brackets around nothing, and those around nothing but such, in one pass."""
    kept: list[str] = []
    #: Where brackets begin in `kept` that may still turn out empty.
    opened: list[int] = []
    for char in text:
        if char in _CLOSING and opened:
            start = opened.pop()
            empty = _EMPTY_WEIGHT if char == ")" else _EMPTY
            if kept[start] == _CLOSING[char] and empty.fullmatch("".join(kept[start + 1 :])):
                del kept[start:]
                continue
            # What is around these is not empty either.
            opened.clear()
        elif char in _CLOSING.values():
            opened.append(len(kept))
        kept.append(char)
    return "".join(kept)


def _after_leading_trigger(text: str, trigger: str) -> str | None:
    """The text after a trigger that is the first tag; None if it is not the first tag."""
    first, _comma, rest = text.partition(",")
    if not trigger.strip() or first.strip().casefold() != _fold_spaces(trigger).casefold():
        return None
    return rest.strip()


def _without_affixes(text: str, rules: CaptionRules) -> str:
    """Remove the prefix and suffix that the text already has, however often."""
    before = None
    while before != text:
        before = text
        if rules.prefix.strip() and (match := _phrase(rules.prefix).match(text)):
            text = text[match.end() :].strip()
        # Only as far back as it can reach: a suffix may be there a thousand times.
        start = max(0, len(text) - _longest(rules.suffix))
        if rules.suffix.strip() and (match := _at_end(rules.suffix).search(text, start)):
            text = text[: match.start()].strip()
    return text


def _join(left: str, right: str) -> str:
    """Join with a space, except before punctuation and between scripts without spaces."""
    if not left or not right:
        return left or right
    needs_no_space = right[0] in ",.;:!?，。、；：！？" or (
        _IS_UNSPACED.match(left[-1]) and _IS_UNSPACED.match(right[0])
    )
    return f"{left}{'' if needs_no_space else ' '}{right}"


def _fold_spaces(text: str) -> str:
    return " ".join(text.split())


def _longest(words: str) -> int:
    """Characters of the longest text that is `words`."""
    return len(words) + _MAX_GAP * len(re.split(r"[\s_]+", words))


@lru_cache(maxsize=1024)
def _phrase(words: str) -> re.Pattern[str]:
    return re.compile(_pattern(words))


@lru_cache(maxsize=1024)
def _at_end(words: str) -> re.Pattern[str]:
    return re.compile(f"{_pattern(words)}$")


@lru_cache(maxsize=1024)
def _either(words: str, others: str) -> re.Pattern[str]:
    return re.compile(f"{_pattern(words)}|{_pattern(others)}")


def _pattern(words: str) -> str:
    """A regular expression for `words` as whole words; `long hair` also matches `long_hair`."""
    parts = [part for part in re.split(r"[\s_]+", words) if part]
    if not parts:
        return re.escape(words)
    starts = _STARTS_WORD if re.match(_LETTER, parts[0]) else ""
    ends = _ENDS_WORD if re.match(_LETTER, parts[-1][-1]) else ""
    # The boundaries are case-sensitive, which changes nothing: otherwise each pattern takes 20 ms to compile.
    joined = rf"[\s_]{{1,{_MAX_GAP}}}".join(map(re.escape, parts))
    return f"{starts}(?i:{joined}){ends}"
