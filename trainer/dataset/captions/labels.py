"""Finds the caption, class and repeats of each image.

The closest source wins. Caption: sidecar, then table (of the nearest folder), then the dataset row that holds the
image, then kohya's folder name. Class: table, row, kohya's folder name, first-level folder.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePosixPath

from trainer.dataset.captions.caption_tables import CaptionRow, TableError, is_table_name, read_json, read_table
from trainer.dataset.captions.caption_text import MAX_CLASS_CHARACTERS, CaptionError, clean_text, decode_text
from trainer.dataset.input_files import (
    CAPTION_EXTENSIONS,
    Limits,
    RefusedError,
    SourceEntry,
    has_image_name,
    natural_key,
    printable,
    same_name_key,
    stem_key,
)
from trainer.protocol import text
from trainer.protocol.report import RefusalKind
from trainer.protocol.text import _, ngettext

#: Repeats and trigger in kohya's folder names. Four digits are a year (`2023_holiday`).
_KOHYA_FOLDER = re.compile(r"(\d{1,3})_(.*\S)\s*")
#: Rows of one table without an image that are reported one by one.
_MAX_LOST_ROWS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """A caption and its source; `problem` if it cannot be read."""

    source: str
    text: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLabels:
    """The labels of one image."""

    caption: Caption | None
    class_name: str
    repeats: int


@dataclass(frozen=True, kw_only=True)
class _Table:
    entry: SourceEntry
    rows: tuple[CaptionRow, ...]


class LabelIndex:
    """Collects sidecars and tables while entries are read, then assigns them to the images."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sidecars: dict[tuple[int, str, str], Caption] = {}
        self._tables: list[_Table] = []
        self._table_bytes = 0
        #: `captions.txt` and similar names: tables unless an image has the same name.
        self._possible_tables: list[tuple[SourceEntry, str]] = []
        self._rows: dict[str, tuple[str, CaptionRow]] = {}
        self._class_folders: dict[str, str] = {}
        self._used_sources: set[str] = set()
        self._refused: list[tuple[str, RefusedError]] = []

    def require_room(self, entry: SourceEntry) -> None:
        """Check that tables are still read; ask it before an entry is, for a table takes time to inflate.

        Raises:
            RefusedError: The entry is a table, and those before it were as large as all may be.
        """
        if _may_be_table(entry.path) and self._table_bytes > self._limits.max_table_bytes:
            most = text.size(self._limits.max_table_bytes)
            reason = _("it and the tables of captions before it are larger than {most} together", most=most)
            raise RefusedError(RefusalKind.TOO_LARGE, reason)

    def add(self, entry: SourceEntry, data: bytes) -> None:
        """Add a sidecar or a table.

        Raises:
            RefusedError: A table cannot be read.
        """
        extension = PurePosixPath(entry.path).suffix.lower()
        is_table, is_json = is_table_name(entry.path), extension == ".json"
        if is_table or is_json:
            self._table_bytes += len(data)
            self.require_room(entry)
        try:
            content = decode_text(data) if is_table or is_json else _decode(data, self._limits.max_caption_bytes)
            if is_json:
                self._add_json(entry, content)
            elif is_table and extension != ".txt":
                self._tables.append(_Table(entry=entry, rows=read_table(entry.path, content)))
            else:
                if is_table:
                    self._possible_tables.append((entry, content))
                self._add_sidecar(entry, extension, Caption(source=entry.source, text=clean_text(content)))
        except CaptionError as error:
            if is_table:
                raise RefusedError(RefusalKind.DAMAGED, str(error)) from error
            self._add_sidecar(entry, extension, Caption(source=entry.source, problem=str(error)))
        except TableError as error:
            raise RefusedError(RefusalKind.DAMAGED, printable(str(error))) from error
        except MemoryError as error:
            raise RefusedError(RefusalKind.TOO_LARGE, _("reading it takes more memory than is allowed")) from error

    def _add_json(self, entry: SourceEntry, content: str) -> None:
        parsed = read_json(content)
        if isinstance(parsed, str):
            self._add_sidecar(entry, ".json", Caption(source=entry.source, text=parsed))
        else:
            self._tables.append(_Table(entry=entry, rows=parsed))

    def _add_sidecar(self, entry: SourceEntry, extension: str, caption: Caption) -> None:
        self._sidecars[entry.scope, stem_key(entry.path), extension] = caption

    def join(self, images: Iterable[SourceEntry]) -> None:
        """Find the image of every table row; call it once, after all entries were added."""
        images = list(images)
        self._class_folders = _find_class_folders(images)
        index = _ImageIndex(images)
        stems = {(entry.scope, stem_key(entry.path)) for entry in images}
        for entry, content in self._possible_tables:
            if (entry.scope, stem_key(entry.path)) not in stems:
                self._add_txt_table(entry, content)
        for table in sorted(self._tables, key=_nearest_first):
            lost = [row for row in table.rows if not self._assign(table, row, index)]
            self._refused += _lost_rows(table.entry.source, lost)

    def _add_txt_table(self, entry: SourceEntry, content: str) -> None:
        try:
            self._tables.append(_Table(entry=entry, rows=read_table(entry.path, content)))
        except TableError as error:
            self._refused.append((entry.source, RefusedError(RefusalKind.DAMAGED, printable(str(error)))))
        self._used_sources.add(entry.source)

    def _assign(self, table: _Table, row: CaptionRow, index: _ImageIndex) -> bool:
        """Give a row to its image; False if there is none."""
        image = index.find(table.entry, row.file)
        if image is not None:
            # Several captions of one image are several rows: the first one is used.
            self._rows.setdefault(image.source, (table.entry.source, row))
        return image is not None

    def of(self, entry: SourceEntry) -> ImageLabels:
        """The labels of an image; call it after `join`."""
        _source, row = self._rows.get(entry.source, ("", None))
        repeats, trigger, _distance = _kohya_folder(entry)
        names = (row.class_name if row else "", entry.row_labels.class_name if entry.row_labels else "", trigger)
        folder = "" if entry.row_labels else self._class_folders[entry.source]
        class_name = next((name for name in names if name), folder)
        return ImageLabels(caption=self._caption_of(entry), class_name=class_name, repeats=repeats)

    def _caption_of(self, entry: SourceEntry) -> Caption | None:
        """The first caption with text, else the first unreadable one, else the folder's, else an empty one."""
        captions = [*self._sidecars_of(entry), *self._row_captions(entry)]
        self._used_sources |= {caption.source for caption in captions}
        with_text = (caption for caption in captions if caption.text)
        with_problem = (caption for caption in captions if caption.problem)
        return next(with_text, None) or next(with_problem, None) or _folder_caption(entry) or next(iter(captions), None)

    def _sidecars_of(self, entry: SourceEntry) -> Iterator[Caption]:
        """Yield `cat.txt` and `cat.png.txt` for `cat.png`, in the order of `CAPTION_EXTENSIONS`."""
        for extension in CAPTION_EXTENSIONS:
            for stem in (stem_key(entry.path), same_name_key(entry.path)):
                if caption := self._sidecars.get((entry.scope, stem, extension)):
                    yield caption

    def _row_captions(self, entry: SourceEntry) -> Iterator[Caption]:
        if entry.source in self._rows:
            source, row = self._rows[entry.source]
            yield Caption(source=source, text=row.caption)
        if entry.row_labels is not None and entry.row_labels.caption:
            yield Caption(source=entry.source, text=entry.row_labels.caption)

    def unused(self) -> Iterator[tuple[str, RefusedError]]:
        """Yield texts and rows without an image, often due to a misspelled name; call it after `of` for all images."""
        yield from self._refused
        for caption in self._sidecars.values():
            if caption.source not in self._used_sources:
                reason = _("it is a text, but no image has its name")
                yield caption.source, RefusedError(RefusalKind.UNSUPPORTED, reason)


