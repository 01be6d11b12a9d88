"""Damaged image files are dropped, in every format; what is kept can be read again from the stored file."""

from __future__ import annotations

import io
import random
import re
import zlib
from itertools import product

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from tests.trainer.dataset import defective_images
from tests.trainer.dataset.damaged_images import CHECKSUMMED, DAMAGES, UNCHECKED, WRITERS, detailed, png_chunk
from tests.trainer.dataset.image_files import encoded
from trainer.dataset.images.damage import jpeg_pixels
from trainer.dataset.images.decode_workers import stored_file
from trainer.dataset.images.decoding import DecodedImage, ImageError, decode
from trainer.dataset.input_files import Limits
from trainer.protocol.report import FindingKind
from trainer.protocol.text import speaking

LIMITS = Limits()


def try_decode(data: bytes) -> DecodedImage | None:
    try:
        return decode(data, LIMITS)
    except ImageError as error:
        return None if error.kind is FindingKind.CORRUPT else pytest.fail(error.message)


def stored_pixels(decoded: DecodedImage) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(stored_file(decoded)[0])) as opened:
        return np.asarray(opened.convert("RGB"))


@pytest.mark.parametrize("name", WRITERS)
def test_a_good_file_is_kept_and_its_stored_file_has_the_same_pixels(name: str) -> None:
    decoded = decode(WRITERS[name](detailed(0)), LIMITS)

    gap = np.abs(stored_pixels(decoded).astype(int) - np.asarray(decoded.image))
    # Lossy images that are encoded again change by a few levels.
    assert gap.mean() < (4 if decoded.is_lossy and decoded.stripped is None else 0.01)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", CHECKSUMMED)
def test_any_damage_is_found_where_a_format_has_checksums(name: str, damage: str) -> None:
    assert try_decode(DAMAGES[damage](WRITERS[name](detailed(1)), random.Random(damage))) is None


@pytest.mark.parametrize("damage", ["truncated", "zero tail", "cut header"])
@pytest.mark.parametrize("name", [name for name in WRITERS if name not in UNCHECKED and "animated" not in name])
def test_an_image_without_its_end_or_its_header_is_dropped(name: str, damage: str) -> None:
    for seed in range(2):
        assert try_decode(DAMAGES[damage](WRITERS[name](detailed(seed)), random.Random(seed))) is None


@pytest.mark.parametrize("name", ["JPEG", "JPEG progressive", "JPEG with restarts", "JPEG CMYK", "JPEG gray"])
def test_a_jpeg_of_which_the_decoder_warns_is_dropped(name: str) -> None:
    good = WRITERS[name](detailed(2))
    kept = sum(try_decode(DAMAGES["other block"](good, random.Random(seed))) is not None for seed in range(12))
    # A short block can be decoded to other pixels without a trace.
    assert kept <= 2


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in CHECKSUMMED])
def test_what_is_kept_of_damaged_files_can_be_read_again(name: str) -> None:
    good = WRITERS[name](detailed(3))
    for damage in ("one byte", "zero block", "other block", "swapped blocks"):
        if (decoded := try_decode(DAMAGES[damage](good, random.Random(damage)))) is not None:
            assert stored_pixels(decoded).shape == np.asarray(decoded.image).shape
            if decoded.stripped is not None:
                assert np.array_equal(stored_pixels(decoded), np.asarray(decoded.image))


def test_damage_is_told_in_our_words_and_what_a_library_says_is_kept_apart() -> None:
    told: dict[str, set[str]] = {}
    for name, damage in product(WRITERS, ("truncated", "other block")):
        try:
            with speaking("zh_CN"):
                decode(DAMAGES[damage](WRITERS[name](detailed(7)), random.Random(name)), LIMITS)
        except ImageError as error:
            told.setdefault(error.message, set()).add(error.detail)
    assert not [message for message in told if re.search("[A-Za-z]", message)]
    assert {"文件已损坏（文件没有结束就断了）", "文件已损坏（有一部分数据是错的）"} <= told.keys()
    assert all(re.search("[A-Za-z]", detail) for detail in told["文件已损坏（文件没有结束就断了）"])


def test_chunks_in_another_order_are_damage_although_each_has_its_checksum() -> None:
    raw = zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.asarray(detailed(4))))
    parts = [png_chunk(b"IDAT" + raw[at : at + 9000]) for at in range(0, len(raw), 9000)]
    plain = encoded(detailed(4))
    head, end = plain[:33], png_chunk(b"IEND")
    assert try_decode(head + b"".join(parts) + end) is not None
    assert try_decode(head + b"".join([parts[0], parts[2], parts[1], *parts[3:]]) + end) is None
    assert try_decode(head + b"".join(parts)) is None


def test_flat_images_have_runs_of_zeros_and_are_good() -> None:
    flat, drawn = Image.new("RGB", (900, 900), (200, 30, 30)), defective_images.city()
    for file_format in ("JPEG", "WEBP", "GIF"):
        assert all(try_decode(encoded(image, file_format)) is not None for image in (flat, drawn))
    assert try_decode(encoded(flat, "JPEG", optimize=True)) is not None


def test_padding_at_the_end_of_a_jpeg_is_no_damage() -> None:
    good = WRITERS["JPEG"](detailed(5))
    for padding in (bytes(20), bytes(200)):
        padded = good[:-2] + padding + good[-2:]
        with pytest.raises(ValueError, match="extraneous"):
            simplejpeg.decode_jpeg(padded)
        decoded = decode(padded, LIMITS)
        assert np.array_equal(np.asarray(decoded.image), simplejpeg.decode_jpeg(good))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_has_the_pixels_that_pillow_reads(mode: str) -> None:
    data = encoded(detailed(6, 157).convert(mode), "JPEG", quality=90)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    assert np.array_equal(np.asarray(decode(data, LIMITS).image), expected)


@pytest.mark.parametrize("name", WRITERS)
def test_the_area_of_a_jpeg_is_read_from_its_header_and_that_of_no_other_format(name: str) -> None:
    image = detailed(0)
    data = WRITERS[name](image)
    is_jpeg = data.startswith(b"\xff\xd8")
    assert jpeg_pixels(data) == (image.width * image.height if is_jpeg else None)
