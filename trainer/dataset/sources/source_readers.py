"""Opens the inputs of a preparation and lists their entries: files, archive members and dataset rows."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Self

from trainer.dataset.archives import READABLE_ARCHIVES, open_archive
from trainer.dataset.archives.archive import decode_names, is_link, is_one_of_several
from trainer.dataset.folder_layout import recognize
from trainer.dataset.input_files import (
    CAPTION_EXTENSIONS,
    HEAD_BYTES,
    PROGRAM_SIGNATURES,
    FileKind,
    Limits,
    RefusedError,
    SourceEntry,
    is_archive_name,
    is_os_clutter,
    is_part_name,
    natural_key,
    printable,
    sniff,
)
from trainer.dataset.mask_names import mask_paths_beside
from trainer.dataset.sources.hf_datasets import (
    NoImagesError,
    ParquetRows,
    Rows,
    is_hub_name,
    is_saved,
    open_hub,
    open_saved,
    parse_name,
    read_parquet_table,
    row_entries,
)
from trainer.errors import DatasetError
from trainer.protocol import text
from trainer.protocol.edits import Layout
from trainer.protocol.report import CaptionColumn, RecognizedFiles, RefusalKind, Refused
from trainer.protocol.text import _


class Sources:
    """The opened inputs; closes its archives on exit.

    A source is an archive, an image, a folder (of anything, or a saved or exported Hugging Face dataset), or the name
    of a dataset on the hub, `hf://owner/name`.

    Raises:
        DatasetError: A path does not exist or cannot be read, or a dataset cannot be downloaded.
    """

    def __init__(
        self,
        sources: Iterable[Path | str],
        limits: Limits,
        *,
        layout: Layout = Layout.AUTO,
        caption_column: str = "",
        out: Path | None = None,
    ) -> None:
        """Open the sources and list their entries.

        Args:
            sources: Paths and names.
            limits: On what is opened.
            layout: How the folders of the sources are read.
            caption_column: Column of the captions in tables; empty: a well-known name, or the only one with text.
            out: The dataset folder, which is not read even if a source contains it.
        """
        self._limits = limits
        self.layout = layout
        self.caption_column = caption_column
        self._out = None if out is None else out.resolve()
        self._resources = ExitStack()
        self._labels: set[str] = set()
        self._scopes = 1
        #: Labels and paths; as text, since a `Path` takes three times as much.
        self._files: list[tuple[str, str]] = []
        self._commits: list[tuple[str, str]] = []
        self.refused: list[Refused] = []
        self.recognized: list[RecognizedFiles] = []
        self.caption_columns: list[CaptionColumn] = []
        #: Files that an operating system or a program that syncs left behind.
        self.clutter = 0
        entries: list[SourceEntry] = []
        try:
            for source in sources:
                entries += self._hub(str(source)) if is_hub_name(source) else self._source(Path(source))
        except BaseException:
            self._resources.close()
            raise
        self.entries = sorted(self._with_roles(entries), key=lambda entry: natural_key(entry.source))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._resources.close()

    def digest(self) -> str:
        """SHA-256 over the names and bytes of every input file, and the commits of hub datasets."""
        whole = hashlib.sha256()
        for label, path in sorted(self._files):
            with Path(path).open("rb") as file:
                whole.update(f"{label}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        for label, commit in sorted(self._commits):
            whole.update(f"{label}\0{commit}\n".encode())
        return whole.hexdigest()

    def _with_roles(self, entries: Iterable[SourceEntry]) -> Iterator[SourceEntry]:
        """Give each file its role by the layout of its folder or archive."""
        by_scope: dict[int, list[SourceEntry]] = {}
        for entry in entries:
            by_scope.setdefault(entry.scope, []).append(entry)
        for scope in by_scope.values():
            files = [entry for entry in scope if entry.row_labels is None]
            found = recognize([entry.path for entry in files], scope[0].input_folder, self.layout)
            for entry in scope:
                if entry.row_labels is None:
                    each = found[entry.path]
                    entry = replace(entry, role=each.role, role_folder=each.folder, kohya=each.kohya)
                yield entry

    def release_entries(self) -> None:
        """Free the entries once they have been read: with their texts they take more memory than all records.

        There is no `digest` from here on.
        """
        self.entries, self._files = [], []

    def refuse(self, source: str, refusal: RefusedError) -> None:
        """Record that an entry is not used."""
        self.refused.append(Refused(source=source, kind=refusal.kind, reason=refusal.reason))

    def _hub(self, source: str) -> list[SourceEntry]:
        name = parse_name(source)
        dataset = open_hub(name, self._limits, caption_column=self.caption_column)
        label = self._unique(str(name), "again")
        self._commits.append((label, dataset.commit))
        return list(self._rows(dataset.splits, label, dataset.roots))

    def _source(self, path: Path) -> list[SourceEntry]:
        try:
            return list(self._folder(path.resolve()) if path.is_dir() else self._loose(path))
        except FileNotFoundError as error:
            raise DatasetError(_("There is no file {path}.", path=path), _("Check the path.")) from error
        except OSError as error:
            message = _("{path} cannot be read: {error}.", path=path, error=error.strerror or error)
            raise DatasetError(message, _("Check its permissions.")) from error

    def _loose(self, path: Path) -> Iterator[SourceEntry]:
        """Yield the entries of a file, and if it is an image, the captions and masks beside it."""
        kind = _kind(path)
        files = [(path, kind)]
        if kind is FileKind.IMAGE:
            beside = (*(path.with_suffix(extension) for extension in CAPTION_EXTENSIONS), *mask_paths_beside(path))
            files += [(file, _kind(file)) for file in beside if file.is_file()]
        for file, file_kind in files:
            if any(file.resolve() == Path(known).resolve() for _label, known in self._files):
                continue
            name = _name_of(file.name)
            yield from self._file(file, file_kind, label=self._unique(name, file.parent.name), inner=name, scope=0)

    def _folder(self, root: Path) -> Iterator[SourceEntry]:
        if self._limits.allow_arrow and is_saved(root):
            yield from self._saved(root)
            return
        scope = self._new_scope()
        for path, label, inner in self._named_files(root):
            # A link may point anywhere on the machine, a pipe never ends.
            if not stat.S_ISREG(path.lstat().st_mode):
                self.refuse(label, is_link())
                continue
            yield from self._file(path, _kind(path), label=label, inner=inner, scope=scope, folder=root.name)

    def _named_files(self, root: Path) -> Iterator[tuple[Path, str, str]]:
        """Yield each file of a folder, except clutter, with its label and its path in the folder, up to the limit."""
        for count, path in enumerate(self._walk(root)):
            if count >= self._limits.max_entries:
                most = f"{self._limits.max_entries:,}"
                reason = _("it contains more than {most} files; the rest was not opened", most=most)
                self.refuse(root.name, RefusedError(RefusalKind.TOO_MANY, reason))
                return
            inner = _name_of(path.relative_to(root).as_posix())
            yield path, self._unique(inner, root.name), inner

    def _walk(self, root: Path) -> Iterator[Path]:
        """Yield files and links; folders of clutter, such as `.git`, and the dataset folder are not entered."""
        for folder, folders, files in os.walk(root):
            self.clutter += sum(is_os_clutter(name) for name in (*folders, *files))
            folders[:] = sorted(name for name in folders if not is_os_clutter(name) and Path(folder, name) != self._out)
            yield from (Path(folder, name) for name in sorted(files) if not is_os_clutter(name))
            # os.walk does not follow links to folders; they are refused like links to files.
            yield from (path for name in folders if (path := Path(folder, name)).is_symlink())

    def _saved(self, root: Path) -> Iterator[SourceEntry]:
        for path, file_label, _inner in self._named_files(root):
            if stat.S_ISREG(path.lstat().st_mode):
                self._files.append((file_label, os.fspath(path)))
        label = self._unique(root.name, root.parent.name)
        try:
            yield from self._rows(open_saved(root, self.caption_column), label, (root,))
        except RefusedError as refusal:
            self.refuse(label, refusal)

    def _file(
        self, path: Path, kind: FileKind, *, label: str, inner: str, scope: int, folder: str = ""
    ) -> Iterator[SourceEntry]:
        self._files.append((label, os.fspath(path)))
        try:
            if is_part_name(path.name):
                raise is_one_of_several()
            if kind in READABLE_ARCHIVES and is_archive_name(path.name):
                yield from self._archive(path, kind, label)
            elif kind is FileKind.PARQUET and scope and self._limits.allow_arrow:
                try:
                    rows = self._resources.enter_context(closing(ParquetRows(path, self.caption_column)))
                    yield from self._rows({"": rows}, label, (path.parent,))
                except NoImagesError:
                    # The captions of an image folder, or what img2dataset writes about its images.
                    read = partial(read_parquet_table, path, self._limits)
                    table = f"{inner.removesuffix('.parquet')}.jsonl"
                    yield SourceEntry(source=label, path=table, scope=scope, read=read, input_folder=folder)
            else:
                read = partial(_read, os.fspath(path), self._limits.max_entry_bytes)
                yield SourceEntry(source=label, path=inner, scope=scope, read=read, kind=kind, input_folder=folder)
        except RefusedError as refusal:
            self.refuse(label, refusal)

    def _archive(self, path: Path, kind: FileKind, label: str) -> Iterator[SourceEntry]:
        archive = self._resources.enter_context(open_archive(path, kind, self._limits))
        self.clutter += archive.clutter
        scope = self._new_scope()
        for member in archive.members:
            source = f"{label}!{member.name}"
            if member.refusal is not None:
                self.refuse(source, member.refusal)
            else:
                yield SourceEntry(source=source, path=member.name, scope=scope, read=member.read)

    def _rows(self, splits: Mapping[str, Rows], label: str, roots: tuple[Path, ...]) -> Iterator[SourceEntry]:
        scope = self._new_scope()
        limit = self._limits.max_entries
        columns = [rows.columns for rows in splits.values()]
        for problem in dict.fromkeys(each.problem for each in columns if each.problem):
            self.refuse(label, RefusedError(RefusalKind.DAMAGED, printable(problem)))
        for column in dict.fromkeys(each.caption for each in columns if each.is_caption_by_content and each.caption):
            self.caption_columns.append(CaptionColumn(table=label, column=printable(column)[:200]))
        entries = (
            entry
            for part, rows in splits.items()
            for entry in row_entries(rows, label=label, part=part, scope=scope, limits=self._limits, roots=roots)
        )
        yield from islice(entries, limit)
        if sum(len(rows) for rows in splits.values()) > limit:
            reason = _("it contains more than {most} rows; the rest was not opened", most=f"{limit:,}")
            self.refuse(label, RefusedError(RefusalKind.TOO_MANY, reason))

    def _new_scope(self) -> int:
        self._scopes += 1
        return self._scopes

    def _unique(self, name: str, folder: str) -> str:
        """The name; with its folder (and a number) if another source has the same name."""
        label, number = name, 1
        while label in self._labels:
            label = f"{folder}/{name}" if number == 1 else f"{folder} ({number})/{name}"
            number += 1
        self._labels.add(label)
        return label


def _name_of(path: str) -> str:
    """A path as it is shown; a file system may hold names that are not UTF-8."""
    (name,) = decode_names([os.fsencode(path)])
    return printable(name)


def _kind(path: Path) -> FileKind:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    kind = sniff(head)
    # Behind the program of a self-extracting zip, or an empty line that a web server put in front.
    may_begin_later = kind is FileKind.OTHER and (head.startswith(PROGRAM_SIGNATURES) or path.suffix.lower() == ".zip")
    return FileKind.ZIP if may_begin_later and zipfile.is_zipfile(path) else kind


def _read(path: str, limit_bytes: int) -> bytes:
    with Path(path).open("rb") as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise RefusedError(RefusalKind.TOO_LARGE, _("it is larger than {most}", most=text.size(limit_bytes)))
    return data
