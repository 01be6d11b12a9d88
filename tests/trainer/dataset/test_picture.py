"""Every picture comes out upright, sRGB, opaque and eight bits, or is one reported failure."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.trainer.dataset.making import encoded, noise
from trainer.dataset.images.decoding import Picture, PictureError, decode
from trainer.dataset.limits import Limits
from trainer.protocol.report import FindingKind

LIMITS = Limits()


def decoded(data: bytes) -> Picture:
    picture = decode(data, LIMITS)
    assert picture.image.mode == "RGB"
    assert not picture.image.info
    return picture


def failure(data: bytes, limits: Limits = LIMITS) -> PictureError:
    with pytest.raises(PictureError) as caught:
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
    # How a camera stores the picture: the inverse of what makes it upright.
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
    picture = decoded(encoded(stored, file_format, exif=exif))
    assert near(picture.image, upright)
    assert (picture.width, picture.height) == (120, 80)


def test_a_large_jpeg_is_stored_smaller_and_reported_at_its_own_upright_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = decode(encoded(noise(3, 800, 400), "JPEG", exif=exif), Limits(max_stored_pixels=20_000))
    assert (picture.width, picture.height) == (400, 800)
    assert picture.image.width * 2 == picture.image.height
    assert 9_000 <= picture.image.width * picture.image.height <= 20_200


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_pictures_are_shrunk_in_every_mode_and_never_enlarged(mode: str) -> None:
    image = noise(4, 400, 300).convert(mode)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    small = decode(data, Limits(max_stored_pixels=10_000)).image
    assert near(small, noise(4, 400, 300).convert("L" if mode == "L" else "RGB").resize(small.size), 5)
    assert decode(data, LIMITS).image.size == (400, 300)


def test_sixteen_bit_greys_keep_their_range() -> None:
    ramp = np.linspace(0, 65535, 100 * 80).reshape(80, 100).astype(np.uint16)
    image = np.asarray(decoded(encoded(Image.fromarray(ramp))).image)[:, :, 0]
    assert np.abs(image.astype(int) - (ramp / 257).round().astype(int)).max() <= 1


def test_a_cmyk_jpeg_has_its_colours() -> None:
    red = Image.new("RGB", (80, 80), (220, 30, 30)).convert("CMYK")
    assert near(decoded(encoded(red, "JPEG")).image, Image.new("RGB", (80, 80), (220, 30, 30)))


def test_hidden_colours_under_alpha_are_flattened_on_white() -> None:
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


def test_grey_with_alpha_is_flattened() -> None:
    assert decoded(encoded(Image.new("LA", (80, 80), (0, 0)))).image.getpixel((9, 9)) == (255, 255, 255)


def test_an_embedded_profile_is_applied() -> None:
    lab = encoded(
        noise(1).convert("RGB"), "TIFF", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    )
    assert decoded(lab).notes == ("its colour profile is broken and was ignored",)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # Red and blue change places: a profile that shows at once whether it was used.
    swapped = bytearray(srgb)
    tags = {srgb[at : at + 4]: at for at in range(132, 132 + 12 * struct.unpack(">L", srgb[128:132])[0], 12)}
    swapped[tags[b"rXYZ"] : tags[b"rXYZ"] + 4], swapped[tags[b"bXYZ"] : tags[b"bXYZ"] + 4] = b"bXYZ", b"rXYZ"
    red = Image.new("RGB", (80, 80), (255, 0, 0))
    assert near(decoded(encoded(red, icc_profile=srgb)).image, red, 3)
    assert near(decoded(encoded(red, icc_profile=bytes(swapped))).image, Image.new("RGB", (80, 80), (0, 0, 255)), 3)


def test_a_broken_profile_is_a_note_and_the_picture_is_kept() -> None:
    picture = decoded(encoded(noise(1), icc_profile=b"garbage" * 40))
    assert near(picture.image, noise(1), 1)
    assert picture.notes == ("its colour profile is broken and was ignored",)


def test_broken_exif_leaves_the_picture_as_it_is() -> None:
    assert near(decoded(encoded(noise(1), "JPEG", exif=b"Exif\0\0garbage" * 5)).image, noise(1))


def test_the_first_frame_of_an_animation_is_used_and_it_is_said() -> None:
    frames = [noise(seed, 80, 80).quantize(64) for seed in range(3)]
    picture = decoded(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert near(picture.image, frames[0])
    assert picture.notes == ("only the first of its 3 frames is used",)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_truncated_picture_is_corrupt(file_format: str, share: float) -> None:
    data = encoded(noise(1), file_format)
    assert failure(data[: int(len(data) * share)]).kind is FindingKind.CORRUPT


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(50), b"%!PS-Adobe-3.0 EPSF-3.0\n", b"hello"]
)
def test_what_is_no_picture_is_corrupt(data: bytes) -> None:
    assert failure(data).kind is FindingKind.CORRUPT


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header promises a huge picture, with next to nothing in it."""

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


def test_no_flip_of_a_byte_makes_a_decoder_raise_anything_else() -> None:
    for file_format in ("PNG", "GIF", "TIFF", "WEBP", "JPEG"):
        good = encoded(noise(1, 40, 30), file_format)
        for at in range(0, min(len(good), 400), 3):
            with suppress(PictureError):
                flipped = good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :]
                assert decode(flipped, Limits(max_pixels=10**6)).image.mode == "RGB"


def test_metadata_does_not_survive() -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    picture = decoded(encoded(noise(1), "JPEG", exif=exif))
    stored = Image.open(io.BytesIO(encoded(picture.image)))
    assert not stored.getexif()
