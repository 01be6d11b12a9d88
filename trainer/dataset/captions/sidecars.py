"""The texts beside images: what is written in one, and the image that each belongs to."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import eq
from pathlib import PurePosixPath

from trainer.dataset.captions.caption_tables import CaptionTable, read_json
from trainer.dataset.captions.caption_text import CAPTION_LABEL, MAX_CAPTION_CHARACTERS, clean_caption
from trainer.dataset.captions.caption_words import are_tags, content_words, is_stop_word
from trainer.dataset.captions.table_columns import MAX_CAPTIONS, TableError
from trainer.dataset.input_files import CAPTION_EXTENSIONS, SourceEntry, composed, has_image_name, same_name_key
from trainer.protocol.text import _

#: The rest of a text is not read; captions are cut long before.
_MAX_READ_CHARACTERS = 64 * 1024
#: Share of the words with an underscore, two at least, from which on the words of a line are tags.
_MIN_UNDERSCORES = 0.25
#: Share of the content words of the shorter line that lines about the same image have in common.
_MIN_COMMON_WORDS = 0.25
_NUMBER = re.compile(r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
#: Numbers in a line of a detector's file (YOLO, DOTA, KITTI): a box or more, and their least share of its words.
_MIN_COORDINATES, _MIN_NUMBERS, _MAX_BOX_WORDS = 4, 0.75, 100
#: How a language model begins that does not describe the image.
_REFUSAL = re.compile(
    r"(?:(?:i['’]?m|i am) )?(?:very )?sorry\b.{0,12}\bi (?:can['’]?t|cannot|am unable to|am not able to)\b"
    r"|i(?: can['’]?t| cannot| am unable to|['’]m unable to) (?:assist|help|describe|identify|provide|fulfill|comply)"
    r"|as an ai\b",
    re.IGNORECASE,
)
#: What a language model says before its description, and the properties above a note (Obsidian).
_PREAMBLE = re.compile(
    r"(?:here(?:['’]s| is| are)|sure|certainly|of course)\b[^\n]{0,120}:\s*\n+"
    r"|(?:好的|当然|以下是|这是)[^\n]{0,60}[:：]\s*\n+"
    r"|---\s*\n(?:[^\n]{0,200}\n){1,30}?---\s*\n+",
    re.IGNORECASE,
)
#: What is written before tags.
_TAGS_LABEL = r"(?:tags|keywords|标签|关键词)"
_HEADING = re.compile(
    rf"(?:[#*_]{{1,6}} ?{CAPTION_LABEL}[:：]?[*_]{{0,3}}[:：]?[ \t]*[\r\n]|{CAPTION_LABEL} ?[:：])\s*", re.IGNORECASE
)
#: A line of a text that has one for each property.
_FIELD = re.compile(r"[#*_ ]{0,6}(?P<name>[^\W\d][\w ]{0,24}?)[*_]{0,3} ?[:：][*_]{0,3}\s*(?P<text>\S.*)")
_MARKUP = re.compile(r"<(?:!doctype|html|\?xml)\b", re.IGNORECASE)
#: An object as Python prints it, or a list of them.
_PYTHON = re.compile(r"\[?\{'[^'\n]{1,60}': |\['[^\n]{0,4000}'\]\Z")
#: An error, or data instead of words. An image can have words such as "Error: try again" in it.
_OUTPUT = re.compile(
    r"traceback \(most recent|\[object object\]|tensor\(|\{\"error\"|[a-z\d+/=]{80,}\Z"
    r"|(?-i:[\w.]{0,80}\w(?:Error|Exception)): |error(?: code)?: ?(?:\w+ (?-i:E[A-Z]{5,})"
    r"|\d{3}[ -]{1,3}(?:too many|bad |unauthorized|forbidden|not found|internal|service|gateway|\{)"
    r"|(?:failed|unable|could not|cannot|can['’]t|no module|connection|request|invalid|timed? ?out|rate limit)\b"
    r"|(?:cuda )?out of memory)",
    re.IGNORECASE,
)
#: The times of subtitles (SubRip, WebVTT).
_SUBTITLES = re.compile(r"(?:WEBVTT\b|(?:\d{1,6}\s*\n)?\s*(?:\d{1,3}:)?\d\d:\d\d[.,]\d{3} --> )")
#: Names of what cameras and programs store in images, without spaces; the least number and share of them in some lines.
_PROPERTIES_TEXT = """
make model camera cameramake cameramodel lens lensmodel iso isospeed isospeedratings fnumber fstop aperture
aperturevalue shutterspeed shutterspeedvalue exposure exposuretime exposureprogram exposuremode exposurebias
exposurebiasvalue exposurecompensation focallength focallengthinmmfilm flash whitebalance meteringmode filename
filesize filetype filetypeextension filemodificationdatetime mimetype imagewidth imageheight imagesize dimensions
datetime datetimeoriginal datetimedigitized datetaken createdate modifydate software orientation xresolution
yresolution resolutionunit colorspace bitdepth megapixels gpslatitude gpslongitude gpsposition gpsaltitude
"""
_PROPERTIES = frozenset(_PROPERTIES_TEXT.split())
_MIN_PROPERTIES, _MIN_PROPERTY_SHARE, _MAX_PROPERTIES = 3, 0.5, 200
#: The name of an image before its caption.
_OWN_NAME = re.compile(
    r"(?P<stem>[^\n]{1,200})\.(?:png|jpe?g|webp|gif|bmp|avif|heic|tiff?)\s{0,4}[:：=–—-]{1,2}>?\s{1,4}", re.IGNORECASE
)
#: The captions among which a language model lets one choose, each behind its number: `**Option 1 (short):** a cat`.
_OPTION = re.compile(
    r"(?m)^[#*_> \t-]{0,8}"
    r"(?:option|version|variant|variation|alternative|caption|prompt|description|选项|方案|版本|描述) ?"
    r"(?:#?\d{1,2}|[一二三四五]|[A-E]\b)[*_]{0,3} ?(?:[(（][^()（）\n]{1,60}[)）])?[*_]{0,3}[ \t]*"
    r"(?:[:：.–—-]+[*_]{0,3}|$)[ \t]*",
    re.IGNORECASE,
)
_MAX_TITLE_WORDS = 5
#: The mark before each line of a list.
_LIST_MARK = re.compile(r"(?:[-*•‣]|\d{1,2}[.)])\s+")
#: Folders of texts beside or below those of images, and folders of images.
_TEXT_FOLDER = re.compile(
    r"(captions?|texts?|txts?|tags?|labels?|anno?(tation)?s?|prompts?|descriptions?|meta(data)?|jsons?)"
    r"([_ -]?(files?|data|txt))?"
)
_IMAGE_FOLDER = re.compile(r"(im(g|age)s?|pics?|pictures?|photos?|frames?)([_ -]?(files?|data))?")
#: Of a page or of a file, such as git-annex leaves.
_ADDRESS = re.compile(r"\s*(?:[a-z]+://|\.{0,2}/(?=\S*/)|[a-z]:\\(?=\S*\.\w+\s*\Z))\S+\s*", re.IGNORECASE)

#: What Google Takeout puts behind the name of an image, cut where the whole would be too long, and the number that it
#: takes from the image's name: `cat.jpg.supplemental-metadata(1).json` for `cat(1).jpg`; until 2024, `cat.jpg(1).json`.
_TAKEOUT = re.compile(r"(?P<stem>.+?)(?P<ending>\.\w+)(?:\.(?P<mark>s[a-z-]*))?(?P<number>\(\d+\))?")
_TAKEOUT_MARK = "supplemental-metadata"

#: Images of one name that a text of another folder is compared with.
_MAX_NAMESAKES = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """A caption and its source; `problem` if it cannot be read."""

    source: str
    text: str = ""
    #: Further captions of the same image.
    others: tuple[str, ...] = ()
    problem: str = ""

    @classmethod
    def of(cls, source: str, texts: Sequence[str]) -> Caption:
        """The captions of an image as one."""
        return cls(source=source, text=next(iter(texts), ""), others=tuple(texts[1:MAX_CAPTIONS]))


def read_sidecar(source: str, content: str) -> Caption:
    """Read the text beside an image."""
    content = content[:_MAX_READ_CHARACTERS].strip("\ufeff \t\r\n\0\x1a")
    # Some write the name of the image before its caption.
    stem, own = PurePosixPath(source.rpartition("!")[2]).stem, _OWN_NAME.match(content)
    content = content[own.end() :] if own and own["stem"] == stem else content
    if problem := _problem_of(content):
        return Caption(source=source, problem=problem)
    return Caption.of(source, _captions_in_json(content) or captions_in_lines(content))


def _problem_of(content: str) -> str:
    """Why a text is no caption, as a clause; empty if it may be one."""
    if content.startswith("{\\rtf"):
        return _("it is RTF, not plain text; save it as plain text")
    lines = content.splitlines()
    if _are_boxes(lines):
        return _("it has the boxes of a detector, not a caption")
    if _are_properties(lines):
        return _("it has the properties of a file, not a caption")
    if _SUBTITLES.match(content):
        return _("it has the subtitles of a film, not a caption")
    if content.startswith("version https://git-lfs.github.com/"):
        return _("it is a pointer of Git LFS; the text itself is fetched by git lfs pull")
    if _MARKUP.match(content):
        return _("it is a web page, or XML, and not a caption")
    if _PYTHON.match(content):
        return _("it is written in Python's notation; write it as JSON, or as plain text")
    if _OUTPUT.match(content):
        return _("it is the output of a program, not a caption")
    if _ADDRESS.fullmatch(content):
        return _("it has an address, not a caption")
    return _("a model refused to describe the image") if _REFUSAL.match(content) else ""


def _are_boxes(lines: Sequence[str]) -> bool:
    """True for boxes, with nothing else but settings of one word."""
    boxes = [_is_box(line.split()) for line in lines if " " in line.strip()]
    return bool(boxes) and all(boxes)


def _is_box(words: Sequence[str]) -> bool:
    numbers = sum(_NUMBER.fullmatch(word) is not None for word in words[:_MAX_BOX_WORDS])
    return numbers >= _MIN_COORDINATES and numbers >= _MIN_NUMBERS * min(len(words), _MAX_BOX_WORDS)


def _are_properties(lines: Sequence[str]) -> bool:
    """True for what EXIF has about a photograph, without a description."""
    names = [re.split("[:=：]", line, maxsplit=1)[0].strip() for line in lines[:_MAX_PROPERTIES] if line.strip()]
    found = sum("".join(re.findall("[a-z]+", name.lower())).removeprefix("exif") in _PROPERTIES for name in names)
    has_caption = any(re.fullmatch(CAPTION_LABEL, name, re.IGNORECASE) for name in names)
    return found >= max(_MIN_PROPERTIES, _MIN_PROPERTY_SHARE * len(names)) and not has_caption


def _captions_in_json(content: str) -> tuple[str, ...]:
    """The captions of JSON in a text, as language models answer; () if it is none: brackets are common in prompts."""
    if content.startswith("```") and content.endswith("```"):
        language, _line_end, inner = content.strip("`").partition("\n")
        content = inner.strip() if not language.strip() or language.strip().isalnum() else content
    if content.startswith(("{", "[")):
        try:
            read = read_json(content)
        except TableError:
            return ()
        return () if isinstance(read, CaptionTable) else read
    return ()


def captions_in_lines(content: str) -> tuple[str, ...]:
    """The captions in a text of one line or more.

    Lines are tags (gallery-dl, Hydrus), captions of the same image (kohya's `enable_wildcard`, OneTrainer), or parts of
    one text. Two captions of one image have words in common, two sentences of one description hardly.
    """
    content = _PREAMBLE.sub("", content, count=1) if _PREAMBLE.match(content) else content
    if options := _options(content):
        return options
    if labeled := _labeled_caption(content):
        return (labeled,)
    content = _HEADING.sub("", content, count=1) if _HEADING.match(content) else content
    whole = clean_caption(content)
    split = content[: 4 * MAX_CAPTION_CHARACTERS].strip().splitlines()
    # What is no part of the caption, such as a generator's parameters, is no line of it either.
    lines = [line for line in dict.fromkeys(map(clean_caption, split)) if line and line in whole]
    if all(map(_LIST_MARK.match, lines)) and (len(lines) > 1 or content.startswith("1")):
        lines = [_LIST_MARK.sub("", line, count=1) for line in lines]
    if len(lines) < 2:
        line = next(iter(lines), whole)
        return (", ".join(line.split()) if _are_spaced_tags(line) else line,)
    if are_tags(lines):
        return (clean_caption(", ".join(lines)),)
    is_in_paragraphs = any(not each.strip() for each in split)
    return tuple(lines[:MAX_CAPTIONS]) if not is_in_paragraphs and _are_alike(lines) else (whole,)


def _options(content: str) -> tuple[str, ...]:
    """The captions of which a language model offers several; () for other texts."""
    before, *options = _OPTION.split(content[: 4 * MAX_CAPTION_CHARACTERS])
    if len(options) < 2 or (before.strip() and not before.rstrip().endswith((":", "："))):
        return ()
    # What it says after the last one is no part of it.
    split = [[*filter(str.strip, re.split(r"\n\s*\n|\n[*_-]{3,}", option.strip()))] for option in options]
    if all(len(parts[0].splitlines()) == 1 < len(parts) and _is_title(parts[0]) for parts in split if parts):
        split = [parts[1:] for parts in split]
    elif all("\n" in parts[0] and _is_title(parts[0].splitlines()[0]) for parts in split if parts):
        split = [[parts[0].partition("\n")[2]] for parts in split if parts]
    captions = [clean_caption(parts[0]).strip('*_"“” ') for parts in split if parts]
    return tuple(dict.fromkeys(filter(None, captions)))


def _is_title(line: str) -> bool:
    return len(line.split()) <= _MAX_TITLE_WORDS and not line.rstrip("*_ ").endswith((".", "。"))


def _labeled_caption(content: str) -> str:
    """The caption and the tags in a text with a name before each line, such as `Caption: a cat`; empty for others."""
    fields: list[tuple[str, str]] = []
    for line in filter(str.strip, content[: 4 * MAX_CAPTION_CHARACTERS].splitlines()):
        if (field := _FIELD.fullmatch(line.strip())) is None:
            return ""
        fields.append((field["name"], field["text"]))
    labeled = (
        next((text for name, text in fields if re.fullmatch(label, name, re.IGNORECASE)), "")
        for label in (CAPTION_LABEL, _TAGS_LABEL)
    )
    return clean_caption(", ".join(filter(None, labeled)))


def _are_spaced_tags(line: str) -> bool:
    """True for the tags of a board in one line: `1girl long_hair solo`."""
    words = line.split()
    with_underscore = sum("_" in word.strip("_") for word in words)
    return (
        with_underscore >= max(2, _MIN_UNDERSCORES * len(words))
        and "," not in line
        and not any(map(is_stop_word, words))
    )


def _are_alike(lines: Sequence[str]) -> bool:
    first, *others = (set(content_words(line)) for line in lines[:MAX_CAPTIONS])
    return all(
        min(len(first), len(other)) > 0 and len(first & other) >= _MIN_COMMON_WORDS * min(len(first), len(other))
        for other in others
    )


class Sidecars:
    """Captions by the names of their images."""

    def __init__(self) -> None:
        #: By scope, path without the extension, and extension.
        self._by_path: dict[tuple[int, str, str], Caption] = {}
        #: The paths that differ in case only.
        self._by_folded: dict[tuple[int, str, str], list[str]] = defaultdict(list)
        #: Scope and path of each image, with and without its extension.
        self._images: set[tuple[int, str]] = set()
        self._folded_images: set[tuple[int, str]] = set()
        #: By the source of the image: the text of another folder that has its name.
        self._elsewhere: dict[str, Caption] = {}
        self._used_sources: set[str] = set()

    def add(self, entry: SourceEntry, caption: Caption) -> None:
        path, extension = _image_path(entry.path), PurePosixPath(entry.path).suffix.lower()
        self._by_path[entry.scope, path, extension] = caption
        self._by_folded[entry.scope, same_name_key(path), extension].append(path)

    def join(self, images: Iterable[SourceEntry]) -> None:
        """Note the images; call it before `has_image` and `of`."""
        for image in images:
            for name in _names(image):
                self._images.add((image.scope, name))
                self._folded_images.add((image.scope, same_name_key(name)))

    def find_elsewhere(self, images: Sequence[SourceEntry]) -> None:
        """Find the images of texts in a folder of texts: `captions/cat.txt` for `images/cat.png`.

        Call it once all texts were added. The folders of both are the same except for one, which is named as one of
        texts or of images. A folder that holds images is none of texts: the image of this text is gone, or has another
        format now.
        """
        by_name: dict[tuple[int, str], list[SourceEntry]] = defaultdict(list)
        with_images = {(image.scope, PurePosixPath(image.path).parent.parts) for image in images}
        for image in images:
            for name in {composed(PurePosixPath(each).name) for each in _names(image)}:
                by_name[image.scope, same_name_key(name)].append(image)
        for (scope, path, _extension), caption in self._by_path.items():
            pure, name = PurePosixPath(path), PurePosixPath(path).name
            belongs: Callable[[Sequence[str], Sequence[str]], bool] = _are_parallel
            if (scope, same_name_key(path)) in self._folded_images:
                continue
            if (scope, pure.parent.parts) in with_images:
                # `cat.jpg.txt`, whose image is `cat.png` now.
                name, belongs = pure.stem if has_image_name(name) else "", eq
            namesakes = by_name.get((scope, same_name_key(name)), [])
            if len(namesakes) <= _MAX_NAMESAKES:
                folders = [(image, PurePosixPath(image.path).parent.parts) for image in namesakes]
                near = [image for image, folder in folders if belongs(pure.parent.parts, folder)]
                if len(near) == 1:
                    self._elsewhere.setdefault(near[0].source, caption)

    def has_image(self, entry: SourceEntry) -> bool:
        """True if an image has the name of this text."""
        return (entry.scope, same_name_key(_image_path(entry.path))) in self._folded_images

    def of(self, image: SourceEntry) -> Iterator[Caption]:
        """Yield `cat.txt` and `cat.png.txt` for `cat.png`, in the order of `CAPTION_EXTENSIONS`.

        `CAT.txt` too, unless there is `cat.txt`, or `CAT.png`, to which it belongs. The text of another folder only if
        there is no other.
        """
        names = _names(image)
        found = [
            caption
            for extension in CAPTION_EXTENSIONS
            for name in names
            if (caption := self._find(image.scope, name, extension))
        ]
        if not found and (elsewhere := self._elsewhere.get(image.source)):
            found = [elsewhere]
        self._used_sources.update(caption.source for caption in found)
        yield from found

    def _find(self, scope: int, name: str, extension: str) -> Caption | None:
        if (exact := self._by_path.get((scope, name, extension))) is not None:
            return exact
        paths = self._by_folded.get((scope, same_name_key(name), extension), [])
        free = [path for path in paths if (scope, path) not in self._images]
        return self._by_path[scope, free[0], extension] if len(free) == 1 else None

    def unused(self) -> Iterator[str]:
        yield from (c.source for c in self._by_path.values() if c.source not in self._used_sources)


def _are_parallel(texts: Sequence[str], images: Sequence[str]) -> bool:
    """True if the folders are equal without one of each, and that is named as a folder of texts or of images."""
    shortest = min(len(texts), len(images))
    before = next((i for i in range(shortest) if texts[i] != images[i]), shortest)
    left = shortest - before
    after = next((i for i in range(left) if texts[-1 - i] != images[-1 - i]), left)
    of_texts, of_images = texts[before : len(texts) - after], images[before : len(images) - after]
    return max(len(of_texts), len(of_images)) == 1 and (
        any(_TEXT_FOLDER.fullmatch(name.lower()) for name in of_texts)
        or any(_IMAGE_FOLDER.fullmatch(name.lower()) for name in of_images)
    )


def _names(image: SourceEntry) -> tuple[str, str]:
    return _stem(image.path), composed(image.path)


def _stem(path: str) -> str:
    return composed(str(PurePosixPath(path).with_suffix("")))


def _image_path(path: str) -> str:
    """The path of the image that a text belongs to, with or without its ending."""
    stem = _stem(path)
    if PurePosixPath(stem).suffix.lower() in CAPTION_EXTENSIONS:
        # Windows hides the ending, so that people write it once more.
        return _stem(stem)
    takeout = _TAKEOUT.fullmatch(stem) if path.lower().endswith(".json") else None
    if takeout and _TAKEOUT_MARK.startswith(takeout["mark"] or "") and has_image_name(f"x{takeout['ending']}"):
        return f"{takeout['stem']}{takeout['number'] or ''}{takeout['ending']}"
    return stem
