"""Decodes image files to what a model should see: upright, sRGB, opaque, eight bits, no metadata."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import (  # noqa: F401  each import registers a format; `Image.init()` would load forty, EPS among them
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from trainer.dataset.images.damage import DamagedError, decode_jpeg, jpeg_pixels, require_undamaged, said_by_decoder
from trainer.dataset.images.strip_metadata import is_srgb, strip_metadata
from trainer.dataset.input_files import MIB, Limits
from trainer.errors import DatasetError
from trainer.protocol.bucket_shapes import Size
from trainer.protocol.report import FindingKind
from trainer.protocol.text import _

pillow_heif.register_heif_opener()
# A generator's workflow is longer than Pillow's 1 MiB; the memory of a decoder is limited anyway.
PngImagePlugin.MAX_TEXT_CHUNK = 16 * MIB
_FORMATS = tuple(name for name in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF") if name in Image.OPEN)
#: Formats that are lossy already: stored as JPEG, at a quality that no model can tell from the original.
_JPEG, _LOSSY = ("JPEG", "MPO"), ("JPEG", "MPO", "AVIF", "HEIF")
_ORIENTATION_TAG = 0x0112
#: EXIF 2.31: the local time at which it was taken, and the digits of its fraction of a second.
_CAPTURED_TAG, _FRACTION_TAG = 0x9003, 0x9291
#: EXIF 2.3, tag 0x0112: the operation that makes the image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: White of 12 bits, the most that is taken for a scan in a file of 16; and how many bits a TIFF has (tag 258).
_MOST_BITS_WHITE, _BITS_TAG = 4095, 258
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
#: A JPEG is decoded at this multiple of its bucket at least: Lanczos drops finer detail anyway.
_DRAFT_FACTOR = 2
#: The most that a pixel takes on its way, measured on 40 Mpx: from 6 (RGB as PNG) to 18 (RGBA as WebP). A JPEG is
#: decoded in reduced size, and takes 7 where all of its coefficients are kept (progressive).
_BYTES_PER_PIXEL, _BYTES_PER_JPEG_PIXEL = 18, 8
_Result = TypeVar("_Result")


class ImageError(Exception):
    """An image cannot be used; carries what the finding needs."""

    def __init__(
        self,
        kind: FindingKind,
        message: str,
        measure: float | None = None,
        threshold: float | None = None,
        detail: str = "",
    ) -> None:
        # All are positional arguments, so that the exception can be pickled on its way from a worker process.
        super().__init__(kind, message, measure, threshold, detail)
        self.kind, self.message = kind, message
        self.measure, self.threshold = measure, threshold
        #: What exactly is damaged, or what a library said, in English.
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """The pixels of an image in memory."""

    #: Upright RGB, [H, W, 3], at most `Limits.max_stored_pixels`; with `stripped`, only as large as the checks need.
    pixels: NDArray[np.uint8]
    #: What to store, and its extension: the original bytes without metadata. None: encode `pixels` again.
    stripped: tuple[bytes, str] | None
    is_lossy: bool
    #: Upright size of the original, px.
    width: int
    height: int
    #: Opacity, 8-bit gray in the size of `pixels`; None without transparency.
    alpha: Image.Image | None = None
    #: When it was taken, by the camera's clock: seconds from an arbitrary time; None if unknown.
    captured_at: float | None = None
    #: What was ignored, as clauses.
    notes: tuple[str, ...] = field(default=())

    @property
    def image(self) -> Image.Image:
        """The pixels as a PIL image."""
        return Image.fromarray(self.pixels)


def decode(data: bytes, limits: Limits) -> DecodedImage:
    """Decode an image file once, at the size that it is stored at.

    Raises:
        ImageError: The content is not an image, damaged, unsupported, or too large.
    """
    return _guarded(_decode, data, limits)


def decode_mask(data: bytes, limits: Limits) -> Image.Image:
    """Decode a mask file to upright 8-bit gray, at most `Limits.max_stored_pixels`.

    Its transparency counts if it has any (a cut-out), else its brightness.

    Raises:
        ImageError: The content is not an image, damaged, unsupported, or too large.
    """
    return _guarded(_decode_mask, data, limits)


def memory_to_decode(data: bytes, limits: Limits) -> int:
    """Estimate the memory that `decode` takes beside `data`, bytes, from the header alone.

    Raises:
        ImageError: The content is not an image, or too large.
    """
    return _guarded(_memory_to_decode, data, limits)


def open_for_bucket(dataset_dir: Path, path: str, bucket: Size) -> Image.Image:
    """Open a stored image as RGB for `fit` to bring to `bucket`.

    A JPEG may be decoded smaller than it is stored, but at least twice as large as the bucket: 12 Mpx for 512 px take
    59 ms instead of 186 ms including `fit`, and no pixel of the result is off by more than 12 of 255 (1.1 on average).

    Raises:
        UnreadableFilesError: The file is missing or damaged.
    """
    with reading(dataset_dir / path):
        data = (dataset_dir / path).read_bytes()
        with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            _load_unless_jpeg(data, opened)
            scale = _DRAFT_FACTOR * max(bucket[0] / opened.width, bucket[1] / opened.height)
            return _load_jpeg(data, opened, scale).convert("RGB")


class UnreadableFilesError(DatasetError):
    """Stored files of a prepared dataset are missing or damaged."""

    def __init__(self, reasons: Mapping[Path, str]) -> None:
        path, reason = next(iter(reasons.items()))
        super().__init__(
            _("{path} of the dataset cannot be read ({error}).", path="/".join(path.parts[-2:]), error=reason),
            _("Prepare the dataset again."),
        )
        #: Why, by file.
        self.reasons = dict(reasons)


class UnreadableFiles:
    """Collects files that cannot be read, so that one look at a dataset finds all of them."""

    def __init__(self) -> None:
        self._reasons: dict[Path, str] = {}

    def __bool__(self) -> bool:
        return bool(self._reasons)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Note a file that the body cannot read, and end the body."""
        try:
            yield
        except UnreadableFilesError as error:
            self._reasons |= error.reasons

    def require_none(self) -> None:
        """Raise:
        UnreadableFilesError: There were some.
        """
        if self._reasons:
            raise UnreadableFilesError(self._reasons)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises for a stored file into an `UnreadableFilesError`."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise UnreadableFilesError({path: _first_line(error)}) from error


