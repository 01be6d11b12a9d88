"""Images are decoded to upright, opaque, 8-bit sRGB, or raise one kind of error."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from tests.trainer.dataset.image_files import encoded, noise
from trainer.dataset.images.decoding import DecodedImage, ImageError, decode
from trainer.dataset.input_files import Limits
from trainer.protocol.report import FindingKind

LIMITS = Limits()


def decoded(data: bytes) -> DecodedImage:
    result = decode(data, LIMITS)
    assert result.image.mode == "RGB"
    assert not result.image.info
    return result


def failure(data: bytes, limits: Limits = LIMITS) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, limits)
    return caught.value


def near(image: Image.Image, expected: Image.Image, tolerance: float = 12) -> bool:
    if image.size != expected.size:
        return False
    gap = np.abs(np.asarray(image, dtype=int) - np.asarray(expected.convert("RGB"), dtype=int))
    return float(gap.mean()) < tolerance


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF"])
def test_every_format_is_decoded(file_format: str) -> None:
    assert near(decoded(encoded(noise(1), file_format)).image, noise(1), 20)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_are_made_upright(orientation: int, file_format: str) -> None:
    upright = noise(2, 120, 80)
    # How a camera stores the image: the inverse of the operation that makes it upright.
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = decoded(encoded(stored, file_format, exif=exif))
    assert near(result.image, upright)
    assert (result.width, result.height) == (120, 80)


def test_a_large_jpeg_is_stored_smaller_and_reported_at_its_own_upright_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    result = decode(encoded(noise(3, 800, 400), "JPEG", exif=exif), Limits(max_stored_pixels=20_000))
    assert (result.width, result.height) == (400, 800)
    assert result.image.width * 2 == result.image.height
    assert 9_000 <= result.image.width * result.image.height <= 20_200


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_images_of_every_mode_are_reduced_and_never_enlarged(mode: str) -> None:
    image = noise(4, 400, 300).convert(mode)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    small = decode(data, Limits(max_stored_pixels=10_000)).image
    assert near(small, noise(4, 400, 300).convert("L" if mode == "L" else "RGB").resize(small.size), 5)
    assert decode(data, LIMITS).image.size == (400, 300)


def test_16_bit_gray_keeps_its_range() -> None:
    ramp = np.linspace(0, 65535, 100 * 80).reshape(80, 100).astype(np.uint16)
    image = np.asarray(decoded(encoded(Image.fromarray(ramp))).image)[:, :, 0]
    assert np.abs(image.astype(int) - (ramp / 257).round().astype(int)).max() <= 1


@pytest.mark.parametrize("top", [255, 1023, 4095])
def test_a_scan_of_few_bits_in_a_16_bit_file_is_not_almost_black(top: int) -> None:
    ramp = np.linspace(0, top, 100 * 80).reshape(80, 100).astype(np.uint16)
    result = decoded(encoded(Image.fromarray(ramp)))
    assert np.abs(np.asarray(result.image)[:, :, 0].astype(int) - (ramp / (top / 255)).round().astype(int)).max() <= 1
    assert result.notes == (f"its brightest value is {top:,} of 65,535, so {top:,} was taken for white",)


@pytest.mark.parametrize("extension", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [3, 4])
def test_a_color_scan_of_12_bits_in_a_16_bit_file_is_not_almost_black(extension: str, channels: int) -> None:
    colors = np.asarray(noise(5)).astype(np.uint16) * 16
    alpha = np.full((*colors.shape[:2], channels - 3), 65535, dtype=np.uint16)
    data = cv2.imencode(extension, np.concatenate([colors[..., ::-1], alpha], axis=2))[1].tobytes()
    result = decoded(data)
    assert near(result.image, noise(5), 2)
    assert len(result.notes) == 1


def test_a_cmyk_jpeg_keeps_its_colors() -> None:
    red = Image.new("RGB", (80, 80), (220, 30, 30)).convert("CMYK")
    assert near(decoded(encoded(red, "JPEG")).image, Image.new("RGB", (80, 80), (220, 30, 30)))


def test_transparent_pixels_become_the_background_color() -> None:
    image = Image.new("RGBA", (80, 80), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 40, 80))
    flat = decoded(encoded(image)).image
    assert flat.getpixel((70, 40)) == (255, 255, 255)
    assert flat.getpixel((10, 40)) == (0, 0, 255)
    black = decode(encoded(image), Limits(background=(0, 0, 0))).image
    assert black.getpixel((70, 40)) == (0, 0, 0)


def test_a_palette_with_transparency_is_flattened() -> None:
    image = Image.new("P", (80, 80), 1)
    image.putpalette([255, 0, 0, 0, 128, 0])
    image.paste(0, (0, 0, 40, 80))
    flat = decoded(encoded(image, "PNG", transparency=0)).image
    assert flat.getpixel((10, 40)) == (255, 255, 255)
    assert flat.getpixel((70, 40)) == (0, 128, 0)


def test_gray_with_alpha_is_flattened() -> None:
    assert decoded(encoded(Image.new("LA", (80, 80), (0, 0)))).image.getpixel((9, 9)) == (255, 255, 255)


def test_an_embedded_profile_is_applied() -> None:
    lab = encoded(
        noise(1).convert("RGB"), "TIFF", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    )
    assert decoded(lab).notes == ("its color profile is broken and was ignored",)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # Red and blue are swapped, so that the result shows whether the profile was used.
    swapped = bytearray(srgb)
    tags = {srgb[at : at + 4]: at for at in range(132, 132 + 12 * struct.unpack(">L", srgb[128:132])[0], 12)}
    swapped[tags[b"rXYZ"] : tags[b"rXYZ"] + 4], swapped[tags[b"bXYZ"] : tags[b"bXYZ"] + 4] = b"bXYZ", b"rXYZ"
    red = Image.new("RGB", (80, 80), (255, 0, 0))
    assert near(decoded(encoded(red, icc_profile=srgb)).image, red, 3)
    assert near(decoded(encoded(red, icc_profile=bytes(swapped))).image, Image.new("RGB", (80, 80), (0, 0, 255)), 3)


def test_a_broken_color_profile_is_ignored_with_a_note() -> None:
    result = decoded(encoded(noise(1), icc_profile=b"garbage" * 40))
    assert near(result.image, noise(1), 1)
    assert result.notes == ("its color profile is broken and was ignored",)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "HEIF"])
def test_the_time_of_capture_is_read(file_format: str) -> None:
    def captured_at(taken: str, fraction: str) -> float | None:
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.Exif).update({0x9003: taken, 0x9291: fraction})
        return decoded(encoded(noise(3), file_format, exif=exif.tobytes())).captured_at

    first, later = captured_at("2026:02:28 23:59:59", "75"), captured_at("2026:03:01 00:00:01", "")
    assert first is not None
    assert later is not None
    assert later - first == 1.25
    assert captured_at("    :  :     :  :  ", "") is None


def test_broken_exif_is_ignored() -> None:
    assert near(decoded(encoded(noise(1), "JPEG", exif=b"Exif\0\0garbage" * 5)).image, noise(1))


def test_a_png_with_the_long_workflow_of_a_generator_is_decoded() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", "x" * 3 * 2**20, zip=True)
    assert near(decoded(encoded(noise(1), pnginfo=texts)).image, noise(1), 0.1)


def test_only_the_first_frame_of_an_animation_is_used() -> None:
    frames = [noise(seed, 80, 80).quantize(64) for seed in range(3)]
    result = decoded(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert near(result.image, frames[0])
    assert result.notes == ("only its first frame is used",)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_truncated_image_is_corrupt(file_format: str, share: float) -> None:
    data = encoded(noise(1), file_format)
    assert failure(data[: int(len(data) * share)]).kind is FindingKind.CORRUPT


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(50), b"%!PS-Adobe-3.0 EPSF-3.0\n", b"hello"]
)
def test_content_that_is_not_an_image_is_corrupt(data: bytes) -> None:
    assert failure(data).kind is FindingKind.CORRUPT


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header claims a huge image, with almost no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))

    header = struct.pack(">2L5B", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [10_001, 14_000, 60_000])
def test_a_huge_header_is_refused_before_anything_is_decoded(side: int) -> None:
    error = failure(huge_png(side, side))
    assert error.kind is FindingKind.TOO_MANY_PIXELS
    assert error.threshold == 100_000_000


def test_a_flipped_byte_raises_nothing_but_image_errors() -> None:
    for file_format in ("PNG", "GIF", "TIFF", "WEBP", "JPEG"):
        good = encoded(noise(1, 40, 30), file_format)
        for at in range(0, min(len(good), 400), 3):
            with suppress(ImageError):
                flipped = good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :]
                assert decode(flipped, Limits(max_pixels=10**6)).image.mode == "RGB"


def test_decoded_images_have_no_metadata() -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    result = decoded(encoded(noise(1), "JPEG", exif=exif))
    stored = Image.open(io.BytesIO(encoded(result.image)))
    assert not stored.getexif()
