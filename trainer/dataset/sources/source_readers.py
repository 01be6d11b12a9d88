"""What was handed in, as one list of entries in natural order: archives' members, files, dataset rows, downloads."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from pathlib import Path

from trainer.dataset.archives import OPENED, Member, RefusedError, open_archive
from trainer.dataset.entry import Entry
from trainer.dataset.images.mask_files import mask_files_of
from trainer.dataset.kinds import CAPTION_EXTENSIONS, HEAD_BYTES, Kind, is_picture, sniff
from trainer.dataset.limits import Limits
from trainer.dataset.names import decode_name, is_clutter, natural_key, printable
from trainer.dataset.sources.dataset_rows import ParquetRows, Rows, entries_of, is_saved, open_saved
from trainer.dataset.sources.hub import is_hub_name, open_hub, parse_name
from trainer.dataset.sources.url_list import EXTENSIONS, UrlList, list_refusal, parse_list
from trainer.errors import DatasetError
from trainer.protocol.report import RefusalKind, Refused


class Sources:
    """The opened inputs; closes its archives on exit.

    A source is an archive, a picture, a list of addresses, a folder (of anything, or one that a Hugging Face dataset
    was saved or exported to), or a dataset's name, `hf://owner/name`.

    Raises:
        DatasetError: a path does not exist or cannot be read, or a named dataset cannot be had.
    """

    def __init__(self, sources: Iterable[Path | str], limits: Limits) -> None:
        self._limits = limits
        self._stack = ExitStack()
        self._taken: set[str] = set()
        self._scopes = 1
        self._files: list[tuple[str, Path]] = []
        self._commits: list[tuple[str, str]] = []
        self.refused: list[Refused] = []
        entries: list[Entry] = []
        try:
            for source in sources:
                entries += self._hub(str(source)) if is_hub_name(source) else self._source(Path(source))
        except BaseException:
            self._stack.close()
            raise
        self.entries = sorted(entries, key=lambda entry: natural_key(entry.source))

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def digest(self) -> str:
        """SHA-256 over the names and bytes of every file handed in, and the commits of datasets from the hub.

        What a list's addresses lead to is not asked again: the list alone counts.
        """
        whole = hashlib.sha256()
        for label, path in sorted(self._files):
            with path.open("rb") as file:
                whole.update(f"{label}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        for label, commit in sorted(self._commits):
            whole.update(f"{label}\0{commit}\n".encode())
        return whole.hexdigest()

    def refuse(self, source: str, refusal: RefusedError) -> None:
        self.refused.append(Refused(source=source, kind=refusal.kind, reason=refusal.reason))

    def _hub(self, source: str) -> list[Entry]:
        name = parse_name(source)
        dataset = open_hub(name, self._limits)
        label = self._unique(str(name), "again")
        self._commits.append((label, dataset.commit))
        return list(self._rows(dataset.splits, label, dataset.roots))

    def _source(self, path: Path) -> list[Entry]:
        try:
            if path.is_dir():
                return list(self._folder(path.resolve()))
            loose = [(path, True), *((sidecar, False) for sidecar in self._sidecars(path))]
            return [entry for file, is_named in loose for entry in self._loose(file, is_named=is_named)]
        except FileNotFoundError as error:
            raise DatasetError(f"There is no file {path}.", "Check the path.") from error
        except OSError as error:
            raise DatasetError(
                f"{path} cannot be read: {error.strerror or error}.", "Check its permissions."
            ) from error

    @staticmethod
    def _sidecars(path: Path) -> list[Path]:
        """Captions and masks that lie beside a loose picture."""
        with path.open("rb") as file:
            if not is_picture(file.read(HEAD_BYTES)):
                return []
        beside = [*(path.with_suffix(extension) for extension in CAPTION_EXTENSIONS), *mask_files_of(path)]
        return [file for file in beside if file.is_file()]

    def _loose(self, path: Path, *, is_named: bool) -> Iterator[Entry]:
        if any(path.resolve() == known.resolve() for _, known in self._files):
            return
        name = printable(decode_name(os.fsencode(path.name)))
        label = self._unique(name, path.parent.name)
        listed = self._url_list(path, label) if is_named else None
        yield from self._file(path, label=label, inner=name, scope=0) if listed is None else listed

    def _folder(self, root: Path) -> Iterator[Entry]:
        if self._limits.allow_arrow and is_saved(root):
            yield from self._saved(root)
            return
        scope = self._new_scope()
        for path, label, inner in self._named_files(root):
            # A link may point anywhere on the machine, a pipe never ends.
            if not stat.S_ISREG(path.lstat().st_mode):
                self.refuse(label, RefusedError(RefusalKind.LINK, "it is a link or a device, not a file"))
                continue
            yield from self._file(path, label=label, inner=inner, scope=scope, above=root.name)

    def _named_files(self, root: Path) -> Iterator[tuple[Path, str, str]]:
        """Each file of a folder with its label and its path below the folder, clutter left out, up to the limit."""
        for count, path in enumerate(_walk(root)):
            if count >= self._limits.max_entries:
                reason = f"it holds more than {self._limits.max_entries:,} files; the rest was not opened"
                self.refuse(root.name, RefusedError(RefusalKind.TOO_MANY, reason))
                return
            inner = printable(decode_name(os.fsencode(path.relative_to(root).as_posix())))
            if not is_clutter(inner):
                yield path, self._unique(inner, root.name), inner

    def _saved(self, root: Path) -> Iterator[Entry]:
        for path, label, _ in self._named_files(root):
            if stat.S_ISREG(path.lstat().st_mode):
                self._files.append((label, path))
        label = self._unique(root.name, root.parent.name)
        try:
            yield from self._rows(open_saved(root), label, (root,))
        except RefusedError as refusal:
            self.refuse(label, refusal)

    def _file(self, path: Path, *, label: str, inner: str, scope: int, above: str = "") -> Iterator[Entry]:
        self._files.append((label, path))
        with path.open("rb") as file:
            kind = sniff(file.read(HEAD_BYTES))
        try:
            if kind in OPENED:
                yield from self._archive(path, kind, label)
            elif kind is Kind.PARQUET and scope and self._limits.allow_arrow:
                rows = self._stack.enter_context(closing(ParquetRows(path)))
                yield from self._rows({"": rows}, label, (path.parent,))
            else:
                read = partial(_read, path, self._limits.max_entry_bytes)
                yield Entry(source=label, path=inner, scope=scope, read=read, above=above)
        except RefusedError as refusal:
            self.refuse(label, refusal)

    def _url_list(self, path: Path, label: str) -> list[Entry] | None:
        """The downloads of a list of addresses, or None for any other file."""
        if path.suffix.lower() not in EXTENSIONS or path.stat().st_size > self._limits.max_table_bytes:
            return None
        with path.open("rb") as file:
            if not file.read(4).lower().strip(b"\xef\xbb\xbf").startswith((b"h", b"#", b"\xff", b"\xfe", b"\n", b"\r")):
                return None
        addresses = parse_list(path.read_bytes())
        if not addresses:
            return None
        self._files.append((label, path))
        if refusal := list_refusal(addresses, self._limits):
            self.refuse(label, refusal)
            return []
        downloads = self._stack.enter_context(UrlList(addresses, self._limits))
        return list(downloads.entries(label, self._new_scope()))

    def _archive(self, path: Path, kind: Kind, label: str) -> Iterator[Entry]:
        archive = self._stack.enter_context(open_archive(path, kind, self._limits))
        scope = self._new_scope()
        for member in archive.members:
            source = f"{label}!{member.name}"
            if member.refusal is not None:
                self.refuse(source, member.refusal)
            else:
                yield Entry(source=source, path=member.name, scope=scope, read=_reader(member))

    def _rows(self, splits: Mapping[str, Rows], label: str, roots: tuple[Path, ...]) -> Iterator[Entry]:
        scope = self._new_scope()
        limit = self._limits.max_entries
        every = (
            entry
            for part, rows in splits.items()
            for entry in entries_of(rows, label=label, part=part, scope=scope, limits=self._limits, roots=roots)
        )
        yield from islice(every, limit)
        if sum(len(rows) for rows in splits.values()) > limit:
            reason = f"it holds more than {limit:,} rows; the rest was not opened"
            self.refuse(label, RefusedError(RefusalKind.TOO_MANY, reason))

    def _new_scope(self) -> int:
        self._scopes += 1
        return self._scopes

    def _unique(self, name: str, folder: str) -> str:
        """The name, or with its folder (and a number) where another source has the same."""
        label, number = name, 1
        while label in self._taken:
            label = f"{folder}/{name}" if number == 1 else f"{folder} ({number})/{name}"
            number += 1
        self._taken.add(label)
        return label


def _reader(member: Member) -> Callable[[], bytes]:
    return member.read


def _read(path: Path, limit_bytes: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise RefusedError(RefusalKind.TOO_LARGE, f"it is larger than {limit_bytes / 2**20:.0f} MiB")
    return data


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(folders)
        yield from (Path(folder, name) for name in sorted(files))
        # os.walk does not follow links to folders; they are reported like links to files.
        yield from (path for name in folders if (path := Path(folder, name)).is_symlink())