def _guarded(decoder: Callable[[bytes, Limits], _Result], data: bytes, limits: Limits) -> _Result:
    """Run a decoder and turn whatever it raises into an `ImageError`."""
    with warnings.catch_warnings():
        # Pillow warns of odd metadata, which is dropped anyway, and of large images, which are checked below.
        warnings.simplefilter("ignore")
        try:
            return decoder(data, limits)
        except ImageError:
            raise
        except Image.DecompressionBombError as error:
            raise _too_many_pixels(str(error), None, limits) from error
        except MemoryError as error:
            raise out_of_memory() from error
        except UnidentifiedImageError as error:
            raise ImageError(FindingKind.CORRUPT, _("its content is not a readable image")) from error
        except Exception as error:  # decoders raise anything on garbage; only this image is affected
            damage = error if isinstance(error, DamagedError) else said_by_decoder(_first_line(error))
            message = _("it is damaged ({error})", error=damage)
            raise ImageError(FindingKind.CORRUPT, message, detail=damage.detail) from error


def _first_line(error: Exception) -> str:
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (words or type(error).__name__).split("\n")[0][:120]


def out_of_memory() -> ImageError:
    """The error for an image that needs more memory than a decoder may use."""
    return ImageError(FindingKind.TOO_MANY_PIXELS, _("decoding it needs more memory than is allowed"))


def _decode(data: bytes, limits: Limits) -> DecodedImage:
    notes: list[str] = []
    with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
        _check_pixels(opened.width * opened.height, limits)
        if is_animated := _is_animated(opened):
            notes.append(_("only its first frame is used"))
        _load_unless_jpeg(data, opened)
        exif = _exif(opened)
        orientation, captured_at = _orientation(exif), _captured_at(exif)
        stripped = None if orientation != 1 or is_animated else strip_metadata(data, opened, limits)
        is_lossy = opened.format in _LOSSY
        (width, height), profile = opened.size, opened.info.get("icc_profile")
        scale = _jpeg_scale(opened, limits, for_checks=stripped is not None)
        if stripped is not None and opened.format in _JPEG:
            # Upright sRGB as it is: most images are, and a PIL image would be copied twice.
            pixels = decode_jpeg(data, opened.size, "RGB", scale)
            if pixels is not None:
                return DecodedImage(
                    pixels=pixels,
                    stripped=stripped,
                    is_lossy=True,
                    width=width,
                    height=height,
                    captured_at=captured_at,
                )
        image = _load_jpeg(data, opened, scale)
        image = _stretched(data, _to_eight_bits(image, notes), notes)
    image = _shrink(image, limits.max_stored_pixels)
    color, alpha = _take_alpha(image)
    image = _upright(_flatten(_to_srgb(color, profile, notes), alpha, limits.background), orientation)
    if orientation >= 5:
        width, height = height, width
    return DecodedImage(
        pixels=np.asarray(image),
        stripped=stripped,
        is_lossy=is_lossy,
        width=width,
        height=height,
        alpha=None if alpha is None else _upright(alpha, orientation),
        captured_at=captured_at,
        notes=tuple(notes),
    )


