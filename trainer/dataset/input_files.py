"""Files from users before they are decoded: size limits, file kinds by content, safe names, and the entry record."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import PurePosixPath

from trainer.protocol.report import FileRole, RefusalKind
from trainer.protocol.text import _

MIB = 2**20

#: Bytes that `sniff` needs: enough for every signature, including tar's.
HEAD_BYTES = 512

_DECODED_EXTENSIONS = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff"}
_DECODED_EXTENSIONS |= {".gif", ".avif", ".heic", ".heif", ".hif"}
#: Raw files of cameras. Many are TIFFs of which only a small preview would be read.
RAW_EXTENSIONS = frozenset(
    {".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".orf", ".rw2", ".raf", ".pef"}
    | {".srw", ".x3f", ".3fr", ".fff", ".iiq", ".mrw", ".erf", ".mef", ".mos", ".dcr", ".kdc", ".rwl", ".gpr"}
)
#: Formats that are not decoded, by extension, as people call them.
_UNSUPPORTED_FORMATS = {
    **dict.fromkeys((".jp2", ".j2k", ".j2c", ".jpf", ".jpx", ".jpm"), "JPEG 2000"),
    **dict.fromkeys((".psd", ".psb"), "Photoshop"),
    **dict.fromkeys((".eps", ".ps", ".ai"), "PostScript"),
    **dict.fromkeys((".svg", ".svgz"), "SVG"),
    **dict.fromkeys((".jxr", ".wdp", ".hdp"), "JPEG XR"),
    **dict.fromkeys((".pbm", ".pgm", ".ppm", ".pnm", ".pfm"), "Netpbm"),
    ".jxl": "JPEG XL",
    ".ico": "ICO",
    ".cur": "CUR",
    ".icns": "ICNS",
    ".tga": "TGA",
    ".xcf": "GIMP",
    ".kra": "Krita",
    ".ora": "OpenRaster",
    ".procreate": "Procreate",
    ".sketch": "Sketch",
    ".afphoto": "Affinity Photo",
    ".clip": "Clip Studio",
    ".exr": "OpenEXR",
    ".hdr": "Radiance HDR",
    ".dds": "DDS",
    ".pcx": "PCX",
    ".qoi": "QOI",
}
#: Documents that are zips, by extension, as people call them; what is in them is not what they show.
_DOCUMENT_FORMATS = {
    **dict.fromkeys((".docx", ".docm", ".pages"), "Word"),
    **dict.fromkeys((".xlsx", ".xlsm", ".numbers"), "Excel"),
    **dict.fromkeys((".pptx", ".pptm", ".key"), "PowerPoint"),
    **dict.fromkeys((".odt", ".ods", ".odp", ".odg"), "OpenDocument"),
    ".epub": "EPUB",
}
#: Weights and arrays that are zips.
_PACKED_ARRAYS = frozenset({".npz", ".pt", ".pth", ".ckpt", ".bin"})
IMAGE_EXTENSIONS = frozenset(_DECODED_EXTENSIONS | RAW_EXTENSIONS | set(_UNSUPPORTED_FORMATS))
#: Caption files beside an image, in order of precedence.
CAPTION_EXTENSIONS = (".txt", ".caption", ".tags", ".json")
#: Caption tables; a `.json` or `.txt` file can also be one.
TABLE_EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson")
#: Its texts can have a table.
MARKDOWN_EXTENSION = ".md"

#: The icon of a folder of macOS.
FINDER_ICON = "Icon\r"
#: Of macOS, Windows, Synology, QNAP, Linux, Python, Picasa and Lightroom; names with a dot in front are clutter too.
_CLUTTER = re.compile(
    r"__macosx|icon\r|thumbs\.db(:.*)?|ehthumbs.*\.db|desktop\.ini|zbthumbnail\.info|\$recycle\.bin|recycler"
    r"|system volume information|@eadir|#recycle|@recycle|@tmp|@__thumb|#snapshot|synoindex_media_info"
    r"|lost\+found|__pycache__|pax_global_header|paxheaders?(\.\d+)?|node_modules|picasa\.ini"
    r"|.*\.(lrcat|lrcat-data|lrdata|lrprev|lrtemplate|xmp|aae|thm|lnk|url|pyc|crdownload|part|partial|tmp|swp|bak)"
    r"|~syncthing~.*|~\$.*|.*~|.*:?zone\.identifier"
)
_PART_NAME = re.compile(r".*\.(z\d\d|(zip|7z|rar|tar|tgz|gz)\.\d{2,3}|part\d+\.(rar|zip|7z|exe)|r\d\d)", re.DOTALL)
#: Programs of Windows and of Linux; a self-extracting zip begins so.
PROGRAM_SIGNATURES = (b"MZ", b"\x7fELF", b"#!")
_DIGITS = re.compile(r"(\d+)")
_MAX_NAME_LENGTH = 1024


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on opening and storing untrusted archives and images; `--limit NAME=VALUE` changes one."""

    #: Entries of one archive, or files of one folder.
    max_entries: int = 20_000
    #: Size of an archive's list of entries, whatever its end record claims to hold.
    max_directory_bytes: int = 16 * MIB
    #: One file, inflated. A 24-bit BMP of `max_pixels` is 300 MB.
    max_entry_bytes: int = 320 * MIB
    #: All entries of one archive, inflated.
    max_archive_bytes: int = 8 * 1024 * MIB
    #: Inflated size over compressed size. Photographs stay near 1, captions under 10, flat BMPs reach hundreds.
    max_ratio: float = 200.0
    #: The ratio is not checked below this inflated size.
    ratio_floor_bytes: int = 16 * MIB
    #: Memory that decompression may use: 7-Zip's "ultra" needs 64 MiB, a header can ask for 4 GiB.
    max_dictionary_bytes: int = 256 * MIB
    #: A longer text file is not a caption.
    max_caption_bytes: int = 64 * 1024
    #: All tables of captions and JSON files together; the rest is not read.
    max_table_bytes: int = 32 * MIB
    #: More images are not decoded.
    max_images: int = 5000

    #: Whether `hf://` datasets are downloaded.
    allow_downloads: bool = True
    #: Whether Arrow and Parquet files are read. Their readers are not hardened against hostile files: the bot says no.
    allow_arrow: bool = True

    #: Larger images are refused from the header, before they are decoded.
    max_pixels: int = 100_000_000
    #: Private memory of a whole preparation: two thirds are for all decoders together. 100 Mpx take up to 1.8 GB.
    memory_bytes: int = 4096 * MIB
    #: CPU time limit of one decode; a wall-clock limit would drop good images on a busy machine.
    decode_cpu_s: float = 60.0

    #: Images with a shorter side than this are dropped.
    min_side_px: int = 64
    #: Images with a higher aspect ratio than this are dropped if their short side is also below `min_short_side_px`.
    max_aspect: float = 4.0
    min_short_side_px: int = 128
    #: Larger images are stored at this area: four times SDXL's 1024², more than any training resolution needs.
    max_stored_pixels: int = 2048 * 2048
    #: Short side at which blur and similarity are measured, px.
    checked_side_px: int = 512
    #: Color behind transparent pixels, RGB.
    background: tuple[int, int, int] = (255, 255, 255)

    @property
    def decoders_bytes(self) -> int:
        """The share of `memory_bytes` that all decoders have together; the rest is the main process's."""
        return self.memory_bytes * 2 // 3


