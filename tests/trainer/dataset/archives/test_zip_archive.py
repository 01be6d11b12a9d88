"""Hostile zips are refused with a reason, and the good members of a partly bad one are still read."""

from __future__ import annotations

import bz2
import lzma
import struct
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import inflate64
import pytest

from tests.trainer.dataset.image_files import (
    RawEntry,
    make_link,
    make_zip,
    overlapping_zip,
    patch_directory,
    png,
    raw_zip,
    rename_raw,
)
from tests.trainer.dataset.read_sources import archive_refusal, read_archive, read_sources
from trainer.dataset.input_files import Limits
from trainer.protocol.report import RefusalKind

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: Offsets in an entry of the central directory (APPNOTE 4.3.12).
FLAGS, INFLATED_SIZE = 8, 24


@pytest.mark.parametrize(
    "name",
    [
        "../up.png",
        "a/../../up.png",
        "/etc/up.png",
        "C:/up.png",
        "c:up.png",
        "..\\up.png",
        "\\\\host\\up.png",
        "a/.. /b",
    ],
)
def test_a_name_that_leaves_its_folder_is_refused_and_the_rest_is_read(tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "a.zip", {name: b"bad", "good.png": b"good"})
    read = read_archive(path)
    assert read.pop("good.png") == b"good"
    assert list(read.values()) == [RefusalKind.UNSAFE_PATH]


def test_a_name_with_a_nul_is_refused_although_zipfile_cuts_it_there(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"aXb.png": b"bad", "good.png": b"good"})
    rename_raw(path, b"aXb.png", b"a\0b.png")
    assert read_archive(path) == {"a\\x00b.png": RefusalKind.UNSAFE_PATH, "good.png": b"good"}


def test_links_are_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"good.png": b"good"})
    make_link(path, "link.png", "/etc/passwd")
    assert read_archive(path) == {"good.png": b"good", "link.png": RefusalKind.LINK}


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"secret.png": b"x" * 20, "good.png": b"good"})
    patch_directory(path, FLAGS, struct.pack("<H", 0x1))
    assert read_archive(path) == {"secret.png": RefusalKind.ENCRYPTED, "good.png": b"good"}


CONTENT = b"".join(png(seed) for seed in range(6))


def lzma_of_zip(data: bytes, dictionary_bytes: int = 2**20) -> bytes:
    """LZMA with the header that zip puts before it (APPNOTE 5.8.8)."""
    options = {"id": lzma.FILTER_LZMA1, "dict_size": dictionary_bytes, "lc": 3, "lp": 0, "pb": 2}
    properties = struct.pack("<BL", 3 + 9 * (0 + 5 * 2), dictionary_bytes)
    return (
        struct.pack("<2sH", b"\x09\x14", len(properties))
        + properties
        + lzma.compress(data, lzma.FORMAT_RAW, filters=[options])
    )


def deflate64(data: bytes) -> bytes:
    deflater = inflate64.Deflater()
    return bytes(deflater.deflate(data) + deflater.flush())


METHODS = {
    "stored": (0, bytes),
    "deflate": (8, lambda data: zlib.compress(data, wbits=-15)),
    "deflate64": (9, deflate64),
    "bzip2": (12, bz2.compress),
    "lzma": (14, lzma_of_zip),
    "zstandard": (93, zstd.compress),
    "zstandard in two frames": (93, lambda data: zstd.compress(data[:5000]) + zstd.compress(data[5000:])),
    "xz": (95, lzma.compress),
}


@pytest.mark.parametrize(("method", "compress"), METHODS.values(), ids=METHODS)
def test_every_method_is_read_and_its_checksum_is_checked(
    tmp_path: Path, method: int, compress: Callable[[bytes], bytes]
) -> None:
    good = RawEntry(b"good.png", CONTENT, method=method, packed=compress(CONTENT))
    wrong_crc = RawEntry(b"crc.png", CONTENT, method=method, packed=compress(CONTENT), crc=1)
    cut = RawEntry(b"cut.png", CONTENT, method=method, packed=compress(CONTENT)[:-400])
    longer = RawEntry(b"longer.png", CONTENT, method=method, packed=compress(CONTENT + b"x"))
    path = raw_zip(tmp_path / "a.zip", [wrong_crc, cut, longer, good, RawEntry(b"last.txt", b"x")])
    damaged = dict.fromkeys(("crc.png", "cut.png", "longer.png"), RefusalKind.DAMAGED)
    assert read_archive(path) == {**damaged, "good.png": CONTENT, "last.txt": b"x"}


