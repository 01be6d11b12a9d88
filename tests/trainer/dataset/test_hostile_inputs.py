"""Small files that are costly to read end early, and cost only themselves."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from py7zr.io import NullIO

from tests.trainer.dataset.bounded_work import at_most_calls
from tests.trainer.dataset.image_files import make_zip, png
from tests.trainer.dataset.labeled_images import Labeled
from tests.trainer.dataset.read_sources import archive_refusal, read_archive
from tests.trainer.dataset.tar_files import make_7z, tar_bytes
from trainer.dataset.archives.archive import ArchiveMember
from trainer.dataset.captions.caption_checks import check_captions
from trainer.dataset.captions.caption_rules import apply_rules
from trainer.dataset.captions.caption_tables import CaptionTable, read_json, read_table
from trainer.dataset.captions.caption_text import MAX_CAPTION_CHARACTERS, MAX_CLASS_CHARACTERS, clean_text
from trainer.dataset.captions.delimited_text import MAX_ROWS
from trainer.dataset.captions.sidecars import read_sidecar
from trainer.dataset.captions.table_columns import MAX_CAPTIONS, TableError, captions_in
from trainer.dataset.images.decoding import decode
from trainer.dataset.input_files import Limits
from trainer.dataset.preparing.prepare import prepare
from trainer.dataset.sources.hf_datasets import _class_name
from trainer.protocol.edits import CaptionRules
from trainer.protocol.report import DatasetReport, RefusalKind

LONG = "a fox " * 200_000


def images(count: int) -> dict[str, bytes]:
    return {f"{number}.png": png(number) for number in range(1, count + 1)}


def refusals(report: DatasetReport) -> dict[str, RefusalKind]:
    return {refused.source: refused.kind for refused in report.refused}


# -- captions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "read",
    [
        lambda: clean_text(LONG),
        lambda: _only_caption(read_json(json.dumps({"caption": LONG}))),
        lambda: _only_caption(read_json(json.dumps({"tags": [LONG, *(f"tag{n}" for n in range(200_000))]}))),
        lambda: _only_caption(read_json(json.dumps({"caption": LONG, "tags": LONG}))),
        lambda: _only_caption(read_json(json.dumps({"a.png": LONG}))),
        lambda: _only_caption(read_json(json.dumps({"a.png": {"caption": LONG}}))),
        lambda: _only_caption(read_table("metadata.jsonl", json.dumps({"file_name": "a.png", "text": LONG}))),
        lambda: _only_caption(read_table("captions.csv", "a.png," + "a fox, " * 15_000)),
        lambda: _only_caption(captions_in([LONG])),
    ],
)
def test_a_caption_is_cut_at_a_word_wherever_it_comes_from(read: Callable[[], str]) -> None:
    with at_most_calls(600_000):
        caption = read()

    assert MAX_CAPTION_CHARACTERS - 20 <= len(caption) <= MAX_CAPTION_CHARACTERS
    assert caption.endswith(("fox", "fox,", "a")) or caption.rpartition(" ")[2].startswith("tag")


def _only_caption(read: tuple[str, ...] | CaptionTable) -> str:
    (caption,) = read.rows[0].captions if isinstance(read, CaptionTable) else read
    return caption


def test_the_name_of_a_class_is_cut_too() -> None:
    (row,) = read_table("metadata.jsonl", json.dumps({"file_name": "a.png", "text": "x", "class": LONG})).rows

    assert MAX_CLASS_CHARACTERS - 9 <= len(row.class_name) <= MAX_CLASS_CHARACTERS
    assert len(_class_name(LONG, ())) <= MAX_CLASS_CHARACTERS


def test_a_first_line_with_a_huge_field_costs_no_more_than_its_table(tmp_path: Path) -> None:
    text = f"file_name,{'x' * 200_000}\na.png,a fox"

    members = {**images(3), "metadata.csv": text.encode(), "captions.txt": text.encode()}
    report = prepare([make_zip(tmp_path / "a.zip", members)], tmp_path / "out")
    assert (report.counts.kept, report.counts.refused) == (3, 2)


def test_a_table_of_very_many_rows_is_refused() -> None:
    with pytest.raises(TableError, match="more than 50,000 rows"):
        read_table("a.csv", "file_name,text\n" + "a.png,x\n" * (MAX_ROWS + 1))


def test_tables_beyond_the_limit_on_all_of_them_are_not_even_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    read = ArchiveMember.read

    def noted(member: ArchiveMember) -> bytes:
        opened.append(member.name)
        return read(member)

    monkeypatch.setattr(ArchiveMember, "read", noted)
    tables = {f"table{n}.json": json.dumps({f"{n}.png": "x" * 600}).encode() for n in range(1, 5)}
    path = make_zip(tmp_path / "a.zip", {**images(4), "4.txt": b"a fox", **tables})

    report = prepare([path], tmp_path / "out", limits=Limits(max_table_bytes=1000))

    assert refusals(report) == {f"a.zip!table{n}.json": RefusalKind.TOO_LARGE for n in (2, 3, 4)}
    assert [len(image.caption) for image in report.images] == [600, 0, 0, 5]
    assert not {"table3.json", "table4.json"} & {*opened}


def test_long_captions_of_near_duplicates_are_compared_by_what_a_model_reads() -> None:
    words = ("".join(letters) for letters in itertools.product("bcdfghjklm", repeat=5))
    captions = {number: " ".join(itertools.islice(words, 1500)) for number in range(1, 31)}

    with at_most_calls(750_000):
        found = check_captions(captions, dict.fromkeys(captions, 0))

    assert len(found) == 30


@pytest.mark.parametrize(
    ("caption", "rules", "expected", "calls"),
    [
        ("fox, " + "(" * 16_000 + "old" + ")" * 16_000, CaptionRules(strip=("old",)), "fox", 150_000),
        ("fox" + " hd" * 8_000, CaptionRules(suffix="hd"), "fox hd", 150_000),
        ("hd " * 8_000 + "fox", CaptionRules(prefix="hd"), "hd fox", 150_000),
        # With a pass for each pair: 16 million.
        ("a " * 2_000 + "b " * 2_000, CaptionRules(strip=("a b",)), None, 1_000_000),
    ],
)
def test_caption_rules_take_few_passes(caption: str, rules: CaptionRules, expected: str | None, calls: int) -> None:
    with at_most_calls(calls):
        ruled = apply_rules(caption, rules)

    assert expected in (None, ruled)


def test_a_caption_that_mentions_svg_is_no_image(tmp_path: Path) -> None:
    members = {**images(4), "1.txt": b"an <svg> logo of a fox", "2.txt": b"<svg> in yellow", "3.svg": b"<svg></svg>"}

    report = prepare([make_zip(tmp_path / "a.zip", members)], tmp_path / "out")

    captions = {image.source: image.caption for image in report.images}
    assert captions["a.zip!1.png"] == "an <svg> logo of a fox"
    assert captions["a.zip!2.png"] == "<svg> in yellow"
    assert [finding.kind for image in report.images for finding in image.findings if "3.svg" in image.source] == [
        "unsupported"
    ]


def test_a_caption_of_megabytes_leaves_a_small_report(tmp_path: Path) -> None:
    long = json.dumps({"caption": "a fox " * 1_400_000}).encode()
    path = make_zip(tmp_path / "a.zip", {**images(4), "1.json": long, "2.txt": b"a fox " * 11_000})

    report = prepare([path], tmp_path / "out")

    assert [len(image.caption) <= MAX_CAPTION_CHARACTERS for image in report.images] == [True] * 4
    assert len(report.images[0].caption) > MAX_CAPTION_CHARACTERS - 20
    # The larger text is no caption any more.
    assert report.images[1].caption == ""
    assert (tmp_path / "out" / "report.json").stat().st_size < 100_000


def test_many_texts_of_other_folders_are_each_compared_with_few_images() -> None:
    texts = {f"captions/{folder}/1.txt": "a fox" for folder in range(1000)}
    with at_most_calls(2_000_000):
        found = Labeled([f"images/{folder}/1.png" for folder in range(1000)], texts)

    # Of one name so often, no name tells which is meant.
    assert set(found.captions.values()) == {""}
    assert len(found.refused) == 1000


def test_a_table_in_markdown_of_many_rows_is_refused_unread() -> None:
    text = "| cat.png | a red cat |\n" * 200_000
    with at_most_calls(100_000):
        found = Labeled(["cat.png"], {"README.md": text})

    assert found.refused["README.md"].kind is RefusalKind.TOO_LARGE


def test_a_text_of_very_many_lines_is_read_up_to_the_length_of_a_caption() -> None:
    with at_most_calls(400_000):
        caption = read_sidecar("1.txt", "a\nb c\n" * 10_000)

    assert len(caption.text) <= MAX_CAPTION_CHARACTERS
    assert len(caption.others) < MAX_CAPTIONS


# -- images and archives -------------------------------------------------------------------------------------------


def test_images_beyond_the_limit_are_left_out_and_counted(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {**images(7), "3.txt": b"a fox"})

    report = prepare([path], tmp_path / "out", limits=Limits(max_images=4))

    assert (report.counts.images, report.images[2].caption) == (4, "a fox")
    (refused,) = report.refused
    assert (refused.source, refused.kind) == ("a.zip!5.png", RefusalKind.TOO_MANY)
    assert "3 in all" in refused.reason


def tiff_of_many_pages(pages: int) -> bytes:
    """One gray image of 64 px, whose directory is followed by many copies of itself."""
    size = 64 * 64
    data, at = bytearray(b"II*\0" + struct.pack("<I", 8 + size) + bytes(range(256)) * 16), 8 + size
    numbers = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 273: 8, 278: 64, 279: size}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in numbers.items())
    for page in range(pages):
        at += 2 + len(entries) + 4
        data += struct.pack("<H", len(numbers)) + entries + struct.pack("<I", at if page + 1 < pages else 0)
    return bytes(data)


def test_the_pages_of_a_tiff_are_not_counted() -> None:
    data = tiff_of_many_pages(5000)

    with at_most_calls(20_000):
        image = decode(data, Limits())

    assert (image.width, image.notes) == (64, ("only its first frame is used",))


@pytest.mark.parametrize(
    ("ending", "empty"),
    [
        ("zst", b"\x50\x2a\x4d\x18\0\0\0\0"),
        ("gz", gzip.compress(b"")),
        ("bz2", bz2.compress(b"")),
        ("xz", lzma.compress(b"")),
    ],
    ids=["zst", "gz", "bz2", "xz"],
)
def test_a_file_of_very_many_empty_streams_is_refused(tmp_path: Path, ending: str, empty: bytes) -> None:
    # A frame of zstd that is to be skipped cannot come first.
    first = b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00" if ending == "zst" else empty
    path = tmp_path / f"a.tar.{ending}"
    path.write_bytes(first + empty * 100_000)

    with at_most_calls(500_000):
        refusal = archive_refusal(path)

    assert refusal.kind is RefusalKind.TOO_MANY


def test_what_lies_behind_a_bomb_in_a_7z_is_inflated_up_to_the_size_of_one_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"a.png": 5_000, "bomb.bmp": 4_000_000, "b.png": 5_000, "more.bmp": 4_000_000, "c.png": 5_000}
    path = make_7z(tmp_path / "a.7z", {name: bytes(size) for name, size in sizes.items()})
    inflated: list[int] = []
    write = NullIO.write

    def counted(null: NullIO, data: bytes) -> int:
        inflated.append(len(data))
        return int(write(null, data))

    monkeypatch.setattr(NullIO, "write", counted)

    read = read_archive(path, Limits(max_entry_bytes=5_000_000, ratio_floor_bytes=1_000_000))

    bombs = dict.fromkeys(("bomb.bmp", "more.bmp", "c.png"), RefusalKind.RATIO)
    assert read == {"a.png": bytes(5_000), "b.png": bytes(5_000), **bombs}
    assert sum(inflated) == 4_000_000


def test_very_many_tars_in_one_file_take_little_more_than_their_headers(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes({"1.png": b"x"}) * 2100)

    with at_most_calls(1_500_000):
        assert archive_refusal(path, Limits(max_entries=2000)).kind is RefusalKind.TOO_MANY
