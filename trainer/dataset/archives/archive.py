"""The base of all archive formats: the open archive, its members, their checks, and the spool for their content."""

from __future__ import annotations

import re
import tempfile
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from trainer.dataset.input_files import (
    FINDER_ICON,
    Limits,
    RefusedError,
    is_os_clutter,
    normalize_path,
    printable,
    unsafe_reason,
)
from trainer.dataset.text_encoding import detect_encoding, detect_oem_encoding, is_plausible
from trainer.protocol import text
from trainer.protocol.report import RefusalKind
from trainer.protocol.text import _

_EAST_ASIAN_ENCODINGS = ("gb18030", "cp932", "cp949", "big5")
#: How libraries say that a file ends before its content does.
_ENDS_EARLY = re.compile(r"truncat|end of (?:file|data|stream|the end-of-stream)|ended before|incomplete|eof")
#: Code pages of names, in which too few letters are tried.
_NAME_ENCODINGS = ("cp437", "cp850", "cp1252", "cp866", "cp1251", "cp852", *_EAST_ASIAN_ENCODINGS)


@dataclass(frozen=True, kw_only=True)
class ArchiveMember:
    """One entry of an archive, not read yet; never read if there is a `refusal`."""

    #: As its author wrote it while the archive is listed (folders end with a slash); safe in `Archive.members`.
    name: str
    refusal: RefusedError | None = None
    content: Callable[[], bytes]

    def read(self) -> bytes:
        """Read the member; members may be read in any order.

        Raises:
            RefusedError: The member is refused, damaged, or larger than it claims.
        """
        if self.refusal is not None:
            raise self.refusal
        return self.content()


class Archive(ABC):
    """An open archive that passed every check that its list of entries allows; close it after use.

    Raises:
        RefusedError: The archive is damaged, encrypted or hostile as a whole.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self._limits = limits
        #: Closed with the archive.
        self._resources = ExitStack()
        #: Entries that an operating system or a program that syncs left behind; they are no members.
        self.clutter = 0
        try:
            self._file = self._resources.enter_context(self._open(path))
            self.members = tuple(self._safe_members(self._list()))
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> IO[bytes]:
        return path.open("rb")

    def _safe_members(self, entries: Iterable[ArchiveMember]) -> Iterator[ArchiveMember]:
        """Yield the entries except folders and clutter under safe names; a duplicate name is refused."""
        seen: set[str] = set()
        for count, entry in enumerate(entries, start=1):
            if count > self._limits.max_entries:
                raise _too_many(self._limits)
            is_folder = entry.name.endswith(("/", "\\"))
            reason = unsafe_reason(entry.name)
            # `tar -C folder .` lists the folder itself.
            if is_folder and not normalize_path(entry.name):
                continue
            if is_os_clutter(entry.name) and (reason is None or entry.name.endswith(FINDER_ICON)):
                self.clutter += not is_folder
                continue
            if reason is None and is_folder:
                continue
            refusal = RefusedError(RefusalKind.UNSAFE_PATH, reason) if reason else entry.refusal
            name = printable(entry.name if reason else normalize_path(entry.name))
            # Names that differ in case only are two files: nothing is unpacked to its name.
            key = unicodedata.normalize("NFC", name)
            if refusal is None and key in seen:
                refusal = RefusedError(RefusalKind.COLLISION, _("an earlier entry has the same name"))
            seen.add(key)
            yield ArchiveMember(name=name, refusal=refusal, content=entry.content)

    @abstractmethod
    def _list(self) -> Iterator[ArchiveMember]:
        """Yield the archive's entries as its authors named them."""

    def close(self) -> None:
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def decode_names(raw: Sequence[bytes]) -> list[str]:
    """Decode file names of one origin: each as UTF-8, else all of them by one legacy encoding.

    Zip programs that do not set the UTF-8 flag write the code page of their system.
    """
    names = {name: _utf8(name) for name in dict.fromkeys(raw)}
    legacy = [name for name, decoded in names.items() if decoded is None]
    encoding = _encoding_of(legacy) if legacy else "utf-8"
    return [decoded if (decoded := names[name]) is not None else name.decode(encoding, "replace") for name in raw]


def _utf8(name: bytes) -> str | None:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _encoding_of(names: Sequence[bytes]) -> str:
    """The encoding of names that are not UTF-8: as detected, else the first in which all look like names.

    DOS and so zip itself wrote cp437; Windows writes the code page of its language.
    """
    # Without folders and endings, which are ASCII in all languages.
    words = dict.fromkeys(part.rsplit(b".", 1)[0] for name in names for part in name.split(b"/"))
    sample = b"\n".join(word for word in words if not word.isascii()) or b"\n".join(names)
    if detected := detect_oem_encoding(sample) or detect_encoding(sample):
        return detected
    decodable = [encoding for encoding in _NAME_ENCODINGS if _is_decodable(sample, encoding)]
    plausible = (encoding for encoding in decodable if is_plausible(sample.decode(encoding)))
    return next(plausible, None) or next((each for each in decodable if each in _EAST_ASIAN_ENCODINGS), "cp437")


