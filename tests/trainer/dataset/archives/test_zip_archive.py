"""Hostile zips are refused with a reason, and the good members of a partly bad one are still read."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest

from tests.trainer.dataset.image_files import make_link, make_zip, overlapping_zip, patch_directory, png, rename_raw
from tests.trainer.dataset.read_sources import archive_refusal, read_archive
from trainer.dataset.input_files import Limits
from trainer.protocol.report import RefusalKind

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


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_without_a_memory_bound_are_refused(tmp_path: Path, method: int) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.png": b"a" * 999}, method)
    assert read_archive(path) == {"a.png": RefusalKind.UNSUPPORTED}


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
