"""Strips image files of everything that is not pixels: EXIF, GPS, comments, and data after the end.

Images that need no change of color, size or orientation keep their own encoded bytes: lossless, and encoding a PNG of
a photograph costs ten times its decoding.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageFile

from trainer.dataset.input_files import Limits

#: Ends entropy-coded data: FF, and neither a stuffed FF00, a restart marker nor another FF (ITU T.81 B.1.1).
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_SOS = 0xDA
#: APP1–13, APP15 and COM hold metadata; APP0 (JFIF) and APP14 (Adobe) say how colors are coded and stay.
_JPEG_DROPPED = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
#: 125 colors from all over the RGB cube, and the largest difference of two equal ones, of 255.
_STEPS = (0, 64, 128, 192, 255)
_PROBE = Image.new("RGB", (125, 1))
_PROBE.putdata([(red, green, blue) for red in _STEPS for green in _STEPS for blue in _STEPS])
_SAME_COLOR = 2
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND")


class _MalformedError(Exception):
    """The file does not follow its format."""


def strip_metadata(data: bytes, opened: ImageFile.ImageFile, limits: Limits) -> tuple[bytes, str] | None:
    """Return the bytes to store and their extension, or None if the image must be encoded again.

    Args:
        data: The file.
        opened: The same file, opened and not decoded; upright and not animated.
        limits: For the largest stored area.
    """
    profile = opened.info.get("icc_profile")
    if opened.has_transparency_data or (profile and not is_srgb(profile)):
        return None
    try:
        match opened.format:
            case "JPEG" | "MPO" if opened.mode in ("L", "RGB"):
                return b"".join(_jpeg_parts(data)), ".jpg"
            case "PNG" if opened.mode in ("L", "RGB", "P") and _fits(opened, limits):
                return b"".join(_png_parts(data)), ".png"
            case "WEBP" if opened.mode == "RGB" and data[12:15] == b"VP8" and data[15:16] != b"X":
                return (_webp(data), ".webp") if _fits(opened, limits) else None
    except _MalformedError:
        return None
    return None


@lru_cache(maxsize=16)  # all images of one camera have the same
def is_srgb(profile: bytes) -> bool:
    """True for an RGB profile that changes no color, whatever its name is."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        shown = ImageCms.profileToProfile(_PROBE, source, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        return False
    if shown is None:
        return False
    return int(np.asarray(ImageChops.difference(shown, _PROBE)).max()) <= _SAME_COLOR


def _fits(opened: ImageFile.ImageFile, limits: Limits) -> bool:
    return opened.width * opened.height <= limits.max_stored_pixels


def _jpeg_parts(data: bytes) -> Iterator[memoryview]:
    """The segments of the first image in a JPEG file (an MPO holds several), without metadata."""
    view = memoryview(data)
    yield view[:2]
    at = 2
    while True:
        while data[at : at + 2] == b"\xff\xff":
            at += 1
        if data[at : at + 2] == b"\xff\xd9":
            yield view[at : at + 2]
            return
        if len(data) < at + 4 or data[at] != 0xFF:
            raise _MalformedError
        marker = data[at + 1]
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker not in _JPEG_DROPPED:
            if marker == _SOS:
                end = _end_of_scan(data, end)
            yield view[at:end]
        at = end


def _end_of_scan(data: bytes, start: int) -> int:
    found = _NEXT_MARKER.search(data, start)
    if found is None:
        raise _MalformedError
    return found.start()


def _png_parts(data: bytes) -> Iterator[bytes]:
    """The critical chunks (PNG specification 5.3). Pillow ignores gAMA and cHRM, and so does training."""
    yield _PNG_SIGNATURE
    at = len(_PNG_SIGNATURE)
    while at + 12 <= len(data):
        kind = data[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if kind in _PNG_KEPT:
            if kind == b"IHDR" and data[at + 16] > 8:  # 16 bits a channel: Pillow keeps 8 of them
                raise _MalformedError
            yield data[at:end]
        if kind == b"IEND":
            return
        at = end
    raise _MalformedError


def _webp(data: bytes) -> bytes:
    """Cut data after the end; a simple WebP (RIFF, one VP8 or VP8L chunk) has no room for other metadata."""
    return data[: 8 + int.from_bytes(data[4:8], "little")]
