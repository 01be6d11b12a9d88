"""Chooses the columns of a caption table: the image, its captions, its tags and its class."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from trainer.dataset.captions.caption_text import (
    MAX_CAPTION_CHARACTERS,
    MAX_CLASS_CHARACTERS,
    clean_caption,
    clean_text,
)
from trainer.dataset.captions.caption_words import are_tags
from trainer.protocol.text import _

FILE_COLUMNS = (
    *("file_name", "filename", "file", "image", "image_path", "image_name", "img", "path", "file_path", "name"),
    *("image_file", "img_path", "filepath", "file_url", "image_url", "url", "target"),
    *("image_id", "key", "id"),
)
#: The answer of a model comes before what it was asked.
CAPTION_COLUMNS = (
    *("caption", "text", "response", "prompt", "positive_prompt", "positive", "description", "blip_caption"),
    *("captions", "comment"),
)
TAG_COLUMNS = ("tags", "tag_string")
CLASS_COLUMNS = ("class", "class_name", "label", "category", "concept", "style")
#: Never captions, whatever is in them.
_OTHER_COLUMNS = {
    *("id", "index", "url", "source", "author", "artist", "license", "split", "date", "created_at", "rating"),
    *("model", "sampler", "negative_prompt", "negative", "lang", "language", "user", "username", "comment_number"),
}

#: A list in a caption column is captions of one image, unless so much of it is single words: then it is tags.
_MIN_TAGS = 0.5
#: More captions of one image are not read.
MAX_CAPTIONS = 16
#: Rows by which columns are judged.
JUDGED_ROWS = 200
#: Share of a column's values that must be text.
_MIN_TEXT = 0.5
#: Mean words of a value, or characters where no spaces are between words, from which on it is a sentence.
_SENTENCE_WORDS, _SENTENCE_CHARACTERS = 3, 8
#: Single words of which each occurs twice as a rule are a category.
_MAX_DISTINCT = 0.5
_NAMED_COLUMNS = 20

#: Numbers, dates, addresses, checksums and truth values.
_NO_TEXT = re.compile(
    r"[\d\W_]*|[a-z]+://\S*|\S+@\S+\.\S+|[0-9a-f]{16,}|[0-9a-f-]{36}|true|false|yes|no|none|null|nan|train|test|val(idation)?",
    re.IGNORECASE,
)

#: A row of any format: values by the names of their columns.
Record = Mapping[str, object]
#: True for the name of an image.
NamesImage = Callable[[str], bool]


class TableError(ValueError):
    """A table, or one of its rows, cannot be read; the message is a clause for a sentence."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of a table's columns by what they hold."""

    #: Of these and of the captions, the first one that is filled counts.
    files: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    #: Chosen by its content, as its name says nothing; empty if the names do.
    caption_by_content: str = ""


def normalized(column: str) -> str:
    """A column's name without differences in spelling."""
    return column.strip().strip("\ufeff").lower().replace(" ", "_").replace("-", "_")


def choose_columns(records: Sequence[Record], caption_column: str, names_image: NamesImage) -> Columns:
    """Choose the columns by well-known names, or else by their content.

    Args:
        records: The rows.
        caption_column: The column of the captions if a person chose it, or "".
        names_image: True for the name of an image.

    Raises:
        TableError: No column names images or has captions, or several may have.
    """
    names = list(dict.fromkeys(name for record in records for name in record if not isinstance(record[name], tuple)))
    judged = {
        name: [record[name] for record in records[:JUDGED_ROWS] if _is_filled(record.get(name))] for name in names
    }
    files = _file_columns(judged, names_image)
    others = [name for name in names if name != files[0]]
    class_names = _known(others, CLASS_COLUMNS)
    if caption_column:
        return Columns(files=files, captions=named_columns(others, caption_column), class_names=class_names)
    captions, tags = _known(others, CAPTION_COLUMNS), _known(others, TAG_COLUMNS)
    unknown = [name for name in others if name not in (*captions, *tags, *class_names)]
    if any(map(judged.get, (*captions, *tags))) and not _is_question(captions, judged):
        return Columns(files=files, captions=captions, tags=tags, class_names=class_names)
    try:
        column = text_column({name: judged[name] for name in unknown}, names_image)
    except TableError:
        if not (captions or tags):
            raise
        column = ""
    if not column and not (captions or tags or class_names):
        message = _("none of its columns has captions ({columns})", columns=_listed(names))
        raise TableError(message)
    found = (column,) if column else captions
    return Columns(files=files, captions=found, tags=tags, class_names=class_names, caption_by_content=column)


