"""What a file is, told by its first bytes; its extension only says what it was meant to be."""

from __future__ import annotations

from enum import Enum, auto
from pathlib import PurePosixPath

#: Enough for every signature below, tar's included.
HEAD_BYTES = 512

_READ = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"}
_READ |= {".avif", ".heic", ".heif", ".hif"}
_NOT_READ = {".jxl", ".psd", ".svg", ".ico", ".jp2", ".eps", ".tga", ".raw", ".dng", ".cr2", ".nef"}
IMAGE_EXTENSIONS = frozenset(_READ | _NOT_READ)
#: Sidecars, the first that holds words first.
CAPTION_EXTENSIONS = (".txt", ".caption", ".json")
#: Tables of captions; `.json` and some names of `.txt` may be one too.
TABLE_EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson")


class Kind(Enum):
    """What is done with a file depends on this alone."""

    PICTURE = auto()
    #: A picture in a format that is not decoded.
    FOREIGN_PICTURE = auto()
    ZIP = auto()
    TAR = auto()
    #: gzip, bzip2, xz or zstd: of a tar, or it is refused.
    COMPRESSED = auto()
    SEVEN_ZIP = auto()
    #: A table that may hold pictures in its cells.
    PARQUET = auto()
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
_COMPRESSED = (b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
_SIGNATURES = (
    (b"PK\x03\x04", Kind.ZIP),
    (b"PK\x05\x06", Kind.ZIP),
    (b"7z\xbc\xaf\x27\x1c", Kind.SEVEN_ZIP),
    (b"Rar!\x1a\x07", Kind.ARCHIVE),
    (b"PAR1", Kind.PARQUET),
)
_FOREIGN = (
    b"8BPS",
    b"\x00\x00\x01\x00",
    b"\xff\x0a",
    b"\x00\x00\x00\x0cJXL ",
    b"\x00\x00\x00\x0cjP  ",
    b"%!PS",
    b"\xc5\xd0\xd3\xc6",
)
#: ISO 23008-12, 10.2 and 10.3: HEVC still pictures and sequences, and what may be either HEVC or AV1.
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")


def sniff(head: bytes) -> Kind:
    """The kind of a file that begins with these bytes (`HEAD_BYTES` of them, or all)."""
    if is_picture(head):
        return Kind.PICTURE
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    # `BZh` alone begins words.
    if head.startswith(_COMPRESSED) or (head[:3] == b"BZh" and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90")):
        return Kind.COMPRESSED
    if _is_tar(head):
        return Kind.TAR
    if head.startswith(_FOREIGN) or b"<svg" in head:
        return Kind.FOREIGN_PICTURE
    return Kind.OTHER


def _is_tar(head: bytes) -> bool:
    """True for a tar header: the mark of POSIX and GNU, or the sum of its bytes that V7 has too."""
    if len(head) < HEAD_BYTES:
        return False
    if head[257:262] == b"ustar":
        return True
    claimed = head[148:156].strip(b" \0")
    if not claimed.isdigit() or b"8" in claimed or b"9" in claimed:
        return False
    return int(claimed, 8) == sum(head[:148]) + 8 * ord(" ") + sum(head[156:512])


def is_picture(head: bytes) -> bool:
    """True for the formats that `picture` decodes."""
    return (
        head.startswith(_PICTURES)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        # `BM` alone begins English text; the reserved fields of a bitmap are zero in every program's files.
        or (head[:2] == b"BM" and head[6:10] == b"\0\0\0\0")
        or (head[4:8] == b"ftyp" and (head[8:12] in _HEIF_BRANDS + _AVIF_BRANDS or b"avif" in head[16:40]))
    )


def has_image_name(name: str) -> bool:
    """True if the extension promises a picture."""
    return PurePosixPath(name).suffix.lower() in IMAGE_EXTENSIONS


def has_caption_name(name: str) -> bool:
    """True if the extension promises a caption, or a table of captions."""
    return PurePosixPath(name).suffix.lower() in CAPTION_EXTENSIONS + TABLE_EXTENSIONS
