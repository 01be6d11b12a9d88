"""Decompressors of bounded output behind one interface, for the members of zips and for compressed tars."""

from __future__ import annotations

import bz2
import lzma
import re
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import inflate64

from trainer.dataset.input_files import Limits, RefusedError
from trainer.protocol import text
from trainer.protocol.report import RefusalKind
from trainer.protocol.text import _

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: Memory that xz needs beside its dictionary.
_XZ_OVERHEAD_BYTES = 2**20
#: What decompressors raise for damaged streams. inflate64 has no exceptions of its own.
BROKEN_STREAM = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zstd.ZstdError)


class Decompressor(Protocol):
    """What the decompressors of bz2, lzma and zstd have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class ZlibDecompressor:
    """zlib's, with the interface of the others; `wbits` as in `zlib.decompressobj`."""

    def __init__(self, wbits: int) -> None:
        self._inflater = zlib.decompressobj(wbits)

    @property
    def eof(self) -> bool:
        return self._inflater.eof

    @property
    def needs_input(self) -> bool:
        return not self._inflater.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inflater.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return self._inflater.decompress(self._inflater.unconsumed_tail + data, max_length)


class _Stored:
    """Stored members, in the interface of the others; they end where their data ends."""

    eof, needs_input, unused_data = False, True, b""

    def decompress(self, data: bytes, _max_length: int, /) -> bytes:
        return data


class _Deflate64Decompressor:
    """Deflate64, which Windows uses beyond 2 GiB. It returns all that its input holds, up to 256 KiB for a byte."""

    _STEP_BYTES = 16

    def __init__(self) -> None:
        self._inflater = inflate64.Inflater()
        self._input, self._at = b"", 0

    @property
    def eof(self) -> bool:
        return bool(self._inflater.eof)

    @property
    def needs_input(self) -> bool:
        return self._at >= len(self._input)

    @property
    def unused_data(self) -> bytes:
        return self._input[self._at :] if self.eof else b""

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        if data:
            self._input, self._at = self._input[self._at :] + data, 0
        inflated = bytearray()
        while not (self.needs_input or self.eof or len(inflated) >= max_length):
            inflated += self._inflater.inflate(self._input[self._at : self._at + self._STEP_BYTES])
            self._at += self._STEP_BYTES
        return bytes(inflated)


class _ZipLzmaDecompressor:
    """LZMA as in zip (APPNOTE 5.8.8): a header of version, size and properties, then the raw stream."""

    _HEADER = struct.Struct("<2sH")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._head = b""
        self._stream: lzma.LZMADecompressor | None = None

    @property
    def eof(self) -> bool:
        return self._stream is not None and self._stream.eof

    @property
    def needs_input(self) -> bool:
        return self._stream is None or self._stream.needs_input

    @property
    def unused_data(self) -> bytes:
        return b"" if self._stream is None else self._stream.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        if self._stream is None:
            self._head += data
            if len(self._head) < self._HEADER.size + 5:
                return b""
            _version, size = self._HEADER.unpack_from(self._head)
            self._stream = _raw_lzma(self._head[self._HEADER.size : self._HEADER.size + size], self._limits)
            data = self._head[self._HEADER.size + size :]
        return self._stream.decompress(data, max_length)


def _raw_lzma(properties: bytes, limits: Limits) -> lzma.LZMADecompressor:
    """A raw LZMA stream by its properties: a byte of lc, lp and pb, and the size of the dictionary (lzma.txt)."""
    if len(properties) != 5:
        raise lzma.LZMAError("invalid properties")
    packed, dictionary_bytes = struct.unpack("<BL", properties)
    if dictionary_bytes > limits.max_dictionary_bytes:
        reason = _("unpacking it takes {size} of memory", size=text.size(dictionary_bytes))
        raise RefusedError(RefusalKind.TOO_LARGE, reason)
    rest, lc = divmod(packed, 9)
    pb, lp = divmod(rest, 5)
    options = {"id": lzma.FILTER_LZMA1, "dict_size": max(dictionary_bytes, 4096), "lc": lc, "lp": lp, "pb": pb}
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[options])


def xz_decompressor(limits: Limits) -> lzma.LZMADecompressor:
    """With a memory limit: a header can ask for a dictionary of 4 GiB."""
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=limits.max_dictionary_bytes + _XZ_OVERHEAD_BYTES)


def zstd_decompressor(limits: Limits) -> Any:
    window_log = min(limits.max_dictionary_bytes.bit_length() - 1, 31)
    return zstd.ZstdDecompressor(options={int(zstd.DecompressionParameter.window_log_max): window_log})


#: Its number in zip, and the one of old programs.
ZSTANDARD = (93, 20)
#: By the number of the method in zip (APPNOTE 4.4.5).
ZIP_DECOMPRESSORS: Mapping[int, Callable[[Limits], Decompressor]] = {
    0: lambda limits: _Stored(),
    8: lambda limits: ZlibDecompressor(-zlib.MAX_WBITS),
    9: lambda limits: _Deflate64Decompressor(),
    12: lambda limits: bz2.BZ2Decompressor(),
    14: _ZipLzmaDecompressor,
    95: xz_decompressor,
    **dict.fromkeys(ZSTANDARD, zstd_decompressor),
}
#: Methods that are not read, by what programs call them.
UNREAD_METHODS = {1: "Shrink", 6: "Implode", 10: "PKWARE Implode", 94: "MP3", 96: "JPEG", 97: "WavPack", 98: "PPMd"}


#: Bytes by which the beginning of a stream is recognized.
STREAM_HEAD_BYTES = 4
#: gzip, bzip2, xz, and zstd with the frames that it skips (RFC 8878, 3.1.2).
_STREAM = re.compile(rb"\x1f\x8b|BZh|\xfd7zX|\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)


def begins_stream(data: bytes) -> bool:
    """True if a compressed stream begins here."""
    return _STREAM.match(data) is not None


def stream_decompressors(head: bytes, limits: Limits) -> Callable[[], Decompressor]:
    """Return what makes a decompressor for a file that begins so: gzip, bzip2, xz or zstd."""
    if head.startswith(b"\xfd7zXZ"):
        return lambda: xz_decompressor(limits)
    if head.startswith(b"BZh"):
        return bz2.BZ2Decompressor
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return lambda: zstd_decompressor(limits)
    return lambda: ZlibDecompressor(16 + zlib.MAX_WBITS)
