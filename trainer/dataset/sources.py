"""What was handed in, as one list of entries in natural order: zip members, files of folders, loose files."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath

from trainer.dataset.archive import Member, RefusedError, ZipArchive
from trainer.dataset.kinds import CAPTION_EXTENSIONS, HEAD_BYTES, Kind, is_picture, sniff
from trainer.dataset.limits import Limits
from trainer.dataset.names import decode_name, is_clutter, natural_key, printable
from trainer.errors import DatasetError
from trainer.protocol.report import RefusalKind, Refused


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file that may be a picture or a caption."""

    #: As the report names it: the path below the input, `archive.zip!member` inside an archive.
    source: str
    #: Path within its folder or archive; a caption belongs to the picture of the same `scope` and stem.
    path: str
    #: Which folder or archive; all loose files share one.
    scope: int
    #: Raises RefusedError.
    read: Callable[[], bytes]


class Sources:
    """The opened inputs; closes its archives on exit.

    Raises:
        DatasetError: a path does not exist, or cannot be read.
    """

    def __init__(self, paths: Iterable[Path], limits: Limits) -> None:
        self._limits = limits
        self._stack = ExitStack()
        self._taken: set[str] = set()
        self._scopes = 1
        self._files: list[tuple[str, Path]] = []
        self.refused: list[Refused] = []
        entries: list[Entry] = []
        try:
            for path in paths:
                entries += self._source(Path(path))
        except BaseException:
            self._stack.close()
            raise
        self.entries = sorted(entries, key=lambda entry: natural_key(entry.source))

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def digest(self) -> str:
        """SHA-256 over the names and bytes of every file handed in."""
        whole = hashlib.sha256()
        for label, path in sorted(self._files):
            with path.open("rb") as file:
                whole.update(f"{label}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return whole.hexdigest()

    def refuse(self, source: str, refusal: RefusedError) -> None:
        self.refused.append(Refused(source=source, kind=refusal.kind, reason=refusal.reason))

    def _source(self, path: Path) -> list[Entry]:
        try:
            if path.is_dir():
                return list(self._folder(path.resolve()))
            loose = [path, *self._sidecars(path)]
            return [entry for file in loose for entry in self._loose(file)]
        except FileNotFoundError as error:
            raise DatasetError(f"There is no file {path}.", "Check the path.") from error
        except OSError as error:
            raise DatasetError(
                f"{path} cannot be read: {error.strerror or error}.", "Check its permissions."
            ) from error

    @staticmethod
    def _sidecars(path: Path) -> list[Path]:
        """Captions that lie beside a loose picture."""
        with path.open("rb") as file:
            if not is_picture(file.read(HEAD_BYTES)):
                return []
        return [beside for ext in CAPTION_EXTENSIONS if (beside := path.with_suffix(ext)).is_file()]

    def _loose(self, path: Path) -> Iterator[Entry]:
        if any(path.resolve() == known.resolve() for _, known in self._files):
            return
        name = printable(decode_name(os.fsencode(path.name)))
        yield from self._file(path, label=self._unique(name, path.parent.name), inner=name, scope=0)

    def _folder(self, root: Path) -> Iterator[Entry]:
        scope = self._new_scope()
        for count, path in enumerate(_walk(root)):
            if count >= self._limits.max_entries:
                reason = f"it holds more than {self._limits.max_entries:,} files; the rest was not opened"
                self.refuse(root.name, RefusedError(RefusalKind.TOO_MANY, reason))
                return
            inner = printable(decode_name(os.fsencode(path.relative_to(root).as_posix())))
            if is_clutter(inner):
                continue
            label = self._unique(inner, root.name)
            # A link may point anywhere on the machine, a pipe never ends.
            if not stat.S_ISREG(path.lstat().st_mode):
                self.refuse(label, RefusedError(RefusalKind.LINK, "it is a link or a device, not a file"))
                continue
            yield from self._file(path, label=label, inner=inner, scope=scope)

    def _file(self, path: Path, *, label: str, inner: str, scope: int) -> Iterator[Entry]:
        self._files.append((label, path))
        with path.open("rb") as file:
            kind = sniff(file.read(HEAD_BYTES))
        if kind is Kind.ZIP:
            yield from self._archive(path, label)
        else:
            limit = self._limits.max_entry_bytes
            yield Entry(source=label, path=inner, scope=scope, read=lambda: _read(path, limit))

    def _archive(self, path: Path, label: str) -> Iterator[Entry]:
        try:
            archive = self._stack.enter_context(ZipArchive(path, self._limits))
        except RefusedError as refusal:
            self.refuse(label, refusal)
            return
        scope = self._new_scope()
        for member in archive.members:
            source = f"{label}!{member.name}"
            if member.refusal is not None:
                self.refuse(source, member.refusal)
            else:
                yield Entry(source=source, path=member.name, scope=scope, read=_reader(member))

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
