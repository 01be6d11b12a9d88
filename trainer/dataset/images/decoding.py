"""From the bytes of a picture file to what a model should see: upright, sRGB, opaque, eight bits, no metadata."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import TypeVar

import numpy as np
import pillow_heif
from PIL import (  # noqa: F401  each import registers a format; `Image.init()` would load forty, EPS among them
    AvifImagePlugin,
    BmpImagePlugin,
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

from trainer.dataset.images.plain_copy import is_srgb, plain_copy
from trainer.dataset.limits import Limits
from trainer.protocol.report import FindingKind

pillow_heif.register_heif_opener()
_FORMATS = tuple(name for name in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF") if name in Image.OPEN)
#: Formats that were compressed with loss already: stored as JPEG at a quality that no model can tell.
_LOSSY = ("JPEG", "MPO", "AVIF", "HEIF")
_ORIENTATION_TAG = 0x0112
#: EXIF 2.3, tag 0x0112: what makes a picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_Result = TypeVar("_Result")


class PictureError(Exception):
    """A picture that cannot be used: what kind of finding it is, what was measured against what."""

    def __init__(
        self, kind: FindingKind, message: str, measure: float | None = None, threshold: float | None = None
    ) -> None:
        # All of them are arguments, so that the exception survives the way back from a worker process.
        super().__init__(kind, message, measure, threshold)
        self.kind = kind
        self.message = message
        self.measure = measure
        self.threshold = threshold


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A decoded picture."""

    #: Upright RGB, at most `Limits.max_stored_pixels`; where there is a plain copy, as small as the checks allow.
    image: Image.Image
    #: What to store, and its extension: the file's own bytes without metadata. None: `image`, encoded anew.
    plain: tuple[bytes, str] | None
    is_lossy: bool
    #: Upright size as handed in, px.
    width: int
    height: int
    #: How opaque `image` was, 8-bit grey of its size; None if it has no transparency.
    alpha: Image.Image | None = None
    #: What was left out or ignored, in words.
    notes: tuple[str, ...] = field(default=())


def decode(data: bytes, limits: Limits) -> Picture:
    """Decode a picture once, at the size that it is stored at.

    Raises:
        PictureError: it is no picture, damaged, of an unknown kind, or too large.
    """
    return _guarded(_decode, data, limits)


def decode_mask(data: bytes, limits: Limits) -> Image.Image:
    """Decode a mask file: upright, 8-bit grey, at most `Limits.max_stored_pixels`.

    Its transparency where it has any (a cut-out), else its brightness.

    Raises:
        PictureError: it is no picture, damaged, of an unknown kind, or too large.
    """
    return _guarded(_decode_mask, data, limits)


def _guarded(decoder: Callable[[bytes, Limits], _Result], data: bytes, limits: Limits) -> _Result:
    with warnings.catch_warnings():
        # Pillow warns of odd metadata that we drop anyway, and of large pictures that are judged below.
        warnings.simplefilter("ignore")
        try:
            return decoder(data, limits)
        except PictureError:
            raise
        except Image.DecompressionBombError as error:
            raise _too_many_pixels(str(error), None, limits) from error
        except MemoryError as error:
            message = "decoding it takes more memory than is allowed"
            raise PictureError(FindingKind.TOO_MANY_PIXELS, message) from error
        except UnidentifiedImageError as error:
            raise PictureError(FindingKind.CORRUPT, "its content is no picture that can be read") from error
        except Exception as error:  # a decoder fed with garbage raises anything: each is this one picture's fault
            raise PictureError(FindingKind.CORRUPT, f"it is damaged ({_short(error)})") from error


def _decode(data: bytes, limits: Limits) -> Picture:
    notes: list[str] = []
    with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
        _check_pixels(opened, limits)
        if frames := _animation_frames(opened):
            notes.append(f"only the first of its {frames} frames is used")
        orientation = _orientation(opened)
        plain = None if orientation != 1 or frames else plain_copy(data, opened, limits)
        is_lossy = opened.format in _LOSSY
        size, was_drafted = opened.size, _shrink_in_decoder(opened, limits, for_checks=plain is not None)
        opened.load()
        # TIFF turns itself upright while it loads.
        size = size if was_drafted else opened.size
        orientation = _orientation(opened)
        profile = opened.info.get("icc_profile")
        image = _to_eight_bits(opened)
    colour, alpha = _take_alpha(_shrink(image, limits.max_stored_pixels))
    image = _upright(_flatten(_to_srgb(colour, profile, notes), alpha, limits.background), orientation)
    width, height = size if orientation < 5 else size[::-1]
    return Picture(
        image=image,
        plain=plain,
        is_lossy=is_lossy,
        width=width,
        height=height,
        alpha=None if alpha is None else _upright(alpha, orientation),
        notes=tuple(notes),
    )


