"""Finds the caption, class and repeats of each image.

The closest source wins. Caption: sidecar, then table (of the nearest folder), then the dataset row that holds the
image, then kohya's folder name. Class: table, row, kohya's folder name, first-level folder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from trainer.dataset.captions.caption_tables import (
    CaptionRow,
    CaptionTable,
    is_table_name,
    read_json,
    read_table,
)
from trainer.dataset.captions.caption_text import MAX_CLASS_CHARACTERS, clean_text
from trainer.dataset.captions.delimited_text import lists_images, markdown_tables
from trainer.dataset.captions.sidecars import Caption, Sidecars, read_sidecar
from trainer.dataset.captions.table_columns import TableError
from trainer.dataset.captions.table_images import ImageIndex
from trainer.dataset.folder_layout import class_folders
from trainer.dataset.input_files import (
    MARKDOWN_EXTENSION,
    MIB,
    Limits,
    RefusedError,
    SourceEntry,
    natural_key,
    printable,
)
from trainer.dataset.text_encoding import EncodingError, decode_legacy, decode_unicode, unknown_encoding
from trainer.protocol import text
from trainer.protocol.report import CaptionColumn, FileRole, RefusalKind
from trainer.protocol.text import _, ngettext

#: Rows of one table without an image, or that cannot be read, that are reported one by one.
_MAX_LISTED_ROWS = 20
#: Bytes of a text by which it is a list of images; its lines say so from the first one on.
_LISTED_BYTES = 4096
#: A longer text in Markdown is not read: each cell is asked for the name of an image.
_MAX_MARKDOWN_BYTES = 4 * MIB


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLabels:
    """The labels of one image."""

    caption: Caption | None
    class_name: str
    repeats: int
    #: A class image, which keeps its own caption.
    is_regularization: bool = False


@dataclass(frozen=True, kw_only=True)
class _NamedRows:
    """The rows of one table that name the same image."""

    #: 0 if they have its very path.
    distance: int
    source: str
    rows: tuple[CaptionRow, ...]


class LabelIndex:
    """Collects sidecars and tables while entries are read, then assigns them to the images."""

    def __init__(self, limits: Limits, caption_column: str = "") -> None:
        self._limits = limits
        self._caption_column = caption_column
        self._sidecars = Sidecars()
        #: Tables and JSON files, which are read once all images are known.
        self._tables: list[tuple[SourceEntry, str]] = []
        self._table_bytes = 0
        #: By scope: texts in legacy encodings.
        self._legacy: dict[int, list[tuple[SourceEntry, bytes]]] = defaultdict(list)
        self._legacy_bytes = 0
        self._rows: dict[str, _NamedRows] = {}
        self._class_folders: dict[str, str] = {}
        self._refused: list[tuple[str, RefusedError]] = []
        #: Columns that were chosen by their content.
        self.caption_columns: list[CaptionColumn] = []

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
            RefusedError: A table is not text, or too large; a text in Markdown has none.
        """
        if entry.path.lower().endswith(MARKDOWN_EXTENSION):
            _require_table(data)
        if may_be_table := _may_be_table(entry.path, data):
            self._table_bytes += len(data)
            self.require_room(entry)
        elif len(data) > self._limits.max_caption_bytes:
            most = text.size(self._limits.max_caption_bytes)
            self._sidecars.add(entry, Caption(source=entry.source, problem=_("it is longer than {most}", most=most)))
            return
        try:
            content = decode_unicode(data, is_long=may_be_table)
            if content is not None:
                self._add_text(entry, content)
            elif self._legacy_bytes > self._limits.max_table_bytes:
                raise unknown_encoding()
            else:
                self._legacy_bytes += len(data)
                self._legacy[entry.scope].append((entry, data))
        except EncodingError as error:
            self._add_unreadable(entry, error)

    def _add_text(self, entry: SourceEntry, content: str) -> None:
        if _may_be_table(entry.path) or (entry.path.lower().endswith(".txt") and lists_images(content)):
            self._tables.append((entry, content))
        else:
            self._sidecars.add(entry, read_sidecar(entry.source, content))

    def _add_unreadable(self, entry: SourceEntry, error: EncodingError) -> None:
        if is_table_name(entry.path):
            self._refused.append((entry.source, RefusedError(RefusalKind.DAMAGED, str(error))))
        else:
            self._sidecars.add(entry, Caption(source=entry.source, problem=str(error)))

    def join(self, images: Iterable[SourceEntry]) -> None:
        """Find the image of every text and row; call it once, after all entries were added."""
        images = list(images)
        self._class_folders = _find_class_folders(images)
        self._decode_legacy()
        # Of many images it takes a while, and most have no table.
        index = ImageIndex(images if self._tables else ())
        self._sidecars.join(images)
        for entry, content in sorted(self._tables, key=_nearest_first):
            try:
                self._read_table(entry, content, index)
            except TableError as error:
                self._refused.append((entry.source, RefusedError(RefusalKind.DAMAGED, printable(str(error)))))
            except MemoryError:
                reason = _("reading it takes more memory than is allowed")
                self._refused.append((entry.source, RefusedError(RefusalKind.TOO_LARGE, reason)))
        self._tables.clear()
        self._sidecars.find_elsewhere(images)

    def _decode_legacy(self) -> None:
        """Decode what is not Unicode: the texts of one folder or archive together."""
        for texts in self._legacy.values():
            for (entry, _data), content in zip(texts, decode_legacy([data for _entry, data in texts]), strict=True):
                if content is None:
                    self._add_unreadable(entry, unknown_encoding())
                else:
                    self._add_text(entry, content)
        self._legacy.clear()

    def _read_table(self, entry: SourceEntry, content: str, index: ImageIndex) -> None:
        """Read a table, or a JSON or text file that may be one, and assign its rows.

        Raises:
            TableError: It cannot be read.
        """
        extension = PurePosixPath(entry.path).suffix.lower()
        column, table = self._caption_column, None
        if extension == ".json":
            read = read_json(content, caption_column=column, names_image=index.has_name)
            if isinstance(read, tuple):
                self._sidecars.add(entry, Caption.of(entry.source, read))
            else:
                table = read
        elif extension == ".txt" and self._sidecars.has_image(entry):
            self._sidecars.add(entry, read_sidecar(entry.source, content))
        else:
            table = read_table(entry.path, content, caption_column=column, names_image=index.has_name)
        if table is not None:
            self._assign(entry, table, index)

    def _assign(self, entry: SourceEntry, table: CaptionTable, index: ImageIndex) -> None:
        """Give each row to its image. A row with an image's very path counts more than others, whatever the order."""
        matches = index.match(entry, [row.file for row in table.rows])
        nearest: dict[str, int] = {}
        for match in matches:
            if match is not None:
                source = match.image.source
                nearest[source] = min(nearest.get(source, match.distance), match.distance)
        by_image: dict[str, list[CaptionRow]] = defaultdict(list)
        lost: list[CaptionRow] = []
        for row, match in zip(table.rows, matches, strict=True):
            if match is not None and match.distance == nearest[match.image.source]:
                by_image[match.image.source].append(row)
            else:
                lost.append(row)
        for source, rows in by_image.items():
            named = _NamedRows(distance=nearest[source], source=entry.source, rows=tuple(rows))
            # Equally good rows: those of the table that was read first, which is nearer.
            self._rows[source] = min(self._rows.get(source, named), named, key=lambda each: each.distance)
        self._refused += _unreadable_rows(entry.source, table)
        self._refused += _lost_rows(entry.source, lost)
        if table.caption_column and by_image:
            self.caption_columns.append(CaptionColumn(table=entry.source, column=printable(table.caption_column)[:200]))

    def of(self, entry: SourceEntry) -> ImageLabels:
        """The labels of an image; call it after `join`."""
        named = self._rows.get(entry.source)
        in_table = next((row.class_name for row in named.rows if row.class_name), "") if named else ""
        trigger = clean_text(entry.kohya.trigger, MAX_CLASS_CHARACTERS)
        names = (in_table, entry.row_labels.class_name if entry.row_labels else "", trigger)
        folder = "" if entry.row_labels else self._class_folders[entry.source]
        class_name = next((name for name in names if name), folder)
        return ImageLabels(
            caption=self._caption_of(entry),
            class_name=class_name,
            repeats=entry.kohya.repeats,
            is_regularization=entry.role is FileRole.REGULARIZATION,
        )

    def _caption_of(self, entry: SourceEntry) -> Caption | None:
        """The first caption with text, else the first unreadable one, else the folder's, else an empty one."""
        captions = [*self._sidecars.of(entry), *self._row_captions(entry)]
        with_text = next((caption for caption in captions if caption.text), None)
        unreadable = [caption for caption in captions if caption.problem]
        if with_text:
            # Another caption is used: the finding would be lost.
            self._refused += [(c.source, RefusedError(RefusalKind.DAMAGED, c.problem)) for c in unreadable]
        return with_text or next(iter(unreadable), None) or _folder_caption(entry) or next(iter(captions), None)

    def _row_captions(self, entry: SourceEntry) -> Iterator[Caption]:
        if named := self._rows.get(entry.source):
            texts = list(dict.fromkeys(caption for row in named.rows for caption in row.captions))
            texts = [caption for caption in texts if caption] or texts
            if texts:
                yield Caption.of(named.source, texts)
        if entry.row_labels is not None and entry.row_labels.captions:
            yield Caption.of(entry.source, entry.row_labels.captions)

    def unused(self) -> Iterator[tuple[str, RefusedError]]:
        """Yield texts and rows without an image, often due to a misspelled name; call it after `of` for all images."""
        yield from self._refused
        for source in self._sidecars.unused():
            yield source, RefusedError(RefusalKind.WITHOUT_IMAGE, _("it is a text, but no image has its name"))