@pytest.mark.parametrize(("method", "compress"), METHODS.values(), ids=METHODS)
def test_every_flipped_byte_of_a_member_is_refused_or_harmless(
    tmp_path: Path, method: int, compress: Callable[[bytes], bytes]
) -> None:
    packed = compress(CONTENT[:3000])
    broken = [packed[:at] + bytes([packed[at] ^ 0x5A]) + packed[at + 1 :] for at in range(0, len(packed), 37)]
    entries = [RawEntry(b"%d.png" % at, CONTENT[:3000], method=method, packed=data) for at, data in enumerate(broken)]
    read = read_archive(raw_zip(tmp_path / "a.zip", [*entries, RawEntry(b"good.txt", b"x")]))
    assert read.pop("good.txt") == b"x"
    assert set(read.values()) <= {CONTENT[:3000], RefusalKind.DAMAGED, RefusalKind.TOO_LARGE, RefusalKind.UNSUPPORTED}
    assert RefusalKind.DAMAGED in read.values()


def test_lzma_that_needs_too_much_memory_and_unknown_methods_are_refused(tmp_path: Path) -> None:
    huge = bytearray(lzma_of_zip(b"x"))
    huge[5:9] = struct.pack("<L", 2**32 - 1)
    entries = [
        RawEntry(b"huge.png", b"x", method=14, packed=bytes(huge)),
        RawEntry(b"ppmd.png", b"x", method=98, packed=b"x"),
        RawEntry(b"good.png", b"x"),
    ]
    read = read_archive(raw_zip(tmp_path / "a.zip", entries))
    assert read == {"huge.png": RefusalKind.TOO_LARGE, "ppmd.png": RefusalKind.UNSUPPORTED, "good.png": b"x"}


@pytest.mark.parametrize(("method", "compress"), [METHODS["deflate64"], METHODS["zstandard"], METHODS["bzip2"]])
def test_a_member_that_inflates_to_more_than_it_claims_costs_little(
    tmp_path: Path, method: int, compress: Callable[[bytes], bytes]
) -> None:
    path = raw_zip(
        tmp_path / "a.zip", [RawEntry(b"a.png", b"x" * 10, method=method, packed=compress(bytes(50_000_000)))]
    )
    tracemalloc.start()
    try:
        assert read_archive(path) == {"a.png": RefusalKind.DAMAGED}
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_bomb_beside_small_images_does_not_affect_them(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"zeros.bmp": bytes(30_000_000), "good.png": png(1)})
    assert read_archive(path) == {"zeros.bmp": RefusalKind.RATIO, "good.png": png(1)}


def test_an_archive_of_encrypted_members_alone_is_refused_once(tmp_path: Path) -> None:
    path = raw_zip(tmp_path / "a.zip", [RawEntry(b"%d.png" % i, b"x" * 20, flags=1) for i in range(3)])
    assert archive_refusal(path).kind is RefusalKind.ENCRYPTED


@pytest.mark.parametrize("is_zip64", [False, True])
def test_a_self_extracting_zip_is_read_behind_its_program(tmp_path: Path, is_zip64: bool) -> None:
    whole = raw_zip(tmp_path / "a.zip", [RawEntry(b"1.png", png(1)), RawEntry(b"2.png", png(2))], is_zip64=is_zip64)
    path = tmp_path / "a.exe"
    path.write_bytes(b"MZ" + bytes(5000) + whole.read_bytes())
    found, refused = read_sources(tmp_path, path)
    assert [image.source for image in found] == ["a.exe!1.png", "a.exe!2.png"]
    assert refused == []


def test_parts_of_an_archive_in_several_are_told_apart_from_damage(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"1.png": png(1)})
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x05\x06")
    data[at + 4 : at + 8] = struct.pack("<2H", 1, 0)
    path.write_bytes(data)
    assert archive_refusal(path).kind is RefusalKind.UNSUPPORTED
    files = [tmp_path / name for name in ("b.z01", "b.zip.001", "b.7z.002", "b.part1.rar", "b.r00")]
    for file in files:
        file.write_bytes(data[:200])
    _found, refused = read_sources(tmp_path, *files)
    assert {each.kind for each in refused} == {RefusalKind.UNSUPPORTED}
    assert len({each.reason for each in refused}) == 1


@pytest.mark.parametrize(
    ("names", "encoding"),
    [
        (["猫咪", "花朵"], "gbk"),
        (["夏休み", "海の写真", "お祭り"], "cp932"),
        (["고양이", "빨간 드레스", "바다에서"], "cp949"),
        (["café", "garçon"], "cp437"),
        (["café", "garçon"], "cp1252"),
        (["Straße im Märchen", "Bücher"], "cp850"),
        (["кошка на окне", "собака у моря"], "cp866"),
        (["кошка на окне", "собака у моря"], "cp1251"),
        (["貓咪在窗邊", "海邊的照片", "紅色的裙子"], "big5"),
        (["żółta łódź", "ścieżka w górach", "źrebię"], "cp1250"),
    ],
)
def test_names_without_the_utf8_flag_are_read_by_one_encoding(tmp_path: Path, names: list[str], encoding: str) -> None:
    entries = [RawEntry(f"{name}.png".encode(encoding), b"x") for name in names]
    read = read_archive(raw_zip(tmp_path / "a.zip", [*entries, RawEntry(b"plain.png", b"x")]))
    assert list(read) == [*(f"{name}.png" for name in names), "plain.png"]


