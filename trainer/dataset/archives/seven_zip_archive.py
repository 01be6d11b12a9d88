"""7z archives: the header is checked before it is listed; all members are inflated once to a temporary file."""

from __future__ import annotations

import io
import lzma
import stat
import struct
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import py7zr
from py7zr.archiveinfo import HeaderStreamsInfo, SignatureHeader, StreamsInfo, read_uint64
from py7zr.exceptions import ArchiveError
from py7zr.properties import COMPRESSION_METHOD, PROPERTY

from trainer.dataset.archives.archive import (
    Archive,
    ArchiveMember,
    Spool,
    check_directory,
    check_sizes,
    damage_refused,
    damaged,
    inflates_too_far,
    is_encrypted,
    is_link,
    refusal_for,
    size_refusal,
)
from trainer.dataset.input_files import Limits, RefusedError
from trainer.protocol import text
from trainer.protocol.report import RefusalKind
from trainer.protocol.text import _

#: Methods that py7zr inflates in bounded pieces. It inflates deflate, zstd and brotli a megabyte of input at a time,
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
_UNIX_ATTRIBUTES = 0x8000
_REPARSE_POINT = 0x400
#: What py7zr raises for archives that were made to break it.
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


class SevenZipArchive(Archive):
    """An open 7z. Its members share solid blocks, so the first `read` inflates all of them."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._packed_bytes = path.stat().st_size
        self._members: _MemberWriters | None = None
        self._wanted: set[str] = set()
        self._failure: RefusedError | None = None
        super().__init__(path, limits)

    def _list(self) -> Iterator[ArchiveMember]:
        self._archive = _open(self._file, self._limits)
        entries = list(self._archive.files)
        bombs = _bombs(entries, self._archive.header, self._limits)
        sound = sum(entry.uncompressed for index, entry in enumerate(entries) if index not in bombs)
        check_sizes(self._packed_bytes, sound, self._limits)
        for index, entry in enumerate(entries):
            name, generated = entry.filename, f"{index:06}"
            # py7zr makes paths of names before it asks where to write, so it gets to see none from the archive.
            self._archive.header.files_info.files[index]["filename"] = generated
            refusal = None if entry.is_directory else bombs.get(index) or _refusal(entry, self._limits)
            if refusal is None and not entry.is_directory:
                self._wanted.add(generated)
            yield ArchiveMember(
                name=f"{name}/" if entry.is_directory else name,
                refusal=refusal,
                content=partial(self._read, generated, entry.uncompressed),
            )

    def _read(self, name: str, size: int) -> bytes:
        if self._members is None:
            self._members = self._inflate()
        if name not in self._members.ranges:
            raise self._failure or damaged(_("its content is missing"))
        offset, written = self._members.ranges[name]
        if written != size:
            raise damaged(_("{n} bytes instead of {expected}", n=written, expected=size))
        return self._members.spool.read(offset, size)

    def _inflate(self) -> _MemberWriters:
        """Inflate every wanted member in the archive's order; members before the first damage stay readable."""
        spool = Spool(self._limits.max_archive_bytes, inflates_too_far())
        self._resources.callback(spool.close)
        writers = _MemberWriters(spool)
        try:
            self._archive.extract(targets=self._wanted, factory=writers)
        except RefusedError as refusal:
            self._failure = refusal
        except (MemoryError, *_BROKEN) as error:
            self._failure = refusal_for(error)
        if self._failure is not None:
            # py7zr checks a member's CRC only after it is written.
            writers.ranges.pop(writers.latest, None)
        return writers


