"""Splits the text of a caption table into records: CSV with any delimiter, tables in Markdown, and lists of images."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, compress, groupby, islice, takewhile

from trainer.dataset.captions.caption_text import CAPTION_LABEL
from trainer.dataset.captions.table_columns import (
    CAPTION_COLUMNS,
    CLASS_COLUMNS,
    FILE_COLUMNS,
    TAG_COLUMNS,
    NamesImage,
    Record,
    normalized,
)
from trainer.dataset.captions.table_images import names_image_file
from trainer.protocol.text import _

#: Rows of one table: more than a dataset may have images.
MAX_ROWS = 50_000
#: The last is that of LaTeX.
_DELIMITERS = ",;\t|，；&"
#: A line of a list: `cat.png: a cat`, `- cat.png => a cat`, `"my cat.png" a cat`.
_LIST_LINE = re.compile(
    r"""\s*(?:[-*•]\s+|\d{1,4}[.)]\s+)?["'`*]{0,2}(?P<file>[^\t|;,"'`*]{1,300}?\.\w{2,5})["'`*]{0,2}"""
    r"""(?:\s{0,8}(?:[:：]{1,2}\*{0,2}|[→–—]|[-=]{1,8}>?|>>?)\s{0,8}|\s{1,8})(?P<text>\S.*)"""
)
#: A line that has the name of an image alone, above the lines of its caption: `cat.png`, `[cat.png]`, `## cat.png`.
_NAME_LINE = re.compile(
    r"""[#*\["'`\s]{0,8}(?:\d{1,4}[.)]\s)?(?:(?:file|image|file ?name|图片|文件名?) ?[:：]\s{0,8})?"""
    r"""(?P<file>[^\t|,;，；*"'`[\]]{1,300}?\.\w{2,5})[\]*"'`:：\s]{0,8}""",
    re.IGNORECASE,
)
_CAPTION_MARK = re.compile(rf"\A{CAPTION_LABEL} ?[:：]\s{{0,8}}", re.IGNORECASE)
#: The ending of a name; captions have none as a rule, and thousands of texts are asked.
_ENDING = re.compile(r"\.\w{2,5}\b")
#: Attributes or coordinates, as in CelebA's lists.
_NUMBER = r"[-+]?\d[\d.]*(?:[eE][-+]?\d+)?"
_NUMBERS = re.compile(rf"{_NUMBER}(?:[\s,;|]+{_NUMBER})*")
#: Excel's first line, which names the delimiter.
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
#: Lines by which the delimiter is found, and those by which a text of any name is a list of images.
_JUDGED_LINES, _LISTED_LINES = 50, 5
#: Lines and characters of a quoted cell, after which its quote counts as never closed.
_MAX_CELL_LINES, _MAX_CELL_CHARACTERS = 40, 64 * 1024
#: Characters of a name with what may be around it.
_MAX_NAME_LINE = 320
#: After so many quotes that are never closed, no more are looked for in further lines.
_MAX_SEARCHES = 1000
#: Cells of a line in which a name of an image is looked for, and those that are read; the last one has the rest.
_MAX_SEARCHED, _MAX_CELLS = 100, 1000
#: Exchanges the quotes of a table that has single ones.
_OTHER_QUOTES = str.maketrans("'\"", "\"'")
#: Lines above a header, such as a title or comments, and how a comment begins.
_MAX_ABOVE_HEADER, _COMMENT = 20, ("#", "//")
_KNOWN_COLUMNS = frozenset({*FILE_COLUMNS, *CAPTION_COLUMNS, *TAG_COLUMNS, *CLASS_COLUMNS})
#: Key of the cells beyond the last column: the name of this column, and it with all that follows.
REST = "\0rest"


#: A line of a table and what is in it, or why it cannot be read.
Line = tuple[int, Record | str]


def lists_images(text: str) -> bool:
    """True for a text whose lines name images, whatever its own name is."""
    if not _ENDING.search(text, 0, _MAX_CELL_CHARACTERS):
        return False
    lines = [line for line in text[:_MAX_CELL_CHARACTERS].splitlines() if line.strip()][:_LISTED_LINES]
    if _is_list(lines, names_image_file):
        return True
    delimiter = _find_delimiter(lines, names_image_file)
    cells = [_bare_cells(line, delimiter) for line in lines]
    named = sum(len(each) > 1 and any(map(names_image_file, each)) for each in cells)
    return named > 0 and named >= len(lines) - 1


def delimited_lines(text: str, names_image: NamesImage) -> Iterator[Line]:
    lines = list(io.StringIO(text.lstrip("\ufeff"), newline=""))
    first = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    named = _SEPARATOR_LINE.fullmatch(lines[first].strip("\r\n")) if first < len(lines) else None
    first += named is not None
    judged = lines[first : first + _JUDGED_LINES]
    if blocks := _blocks(lines[first:], names_image):
        yield from ((first + line, record) for line, record in blocks)
        return
    if named is None and _is_list(judged, names_image):
        yield from _list_lines(lines, names_image)
        return
    delimiter = named[1] if named else _find_delimiter(judged, names_image)
    if delimiter in _ROW_FRAMES:
        lines = [*map(_ROW_FRAMES[delimiter], lines)]
    has_single = _has_single_quotes(judged, delimiter)
    rows = _read_cells(
        [line.translate(_OTHER_QUOTES) for line in lines] if has_single else lines, first, delimiter, names_image
    )
    if has_single:
        rows = ((number, [cell.translate(_OTHER_QUOTES) for cell in cells]) for number, cells in rows)
    top = [*islice(rows, _MAX_ABOVE_HEADER)]
    top = top[_rows_above_header([cells for _number, cells in top], names_image) :]
    if not top:
        return
    if _is_header(top[0][1], names_image):
        yield from _below_header(top[0][1], chain(top[1:], rows), delimiter)
    else:
        yield from _without_header([*top, *islice(rows, MAX_ROWS + 1)], delimiter, names_image)


def _has_single_quotes(lines: Sequence[str], delimiter: str) -> bool:
    """True if cells have single quotes around them: most lines begin with one, and a cell ends with one."""
    filled = [line.strip() for line in lines if line.strip()]
    quoted = sum(line.startswith("'") and f"'{delimiter}" in line.replace(" ", "") for line in filled)
    return 2 * quoted > len(filled)


def _rows_above_header(rows: Sequence[Sequence[str]], names_image: NamesImage) -> int:
    """The number of rows above the header or the first image: comments, and titles with fewer cells than the header."""
    above = [*takewhile(lambda cells: not any(map(names_image, cells)), rows)]
    for index, cells in enumerate(above):
        is_header = len(cells) > 1 and not _KNOWN_COLUMNS.isdisjoint(map(normalized, cells))
        if is_header and all(_is_comment(other) or _filled(other) < _filled(cells) for other in above[:index]):
            return index
    comments = len([*takewhile(_is_comment, above)])
    # `#filename` is the first column of VIA's tables.
    is_header = comments == len(rows) or any(len(cells) == len(rows[comments]) for cells in above[:comments])
    return 0 if is_header else comments


def _is_comment(cells: Sequence[str]) -> bool:
    return cells[0].lstrip().startswith(_COMMENT)


def _filled(cells: Sequence[str]) -> int:
    return sum(cell.strip() != "" for cell in cells)


def markdown_tables(text: str) -> str:
    """The tables of a text in Markdown that name images, without the other lines; empty if there are none."""
    kept: list[str] = []
    for is_table, block in groupby(text.splitlines(), lambda line: line.lstrip().startswith("|")):
        rows = list(block)
        cells = (_bare_cells(_without_frame(row), "|") for row in rows if is_table)
        kept += rows if any(map(names_image_file, chain.from_iterable(cells))) else [""] * len(rows)
    return "\n".join(kept) if any(kept) else ""


def _blocks(lines: Sequence[str], names_image: NamesImage) -> list[Line]:
    """The records of a text that has the name of an image on one line, and its caption below; none of other texts."""
    blocks: list[tuple[int, str, list[str]]] = []
    for number, line in enumerate(lines, start=1):
        bare = line.strip()
        match = _NAME_LINE.fullmatch(bare) if len(bare) < _MAX_NAME_LINE else None
        if match and names_image(match["file"]):
            blocks.append((number, match["file"].strip(), []))
            if len(blocks) > MAX_ROWS:
                break
        elif bare and not blocks:
            return []
        elif bare:
            blocks[-1][2].append(bare if blocks[-1][2] else _CAPTION_MARK.sub("", bare))
    are_full = all(captions for _line, _file, captions in blocks)
    return [(line, _labeled(file, " ".join(captions))) for line, file, captions in blocks] if are_full else []


def _find_delimiter(lines: Sequence[str], names_image: NamesImage) -> str:
    """The delimiter that separates names of images from something else in most lines."""

    def names(delimiter: str) -> tuple[int, int]:
        split = [cells for line in lines if len(cells := _bare_cells(line, delimiter)) > 1]
        header = {normalized(cell) for cell in split[0]} if split else set()
        return sum(any(map(names_image, cells)) for cells in split), len(header & _KNOWN_COLUMNS)

    # The first of equals.
    return max(_DELIMITERS, key=names)


def _is_list(lines: Sequence[str], names_image: NamesImage) -> bool:
    """True if most lines are those of a list, and no delimiter separates the names of images."""
    filled = [line for line in lines if line.strip()]
    listed = sum(isinstance(_list_record(line, names_image), dict) for line in filled)
    delimiter = _find_delimiter(lines, names_image)
    return 2 * listed > len(filled) and not any(
        any(map(names_image, cells)) for line in filled if len(cells := _bare_cells(line, delimiter)) > 1
    )


def _list_lines(lines: Sequence[str], names_image: NamesImage) -> Iterator[Line]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, _list_record(line, names_image)


def _list_record(line: str, names_image: NamesImage) -> Record | str:
    match = _LIST_LINE.fullmatch(line[:_MAX_CELL_CHARACTERS].strip())
    if match is None or not names_image(match["file"]):
        return _("it names no file")
    caption = match["text"]
    is_quoted = len(caption) > 1 and caption[0] == caption[-1] == '"'
    return _labeled(match["file"], caption[1:-1] if is_quoted else caption)


def _labeled(file: str, caption: str) -> Record:
    """A record without a header: a number is that of a class, as in ImageNet's lists; several are no caption."""
    if _NUMBERS.fullmatch(caption.strip()):
        return {FILE_COLUMNS[0]: file, **({CLASS_COLUMNS[0]: caption} if caption.strip().isdecimal() else {})}
    return {FILE_COLUMNS[0]: file, CAPTION_COLUMNS[0]: caption}


def _without_frame(line: str) -> str:
    """A line of a table in Markdown without the pipes around it; lines that are drawn become empty."""
    bare = line.strip()
    if set(bare) <= set("+|-=: "):
        return ""
    return bare.removeprefix("|").removesuffix("|") if bare.startswith("|") else line


def _without_commands(line: str) -> str:
    """A row of a table in LaTeX without the commands around it and the marks before special characters."""
    row = re.sub(r"^\s*(?:\\[a-z]{4,}\b(?:\{[^{}]*\})*\s*)+|\\\\.*", "", line.replace(r"\&", "and"))
    return "&".join(re.sub(r"\\([%$#_{}])", r"\1", cell.strip()) for cell in row.split("&"))


_ROW_FRAMES = {"|": _without_frame, "&": _without_commands}


def _is_header(cells: Sequence[str], names_image: NamesImage) -> bool:
    return any(normalized(cell) in FILE_COLUMNS for cell in cells) or not any(map(names_image, cells))


def _below_header(header: Sequence[str], rows: Iterable[tuple[int, list[str]]], delimiter: str) -> Iterator[Line]:
    columns = [cell.strip() or f"({index})" for index, cell in enumerate(header, start=1)]
    last = len(columns) - 1
    for line, cells in rows:
        record: dict[str, object] = {}
        for column, cell in zip(columns, cells, strict=False):
            # Of two columns of one name, the first one that is filled.
            record[column] = record.get(column) or cell
        if any(cell.strip() for cell in cells[last + 1 :]):
            # A caption in the last column often contains the delimiter without quotes.
            record[REST] = columns[last], delimiter.join(cells[last:])
        yield line, record


def _without_header(rows: Sequence[tuple[int, list[str]]], delimiter: str, names_image: NamesImage) -> Iterator[Line]:
    """The image in the first cell or in the last, and all others together are its caption.

    A cell that is a number in all rows, such as that of the row or the width, or empty, is no part of it.
    """
    if len({len(cells) for _line, cells in rows}) == 1:
        columns = [*zip(*(map(str.strip, cells) for _line, cells in rows), strict=True)]
        texts = [not all(not cell or _NUMBERS.fullmatch(cell) for cell in column) for column in columns]
        if sum(texts) > 1 and any(map(names_image_file, chain(*compress(columns, texts)))):
            rows = [(line, [*compress(cells, texts)]) for line, cells in rows]
    first = sum(names_image(cells[0]) for _line, cells in rows)
    is_last = sum(names_image(cells[-1]) for _line, cells in rows if len(cells) > 1) > first
    for line, cells in rows:
        file, others = (cells[-1], cells[:-1]) if is_last else (cells[0], cells[1:])
        yield line, _labeled(file, delimiter.join(others))


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
            if len(cells) == 1 and delimiter in cells[0]:
                # A whole line in quotes, as spreadsheets store what they opened in one column.
                cells = _strict_cells(cells[0], delimiter) or _repaired(cells[0], delimiter)
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
    with_comma = [cell for cell in cells if "," in cell]
    if with_comma and all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells if '"' in cell or "," in cell):
        # Excel quotes what has a comma, though it separates by tabs.
        return all("," in cell for cell in cells if '"' in cell)
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
    """Split a line at each delimiter, also within quotes: good enough to look for names of images."""
    return [cell.strip().strip("\"'") for cell in line.split(delimiter, _MAX_SEARCHED)]
