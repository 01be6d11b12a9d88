"""Whatever is handed in, `prepare` makes a whole dataset folder or says in one sentence why not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from tests.trainer.dataset.making import encoded, make_link, make_zip, noise, patch_directory, png
from trainer.dataset.limits import Limits
from trainer.dataset.preparing import prepare as prepare_module
from trainer.dataset.preparing.prepare import prepare
from trainer.errors import DatasetError
from trainer.protocol.report import DatasetReport, FindingKind, RefusalKind, Split, read_report

TEXT = b"a coloured blur"


def kinds(report: DatasetReport, source: str) -> list[tuple[FindingKind, str]]:
    """What was found in a picture; that the test's pictures are soft is left out."""
    (image,) = [image for image in report.images if image.source == source]
    return [(finding.kind, finding.action) for finding in image.findings if finding.kind is not FindingKind.BLUR]


def pictures(count: int) -> dict[str, bytes]:
    return {f"{number}.png": png(number) for number in range(1, count + 1)}


def test_a_zip_becomes_a_dataset_folder(tmp_path: Path) -> None:
    members = {**pictures(10), "1.txt": TEXT, "2.TXT": b"\xff\xfe" + "zwei".encode("utf-16-le"), "3.caption": b" \r\n"}
    report = prepare([make_zip(tmp_path / "a.zip", members)], tmp_path / "out", resolution=64)
    assert report == read_report(tmp_path / "out")
    assert [image.source for image in report.images] == [f"a.zip!{number}.png" for number in range(1, 11)]
    assert [image.caption for image in report.images[:3]] == ["a coloured blur", "zwei", ""]
    assert report.images[1].caption_source == "a.zip!2.TXT"
    assert kinds(report, "a.zip!1.png") == []
    assert kinds(report, "a.zip!3.png") == [(FindingKind.CAPTION_EMPTY, "kept")]
    assert kinds(report, "a.zip!4.png") == [(FindingKind.CAPTION_MISSING, "kept")]
    counts = report.counts
    assert (counts.kept, counts.train, counts.validation, counts.test, counts.captioned) == (10, 7, 2, 1, 2)
    assert sum(bucket.images for bucket in report.buckets) == 10
    assert report.summary.startswith(
        "10 images: 10 kept (10 to look at: 10 perhaps blurred); split 7/2/1 (train/validation/test). 7 without"
    )
    for image in report.images:
        assert image.path is not None
        with Image.open(tmp_path / "out" / image.path) as stored:
            assert (stored.mode, stored.size) == ("RGB", (image.width, image.height))
    names = ["decoded.jsonl", "dropped", "edits.json", "images", "report.json", "thumbnails"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out"]


def test_every_bad_picture_is_one_finding_and_the_rest_goes_on(tmp_path: Path) -> None:
    members = {
        **pictures(4),
        "broken.jpg": encoded(noise(20), "JPEG")[:900],
        "garbage.png": b"no picture",
        "empty.png": b"",
        "phone.heic": b"\0\0\0\x18ftypheic" + bytes(50),
        "drawing.psd": b"8BPS" + bytes(50),
        "tiny.png": png(21, 40, 40),
        "thin.png": png(22, 800, 100),
        "wide.png": png(23, 800, 160),
        "moving.gif": encoded(noise(24), "GIF", save_all=True, append_images=[noise(25)]),
        "wrong_name.png": encoded(noise(26), "JPEG"),
        "nameless": png(27),
        "copy.bmp": encoded(noise(2), "BMP"),
        "twin.png": png(3),
    }
    report = prepare([make_zip(tmp_path / "a.zip", members)], tmp_path / "out", resolution=64)

    def drops(name: str) -> list[FindingKind]:
        return [kind for kind, action in kinds(report, f"a.zip!{name}") if action == "dropped"]

    assert drops("broken.jpg") == drops("garbage.png") == drops("empty.png") == [FindingKind.CORRUPT]
    assert drops("phone.heic") == [FindingKind.CORRUPT]
    assert drops("drawing.psd") == [FindingKind.UNSUPPORTED]
    assert drops("tiny.png") == [FindingKind.TOO_SMALL]
    assert drops("thin.png") == [FindingKind.EXTREME_ASPECT]
    assert (FindingKind.EXTREME_ASPECT, "kept") in kinds(report, "a.zip!wide.png")
    assert (FindingKind.UNSUPPORTED, "kept") in kinds(report, "a.zip!moving.gif")
    assert drops("wrong_name.png") == drops("nameless") == []
    assert drops("copy.bmp") == drops("twin.png") == [FindingKind.EXACT_DUPLICATE]
    by_source = {image.source: image for image in report.images}
    copy, first = by_source["a.zip!copy.bmp"], by_source["a.zip!2.png"]
    assert copy.findings[-1].other == first.source
    assert (copy.group, copy.pixels_sha256) == (first.group, first.pixels_sha256)
    assert copy.split is None
    assert copy.path is None
    stored = {path.name for path in (tmp_path / "out" / "images").iterdir()}
    assert stored == {Path(image.path).name for image in report.images if image.path}
    # What can be decoded lies aside, should somebody want it back: two that are equal byte for byte lie there once.
    assert len(list((tmp_path / "out" / "dropped").iterdir())) == 3


def test_hostile_entries_are_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    inner = make_zip(tmp_path / "inner.zip", pictures(2)).read_bytes()
    members = {
        "locked.png": png(9),
        **pictures(3),
        "../up.png": png(10),
        "inner.zip": inner,
        "notes.pdf": b"%PDF-1.4",
        "lonely.txt": TEXT,
        "__MACOSX/._1.png": b"x",
    }
    path = make_zip(tmp_path / "a.zip", members)
    patch_directory(path, 8, b"\x01\x00")
    make_link(path, "link.png", "/etc/passwd")
    report = prepare([path], tmp_path / "out")
    assert {entry.source: entry.kind for entry in report.refused} == {
        "a.zip!../up.png": RefusalKind.UNSAFE_PATH,
        "a.zip!inner.zip": RefusalKind.NESTED_ARCHIVE,
        "a.zip!link.png": RefusalKind.LINK,
        "a.zip!locked.png": RefusalKind.ENCRYPTED,
        "a.zip!lonely.txt": RefusalKind.UNSUPPORTED,
        "a.zip!notes.pdf": RefusalKind.UNSUPPORTED,
    }
    assert report.counts.kept == 3
    assert not list(tmp_path.rglob("up.png"))


def test_folders_zips_and_loose_files_go_together(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "cats").mkdir(parents=True)
    (folder / "cats" / "Tom.PNG").write_bytes(png(1))
    (folder / "cats" / "tom.txt").write_bytes(TEXT)
    (tmp_path / "elsewhere").mkdir()
    other = make_zip(tmp_path / "elsewhere" / "more.zip", {"cats/x.png": png(2)})
    (folder / "more.zip").write_bytes(other.read_bytes())
    (folder / "link.png").symlink_to(folder / "cats" / "Tom.PNG")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / os.fsdecode("猫咪.png".encode("gbk"))).write_bytes(png(3))
    loose = tmp_path / "loose.jpg"
    loose.write_bytes(encoded(noise(4), "JPEG"))
    loose.with_suffix(".txt").write_bytes(b"beside")
    report = prepare([folder, other, loose, loose.with_suffix(".txt")], tmp_path / "out")
    assert {image.source: image.caption for image in report.images} == {
        "cats/Tom.PNG": "a coloured blur",
        "loose.jpg": "beside",
        "more.zip!cats/x.png": "",
        "elsewhere/more.zip!cats/x.png": "",
        "猫咪.png": "",
    }
    assert [(entry.source, entry.kind) for entry in report.refused] == [("link.png", RefusalKind.LINK)]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.zip", b"no archive at all", "a.zip was refused: it is neither a picture, nor an archive"),
        ("a.zip", b"", "a.zip was refused: it is empty (0 bytes)"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c" + bytes(50), "a.7z was refused: it is damaged"),
        ("a.zip", b"PK\x03\x04" + bytes(50), "a.zip was refused: it is cut short"),
        ("a.png", b"no picture", "a.png holds one picture, and it cannot be used"),
    ],
)
def test_what_is_no_dataset_is_refused_in_one_sentence(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError) as caught:
        prepare([tmp_path / name], tmp_path / "out")
    assert says in caught.value.message
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({}, "a.zip is empty: it holds no pictures."),
        ({"readme.md": b"hello"}, "a.zip!readme.md was refused: it is neither a picture nor a caption."),
        ({"a.pdf": b"%PDF", "b.txt": TEXT}, "a.zip holds no picture that can be opened; 2 files were refused"),
        (
            {"a.png": b"x", "b.png": png(1, 20, 20)},
            "a.zip holds 2 pictures, and none of them can be used: 1 corrupt, 1 too",
        ),
    ],
)
def test_a_zip_without_usable_pictures_is_refused(tmp_path: Path, members: dict[str, bytes], says: str) -> None:
    with pytest.raises(DatasetError) as caught:
        prepare([make_zip(tmp_path / "a.zip", members)], tmp_path / "out")
    assert caught.value.message.startswith(says)


