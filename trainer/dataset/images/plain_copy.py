"""A picture file as it was handed in, less everything that is not its pixels: no EXIF, no GPS, nothing after its end.

What needs no change of colour, size or direction is kept that way: nothing is lost, and it costs no encoding (ten times
the price of decoding for a PNG of a photograph).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageFile

from trainer.dataset.limits import Limits

#: Ends entropy-coded data: FF, and neither a stuffed FF00, a restart marker nor another FF (ITU T.81 B.1.1).
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_SOS = 0xDA
#: APP0 (JFIF) and APP14 (Adobe) say how colours are coded; APP1–13, APP15 and COM are other people's words.
_JPEG_DROPPED = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
#: 125 colours from all over the cube, and how far apart two of 255 steps nobody can tell.
_STEPS = (0, 64, 128, 192, 255)
_PROBE = Image.new("RGB", (125, 1))
_PROBE.putdata([(red, green, blue) for red in _STEPS for green in _STEPS for blue in _STEPS])
_SAME_COLOUR = 2
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND")


class _NotPlainError(Exception):
    """The file is not laid out as its format says."""


def plain_copy(data: bytes, opened: ImageFile.ImageFile, limits: Limits) -> tuple[bytes, str] | None:
    """The bytes to store and their extension, or None if the picture must be encoded anew.

    `opened` is the same file, opened and not decoded; it must be upright and stand still.
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
    except _NotPlainError:
        return None
    return None


@lru_cache(maxsize=16)  # one camera's pictures all carry the same
def is_srgb(profile: bytes) -> bool:
    """True for an RGB profile under which colours are what they are without one, whatever its name says."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        shown = ImageCms.profileToProfile(_PROBE, source, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        return False
    if shown is None:
        return False
    return int(np.asarray(ImageChops.difference(shown, _PROBE)).max()) <= _SAME_COLOUR


def _fits(opened: ImageFile.ImageFile, limits: Limits) -> bool:
    return opened.width * opened.height <= limits.max_stored_pixels


def _jpeg_parts(data: bytes) -> Iterator[bytes]:
    """The segments of the first picture in a JPEG file (an MPO holds several)."""
    yield data[:2]
    at = 2
    while True:
        while data[at : at + 2] == b"\xff\xff":
            at += 1
        if data[at : at + 2] == b"\xff\xd9":
            yield data[at : at + 2]
            return
        if len(data) < at + 4 or data[at] != 0xFF:
            raise _NotPlainError
        marker = data[at + 1]
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker not in _JPEG_DROPPED:
            if marker == _SOS:
                end = _end_of_scan(data, end)
            yield data[at:end]
        at = end


def _end_of_scan(data: bytes, start: int) -> int:
    found = _NEXT_MARKER.search(data, start)
    if found is None:
        raise _NotPlainError
    return found.start()


def _png_parts(data: bytes) -> Iterator[bytes]:
    """The critical chunks (PNG specification 5.3); Pillow reads colours without gAMA and cHRM, and so does training."""
    yield _PNG_SIGNATURE
    at = len(_PNG_SIGNATURE)
    while at + 12 <= len(data):
        kind = data[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if kind in _PNG_KEPT:
            if kind == b"IHDR" and data[at + 16] > 8:  # 16 bits a channel: Pillow's RGB is half of them
                raise _NotPlainError
            yield data[at:end]
        if kind == b"IEND":
            return
        at = end
    raise _NotPlainError


def _webp(data: bytes) -> bytes:
    """A simple WebP (RIFF, one VP8 or VP8L chunk) has no room for metadata; only a tail is cut."""
    return data[: 8 + int.from_bytes(data[4:8], "little")]
