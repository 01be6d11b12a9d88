"""A picture that needs no change is stored as it was handed in, less all that is not pixels."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from tests.trainer.dataset.making import encoded, noise, png
from trainer.dataset.images.decoding import decode
from trainer.dataset.limits import Limits

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


PLAIN = {
    "baseline JPEG": encoded(noise(1), "JPEG", exif=with_exif(), comment=SECRET),
    "progressive JPEG": encoded(noise(1), "JPEG", progressive=True, exif=with_exif()),
    "JPEG with restart markers": encoded(noise(1), "JPEG", restart_marker_blocks=1, exif=with_exif()),
    "grey JPEG": encoded(noise(1).convert("L"), "JPEG", exif=with_exif()),
    "PNG": described_png(),
    "palette PNG": encoded(noise(1).quantize(16), "PNG"),
    "lossy WebP": encoded(noise(1), "WEBP"),
    "lossless WebP": encoded(noise(1), "WEBP", lossless=True),
}


@pytest.mark.parametrize("name", PLAIN)
def test_its_pixels_stay_and_nothing_else(name: str) -> None:
    picture = decode(PLAIN[name] + SECRET, Limits())
    assert picture.plain is not None
    stored, extension = picture.plain
    assert extension in (".jpg", ".png", ".webp")
    assert SECRET not in stored
    assert np.array_equal(pixels(stored), pixels(PLAIN[name]))
    with Image.open(io.BytesIO(stored)) as opened:
        assert not opened.getexif()


def test_a_tail_is_cut_off(tmp_path: Any) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writing:
        writing.writestr("hidden.png", png(9))
    for data in (encoded(noise(1), "JPEG"), encoded(noise(1)), encoded(noise(1), "WEBP")):
        picture = decode(data + archive.getvalue(), Limits())
        assert picture.plain is not None
        assert picture.plain[0] == data


def rgba() -> Image.Image:
    image = noise(1).convert("RGBA")
    image.putalpha(128)
    return image


CHANGED = {
    "turned": encoded(noise(1), "JPEG", exif=with_exif(6)),
    "transparent": encoded(rgba()),
    "CMYK": encoded(noise(1).convert("CMYK"), "JPEG"),
    "moving": encoded(noise(1), "PNG", save_all=True, append_images=[noise(2)]),
    "16 bits": encoded(Image.fromarray(np.full((90, 90), 40_000, dtype=np.uint16))),
    "other colours": encoded(
        noise(1), "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    ),
    "BMP": encoded(noise(1), "BMP"),
    "transparent WebP": encoded(rgba(), "WEBP"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_must_change_is_encoded_anew(name: str) -> None:
    assert decode(CHANGED[name], Limits()).plain is None


def test_an_srgb_profile_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = decode(encoded(noise(1), "JPEG", icc_profile=profile), Limits())
    assert picture.plain is not None
    assert b"ICC_PROFILE" not in picture.plain[0]


def test_a_large_photograph_is_looked_at_small_and_stored_whole() -> None:
    data = encoded(noise(1, 2400, 1800), "JPEG")
    picture = decode(data, Limits())
    assert (picture.width, picture.height) == (2400, 1800)
    assert picture.image.size == (1200, 900)
    assert picture.plain is not None
    assert pixels(picture.plain[0]).shape == (1800, 2400, 3)


def test_a_large_png_is_stored_smaller() -> None:
    picture = decode(encoded(noise(1, 2400, 2400)), Limits())
    assert picture.plain is None
    assert picture.image.size == (2048, 2048)


def test_a_cut_jpeg_is_damaged_however_small_it_is_looked_at() -> None:
    from trainer.dataset.images.decoding import PictureError

    data = encoded(noise(1, 2400, 1800), "JPEG")
    with pytest.raises(PictureError, match="damaged"):
        decode(data[: len(data) * 2 // 3], Limits())
