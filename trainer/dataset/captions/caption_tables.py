"""Caption tables: CSV, JSON lines, and the JSON forms that trainers write, one row for each image."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath

from trainer.dataset.captions.table_columns import (
    CAPTION_COLUMNS,
    CLASS_COLUMNS,
    FILE_COLUMNS,
    TAG_COLUMNS,
    Columns,
    NamesImage,
    Record,
    TableError,
    captions_of,
    choose_columns,
    class_of,
    known_columns,
    normalized,
)
from trainer.dataset.input_files import TABLE_EXTENSIONS, has_image_name
from trainer.protocol.text import _

#: Rows of one table: more than a dataset may have images.
MAX_ROWS = 50_000
_DELIMITERS = ",;\t|"
#: Excel's first line, which names the delimiter.
_SEPARATOR_LINE = re.compile(r"sep=(.)\s*", re.IGNORECASE)
#: A `.txt` with one of these names is a table unless an image has the same name.
_TABLE_STEMS = ("caption", "captions", "metadata", "labels", "prompts", "descriptions")
#: Lines by which the delimiter is found.
_JUDGED_LINES = 50
#: Lines and characters of a quoted cell, after which its quote counts as never closed.
_MAX_CELL_LINES, _MAX_CELL_CHARACTERS = 40, 64 * 1024
#: After so many quotes that are never closed, no more are looked for in further lines.
_MAX_SEARCHES = 1000
#: Cells of a line in which a name of an image is looked for, and those that are read; the last one has the rest.
_MAX_SEARCHED, _MAX_CELLS = 100, 1000
#: Key of the cells beyond the last column: the name of this column, and it with all that follows.
_REST = "\0rest"


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


#: A line and what is in it, or why it cannot be read.
_Line = tuple[int, Record | str]


def is_table_name(name: str) -> bool:
    """True if the name is that of a table, including `captions.txt` and similar names."""
    path = PurePosixPath(name.lower())
    return path.suffix in TABLE_EXTENSIONS or (path.suffix == ".txt" and path.stem in _TABLE_STEMS)


def read_table(
    name: str, text: str, *, caption_column: str = "", names_image: NamesImage = has_image_name
) -> CaptionTable:
    """Read a table in CSV or JSON lines.

    Args:
        name: Its extension tells the format.
        text: Its content.
        caption_column: The column of the captions if a person chose it.
        names_image: True for the name of an image.

    Raises:
        TableError: No line can be read, or its columns are unknown.
    """
    if PurePosixPath(name.lower()).suffix in (".jsonl", ".ndjson"):
        if text.lstrip("\ufeff \t\r\n").startswith("["):
            read = read_json(text, caption_column=caption_column, names_image=names_image)
            if isinstance(read, CaptionTable):
                return read
        return _table(_json_lines(text), caption_column, names_image)
    return _table(_csv_lines(text, names_image), caption_column, names_image)


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
    if isinstance(value, dict) and len(value) == 1 and isinstance(inner := next(iter(value.values())), list):
        # `{"data": […]}`
        value = inner if all(isinstance(each, dict) for each in inner) and inner else value
    if isinstance(value, list):
        return _table(((0, _as_record(record, 0)) for record in value), caption_column, names_image)
    if isinstance(value, dict):
        if (records := _coco_records(value)) is not None:
            return _table(((0, record) for record in records), caption_column, names_image)
        columns = known_columns(value, caption_column)
        captions = captions_of(value, columns.captions, columns.tags)
        if any(captions):
            return captions
        if (table := _named_rows(value, caption_column, names_image)) is not None:
            return table
        if captions:
            # A sidecar with an empty caption.
            return captions
    raise TableError(_("it is a JSON file without captions"))


def _table(lines: Iterable[_Line], caption_column: str, names_image: NamesImage) -> CaptionTable:
    read = list(islice(lines, MAX_ROWS + 1))
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
    file = next((name for each in columns.files if isinstance(name := record.get(each), str) and name.strip()), "")
    if not file:
        return _("it names no file (in the column {column})", column=columns.files[0])
    if isinstance(rest := record.get(_REST), tuple):
        last, joined = rest
        if last not in (*columns.captions[:1], *columns.tags[:1]):
            return _("it has more cells than the table has columns; captions with commas need quotes")
        record = {**record, last: joined}
    return CaptionRow(
        line=line,
        file=file.strip(),
        captions=captions_of(record, columns.captions, columns.tags),
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


def _json_lines(text: str) -> Iterator[_Line]:
    # Not splitlines: a JSON string may contain an unescaped U+2028.
    for number, line in enumerate(re.split(r"\r\n?|\n", text), start=1):
        if line.strip("\ufeff \t"):
            try:
                yield number, _as_record(_parse_json(line.strip("\ufeff"), number), number)
            except TableError as error:
                yield number, str(error)


def _as_record(value: object, line: int) -> Record | str:
    if isinstance(value, dict):
        return value
    where = _("its line {line}", line=line) if line else _("one of its records")
    return _("{where} is not a JSON object", where=where)


def _coco_records(value: Mapping[str, object]) -> list[Record] | None:
    """The captions of a COCO file: images with an id, annotations with the id of their image."""
    images, annotations = value.get("images"), value.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        return None
    files = {str(i.get("id")): i.get("file_name") for i in images if isinstance(i, dict)}
    return [{**a, "file_name": files.get(str(a.get("image_id")))} for a in annotations if isinstance(a, dict)]


def _named_rows(value: Mapping[str, object], caption_column: str, names_image: NamesImage) -> CaptionTable | None:
    """The rows of an object whose keys are names of files; None if they are not."""
    if not value or not all(
        isinstance(v, dict) or (isinstance(v, str | list) and names_image(k)) for k, v in value.items()
    ):
        return None
    lines: list[_Line] = []
    for name, entry in value.items():
        record = {**entry} if isinstance(entry, dict) else {CAPTION_COLUMNS[0]: entry}
        lines.append((0, {**record, FILE_COLUMNS[0]: name}))
    return _table(lines, caption_column, lambda text: text in value or names_image(text))


# -- CSV --------------------------------------------------------------------------------------------------------------


def _csv_lines(text: str, names_image: NamesImage) -> Iterator[_Line]:
    lines = list(io.StringIO(text.lstrip("\ufeff"), newline=""))
    first = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    named = _SEPARATOR_LINE.fullmatch(lines[first].strip("\r\n")) if first < len(lines) else None
    first += named is not None
    delimiter = named[1] if named else _find_delimiter(lines[first : first + _JUDGED_LINES], names_image)
    rows = _read_cells(lines, first, delimiter, names_image)
    number, cells = next(rows, (0, []))
    if not cells:
        return
    if _is_header(cells, names_image):
        yield from _below_header(cells, rows, delimiter)
    else:
        yield from _without_header([(number, cells), *islice(rows, MAX_ROWS + 1)], delimiter, names_image)


def _find_delimiter(lines: Sequence[str], names_image: NamesImage) -> str:
    """The delimiter that separates names of images from something else in most lines."""

    def names(delimiter: str) -> tuple[int, int]:
        split = [cells for line in lines if len(cells := _bare_cells(line, delimiter)) > 1]
        header = {normalized(cell) for cell in split[0]} if split else set()
        known = header & {*FILE_COLUMNS, *CAPTION_COLUMNS, *TAG_COLUMNS, *CLASS_COLUMNS}
        return sum(any(map(names_image, cells)) for cells in split), len(known)

    # The first of equals.
    return max(_DELIMITERS, key=names)


def _is_header(cells: Sequence[str], names_image: NamesImage) -> bool:
    return any(normalized(cell) in FILE_COLUMNS for cell in cells) or not any(map(names_image, cells))


def _below_header(header: Sequence[str], rows: Iterable[tuple[int, list[str]]], delimiter: str) -> Iterator[_Line]:
    columns = [cell.strip() or f"({index})" for index, cell in enumerate(header, start=1)]
    last = len(columns) - 1
    for line, cells in rows:
        record: dict[str, object] = {}
        for column, cell in zip(columns, cells, strict=False):
            record.setdefault(column, cell)
        if any(cell.strip() for cell in cells[last + 1 :]):
            # A caption in the last column often contains the delimiter without quotes.
            record[_REST] = columns[last], delimiter.join(cells[last:])
        yield line, record


def _without_header(rows: Sequence[tuple[int, list[str]]], delimiter: str, names_image: NamesImage) -> Iterator[_Line]:
    """The image in the first cell or in the last, and all others together are its caption."""
    first = sum(names_image(cells[0]) for _line, cells in rows)
    is_last = sum(names_image(cells[-1]) for _line, cells in rows if len(cells) > 1) > first
    for line, cells in rows:
        file, others = (cells[-1], cells[:-1]) if is_last else (cells[0], cells[1:])
        yield line, {FILE_COLUMNS[0]: file, CAPTION_COLUMNS[0]: delimiter.join(others)}


def _read_cells(
    lines: Sequence[str], start: int, delimiter: str, names_image: NamesImage
) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each line, or of the lines over which a quoted cell extends."""
    is_quoted = delimiter != "\t" or _is_quoted(lines[start:])
    index, searches = start, _MAX_SEARCHES
    while index < len(lines):
        line, taken = lines[index], 1
        if is_quoted and '"' in line:
            ends = index + (_MAX_CELL_LINES if searches else 1)
            found = _quoted_cells(lines[index:ends], delimiter, names_image)
            taken, cells = found or (1, _repaired(line, delimiter))
            searches -= found is None and searches > 0
        else:
            cells = line.rstrip("\r\n").split(delimiter, _MAX_CELLS)
        if any(cell.strip() for cell in cells):
            yield index + 1, cells
        index += taken


