"""Files are told by what they begin with, never by their names."""

from __future__ import annotations

import tarfile

import pytest

from tests.trainer.dataset.making import encoded, noise
from tests.trainer.dataset.packing import packed, special, tar_bytes
from trainer.dataset.kinds import HEAD_BYTES, Kind, sniff


def box(brand: bytes, *others: bytes) -> bytes:
    """The first box of an ISO media file."""
    body = brand + b"\0\0\0\0" + b"".join(others)
    return (len(body) + 8).to_bytes(4, "big") + b"ftyp" + body


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif"])
def test_heif_and_avif_are_pictures_by_their_brand(brand: bytes) -> None:
    assert sniff(box(brand, b"mif1")) is Kind.PICTURE


def test_films_are_no_pictures() -> None:
    assert sniff(box(b"isom", b"mp41")) is Kind.OTHER
    assert sniff(box(b"isom", b"avif")) is Kind.PICTURE


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"])
def test_pictures_are_pictures(file_format: str) -> None:
    assert sniff(encoded(noise(1), file_format)[:HEAD_BYTES]) is Kind.PICTURE


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_are_told_by_their_mark(tar_format: int) -> None:
    assert sniff(tar_bytes({"a.png": b"x"}, tar_format=tar_format)[:HEAD_BYTES]) is Kind.TAR


def test_a_tar_of_unix_v7_is_told_by_its_sum() -> None:
    head = bytearray(special("a.png", tarfile.AREGTYPE).tobuf(tarfile.USTAR_FORMAT))
    head[257:265] = bytes(8)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    assert sniff(bytes(head)) is Kind.TAR
    head[0] ^= 1
    assert sniff(bytes(head)) is Kind.OTHER


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst"])
def test_compressed_files_are_told_by_their_mark(ending: str) -> None:
    assert sniff(packed(b"text", ending)[:HEAD_BYTES]) is Kind.COMPRESSED


def test_words_are_no_archives() -> None:
    assert sniff(b"BZhang was here, and wrote a caption") is Kind.OTHER
    assert sniff(b"BM is how a bitmap begins") is Kind.OTHER
    assert sniff(b"7z") is Kind.OTHER
