"""The words of captions: lists of tags, content words, and mentions that forbid mirroring the image."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

from trainer.protocol.report import WordCount

MAX_WORDS = 20

#: kohya's keep-tokens separator: tags before it stay in front, tags after a second one stay at the end. Removed before
#: a model reads the caption.
KEEP_TOKENS_SEPARATOR = "|||"
#: Mean words of a tag; longer parts between commas belong to a sentence.
_MAX_MEAN_WORDS = 4
#: Words of a tag in a list of its own, and those on average.
_MAX_TAG_WORDS, _MAX_MEAN_TAG_WORDS = 4, 3
_SENTENCE_END = re.compile(r"\w{2,}[\])\"'”’]?[.!?]['\"”’]?$|。$")

#: Words without content: English, German, French, Spanish, Portuguese, Russian.
_STOP_WORDS_TEXT = """
a an and are as at be by for from has have her his in into is it its near of off on onto or over some that the their
them there this to under very was while who with photo photograph picture image illustration drawing
der die das ein eine einer eines einem einen und im in am an auf aus mit von vom zu zum zur bei bild foto
le la les un une des du de et en dans sur avec au aux par pour el los las una unos y con del al da do em
и в на с у из под над по
"""
_STOP_WORDS = frozenset(_STOP_WORDS_TEXT.split())
_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
#: Han, kana and Thai, which put no space between words.
_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")

#: Some of these words have a second meaning ("she left", "chain links", "tout droit"). Not mirroring an image costs a
#: little variety; mirroring one that it changes teaches an error.
_SIDES = (
    *("left", "right", "(left|right)(most|wards?)", "(left|right)[- ]?(hand|handed|side|facing)"),
    *("(anti|counter)?-?clockwise", "starboard"),
    *("links", "rechts", "(linke|rechte)[mnrs]?", "(links|rechts)händig"),
    *("gauches?", "droite?s?"),
    *("izquierd[ao]s?", "derech[ao]s?", "esquerd[ao]s?", "direit[ao]s?", "sinistr[aoie]", "destr[aoie]"),
    *("слева", "справа", "(на|в)?лево", "(на|в)?право", "(лев|прав)(ый|ая|ое|ой|ого|ому|ым|ом|ую|ые|ых|ыми)"),
    *("(z )?(lew|praw)(ej|o|y|a|e|ą|ego|ym)",),
)
_TEXT = (
    *("text", "texts", "letters?", "lettering", "words?", "typography", "calligraphy", "handwriting", "handwritten"),
    *("inscription", "inscribed", "signs?", "signboard", "signature", "watermark", "logo", "slogan", "subtitles?"),
    *("saying", "(that|which) (says|reads)", "speech[- ]bubbles?", "licen[cs]e[- ]plates?", "number[- ]plates?"),
    *("schrift", "schriftzug", "aufschrift", "buchstaben?", "beschriftung", "texte", "lettres?", "écriture", "panneau"),
    *("textos?", "letras?", "letrero", "scritta", "lettere", "текст", "надписи?", "надпись", "буквы?", "вывеска"),
)
#: Scripts that put no space between words: found anywhere.
_SIDES_UNSPACED = "左|右|왼쪽|오른쪽|좌측|우측"
_TEXT_UNSPACED = "文字|字母|字样|汉字|漢字|写着|寫著|写有|标语|標語|招牌|看板|書かれ|글자|글씨"
_NO_TEXT = re.compile(r"\b(?:no|without|ohne|sans|sin|без)[ _](?:any[ _])?(?:text|watermark|logo|signature)\w*")
#: Words in quotation marks can usually be read in the image.
_QUOTED = re.compile(r"""["“”„«「『《][^"“”„«»「」『』《》]{2,}["“”»」』》]|(?<!\w)['‘][^'‘’]{2,40}['’](?!\w)""")


def parse_tags(caption: str) -> list[str]:
    """The tags of a comma-separated caption, in order; empty if it is a sentence or has fewer than three."""
    tags = [tag for tag in (part.strip() for part in caption.replace(KEEP_TOKENS_SEPARATOR, ",").split(",")) if tag]
    if len(tags) < 3 or _SENTENCE_END.search(caption.strip()):
        return []
    words = sum(len(tag.split()) for tag in tags)
    return tags if words <= _MAX_MEAN_WORDS * len(tags) else []