def _is_quoted(lines: Sequence[str]) -> bool:
    """Whether cells between tabs are quoted: programs do so only where a cell has quotes, tabs or line ends."""
    if len({line.count("\t") for line in lines if line.strip()}) > 1:
        return True
    cells = [cell for line in lines if '"' in line for cell in line.rstrip("\r\n").split("\t")]
    is_opened = any(cell.startswith('"') and not cell.endswith('"') for cell in cells)
    is_closed = any(cell.endswith('"') and not cell.startswith('"') for cell in cells)
    return (is_opened and is_closed) or any('""' in line or line.startswith('"') for line in lines)


def _quoted_cells(lines: Sequence[str], delimiter: str, names_image: NamesImage) -> tuple[int, list[str]] | None:
    """The number of lines and the cells of the first line, which has quotes; None if these are not the quotes of CSV.

    The lines after a quote that is never closed are not part of its cell: they name images themselves.
    """
    if (cells := _strict_cells(lines[0], delimiter)) is not None:
        return 1, cells
    joined = lines[0]
    names = any(map(names_image, _bare_cells(joined, delimiter)))
    for taken, line in enumerate(lines[1:], start=2):
        names_another = any(map(names_image, _bare_cells(line, delimiter)))
        joined += line
        if (names and names_another) or len(joined) > _MAX_CELL_CHARACTERS:
            return None
        names = names or names_another
        if '"' in line and (cells := _strict_cells(joined, delimiter)) is not None:
            return taken, cells
    return None


