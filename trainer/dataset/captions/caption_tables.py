"""Caption tables: CSV, JSON lines, and the JSON forms that trainers write, one row for each image."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath

from trainer.dataset.captions.caption_text import MAX_CAPTION_CHARACTERS, MAX_CLASS_CHARACTERS, clean_text
from trainer.dataset.input_files import TABLE_EXTENSIONS, has_image_name
from trainer.protocol.text import _

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

#: Rows of one table: more than a dataset may have images.
MAX_ROWS = 50_000
_DELIMITERS = ",;\t|"
#: A `.txt` with one of these names is a table unless an image has the same name.
_TABLE_STEMS = ("caption", "captions", "metadata", "labels", "prompts", "descriptions")


class TableError(ValueError):
    """A table cannot be read; the message is a clause for a sentence, with the line."""


@dataclass(frozen=True, kw_only=True)
class CaptionRow:
    """The labels of one image in a table."""

    #: Line of the table, from 1; 0 if the format has no lines.
    line: int
    #: Relative to the table's folder, or an absolute path on the author's machine.
    file: str
    caption: str
    class_name: str = ""


def is_table_name(name: str) -> bool:
    """True if the name is that of a table, including `captions.txt` and similar names."""
    path = PurePosixPath(name.lower())
    return path.suffix in TABLE_EXTENSIONS or (path.suffix == ".txt" and path.stem in _TABLE_STEMS)


def read_table(name: str, text: str) -> tuple[CaptionRow, ...]:
    """Read a table in CSV or JSON lines.

    Raises:
        TableError: A line cannot be read, or the columns are unknown.
    """
    is_json = PurePosixPath(name.lower()).suffix in (".jsonl", ".ndjson")
    return _within_limit(_json_lines(text) if is_json else _csv_rows(text))


def read_json(text: str) -> str | tuple[CaptionRow, ...]:
    """Read a JSON file: the caption of a sidecar, or the rows of a table (kohya's `meta_cap.json`, a list of records).

    Raises:
        TableError: It is not JSON, or has no captions.
    """
    value = _parse_json(text, 0)
    if isinstance(value, list):
        return _within_limit(_record_row(record, 0) for record in value)
    if isinstance(value, dict):
        if caption := caption_in(value):
            return caption
        rows = _within_limit(_named_row(name, entry) for name, entry in value.items() if isinstance(entry, dict | str))
        if rows and len(rows) == len(value) and all(isinstance(v, dict) or has_image_name(k) for k, v in value.items()):
            return rows
        # A sidecar with an empty caption.
        if _by_column(value).keys() & {*CAPTION_COLUMNS, *TAG_COLUMNS}:
            return ""
    raise TableError(_("it is a JSON file without captions"))


def _within_limit(rows: Iterable[CaptionRow]) -> tuple[CaptionRow, ...]:
    read = tuple(islice(rows, MAX_ROWS + 1))
    if len(read) > MAX_ROWS:
        raise TableError(_("it has more than {most} rows", most=f"{MAX_ROWS:,}"))
    return read


def caption_in(record: Mapping[str, object]) -> str:
    """The caption of a record followed by its tags, as in kohya's `merge_dd_tags`; empty if it has neither."""
    keys = _by_column(record)
    captions = [text for column in CAPTION_COLUMNS if (text := _text_of(keys.get(column)))]
    tags = [text for column in TAG_COLUMNS if (text := _text_of(keys.get(column)))]
    return clean_text(", ".join([*captions[:1], *tags[:1]]))


def _text_of(value: object) -> str:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list | dict):
        # Tags, or tags with the tagger's confidence. No more of them are read than can be left.
        tags = islice((part for part in value if isinstance(part, str)), MAX_CAPTION_CHARACTERS)
        return clean_text(", ".join(text for part in tags if (text := clean_text(part, MAX_CLASS_CHARACTERS))))
    return ""


def _by_column(record: Mapping[str, object]) -> dict[str, object]:
    return {_column(str(key)): value for key, value in record.items()}


def _column(name: str) -> str:
    return name.strip().strip("\ufeff").lower().replace(" ", "_").replace("-", "_")


def _parse_json(text: str, line: int) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        at = line or getattr(error, "lineno", 1)
        raise TableError(_("its line {line} is not JSON", line=at)) from error
    return value


def _json_lines(text: str) -> Iterator[CaptionRow]:
    # Not splitlines: a JSON string may contain an unescaped U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _record_row(_parse_json(line, number), number)


def _record_row(record: object, line: int) -> CaptionRow:
    where = _("its line {line}", line=line) if line else _("one of its records")
    if not isinstance(record, dict):
        raise TableError(_("{where} is not a JSON object", where=where))
    keys = _by_column(record)
    file = next((name for column in FILE_COLUMNS if isinstance(name := keys.get(column), str) and name.strip()), "")
    if not file:
        raise TableError(_("{where} names no file (for example as file_name)", where=where))
    return CaptionRow(line=line, file=file.strip(), caption=caption_in(record), class_name=_class_in(keys))


def _named_row(name: str, entry: dict[str, object] | str) -> CaptionRow:
    if isinstance(entry, str):
        return CaptionRow(line=0, file=name, caption=clean_text(entry))
    return CaptionRow(line=0, file=name, caption=caption_in(entry), class_name=_class_in(_by_column(entry)))


def _class_in(keys: Mapping[str, object]) -> str:
    found = (keys[column] for column in CLASS_COLUMNS if keys.get(column) not in (None, ""))
    value = next(found, "")
    return clean_text(str(value), MAX_CLASS_CHARACTERS) if isinstance(value, str | int) else ""


def _csv_rows(text: str) -> Iterator[CaptionRow]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    for delimiter in _DELIMITERS:
        _line, cells = next(_read_cells(first, delimiter), (1, []))
        columns = [_column(cell) for cell in cells]
        if set(columns) & set(FILE_COLUMNS) and len(columns) > 1:
            return _rows_with_header(text, delimiter, columns)
        if len(cells) > 1 and has_image_name(cells[0].strip()):
            return _rows_without_header(text, delimiter)
    raise TableError(_("its line 1 names no known columns (for example file_name and caption)"))


def _read_cells(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise TableError(_("its line {line} cannot be read ({error})", line=reader.line_num, error=error)) from error


def _rows_with_header(text: str, delimiter: str, columns: Sequence[str]) -> Iterator[CaptionRow]:
    rows = _read_cells(text, delimiter)
    next(rows)
    last = len(columns) - 1
    for line, cells in rows:
        # A caption in the last column often contains the delimiter without quotes.
        joined = [*cells[:last], delimiter.join(cells[last:])]
        yield _record_row(dict(zip(columns, joined, strict=False)), line)


def _rows_without_header(text: str, delimiter: str) -> Iterator[CaptionRow]:
    for line, cells in _read_cells(text, delimiter):
        if not cells[0].strip():
            raise TableError(_("its line {line} names no file", line=line))
        yield CaptionRow(line=line, file=cells[0].strip(), caption=clean_text(delimiter.join(cells[1:])))
