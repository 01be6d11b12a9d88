"""Zip archives: checked before they are listed, inflated one member at a time."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
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
    decode_names,
    inflates_too_far,
    is_encrypted,
    is_link,
    is_one_of_several,
    size_refusal,
)
from trainer.dataset.archives.decompressors import BROKEN_STREAM, UNREAD_METHODS, ZIP_DECOMPRESSORS, ZSTANDARD
from trainer.dataset.input_files import Limits, RefusedError
from trainer.protocol.report import RefusalKind
from trainer.protocol.text import _

_END_RECORD = struct.Struct("<4s4H2LH")
_END_RECORD_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
#: Of an entry of the directory: its flags, and the lengths of its name, extra fields and comment (APPNOTE 4.3.12).
_DIRECTORY_ENTRY = struct.Struct("<8xH18x3H")
_DIRECTORY_ENTRY_BYTES, _FLAGS_AT = 46, 8
_UTF8_FLAG, _ENCRYPTED_FLAGS = 0x800, 0x2041
#: Info-ZIP's extra field with the name in UTF-8.
_UNICODE_PATH = 0x7075
_CHUNK_BYTES = 2**18
_MAX_FRAMES = 10_000

#: What zipfile and the decompressors raise for archives that were made to break them.
_BROKEN = (zipfile.BadZipFile, struct.error, OverflowError, *BROKEN_STREAM)


class ZipArchive(Archive):
    """An open zip, also behind the program of a self-extracting one."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._inflated_bytes = 0
        super().__init__(path, limits)

    def _list(self) -> Iterator[ArchiveMember]:
        file_bytes, directory = _check_end_record(self._file, self._limits)
        with damage_refused(*_BROKEN, NotImplementedError):
            self._zip = self._resources.enter_context(zipfile.ZipFile(_NamedFile(self._file, directory)))
        infos = self._zip.infolist()
        refusals = [_refusal(info, self._limits) for info in infos]
        files = [refusal for info, refusal in zip(infos, refusals, strict=True) if not info.orig_filename.endswith("/")]
        if files and all(refusal is not None and refusal.kind is RefusalKind.ENCRYPTED for refusal in files):
            raise is_encrypted()
        sound = [info for info, refusal in zip(infos, refusals, strict=True) if refusal is None]
        _check_whole(infos, sound, file_bytes, self._limits)
        for info, name, refusal in zip(infos, _entry_names(infos), refusals, strict=True):
            yield ArchiveMember(name=name, refusal=refusal, content=partial(self._inflate, info))

    def _inflate(self, info: zipfile.ZipInfo) -> bytes:
        chunks: list[bytes] = []
        size = crc = 0
        with damage_refused(*_BROKEN):
            for chunk in self._chunks(info):
                size += len(chunk)
                self._inflated_bytes += len(chunk)
                # The claimed sizes were checked; this counts the bytes that really come out.
                if size > self._limits.max_entry_bytes or self._inflated_bytes > self._limits.max_archive_bytes:
                    raise inflates_too_far()
                if size > info.file_size:
                    break
                crc = zlib.crc32(chunk, crc)
                chunks.append(chunk)
        if size != info.file_size:
            raise damaged(_("{n} bytes instead of {expected}", n=size, expected=info.file_size))
        if crc != info.CRC:
            raise damaged(_("its checksum is wrong"))
        return b"".join(chunks)

    def _chunks(self, info: zipfile.ZipInfo) -> Iterator[bytes]:
        """Yield the content of an entry in pieces of bounded size."""
        at = info.header_offset
        self._file.seek(at)
        signature, *_fields, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(self._file.read(_LOCAL_HEADER.size))
        if signature != b"PK\x03\x04":
            raise damaged(_("its header"))
        at += _LOCAL_HEADER.size + name_bytes + extra_bytes
        end = at + info.compress_size
        data = b""

        def read() -> bytes:
            nonlocal at
            self._file.seek(at)
            chunk = self._file.read(min(_CHUNK_BYTES, end - at))
            at += len(chunk)
            return chunk

        # Zstandard may be in several frames; of other streams, what follows is not theirs.
        for _frame in range(_MAX_FRAMES if info.compress_type in ZSTANDARD else 1):
            decompressor = ZIP_DECOMPRESSORS[info.compress_type](self._limits)
            while not decompressor.eof:
                if not data and decompressor.needs_input and not (data := read()):
                    return
                if chunk := decompressor.decompress(data, _CHUNK_BYTES):
                    yield chunk
                data = b""
            data = decompressor.unused_data or read()
            if not data:
                return