def _strict_cells(text: str, delimiter: str) -> list[str] | None:
    """The cells of a well-formed record; quotes within a cell are doubled, or follow a backslash."""
    for escape in (None, "\\") if '\\"' in text else (None,):
        cells = _parsed(text, delimiter, escape)
        if cells is not None and any(cell.startswith(" ") and cell.lstrip().startswith('"') for cell in cells):
            # A space before each quote, as people write.
            cells = _parsed(text, delimiter, escape, skips_space=True)
        if cells is not None:
            return cells
    return None


def _parsed(text: str, delimiter: str, escape: str | None, *, skips_space: bool = False) -> list[str] | None:
    reader = csv.reader(
        [text],
        delimiter=delimiter,
        strict=True,
        skipinitialspace=skips_space,
        escapechar=escape,
        doublequote=escape is None,
    )
    try:
        return next(reader, None)
    except csv.Error:
        return None


def _repaired(line: str, delimiter: str) -> list[str]:
    """The cells of a line whose quotes are no quotes of CSV; one that is never closed is left out."""
    is_open = line.count('"') % 2 == 1
    cells = []
    for cell in line.rstrip("\r\n").split(delimiter, _MAX_CELLS):
        bare = cell.strip()
        if len(bare) > 1 and bare[0] == bare[-1] == '"':
            cell = bare[1:-1]
        elif is_open and bare.startswith('"'):
            cell = bare[1:]
        cells.append(cell)
    return cells


def _bare_cells(line: str, delimiter: str) -> list[str]:
    """Roughly the cells of a line, without quotes, to look for names of images."""
    return [cell.strip().strip('"') for cell in line.split(delimiter, _MAX_SEARCHED)]