class RefusedError(Exception):
    """An entry or an archive is not opened; `reason` is a clause for a sentence."""

    def __init__(self, kind: RefusalKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


class FileKind(Enum):
    """The kind of a file, by its content. It alone decides how the file is handled."""

    IMAGE = auto()
    #: An image in a format that is not decoded.
    UNSUPPORTED_IMAGE = auto()
    ZIP = auto()
    TAR = auto()
    #: gzip, bzip2, xz or zstd; refused unless it contains a tar.
    COMPRESSED = auto()
    SEVEN_ZIP = auto()
    #: A table that can hold images in its cells.
    PARQUET = auto()
    #: An archive in a format that is not opened.
    UNSUPPORTED_ARCHIVE = auto()
    OTHER = auto()


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLabels:
    """Captions and class from the dataset row that holds the image."""

    captions: tuple[str, ...] = ()
    class_name: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class KohyaFolder:
    """What kohya reads from the name of a folder: `10_zkz girl` is seen 10 times, as "zkz girl"."""

    repeats: int = 1
    #: Empty if the file is in no such folder.
    trigger: str = ""
    #: How many folders below it the file is.
    depth: int = 0


NO_REPEATS = KohyaFolder()


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceEntry:
    """One input file, archive member or dataset row; not read yet."""

    #: The name in the report: the path below the input, `archive.zip!member` inside an archive.
    source: str
    #: Path within its folder or archive; a caption belongs to the image with the same `scope` and stem.
    path: str
    #: Number of the folder or archive; all loose files share 0.
    scope: int
    #: Raises RefusedError.
    read: Callable[[], bytes]
    #: None until the content is read (archive members, dataset rows).
    kind: FileKind | None = None
    #: Name of the input folder, which can carry kohya's repeats and trigger.
    input_folder: str = ""
    #: Set for dataset rows, which must contain an image whatever their path is.
    row_labels: RowLabels | None = None
    #: By the layout of its folder or archive.
    role: FileRole = FileRole.IMAGE
    #: The folder that gave it its role, below the input, ending with a slash; empty if its own name did.
    role_folder: str = ""
    kohya: KohyaFolder = NO_REPEATS


#: PNG, JPEG, GIF, TIFF and BigTIFF.
_IMAGE_SIGNATURES = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF87a",
    b"GIF89a",
    b"II\x2a\0",
    b"MM\0\x2a",
    b"II\x2b\0",
    b"MM\0\x2b",
)
#: Archives that are not opened.
_UNSUPPORTED_ARCHIVES = {
    b"Rar!\x1a\x07": "RAR",
    b"MSCF\0\0\0\0": "CAB",
    b"LZIP": "lzip",
    b"\x04\x22\x4d\x18": "LZ4",
    b"\x89LZO": "lzop",
    b"\x1f\x9d": "compress",
    b"!<arch>\n": "ar",
    b"xar!\0": "XAR",
    b"zPQ": "ZPAQ",
}
_COMPRESSED = (b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
_SIGNATURES = (
    (b"PK\x03\x04", FileKind.ZIP),
    (b"PK\x05\x06", FileKind.ZIP),
    # One of several parts, or written as if it could be.
    (b"PK\x07\x08", FileKind.ZIP),
    (b"PK00PK\x03\x04", FileKind.ZIP),
    (b"7z\xbc\xaf\x27\x1c", FileKind.SEVEN_ZIP),
    *((signature, FileKind.UNSUPPORTED_ARCHIVE) for signature in _UNSUPPORTED_ARCHIVES),
    (b"PAR1", FileKind.PARQUET),
)
_UNSUPPORTED_IMAGES = {
    b"8BPS": "Photoshop",
    b"\x00\x00\x01\x00": "ICO",
    b"\x00\x00\x02\x00": "CUR",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"II\xbc": "JPEG XR",
    b"gimp xcf": "GIMP",
    b"DDS ": "DDS",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"qoif": "QOI",
    b"icns": "ICNS",
}
_FORMATS = _UNSUPPORTED_ARCHIVES | _UNSUPPORTED_IMAGES
#: ISO 23008-12, 10.2 and 10.3: HEVC images and sequences, and brands used by both HEVC and AV1.
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")


def sniff(head: bytes) -> FileKind:
    """Identify a file by its first `HEAD_BYTES` bytes (all of them if it is shorter)."""
    if is_image(head):
        return FileKind.IMAGE
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    # `BZh` alone could begin a text.
    if head.startswith(_COMPRESSED) or (head[:3] == b"BZh" and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90")):
        return FileKind.COMPRESSED
    if _is_tar(head):
        return FileKind.TAR
    if head.startswith(tuple(_UNSUPPORTED_IMAGES)) or is_svg(head):
        return FileKind.UNSUPPORTED_IMAGE
    return FileKind.OTHER


def unsupported_format(name: str, head: bytes) -> str:
    """What people call the format of an image or archive that is not opened; empty if it is not known."""
    by_signature = (known for signature, known in _FORMATS.items() if head.startswith(signature))
    return next(by_signature, "") or _UNSUPPORTED_FORMATS.get(PurePosixPath(name).suffix.lower(), "")


def document_format(name: str) -> str:
    """What people call the format of a document that is a zip; empty for other files."""
    return _DOCUMENT_FORMATS.get(PurePosixPath(name).suffix.lower(), "")


def is_archive_name(name: str) -> bool:
    """False for the names of drawings, documents and weights that are zips inside; a photograph never is one."""
    ending = PurePosixPath(name).suffix.lower()
    is_image = ending in IMAGE_EXTENSIONS and ending not in _DECODED_EXTENSIONS
    return not is_image and ending not in _DOCUMENT_FORMATS and ending not in _PACKED_ARRAYS


def is_svg(head: bytes) -> bool:
    """True for XML that begins as an SVG does; a caption may do so too."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and b"<svg" in head


def is_image(head: bytes) -> bool:
    """True for the formats that are decoded."""
    return (
        head.startswith(_IMAGE_SIGNATURES)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        # `BM` alone could begin a text; the reserved fields of a bitmap are always zero.
        or (head[:2] == b"BM" and head[6:10] == b"\0\0\0\0")
        or (head[4:8] == b"ftyp" and (head[8:12] in _HEIF_BRANDS + _AVIF_BRANDS or b"avif" in head[16:40]))
    )


def _is_tar(head: bytes) -> bool:
    """True for a tar header: POSIX and GNU by their magic, V7 by its checksum."""
    if len(head) < HEAD_BYTES:
        return False
    if head[257:262] == b"ustar":
        return True
    checksum = head[148:156].strip(b" \0")
    if not checksum.isdigit() or b"8" in checksum or b"9" in checksum:
        return False
    return int(checksum, 8) == sum(head[:148]) + 8 * ord(" ") + sum(head[156:512])


def _extension(name: str) -> str:
    # `PurePosixPath.suffix` takes five times as long, for each image a dozen times.
    return posixpath.splitext(name)[1].lower()


def has_image_name(name: str) -> bool:
    """True if the extension is that of an image."""
    return _extension(name) in IMAGE_EXTENSIONS


def has_raw_name(name: str) -> bool:
    """True if the extension is that of a camera's raw file."""
    return _extension(name) in RAW_EXTENSIONS


def is_part_name(name: str) -> bool:
    """True for a part of an archive in several: `a.z01`, `a.zip.001`, `a.part2.rar`."""
    return _PART_NAME.fullmatch(name.lower()) is not None


def has_caption_name(name: str) -> bool:
    """True if the extension is that of a caption or a table of captions."""
    return _extension(name) in (*CAPTION_EXTENSIONS, *TABLE_EXTENSIONS, MARKDOWN_EXTENSION)


def printable(name: str) -> str:
    """Escape the characters that a terminal, a log or JSON cannot show."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in name)


def unsafe_reason(name: str) -> str | None:
    """Why an archive name may not be used, or None. Backslashes count as slashes, as on Windows."""
    path = name.replace("\\", "/")
    if not path.strip("/. "):
        return _("its name is empty")
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in path):
        return _("its name contains control characters")
    if path.startswith("/"):
        return _("its name is an absolute path")
    if re.match(r"[A-Za-z]:", path):
        return _("its name contains a drive letter")
    if ".." in (part.rstrip(" ") for part in path.split("/")):
        return _("its name leads out of its folder")
    if len(path) > _MAX_NAME_LENGTH:
        return _("its name is longer than {most} characters", most=_MAX_NAME_LENGTH)
    return None


def normalize_path(name: str) -> str:
    """A safe archive name with forward slashes and without empty or `.` parts."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def is_os_clutter(name: str) -> bool:
    """True for what systems and programs leave behind: `__MACOSX`, `Thumbs.db`, `@eaDir`, dotfiles."""
    parts = name.replace("\\", "/").split("/")
    return any(_CLUTTER.fullmatch(part.lower()) or (part.startswith(".") and part.strip(".") != "") for part in parts)


def composed(name: str) -> str:
    """The name with composed letters: macOS stores "é" as two characters."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def same_name_key(name: str) -> str:
    """Equal for names that some file systems treat as one: ignores case and Unicode composition."""
    return name.lower() if name.isascii() else composed(composed(name).casefold())


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts `img2` before `img10`."""
    parts = _DIGITS.split(name.casefold())
    # Digits beyond 18 are compared as text: int() of a hostile name of a million digits takes minutes.
    keys = ((0, int(part), part) if part.isdecimal() and len(part) <= 18 else (1, 0, part) for part in parts if part)
    # The name itself comes last, so that two different names never tie.
    return (*keys, (2, 0, name))


def stem_key(name: str) -> str:
    """Folder and stem of a name; equal for an image and its caption."""
    return same_name_key(str(PurePosixPath(name).with_suffix("")))