def _decode_mask(data: bytes, limits: Limits) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
        _check_pixels(opened.width * opened.height, limits)
        _load_unless_jpeg(data, opened)
        orientation = _orientation(_exif(opened))
        image = _load_jpeg(data, opened, _jpeg_scale(opened, limits, for_checks=False))
        image = _shrink(_to_eight_bits(image, []), limits.max_stored_pixels)
    color, alpha = _take_alpha(image)
    is_cut_out = alpha is not None and alpha.getextrema() != (255, 255)
    return _upright(alpha if alpha is not None and is_cut_out else color.convert("L"), orientation)


def _memory_to_decode(data: bytes, limits: Limits) -> int:
    # Opening a WebP makes room for two frames of it.
    if data[8:12] == b"WEBP":
        pixels, per_pixel = _webp_pixels(data[:30]), _BYTES_PER_PIXEL
    elif (of_jpeg := jpeg_pixels(data)) is not None:
        pixels, per_pixel = of_jpeg, _BYTES_PER_JPEG_PIXEL
    else:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            pixels, per_pixel = opened.width * opened.height, _BYTES_PER_PIXEL
    _check_pixels(pixels, limits)
    return per_pixel * pixels


def _webp_pixels(head: bytes) -> int:
    """Area by the first chunk of a WebP (RFC 9649, 2.5 to 2.7)."""
    match head[12:16]:
        case b"VP8X":
            width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
        case b"VP8L":
            packed = int.from_bytes(head[21:25], "little")
            width, height = 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
        case _:
            width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return width * height


def _check_pixels(pixels: int, limits: Limits) -> None:
    if pixels > limits.max_pixels:
        raise _too_many_pixels(_("it has {n:.0f} megapixels", n=pixels / 1e6), pixels, limits)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    image.info.clear()
    return image


def _too_many_pixels(message: str, pixels: int | None, limits: Limits) -> ImageError:
    return ImageError(
        FindingKind.TOO_MANY_PIXELS,
        _("{what}; at most {n:.0f} megapixels are opened", what=message, n=limits.max_pixels / 1e6),
        None if pixels is None else float(pixels),
        float(limits.max_pixels),
    )


def _is_animated(image: ImageFile.ImageFile) -> bool:
    # Not `n_frames`: it reads every frame of a TIFF or a GIF, and 10 MB hold a hundred thousand.
    return bool(getattr(image, "is_animated", False)) and image.format != "MPO"


def _load_unless_jpeg(data: bytes, opened: ImageFile.ImageFile) -> None:
    """Decode all pixels, and fail if any of them is damaged; a TIFF becomes upright.

    Before anything asks for EXIF: Pillow would decode a PNG then, and `_orientation` would hide its errors.
    """
    require_undamaged(data, opened)
    if opened.format not in _JPEG:
        opened.load()


def _load_jpeg(data: bytes, opened: ImageFile.ImageFile, scale: float) -> Image.Image:
    """Decode a JPEG at a scale or the next larger one; another image is loaded already."""
    if opened.format not in _JPEG:
        return opened
    pixels = decode_jpeg(data, opened.size, opened.mode, scale)
    if pixels is None:
        opened.load()
        return opened
    # Adobe's CMYK, which is the only one, is inverted.
    raw_mode = "CMYK;I" if opened.mode == "CMYK" else opened.mode
    return Image.frombuffer(opened.mode, (pixels.shape[1], pixels.shape[0]), pixels, "raw", raw_mode, 0, 1)


def _jpeg_scale(image: ImageFile.ImageFile, limits: Limits, *, for_checks: bool) -> float:
    """The scale at which a JPEG is decoded, without the frequencies that are not needed; 4 to 8 times faster.

    The checks need a short side of `Limits.checked_side_px`. An image that is encoded again needs half of the stored
    area, which is 2 Mpx, twice the area that SDXL trains at.
    """
    pixels = image.width * image.height
    if for_checks:
        return limits.checked_side_px / min(image.size)
    return 1.0 if pixels <= limits.max_stored_pixels else float((limits.max_stored_pixels / 2 / pixels) ** 0.5)


def _exif(image: ImageFile.ImageFile) -> Image.Exif:
    try:
        return image.getexif()
    except Exception:  # noqa: BLE001  broken EXIF is ignored
        return Image.Exif()


