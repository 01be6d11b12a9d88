"""Tables that name pictures and say something of each: CSV, JSON lines, and JSON in the shapes that trainers write."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from trainer.dataset.captions.caption_sources import clean
from trainer.dataset.kinds import TABLE_EXTENSIONS, has_image_name

FILE_COLUMNS = (
    "file_name",
    "filename",
    "file",
    "image",
    "image_path",
    "image_name",
    "img",
    "path",
    "file_path",
    "name",
)
CAPTION_COLUMNS = ("caption", "text", "prompt", "description", "blip_caption", "captions", "comment")
TAG_COLUMNS = ("tags", "tag_string")
CLASS_COLUMNS = ("class", "class_name", "label", "category", "concept", "style")

_DELIMITERS = ",;\t|"
#: A `.txt` of this name is a table where no picture has it.
_TABLE_STEMS = ("caption", "captions", "metadata", "labels", "prompts", "descriptions")


class TableError(ValueError):
    """A table that cannot be read; the message is a clause for a sentence, with the line."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a table says of one picture."""

    #: Line of the table, from 1; 0 where the format has none.
    line: int
    #: Relative to the table's folder, or with a path that only its author's machine has.
    file: str
    caption: str
    class_name: str = ""


def is_table_name(name: str) -> bool:
    """True for a table by its extension, `captions.txt` and its like included."""
    path = PurePosixPath(name.lower())
    return path.suffix in TABLE_EXTENSIONS or (path.suffix == ".txt" and path.stem in _TABLE_STEMS)


def read_table(name: str, text: str) -> tuple[Row, ...]:
    """The rows of a table that is no plain JSON.

    Raises:
        TableError: a line cannot be read, or the columns are not known.
    """
    if PurePosixPath(name.lower()).suffix in (".jsonl", ".ndjson"):
        return tuple(_json_lines(text))
    return tuple(_csv_rows(text))


def read_json(text: str) -> str | tuple[Row, ...]:
    """The caption that a JSON sidecar holds, or the rows of a JSON table (kohya's `meta_cap.json`, a list of records).

    Raises:
        TableError: it is no JSON, or holds no captions.
    """
    value = _parsed(text, 0)
    if isinstance(value, list):
        return tuple(_record_row(record, 0) for record in value)
    if isinstance(value, dict):
        if caption := caption_in(value):
            return caption
        rows = tuple(_named_row(name, held) for name, held in value.items() if isinstance(held, dict | str))
        if rows and len(rows) == len(value) and all(isinstance(v, dict) or has_image_name(k) for k, v in value.items()):
            return rows
        # A sidecar whose caption is empty is still one.
        if _keys(value).keys() & {*CAPTION_COLUMNS, *TAG_COLUMNS}:
            return ""
    raise TableError("it is a JSON file that holds no captions")


def caption_in(record: Mapping[str, object]) -> str:
    """The caption of a record, its tags behind it as kohya's `merge_dd_tags` puts them; empty if it has none."""
    keys = _keys(record)
    captions = [words for column in CAPTION_COLUMNS if (words := _words(keys.get(column)))]
    tags = [words for column in TAG_COLUMNS if (words := _words(keys.get(column)))]
    return ", ".join([*captions[:1], *tags[:1]])


def _words(value: object) -> str:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list | dict):
        # Tags, or tags with the tagger's certainty.
        return ", ".join(words for part in value if isinstance(part, str) and (words := clean(part)))
    return ""


def _keys(record: Mapping[str, object]) -> dict[str, object]:
    return {_column(str(key)): value for key, value in record.items()}


def _column(name: str) -> str:
    return name.strip().strip("\ufeff").lower().replace(" ", "_").replace("-", "_")


def _parsed(text: str, line: int) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        at = line or getattr(error, "lineno", 1)
        raise TableError(f"its line {at} is no JSON") from error
    return value


def _json_lines(text: str) -> Iterator[Row]:
    # Not splitlines: a JSON string may hold U+2028 as it is.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _record_row(_parsed(line, number), number)


def _record_row(record: object, line: int) -> Row:
    where = f"its line {line}" if line else "one of its records"
    if not isinstance(record, dict):
        raise TableError(f"{where} is no JSON object")
    keys = _keys(record)
    file = next((name for column in FILE_COLUMNS if isinstance(name := keys.get(column), str) and name.strip()), "")
    if not file:
        raise TableError(f"{where} names no file (as file_name, say)")
    return Row(line=line, file=file.strip(), caption=caption_in(record), class_name=_class_in(keys))


def _named_row(name: str, held: dict[str, object] | str) -> Row:
    if isinstance(held, str):
        return Row(line=0, file=name, caption=clean(held))
    return Row(line=0, file=name, caption=caption_in(held), class_name=_class_in(_keys(held)))


def _class_in(keys: Mapping[str, object]) -> str:
    found = (keys[column] for column in CLASS_COLUMNS if keys.get(column) not in (None, ""))
    value = next(found, "")
    return clean(str(value)) if isinstance(value, str | int) else ""


def _csv_rows(text: str) -> Iterator[Row]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    for delimiter in _DELIMITERS:
        cells = next(csv.reader([first], delimiter=delimiter), [])
        columns = [_column(cell) for cell in cells]
        if set(columns) & set(FILE_COLUMNS) and len(columns) > 1:
            return _records(text, delimiter, columns)
        if len(cells) > 1 and has_image_name(cells[0].strip()):
            return _pairs(text, delimiter)
    raise TableError("its line 1 names no columns that are known (file_name and caption, say)")


def _read_cells(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise TableError(f"its line {reader.line_num} cannot be read ({error})") from error


def _records(text: str, delimiter: str, columns: Sequence[str]) -> Iterator[Row]:
    rows = _read_cells(text, delimiter)
    next(rows)
    last = len(columns) - 1
    for line, cells in rows:
        # A caption in the last column often holds the delimiter, unquoted.
        joined = [*cells[:last], delimiter.join(cells[last:])]
        yield _record_row(dict(zip(columns, joined, strict=False)), line)


def _pairs(text: str, delimiter: str) -> Iterator[Row]:
    for line, cells in _read_cells(text, delimiter):
        if not cells[0].strip():
            raise TableError(f"its line {line} names no file")
        yield Row(line=line, file=cells[0].strip(), caption=clean(delimiter.join(cells[1:])))