def test_a_missing_source_and_an_occupied_out_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="There is no file"):
        prepare([tmp_path / "nowhere.zip"], tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DatasetError, match="is not replaced"):
        prepare([make_zip(tmp_path / "a.zip", pictures(3))], tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_the_same_input_is_a_look_up_and_other_input_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = make_zip(tmp_path / "a.zip", pictures(3)), tmp_path / "out"
    first = prepare([path], out)
    with monkeypatch.context() as patched:
        patched.setattr(prepare_module, "take_in", lambda *_: pytest.fail("prepared again"))
        assert prepare([path], out) == first
    make_zip(path, pictures(4))
    assert prepare([path], out).counts.kept == 4
    (out / "images" / "0001.png").unlink()
    prepare([path], out)
    assert (out / "images" / "0001.png").is_file()


def test_near_duplicates_are_kept_in_one_group_and_split(tmp_path: Path) -> None:
    members = pictures(12) | {f"{number}_again.jpg": encoded(noise(number), "JPEG") for number in range(1, 7)}
    report = prepare([make_zip(tmp_path / "a.zip", members)], tmp_path / "out")
    by_source = {image.source.removeprefix("a.zip!"): image for image in report.images}
    for number in range(1, 7):
        one, other = by_source[f"{number}.png"], by_source[f"{number}_again.jpg"]
        assert (one.group, one.split) == (other.group, other.split)
        assert (FindingKind.NEAR_DUPLICATE, "kept") in kinds(report, other.source)
    assert "12 are near duplicates of one another (6 groups" in report.summary


def test_two_pictures_all_train_and_the_summary_says_so(tmp_path: Path) -> None:
    report = prepare([make_zip(tmp_path / "a.zip", pictures(2))], tmp_path / "out")
    assert [image.split for image in report.images] == [Split.TRAIN, Split.TRAIN]
    assert "nothing to validate on" in report.summary


def test_upscaling_is_a_warning_that_depends_on_the_resolution(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {**pictures(3), "1.txt": TEXT})
    assert kinds(prepare([path], tmp_path / "small", resolution=64), "a.zip!1.png") == []
    large = prepare([path], tmp_path / "large", resolution=512)
    assert kinds(large, "a.zip!1.png") == [(FindingKind.UPSCALED, "kept")]
    assert "3 are smaller than 512 px" in large.summary


def test_progress_and_sheets_are_called(tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []

    def draw(report: DatasetReport, thumbnails: Mapping[int, Path], folder: Path) -> Sequence[Path]:
        assert sorted(thumbnails) == [1, 2, 3]
        (folder / "kept-1.png").write_bytes(thumbnails[1].read_bytes())
        return [folder / "kept-1.png"]

    path = make_zip(tmp_path / "a.zip", pictures(3))
    report = prepare([path], tmp_path / "out", draw_sheets=draw, progress=lambda *what: said.append(what))
    assert report.sheets == ("sheets/kept-1.png",)
    assert (tmp_path / "out" / report.sheets[0]).is_file()
    assert ("reading", 3, 3) in said
    assert said[-1] == ("drawing", 1, 1)


def test_a_decoder_that_runs_out_of_memory_costs_only_its_picture(tmp_path: Path) -> None:
    members = {**pictures(3), "large.png": encoded(Image.new("RGB", (9000, 9000)), compress_level=1)}
    limits = Limits(worker_memory_bytes=600 * 2**20)
    report = prepare([make_zip(tmp_path / "a.zip", members)], tmp_path / "out", limits=limits)
    assert kinds(report, "a.zip!large.png")[0] == (FindingKind.TOO_MANY_PIXELS, "dropped")
    assert report.counts.kept == 3


KILLED_WHILE_DRAWING = """
import sys, time
from pathlib import Path
from trainer.dataset.preparing.prepare import prepare

def draw(report, thumbnails, folder):
    print("drawing", flush=True)
    time.sleep(60)
    return []

if __name__ == "__main__":
    prepare([Path(sys.argv[1])], Path(sys.argv[2]), draw_sheets=draw)
"""


def test_a_kill_in_the_middle_leaves_no_half_dataset_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    path, out, script = make_zip(tmp_path / "a.zip", pictures(3)), tmp_path / "sets" / "out", tmp_path / "run.py"
    script.write_text(KILLED_WHILE_DRAWING)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen([sys.executable, script, path, out], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"drawing\n"
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    assert len(list(out.parent.iterdir())) == 1
    prepare([path], out)
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]


def test_it_imports_no_torch_and_is_fast_to_start() -> None:
    slow = ["torch", "matplotlib", "scipy", "imgaug", "sklearn", "datasets", "pyarrow", "transformers", "py7zr"]
    code = (
        "import sys, json, trainer.dataset.preparing.prepare; "
        f"print(json.dumps([m for m in {slow} if m in sys.modules]))"
    )
    began = time.monotonic()
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=Path(__file__).parents[3])
    assert json.loads(said.stdout) == []
    assert time.monotonic() - began < 20
