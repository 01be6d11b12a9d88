"""Every archive format gives the same members and the same refusals."""

from __future__ import annotations

import io
import lzma
import os
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import py7zr
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.trainer.dataset.bounded_work import at_most_calls
from tests.trainer.dataset.image_files import RawEntry, make_zip, noise, png, raw_zip
from tests.trainer.dataset.read_sources import archive_refusal, read_archive
from tests.trainer.dataset.tar_files import make_7z, make_tar, packed, special, tar_bytes
from trainer.dataset.archives import READABLE_ARCHIVES, open_archive
from trainer.dataset.archives.archive import Archive, cut_short, damaged, refusal_for
from trainer.dataset.archives.seven_zip_archive import _dictionary_bytes
from trainer.dataset.input_files import HEAD_BYTES, FileKind, Limits, RefusedError, sniff
from trainer.protocol.report import RefusalKind

ENDINGS = ["zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz", "tar.zst", "7z"]
COMPRESSED = ["gz", "bz2", "xz", "zst"]


def make(path: Path, members: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        return make_zip(path, members)
    return make_7z(path, members) if path.suffix == ".7z" else make_tar(path, members)


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_gives_the_same_members_in_any_order(tmp_path: Path, ending: str) -> None:
    members = {"b/2.png": png(2), "a/1.png": png(1), "a/1.txt": "猫".encode(), "empty.txt": b"", "猫咪.png": png(3)}
    clutter = {"__MACOSX/._1.png": b"x", "a/.DS_Store": b"x", "Thumbs.db": b"x"}
    assert read_archive(make(tmp_path / f"a.{ending}", {**clutter, **members})) == members


@pytest.mark.parametrize("ending", ENDINGS)
def test_names_that_look_the_same_collide_and_case_twins_are_two_files(tmp_path: Path, ending: str) -> None:
    members = {"Cat.png": b"1", "cat.PNG": b"2", "caf\u00e9.png": b"3", "cafe\u0301.png": b"4"}
    read = read_archive(make(tmp_path / f"a.{ending}", members))
    assert list(read.values()) == [b"1", b"2", b"3", RefusalKind.COLLISION]


@pytest.mark.parametrize("ending", ENDINGS)
def test_limits_hold_for_every_format(tmp_path: Path, ending: str) -> None:
    members = {f"{i}.png": os.urandom(20_000) for i in range(30)}
    path = make(tmp_path / f"a.{ending}", members)
    assert archive_refusal(path, Limits(max_entries=29)).kind is RefusalKind.TOO_MANY
    assert archive_refusal(path, Limits(max_archive_bytes=400_000)).kind is RefusalKind.TOO_LARGE
    assert set(read_archive(path, Limits(max_entry_bytes=19_999)).values()) == {RefusalKind.TOO_LARGE}


@pytest.mark.parametrize("ending", [e for e in ENDINGS if e not in ("tar", "zip", "7z")])
def test_a_bomb_is_refused_by_its_ratio(tmp_path: Path, ending: str) -> None:
    path = make(tmp_path / f"a.{ending}", {"zeros.bmp": b"BM" + bytes(30_000_000)})
    assert path.stat().st_size < 100_000
    assert archive_refusal(path).kind is RefusalKind.RATIO


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_truncated_archive_is_refused(tmp_path: Path, ending: str) -> None:
    path = make(tmp_path / f"a.{ending}", {"a.png": os.urandom(30_000), "b.png": os.urandom(30_000)})
    whole = path.read_bytes()
    for share in (0.3, 0.6, 0.8):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert archive_refusal(path).kind is RefusalKind.DAMAGED


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_archive_within_an_archive_is_not_opened(tmp_path: Path, ending: str) -> None:
    inner = make_zip(tmp_path / "inner.zip", {"a.png": png(1)}).read_bytes()
    assert read_archive(make(tmp_path / f"a.{ending}", {"inner.zip": inner})) == {"inner.zip": inner}


@pytest.mark.parametrize("ending", COMPRESSED)
def test_a_compressed_file_that_is_not_a_tar_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"image.png.{ending}"
    path.write_bytes(packed(png(1) * 3, ending))
    assert archive_refusal(path).kind is RefusalKind.UNSUPPORTED


@pytest.mark.parametrize("ending", COMPRESSED)
def test_a_flipped_bit_in_a_compressed_tar_is_detected(tmp_path: Path, ending: str) -> None:
    data = bytearray(packed(tar_bytes({"a.png": os.urandom(5000)}), ending))
    data[len(data) // 2] ^= 0x10
    path = tmp_path / f"a.tar.{ending}"
    path.write_bytes(data)
    if ending != "zst":  # `zstd.compress` writes no checksum
        assert archive_refusal(path).kind is RefusalKind.DAMAGED


def test_links_devices_and_pipes_in_a_tar_are_refused_and_folders_are_skipped(tmp_path: Path) -> None:
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
    extra = [special(f"{index}.png", kind, "../../etc/passwd") for index, kind in enumerate(kinds)]
    extra += [special("folder", tarfile.DIRTYPE), special("./", tarfile.DIRTYPE)]
    read = read_archive(make_tar(tmp_path / "a.tar.gz", {"./good.png": b"good"}, extra))
    assert read == {"good.png": b"good", **{f"{index}.png": RefusalKind.LINK for index in range(5)}}


def test_links_in_a_7z_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("good.png")
    (tmp_path / "good.png").write_bytes(b"good")
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w") as archive:
        archive.write(tmp_path / "link.png", "link.png")
        archive.write(tmp_path / "good.png", "good.png")
    assert read_archive(tmp_path / "a.7z") == {"link.png": RefusalKind.LINK, "good.png": b"good"}


def test_a_sparse_file_in_a_tar_is_refused_whatever_size_it_claims(tmp_path: Path) -> None:
    data = bytearray(tar_bytes({"big.png": b"x" * 512, "good.png": b"good"}))
    info = special("big.png", tarfile.GNUTYPE_SPARSE)
    info.size = 512
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[386:410] = b"00000000000\x0000000001000\0"
    head[483:495] = b"77777777777\0"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    data[:512] = head
    (tmp_path / "a.tar").write_bytes(data)
    assert read_archive(tmp_path / "a.tar") == {"big.png": RefusalKind.UNSUPPORTED, "good.png": b"good"}


def test_names_in_a_tar_that_are_not_utf8_are_decoded(tmp_path: Path) -> None:
    data = tar_bytes(
        {os.fsdecode("猫咪.png".encode("gbk")): b"gbk", "花朵.png": b"utf8"}, tar_format=tarfile.GNU_FORMAT
    )
    (tmp_path / "a.tar").write_bytes(data)
    assert read_archive(tmp_path / "a.tar") == {"猫咪.png": b"gbk", "花朵.png": b"utf8"}


@pytest.mark.parametrize(
    ("error", "same_as"),
    [
        (zlib.error("Error -3 while decompressing data: invalid block type"), damaged("its data is wrong")),
        (lzma.LZMAError("Corrupt input data"), damaged("its data is wrong")),
        (zipfile.BadZipFile("Bad CRC-32 for file 'a.png'"), damaged("its checksum is wrong")),
        (EOFError("Compressed file ended before the end-of-stream marker was reached"), cut_short()),
        (zlib.error("Error -5 while decompressing data: incomplete or truncated stream"), cut_short()),
    ],
)
def test_damage_is_named_in_words_of_ours(error: Exception, same_as: RefusedError) -> None:
    assert refusal_for(error).reason == same_as.reason


def test_a_damaged_header_in_a_tar_is_not_mistaken_for_its_end(tmp_path: Path) -> None:
    data = bytearray(tar_bytes({"a.png": b"a", "b.png": b"b", "c.png": b"c"}, tar_format=tarfile.USTAR_FORMAT))
    data[1024] ^= 0xFF
    (tmp_path / "a.tar").write_bytes(data)
    assert archive_refusal(tmp_path / "a.tar").kind is RefusalKind.DAMAGED


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_tar_header_that_claims_gigabytes_is_not_read(tmp_path: Path, kind: bytes) -> None:
    info = special("x", kind)
    info.size = 5 * 2**30
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, 6 * 2**30)
    assert archive_refusal(path).kind is RefusalKind.TOO_MANY


def test_tar_headers_that_cost_time_are_refused_at_once(tmp_path: Path) -> None:
    digits = special("x", tarfile.XHDTYPE)
    digits.size = 200_000
    slow = digits.tobuf(tarfile.USTAR_FORMAT) + (b"1" * 200_000).ljust(200_192, b"\0")
    chain = special("x", tarfile.GNUTYPE_LONGNAME)
    chain.size = 1
    deep = (chain.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")) * 5000
    keys = b"".join(b"%d k%d=v\n" % (len(f"k{i}=v\n") + 2, i) for i in range(100))
    globe = special("x", tarfile.XGLTYPE)
    globe.size = len(keys)
    wide = globe.tobuf(tarfile.USTAR_FORMAT) + keys.ljust(-(-len(keys) // 512) * 512, b"\0")
    for data in (slow, deep, wide):
        (tmp_path / "a.tar").write_bytes(data + tar_bytes({"a.png": b"a"}))
        with at_most_calls(100_000):
            assert archive_refusal(tmp_path / "a.tar").kind is RefusalKind.DAMAGED


def test_xz_that_needs_too_much_memory_is_refused(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar.xz", {"a.png": png(1)})
    refusal = archive_refusal(path, Limits(max_dictionary_bytes=2**20))
    assert refusal.kind is RefusalKind.TOO_LARGE
    assert "memory" in refusal.reason


def test_encrypted_7z_is_refused_whole_or_by_member(tmp_path: Path) -> None:
    members = {"a.png": png(1), "b.png": png(2)}
    locked = make_7z(tmp_path / "locked.7z", members, password="x", header_encryption=True)
    assert archive_refusal(locked).kind is RefusalKind.ENCRYPTED
    assert read_archive(make_7z(tmp_path / "a.7z", members, password="x")) == dict.fromkeys(
        members, RefusalKind.ENCRYPTED
    )


@pytest.mark.parametrize("method", [py7zr.FILTER_ZSTD, py7zr.FILTER_DEFLATE, py7zr.FILTER_BZIP2, py7zr.FILTER_BROTLI])
def test_7z_methods_without_a_memory_bound_are_refused(tmp_path: Path, method: int) -> None:
    path = make_7z(tmp_path / "a.7z", {"a.png": b"a" * 9999}, filters=[{"id": method, "level": 3}])
    assert read_archive(path) == {"a.png": RefusalKind.UNSUPPORTED}


def test_7z_that_needs_too_much_memory_is_refused(tmp_path: Path) -> None:
    path = make_7z(tmp_path / "a.7z", {"a.png": png(1)}, filters=[{"id": py7zr.FILTER_LZMA2, "preset": 9}])
    refusal = archive_refusal(path, Limits(max_dictionary_bytes=2**25))
    assert refusal.kind is RefusalKind.TOO_LARGE
    assert "64.0 MiB of memory" in refusal.reason
    sizes = [_dictionary_bytes({"method": b"\x21", "properties": bytes([bits])}) for bits in (0, 24, 40)]
    assert sizes == [4096, 16 * 2**20, 2**32 - 1]


def test_7z_entries_are_counted_before_they_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_7z(tmp_path / "a.7z", {f"{i}.png": b"x" for i in range(30)})
    monkeypatch.setattr("py7zr.SevenZipFile.__init__", lambda *args, **options: pytest.fail("the entries were listed"))
    assert archive_refusal(path, Limits(max_entries=29)).kind is RefusalKind.TOO_MANY
    assert archive_refusal(path, Limits(max_directory_bytes=100)).kind is RefusalKind.TOO_MANY


def test_members_before_the_damage_in_a_7z_are_read(tmp_path: Path) -> None:
    members = {f"{i}.png": os.urandom(3000) for i in range(3)}
    path = make_7z(tmp_path / "a.7z", members, filters=[{"id": py7zr.FILTER_COPY}])
    data = bytearray(path.read_bytes())
    data[32 + 4000] ^= 0xFF
    path.write_bytes(data)
    read = read_archive(path)
    assert read["0.png"] == members["0.png"]
    assert read["1.png"] is RefusalKind.DAMAGED
    assert read["2.png"] is RefusalKind.DAMAGED


def test_an_image_with_an_archive_appended_is_an_image(tmp_path: Path) -> None:
    tail = make_zip(tmp_path / "a.zip", {"evil.png": png(1)}).read_bytes()
    for file_format in ("PNG", "GIF", "JPEG", "BMP", "WEBP"):
        path = tmp_path / "image"
        noise(1).save(path, file_format)
        assert sniff((path.read_bytes() + tail)[:HEAD_BYTES]) is FileKind.IMAGE


def test_a_stored_zip_is_a_zip_whatever_it_contains(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.png": png(1)}, zipfile.ZIP_STORED)
    assert sniff(path.read_bytes()[:HEAD_BYTES]) is FileKind.ZIP
    assert read_archive(path) == {"a.png": png(1)}


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "7z"])
def test_every_cut_and_flipped_byte_is_refused_or_read_but_never_crashes(tmp_path: Path, ending: str) -> None:
    good = make(tmp_path / f"a.{ending}", {"a.png": b"aaaa", "b.txt": b"bbbb"}).read_bytes()
    path = tmp_path / f"b.{ending}"
    step = max(1, len(good) // 300)
    broken = [good[:cut] for cut in range(8, len(good), step)]
    broken += [good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :] for at in range(6, len(good), step)]
    refused = 0
    for data in broken:
        path.write_bytes(data)
        kind = sniff(data[:HEAD_BYTES])
        try:
            if kind in READABLE_ARCHIVES:
                read_archive(path)
        except RefusedError:
            refused += 1
    assert 0 < refused < len(broken)


NAMES = st.text(alphabet=st.sampled_from("ab./\\:\0C \n~é猫\u202e"), min_size=1, max_size=14)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, max_size=6), ending=st.sampled_from(["zip", "tar", "tar.gz", "7z"]))
@example(names=["\0"], ending="zip")
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_names_write_nothing_and_every_entry_is_read_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], ending: str
) -> None:
    # Deep enough that no name of this length leads out of `tmp_path`.
    home = tmp_path / "1/2/3/4/5"
    home.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(home)
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    reasons: list[str] = []
    path = home / f"a.{ending}"
    path.unlink(missing_ok=True)
    path.write_bytes(_archive_of(names, ending))
    before = sorted(tmp_path.rglob("*"))
    with open_archive(path, sniff(path.read_bytes()[:HEAD_BYTES]), Limits()) as archive:
        for member in archive.members:
            assert member.name.isprintable()
            try:
                assert member.read() == b"content"
                assert not {"", ".", ".."} & set(member.name.split("/"))
            except RefusedError as error:
                reasons.append(error.reason)
        count = len(archive.members)
        _require_distinct(archive)
    assert all(reasons)
    assert count <= len(names) + 1
    assert sorted(tmp_path.rglob("*")) == before