def _may_be_table(path: str) -> bool:
    return is_table_name(path) or PurePosixPath(path).suffix.lower() == ".json"


class _ImageIndex:
    """Images by the names that a table can give them."""

    def __init__(self, images: Iterable[SourceEntry]) -> None:
        self._by_path: dict[tuple[int | None, str], SourceEntry] = {}
        self._by_stem: dict[tuple[int | None, str], SourceEntry] = {}
        self._by_name: defaultdict[tuple[int | None, str], list[SourceEntry]] = defaultdict(list)
        for image in images:
            name = PurePosixPath(image.path).name
            # A loose table (scope None) can name images in any archive.
            for scope in (image.scope, None):
                self._by_path.setdefault((scope, same_name_key(image.path)), image)
                self._by_stem.setdefault((scope, stem_key(image.path)), image)
                self._by_name[scope, same_name_key(name)].append(image)
                self._by_name[scope, stem_key(name)].append(image)

    def find(self, table: SourceEntry, file: str) -> SourceEntry | None:
        """Find an image by its path below the table's folder, without its extension, or by a name that is unique."""
        parts = [part for part in file.replace("\\", "/").split("/") if part not in ("", ".")]
        if not parts:
            return None
        path = same_name_key(str(PurePosixPath(table.path).parent.joinpath(*parts)))
        for scope in (table.scope, None) if table.scope == 0 else (table.scope,):
            found = self._by_path.get((scope, path))
            if found is None and not has_image_name(path):
                found = self._by_stem.get((scope, path))
            named = self._by_name.get((scope, same_name_key(parts[-1])), [])
            if found is None and len(named) == 1:
                found = named[0]
            if found is not None:
                return found
        return None