def _is_question(captions: Sequence[str], judged: Mapping[str, Sequence[object]]) -> bool:
    """True if the only captions are one prompt in all rows: the model's answers are in another column."""
    filled = [name for name in captions if judged[name]]
    values = judged[filled[0]] if [*map(normalized, filled)] == ["prompt"] else []
    return len(values) > 1 and all(value == values[0] for value in values)


def _file_columns(judged: Mapping[str, Sequence[object]], names_image: NamesImage) -> tuple[str, ...]:
    """The column that names most images, and after it those with well-known names."""
    # Widths can be numbers of images, but many images have the same.
    named = {name: {*filter(names_image, map(file_name_in, values))} for name, values in judged.items()}
    counts = {name: len(found) for name, found in named.items()}
    best = max(counts.values(), default=0)
    known = _known(judged, FILE_COLUMNS)
    for name in known:
        if judged[name] and file_name_in(judged[name][0]) and 2 * counts[name] >= best:
            return tuple(dict.fromkeys((name, *known)))
    if not best:
        raise TableError(_("none of its columns names images ({columns})", columns=_listed(judged)))
    candidates = [name for name, count in counts.items() if count == best]
    if any(named[name] != named[candidates[0]] for name in candidates):
        message = _(
            "each of its columns {columns} names images; call the one with the images to train on file_name",
            columns=_listed(candidates),
        )
        raise TableError(message)
    return (candidates[0], *known)


