"""What is done to every caption by rule: text replaced, words taken out, a beginning, an end and a trigger added."""

from __future__ import annotations

import re
from functools import lru_cache

from trainer.protocol.edits import CaptionRules, Replacement

#: Captions grow no longer than this, characters: fifty replacements that double each other would fill the memory.
MAX_GROWN_CHARACTERS = 2000
#: A word taken out may bring together another that is replaced, and so on; rules that feed each other end here.
_MAX_PASSES = 4

#: Han, kana, Hangul and Thai put no space between words.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_LETTER = rf"[^\W{_UNSPACED}]"
_STARTS_WORD = rf"(?<!{_LETTER})(?<!{_LETTER}[-'’])"
_ENDS_WORD = rf"(?!{_LETTER})(?![-'’]{_LETTER})"
_IS_UNSPACED = re.compile(rf"[{_UNSPACED}\u3000-\u303f\uff00-\uffef]")

#: What is left of `(masterpiece:1.2)` without its word.
_EMPTY_BRACKETS = re.compile(r"\(\s*(?::\s*[\d.]*\s*)?\)|\[\s*\]|\{\s*\}")
_LONELY_COMMAS = re.compile(r"\s*([,，、])(?:\s*[,，、])+")


def apply_rules(caption: str, rules: CaptionRules) -> str:
    """The caption after replace, strip, prefix, suffix and trigger, in this order.

    What is there already is not added again: applying the rules twice changes nothing, unless one replacement makes
    the words that another one takes.
    """
    # A comma that nothing stands before would make the beginning that is put there look like a trigger.
    text = " ".join(caption.split()).lstrip(" ,，、")
    rest = _without_front_trigger(text, rules.trigger)
    # Where the trigger stands in front it stays there, also where it is said once more.
    in_front = bool(rest)
    body = _changed(text if rest is None else rest, rules)
    whole = _join(_join(_folded(rules.prefix), body), _folded(rules.suffix))
    if rules.trigger.strip() and (in_front or not holds(whole, rules.trigger)):
        return ", ".join(part for part in (_folded(rules.trigger), whole) if part)
    return whole


def holds(caption: str, words: str) -> bool:
    """True if the caption holds `words` as whole words (`cat`, not `cats`); letter case does not count."""
    return bool(words.strip()) and _phrase(words).search(caption) is not None


def _changed(text: str, rules: CaptionRules) -> str:
    """The caption between its beginning and its end, replaced and stripped until nothing is left to do."""
    limit = max(len(text), MAX_GROWN_CHARACTERS)
    for _ in range(_MAX_PASSES):
        before = text
        text = _without_ends(text, rules)
        for replacement in rules.replace:
            text = _replaced(text, replacement)[:limit]
        for words in rules.strip:
            text = _without(text, words)
        if text == before:
            break
    return text


def _replaced(text: str, replacement: Replacement) -> str:
    """`old` gives way to `new`, except where it is already part of `new`: `cat` in `black cat`."""
    old, new = replacement.old, replacement.new
    if not new.strip() and old.strip() not in ("", "_", "-"):
        return _without(text, old)
    pattern = _either(new, old) if holds(new, old) else _phrase(old)
    return " ".join(pattern.sub(lambda _: new, text).split())


def _without(text: str, words: str) -> str:
    if not holds(text, words):
        return text
    pattern = _phrase(words)
    while pattern.search(text):
        text = _tidy(pattern.sub("", text))
    return text


def _tidy(text: str) -> str:
    """No empty brackets, no comma after a comma, none at either end."""
    while _EMPTY_BRACKETS.search(text):
        text = _EMPTY_BRACKETS.sub("", text)
    text = _LONELY_COMMAS.sub(r"\1", " ".join(text.split()))
    return re.sub(r"\s+([,，、])", r"\1", text).strip(" ,，、")


def _without_front_trigger(text: str, trigger: str) -> str | None:
    """What follows a trigger that is the first tag; None if it is not."""
    first, _, rest = text.partition(",")
    if not trigger.strip() or first.strip().casefold() != _folded(trigger).casefold():
        return None
    return rest.strip()


def _without_ends(text: str, rules: CaptionRules) -> str:
    """Without the prefix and suffix that it has already, however often."""
    before = None
    while before != text:
        before = text
        if rules.prefix.strip() and (match := _phrase(rules.prefix).match(text)):
            text = text[match.end() :].strip()
        if rules.suffix.strip() and (match := _at_end(rules.suffix).search(text)):
            text = text[: match.start()].strip()
    return text


def _join(left: str, right: str) -> str:
    """Both with a space between them, unless the script or the punctuation wants none."""
    if not left or not right:
        return left or right
    is_close = right[0] in ",.;:!?，。、；：！？" or (_IS_UNSPACED.match(left[-1]) and _IS_UNSPACED.match(right[0]))
    return f"{left}{'' if is_close else ' '}{right}"


def _folded(text: str) -> str:
    return " ".join(text.split())


@lru_cache(maxsize=1024)
def _phrase(words: str) -> re.Pattern[str]:
    return re.compile(_spelled(words))


@lru_cache(maxsize=1024)
def _at_end(words: str) -> re.Pattern[str]:
    return re.compile(f"{_spelled(words)}$")


@lru_cache(maxsize=1024)
def _either(words: str, others: str) -> re.Pattern[str]:
    return re.compile(f"{_spelled(words)}|{_spelled(others)}")


def _spelled(words: str) -> str:
    """A pattern of `words` as whole words; `long hair` finds `long_hair` too."""
    parts = [part for part in re.split(r"[\s_]+", words) if part]
    if not parts:
        return re.escape(words)
    starts = _STARTS_WORD if re.match(_LETTER, parts[0]) else ""
    ends = _ENDS_WORD if re.match(_LETTER, parts[-1][-1]) else ""
    # Letter case counts in the boundaries, where it has no meaning: without, each pattern takes 20 ms to compile.
    spelled = r"[\s_]+".join(map(re.escape, parts))
    return f"{starts}(?i:{spelled}){ends}"