def test_the_utf8_flag_and_the_field_of_info_zip_are_respected(tmp_path: Path) -> None:
    raw = "猫".encode("gbk") + b".png"
    field = b"\x01" + struct.pack("<L", zlib.crc32(raw)) + "ねこ.png".encode()
    stale = b"\x01" + struct.pack("<L", 1) + "狗.png".encode()
    entries = [
        RawEntry("é.png".encode(), b"1", flags=0x800),
        RawEntry(raw, b"2", extra=struct.pack("<HH", 0x7075, len(field)) + field),
        RawEntry(b"plain.png", b"3", extra=struct.pack("<HH", 0x7075, len(stale)) + stale),
    ]
    assert list(read_archive(raw_zip(tmp_path / "a.zip", entries))) == ["é.png", "ねこ.png", "plain.png"]


def test_overlapping_entries_refuse_the_archive(tmp_path: Path) -> None:
    assert archive_refusal(overlapping_zip(tmp_path / "a.zip", png(1), 20)).kind is RefusalKind.OVERLAP
    # Two entries together are no larger than the file, so only their offsets show it.
    small = overlapping_zip(tmp_path / "b.zip", b"x", 2)
    assert archive_refusal(small).kind is RefusalKind.OVERLAP


def test_one_member_with_a_bomb_ratio_does_not_affect_the_others(tmp_path: Path) -> None:
    noise = b"".join(png(seed, 300, 300) for seed in range(3))
    path = make_zip(tmp_path / "a.zip", {"zeros.bmp": bytes(2_000_000), "good.png": noise})
    limits = Limits(ratio_floor_bytes=1_000_000)
    assert read_archive(path, limits) == {"zeros.bmp": RefusalKind.RATIO, "good.png": noise}


def test_a_false_inflated_size_is_found_while_inflating(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"lie.png": b"x" * 5000, "good.png": b"good"})
    patch_directory(path, INFLATED_SIZE, struct.pack("<L", 10))
    assert read_archive(path) == {"lie.png": RefusalKind.DAMAGED, "good.png": b"good"}
    patch_directory(path, INFLATED_SIZE, struct.pack("<L", 50_000))
    assert read_archive(path)["lie.png"] is RefusalKind.DAMAGED


def test_too_many_entries_are_refused_before_they_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "a.zip", {f"{i}.png": b"" for i in range(30)})
    monkeypatch.setattr("zipfile.ZipFile.__init__", lambda *args: pytest.fail("the entries were listed"))
    assert archive_refusal(path, Limits(max_entries=29)).kind is RefusalKind.TOO_MANY
    claim_one_entry(path)
    assert archive_refusal(path, Limits(max_directory_bytes=1000)).kind is RefusalKind.TOO_MANY


def test_a_false_entry_count_is_checked_against_the_list(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {f"{i}.png": b"" for i in range(30)})
    claim_one_entry(path)
    assert archive_refusal(path, Limits(max_entries=29)).kind is RefusalKind.TOO_MANY


def claim_one_entry(path: Path) -> None:
    """Write a false count into the end record."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x05\x06")
    data[at + 8 : at + 12] = struct.pack("<2H", 1, 1)
    path.write_bytes(data)


def test_a_damaged_member_does_not_affect_the_others(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"bad.png": png(1), "good.png": png(2)}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[100] ^= 0xFF
    path.write_bytes(data)
    assert read_archive(path) == {"bad.png": RefusalKind.DAMAGED, "good.png": png(2)}


def test_chinese_names_without_the_utf8_flag_are_read(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"XXXX.png": b"gbk", "YYYYYY.png": b"utf8"})
    rename_raw(path, b"XXXX", "猫咪".encode("gbk"))
    rename_raw(path, b"YYYYYY", "花朵".encode())
    assert read_archive(path) == {"猫咪.png": b"gbk", "花朵.png": b"utf8"}


def test_clutter_and_folders_are_skipped_silently(tmp_path: Path) -> None:
    names = ["__MACOSX/._a.png", ".DS_Store", "x/Thumbs.db", "desktop.ini", ".hidden/a.png", "folder/"]
    assert read_archive(make_zip(tmp_path / "a.zip", {**dict.fromkeys(names, b""), "a.png": b"a"})) == {"a.png": b"a"}
