"""A file that arrives in pieces: written at its end, in a thread, and taken back where a checksum says so."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bot.errors import DiskAlmostFull

_T = TypeVar("_T")

#: Bytes that are written at once.
_BLOCK_BYTES = 1024 * 1024
#: Without a byte for so long, a request has ended; the sender may ask how much has arrived, and go on.
SILENCE_S = 60.0
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, kw_only=True)
class Checksum:
    """What the sender says of some bytes."""

    #: `sha1` or `sha256`.
    algorithm: str
    digest: bytes


class BeyondItsEnd(Exception):
    """More arrives than the file was to have; it was discarded."""


class PartialFile:
    """A file that is written at its end, in a thread."""

    def __init__(self, descriptor: int, checksum: Checksum | None) -> None:
        self._descriptor = descriptor
        self.begin = os.fstat(descriptor).st_size
        self._checksum = checksum
        self._digest = None if checksum is None else hashlib.new(checksum.algorithm)
        #: What was written is taken back.
        self.is_discarded = False

    @classmethod
    def open(cls, path: Path, checksum: Checksum | None) -> PartialFile:
        return cls(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), checksum)

    def write(self, block: bytes) -> None:
        if self._digest is not None:
            self._digest.update(block)
        view = memoryview(block)
        while view:
            view = view[os.write(self._descriptor, view) :]

    @property
    def is_as_sent(self) -> bool:
        """Whether what was written has the checksum, if there is one."""
        return self._digest is None or self._checksum is None or self._digest.digest() == self._checksum.digest

    def close(self) -> int:
        try:
            if self.is_discarded:
                os.ftruncate(self._descriptor, self.begin)
            return os.fstat(self._descriptor).st_size
        finally:
            os.close(self._descriptor)


async def write_pieces(writer: PartialFile, pieces: AsyncIterator[bytes], *, left: int) -> None:
    """Write what arrives in blocks; also the last one if the connection breaks or falls silent."""
    block = bytearray()
    try:
        while True:
            async with asyncio.timeout(SILENCE_S):
                piece = await anext(pieces, None)
            if piece is None:
                return
            left -= len(piece)
            if left < 0:
                raise BeyondItsEnd
            block += piece
            if len(block) >= _BLOCK_BYTES:
                full, block = bytes(block), bytearray()
                await _write(writer, full)
    finally:
        if block:
            await _write(writer, bytes(block))


async def _write(writer: PartialFile, block: bytes) -> None:
    try:
        await run_to_its_end(lambda: writer.write(block))
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskAlmostFull(free_bytes=0) from error
        raise


async def run_to_its_end(call: Callable[[], _T]) -> _T:
    """Run a call in a thread, and wait for its end even if this task is cancelled: the file has one writer."""
    running = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