class _MemberWriters(py7zr.WriterFactory):  # type: ignore[misc]  # py7zr is not typed here
    """Appends the members to one spool, and records where each one is."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        #: Offset and size by name.
        self.ranges: dict[str, tuple[int, int]] = {}
        self.latest = ""

    def create(self, filename: str) -> py7zr.Py7zIO:
        # py7zr puts the working folder before the name.
        self.latest = filename.rpartition("/")[2]
        self.ranges[self.latest] = self.spool.size, 0
        return _MemberWriter(self, self.latest)


class _MemberWriter(py7zr.Py7zIO):  # type: ignore[misc]
    def __init__(self, writers: _MemberWriters, name: str) -> None:
        self._writers = writers
        self._name = name

    def write(self, chunk: bytes | bytearray) -> int:
        self._writers.spool.write(chunk)
        start, size = self._writers.ranges[self._name]
        self._writers.ranges[self._name] = start, size + len(chunk)
        return len(chunk)

    def read(self, size: int | None = None) -> bytes:
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset

    def flush(self) -> None:
        pass

    def size(self) -> int:
        return self._writers.ranges[self._name][1]


def _open(file: IO[bytes], limits: Limits) -> Any:
    try:
        with damage_refused(*_BROKEN):
            _check_header(file, limits)
            file.seek(0)
            archive = py7zr.SevenZipFile(file, "r", max_extract_size=limits.max_archive_bytes)
    except py7zr.PasswordRequired as error:
        raise is_encrypted() from error
    if not hasattr(archive, "files"):
        raise RefusedError(RefusalKind.DAMAGED, _("it is empty"))
    return archive


def _check_header(file: IO[bytes], limits: Limits) -> None:
    """Check the entry count before listing: py7zr makes a dictionary for each of up to 8 million claimed entries."""
    if not py7zr.is_7zfile(file):
        raise RefusedError(RefusalKind.DAMAGED, _("it is not a 7z archive"))
    file.seek(0)
    start = SignatureHeader.retrieve(file)
    check_directory(limits, size_bytes=start.nextheadersize)
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
    if kind == PROPERTY.FILES_INFO:
        check_directory(limits, entries=read_uint64(header))


def _decoded_header(file: IO[bytes], body: int, header: io.BytesIO, limits: Limits) -> bytes:
    streams = HeaderStreamsInfo.retrieve(header)
    if len(streams.unpackinfo.folders) > 1:
        raise damaged(_("its list of entries is in several parts"))
    folder = streams.unpackinfo.folders[0]
    size = folder.unpacksizes[-1]
    check_directory(limits, size_bytes=size)
    _check_dictionary(folder, limits)
    if (refusal := _method_refusal(folder)) is not None:
        raise refusal
    file.seek(body + streams.packinfo.packpos)
    decompressor = folder.get_decompressor(streams.packinfo.packsizes[0], True)
    decoded = bytearray()
    while len(decoded) < size:
        before = len(decoded), decompressor.consumed
        decoded += decompressor.decompress(file, max_length=size - len(decoded))
        if (len(decoded), decompressor.consumed) == before:
            raise EOFError(_("its list of entries is cut short"))
    return bytes(decoded)


def _check_dictionary(folder: Any, limits: Limits) -> None:
    needed = max((_dictionary_bytes(coder) for coder in folder.coders), default=0)
    if needed > limits.max_dictionary_bytes:
        reason = _("unpacking it takes {size} of memory", size=text.size(needed))
        raise RefusedError(RefusalKind.TOO_LARGE, reason)


def _dictionary_bytes(coder: dict[str, Any]) -> int:
    """Dictionary size that an LZMA coder asks for (7-Zip's `lzma.txt`; xz format 1.2.0, 5.3.1), 0 for other coders."""
    properties: bytes = coder.get("properties") or b""
    if coder["method"] == COMPRESSION_METHOD.LZMA and len(properties) >= 5:
        return int(struct.unpack_from("<L", properties, 1)[0])
    if coder["method"] == COMPRESSION_METHOD.LZMA2 and properties:
        bits = properties[0] & 0x3F
        return 2**32 - 1 if bits >= 40 else (2 | bits & 1) << (bits // 2 + 11)
    return 0


def _bombs(entries: Sequence[Any], header: Any, limits: Limits) -> dict[int, RefusedError]:
    """The refusals of the entries that inflate too far, and of those that can only be read behind such."""
    streams = getattr(header, "main_streams", None)
    if streams is None:
        return {}
    numbers = {id(folder): number for number, folder in enumerate(streams.unpackinfo.folders)}
    blocks: dict[int, list[int]] = {}
    for index, entry in enumerate(entries):
        if entry.folder is not None:
            blocks.setdefault(numbers[id(entry.folder)], []).append(index)
    refusals: dict[int, RefusedError] = {}
    # What is skipped is inflated all the same.
    left = limits.max_entry_bytes
    for number, indices in blocks.items():
        most = max(limits.ratio_floor_bytes, int(streams.packinfo.packsizes[number] * limits.max_ratio))
        sizes = {index: entries[index].uncompressed for index in indices}
        if sum(sizes.values()) <= most:
            continue
        huge = {index for index, size in sizes.items() if size > limits.ratio_floor_bytes}
        if sum(size for index, size in sizes.items() if index not in huge) > most:
            huge = set(indices)
        for index in indices:
            left -= sizes[index] if index in huge else 0
            if index in huge or left < 0:
                refusals[index] = _inflates_as_a_bomb() if index in huge else _is_behind_a_bomb()
    return refusals


def _inflates_as_a_bomb() -> RefusedError:
    return RefusedError(
        RefusalKind.RATIO, _("it unpacks to far more than its block of the archive, as a zip bomb does")
    )


def _is_behind_a_bomb() -> RefusedError:
    return RefusedError(RefusalKind.RATIO, _("it is packed behind an entry that unpacks as a zip bomb does"))


def _refusal(entry: Any, limits: Limits) -> RefusedError | None:
    """Why this entry is not read, or None."""
    attributes = entry.file_properties().get("attributes") or 0
    mode = attributes >> 16 if attributes & _UNIX_ATTRIBUTES else 0
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR) or attributes & _REPARSE_POINT:
        return is_link()
    if entry.folder is not None and (refusal := _method_refusal(entry.folder)) is not None:
        return refusal
    return size_refusal(entry.uncompressed, limits)


def _method_refusal(folder: Any) -> RefusedError | None:
    methods = {coder["method"] for coder in folder.coders}
    if COMPRESSION_METHOD.CRYPT_AES256_SHA256 in methods:
        return is_encrypted()
    if not methods <= _METHODS:
        return RefusedError(RefusalKind.UNSUPPORTED, _("it is compressed by a method other than LZMA and LZMA2"))
    return None
