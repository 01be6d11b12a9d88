"""7z archives from strangers: header checked before it is listed, bodies inflated once to a temporary file."""

from __future__ import annotations

import io
import lzma
import stat
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

import py7zr
from py7zr.archiveinfo import HeaderStreamsInfo, SignatureHeader, StreamsInfo, read_uint64
from py7zr.exceptions import ArchiveError
from py7zr.properties import COMPRESSION_METHOD, PROPERTY

from trainer.dataset.archives.member import (
    IS_ENCRYPTED,
    IS_LINK,
    Listed,
    RefusedError,
    check_sizes,
    damaged,
    members_of,
    size_refusal,
    too_many,
)
from trainer.dataset.archives.spool import Spool
from trainer.dataset.limits import Limits
from trainer.protocol.report import RefusalKind

#: Methods that py7zr inflates in bounded pieces; deflate, zstd and brotli it inflates a megabyte of input at a time,
#: whatever comes out.
_METHODS = {
    COMPRESSION_METHOD.COPY,
    COMPRESSION_METHOD.DELTA,
    COMPRESSION_METHOD.LZMA,
    COMPRESSION_METHOD.LZMA2,
    COMPRESSION_METHOD.P7Z_BCJ,
    COMPRESSION_METHOD.BCJ_ARM,
    COMPRESSION_METHOD.BCJ_ARMT,
}
_IS_FOREIGN = (RefusalKind.UNSUPPORTED, "it is compressed by a method other than LZMA and LZMA2")
_UNIX_ATTRIBUTES = 0x8000
_REPARSE_POINT = 0x400
_BROKEN = (
    ArchiveError,
    lzma.LZMAError,
    struct.error,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    OverflowError,
    EOFError,
    OSError,
)


class SevenZipArchive:
    """An open 7z; its members share solid blocks, so the first `read` inflates all of them.

    Raises:
        RefusedError: the archive is damaged, encrypted or hostile as a whole.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self._limits = limits
        self._spool: Spool | None = None
        self._places: dict[str, tuple[int, int]] = {}
        self._failure: RefusedError | None = None
        self._file: IO[bytes] = path.open("rb")
        try:
            self._archive = _open(self._file, limits)
            entries = list(self._archive.files)
            sizes = [entry.uncompressed for entry in entries]
            check_sizes(path.stat().st_size, sum(sizes), limits)
            self._wanted: set[str] = set()
            self.members = tuple(members_of(self._list(entries)))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._spool is not None:
            self._spool.close()
        self._file.close()

    def _list(self, entries: list[Any]) -> Iterator[Listed]:
        for place, entry in enumerate(entries):
            name, generated = entry.filename, f"{place:06}"
            # py7zr makes paths of names before it asks where to write: it gets to see none from the archive.
            self._archive.header.files_info.files[place]["filename"] = generated
            refusal = _refusal(entry, self._limits)
            if refusal is None and not entry.is_directory:
                self._wanted.add(generated)
            yield Listed(
                name=name,
                is_folder=entry.is_directory,
                refusal=refusal,
                read=partial(self._read, generated, entry.uncompressed),
            )

    def _read(self, generated: str, size: int) -> bytes:
        if self._spool is None:
            self._spool = self._inflate()
        if generated not in self._places:
            raise self._failure or RefusedError(RefusalKind.DAMAGED, "it is damaged (its content is missing)")
        offset, held = self._places[generated]
        if held != size:
            raise RefusedError(RefusalKind.DAMAGED, f"it is damaged ({held} bytes where {size} were promised)")
        return self._spool.read(offset, size)

    def _inflate(self) -> Spool:
        """Inflate every wanted member in the archive's order; what comes before the first damage can be read."""
        most = self._limits.max_archive_bytes
        spool = Spool(most, RefusedError(RefusalKind.TOO_LARGE, "it inflates to more than it claims"))
        self._spool = spool
        writers = _Writers(spool, self._places)
        try:
            self._archive.extract(targets=self._wanted, factory=writers)
        except RefusedError as refusal:
            self._failure = refusal
        except MemoryError:
            self._failure = RefusedError(RefusalKind.TOO_LARGE, "inflating it takes more memory than is allowed")
        except _BROKEN as error:
            self._failure = damaged(error)
        if self._failure is not None:
            # py7zr checks a member's sum after it is written.
            self._places.pop(writers.latest, None)
        return spool


class _Writer(py7zr.Py7zIO):  # type: ignore[misc]  # py7zr is not typed here
    """Where one member goes: the end of the spool."""

    def __init__(self, spool: Spool, places: dict[str, tuple[int, int]], name: str) -> None:
        self._spool = spool
        self._places = places
        self._name = name
        self._start = spool.size
        places[name] = spool.size, 0

    def write(self, chunk: bytes | bytearray) -> int:
        self._spool.write(chunk)
        self._places[self._name] = self._start, self._spool.size - self._start
        return len(chunk)

    def read(self, size: int | None = None) -> bytes:
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset

    def flush(self) -> None:
        pass

    def size(self) -> int:
        return self._spool.size - self._start


