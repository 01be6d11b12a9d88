"""Untrusted caption text: removes what is no caption, invisible and control characters, and detects mojibake."""

from __future__ import annotations

import html
import re
import unicodedata
from contextlib import suppress
from urllib.parse import unquote

#: Captions are cut here, wherever they come from: models read 75 tokens, or 512 with a T5, and each check of a caption
#: costs its length.
MAX_CAPTION_CHARACTERS = 4000
MAX_CLASS_CHARACTERS = 200
#: Of so many times the characters, invisible ones and spaces are removed.
_READ_FACTOR = 4

#: What people and language models write before a caption, as a heading or on the same line.
CAPTION_LABEL = (
    r"(?:(?:image |positive )?(?:caption|prompt|description)|(?:图片|图像|画面)?描述|(?:正向|正面)?提示词"
    r"|キャプション|説明|캡션|설명|(?:bild)?beschreibung|descripci[oó]n|descriç[aã]o|l[ée]gende|didascalia|descrizione|описание|подпись)"
)

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
#: Characters without a glyph that are not in category Cf.
_INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
_JOINERS = "\u200c\u200d"
#: Symbols that a joiner makes one emoji of, with their variation selector and skin tones.
_EMOJI = "\u2190-\u21ff\u2300-\u27bf\u2900-\u297f\u2b00-\u2bff\ufe0f\U0001f000-\U0001faff"
#: Arabic, Indic and other scripts of which a joiner is a part.
_JOINING = "\u0600-\u1cff"
_STRAY_JOINERS = re.compile(
    rf"(?<![{_EMOJI}{_JOINING}])[{_JOINERS}]+|[{_JOINERS}]+(?![{_EMOJI}{_JOINING}])|[{_JOINERS}]{{2,}}"
)
#: The flag of a part of a country, such as Scotland: a black flag and its code in tags, which hide text elsewhere.
_REGIONAL_FLAG = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f")
#: Emoji that are newer than Python's tables.
_NEW_EMOJI = re.compile("[\U0001f000-\U0001faff]")

#: What Stable Diffusion web UIs write below a prompt.
_PARAMETERS = re.compile(r"\bSteps: \d+, (?:Sampler|Schedule type|CFG scale|Seed)\b")
_BELOW_PROMPT = re.compile(r"\bNegative prompt:|\bSteps: \d+, ")
_NEGATIVE_LINE = re.compile(r"(?:^|[\r\n])\s*Negative prompt:")
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{1,6}|#x[0-9a-fA-F]{1,5});")

#: HTML's elements in the captions of web pages and boards; those around what is seen as separate become a space.
_ELEMENT = re.compile(
    r"</?(a|b|i|u|s|em|strong|small|sub|sup|span|font|p|br|div|li|ul|ol|h\d|hr)(\s[^<>]*|\s*/)?>", re.IGNORECASE
)
_INLINE = frozenset({"a", "b", "i", "u", "s", "em", "strong", "small", "sub", "sup", "span", "font"})
#: Networks that A1111 loads for a prompt, with the comma before them.
_NETWORK = re.compile(
    r"^(?:<(?:lora|lyco|hypernet):[^<>]*> ?)+,?|,?\s{0,8}<(?:lora|lyco|hypernet):[^<>]*>", re.IGNORECASE
)
#: The words and the thoughts of language models: Florence's and BLIP's tokens, chat templates, reasoning.
_MODEL_TOKEN = re.compile(
    r"<(?:pad|unk|bos|eos|sep|cls)>|<\|[\w-]{1,30}\|>|\[(?:SEP|CLS|PAD)\]|<think>.*?(?:</think>|\Z)"
    r"|\A\s*<s>|</s>\s*\Z|<(?:MORE_)?(?:DETAILED_)?CAPTION>:?",
    re.DOTALL,
)
#: What chat templates put before an answer.
_QUESTION = re.compile(
    r"\s*(?:(?:user|human): ?.*?\bassistant:|\[inst\].*?\[/inst\]|#{2,3} ?(?:response|answer|assistant):)",
    re.DOTALL | re.IGNORECASE,
)
#: What a language model offers below its answer.
_OFFER = re.compile(
    r"let me know|would you like|feel free|(?:i )?hope this|is there anything|if you(?:['’]d| would| need| want)"
    r"|如果您?你?(?:需要|想|还)|希望(?:这|对)|需要我",
    re.IGNORECASE,
)
_BOLD, _QUOTED = re.compile(r"\*\*([^*\n]+)\*\*"), re.compile(r'["“]([^"“”]+)["”]')
#: Words in quotation marks from which on they are a caption, and not a text in the image.
_MIN_QUOTED_WORDS = 3
#: What Midjourney reads behind a prompt, and what is around one in its messages: `**a cat --ar 3:2** - <@12> (fast)`.
_MIDJOURNEY_OPTIONS = re.compile(r"(?:\s--[a-z]{1,8}\b(?:[ \t](?!--)[^\s*]+)*){1,20}\Z")
_MIDJOURNEY_MESSAGE = re.compile(r"\*\*(?P<prompt>[^*]+)\*\* - [^\n]{0,60}<@!?\d+>.*", re.DOTALL)
#: Without a mark of all these, a line is as it was written.
_WRAPPED = re.compile(r'\*\*|["“\\%]| --|\A(?:user|human|\[inst|##)|\d\)?,?\Z', re.IGNORECASE)
#: A tag with the confidence of a tagger: `1girl: 0.98`, `solo (0.9)`.
_SCORED_TAG = re.compile(r"\s*(?P<tag>[^\s(].*?)(?:\s*[:=]\s*|\s+)\(?(?:0?\.\d+|1\.0+)\)?\s*")
#: What programs write where there is no text, and the errors of spreadsheets.
_NO_TEXT = re.compile(r"nan|NaN|None|null|NULL|N/A|<NA>|undefined|#(N/A|NAME\?|REF!|VALUE!|DIV/0!|NULL!|NUM!)")