def _require_table(data: bytes) -> None:
    """Check that a text in Markdown has a table of images.

    Raises:
        RefusedError: It has none, or is too long.
    """
    if len(data) > _MAX_MARKDOWN_BYTES:
        raise RefusedError(RefusalKind.TOO_LARGE, _("it is longer than {most}", most=text.size(_MAX_MARKDOWN_BYTES)))
    if not markdown_tables(data.decode("utf-8", "replace")):
        raise RefusedError(RefusalKind.UNSUPPORTED, _("it is neither an image nor a caption"))


def _may_be_table(path: str, data: bytes = b"") -> bool:
    """True for the name of a table or of a JSON file; given its content, also for a text that lists images."""
    pure = PurePosixPath(path.lower())
    if is_table_name(path) or pure.suffix == ".json":
        return True
    return pure.suffix == ".txt" and lists_images(data[:_LISTED_BYTES].decode("utf-8", "replace"))


def _find_class_folders(entries: Iterable[SourceEntry]) -> dict[str, str]:
    """Class folder by source; regularization images are in a folder of their own, whatever its name."""
    by_part: dict[tuple[int, str], list[SourceEntry]] = {}
    for entry in entries:
        part = entry.role_folder if entry.role is FileRole.REGULARIZATION else ""
        by_part.setdefault((entry.scope, part), []).append(entry)
    classes: dict[str, str] = {}
    for (_scope, part), members in by_part.items():
        folders = class_folders([entry.path for entry in members], part)
        classes |= {entry.source: folders[entry.path] for entry in members}
    return classes


