"""Good images in every format and mode, and ways in which their files get damaged."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from tests.trainer.dataset.image_files import encoded

_SIDE_PX = 160
#: Start and step of each pass (PNG specification 8.2): x, y, dx, dy.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def detailed(seed: int, side: int = _SIDE_PX) -> Image.Image:
    """A random image with fine detail, so that most bytes of a file are pixels."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    coarse = coarse.resize((side, side), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 14, (side, side, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


def _with_alpha(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def _deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L"), dtype=np.uint16) * 257)


def _animated(image: Image.Image) -> dict[str, object]:
    return {"save_all": True, "append_images": [image.rotate(90)], "duration": 100}


def interlaced(image: Image.Image) -> bytes:
    """A PNG with Adam7 interlacing, which Pillow reads and does not write."""
    pixels, raw = np.asarray(image.convert("RGB")), bytearray()
    for left, top, right, down in _ADAM7:
        for row in pixels[top::down, left::right]:
            raw += b"\0" + row.tobytes()
    plain = encoded(image)
    header = plain[12:28] + b"\1"
    return plain[:8] + png_chunk(header) + png_chunk(b"IDAT" + zlib.compress(bytes(raw))) + png_chunk(b"IEND")


def png_chunk(body: bytes) -> bytes:
    return (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")


#: How an image is written in each format and mode.
WRITERS: Mapping[str, Callable[[Image.Image], bytes]] = {
    "PNG 1": lambda image: encoded(image.convert("1")),
    "PNG L": lambda image: encoded(image.convert("L")),
    "PNG LA": lambda image: encoded(_with_alpha(image).convert("LA")),
    "PNG P": lambda image: encoded(image.quantize(200)),
    "PNG P transparent": lambda image: encoded(image.quantize(200), transparency=3),
    "PNG RGB": lambda image: encoded(image),
    "PNG RGB stored": lambda image: encoded(image, compress_level=0),
    "PNG RGB interlaced": interlaced,
    "PNG RGBA": lambda image: encoded(_with_alpha(image)),
    "PNG I;16": lambda image: encoded(_deep(image)),
    "JPEG": lambda image: encoded(image, "JPEG", quality=90),
    "JPEG progressive": lambda image: encoded(image, "JPEG", quality=90, progressive=True),
    "JPEG with restarts": lambda image: encoded(image, "JPEG", quality=90, restart_marker_rows=1),
    "JPEG CMYK": lambda image: encoded(image.convert("CMYK"), "JPEG", quality=90),
    "JPEG gray": lambda image: encoded(image.convert("L"), "JPEG", quality=90),
    "WebP lossy": lambda image: encoded(image, "WEBP", quality=85),
    "WebP lossy with alpha": lambda image: encoded(_with_alpha(image), "WEBP", quality=85),
    "WebP lossless": lambda image: encoded(image, "WEBP", lossless=True),
    "WebP animated": lambda image: encoded(image, "WEBP", **_animated(image)),
    "AVIF": lambda image: encoded(image, "AVIF", quality=85, speed=10),
    "HEIC": lambda image: encoded(image, "HEIF", quality=85),
    "TIFF raw": lambda image: encoded(image, "TIFF"),
    "TIFF LZW": lambda image: encoded(image, "TIFF", compression="tiff_lzw"),
    "TIFF deflate": lambda image: encoded(image, "TIFF", compression="tiff_adobe_deflate"),
    "TIFF JPEG": lambda image: encoded(image, "TIFF", compression="jpeg"),
    "TIFF PackBits": lambda image: encoded(image, "TIFF", compression="packbits"),
    "TIFF 16 bit": lambda image: encoded(_deep(image), "TIFF", compression="tiff_lzw"),
    "GIF": lambda image: encoded(image, "GIF"),
    "GIF animated": lambda image: encoded(image.quantize(64), "GIF", **_animated(image)),
    "BMP": lambda image: encoded(image, "BMP"),
}
#: Formats in which each changed byte is found, and those without any redundancy: another pixel is a pixel.
CHECKSUMMED = (*(name for name in WRITERS if name.startswith("PNG")), "TIFF deflate")
UNCHECKED = ("TIFF raw", "TIFF PackBits", "BMP")


def _one_byte(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) // 4, len(data) - 16)
    return data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :]


def _block(data: bytes, rng: random.Random) -> tuple[int, int]:
    length = min(rng.choice((64, 512, 4096)), len(data) // 4)
    start = rng.randrange(len(data) // 4, len(data) - length)
    return start, start + length


def _zero_block(data: bytes, rng: random.Random) -> bytes:
    start, end = _block(data, rng)
    return data[:start] + bytes(end - start) + data[end:]


def _other_block(data: bytes, rng: random.Random) -> bytes:
    start, end = _block(data, rng)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def _lost_block(data: bytes, rng: random.Random) -> bytes:
    start, end = _block(data, rng)
    return data[:start] + data[end:]


def _truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) // 4, len(data) - 8)]


def _zero_tail(data: bytes, rng: random.Random) -> bytes:
    """As a download that was interrupted: the size is right, the end was never written."""
    kept = rng.randrange(len(data) // 4, len(data) * 3 // 4)
    return data[:kept] + bytes(len(data) - kept)


def _swapped_blocks(data: bytes, rng: random.Random) -> bytes:
    length = len(data) // 4
    start = rng.randrange(length, len(data) - 2 * length)
    middle, end = start + length, start + 2 * length
    return data[:start] + data[middle:end] + data[start:middle] + data[end:]


def _cut_header(data: bytes, rng: random.Random) -> bytes:
    return data[rng.randrange(1, 24) :]


DAMAGES: Mapping[str, Callable[[bytes, random.Random], bytes]] = {
    "one byte": _one_byte,
    "zero block": _zero_block,
    "other block": _other_block,
    "lost block": _lost_block,
    "truncated": _truncated,
    "zero tail": _zero_tail,
    "swapped blocks": _swapped_blocks,
    "cut header": _cut_header,
}