#: What a decoder writes for invalid bytes.
_REPLACEMENT = "\ufffd"
_EAST_ASIAN = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef]")
#: Share of a caption's GB 18030 bytes that must form East Asian text in UTF-8. Real Chinese of three or more
#: characters never does.
_MIN_UTF8 = 0.8
#: Share of the characters decoded as GB 18030 that must be among its 3,755 common ones.
_MIN_COMMON = 0.7


def clean_caption(text: str) -> str:
    """The caption in a text, cleaned: without the parameters and networks of a generator, and without HTML.

    Empty for what programs write where there is none, such as `nan`.
    """
    text = text[: _READ_FACTOR * MAX_CAPTION_CHARACTERS]
    text = _unwrapped(_MODEL_TOKEN.sub(" ", text))
    end = _BELOW_PROMPT.search(text) if _PARAMETERS.search(text) else _NEGATIVE_LINE.search(text)
    if end:
        text = text[: end.start()]
    text = _ELEMENT.sub(lambda element: "" if element[1].lower() in _INLINE else " ", _NETWORK.sub("", text.lstrip()))
    text = clean_text(_ENTITY.sub(lambda entity: html.unescape(entity[0]), text))
    return "" if _NO_TEXT.fullmatch(text) else text


def _unwrapped(text: str) -> str:
    """A caption without what language models, taggers and generators put around it."""
    text = text.strip()
    if "\n" not in text and _WRAPPED.search(text) is None:
        return text
    if message := _MIDJOURNEY_MESSAGE.fullmatch(text):
        text = message["prompt"].strip()
    if " --" in text:
        text = _MIDJOURNEY_OPTIONS.sub("", text)
    if question := _QUESTION.match(text):
        text = text[question.end() :].strip()
    lines = text.splitlines()
    if len(lines) > 2 and not lines[-2].strip() and _OFFER.match(lines[-1].strip()):
        text = "\n".join(lines[:-2])
    text = _BOLD.sub(r"\1", text)
    if (quoted := _QUOTED.fullmatch(text)) and len(text.split()) >= _MIN_QUOTED_WORDS:
        text = quoted[1]
    if " " not in text and text.count("%20") > 1:
        text = unquote(text)
    elif len(lines) == 1:
        # Line ends as JSON and programs write them.
        text = text.replace("\\r\\n", "\n").replace("\\n", "\n")
    return _without_scores(text)


def _without_scores(text: str) -> str:
    """Tags without the confidence of a tagger, if each has one; other texts as they are."""
    parts = re.split(r"[,\n]", text.strip(" ,"))
    if len(parts) < 2 or not text.rstrip(" ,)")[-1:].isdecimal():
        return text
    scored = [_SCORED_TAG.fullmatch(part) if len(part) < MAX_CLASS_CHARACTERS else None for part in parts]
    return ", ".join(match["tag"] for match in scored if match) if all(scored) else text


def clean_text(text: str, most: int = MAX_CAPTION_CHARACTERS) -> str:
    """The text on one line, without ANSI sequences, control, bidi and zero-width characters, cut after `most`.

    Joiners stay within an emoji and within words of scripts that need them.
    """
    text = _ANSI.sub("", text[: _READ_FACTOR * most])
    flags = {at for flag in _REGIONAL_FLAG.finditer(text) for at in range(*flag.span())}
    kept = "".join(
        char for at, char in enumerate(text) if char.isspace() or char in _JOINERS or at in flags or _is_visible(char)
    )
    line = unicodedata.normalize("NFC", " ".join(_STRAY_JOINERS.sub("", kept).split()))
    if len(line) <= most:
        return line
    head, _space, _cut_word = line[: most + 1].rpartition(" ")
    return (head or line[:most]).rstrip().rstrip(_JOINERS)


def _is_visible(char: str) -> bool:
    # Cf contains the bidi controls, zero-width spaces, and byte order marks.
    category = unicodedata.category(char)
    if category == "Cn":
        return _NEW_EMOJI.match(char) is not None
    return category not in ("Cc", "Cf", "Cs", "Co") and char not in _INVISIBLE


def _is_frequent_gb(code: bytes) -> bool:
    """True for the 3,755 common characters of GB 2312: rows 16-55, within A1-FE in both bytes."""
    return len(code) == 2 and 0xB0 <= code[0] <= 0xD7 and code[1] >= 0xA1


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
