"""Hostile archives are refused with a reason; what is good in a half-bad one is still read."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.dataset.making import (
    make_link,
    make_zip,
    overlapping_zip,
    patch_directory,
    png,
    rename_raw,
)
from trainer.dataset.archives import RefusedError
from trainer.dataset.archives.zip import ZipArchive
from trainer.dataset.limits import Limits
from trainer.dataset.names import natural_key, tidy, unsafe_reason
from trainer.protocol.report import RefusalKind


def read_all(path: Path, limits: Limits | None = None) -> dict[str, bytes | RefusalKind]:
    """Members by name: their bytes, or why they were refused."""
    result: dict[str, bytes | RefusalKind] = {}
    with ZipArchive(path, limits or Limits()) as archive:
        for member in archive.members:
            try:
                result[member.name] = member.read()
            except RefusedError as refusal:
                result[member.name] = refusal.kind
    return result


def refusal_of(path: Path, limits: Limits | None = None) -> RefusalKind:
    with pytest.raises(RefusedError) as caught:
        read_all(path, limits)
    return caught.value.kind


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
    read = read_all(path)
    assert read.pop("good.png") == b"good"
    assert list(read.values()) == [RefusalKind.UNSAFE_PATH]


def test_a_name_with_a_nul_is_refused_although_zipfile_cuts_it_there(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"aXb.png": b"bad", "good.png": b"good"})
    rename_raw(path, b"aXb.png", b"a\0b.png")
    assert read_all(path) == {"a\\x00b.png": RefusalKind.UNSAFE_PATH, "good.png": b"good"}


def test_links_are_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"good.png": b"good"})
    make_link(path, "link.png", "/etc/passwd")
    assert read_all(path) == {"good.png": b"good", "link.png": RefusalKind.LINK}


def test_encrypted_entries_are_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"secret.png": b"x" * 20, "good.png": b"good"})
    patch_directory(path, 8, struct.pack("<H", 0x1))
    assert read_all(path) == {"secret.png": RefusalKind.ENCRYPTED, "good.png": b"good"}


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_inflate_without_a_bound_are_refused(tmp_path: Path, method: int) -> None:
    assert read_all(make_zip(tmp_path / "a.zip", {"a.png": b"a" * 999}, method)) == {"a.png": RefusalKind.UNSUPPORTED}


def test_overlapping_entries_refuse_the_archive(tmp_path: Path) -> None:
    assert refusal_of(overlapping_zip(tmp_path / "a.zip", png(1), 20)) is RefusalKind.OVERLAP
    # Two entries alone do not pass the size of the file: their places give them away.
    small = overlapping_zip(tmp_path / "b.zip", b"x", 2)
    assert refusal_of(small) is RefusalKind.OVERLAP


def test_a_bomb_is_refused_by_its_ratio(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"zeros.bmp": b"BM" + bytes(30_000_000)})
    assert refusal_of(path) is RefusalKind.RATIO


def test_one_member_with_a_bomb_ratio_costs_only_itself(tmp_path: Path) -> None:
    noise = b"".join(png(seed, 300, 300) for seed in range(3))
    path = make_zip(tmp_path / "a.zip", {"zeros.bmp": bytes(2_000_000), "good.png": noise})
    limits = Limits(ratio_floor_bytes=1_000_000)
    assert read_all(path, limits) == {"zeros.bmp": RefusalKind.RATIO, "good.png": noise}


def test_a_lie_about_the_inflated_size_is_found_while_inflating(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"lie.png": b"x" * 5000, "good.png": b"good"})
    patch_directory(path, 24, struct.pack("<L", 10))
    assert read_all(path) == {"lie.png": RefusalKind.DAMAGED, "good.png": b"good"}
    patch_directory(path, 24, struct.pack("<L", 50_000))
    assert read_all(path)["lie.png"] is RefusalKind.DAMAGED


def test_the_budget_of_an_archive_counts_what_comes_out(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {f"{i}.png": b"x" * 1000 for i in range(5)})
    assert refusal_of(path, Limits(max_archive_bytes=4000)) is RefusalKind.TOO_LARGE
    assert read_all(path, Limits(max_entry_bytes=999)) == {f"{i}.png": RefusalKind.TOO_LARGE for i in range(5)}


def test_too_many_entries_are_refused_before_they_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "a.zip", {f"{i}.png": b"" for i in range(30)})
    monkeypatch.setattr("trainer.dataset.archives.zip._open", lambda _: pytest.fail("the entries were listed"))
    assert refusal_of(path, Limits(max_entries=29)) is RefusalKind.TOO_MANY
    # An end record that lies about the count is caught by the size of the list.
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x05\x06")
    data[at + 8 : at + 12] = struct.pack("<2H", 1, 1)
    path.write_bytes(data)
    assert refusal_of(path, Limits(max_directory_bytes=1000)) is RefusalKind.TOO_MANY


def test_a_count_that_lies_is_checked_against_the_list(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {f"{i}.png": b"" for i in range(30)})
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x05\x06")
    data[at + 8 : at + 12] = struct.pack("<2H", 1, 1)
    path.write_bytes(data)
    assert refusal_of(path, Limits(max_entries=29)) is RefusalKind.TOO_MANY


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.png": png(1), "b.png": png(2)})
    path.write_bytes(path.read_bytes()[:-200])
    assert refusal_of(path) is RefusalKind.DAMAGED


def test_a_damaged_member_costs_only_itself(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"bad.png": png(1), "good.png": png(2)}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[100] ^= 0xFF
    path.write_bytes(data)
    assert read_all(path) == {"bad.png": RefusalKind.DAMAGED, "good.png": png(2)}


def test_names_that_some_file_system_takes_for_one_collide(tmp_path: Path) -> None:
    members = {"Cat.png": b"1", "cat.PNG": b"2", "caf\u00e9.png": b"3", "cafe\u0301.png": b"4"}
    read = read_all(make_zip(tmp_path / "a.zip", members))
    assert list(read.values()) == [b"1", RefusalKind.COLLISION, b"3", RefusalKind.COLLISION]


def test_chinese_names_without_the_utf8_flag_are_read(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"XXXX.png": b"gbk", "YYYYYY.png": b"utf8"})
    rename_raw(path, b"XXXX", "猫咪".encode("gbk"))
    rename_raw(path, b"YYYYYY", "花朵".encode())
    assert read_all(path) == {"猫咪.png": b"gbk", "花朵.png": b"utf8"}


def test_clutter_is_skipped_in_silence(tmp_path: Path) -> None:
    names = ["__MACOSX/._a.png", ".DS_Store", "x/Thumbs.db", "desktop.ini", ".hidden/a.png", "folder/"]
    assert read_all(make_zip(tmp_path / "a.zip", {**dict.fromkeys(names, b""), "a.png": b"a"})) == {"a.png": b"a"}


def test_every_cut_and_flip_of_an_archive_is_refused_or_read_never_a_crash(tmp_path: Path) -> None:
    good = make_zip(tmp_path / "a.zip", {"a.png": b"aaaa", "b.txt": b"bbbb"}).read_bytes()
    path = tmp_path / "b.zip"
    broken = [good[:cut] for cut in range(4, len(good), 7)]
    broken += [good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :] for at in range(len(good))]
    refused = 0
    for data in broken:
        path.write_bytes(data)
        try:
            read_all(path)
        except RefusedError:
            refused += 1
    assert 0 < refused < len(broken)


@given(st.text(alphabet=st.sampled_from("ab./\\:\0C \n~é"), max_size=12))
def test_a_name_that_passes_stays_below_its_folder(name: str) -> None:
    if unsafe_reason(name) is None:
        parts = tidy(name).split("/")
        assert parts
        assert not {"", ".", ".."} & set(parts)
        assert not set(tidy(name)) & set("\\\0\n")


def test_numbers_in_names_sort_as_numbers() -> None:
    names = ["img10.png", "img2.png", "IMG1.png", "a/3.png", "3.png"]
    assert sorted(names, key=natural_key) == ["3.png", "a/3.png", "IMG1.png", "img2.png", "img10.png"]
