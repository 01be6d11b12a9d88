"""Every source becomes images with captions, classes and repeats; what does not is refused with a reason."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer.dataset.image_files import encoded, make_zip, noise, png
from tests.trainer.dataset.read_sources import captions_of, read_sources
from tests.trainer.dataset.tar_files import make_7z, make_tar
from trainer.dataset.images.image_record import ImageRecord
from trainer.dataset.input_files import Limits
from trainer.dataset.sources.source_readers import Sources
from trainer.protocol.report import FindingKind, RefusalKind


def caption_sources(records: list[ImageRecord]) -> dict[str, str]:
    return {record.source: record.labels.caption.source for record in records if record.labels.caption}


def filled(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("ending", ["zip", "tar.gz", "7z", "folder"])
def test_tables_and_sidecars_work_in_every_kind_of_source(tmp_path: Path, ending: str) -> None:
    table = b'{"file_name": "1.png", "text": "from the table"}\n{"file_name": "2.png", "text": "overruled"}\n'
    files = {"set/1.png": png(1), "set/2.png": png(2), "set/2.txt": b"from the sidecar", "set/metadata.jsonl": table}
    path = tmp_path / f"a.{ending}"
    makers: dict[str, Callable[[Path, dict[str, bytes]], Path]]
    makers = {"zip": make_zip, "tar.gz": make_tar, "7z": make_7z, "folder": filled}
    makers[ending](path, files)
    found, refused = read_sources(tmp_path, path)
    assert list(captions_of(found).values()) == ["from the table", "from the sidecar"]
    assert all(one.pixels for one in found)
    assert refused == []


def test_the_nearest_caption_wins(tmp_path: Path) -> None:
    root = filled(
        tmp_path / "root",
        {
            "all.csv": b"file_name,text\ncats/1.png,far\ncats/2.png,far\n3.png,far\n",
            "cats/metadata.csv": b"file_name,text,label\n1.png,near,tabby\n2.png,near,\n",
            "cats/1.png": png(1),
            "cats/2.png": png(2),
            "cats/2.json": b'{"caption": "nearest", "tags": ["tag"]}',
            "3.png": png(3),
        },
    )
    found, refused = read_sources(tmp_path, root)
    assert captions_of(found) == {"cats/1.png": "near", "cats/2.png": "nearest, tag", "3.png": "far"}
    assert {one.source: one.labels.class_name for one in found} == {
        "cats/1.png": "tabby",
        "cats/2.png": "cats",
        "3.png": "",
    }
    assert refused == []
    assert caption_sources(found) == {
        "cats/1.png": "cats/metadata.csv",
        "cats/2.png": "cats/2.json",
        "3.png": "all.csv",
    }


def test_the_table_replaces_an_empty_sidecar(tmp_path: Path) -> None:
    files = {"1.png": png(1), "1.txt": b" ", "metadata.csv": b"file_name,text\n1.png,a cat\n"}
    found, _refused = read_sources(tmp_path, filled(tmp_path / "root", files))
    assert captions_of(found) == {"1.png": "a cat"}


def test_rows_without_an_image_are_refused_and_many_are_counted(tmp_path: Path) -> None:
    rows = "".join(f"gone{i}.png,x\n" for i in range(30))
    files = {"1.png": png(1), "metadata.csv": f"file_name,text\n1.png,a cat\n../../etc/passwd,x\n{rows}".encode()}
    found, refused = read_sources(tmp_path, filled(tmp_path / "root", files))
    assert captions_of(found) == {"1.png": "a cat"}
    assert len(refused) == 21
    assert refused[0].source == "metadata.csv:3"
    assert "../../etc/passwd" in refused[0].reason
    assert refused[-1].source == "metadata.csv"
    assert refused[-1].reason.startswith("11 more")


def test_a_broken_line_of_a_table_costs_this_line(tmp_path: Path) -> None:
    files = {"1.png": png(1), "metadata.jsonl": b'{"file_name": "1.png", "text": "a"}\n{"file_name": \n'}
    found, refused = read_sources(tmp_path, filled(tmp_path / "root", files))
    assert captions_of(found) == {"1.png": "a"}
    [refusal] = refused
    assert (refusal.source, refusal.kind) == ("metadata.jsonl:2", RefusalKind.DAMAGED)
    assert "line 2" in refusal.reason


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_tables_are_read_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    table = "file_name,text\n猫咪.png,一只可爱的猫坐在草地上\n".encode(encoding)
    found, _refused = read_sources(tmp_path, make_zip(tmp_path / "a.zip", {"猫咪.png": png(1), "metadata.csv": table}))
    assert captions_of(found) == {"a.zip!猫咪.png": "一只可爱的猫坐在草地上"}


def test_paths_of_the_authors_machine_are_matched_by_name(tmp_path: Path) -> None:
    tags = {"1.png": "cat, red", "2": "dog", "3": "fox"}
    meta = {f"C:\\content\\train\\{name}": {"tags": of_image} for name, of_image in tags.items()}
    files = {"x/1.png": png(1), "x/2.png": png(2), "x/3.webp": encoded(noise(3), "WEBP")}
    found, refused = read_sources(
        tmp_path, filled(tmp_path / "root", {**files, "meta_cap.json": json.dumps(meta).encode()})
    )
    assert captions_of(found) == {"x/1.png": "cat, red", "x/2.png": "dog", "x/3.webp": "fox"}
    assert refused == []


def test_a_loose_table_can_label_the_images_in_an_archive(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"in/1.png": png(1), "in/2.png": png(2)})
    (tmp_path / "captions.csv").write_text("in/1.png,one\nin/2.png,two\n")
    found, refused = read_sources(tmp_path, path, tmp_path / "captions.csv")
    assert captions_of(found) == {"a.zip!in/1.png": "one", "a.zip!in/2.png": "two"}
    assert refused == []


def test_a_text_named_captions_is_a_sidecar_if_an_image_has_its_name(tmp_path: Path) -> None:
    found, refused = read_sources(
        tmp_path, make_zip(tmp_path / "a.zip", {"captions.png": png(1), "captions.txt": b"a cat"})
    )
    assert captions_of(found) == {"a.zip!captions.png": "a cat"}
    assert refused == []


def test_a_text_named_captions_is_a_table_if_no_image_has_its_name(tmp_path: Path) -> None:
    files = {"1.png": png(1), "captions.txt": b"1.png\ta cat\n"}
    found, refused = read_sources(tmp_path, make_zip(tmp_path / "a.zip", files))
    assert captions_of(found) == {"a.zip!1.png": "a cat"}
    assert refused == []


def test_the_caption_and_mask_beside_a_loose_image_are_read(tmp_path: Path) -> None:
    files = {"1.png": png(1), "1.txt": b"a cat", "1.mask.png": png(2), "2.txt": b"a dog"}
    root = filled(tmp_path / "root", files)
    found, refused = read_sources(tmp_path, root / "1.png")
    assert captions_of(found) == {"1.png": "a cat"}
    assert found[0].pixels is not None
    assert found[0].pixels.mask is not None
    assert refused == []


def test_kohya_folders_give_repeats_class_and_caption(tmp_path: Path) -> None:
    files = {
        "img/10_sks dog/1.png": png(1),
        "img/10_sks dog/near/2.png": png(2),
        "img/10_sks dog/3.png": png(3),
        "img/10_sks dog/3.txt": b"a dog asleep",
        "img/1_dog/4.png": png(4),
        "pets/2023_holiday/5.png": png(5),
        "img/1000_fox/6.png": png(6),
        "img/2000_owl/7.png": png(7),
    }
    found, refused = read_sources(tmp_path, make_zip(tmp_path / "a.zip", files))
    labels = [one.labels for one in found]
    assert [(one.repeats, one.class_name, one.caption.text if one.caption else "") for one in labels] == [
        (1, "dog", "dog"),
        (10, "sks dog", "sks dog"),
        (10, "sks dog", "a dog asleep"),
        (10, "sks dog", "sks dog"),
        (1000, "fox", "fox"),
        (2000, "owl", "owl"),
        (1, "pets", ""),
    ]
    assert set(caption_sources(found).values()) == {
        "a.zip!img/1_dog/",
        "a.zip!img/10_sks dog/",
        "a.zip!img/10_sks dog/3.txt",
        "a.zip!img/1000_fox/",
        "a.zip!img/2000_owl/",
    }
    assert refused == []


def test_the_input_folder_itself_can_be_a_kohya_folder(tmp_path: Path) -> None:
    found, _refused = read_sources(tmp_path, filled(tmp_path / "5_fox", {"1.png": png(1)}))
    assert (found[0].labels.repeats, found[0].labels.class_name) == (5, "fox")
    assert caption_sources(found) == {"1.png": "5_fox/"}


def test_an_unreadable_sidecar_is_not_hidden_by_the_folder_name(tmp_path: Path) -> None:
    files = {"5_fox/1.png": png(1), "5_fox/1.txt": b"\xff\xfeabc"}
    found, _refused = read_sources(tmp_path, filled(tmp_path / "root", files))
    caption = found[0].labels.caption
    assert caption is not None
    assert caption.problem


def test_an_image_folder_with_metadata_is_read(tmp_path: Path) -> None:
    files = {"train/cat/1.jpg": encoded(noise(1), "JPEG"), "test/dog/2.jpg": encoded(noise(2), "JPEG")}
    tables = {
        "train/metadata.jsonl": b'{"file_name": "cat/1.jpg", "text": "a cat"}',
        "test/metadata.jsonl": b'{"file_name": "dog/2.jpg", "text": "a dog"}',
    }
    found, refused = read_sources(tmp_path, filled(tmp_path / "root", {**files, **tables}))
    assert captions_of(found) == {"train/cat/1.jpg": "a cat", "test/dog/2.jpg": "a dog"}
    assert refused == []


FORMATS = {
    "a.tga": (bytes(18) + b"x" * 99, "TGA"),
    "b.jxl": (b"\xff\x0a" + bytes(60), "JPEG XL"),
    "c.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60), "JPEG 2000"),
    "d.ico": (b"\0\0\1\0" + bytes(60), "ICO"),
    "e.psd": (b"8BPS" + bytes(60), "Photoshop"),
    "f.png": (b"8BPS" + bytes(60), "Photoshop"),
    "g.nef": (encoded(noise(1), "TIFF"), "raw file of a camera"),
    "h.dng": (encoded(noise(2), "TIFF"), "raw file of a camera"),
    "i.exr": (b"\x76\x2f\x31\x01" + bytes(60), "OpenEXR"),
}


def test_images_of_other_formats_are_told_by_their_name(tmp_path: Path) -> None:
    found, refused = read_sources(tmp_path, make_zip(tmp_path / "a.zip", {n: data for n, (data, _) in FORMATS.items()}))
    assert refused == []
    for record, (_data, name) in zip(found, FORMATS.values(), strict=True):
        (finding,) = record.assessment.findings
        assert (finding.kind, finding.action) == (FindingKind.UNSUPPORTED, "dropped")
        assert name in finding.message


def test_unsupported_and_damaged_archives_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.rar").write_bytes(b"Rar!\x1a\x07\x01\x00" + bytes(50))
    (tmp_path / "b.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(50))
    (tmp_path / "c.parquet").write_bytes(b"PAR1" + bytes(50))
    _found, refused = read_sources(tmp_path, *sorted(tmp_path.glob("?.*")))
    assert {one.source: one.kind for one in refused} == {
        "a.rar": RefusalKind.UNSUPPORTED,
        "b.7z": RefusalKind.DAMAGED,
        "c.parquet": RefusalKind.UNSUPPORTED,
    }


def test_images_documents_and_weights_that_are_zips_are_not_opened_in_a_folder(tmp_path: Path) -> None:
    packed = make_zip(tmp_path / "x", {"mergedimage.png": png(1)}).read_bytes()
    names = ("paint.kra", "table.xlsx", "latents.npz", "model.pt")
    root = filled(tmp_path / "set", {"a.png": png(2), **dict.fromkeys(names, packed)})

    found, refused = read_sources(tmp_path, root)

    assert {record.source: record.pixels is not None for record in found} == {"a.png": True, "paint.kra": False}
    assert [(one.source, one.kind) for one in refused] == [("table.xlsx", RefusalKind.UNSUPPORTED)]
    assert "Excel" in refused[0].reason


def test_an_archive_under_the_name_of_a_photograph_is_opened(tmp_path: Path) -> None:
    packed = make_zip(tmp_path / "x", {"1.png": png(1)}).read_bytes()
    root = filled(tmp_path / "set", {"a.jpg": packed, "b.png": png(2)})

    found, refused = read_sources(tmp_path, root)

    assert [record.source for record in found if record.pixels] == ["a.jpg!1.png", "b.png"]
    assert refused == []


def test_nested_archives_of_every_format_are_reported_once(tmp_path: Path) -> None:
    inner = {
        "a.zip": make_zip(tmp_path / "a.zip", {"1.png": png(1)}).read_bytes(),
        "b.tar.xz": make_tar(tmp_path / "b.tar.xz", {"1.png": png(1)}).read_bytes(),
        "c.7z": make_7z(tmp_path / "c.7z", {"1.png": png(1)}).read_bytes(),
        "d.tar": make_tar(tmp_path / "d.tar", {"1.png": png(1)}).read_bytes(),
    }
    _found, refused = read_sources(tmp_path, make_tar(tmp_path / "outer.tar", inner))
    assert [(one.source, one.kind) for one in refused] == [("outer.tar!a.zip", RefusalKind.NESTED_ARCHIVE)]
    assert "3" in refused[0].reason


def test_a_heic_image_is_given_to_the_decoder(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(100))
    found, refused = read_sources(tmp_path, tmp_path / "a.heic")
    assert [finding.kind for finding in found[0].assessment.findings] == [FindingKind.CORRUPT]
    assert refused == []


def test_the_digest_covers_every_file_and_nothing_else(tmp_path: Path) -> None:
    root = filled(tmp_path / "root", {"1.png": png(1), "metadata.csv": b"file_name,text\n1.png,a\n"})
    digests = []
    for text in (b"file_name,text\n1.png,a\n", b"file_name,text\n1.png,b\n", b"file_name,text\n1.png,a\n"):
        (root / "metadata.csv").write_bytes(text)
        os.utime(root / "1.png")
        with Sources([root], Limits()) as opened:
            digests.append(opened.digest())
    assert digests[0] == digests[2] != digests[1]
