"""Files are recognized by their first bytes, and names are checked, normalized and sorted."""

from __future__ import annotations

import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.dataset.image_files import encoded, noise
from tests.trainer.dataset.tar_files import packed, special, tar_bytes
from trainer.dataset.input_files import HEAD_BYTES, FileKind, natural_key, normalize_path, sniff, unsafe_reason


def box(brand: bytes, *others: bytes) -> bytes:
    """The first box of an ISO media file."""
    body = brand + b"\0\0\0\0" + b"".join(others)
    return (len(body) + 8).to_bytes(4, "big") + b"ftyp" + body


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif"])
def test_heif_and_avif_are_images_by_their_brand(brand: bytes) -> None:
    assert sniff(box(brand, b"mif1")) is FileKind.IMAGE


def test_videos_are_not_images() -> None:
    assert sniff(box(b"isom", b"mp41")) is FileKind.OTHER
    assert sniff(box(b"isom", b"avif")) is FileKind.IMAGE


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"])
def test_images_are_recognized(file_format: str) -> None:
    assert sniff(encoded(noise(1), file_format)[:HEAD_BYTES]) is FileKind.IMAGE


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_are_recognized_by_their_magic(tar_format: int) -> None:
    assert sniff(tar_bytes({"a.png": b"x"}, tar_format=tar_format)[:HEAD_BYTES]) is FileKind.TAR


def test_a_v7_tar_is_recognized_by_its_checksum() -> None:
    head = bytearray(special("a.png", tarfile.AREGTYPE).tobuf(tarfile.USTAR_FORMAT))
    head[257:265] = bytes(8)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    assert sniff(bytes(head)) is FileKind.TAR
    head[0] ^= 1
    assert sniff(bytes(head)) is FileKind.OTHER


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst"])
def test_compressed_files_are_recognized_by_their_magic(ending: str) -> None:
    assert sniff(packed(b"text", ending)[:HEAD_BYTES]) is FileKind.COMPRESSED


def test_text_is_not_mistaken_for_another_kind() -> None:
    assert sniff(b"BZhang was here, and wrote a caption") is FileKind.OTHER
    assert sniff(b"BM is how a bitmap begins") is FileKind.OTHER
    assert sniff(b"7z") is FileKind.OTHER


@given(st.text(alphabet=st.sampled_from("ab./\\:\0C \n~é"), max_size=12))
def test_a_name_that_passes_stays_below_its_folder(name: str) -> None:
    if unsafe_reason(name) is None:
        path = normalize_path(name)
        assert path
        assert not {"", ".", ".."} & set(path.split("/"))
        assert not set(path) & set("\\\0\n")


def test_numbers_in_names_sort_as_numbers() -> None:
    names = ["img10.png", "img2.png", "IMG1.png", "a/3.png", "3.png"]
    assert sorted(names, key=natural_key) == ["3.png", "a/3.png", "IMG1.png", "img2.png", "img10.png"]