class _NamedFile:
    """The file without the UTF-8 flag where a name is not UTF-8: zipfile would refuse the whole archive."""

    def __init__(self, file: IO[bytes], directory: range) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell
        #: Flags without the one for UTF-8, by where they are.
        self._flags = dict(_false_flags(file, directory))

    def read(self, size: int = -1) -> bytes:
        start = self._file.tell()
        data = self._file.read(size)
        if not any(start <= at < start + len(data) for at in self._flags):
            return data
        changed = bytearray(data)
        for at, flags in self._flags.items():
            if 0 <= at - start <= len(data) - 2:
                struct.pack_into("<H", changed, at - start, flags)
        return bytes(changed)


def _false_flags(file: IO[bytes], directory: range) -> Iterator[tuple[int, int]]:
    """Yield where the flags of an entry claim that its name is UTF-8 and it is not, and the flags without that."""
    file.seek(directory.start)
    data, at = file.read(len(directory)), 0
    while at + _DIRECTORY_ENTRY.size <= len(data) and data.startswith(b"PK\x01\x02", at):
        flags, name_bytes, extra_bytes, comment_bytes = _DIRECTORY_ENTRY.unpack_from(data, at)
        name = data[at + _DIRECTORY_ENTRY_BYTES : at + _DIRECTORY_ENTRY_BYTES + name_bytes]
        if flags & _UTF8_FLAG and not _is_utf8(name):
            yield directory.start + at + _FLAGS_AT, flags & ~_UTF8_FLAG
        at += _DIRECTORY_ENTRY_BYTES + name_bytes + extra_bytes + comment_bytes


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _entry_names(infos: Sequence[zipfile.ZipInfo]) -> Iterator[str]:
    """The names as their author wrote them, including NULs, where zipfile cuts them."""
    unicode = [_unicode_name(info) for info in infos]
    raw = [info.orig_filename.encode("cp437", "replace") for info in infos]
    unknown = [name for name, known in zip(raw, unicode, strict=True) if known is None]
    decoded = dict(zip(unknown, decode_names(unknown), strict=True))
    return (decoded[name] if known is None else known for name, known in zip(raw, unicode, strict=True))


def _unicode_name(info: zipfile.ZipInfo) -> str | None:
    """The name whose encoding the archive states: by the UTF-8 flag, or by Info-ZIP's extra field (APPNOTE 4.6.9)."""
    name = info.orig_filename
    if info.flag_bits & _UTF8_FLAG:
        return name
    extra = info.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        # The field belongs to another name if a program that does not know it renamed the entry.
        if kind == _UNICODE_PATH and size >= 5 and field[1:5] == _crc(name.encode("cp437", "replace")):
            with suppress(UnicodeDecodeError):
                return field[5:].decode("utf-8")
    return None


def _crc(data: bytes) -> bytes:
    return struct.pack("<L", zlib.crc32(data))


def _check_end_record(file: IO[bytes], limits: Limits) -> tuple[int, range]:
    """Check the entry count before listing, and return the file's size and where its directory is.

    Listing a hostile million entries takes seconds and a gigabyte.
    """
    file_bytes = file.seek(0, 2)
    entries, directory_bytes, end = _end_record(file, file_bytes)
    # zipfile reads `directory_bytes`, whatever the count is.
    check_directory(limits, entries=entries, size_bytes=directory_bytes)
    # Where zipfile looks for it, too: right before the end record.
    return file_bytes, range(max(0, end - directory_bytes), end)


