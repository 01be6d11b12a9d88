"""What is said of each picture: its caption, class and repeats, and who said it.

The nearest word wins. Caption: sidecar, then table (of the nearest folder), then the dataset row or list line that the
picture comes from, then kohya's folder name. Class: table, row, kohya's folder name, first-level folder.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePosixPath

from trainer.dataset.archives import RefusedError
from trainer.dataset.captions.caption_sources import CaptionError, clean, decode_text
from trainer.dataset.captions.tables import Row, TableError, is_table_name, read_json, read_table
from trainer.dataset.entry import Entry
from trainer.dataset.kinds import CAPTION_EXTENSIONS, has_image_name
from trainer.dataset.limits import Limits
from trainer.dataset.names import natural_key, printable, same_name_key, stem_key
from trainer.protocol.report import RefusalKind

#: Repeats and trigger in kohya's folder names. Four digits are a year (`2023_holiday`).
_KOHYA = re.compile(r"(\d{1,3})_(.*\S)\s*")
#: Rows of one table without a picture that are reported one by one.
_MAX_LOST_ROWS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """What is said of a picture; `problem` where it cannot be read."""

    source: str
    text: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    caption: Caption | None
    class_name: str
    repeats: int


@dataclass(frozen=True, kw_only=True)
class _Table:
    entry: Entry
    rows: tuple[Row, ...]


class Labels:
    """Collects sidecars and tables while entries are read, and joins them with the pictures afterwards."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sidecars: dict[tuple[int, str, str], Caption] = {}
        self._tables: list[_Table] = []
        #: `captions.txt` and its like: tables, unless a picture has their name.
        self._undecided: list[tuple[Entry, str]] = []
        self._rows: dict[str, tuple[str, Row]] = {}
        self._classes: dict[str, str] = {}
        self._used: set[str] = set()
        self._lost: list[tuple[str, RefusedError]] = []

    def add(self, entry: Entry, data: bytes) -> None:
        """Take a sidecar or a table.

        Raises:
            RefusedError: it is a table that cannot be read.
        """
        extension = PurePosixPath(entry.path).suffix.lower()
        is_table, is_json = is_table_name(entry.path), extension == ".json"
        limit = self._limits.max_table_bytes if is_table or is_json else self._limits.max_caption_bytes
        try:
            text = _text(data, limit)
            if is_json:
                self._add_json(entry, text)
            elif is_table and extension == ".txt":
                self._undecided.append((entry, text))
                self._add_sidecar(entry, extension, Caption(source=entry.source, text=clean(text)))
            elif is_table:
                self._tables.append(_Table(entry=entry, rows=read_table(entry.path, text)))
            else:
                self._add_sidecar(entry, extension, Caption(source=entry.source, text=clean(text)))
        except CaptionError as error:
            if is_table:
                raise RefusedError(RefusalKind.DAMAGED, str(error)) from error
            self._add_sidecar(entry, extension, Caption(source=entry.source, problem=str(error)))
        except TableError as error:
            raise RefusedError(RefusalKind.DAMAGED, printable(str(error))) from error

    def _add_json(self, entry: Entry, text: str) -> None:
        held = read_json(text)
        if isinstance(held, str):
            self._add_sidecar(entry, ".json", Caption(source=entry.source, text=held))
        else:
            self._tables.append(_Table(entry=entry, rows=held))

    def _add_sidecar(self, entry: Entry, extension: str, caption: Caption) -> None:
        self._sidecars[entry.scope, stem_key(entry.path), extension] = caption

    def join(self, pictures: Iterable[Entry]) -> None:
        """Find the picture of every row; call it once, when all entries were read."""
        pictures = list(pictures)
        self._classes = class_folders(pictures)
        places = _Places(pictures)
        stems = {(entry.scope, stem_key(entry.path)) for entry in pictures}
        for entry, text in self._undecided:
            key = entry.scope, stem_key(entry.path)
            if key not in stems:
                self._decide(entry, text)
        for table in sorted(self._tables, key=_nearest_first):
            lost = [row for row in table.rows if not self._give(table, row, places)]
            self._lost += _lost_rows(table.entry.source, lost)

    def _decide(self, entry: Entry, text: str) -> None:
        try:
            self._tables.append(_Table(entry=entry, rows=read_table(entry.path, text)))
        except TableError as error:
            self._lost.append((entry.source, RefusedError(RefusalKind.DAMAGED, printable(str(error)))))
        self._used.add(entry.source)

    def _give(self, table: _Table, row: Row, places: _Places) -> bool:
        picture = places.find(table.entry, row.file)
        if picture is not None:
            # Five captions of one picture are five rows: the first one serves.
            self._rows.setdefault(picture.source, (table.entry.source, row))
        return picture is not None

    def of(self, entry: Entry) -> Label:
        """All that is said of a picture; after `join`."""
        _, row = self._rows.get(entry.source, ("", None))
        repeats, trigger, _ = _kohya(entry)
        named = (row.class_name if row else "", entry.told.class_name if entry.told else "", trigger)
        folder = "" if entry.told else self._classes[entry.source]
        return Label(caption=self._caption_of(entry), class_name=next((n for n in named if n), folder), repeats=repeats)

    def _caption_of(self, entry: Entry) -> Caption | None:
        held = [*self._sidecars_of(entry), *self._said_elsewhere(entry)]
        self._used |= {caption.source for caption in held}
        with_words = (caption for caption in held if caption.text)
        with_problem = (caption for caption in held if caption.problem)
        return next(with_words, None) or next(with_problem, None) or _of_folder(entry) or next(iter(held), None)

    def _sidecars_of(self, entry: Entry) -> Iterator[Caption]:
        """`cat.txt` or `cat.png.txt` for `cat.png`, in the order of `CAPTION_EXTENSIONS`."""
        for extension in CAPTION_EXTENSIONS:
            for stem in (stem_key(entry.path), same_name_key(entry.path)):
                if caption := self._sidecars.get((entry.scope, stem, extension)):
                    yield caption

    def _said_elsewhere(self, entry: Entry) -> Iterator[Caption]:
        if entry.source in self._rows:
            source, row = self._rows[entry.source]
            yield Caption(source=source, text=row.caption)
        if entry.told is not None and entry.told.caption:
            yield Caption(source=entry.source, text=entry.told.caption)

    def unused(self) -> Iterator[tuple[str, RefusedError]]:
        """Texts and rows that belong to no picture, often for a typing error in a name; after `of` for all pictures."""
        yield from self._lost
        for caption in self._sidecars.values():
            if caption.source not in self._used:
                reason = "it is a text, but no picture has its name"
                yield caption.source, RefusedError(RefusalKind.UNSUPPORTED, reason)


