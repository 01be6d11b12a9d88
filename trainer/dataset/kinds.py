"""What a file is, told by its first bytes; its extension only says what it was meant to be."""

from __future__ import annotations

from enum import Enum, auto
from pathlib import PurePosixPath

#: Enough for every signature below, tar's included.
HEAD_BYTES = 512

_READ = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".avif"}
_NOT_READ = {".heic", ".heif", ".jxl", ".psd", ".svg", ".ico", ".jp2", ".eps", ".tga", ".raw", ".dng", ".cr2", ".nef"}
IMAGE_EXTENSIONS = frozenset(_READ | _NOT_READ)
CAPTION_EXTENSIONS = (".txt", ".caption")


class Kind(Enum):
    """What is done with a file depends on this alone."""

    PICTURE = auto()
    #: A picture in a format that is not decoded.
    FOREIGN_PICTURE = auto()
    ZIP = auto()
    #: An archive that is not opened.
    ARCHIVE = auto()
    OTHER = auto()


#: PNG, JPEG, GIF, TIFF and BigTIFF.
_PICTURES = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF87a",
    b"GIF89a",
    b"II\x2a\0",
    b"MM\0\x2a",
    b"II\x2b\0",
    b"MM\0\x2b",
)
_ARCHIVES = (b"Rar!\x1a\x07", b"7z\xbc\xaf\x27\x1c", b"\x1f\x8b", b"\xfd7zXZ\x00", b"BZh", b"\x28\xb5\x2f\xfd")
_FOREIGN = (
    b"8BPS",
    b"\x00\x00\x01\x00",
    b"\xff\x0a",
    b"\x00\x00\x00\x0cJXL ",
    b"\x00\x00\x00\x0cjP  ",
    b"%!PS",
    b"\xc5\xd0\xd3\xc6",
)
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def sniff(head: bytes) -> Kind:
    """The kind of a file that begins with these bytes (`HEAD_BYTES` of them, or all)."""
    if is_picture(head):
        return Kind.PICTURE
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Kind.ZIP
    if head.startswith(_ARCHIVES) or head[257:262] == b"ustar":
        return Kind.ARCHIVE
    if head.startswith(_FOREIGN) or (head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS) or b"<svg" in head:
        return Kind.FOREIGN_PICTURE
    return Kind.OTHER


def is_picture(head: bytes) -> bool:
    """True for the formats that `picture` decodes."""
    return (
        head.startswith(_PICTURES)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        # `BM` alone begins English text; the reserved fields of a bitmap are zero in every program's files.
        or (head[:2] == b"BM" and head[6:10] == b"\0\0\0\0")
        or (head[4:8] == b"ftyp" and (head[8:12] in (b"avif", b"avis") or b"avif" in head[16:40]))
    )


def has_image_name(name: str) -> bool:
    """True if the extension promises a picture."""
    return PurePosixPath(name).suffix.lower() in IMAGE_EXTENSIONS


def has_caption_name(name: str) -> bool:
    """True if the extension promises a caption."""
    return PurePosixPath(name).suffix.lower() in CAPTION_EXTENSIONS
