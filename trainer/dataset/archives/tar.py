"""Tar archives from strangers, plain or compressed: headers read under a budget, bodies by their place in the file."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Self

from trainer.dataset.archives.member import (
    IS_LINK,
    Listed,
    RefusedError,
    damaged,
    members_of,
    size_refusal,
    too_many,
)
from trainer.dataset.archives.spool import inflate
from trainer.dataset.limits import Limits
from trainer.dataset.names import decode_name
from trainer.protocol.report import RefusalKind

_BLOCK_BYTES = 512
#: One extended header; names longer than 1,024 characters are refused anyway.
_MAX_HEADER_BYTES = 2**18
#: `git archive` writes one global keyword. tarfile copies them all for every entry.
_MAX_GLOBAL_KEYWORDS = 64
_DIGITS = re.compile(rb"\d{100}")
_BROKEN = (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError, OSError)


class TarArchive:
    """An open tar; a compressed one is inflated to a temporary file first, so that any order of reading is cheap.

    Raises:
        RefusedError: the archive is damaged or hostile as a whole.
    """

    def __init__(self, path: Path, limits: Limits, *, is_compressed: bool) -> None:
        self._limits = limits
        self._file: IO[bytes] = inflate(path, limits).file if is_compressed else path.open("rb")
        try:
            self._size = self._file.seek(0, io.SEEK_END)
            if self._size > limits.max_archive_bytes:
                raise RefusedError(RefusalKind.TOO_LARGE, f"it holds {self._size / 2**30:.1f} GiB")
            self.members = tuple(members_of(self._list()))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def _list(self) -> Iterator[Listed]:
        for count, info in enumerate(_headers(self._file, self._limits), start=1):
            if count > self._limits.max_entries:
                raise too_many(self._limits)
            is_file = info.isreg() and not info.issparse()
            if is_file and info.offset_data + info.size > self._size:
                raise RefusedError(RefusalKind.DAMAGED, "it is cut short (an entry ends beyond the end of the file)")
            yield Listed(
                # tarfile smuggles bytes that are no UTF-8 through as surrogates.
                name=decode_name(info.name.encode("utf-8", "surrogateescape")),
                is_folder=info.isdir(),
                refusal=_refusal(info, self._limits),
                read=partial(self._read, info.offset_data, info.size),
            )

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) != size:
            raise RefusedError(RefusalKind.DAMAGED, "it is cut short")
        return data


class _Frugal(io.RawIOBase):
    """The file as tarfile sees it: it reads the headers of any size that they claim, this does not."""

    def __init__(self, file: IO[bytes], budget_bytes: int) -> None:
        self._file = file
        self._left = budget_bytes

    def read(self, size: int = -1) -> bytes:
        self._left -= size
        if not 0 <= size <= _MAX_HEADER_BYTES or self._left < 0:
            raise RefusedError(RefusalKind.TOO_MANY, "its headers alone take more room than pictures need")
        data = self._file.read(size)
        # Python before 3.11.10 searches pax headers in the square of a run of digits (CVE-2024-6232).
        if size > _BLOCK_BYTES and _DIGITS.search(data):
            raise RefusedError(RefusalKind.DAMAGED, "its headers make no sense")
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _headers(file: IO[bytes], limits: Limits) -> Iterator[tarfile.TarInfo]:
    budget = limits.max_directory_bytes + 4 * _BLOCK_BYTES * limits.max_entries
    file.seek(0)
    try:
        # "r:" is what it says; "r" would try every compression.
        with tarfile.open(
            fileobj=_Frugal(file, budget), mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as listing:
            place = -1
            while (info := listing.next()) is not None:
                if info.offset <= place or len(listing.pax_headers) > _MAX_GLOBAL_KEYWORDS:
                    raise RefusedError(RefusalKind.DAMAGED, "its headers make no sense")
                place = info.offset
                yield info
                # tarfile would keep each header until the end.
                listing.members.clear()  # type: ignore[attr-defined]
            _check_end(file, listing.offset)
    except _BROKEN as error:
        raise _refusal_of(error) from error


def _refusal_of(error: Exception) -> RefusedError:
    if "unexpected end of data" in str(error) or "truncated" in str(error):
        return RefusedError(RefusalKind.DAMAGED, "it is cut short")
    if isinstance(error, tarfile.ReadError) and "header" in str(error):
        return RefusedError(RefusalKind.UNSUPPORTED, "it holds no tar archive, or a damaged one")
    return damaged(error)


def _check_end(file: IO[bytes], offset: int) -> None:
    """tarfile takes a damaged header for the end, and would drop whatever follows without a word."""
    file.seek(offset)
    block = file.read(_BLOCK_BYTES)
    if len(block) < _BLOCK_BYTES:
        raise RefusedError(RefusalKind.DAMAGED, "it is cut short (its end mark is missing)")
    if any(block):
        raise RefusedError(RefusalKind.DAMAGED, "it is damaged (one of its headers is)")


def _refusal(info: tarfile.TarInfo, limits: Limits) -> RefusedError | None:
    if info.issym() or info.islnk() or info.isdev():
        return RefusedError(*IS_LINK)
    if info.issparse():
        return RefusedError(RefusalKind.UNSUPPORTED, "it is a sparse file, which no picture is")
    if not info.isreg():
        return RefusedError(RefusalKind.UNSUPPORTED, "it is neither a file nor a folder")
    return size_refusal(info.size, limits)