class _Places:
    """Pictures by what a table may call them."""

    def __init__(self, pictures: Iterable[Entry]) -> None:
        self._exact: dict[tuple[int | None, str], Entry] = {}
        self._stems: dict[tuple[int | None, str], Entry] = {}
        self._names: defaultdict[tuple[int | None, str], list[Entry]] = defaultdict(list)
        for picture in pictures:
            name = PurePosixPath(picture.path).name
            # A loose table may speak of pictures in any archive.
            for scope in (picture.scope, None):
                self._exact.setdefault((scope, same_name_key(picture.path)), picture)
                self._stems.setdefault((scope, stem_key(picture.path)), picture)
                self._names[scope, same_name_key(name)].append(picture)
                self._names[scope, stem_key(name)].append(picture)

    def find(self, table: Entry, file: str) -> Entry | None:
        """By path below the table's folder; without its extension; by name alone, where only one picture has it."""
        parts = [part for part in file.replace("\\", "/").split("/") if part not in ("", ".")]
        if not parts:
            return None
        path = same_name_key(str(PurePosixPath(table.path).parent.joinpath(*parts)))
        for scope in (table.scope, None) if table.scope == 0 else (table.scope,):
            found = self._exact.get((scope, path))
            if found is None and not has_image_name(path):
                found = self._stems.get((scope, path))
            named = self._names.get((scope, same_name_key(parts[-1])), [])
            if found is None and len(named) == 1:
                found = named[0]
            if found is not None:
                return found
        return None


def class_folders(entries: Iterable[Entry]) -> dict[str, str]:
    """First-level folder of each entry (its class), below the folders that all entries of its archive share."""
    by_scope: dict[int, list[Entry]] = {}
    for entry in entries:
        by_scope.setdefault(entry.scope, []).append(entry)
    classes: dict[str, str] = {}
    for members in by_scope.values():
        folders = {entry.source: PurePosixPath(entry.path).parent.parts for entry in members}
        levels = zip(*folders.values(), strict=False)
        shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
        classes |= {source: next(iter(parts[shared:]), "") for source, parts in folders.items()}
    return classes


def _kohya(entry: Entry) -> tuple[int, str, int]:
    """Repeats, trigger, and how many folders lie between the picture and the one that says so; (1, "", 0) for none."""
    parts = [entry.above, *PurePosixPath(entry.path).parent.parts]
    for distance, part in enumerate(reversed(parts)):
        if match := _KOHYA.fullmatch(part):
            return max(1, int(match[1])), clean(match[2]), distance
    return 1, "", 0


def _of_folder(entry: Entry) -> Caption | None:
    _, trigger, distance = _kohya(entry)
    folder = entry.source.rsplit("/", distance + 1)[0]
    if not trigger:
        return None
    return Caption(source=f"{folder if folder != entry.source else entry.above}/", text=trigger)


def _nearest_first(table: _Table) -> tuple[int, tuple[tuple[int, int, str], ...]]:
    return -table.entry.path.count("/"), natural_key(table.entry.source)


def _lost_rows(source: str, rows: list[Row]) -> Iterator[tuple[str, RefusedError]]:
    for row in rows[:_MAX_LOST_ROWS]:
        at = f"{source}:{row.line}" if row.line else source
        reason = f"it names {printable(row.file)[:200]}, and no such picture was handed in"
        yield at, RefusedError(RefusalKind.UNSUPPORTED, reason)
    if len(rows) > _MAX_LOST_ROWS:
        reason = f"{len(rows) - _MAX_LOST_ROWS:,} more of its rows name no picture that was handed in"
        yield source, RefusedError(RefusalKind.UNSUPPORTED, reason)


def _text(data: bytes, limit: int) -> str:
    if len(data) > limit:
        raise CaptionError(f"it is longer than {limit // 1024:,} KiB")
    return decode_text(data)
