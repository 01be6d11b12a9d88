"""The words of captions: which say something, which are commonest, and which may be the trigger."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from functools import cache

from trainer.dataset.captions.tag_order import tags_of
from trainer.dataset.captions.tokens import count_tokens, vocabulary
from trainer.protocol.report import WordCount

MAX_WORDS = 20

#: Of the captions, the share that holds what is taken for a trigger.
_TRIGGER_SHARE = 0.9
_MIN_CAPTIONS_FOR_TRIGGER = 4
#: Place in CLIP's vocabulary, which goes from common to rare, from which a word counts as rare: `sks` is 48136, `ohwx`
#: 47993, `dachshund` 42720, `corgi` 31320.
_RARE_TOKEN = 45_000

#: Words that tell no two pictures apart: English, German, French, Spanish, Portuguese, Russian.
_STOP_WORDS = """
a an and are as at be by for from has have her his in into is it its near of off on onto or over some that the their
them there this to under very was while who with photo photograph picture image illustration drawing
der die das ein eine einer eines einem einen und im in am an auf aus mit von vom zu zum zur bei bild foto
le la les un une des du de et en dans sur avec au aux par pour el los las una unos y con del al da do em
и в на с у из под над по
"""
_STOPPED = frozenset(_STOP_WORDS.split())
_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
#: Han, kana and Thai, which put no space between words.
_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")


def telling_words(caption: str, trigger: str = "") -> set[str]:
    """Words in small letters, without stop words, numbers and the trigger; in Chinese and its like, character pairs."""
    return set(_words(caption)) - set(_words(trigger))


def commonest(captions: Collection[str]) -> tuple[WordCount, ...]:
    """The tags or words that most captions have, at most `MAX_WORDS`: tags where most captions are lists of them.

    What one caption alone has, and single letters, are left out.
    """
    lists = [{tag.casefold() for tag in tags_of(caption)} for caption in captions]
    if 2 * sum(1 for tags in lists if tags) <= len(captions):
        lists = [telling_words(caption) for caption in captions]
    counts = Counter(word for words in lists for word in words)
    # Equal counts in alphabetical order: a report of the same data is the same report.
    shared = ((word, count) for word, count in counts.items() if count > 1 and not (word.isascii() and len(word) == 1))
    ranked = sorted(shared, key=lambda item: (-item[1], item[0]))
    return tuple(WordCount(word=word, images=count) for word, count in ranked[:MAX_WORDS])


def guess_trigger(captions: Collection[str]) -> str:
    """The rare word that at least nine of ten captions hold, the first of several; empty if there is none."""
    if len(captions) < _MIN_CAPTIONS_FOR_TRIGGER:
        return ""
    counts = Counter(word for caption in captions for word in set(_words(caption)))
    needed = _TRIGGER_SHARE * len(captions)
    first = next(iter(captions))
    common = [word for word in dict.fromkeys(_words(first)) if counts[word] >= needed]
    return next((word for word in common if _is_rare(word)), "")


def _words(caption: str) -> Iterator[str]:
    for word in _WORD.findall(_UNSPACED.sub(" ", caption.casefold().replace("_", " "))):
        if word not in _STOPPED and not word.isdigit():
            yield word
    for run in _UNSPACED.findall(caption):
        yield from (run[start : start + 2] for start in range(max(1, len(run) - 1)))


def _is_rare(word: str) -> bool:
    return word.isascii() and (count_tokens([word]) != [1] or _number(f"{word}</w>") >= _RARE_TOKEN)


@cache
def _numbers() -> dict[str, int]:
    return vocabulary()[0]


def _number(token: str) -> int:
    return _numbers().get(token, 0)