def _orientation(exif: Image.Exif) -> int:
    value = exif.get(_ORIENTATION_TAG, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _captured_at(exif: Image.Exif) -> float | None:
    try:
        details = exif.get_ifd(ExifTags.IFD.Exif)
        shot = datetime.strptime(f"{details[_CAPTURED_TAG]:.19} +0000", "%Y:%m:%d %H:%M:%S %z")
    except Exception:  # noqa: BLE001  broken EXIF is ignored
        return None
    fraction = str(details.get(_FRACTION_TAG, "")).strip("\0 ")
    return shot.timestamp() + (float(f"0.{fraction}") if fraction.isdecimal() and fraction.isascii() else 0.0)


def _to_eight_bits(image: Image.Image, notes: list[str]) -> Image.Image:
    """Scale 16-bit and float gray to L by its true range; Pillow's `convert` clips it at 255."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    # In place: of 100 Mpx, each further array takes 400 MB.
    gray = np.nan_to_num(np.array(image, dtype=np.float32), copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    if image.mode.startswith("I;16"):
        return Image.fromarray(_scaled_by_bits(gray, notes))
    top = float(gray.max(initial=0.0))
    # The white level of 32-bit integers and floats is unknown: take the next usual one.
    return Image.fromarray(_scaled(gray, next((white for white in (1.0, 255.0, 65535.0) if top <= white), top)))


def _stretched(data: bytes, image: Image.Image, notes: list[str]) -> Image.Image:
    """Scale 16-bit color of which few bits are used, as by a scanner of 12 bits; Pillow keeps the upper 8 of 16."""
    bits = data[24] if isinstance(image, PngImagePlugin.PngImageFile) else 8
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = max(image.tag_v2.get(_BITS_TAG, (8,)))
    if bits != 16 or int(np.asarray(image.convert("RGB")).max()) > _MOST_BITS_WHITE >> 8:
        return image
    import cv2  # 0.15 s to load, and such files are rare

    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if values is None or values.dtype != np.uint16 or values.shape[2:] not in ((3,), (4,)):
        return image
    stretched = Image.fromarray(_scaled_by_bits(values[..., 2::-1].astype(np.float32), notes))
    if "A" in image.getbands():
        stretched.putalpha(image.getchannel("A"))
    return stretched


def _scaled_by_bits(values: NDArray[np.float32], notes: list[str]) -> NDArray[np.uint8]:
    """Scale 16 bits to 8. How many of them were used is not in the file: if few, the image would be almost black."""
    top = float(values.max(initial=0.0))
    white = next((white for white in (255, 1023, _MOST_BITS_WHITE) if 0 < top <= white), 65535)
    if white < 65535:
        notes.append(
            _("its brightest value is {n:,.0f} of 65,535, so {white:,} was taken for white", n=top, white=white)
        )
    return _scaled(values, white)


def _scaled(values: NDArray[np.float32], white: float) -> NDArray[np.uint8]:
    values *= 255.0 / white
    values += 0.5
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


def _shrink(image: Image.Image, max_pixels: int) -> Image.Image:
    share = (max_pixels / (image.width * image.height)) ** 0.5
    if share >= 1:
        # Not the file itself, which is closed.
        return image.copy() if isinstance(image, ImageFile.ImageFile) else image
    if image.mode in ("1", "P", "PA") or image.has_transparency_data:
        # Palette indices and hidden colors must not be averaged; Pillow weights RGBA by its alpha.
        mode = "RGBA" if image.has_transparency_data else "RGB"
        image = image if image.mode == mode else image.convert(mode)
    size = max(1, round(image.width * share)), max(1, round(image.height * share))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _take_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Split into color (L, RGB, CMYK or LAB) and alpha (L), so that a color profile applies to color only."""
    if image.mode in ("LA", "La"):
        gray, alpha = image.convert("LA").split()
        return gray, alpha
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return rgba.convert("RGB"), rgba.getchannel("A")
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Convert by the embedded color profile, or by Pillow's formulas without one."""
    if profile and not is_srgb(profile):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = source.profile.xcolor_space.strip()
            # A gray image with a color profile, or the reverse, is common: convert it to the profile's space.
            wanted = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK", "Lab": "LAB"}.get(space)
            if wanted is not None and (image.mode == wanted or {image.mode, wanted} == {"L", "RGB"}):
                image = image if image.mode == wanted else image.convert(wanted)
                converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
                return converted if converted is not None else image.convert("RGB")
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
            pass
        notes.append(_("its color profile is broken and was ignored"))
    return image.convert("RGB")


def _flatten(color: Image.Image, alpha: Image.Image | None, background: tuple[int, int, int]) -> Image.Image:
    if alpha is None:
        return color
    return Image.composite(color, Image.new("RGB", color.size, background), alpha)