def _require_distinct(archive: Archive) -> None:
    names = [unicodedata.normalize("NFC", member.name) for member in archive.members if member.refusal is None]
    assert len(names) == len(set(names))


PARTS = st.one_of(
    st.binary(min_size=1, max_size=6),
    st.text(max_size=6).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [b"..", b".", b"", b"CON", b"a\\..\\b", b"C:", b"__MACOSX", b"\xe9", b"\x93\xfa\x96{", b"e\xcc\x81"]
    ),
)
RAW_NAMES = st.lists(PARTS, min_size=1, max_size=4).map(b"/".join).filter(bool)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.tuples(RAW_NAMES, st.sampled_from([0, 0x800])), max_size=8))
def test_whatever_bytes_name_the_entries_of_a_zip_none_escapes_or_collides_and_all_can_be_shown(
    tmp_path: Path, names: list[tuple[bytes, int]]
) -> None:
    def is_utf8(name: bytes) -> bool:
        with suppress(UnicodeDecodeError):
            return name.decode() is not None
        return False

    # zipfile refuses the whole archive for a name that is not what its flag says.
    entries = [RawEntry(name, b"content", flags=flag if is_utf8(name) else 0) for name, flag in names]
    path = raw_zip(tmp_path / "a.zip", [RawEntry(b"good.png", b"content"), *entries])
    with open_archive(path, FileKind.ZIP, Limits()) as archive:
        for member in archive.members:
            assert member.name.isprintable()
            if member.refusal is None:
                assert member.read() == b"content"
                assert not {"", ".", ".."} & set(member.name.split("/"))
                assert "\\" not in member.name.replace("\\x", "").replace("\\u", "").replace("\\U", "")
                assert (tmp_path / member.name).resolve().is_relative_to(tmp_path)
        _require_distinct(archive)


