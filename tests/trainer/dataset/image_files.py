"""Makes images and zip archives for the dataset tests, good and hostile."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def noise(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """A random image; no two seeds look so alike that the preparation would compare them closely, which takes time."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png(seed: int, width: int = 160, height: int = 120) -> bytes:
    return encoded(noise(seed, width, height))


def make_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return path


def make_link(path: Path, name: str, target: str) -> None:
    """Add a symbolic link to an archive."""
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, target)


def rename_raw(path: Path, old: bytes, new: bytes) -> None:
    """Overwrite a name in the archive by one of the same length, in any encoding."""
    assert len(old) == len(new)
    data = path.read_bytes()
    assert data.count(old) >= 2
    path.write_bytes(data.replace(old, new))


def patch_directory(path: Path, offset: int, value: bytes, entry: int = 0) -> None:
    """Overwrite a field of an entry in the central directory (APPNOTE 4.3.12)."""
    data = bytearray(path.read_bytes())
    at = -1
    for _ in range(entry + 1):
        at = data.index(b"PK\x01\x02", at + 1)
    data[at + offset : at + offset + len(value)] = value
    path.write_bytes(data)


def overlapping_zip(path: Path, data: bytes, entries: int) -> Path:
    """Many entries that share one body, as in Fifield's zip bomb."""
    make_zip(path, {"a.png": data})
    raw = path.read_bytes()
    start, end = raw.index(b"PK\x01\x02"), raw.index(b"PK\x05\x06")
    directory = raw[start:end] * entries
    record = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, entries, entries, len(directory), start, 0)
    path.write_bytes(raw[:start] + directory + record)
    return path


@dataclass(frozen=True)
class RawEntry:
    """An entry of a zip as `raw_zip` writes it: any bytes as its name, any number as its method, any checksum."""

    name: bytes
    content: bytes
    method: int = 0
    packed: bytes | None = None
    flags: int = 0
    crc: int | None = None
    extra: bytes = b""

    @property
    def data(self) -> bytes:
        return self.content if self.packed is None else self.packed

    def header(self) -> bytes:
        """The fields that local and central header share (APPNOTE 4.3.7)."""
        crc = zlib.crc32(self.content) if self.crc is None else self.crc
        sizes = len(self.data), len(self.content), len(self.name), len(self.extra)
        return struct.pack("<5H3L2H", 20, self.flags, self.method, 0, 33, crc, *sizes)


def raw_zip(path: Path, entries: Sequence[RawEntry], *, is_zip64: bool = False) -> Path:
    """A zip written byte by byte."""
    body, directory = b"", b""
    for entry in entries:
        central = struct.pack("<3H2L", 0, 0, 0, 0, len(body))
        directory += b"PK\x01\x02\x14\0" + entry.header() + central + entry.name + entry.extra
        body += b"PK\x03\x04" + entry.header() + entry.name + entry.extra + entry.data
    counts = len(entries), len(entries), len(directory), len(body)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, *counts, 0)
    if is_zip64:
        at = len(body) + len(directory)
        end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, *counts)
        end += struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
        end += struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 0)
    path.write_bytes(body + directory + end)
    return path
