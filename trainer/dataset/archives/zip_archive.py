"""Zip archives: checked before they are listed, inflated one member at a time."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

from trainer.dataset.archives.archive import (
    Archive,
    ArchiveMember,
    check_directory,
    check_sizes,
    damage_refused,
    damaged,
    inflates_too_far,
    is_encrypted,
    is_link,
    size_refusal,
)
from trainer.dataset.input_files import Limits, RefusedError, decode_name
from trainer.protocol.report import RefusalKind
from trainer.protocol.text import _

_END_RECORD = struct.Struct("<4s4H2LH")
_END_RECORD_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_LOCAL_HEADER_BYTES = 30
_UTF8_FLAG, _ENCRYPTED_FLAGS = 0x800, 0x2041
_CHUNK_BYTES = 2**18

#: What zipfile raises for archives that were made to break it.
_BROKEN = (zipfile.BadZipFile, struct.error, ValueError, OverflowError, EOFError, zlib.error, OSError)


class ZipArchive(Archive):
    """An open zip."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._inflated_bytes = 0
        super().__init__(path, limits)

    def _list(self) -> Iterator[ArchiveMember]:
        file_bytes = _check_end_record(self._file, self._limits)
        with damage_refused(*_BROKEN, NotImplementedError):
            self._zip = self._resources.enter_context(zipfile.ZipFile(self._file))
        infos = self._zip.infolist()
        _check_whole(infos, file_bytes, self._limits)
        for info in infos:
            refusal = _refusal(info, self._limits)
            yield ArchiveMember(name=_entry_name(info), refusal=refusal, content=partial(self._inflate, info))

    def _inflate(self, info: zipfile.ZipInfo) -> bytes:
        chunks: list[bytes] = []
        size = 0
        try:
            with damage_refused(*_BROKEN), self._zip.open(info) as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    size += len(chunk)
                    self._inflated_bytes += len(chunk)
                    # The claimed sizes were checked; this counts the bytes that really come out.
                    if size > self._limits.max_entry_bytes or self._inflated_bytes > self._limits.max_archive_bytes:
                        raise inflates_too_far()
                    chunks.append(chunk)
        except RuntimeError as error:  # includes NotImplementedError
            reason = _("it cannot be inflated ({error})", error=error)
            raise RefusedError(RefusalKind.UNSUPPORTED, reason) from error
        if size != info.file_size:
            raise damaged(_("{n} bytes instead of {expected}", n=size, expected=info.file_size))
        return b"".join(chunks)


def _entry_name(info: zipfile.ZipInfo) -> str:
    """The name as its author wrote it, including NULs, where zipfile cuts it."""
    name = info.orig_filename
    return name if info.flag_bits & _UTF8_FLAG else decode_name(name.encode("cp437", "replace"))


def _check_end_record(file: IO[bytes], limits: Limits) -> int:
    """Check the entry count before listing, and return the file's size.

    Listing a hostile million entries takes seconds and a gigabyte.
    """
    file_bytes = file.seek(0, 2)
    entries, directory_bytes = _end_record(file, file_bytes)
    # zipfile reads `directory_bytes`, whatever the count is.
    check_directory(limits, entries=entries, size_bytes=directory_bytes)
    return file_bytes


def _end_record(file: IO[bytes], file_bytes: int) -> tuple[int, int]:
    """Number of entries and bytes of the directory, from the end record (APPNOTE 4.3.16, zip64 4.3.14)."""
    start = max(0, file_bytes - 2**16 - _END_RECORD.size)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END_RECORD.size:
        raise RefusedError(RefusalKind.DAMAGED, _("it is cut short (its end record is missing)"))
    *_head, entries, directory_bytes, _start, _comment = _END_RECORD.unpack_from(tail, at)
    locator_at = start + at - _LOCATOR_64.size
    if locator_at >= 0:
        file.seek(locator_at)
        signature, _disk, end_64_at, _disks = _LOCATOR_64.unpack(file.read(_LOCATOR_64.size))
        if signature == b"PK\x06\x07":
            return _end_record_64(file, end_64_at, locator_at)
    return entries, directory_bytes


def _end_record_64(file: IO[bytes], at: int, locator_at: int) -> tuple[int, int]:
    # zipfile looks right before the locator, other programs where the locator points: both must agree.
    if at != locator_at - _END_RECORD_64.size:
        raise RefusedError(RefusalKind.DAMAGED, _("its two end records disagree"))
    file.seek(at)
    record = file.read(_END_RECORD_64.size)
    if not record.startswith(b"PK\x06\x06"):
        raise RefusedError(RefusalKind.DAMAGED, _("its zip64 end record is missing"))
    *_head, entries, directory_bytes, _start = _END_RECORD_64.unpack(record)
    return entries, directory_bytes


def _check_whole(infos: list[zipfile.ZipInfo], file_bytes: int, limits: Limits) -> None:
    packed = sum(info.compress_size for info in infos)
    if packed > file_bytes or _overlap(infos):
        raise RefusedError(RefusalKind.OVERLAP, _("its entries overlap, as in a zip bomb"))
    check_sizes(packed, sum(info.file_size for info in infos), limits)


def _overlap(infos: list[zipfile.ZipInfo]) -> bool:
    """True if two entries share bytes; Python's zipfile checks this only from 3.11.8 on."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            return True
        end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size
    return False


def _refusal(info: zipfile.ZipInfo, limits: Limits) -> RefusedError | None:
    """Why this entry is not read, or None."""
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return is_link()
    if info.flag_bits & _ENCRYPTED_FLAGS:
        return is_encrypted()
    # Python's zipfile inflates bzip2 and LZMA without a bound on memory, and ordinary zips do not use them.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return RefusedError(RefusalKind.UNSUPPORTED, _("it is compressed by a method other than deflate"))
    if info.file_size > limits.ratio_floor_bytes and info.file_size > info.compress_size * limits.max_ratio:
        ratio = f"{info.file_size // max(info.compress_size, 1):,}"
        return RefusedError(RefusalKind.RATIO, _("it inflates to {ratio} times its size", ratio=ratio))
    return size_refusal(info.file_size, limits)
