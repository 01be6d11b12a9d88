"""Zip archives from strangers: checked before they are listed, inflated one member at a time."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Self

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
from trainer.dataset.limits import Limits
from trainer.dataset.names import decode_name
from trainer.protocol.report import RefusalKind

_END_RECORD = struct.Struct("<4s4H2LH")
_END_RECORD_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_LOCAL_HEADER_BYTES = 30
_UTF8_FLAG, _ENCRYPTED_FLAGS = 0x800, 0x2041
_CHUNK_BYTES = 2**18

#: What zipfile raises on files that were made to break it.
_BROKEN = (
    zipfile.BadZipFile,
    NotImplementedError,
    struct.error,
    ValueError,
    OverflowError,
    EOFError,
    zlib.error,
    OSError,
)


class ZipArchive:
    """An open archive that passed every check that its directory allows.

    Raises:
        RefusedError: the archive is damaged or hostile as a whole.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self._limits = limits
        self._inflated_bytes = 0
        self._file: IO[bytes] = path.open("rb")
        try:
            _check_end_record(self._file, limits)
            self._zip = _open(self._file)
            infos = self._zip.infolist()
            _check_whole(infos, path.stat().st_size, limits)
            self.members = tuple(members_of(self._list(infos)))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._zip.close()
        self._file.close()

    def _list(self, infos: list[zipfile.ZipInfo]) -> Iterator[Listed]:
        for info in infos:
            yield Listed(
                name=entry_name(info),
                # Not `is_dir`, which fails on a name that begins with a NUL.
                is_folder=info.filename.endswith("/"),
                refusal=_refusal(info, self._limits),
                read=partial(self._inflate, info),
            )

    def _inflate(self, info: zipfile.ZipInfo) -> bytes:
        chunks: list[bytes] = []
        size = 0
        try:
            with self._zip.open(info) as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    size += len(chunk)
                    self._inflated_bytes += len(chunk)
                    # The directory's sizes were checked; these count what really comes out.
                    if size > self._limits.max_entry_bytes or self._inflated_bytes > self._limits.max_archive_bytes:
                        raise RefusedError(RefusalKind.TOO_LARGE, "it inflates to more than it claims")
                    chunks.append(chunk)
        except RuntimeError as error:  # NotImplementedError too
            raise RefusedError(RefusalKind.UNSUPPORTED, f"it cannot be inflated ({error})") from error
        except _BROKEN as error:
            raise damaged(error) from error
        if size != info.file_size:
            raise RefusedError(
                RefusalKind.DAMAGED, f"it is damaged ({size} bytes where {info.file_size} were promised)"
            )
        return b"".join(chunks)


def entry_name(info: zipfile.ZipInfo) -> str:
    """The name as its author wrote it, NUL and all (zipfile cuts there)."""
    name = info.orig_filename
    return name if info.flag_bits & _UTF8_FLAG else decode_name(name.encode("cp437", "replace"))


def _open(file: IO[bytes]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except _BROKEN as error:
        raise damaged(error) from error


def _check_end_record(file: IO[bytes], limits: Limits) -> None:
    """Read the entry count before the list: listing a hostile million entries takes seconds and a gigabyte."""
    entries, directory_bytes = _end_record(file)
    # The count may lie, the directory's size may not: zipfile reads that many bytes.
    if entries > limits.max_entries:
        raise too_many(limits, entries)
    if directory_bytes > limits.max_directory_bytes:
        raise RefusedError(RefusalKind.TOO_MANY, f"its list of entries alone takes {directory_bytes / 2**20:.0f} MiB")


def _end_record(file: IO[bytes]) -> tuple[int, int]:
    """Number of entries and bytes of the directory, from the end record (APPNOTE 4.3.16, zip64 4.3.14)."""
    size = file.seek(0, 2)
    start = max(0, size - 2**16 - _END_RECORD.size)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END_RECORD.size:
        raise RefusedError(RefusalKind.DAMAGED, "it is cut short (its end record is missing)")
    _, _, _, _, entries, directory_bytes, _, _ = _END_RECORD.unpack_from(tail, at)
    locator_at = start + at - _LOCATOR_64.size
    if locator_at >= 0:
        file.seek(locator_at)
        signature, _, end_64_at, _ = _LOCATOR_64.unpack(file.read(_LOCATOR_64.size))
        if signature == b"PK\x06\x07":
            entries, directory_bytes = _end_record_64(file, end_64_at, locator_at)
    return entries, directory_bytes


def _end_record_64(file: IO[bytes], at: int, locator_at: int) -> tuple[int, int]:
    # zipfile looks right before the locator, other programs where the locator points: they must agree.
    if at != locator_at - _END_RECORD_64.size:
        raise RefusedError(RefusalKind.DAMAGED, "its two end records disagree")
    file.seek(at)
    record = file.read(_END_RECORD_64.size)
    if not record.startswith(b"PK\x06\x06"):
        raise RefusedError(RefusalKind.DAMAGED, "its zip64 end record is missing")
    _, _, _, _, _, _, _, entries, directory_bytes, _ = _END_RECORD_64.unpack(record)
    return entries, directory_bytes


def _check_whole(infos: list[zipfile.ZipInfo], file_bytes: int, limits: Limits) -> None:
    if len(infos) > limits.max_entries:
        raise too_many(limits, len(infos))
    packed = sum(info.compress_size for info in infos)
    inflated = sum(info.file_size for info in infos)
    if packed > file_bytes or _overlap(infos):
        raise RefusedError(RefusalKind.OVERLAP, "its entries overlap, as in a zip bomb")
    check_sizes(packed, inflated, limits)


def _overlap(infos: list[zipfile.ZipInfo]) -> bool:
    """True if two entries share bytes; Python's zipfile noticed only from 3.11.8 on."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            return True
        end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size
    return False


def _refusal(info: zipfile.ZipInfo, limits: Limits) -> RefusedError | None:
    """Why this entry is not read although the archive is."""
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return RefusedError(*IS_LINK)
    if info.flag_bits & _ENCRYPTED_FLAGS:
        return RefusedError(*IS_ENCRYPTED)
    # bzip2 and LZMA inflate without a bound on memory in Python's zipfile, and nobody's zips need them.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return RefusedError(RefusalKind.UNSUPPORTED, "it is compressed by a method other than deflate")
    if info.file_size > limits.ratio_floor_bytes and info.file_size > info.compress_size * limits.max_ratio:
        return RefusedError(
            RefusalKind.RATIO, f"it inflates to {info.file_size // max(info.compress_size, 1):,} times its size"
        )
    return size_refusal(info.file_size, limits)
