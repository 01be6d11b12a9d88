"""Zip archives from strangers: checked before they are listed, inflated one member at a time, never unpacked."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from trainer.dataset.limits import Limits
from trainer.dataset.names import decode_name, is_clutter, printable, same_name_key, tidy, unsafe_reason
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


class RefusedError(Exception):
    """An entry or an archive that is not opened; `reason` is a clause for a sentence."""

    def __init__(self, kind: RefusalKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


class Member:
    """One regular file of an archive, not read yet; `refusal` if it never will be."""

    def __init__(self, archive: ZipArchive, info: zipfile.ZipInfo, name: str, refusal: RefusedError | None) -> None:
        self._archive = archive
        self._info = info
        self.name = name
        self.refusal = refusal

    def read(self) -> bytes:
        """The member's bytes, counted while they are inflated and checked by their CRC.

        Raises:
            RefusedError: the member is damaged, or larger than it claims.
        """
        if self.refusal is not None:
            raise self.refusal
        return self._archive._inflate(self._info)


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
            self.members = tuple(self._list(infos))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ZipArchive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._zip.close()
        self._file.close()

    def _list(self, infos: list[zipfile.ZipInfo]) -> Iterator[Member]:
        seen: set[str] = set()
        for info in infos:
            raw = entry_name(info)
            refusal = _refusal(info, raw, self._limits)
            if refusal is None and (info.is_dir() or raw.endswith("\\") or is_clutter(raw)):
                continue
            name = printable(raw if refusal else tidy(raw))
            key = same_name_key(name)
            if refusal is None and key in seen:
                refusal = RefusedError(RefusalKind.COLLISION, "an earlier entry has the same name")
            seen.add(key)
            yield Member(self, info, name, refusal)

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
            raise RefusedError(RefusalKind.DAMAGED, f"it is damaged ({_short(error)})") from error
        if size != info.file_size:
            raise RefusedError(
                RefusalKind.DAMAGED, f"it is damaged ({size} bytes where {info.file_size} were promised)"
            )
        return b"".join(chunks)


def entry_name(info: zipfile.ZipInfo) -> str:
    """The name as its author wrote it, NUL and all (zipfile cuts there)."""
    name = info.orig_filename
    return name if info.flag_bits & _UTF8_FLAG else decode_name(name.encode("cp437", "replace"))


def _short(error: Exception) -> str:
    return printable(str(error))[:120] or type(error).__name__


def _open(file: IO[bytes]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except _BROKEN as error:
        raise RefusedError(RefusalKind.DAMAGED, f"it is damaged ({_short(error)})") from error


def _check_end_record(file: IO[bytes], limits: Limits) -> None:
    """Read the entry count before the list: listing a hostile million entries takes seconds and a gigabyte."""
    entries, directory_bytes = _end_record(file)
    # The count may lie, the directory's size may not: zipfile reads that many bytes.
    if entries > limits.max_entries:
        reason = f"it holds {entries:,} entries; at most {limits.max_entries:,} are opened"
        raise RefusedError(RefusalKind.TOO_MANY, reason)
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
        reason = f"it holds {len(infos):,} entries; at most {limits.max_entries:,} are opened"
        raise RefusedError(RefusalKind.TOO_MANY, reason)
    packed = sum(info.compress_size for info in infos)
    inflated = sum(info.file_size for info in infos)
    if packed > file_bytes or _overlap(infos):
        raise RefusedError(RefusalKind.OVERLAP, "its entries overlap, as in a zip bomb")
    if inflated > limits.max_archive_bytes:
        reason = f"it inflates to {inflated / 2**30:.1f} GiB; at most {limits.max_archive_bytes / 2**30:.1f} are opened"
        raise RefusedError(RefusalKind.TOO_LARGE, reason)
    if inflated > limits.ratio_floor_bytes and inflated > packed * limits.max_ratio:
        reason = f"it inflates to {inflated / max(packed, 1):,.0f} times its size, as a zip bomb does"
        raise RefusedError(RefusalKind.RATIO, reason)


def _overlap(infos: list[zipfile.ZipInfo]) -> bool:
    """True if two entries share bytes; Python's zipfile noticed only from 3.11.8 on."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            return True
        end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size
    return False


def _refusal(info: zipfile.ZipInfo, name: str, limits: Limits) -> RefusedError | None:
    """Why this entry is not read although the archive is."""
    if reason := unsafe_reason(name):
        return RefusedError(RefusalKind.UNSAFE_PATH, reason)
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return RefusedError(RefusalKind.LINK, "it is a link or a device, not a file")
    if info.flag_bits & _ENCRYPTED_FLAGS:
        return RefusedError(RefusalKind.ENCRYPTED, "it is encrypted")
    # bzip2 and LZMA inflate without a bound on memory in Python's zipfile, and nobody's zips need them.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return RefusedError(RefusalKind.UNSUPPORTED, "it is compressed by a method other than deflate")
    if info.file_size > limits.max_entry_bytes:
        return RefusedError(RefusalKind.TOO_LARGE, f"it inflates to {info.file_size / 2**20:.0f} MiB")
    if info.file_size > limits.ratio_floor_bytes and info.file_size > info.compress_size * limits.max_ratio:
        return RefusedError(
            RefusalKind.RATIO, f"it inflates to {info.file_size // max(info.compress_size, 1):,} times its size"
        )
    return None