def _folder_caption(entry: SourceEntry) -> Caption | None:
    folder = entry.source.rsplit("/", entry.kohya.depth + 1)[0]
    if not entry.kohya.trigger:
        return None
    trigger = clean_text(entry.kohya.trigger, MAX_CLASS_CHARACTERS)
    return Caption(source=f"{folder if folder != entry.source else entry.input_folder}/", text=trigger)


def _nearest_first(table: tuple[SourceEntry, str]) -> tuple[int, tuple[tuple[int, int, str], ...]]:
    entry, _content = table
    return -entry.path.count("/"), natural_key(entry.source)


def _unreadable_rows(source: str, table: CaptionTable) -> Iterator[tuple[str, RefusedError]]:
    for skipped in table.skipped[:_MAX_LISTED_ROWS]:
        at = f"{source}:{skipped.line}" if skipped.line else source
        yield at, RefusedError(RefusalKind.DAMAGED, printable(skipped.reason))
    if (more := len(table.skipped) - _MAX_LISTED_ROWS) > 0:
        reason = ngettext("{n} more of its rows cannot be read", "{n} more of its rows cannot be read", more)
        yield source, RefusedError(RefusalKind.DAMAGED, reason)


def _lost_rows(source: str, rows: Sequence[CaptionRow]) -> Iterator[tuple[str, RefusedError]]:
    for row in rows[:_MAX_LISTED_ROWS]:
        at = f"{source}:{row.line}" if row.line else source
        reason = _("it names {file}, which is not among the images", file=printable(row.file[:200])[:200])
        yield at, RefusedError(RefusalKind.WITHOUT_IMAGE, reason)
    if (more := len(rows) - _MAX_LISTED_ROWS) > 0:
        reason = ngettext(
            "{n} more of its rows names an image that is missing",
            "{n} more of its rows name images that are missing",
            more,
        )
        yield source, RefusedError(RefusalKind.WITHOUT_IMAGE, reason)
