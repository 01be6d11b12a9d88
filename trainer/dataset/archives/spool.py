"""Compressed streams inflated once, under limits, into a temporary file without a name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from trainer.dataset.archives.member import RefusedError, damaged
from trainer.dataset.limits import Limits
from trainer.protocol.report import RefusalKind

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_CHUNK_BYTES = 2**18
#: What xz needs beside its dictionary.
_XZ_OVERHEAD_BYTES = 2**20
_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError)


class Spool:
    """A growing temporary file of bounded size; it has no name, so that even a kill leaves nothing behind."""

    def __init__(self, max_bytes: int, reason: RefusedError) -> None:
        self.file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        self._max_bytes = max_bytes
        self._reason = reason
        self.size = 0

    def write(self, chunk: bytes | bytearray) -> None:
        """Append.

        Raises:
            RefusedError: the spool is full, or the disk is.
        """
        if self.size + len(chunk) > self._max_bytes:
            raise self._reason
        try:
            self.file.write(chunk)
        except OSError as error:
            raise _no_room(error) from error
        self.size += len(chunk)

    def read(self, offset: int, size: int) -> bytes:
        self.file.seek(offset)
        return self.file.read(size)

    def close(self) -> None:
        # Closing flushes, which a full disk fails once more.
        with suppress(OSError):
            self.file.close()


def inflate(path: Path, limits: Limits) -> Spool:
    """The spool of a gzip, bzip2, xz or zstd file; close it.

    Raises:
        RefusedError: it is damaged, a bomb, or needs too much memory.
    """
    spool = Spool(*_bounds(path.stat().st_size, limits))
    try:
        for chunk in _chunks(path, limits):
            spool.write(chunk)
        _flush(spool)
    except RefusedError:
        spool.close()
        raise
    except MemoryError as error:
        spool.close()
        raise RefusedError(RefusalKind.TOO_LARGE, "inflating it takes more memory than is allowed") from error
    except _BROKEN as error:
        spool.close()
        raise _refusal(error) from error
    except BaseException:
        spool.close()
        raise
    return spool


def _bounds(packed_bytes: int, limits: Limits) -> tuple[int, RefusedError]:
    by_ratio = max(limits.ratio_floor_bytes, int(packed_bytes * limits.max_ratio))
    if by_ratio < limits.max_archive_bytes:
        reason = f"it inflates to more than {limits.max_ratio:g} times its size, as a zip bomb does"
        return by_ratio, RefusedError(RefusalKind.RATIO, reason)
    reason = f"it inflates to more than {limits.max_archive_bytes / 2**30:.1f} GiB"
    return limits.max_archive_bytes, RefusedError(RefusalKind.TOO_LARGE, reason)


def _flush(spool: Spool) -> None:
    try:
        spool.file.flush()
    except OSError as error:
        raise _no_room(error) from error


def _no_room(error: OSError) -> RefusedError:
    return RefusedError(RefusalKind.TOO_LARGE, f"there is no room to inflate it ({error.strerror or error})")


def _refusal(error: Exception) -> RefusedError:
    if "memory usage limit" in str(error).lower() or "requires too much memory" in str(error).lower():
        return RefusedError(RefusalKind.TOO_LARGE, "inflating it takes more memory than is allowed")
    return damaged(error)


def _chunks(path: Path, limits: Limits) -> Iterator[bytes]:
    """What comes out, in pieces whose size does not depend on the input."""
    with path.open("rb") as file:
        head = file.read(6)
        file.seek(0)
        if head.startswith(b"\xfd7zXZ"):
            yield from _xz_chunks(file, limits.max_dictionary_bytes + _XZ_OVERHEAD_BYTES)
            return
        with _opened(file, head, limits) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk


def _opened(file: IO[bytes], head: bytes, limits: Limits) -> io.BufferedIOBase:
    """The stream that a file inflates to; each reads in pieces, and refuses what is cut short."""
    if head.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        window_log = min(limits.max_dictionary_bytes.bit_length() - 1, 31)
        return zstd.ZstdFile(file, options={int(zstd.DecompressionParameter.window_log_max): window_log})
    return gzip.GzipFile(fileobj=file)


def _xz_chunks(file: IO[bytes], memory_bytes: int) -> Iterator[bytes]:
    """Like `lzma.LZMAFile`, which takes no bound on memory: a header may ask for a dictionary of 4 GiB."""
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=memory_bytes)
    data = b""
    while True:
        if decompressor.eof:
            # Streams may follow each other, with NULs between them.
            data = (decompressor.unused_data or file.read(_CHUNK_BYTES)).lstrip(b"\0")
            if not data:
                return
            decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=memory_bytes)
        elif decompressor.needs_input:
            data = file.read(_CHUNK_BYTES)
            if not data:
                raise EOFError("it is cut short")
        else:
            data = b""
        if chunk := decompressor.decompress(data, _CHUNK_BYTES):
            yield chunk