def _archive_of(names: list[str], ending: str) -> bytes:
    """An archive with entries of any name, bypassing the checks of the libraries."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a.{ending}")
        if ending == "7z":
            with py7zr.SevenZipFile(path, "w") as archive:
                for index, name in enumerate(["good.png", *names]):
                    archive.writestr(b"content", f"{index}.png")
                    archive.header.files_info.files[-1]["filename"] = name.replace("\0", "\x01")
        elif ending == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name in ["good.png", *names]:
                    info = zipfile.ZipInfo("x")
                    info.filename = name
                    archive.writestr(info, b"content")
        else:
            with tarfile.open(path, "w") as packing:
                for entry in [tarfile.TarInfo(name) for name in ["good.png", *names]]:
                    entry.size = len(b"content")
                    packing.addfile(entry, io.BytesIO(b"content"))
            path.write_bytes(packed(path.read_bytes(), ending[4:]))
        return path.read_bytes()


def test_two_thousand_members_of_a_tar_gz_are_read_backwards_in_linear_time(tmp_path: Path) -> None:
    members = {f"{i}.png": struct.pack("<L", i) * 500 for i in range(2000)}
    path = make_tar(tmp_path / "a.tar.gz", members)
    with at_most_calls(500_000):
        assert read_archive(path) == members


def test_temporary_files_are_closed_also_after_an_error(tmp_path: Path) -> None:
    open_files = Path("/proc/self/fd")
    before = len(list(open_files.iterdir()))
    for path in (make(tmp_path / f"a.{ending}", {"a.png": png(1), "b.png": png(2)}) for ending in ENDINGS):
        read_archive(path)
        archive_refusal(path, Limits(max_entries=1))
    assert len(list(open_files.iterdir())) == before