class _Writers(py7zr.WriterFactory):  # type: ignore[misc]
    def __init__(self, spool: Spool, places: dict[str, tuple[int, int]]) -> None:
        self._spool = spool
        self._places = places
        self.latest = ""

    def create(self, filename: str) -> py7zr.Py7zIO:
        # py7zr joins the name to the working folder first.
        self.latest = filename.rpartition("/")[2]
        return _Writer(self._spool, self._places, self.latest)


def _open(file: IO[bytes], limits: Limits) -> Any:
    try:
        _check_header(file, limits)
        file.seek(0)
        archive = py7zr.SevenZipFile(file, "r", max_extract_size=limits.max_archive_bytes)
        if not hasattr(archive, "files"):
            raise RefusedError(RefusalKind.DAMAGED, "it is empty")
        return archive
    except py7zr.PasswordRequired as error:
        raise RefusedError(*IS_ENCRYPTED) from error
    except MemoryError as error:
        raise RefusedError(RefusalKind.TOO_LARGE, "its list of entries takes more memory than is allowed") from error
    except _BROKEN as error:
        raise damaged(error) from error


def _check_header(file: IO[bytes], limits: Limits) -> None:
    """Read the entry count before the list: py7zr makes a dictionary for each of up to 8 million claimed entries."""
    if not py7zr.is_7zfile(file):
        raise RefusedError(RefusalKind.DAMAGED, "it is no 7z archive")
    file.seek(0)
    start = SignatureHeader.retrieve(file)
    if start.nextheadersize > limits.max_directory_bytes:
        raise _long_list(start.nextheadersize)
    body = file.tell()
    file.seek(start.nextheaderofs, io.SEEK_CUR)
    header = io.BytesIO(file.read(start.nextheadersize))
    if header.getvalue()[:1] == PROPERTY.ENCODED_HEADER:
        header.seek(1)
        header = io.BytesIO(_decoded_header(file, body, header, limits))
    if header.read(1) != PROPERTY.HEADER:
        return
    kind = header.read(1)
    if kind == PROPERTY.MAIN_STREAMS_INFO:
        for folder in StreamsInfo.retrieve(header).unpackinfo.folders:
            _check_dictionary(folder, limits)
        kind = header.read(1)
    if kind == PROPERTY.FILES_INFO and (count := read_uint64(header)) > limits.max_entries:
        raise too_many(limits, count)


def _decoded_header(file: IO[bytes], body: int, header: io.BytesIO, limits: Limits) -> bytes:
    streams = HeaderStreamsInfo.retrieve(header)
    folder = streams.unpackinfo.folders[0]
    size = folder.unpacksizes[-1]
    if size > limits.max_directory_bytes or len(streams.unpackinfo.folders) > 1:
        raise _long_list(size)
    _check_dictionary(folder, limits)
    methods = {coder["method"] for coder in folder.coders}
    if COMPRESSION_METHOD.CRYPT_AES256_SHA256 in methods:
        raise RefusedError(*IS_ENCRYPTED)
    if not methods <= _METHODS:
        raise RefusedError(*_IS_FOREIGN)
    file.seek(body + streams.packinfo.packpos)
    decompressor = folder.get_decompressor(streams.packinfo.packsizes[0], True)
    decoded = bytearray()
    while len(decoded) < size:
        before = len(decoded), decompressor.consumed
        decoded += decompressor.decompress(file, max_length=size - len(decoded))
        if (len(decoded), decompressor.consumed) == before:
            raise EOFError("its list of entries is cut short")
    return bytes(decoded)


def _long_list(size: int) -> RefusedError:
    return RefusedError(RefusalKind.TOO_MANY, f"its list of entries alone takes {size / 2**20:.0f} MiB")


def _check_dictionary(folder: Any, limits: Limits) -> None:
    asked = max((_dictionary_bytes(coder) for coder in folder.coders), default=0)
    if asked > limits.max_dictionary_bytes:
        raise RefusedError(RefusalKind.TOO_LARGE, f"inflating it takes {asked / 2**20:,.0f} MiB of memory")


def _dictionary_bytes(coder: dict[str, Any]) -> int:
    """Dictionary size that an LZMA coder asks for (7-Zip's `lzma.txt`; xz format 1.2.0, 5.3.1), 0 for other coders."""
    properties: bytes = coder.get("properties") or b""
    if coder["method"] == COMPRESSION_METHOD.LZMA and len(properties) >= 5:
        return int(struct.unpack_from("<L", properties, 1)[0])
    if coder["method"] == COMPRESSION_METHOD.LZMA2 and properties:
        bits = properties[0] & 0x3F
        return 2**32 - 1 if bits >= 40 else (2 | bits & 1) << (bits // 2 + 11)
    return 0


def _refusal(entry: Any, limits: Limits) -> RefusedError | None:
    attributes = entry.file_properties().get("attributes") or 0
    mode = attributes >> 16 if attributes & _UNIX_ATTRIBUTES else 0
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR) or attributes & _REPARSE_POINT:
        return RefusedError(*IS_LINK)
    methods = {coder["method"] for coder in entry.folder.coders} if entry.folder is not None else set()
    if COMPRESSION_METHOD.CRYPT_AES256_SHA256 in methods:
        return RefusedError(*IS_ENCRYPTED)
    if not methods <= _METHODS:
        return RefusedError(*_IS_FOREIGN)
    return size_refusal(entry.uncompressed, limits)
