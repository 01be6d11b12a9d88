"""Tar archives, plain or compressed: headers are read under a budget, bodies by their offset in the file."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO

from trainer.dataset.archives.archive import (
    Archive,
    ArchiveMember,
    Spool,
    cut_short,
    damage_refused,
    damaged,
    decode_names,
    is_link,
    refusal_for,
    size_refusal,
)
from trainer.dataset.archives.decompressors import (
    BROKEN_STREAM,
    STREAM_HEAD_BYTES,
    begins_stream,
    stream_decompressors,
)
from trainer.dataset.input_files import HEAD_BYTES, FileKind, Limits, RefusedError, sniff
from trainer.protocol import text
from trainer.protocol.report import RefusalKind
from trainer.protocol.text import _

_BLOCK_BYTES = 512
#: tar fills up its last record: 10 KiB as a rule, and 1 MiB at most.
_RECORD_BYTES, _MAX_PADDING_BYTES = 10 * 1024, 2**20
#: One extended header; names longer than 1,024 characters are refused anyway.
_MAX_HEADER_BYTES = 2**18
#: `git archive` writes one global keyword. tarfile copies all of them for every entry.
_MAX_GLOBAL_KEYWORDS = 64
_DIGITS = re.compile(rb"\d{100}")
_BROKEN_TAR = (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError, OSError)

_CHUNK_BYTES = 2**18
#: Compressed streams of one file, one after the other; programs that compress in parallel write one for each MiB or so.
_MAX_STREAMS = 10_000


class TarArchive(Archive):
    """An open tar; a compressed one is inflated to a temporary file first, so that any order of reading is cheap."""

    def __init__(self, path: Path, limits: Limits, *, is_compressed: bool) -> None:
        self._is_compressed = is_compressed
        super().__init__(path, limits)

    def _open(self, path: Path) -> IO[bytes]:
        return inflate(path, self._limits).file if self._is_compressed else path.open("rb")

    def _list(self) -> Iterator[ArchiveMember]:
        file_bytes = self._file.seek(0, io.SEEK_END)
        if file_bytes > self._limits.max_archive_bytes:
            raise RefusedError(RefusalKind.TOO_LARGE, _("it takes {size}", size=text.size(file_bytes)))
        raw_names: list[bytes] = []
        members: list[ArchiveMember] = []
        # One more than may be there: the count is checked as they are yielded.
        for info in islice(_headers(self._file, self._limits), self._limits.max_entries + 1):
            if info.isreg() and not info.issparse() and info.offset_data + info.size > file_bytes:
                reason = _("it is cut short (an entry ends beyond the end of the file)")
                raise RefusedError(RefusalKind.DAMAGED, reason)
            # tarfile keeps bytes that are not UTF-8 as surrogates.
            raw_names.append(info.name.encode("utf-8", "surrogateescape") + (b"/" if info.isdir() else b""))
            refusal = None if info.isdir() else _refusal(info, self._limits)
            content = partial(self._read, info.offset_data, info.size)
            members.append(ArchiveMember(name="", refusal=refusal, content=content))
        for name, member in zip(decode_names(raw_names), members, strict=True):
            yield replace(member, name=name)

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) != size:
            raise cut_short()
        return data


class _HeaderReader(io.RawIOBase):
    """The file for tarfile, with a budget: tarfile itself reads headers of any claimed size."""

    def __init__(self, file: IO[bytes], budget_bytes: int) -> None:
        self._file = file
        self._left = budget_bytes

    def read(self, size: int = -1) -> bytes:
        self._left -= size
        if not 0 <= size <= _MAX_HEADER_BYTES or self._left < 0:
            raise RefusedError(RefusalKind.TOO_MANY, _("its headers alone take more room than images need"))
        data = self._file.read(size)
        # Python before 3.11.10 searches pax headers in time quadratic in a run of digits (CVE-2024-6232).
        if size > _BLOCK_BYTES and _DIGITS.search(data):
            raise _invalid_headers()
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _headers(file: IO[bytes], limits: Limits) -> Iterator[tarfile.TarInfo]:
    budget = limits.max_directory_bytes + 4 * _BLOCK_BYTES * limits.max_entries
    reader = _HeaderReader(file, budget)
    start: int | None = 0
    try:
        while start is not None:
            file.seek(start)
            end = yield from _headers_of_one(reader)
            _check_end(file, end)
            start = _next_tar(file, end)
    except _BROKEN_TAR as error:
        raise _refusal_of(error) from error


def _headers_of_one(reader: _HeaderReader) -> Generator[tarfile.TarInfo, None, int]:
    """Yield the headers up to the end mark, and return where it is."""
    # "r:" reads a plain tar only; "r" would try every compression.
    with tarfile.open(fileobj=reader, mode="r:", encoding="utf-8", errors="surrogateescape") as listing:
        offset = -1
        while (info := listing.next()) is not None:
            if info.offset <= offset or len(listing.pax_headers) > _MAX_GLOBAL_KEYWORDS:
                raise _invalid_headers()
            offset = info.offset
            yield info
            # tarfile would keep each header until the end.
            listing.members.clear()  # type: ignore[attr-defined]
        return listing.offset


def _next_tar(file: IO[bytes], end: int) -> int | None:
    """Where another tar begins behind the end mark and its padding, as after `cat a.tar b.tar`; None if none does."""
    file.seek(end)
    for read in range(0, _MAX_PADDING_BYTES, _RECORD_BYTES):
        record = file.read(_RECORD_BYTES)
        if len(record) < HEAD_BYTES:
            return None
        if record.strip(b"\0"):
            start = (len(record) - len(record.lstrip(b"\0"))) // _BLOCK_BYTES * _BLOCK_BYTES
            file.seek(end + read + start)
            is_tar = sniff(file.read(HEAD_BYTES)) is FileKind.TAR
            return end + read + start if is_tar and read + start else None
    return None


def _invalid_headers() -> RefusedError:
    return RefusedError(RefusalKind.DAMAGED, _("its headers are invalid"))


def _refusal_of(error: Exception) -> RefusedError:
    if "unexpected end of data" in str(error) or "truncated" in str(error):
        return cut_short()
    if isinstance(error, tarfile.ReadError) and "header" in str(error):
        return RefusedError(RefusalKind.UNSUPPORTED, _("it contains no tar archive, or a damaged one"))
    return refusal_for(error)


def _check_end(file: IO[bytes], offset: int) -> None:
    """Check the end mark: tarfile takes a damaged header for the end and would silently drop what follows."""
    file.seek(offset)
    block = file.read(_BLOCK_BYTES)
    if len(block) < _BLOCK_BYTES:
        raise RefusedError(RefusalKind.DAMAGED, _("it is cut short (its end mark is missing)"))
    if any(block):
        raise damaged(_("one of its headers"))


def _refusal(info: tarfile.TarInfo, limits: Limits) -> RefusedError | None:
    """Why this entry is not read, or None."""
    if info.issym() or info.islnk() or info.isdev():
        return is_link()
    if info.issparse():
        return RefusedError(RefusalKind.UNSUPPORTED, _("it is a sparse file, which no image is"))
    if not info.isreg():
        return RefusedError(RefusalKind.UNSUPPORTED, _("it is neither a file nor a folder"))
    return size_refusal(info.size, limits)


def inflate(path: Path, limits: Limits) -> Spool:
    """Inflate a gzip, bzip2, xz or zstd file to a temporary file; close the spool after use.

    Raises:
        RefusedError: The file is damaged, a bomb, or needs too much memory.
    """
    spool = Spool(*_bounds(path.stat().st_size, limits))
    try:
        with damage_refused(*BROKEN_STREAM):
            for chunk in _chunks(path, limits):
                spool.write(chunk)
            spool.flush()
    except BaseException:
        spool.close()
        raise
    return spool


def _bounds(packed_bytes: int, limits: Limits) -> tuple[int, RefusedError]:
    """The most bytes that a compressed file may inflate to, and the refusal beyond them."""
    by_ratio = max(limits.ratio_floor_bytes, int(packed_bytes * limits.max_ratio))
    if by_ratio < limits.max_archive_bytes:
        ratio = f"{limits.max_ratio:g}"
        reason = _("it unpacks to more than {ratio} times its size, as a zip bomb does", ratio=ratio)
        return by_ratio, RefusedError(RefusalKind.RATIO, reason)
    reason = _("it unpacks to more than {size}", size=text.size(limits.max_archive_bytes))
    return limits.max_archive_bytes, RefusedError(RefusalKind.TOO_LARGE, reason)


def _chunks(path: Path, limits: Limits) -> Iterator[bytes]:
    """Yield the inflated bytes in pieces of bounded size, whatever the input is.

    Streams may follow each other, with NULs between them; their number is limited, for each costs its time.
    """
    with path.open("rb") as file:
        data = file.read(_CHUNK_BYTES)
        new_stream = stream_decompressors(data, limits)
        for _stream in range(_MAX_STREAMS):
            decompressor = new_stream()
            while not decompressor.eof:
                if not data and decompressor.needs_input and not (data := file.read(_CHUNK_BYTES)):
                    raise EOFError(_("it is cut short"))
                if chunk := decompressor.decompress(data, _CHUNK_BYTES):
                    yield chunk
                data = b""
            data = decompressor.unused_data.lstrip(b"\0")
            while len(data) < STREAM_HEAD_BYTES and (more := file.read(_CHUNK_BYTES)):
                data = (data + more).lstrip(b"\0")
            if not begins_stream(data):
                # Nothing, or what does not belong to the file: gzip ignores it too.
                return
    reason = _("it consists of more than {most} compressed streams", most=f"{_MAX_STREAMS:,}")
    raise RefusedError(RefusalKind.TOO_MANY, reason)