def _end_record(file: IO[bytes], file_bytes: int) -> tuple[int, int, int]:
    """Entries and bytes of the directory, and where the end record is (APPNOTE 4.3.16, zip64 4.3.14)."""
    start = max(0, file_bytes - 2**16 - _END_RECORD.size)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END_RECORD.size:
        raise RefusedError(RefusalKind.DAMAGED, _("it is cut short (its end record is missing)"))
    _mark, disk, _first_disk, _here, entries, directory_bytes, _start, _comment = _END_RECORD.unpack_from(tail, at)
    locator_at = start + at - _LOCATOR_64.size
    if locator_at >= 0:
        file.seek(locator_at)
        signature, _disk, end_64_at, disks = _LOCATOR_64.unpack(file.read(_LOCATOR_64.size))
        if signature == b"PK\x06\x07":
            if disks > 1:
                raise is_one_of_several()
            return _end_record_64(file, end_64_at, locator_at)
    if disk not in (0, 2**16 - 1):
        raise is_one_of_several()
    return entries, directory_bytes, start + at


def _end_record_64(file: IO[bytes], claimed_at: int, locator_at: int) -> tuple[int, int, int]:
    # zipfile looks right before the locator, other programs where the locator points: both must agree.
    at = locator_at - _END_RECORD_64.size
    if at < 0:
        raise RefusedError(RefusalKind.DAMAGED, _("its zip64 end record is missing"))
    file.seek(at)
    record = file.read(_END_RECORD_64.size)
    if not record.startswith(b"PK\x06\x06"):
        raise RefusedError(RefusalKind.DAMAGED, _("its zip64 end record is missing"))
    *_head, entries, directory_bytes, directory_at = _END_RECORD_64.unpack(record)
    # All offsets of a self-extracting archive may be short of the length of its program.
    if claimed_at not in (at, directory_at + directory_bytes):
        raise RefusedError(RefusalKind.DAMAGED, _("its two end records disagree"))
    return entries, directory_bytes, at


def _check_whole(
    infos: Sequence[zipfile.ZipInfo], sound: Sequence[zipfile.ZipInfo], file_bytes: int, limits: Limits
) -> None:
    if sum(info.compress_size for info in infos) > file_bytes or _overlap(infos):
        raise RefusedError(RefusalKind.OVERLAP, _("its entries overlap, as in a zip bomb"))
    check_sizes(sum(info.compress_size for info in sound), sum(info.file_size for info in sound), limits)


def _overlap(infos: Sequence[zipfile.ZipInfo]) -> bool:
    """True if two entries share bytes; Python's zipfile checks this only from 3.11.8 on."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            return True
        end = info.header_offset + _LOCAL_HEADER.size + info.compress_size
    return False


def _refusal(info: zipfile.ZipInfo, limits: Limits) -> RefusedError | None:
    """Why this entry is not read, or None."""
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return is_link()
    if info.flag_bits & _ENCRYPTED_FLAGS:
        return is_encrypted()
    if info.compress_type not in ZIP_DECOMPRESSORS:
        method = UNREAD_METHODS.get(info.compress_type, f"no. {info.compress_type}")
        reason = _("it is compressed by a method that is not read here ({method})", method=method)
        return RefusedError(RefusalKind.UNSUPPORTED, reason)
    if info.file_size > limits.ratio_floor_bytes and info.file_size > info.compress_size * limits.max_ratio:
        ratio = f"{info.file_size // max(info.compress_size, 1):,}"
        return RefusedError(RefusalKind.RATIO, _("it unpacks to {ratio} times its size", ratio=ratio))
    return size_refusal(info.file_size, limits)