def _is_decodable(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


@contextmanager
def damage_refused(*errors: type[Exception]) -> Iterator[None]:
    """Turn the errors that a library raises for a damaged archive, and MemoryError, into refusals."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, (MemoryError, *errors)):
            raise
        raise refusal_for(error) from error


def refusal_for(error: Exception) -> RefusedError:
    """The refusal for an error that a library raised while it read an archive or a dataset, in words of ours."""
    message = str(error).lower()
    # lzma and zstd, when they need more than the limit that they were given.
    if isinstance(error, MemoryError) or "memory usage limit" in message or "requires too much memory" in message:
        return RefusedError(RefusalKind.TOO_LARGE, _("unpacking it takes more memory than is allowed"))
    if isinstance(error, EOFError) or _ENDS_EARLY.search(message):
        return cut_short()
    if "crc" in message or "checksum" in message:
        return damaged(_("its checksum is wrong"))
    return damaged(_("its data is wrong"))


def damaged(details: str) -> RefusedError:
    return RefusedError(RefusalKind.DAMAGED, _("it is damaged ({details})", details=details))


def cut_short() -> RefusedError:
    return RefusedError(RefusalKind.DAMAGED, _("it is cut short"))


def is_link() -> RefusedError:
    return RefusedError(RefusalKind.LINK, _("it is a link or a device, not a file"))


def is_encrypted() -> RefusedError:
    return RefusedError(RefusalKind.ENCRYPTED, _("it is encrypted"))


def is_one_of_several() -> RefusedError:
    reason = _("it is one part of an archive in several parts, which are not put together; make one archive of it")
    return RefusedError(RefusalKind.UNSUPPORTED, reason)


def inflates_too_far() -> RefusedError:
    return RefusedError(RefusalKind.TOO_LARGE, _("it unpacks to more than it claims"))


def _too_many(limits: Limits, entries: int | None = None) -> RefusedError:
    most = f"{limits.max_entries:,}"
    if entries is None:
        reason = _("it contains more than {most} entries", most=most)
    else:
        reason = _("it contains {n} entries; at most {most} are opened", n=f"{entries:,}", most=most)
    return RefusedError(RefusalKind.TOO_MANY, reason)


def check_directory(limits: Limits, *, entries: int = 0, size_bytes: int = 0) -> None:
    """Check the claimed size of a list of entries before it is read.

    Raises:
        RefusedError: It has too many entries or is too large.
    """
    if entries > limits.max_entries:
        raise _too_many(limits, entries)
    if size_bytes > limits.max_directory_bytes:
        reason = _("its list of entries alone takes {size}", size=text.size(size_bytes))
        raise RefusedError(RefusalKind.TOO_MANY, reason)


def check_sizes(packed_bytes: int, inflated_bytes: int, limits: Limits) -> None:
    """Check the claimed sizes of a whole archive.

    Raises:
        RefusedError: It inflates to too much.
    """
    if inflated_bytes > limits.max_archive_bytes:
        size, most = text.size(inflated_bytes), text.size(limits.max_archive_bytes)
        reason = _("it unpacks to {size}; at most {most} are opened", size=size, most=most)
        raise RefusedError(RefusalKind.TOO_LARGE, reason)
    if inflated_bytes > limits.ratio_floor_bytes and inflated_bytes > packed_bytes * limits.max_ratio:
        ratio = f"{inflated_bytes / max(packed_bytes, 1):,.0f}"
        reason = _("it unpacks to {ratio} times its size, as a zip bomb does", ratio=ratio)
        raise RefusedError(RefusalKind.RATIO, reason)


def size_refusal(size_bytes: int, limits: Limits) -> RefusedError | None:
    """Why an entry of this size is not read, or None."""
    if size_bytes < 0:
        return RefusedError(RefusalKind.DAMAGED, _("it claims a negative size"))
    if size_bytes > limits.max_entry_bytes:
        return RefusedError(RefusalKind.TOO_LARGE, _("it unpacks to {size}", size=text.size(size_bytes)))
    return None


class Spool:
    """A growing temporary file of bounded size. It has no name, so a killed process leaves nothing behind."""

    def __init__(self, max_bytes: int, when_full: RefusedError) -> None:
        self.file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        self._max_bytes = max_bytes
        self._when_full = when_full
        self.size = 0

    def write(self, chunk: bytes | bytearray) -> None:
        """Append a chunk.

        Raises:
            RefusedError: The spool or the disk is full.
        """
        if self.size + len(chunk) > self._max_bytes:
            raise self._when_full
        try:
            self.file.write(chunk)
        except OSError as error:
            raise _disk_full(error) from error
        self.size += len(chunk)

    def flush(self) -> None:
        """Flush to the disk.

        Raises:
            RefusedError: The disk is full.
        """
        try:
            self.file.flush()
        except OSError as error:
            raise _disk_full(error) from error

    def read(self, offset: int, size: int) -> bytes:
        self.file.seek(offset)
        return self.file.read(size)

    def close(self) -> None:
        # Closing flushes, which fails once more on a full disk.
        with suppress(OSError):
            self.file.close()


def _disk_full(error: OSError) -> RefusedError:
    reason = _("there is no space to unpack it ({error})", error=error.strerror or error)
    return RefusedError(RefusalKind.TOO_LARGE, reason)