def _find_class_folders(entries: Iterable[SourceEntry]) -> dict[str, str]:
    """Class folder by source: the first level below the folders that all entries of the archive share."""
    by_scope: dict[int, list[SourceEntry]] = {}
    for entry in entries:
        by_scope.setdefault(entry.scope, []).append(entry)
    classes: dict[str, str] = {}
    for members in by_scope.values():
        folders = {entry.source: PurePosixPath(entry.path).parent.parts for entry in members}
        levels = zip(*folders.values(), strict=False)
        shared = sum(1 for _level in takewhile(lambda level: len(set(level)) == 1, levels))
        classes |= {source: next(iter(parts[shared:]), "") for source, parts in folders.items()}
    return classes


def _kohya_folder(entry: SourceEntry) -> tuple[int, str, int]:
    """Repeats and trigger of the nearest kohya folder, and how many folders below it the image is; else (1, "", 0)."""
    parts = [entry.input_folder, *PurePosixPath(entry.path).parent.parts]
    for distance, part in enumerate(reversed(parts)):
        if match := _KOHYA_FOLDER.fullmatch(part):
            return max(1, int(match[1])), clean_text(match[2], MAX_CLASS_CHARACTERS), distance
    return 1, "", 0


def _folder_caption(entry: SourceEntry) -> Caption | None:
    _repeats, trigger, distance = _kohya_folder(entry)
    folder = entry.source.rsplit("/", distance + 1)[0]
    if not trigger:
        return None
    return Caption(source=f"{folder if folder != entry.source else entry.input_folder}/", text=trigger)


def _nearest_first(table: _Table) -> tuple[int, tuple[tuple[int, int, str], ...]]:
    return -table.entry.path.count("/"), natural_key(table.entry.source)


def _lost_rows(source: str, rows: list[CaptionRow]) -> Iterator[tuple[str, RefusedError]]:
    for row in rows[:_MAX_LOST_ROWS]:
        at = f"{source}:{row.line}" if row.line else source
        reason = _("it names {file}, which is not among the images", file=printable(row.file[:200])[:200])
        yield at, RefusedError(RefusalKind.UNSUPPORTED, reason)
    if (more := len(rows) - _MAX_LOST_ROWS) > 0:
        reason = ngettext(
            "{n} more of its rows names an image that is missing",
            "{n} more of its rows name images that are missing",
            more,
        )
        yield source, RefusedError(RefusalKind.UNSUPPORTED, reason)


def _decode(data: bytes, limit_bytes: int) -> str:
    if len(data) > limit_bytes:
        raise CaptionError(_("it is longer than {most}", most=text.size(limit_bytes)))
    return decode_text(data)
