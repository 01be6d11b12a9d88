"""Images that need no change keep their encoded pixels and lose everything else."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from tests.trainer.dataset.image_files import encoded, noise, png
from trainer.dataset.images.decoding import ImageError, decode
from trainer.dataset.input_files import Limits

SECRET = b"48.8584 N, 2.2945 E"


def with_exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = SECRET.decode()
    return exif


def pixels(data: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB"))


def described_png() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", SECRET.decode())
    return encoded(noise(2), "PNG", pnginfo=info, exif=with_exif())


UNCHANGED = {
    "baseline JPEG": encoded(noise(1), "JPEG", exif=with_exif(), comment=SECRET),
    "progressive JPEG": encoded(noise(1), "JPEG", progressive=True, exif=with_exif()),
    "JPEG with restart markers": encoded(noise(1), "JPEG", restart_marker_blocks=1, exif=with_exif()),
    "gray JPEG": encoded(noise(1).convert("L"), "JPEG", exif=with_exif()),
    "PNG": described_png(),
    "palette PNG": encoded(noise(1).quantize(16), "PNG"),
    "lossy WebP": encoded(noise(1), "WEBP"),
    "lossless WebP": encoded(noise(1), "WEBP", lossless=True),
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_the_pixels_stay_and_everything_else_is_removed(name: str) -> None:
    stripped = decode(UNCHANGED[name] + SECRET, Limits()).stripped
    assert stripped is not None
    stored, extension = stripped
    assert extension in (".jpg", ".png", ".webp")
    assert SECRET not in stored
    assert np.array_equal(pixels(stored), pixels(UNCHANGED[name]))
    with Image.open(io.BytesIO(stored)) as opened:
        assert not opened.getexif()


def test_data_after_the_end_is_removed() -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writing:
        writing.writestr("hidden.png", png(9))
    for data in (encoded(noise(1), "JPEG"), encoded(noise(1)), encoded(noise(1), "WEBP")):
        stripped = decode(data + archive.getvalue(), Limits()).stripped
        assert stripped is not None
        assert stripped[0] == data


def rgba() -> Image.Image:
    image = noise(1).convert("RGBA")
    image.putalpha(128)
    return image


CHANGED = {
    "rotated": encoded(noise(1), "JPEG", exif=with_exif(6)),
    "transparent": encoded(rgba()),
    "CMYK": encoded(noise(1).convert("CMYK"), "JPEG"),
    "animated": encoded(noise(1), "PNG", save_all=True, append_images=[noise(2)]),
    "16 bits": encoded(Image.fromarray(np.full((90, 90), 40_000, dtype=np.uint16))),
    "other color space": encoded(
        noise(1), "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    ),
    "BMP": encoded(noise(1), "BMP"),
    "transparent WebP": encoded(rgba(), "WEBP"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_images_that_must_change_are_encoded_again(name: str) -> None:
    assert decode(CHANGED[name], Limits()).stripped is None


def test_an_srgb_profile_is_removed() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    stripped = decode(encoded(noise(1), "JPEG", icc_profile=profile), Limits()).stripped
    assert stripped is not None
    assert b"ICC_PROFILE" not in stripped[0]


def test_a_large_jpeg_is_decoded_smaller_and_stored_in_full_size() -> None:
    data = encoded(noise(1, 2400, 1800), "JPEG")
    decoded = decode(data, Limits())
    assert (decoded.width, decoded.height) == (2400, 1800)
    assert decoded.image.size == (1200, 900)
    assert decoded.stripped is not None
    assert pixels(decoded.stripped[0]).shape == (1800, 2400, 3)


def test_a_large_png_is_stored_smaller() -> None:
    decoded = decode(encoded(Image.linear_gradient("L").convert("RGB").resize((2400, 2400))), Limits())
    assert decoded.stripped is None
    assert decoded.image.size == (2048, 2048)


def test_a_truncated_jpeg_is_damaged_even_if_it_is_decoded_smaller() -> None:
    data = encoded(noise(1, 2400, 1800), "JPEG")
    with pytest.raises(ImageError, match="damaged"):
        decode(data[: len(data) * 2 // 3], Limits())