def file_name_in(value: object) -> str:
    """The name of a file in a value, which can be a number, or a list of one; empty if it is none."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""


def named_columns(names: Sequence[str], column: str) -> tuple[str, ...]:
    """The columns that a person named.

    Raises:
        TableError: There is none of that name.
    """
    chosen = tuple(name for name in names if normalized(name) == normalized(column))
    if not chosen:
        message = _("it has no column {column}; its columns are {columns}", column=column, columns=_listed(names))
        raise TableError(message)
    return chosen


def text_column(judged: Mapping[str, Sequence[object]], names_image: NamesImage) -> str:
    """The only column with text, or the only one with sentences; "" if none has text.

    Raises:
        TableError: Several columns have.
    """
    texts = {
        name: _texts(values, names_image) for name, values in judged.items() if normalized(name) not in _OTHER_COLUMNS
    }
    candidates = [name for name, found in texts.items() if found and not _is_category(found)]
    if len(candidates) > 1:
        sentences = [name for name in candidates if _are_sentences(texts[name])]
        if len(sentences) != 1:
            message = _(
                "each of its columns {columns} may have the captions; choose one with --caption-column NAME, or with "
                "the field “Caption column” of /dataset upload",
                columns=_listed(sentences or candidates),
            )
            raise TableError(message)
        candidates = sentences
    return next(iter(candidates), "")


def _texts(values: Sequence[object], names_image: NamesImage) -> list[str]:
    """The values as text; empty if most of them are numbers, addresses, names of files."""
    parts = [value[0] if isinstance(value, list) and value else value for value in values]
    found = [part for part in parts if isinstance(part, str) and not _NO_TEXT.fullmatch(part) and not names_image(part)]
    return found if len(found) > _MIN_TEXT * len(values) else []


def _is_category(texts: Sequence[str]) -> bool:
    return all(len(text.split()) == 1 for text in texts) and len(set(texts)) <= _MAX_DISTINCT * len(texts)


def _are_sentences(texts: Sequence[str]) -> bool:
    words = sum(len(text.split()) for text in texts)
    characters = sum(char > "\u2e7f" for text in texts for char in text)
    return words >= _SENTENCE_WORDS * len(texts) or characters >= _SENTENCE_CHARACTERS * len(texts)


def captions_of(record: Record, captions: Sequence[str], tags: Sequence[str]) -> tuple[str, ...]:
    """The captions of a record, each followed by its tags, as in kohya's `merge_dd_tags`.

    ("",) if there is only an empty one, () if it has none of these columns.
    """
    texts: tuple[str, ...] = next((found for name in captions if (found := captions_in(record.get(name)))), ())
    tagged = next((text for name in tags if (text := _tags_in(record.get(name), name))), "")
    if not texts and not tagged:
        return ("",) if any(name in record for name in (*captions, *tags)) else ()
    return tuple(
        dict.fromkeys(
            clean_caption(f"{text}, {tagged}" if text and tagged else text or tagged) for text in texts or ("",)
        )
    )


def class_of(record: Record, class_names: Sequence[str]) -> str:
    """The class of a record; empty if it has none."""
    value = next((record[name] for name in class_names if record.get(name) not in (None, "")), "")
    return clean_text(str(value), MAX_CLASS_CHARACTERS) if isinstance(value, str | int) else ""


def known_columns(record: Record, caption_column: str = "") -> Columns:
    """The columns of one record alone, by their names."""
    chosen = (column for column in record if caption_column and normalized(column) == normalized(caption_column))
    return Columns(
        captions=(*chosen, *_known(record, CAPTION_COLUMNS)),
        tags=_known(record, TAG_COLUMNS),
        class_names=_known(record, CLASS_COLUMNS),
    )


def captions_in(value: object) -> tuple[str, ...]:
    """The captions in one value: a text, a list of them, or tags."""
    if isinstance(value, str):
        return (text,) if (text := clean_caption(value)) else ()
    if isinstance(value, list):
        read = (_text_in(part) for part in islice(value, MAX_CAPTION_CHARACTERS))
        parts = [part for part in read if isinstance(part, str) and part.strip()]
        if len(parts) > 1 and (
            are_tags(parts) or sum(len(part.split()) == 1 for part in parts) > _MIN_TAGS * len(parts)
        ):
            return (_joined(parts),)
        cleaned = dict.fromkeys(clean_caption(part) for part in parts[:MAX_CAPTIONS])
        return tuple(text for text in cleaned if text)
    if not isinstance(value, dict) or not value:
        return ()
    if named := _known(value, CAPTION_COLUMNS):
        return next((found for name in named if (found := captions_in(value[name]))), ())
    if texts := [text for text in value.values() if isinstance(text, str) and not _NO_TEXT.fullmatch(text)]:
        # Captions by the model that wrote them.
        cleaned = dict.fromkeys(map(clean_caption, texts[:MAX_CAPTIONS]))
        return tuple(text for text in cleaned if text)
    # Tags with their scores, or lists of them; other objects are settings.
    are_tags_of_kinds = all(isinstance(each, int | float | list) for each in value.values())
    return (_joined(_tag_names(value)),) if are_tags_of_kinds else ()


def _text_in(value: object) -> object:
    """The text of an object in a list of captions: `{"text": …, "model": …}`."""
    return next((value[name] for name in CAPTION_COLUMNS if name in value), "") if isinstance(value, dict) else value


def _tags_in(value: object, column: str) -> str:
    if isinstance(value, str):
        # Boards write `1girl red_hair`: tags with underscores, spaces between them.
        is_spaced = "," not in value and ("_" in value or normalized(column) == "tag_string") and len(value.split()) > 1
        return _joined(value.split()) if is_spaced else clean_caption(value)
    return _joined(_tag_names(value))


def _tag_names(value: object) -> Iterator[str]:
    """Yield tags: a list, tags with the tagger's confidence, or lists of tags by their kind."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _tag_names(inner) if isinstance(inner, list | dict) else (str(name),)
    elif isinstance(value, list):
        # Danbooru's dumps have objects with an id, a name and a category.
        names = (part.get("name") if isinstance(part, dict) else part for part in value)
        yield from (name for name in names if isinstance(name, str))


def _joined(tags: Iterator[str] | Sequence[str]) -> str:
    # No more of them are read than can be left.
    cleaned = (clean_text(tag, MAX_CLASS_CHARACTERS) for tag in islice(tags, MAX_CAPTION_CHARACTERS))
    return clean_caption(", ".join(tag for tag in cleaned if tag))


def _known(names: Sequence[str] | Mapping[str, object], well_known: Sequence[str]) -> tuple[str, ...]:
    """The columns with well-known names, in the order of these."""
    by_name: dict[str, str] = {}
    for name in names:
        by_name.setdefault(normalized(name), name)
    return tuple(by_name[each] for each in well_known if each in by_name)


def _is_filled(value: object) -> bool:
    return value not in (None, "") and not (isinstance(value, str) and not value.strip())


def _listed(names: Sequence[str] | Mapping[str, object]) -> str:
    shown = [clean_text(name, MAX_CLASS_CHARACTERS)[:60] or "“”" for name in islice(names, _NAMED_COLUMNS)]
    return ", ".join(shown) + (", …" if len(names) > _NAMED_COLUMNS else "")