def _decode_mask(data: bytes, limits: Limits) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
        _check_pixels(opened, limits)
        opened.load()
        orientation = _orientation(opened)
        image = _to_eight_bits(opened)
    colour, alpha = _take_alpha(_shrink(image, limits.max_stored_pixels))
    is_cut_out = alpha is not None and alpha.getextrema() != (255, 255)
    return _upright(alpha if alpha is not None and is_cut_out else colour.convert("L"), orientation)


def _check_pixels(opened: ImageFile.ImageFile, limits: Limits) -> None:
    pixels = opened.width * opened.height
    if pixels > limits.max_pixels:
        raise _too_many_pixels(f"it has {pixels / 1e6:.0f} Mpx", pixels, limits)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    image.info.clear()
    return image


def _too_many_pixels(message: str, pixels: int | None, limits: Limits) -> PictureError:
    return PictureError(
        FindingKind.TOO_MANY_PIXELS,
        f"{message}; at most {limits.max_pixels / 1e6:.0f} Mpx are decoded",
        None if pixels is None else float(pixels),
        float(limits.max_pixels),
    )


def _short(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n")[0][:120]


def _animation_frames(image: ImageFile.ImageFile) -> int:
    """Number of frames if there are several to be seen in turn, else 0."""
    return int(getattr(image, "n_frames", 1)) if getattr(image, "is_animated", False) and image.format != "MPO" else 0


def _shrink_in_decoder(image: ImageFile.ImageFile, limits: Limits, *, for_checks: bool) -> bool:
    """Let the JPEG decoder leave out frequencies that nobody will look at: 4 to 8 times faster on 12 Mpx.

    The checks need a short side of `Limits.checked_side_px`; what is encoded anew, half of the stored area, which is
    still 2 Mpx, twice what SDXL trains at.
    """
    if image.format not in ("JPEG", "MPO"):
        return False
    if for_checks:
        share = limits.checked_side_px / min(image.size)
    else:
        share = (limits.max_stored_pixels / 2 / (image.width * image.height)) ** 0.5
    if share >= 0.5 or (not for_checks and image.width * image.height <= limits.max_stored_pixels):
        return False
    before = image.size
    image.draft(None, (ceil(image.width * share), ceil(image.height * share)))
    return image.size != before


def _orientation(image: ImageFile.ImageFile) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001  broken EXIF: the picture is as upright as it says
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit and float greys to L by their true range; Pillow's own `convert` clips them at 255."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image.copy() if isinstance(image, ImageFile.ImageFile) else image
    grey = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(grey.max(initial=0.0))
    if image.mode.startswith("I;16"):
        top = 65535.0
    else:
        # 32-bit integers and floats say nowhere what white is: the next customary one.
        top = next((white for white in (1.0, 255.0, 65535.0) if top <= white), top)
    return Image.fromarray(np.clip(grey * (255.0 / top) + 0.5, 0, 255).astype(np.uint8))


def _shrink(image: Image.Image, max_pixels: int) -> Image.Image:
    share = (max_pixels / (image.width * image.height)) ** 0.5
    if share >= 1:
        return image
    if image.mode in ("1", "P", "PA") or image.has_transparency_data:
        # Palette indices and hidden colours must not be averaged; Pillow weighs RGBA by its alpha.
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    size = max(1, round(image.width * share)), max(1, round(image.height * share))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _take_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colour (L, RGB, CMYK or LAB) and alpha (L) apart, so that a profile sees colours only."""
    if image.mode in ("LA", "La"):
        grey, alpha = image.convert("LA").split()
        return grey, alpha
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return rgba.convert("RGB"), rgba.getchannel("A")
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Colours by their embedded profile; by Pillow's plain formulas where there is none."""
    if profile and not is_srgb(profile):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = source.profile.xcolor_space.strip()
            # A grey picture with a colour profile (or the reverse) is common; bring it into the profile's space.
            wanted = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK", "Lab": "LAB"}.get(space)
            if wanted is not None and (image.mode == wanted or {image.mode, wanted} == {"L", "RGB"}):
                image = image if image.mode == wanted else image.convert(wanted)
                converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
                return converted if converted is not None else image.convert("RGB")
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
            pass
        notes.append("its colour profile is broken and was ignored")
    return image.convert("RGB")


def _flatten(colour: Image.Image, alpha: Image.Image | None, background: tuple[int, int, int]) -> Image.Image:
    if alpha is None:
        return colour
    return Image.composite(colour, Image.new("RGB", colour.size, background), alpha)
