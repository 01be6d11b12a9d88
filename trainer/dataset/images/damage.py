"""Finds damage in image files that decoders accept in silence, and train garbage from.

By checksums (PNG, deflated TIFF), by libjpeg's warnings (JPEG, also within TIFF), and by a hole of zeros where data is
compressed to noise (WebP, AVIF, HEIC). Changed bytes in a WebP, an AVIF or an LZW stream, and in pixels that are not
compressed at all (BMP, TIFF), leave no trace; docs/dataset-checks.md has rates.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from math import ceil

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ImageFile

from trainer.protocol.text import _

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Chunks without which there are no pixels (PNG specification 5.3), and their transparency.
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
#: What libjpeg says of odd metadata; after its other warnings it goes on with garbage or gray.
_JPEG_HARMLESS = re.compile(r"Warning: unknown JFIF|Unknown Adobe")
#: What TurboJPEG says where Pillow may do better.
_JPEG_UNSUPPORTED = re.compile(r"memory|subsampling|conversion", re.IGNORECASE)
#: Some cameras fill up the end of their data.
_JPEG_PADDING = re.compile(rb"(?:\x00+|\xff+)\xff\xd9")
#: How decoders say that a file ends before its image does.
_ENDS_EARLY = re.compile(
    r"truncat|premature end(?! of data)|incomplete|not enough|end of (?:file|data(?! segment))", re.IGNORECASE
)
#: Tags of a TIFF: where its strips or tiles are, and the tables that JPEG strips share.
_TIFF_OFFSETS, _TIFF_SIZES, _TIFF_JPEG_TABLES = (273, 324), (279, 325), 347
#: Runs of zeros are shorter in good files: a 16th of the file in the lossy WebP of a flat image, and in EXIF.
_HOLE_SHARE, _HOLE_BYTES = 10, 256
#: Compressed bytes that are inflated at once, to 16 MiB at most.
_PIECE_BYTES = 1 << 14

Pixels = NDArray[np.uint8]


class DamagedError(Exception):
    """The file is damaged; the message is a clause, and `detail` what exactly, in English."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


def said_by_decoder(words: str) -> DamagedError:
    """The error for what a decoder said of a file, in English and in the terms of its format."""
    return DamagedError(_("the file ends too early"), words) if _ENDS_EARLY.search(words) else _wrong_data(words)


def _wrong_data(detail: str) -> DamagedError:
    return DamagedError(_("a part of its data is wrong"), detail)


def require_undamaged(data: bytes, opened: ImageFile.ImageFile) -> None:
    """Check what the decoder of an opened image does not; a JPEG is checked by `decode_jpeg`.

    Raises:
        DamagedError: The file is damaged.
    """
    match opened.format:
        case "PNG":
            _require_checksums(data)
        case "TIFF":
            _require_whole_strips(data, opened)
        case "WEBP" | "AVIF" | "HEIF":
            if bytes(_hole_bytes(data, opened)) in data:
                raise DamagedError(_("a part of its data is missing"))


def decode_jpeg(data: bytes, size: tuple[int, int], mode: str, scale: float = 1.0) -> Pixels | None:
    """Decode a JPEG to [H, W, C] as L, RGB or CMYK; None if only Pillow may be able to.

    Args:
        data: The file.
        size: Its width and height, px.
        mode: Its mode.
        scale: By how much it may be reduced; the result is larger, at a half, a quarter or an eighth.

    Raises:
        DamagedError: The file is damaged. Pillow would hide it: libjpeg only warns, and fills in gray.
    """
    height, width = size[1], size[0]
    factor = next((factor for factor in (8, 4, 2) if scale * factor <= 1), 1)

    def decoded(*, strict: bool) -> Pixels:
        sides = {"min_height": ceil(height / factor), "min_width": ceil(width / factor), "min_factor": factor}
        space = "GRAY" if mode == "L" else mode
        return np.asarray(simplejpeg.decode_jpeg(data, space, strict=strict, **sides), dtype=np.uint8)

    try:
        return decoded(strict=True)
    except ValueError as error:
        if _JPEG_UNSUPPORTED.search(str(error)):
            return None
        if not _JPEG_HARMLESS.match(str(error)) and not _is_padding(str(error), data):
            raise said_by_decoder(str(error)) from error
    return decoded(strict=False)


def jpeg_pixels(data: bytes) -> int | None:
    """Area of a JPEG by its header, in a tenth of the time of Pillow; None if this is none, or only Pillow reads it."""
    try:
        height, width, *_space = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return int(height * width)


def _is_padding(warning: str, data: bytes) -> bool:
    extraneous = re.search(r"(\d+) extraneous bytes before marker 0xd9", warning)
    if extraneous is None:
        return False
    end = data.rfind(b"\xff\xd9")
    return _JPEG_PADDING.fullmatch(data, end - int(extraneous[1]), end + 2) is not None


def _hole_bytes(data: bytes, opened: ImageFile.ImageFile) -> int:
    """Length from which zeros are a hole in a file whose data looks like noise."""
    if data[12:16] == b"VP8L" or (opened.format != "WEBP" and not opened.info.get("exif")):
        return _HOLE_BYTES
    return max(_HOLE_BYTES, len(data) // _HOLE_SHARE)


def _require_checksums(data: bytes) -> None:
    for kind, body, checksum in _png_chunks(data):
        if kind in _PNG_PIXELS and zlib.crc32(body, zlib.crc32(kind)) != checksum:
            raise _wrong_data(f"the checksum of chunk {kind.decode()} is wrong")
        if kind == b"IEND":
            return
    raise said_by_decoder("premature end: chunk IEND is missing")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, int]]:
    """Kind, content and checksum of each chunk."""
    view, at = memoryview(data), len(_PNG_SIGNATURE)
    while at + 12 <= len(data) and (end := at + 8 + int.from_bytes(view[at : at + 4], "big")) + 4 <= len(data):
        yield bytes(view[at + 4 : at + 8]), view[at + 8 : end], int.from_bytes(view[end : end + 4], "big")
        at = end + 4


def _require_whole_strips(data: bytes, opened: ImageFile.ImageFile) -> None:
    tags, compression = getattr(opened, "tag_v2", {}), opened.info.get("compression")
    if compression not in ("tiff_adobe_deflate", "tiff_deflate", "jpeg"):
        return
    offsets, sizes = (next((tags[tag] for tag in names if tag in tags), ()) for names in (_TIFF_OFFSETS, _TIFF_SIZES))
    for offset, size in zip(offsets, sizes, strict=False):
        strip = data[offset : offset + size]
        if compression == "jpeg":
            # Without the end of the tables and the start of the strip, they are one file.
            tables = tags.get(_TIFF_JPEG_TABLES, b"")
            decode_jpeg(tables[:-2] + strip[2:] if tables else strip, (1, 1), "L", 1 / 8)
        elif not _is_whole_deflate(strip):
            raise _wrong_data("the checksum of a strip is wrong")


def _is_whole_deflate(strip: bytes) -> bool:
    stream = zlib.decompressobj()
    try:
        for at in range(0, len(strip), _PIECE_BYTES):
            stream.decompress(strip[at : at + _PIECE_BYTES])
    except zlib.error:
        return False
    return stream.eof