def vary_tags(caption: str, keep: int, random: random.Random, *, shuffle: bool = True, dropout: float = 0.0) -> str:
    """Shuffle the tags of a caption and leave out a share of them, except the first `keep`; other captions are returned
    unchanged.

    Tags before a `|||` also stay in front, and those after a second one at the end (kohya's `keep_tokens` and
    `keep_tokens_separator`); the separator is removed.
    """
    if not parse_tags(caption):
        return caption
    head, rest, tail = _split_at_separators(caption)
    if not head:
        head, rest = rest[:keep], rest[keep:]
    if shuffle:
        random.shuffle(rest)
    if dropout:
        rest = [tag for tag in rest if random.random() >= dropout]
    return ", ".join([*head, *rest, *tail])


def _split_at_separators(caption: str) -> tuple[list[str], list[str], list[str]]:
    """Tags that stay in front, that are shuffled, and that stay at the end."""
    parts = [
        [tag for tag in map(str.strip, part.split(",")) if tag] for part in caption.split(KEEP_TOKENS_SEPARATOR, 2)
    ]
    if len(parts) == 1:
        return [], parts[0], []
    return parts[0], parts[1], parts[2] if len(parts) > 2 else []


def is_stop_word(word: str) -> bool:
    """True for a word without content, as articles and prepositions are."""
    return word.casefold() in _STOP_WORDS


def are_tags(parts: Sequence[str]) -> bool:
    """True if each of the parts of a list, or of the lines of a text, is a tag and not a caption."""
    return all(map(_is_tag, parts)) and sum(map(_count_words, parts)) <= _MAX_MEAN_TAG_WORDS * len(parts)


def _is_tag(part: str) -> bool:
    is_short = _count_words(part) <= _MAX_TAG_WORDS
    return is_short and not re.search(r"[,，、]|[.!?。！？]$", part) and not is_stop_word(part.split()[0])


def _count_words(part: str) -> int:
    """Words between spaces; two characters of a script without spaces are about one."""
    return len(part.split()) + sum(map(len, _UNSPACED.findall(part))) // 2


def content_words(caption: str, trigger: str = "") -> list[str]:
    """Lower-case words without stop words, numbers and the trigger; character pairs for Chinese, Japanese and Thai.

    Each once, in the caption's order.
    """
    left_out = set(_words(trigger))
    return [word for word in dict.fromkeys(_words(caption)) if word not in left_out]


def most_common_words(captions: Collection[str]) -> tuple[WordCount, ...]:
    """The words that most captions have, at most `MAX_WORDS`; tags instead if most captions are lists of tags.

    Words of only one caption and single letters are left out.
    """
    lists = [{tag.casefold() for tag in parse_tags(caption)} for caption in captions]
    if 2 * sum(1 for tags in lists if tags) <= len(captions):
        lists = [set(content_words(caption)) for caption in captions]
    counts = Counter(word for words in lists for word in words)
    shared = ((word, count) for word, count in counts.items() if count > 1 and not (word.isascii() and len(word) == 1))
    # Equal counts in alphabetical order, so that the same data gives the same report.
    ranked = sorted(shared, key=lambda item: (-item[1], item[0]))
    return tuple(WordCount(word=word, images=count) for word, count in ranked[:MAX_WORDS])


def _words(caption: str) -> Iterator[str]:
    for word in _WORD.findall(_UNSPACED.sub(" ", caption.casefold().replace("_", " "))):
        if word not in _STOP_WORDS and not word.isdigit():
            yield word
    for run in _UNSPACED.findall(caption):
        yield from (run[start : start + 2] for start in range(max(1, len(run) - 1)))


def is_orientation_sensitive(caption: str) -> bool:
    """True if the caption would be wrong for the mirrored image."""
    return mentions_side(caption) or mentions_text(caption)


def mentions_side(caption: str) -> bool:
    """True if the caption names left or right, in one of a dozen languages, as a whole word (`left`, not `cleft`)."""
    return _SIDE_WORD.search(caption.casefold()) is not None


def mentions_text(caption: str) -> bool:
    """True if the caption mentions readable text: letters, a sign, words in quotation marks."""
    folded = _NO_TEXT.sub("", caption.casefold())
    return _QUOTED.search(folded) is not None or _TEXT_WORD.search(folded) is not None


def _any_word(words: Iterable[str], unspaced: str) -> re.Pattern[str]:
    # An underscore separates the words of a tag: `facing_left`.
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(words)})(?![^\W_])|{unspaced}")


_SIDE_WORD = _any_word(_SIDES, _SIDES_UNSPACED)
_TEXT_WORD = _any_word(_TEXT, _TEXT_UNSPACED)
