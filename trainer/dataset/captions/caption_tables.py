"""Caption tables: CSV, JSON lines, and the JSON forms that trainers write, one row for each image."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import PurePosixPath

from trainer.dataset.captions.delimited_text import MAX_ROWS, REST, Line, delimited_lines, markdown_tables
from trainer.dataset.captions.nested_records import flat_record
from trainer.dataset.captions.table_columns import (
    CAPTION_COLUMNS,
    FILE_COLUMNS,
    Columns,
    NamesImage,
    Record,
    TableError,
    captions_in,
    captions_of,
    choose_columns,
    class_of,
    file_name_in,
    known_columns,
    normalized,
)
from trainer.dataset.input_files import MARKDOWN_EXTENSION, TABLE_EXTENSIONS, has_image_name
from trainer.protocol.text import _

#: A `.txt` with one of these names is a table unless an image has the same name.
_TABLE_STEMS = ("caption", "captions", "metadata", "labels", "prompts", "descriptions")

#: An object whose first line is a brace alone, and what is between two of them.
_SPREAD_OBJECT, _NEXT_VALUE = re.compile(r"\ufeff?\s*\{[ \t]*[\r\n]"), re.compile(r"[\s,]*(?=[^\s,])")


@dataclass(frozen=True, kw_only=True)
class CaptionRow:
    """The labels of one image in a table."""

    #: Line of the table, from 1; 0 if the format has no lines.
    line: int
    #: Relative to the table's folder, or an absolute path on the author's machine.
    file: str
    #: Several captions of one image, or ("",) for an empty one; () if the table has none.
    captions: tuple[str, ...]
    class_name: str = ""


@dataclass(frozen=True, kw_only=True)
class SkippedRow:
    """A line or a record that cannot be read; the others are."""

    line: int
    #: A clause for a sentence.
    reason: str


@dataclass(frozen=True, kw_only=True)
class CaptionTable:
    """A table as it was read."""

    rows: tuple[CaptionRow, ...]
    skipped: tuple[SkippedRow, ...] = ()
    #: The column of the captions if it was chosen by its content; empty if its name is well known.
    caption_column: str = ""


def is_table_name(name: str) -> bool:
    """True if the name is that of a table, including `captions.txt` and similar names."""
    path = PurePosixPath(name.lower())
    return path.suffix in (*TABLE_EXTENSIONS, MARKDOWN_EXTENSION) or (
        path.suffix == ".txt" and path.stem in _TABLE_STEMS
    )


def read_table(
    name: str, text: str, *, caption_column: str = "", names_image: NamesImage = has_image_name
) -> CaptionTable:
    """Read a table in CSV, JSON lines or Markdown.

    Args:
        name: Its extension tells the format.
        text: Its content.
        caption_column: The column of the captions if a person chose it.
        names_image: True for the name of an image.

    Raises:
        TableError: No line can be read, or its columns are unknown.
    """
    if name.lower().endswith(MARKDOWN_EXTENSION):
        text = markdown_tables(text)
    are_json_lines = PurePosixPath(name.lower()).suffix in (".jsonl", ".ndjson")
    if text.lstrip("\ufeff \t\r\n").startswith("[" if are_json_lines else ("[", "{")):
        try:
            read = read_json(text, caption_column=caption_column, names_image=names_image)
        except TableError:
            # A line can begin with a bracket, too.
            if are_json_lines:
                raise
        else:
            if isinstance(read, CaptionTable):
                return read
    if are_json_lines:
        return _table(_json_lines(text), caption_column, names_image)
    return _table(delimited_lines(text, names_image), caption_column, names_image)


def read_json(
    text: str, *, caption_column: str = "", names_image: NamesImage = has_image_name
) -> tuple[str, ...] | CaptionTable:
    """Read a JSON file: the captions of a sidecar, or a table.

    Tables are a list of records, records or captions by file name (kohya's `meta_cap.json`), and COCO's annotations.

    Raises:
        TableError: It is not JSON, or has no captions.
    """
    try:
        value = _parse_json(text, 0)
    except TableError:
        lines = list(_json_lines(text))
        if len(lines) < 2 or isinstance(lines[0][1], str):
            raise
        return _table(lines, caption_column, names_image)
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        # A sidecar of Hydrus: a list of tags.
        return captions_in(value) or ("",)
    found: tuple[str, ...] | CaptionTable | None = None
    if isinstance(value, dict):
        found = _captions_or_rows(value, caption_column, names_image)
    if not found and (records := _records_in(value)):
        return _table(((0, _as_record(record, 0)) for record in records), caption_column, names_image)
    if not found:
        raise TableError(_("it is a JSON file without captions"))
    return found


def _records_in(value: object) -> Sequence[object]:
    """The records of a list, or of the lists of like objects in an object: `{"data": […]}`, `{"train": […], …}`."""
    if isinstance(value, dict):
        lists = [each for each in value.values() if isinstance(each, list) and each and isinstance(each[0], dict)]
        are_alike = len({frozenset(each[0]) for each in lists}) == 1
        return [*chain(*lists)] if are_alike else ()
    records = value if isinstance(value, list) else ()
    return [*chain.from_iterable(map(_posted, records))] if records and _posted(records[0]) else records


def _posted(record: object) -> Sequence[Record]:
    """The images of a post as Instagram and Facebook export it: one has its own caption, several that of the post."""
    if not isinstance(record, dict) or not isinstance(media := record.get("media"), list):
        return ()
    images = [each for each in media if isinstance(each, dict) and "uri" in each]
    return [
        {FILE_COLUMNS[0]: each["uri"], CAPTION_COLUMNS[0]: each.get("title") or record.get("title")} for each in images
    ]


def _captions_or_rows(
    value: dict[str, object], caption_column: str, names_image: NamesImage
) -> tuple[str, ...] | CaptionTable | None:
    """The captions of a sidecar, or else the rows of a table; () or None if it is neither."""
    if (records := _coco_records(value) or _records_of_columns(value)) is not None:
        return _table(((0, record) for record in records), caption_column, names_image)
    inner = [each for each in value.values() if isinstance(each, dict) and each and all(map(names_image, each))]
    if len(inner) == 1:
        return _named_rows(inner[0], caption_column, names_image)
    captions = _sidecar_captions(value, caption_column)
    if any(captions):
        return captions
    # A sidecar may have an empty caption.
    return _named_rows(value, caption_column, names_image) or captions


def _sidecar_captions(value: Record, caption_column: str) -> tuple[str, ...]:
    record = flat_record(value)
    columns = known_columns(record, caption_column)
    return captions_of(record, columns.captions, columns.tags)


def _table(lines: Iterable[Line], caption_column: str, names_image: NamesImage) -> CaptionTable:
    read = [(n, each if isinstance(each, str) else flat_record(each)) for n, each in islice(lines, MAX_ROWS + 1)]
    if len(read) > MAX_ROWS:
        raise TableError(_("it has more than {most} rows", most=f"{MAX_ROWS:,}"))
    records = [record for _number, record in read if not isinstance(record, str)]
    if not records:
        raise TableError(next((f"{reason}" for _number, reason in read if isinstance(reason, str)), _("it is empty")))
    columns = choose_columns(records, caption_column, names_image)
    rows: list[CaptionRow] = []
    skipped: list[SkippedRow] = []
    for number, record in read:
        row = record if isinstance(record, str) else _row(number, record, columns)
        if isinstance(row, str):
            skipped.append(SkippedRow(line=number, reason=row))
        else:
            rows.append(row)
    return CaptionTable(rows=tuple(rows), skipped=tuple(skipped), caption_column=columns.caption_by_content)


def _row(line: int, record: Record, columns: Columns) -> CaptionRow | str:
    """The row of a record, or why it has none."""
    file = next((name for each in columns.files if (name := file_name_in(record.get(each)))), "")
    if not file:
        return _("it names no file (in the column {column})", column=columns.files[0])
    if isinstance(rest := record.get(REST), tuple):
        last, joined = rest
        if last not in (*columns.captions[:1], *columns.tags[:1]):
            return _("it has more cells than the table has columns; captions with commas need quotes")
        record = {**record, last: joined}
    captions = captions_of(record, columns.captions, columns.tags)
    if captions == ("",) and any(isinstance(record.get(name), dict) and record[name] for name in columns.captions):
        return _("it has data instead of a caption (in the column {column})", column=columns.captions[0])
    return CaptionRow(
        line=line,
        file=file,
        captions=captions,
        class_name=class_of(record, columns.class_names),
    )


# -- JSON -------------------------------------------------------------------------------------------------------------


def _parse_json(text: str, line: int) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        at = line or getattr(error, "lineno", 1)
        raise TableError(_("its line {line} is not JSON", line=at)) from error
    return value


def _json_lines(text: str) -> Iterator[Line]:
    if _SPREAD_OBJECT.match(text):
        yield from _spread_objects(text.lstrip("\ufeff"))
        return
    # Not splitlines: a JSON string may contain an unescaped U+2028.
    for number, line in enumerate(re.split(r"\r\n?|\n", text), start=1):
        if bare := line.strip("\ufeff \t"):
            try:
                # The lines of a list without its brackets end with commas.
                yield number, _as_record(_parse_json(bare.removesuffix(","), number), number)
            except TableError as error:
                yield number, str(error)


def _spread_objects(text: str) -> Iterator[Line]:
    """Yield objects that extend over lines, one after the other."""
    decoder, at, line = json.JSONDecoder(), 0, 1
    while begins := _NEXT_VALUE.match(text, at):
        start = begins.end()
        line += text.count("\n", at, start)
        try:
            value, at = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            yield line, _("its line {line} is not JSON", line=line)
            # The next one that begins a line.
            at = text.find("\n{", start)
            if at < 0:
                return
        else:
            yield line, _as_record(value, line)
        line += text.count("\n", start, at)


def _as_record(value: object, line: int) -> Record | str:
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value):
        return {FILE_COLUMNS[0]: value[0], CAPTION_COLUMNS[0]: value[1]}
    where = _("its line {line}", line=line) if line else _("one of its records")
    return _("{where} is not a JSON object", where=where)


def _coco_records(value: Mapping[str, object]) -> list[Record] | None:
    """The captions of a COCO file: images with an id, annotations with the id of their image."""
    images, annotations = value.get("images"), value.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        return None
    files = {str(i.get("id")): i.get("file_name") for i in images if isinstance(i, dict)}
    return [{**a, "file_name": files.get(str(a.get("image_id")))} for a in annotations if isinstance(a, dict)]


def _records_of_columns(value: Mapping[str, object]) -> list[Record] | None:
    """The records of columns, as lists or by row number, as pandas writes them; None if there are none."""
    file = next((each for name, each in value.items() if normalized(name) in FILE_COLUMNS), None)
    if isinstance(file, list):
        columns = {name: dict(enumerate(each)) for name, each in value.items() if isinstance(each, list)}
        file = dict(enumerate(file))
    else:
        columns = {name: each for name, each in value.items() if isinstance(each, dict)}
    if not isinstance(file, dict) or not all(isinstance(each, str) for each in file.values()):
        return None
    columns = {name: each for name, each in columns.items() if each.keys() == file.keys()}
    return [{name: each[row] for name, each in columns.items()} for row in file] if len(columns) > 1 else None


def _named_rows(value: Mapping[str, object], caption_column: str, names_image: NamesImage) -> CaptionTable | None:
    """The rows of an object whose keys are names of files; None if they are not."""
    if not value or not all(
        isinstance(v, dict) or (isinstance(v, str | list) and names_image(k)) for k, v in value.items()
    ):
        return None
    lines: list[Line] = []
    for name, entry in value.items():
        record = entry if isinstance(entry, dict) else {CAPTION_COLUMNS[0]: entry}
        # The key is a number, or the name with the file's size behind it (VIA), and the name is within.
        is_named = names_image(name) or not any(names_image(file_name_in(record.get(each))) for each in FILE_COLUMNS)
        lines.append((0, {**record, FILE_COLUMNS[0]: name} if is_named else record))
    return _table(lines, caption_column, lambda text: text in value or names_image(text))
