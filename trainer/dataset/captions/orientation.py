"""Captions of pictures that must not be mirrored: they name a side, or say that something can be read."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: In the languages that captions come in. Some have a second sense ("she left", "chain links", "tout droit"):
#: a picture too few is mirrored, which costs a little variety; a picture too many teaches a falsehood.
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

_NOTHING_TO_READ = re.compile(r"\b(?:no|without|ohne|sans|sin|без)[ _](?:any[ _])?(?:text|watermark|logo|signature)\w*")
#: What stands in quotation marks is mostly what can be read in the picture.
_QUOTED = re.compile(r"""["“”„«「『《][^"“”„«»「」『』《》]{2,}["“”»」』》]|(?<!\w)['‘][^'‘’]{2,40}['’](?!\w)""")


def forbids_flip(caption: str) -> bool:
    """True if the picture says something else when it is mirrored."""
    return mentions_side(caption) or mentions_text(caption)


def mentions_side(caption: str) -> bool:
    """True if it names left or right, in one of a dozen languages, as a whole word (`left`, not `cleft`)."""
    return _SIDE.search(caption.casefold()) is not None


def mentions_text(caption: str) -> bool:
    """True if it says that something can be read: text, letters, a sign, words in quotation marks."""
    folded = _NOTHING_TO_READ.sub("", caption.casefold())
    return _QUOTED.search(folded) is not None or _READABLE.search(folded) is not None


def _pattern(words: Iterable[str], unspaced: str) -> re.Pattern[str]:
    # An underscore parts the words of a tag: `facing_left`.
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(words)})(?![^\W_])|{unspaced}")


_SIDE = _pattern(_SIDES, _SIDES_UNSPACED)
_READABLE = _pattern(_TEXT, _TEXT_UNSPACED)
