"""`prepare` makes a complete dataset folder, or raises one error with the reason."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from tests.trainer.dataset.edited_images import burst_frame, photograph
from tests.trainer.dataset.image_files import encoded, make_link, make_zip, noise, patch_directory, png
from trainer.dataset.input_files import Limits
from trainer.dataset.preparing import prepare as prepare_module
from trainer.dataset.preparing.prepare import prepare
from trainer.errors import DatasetError
from trainer.exchange.dataset_dir import read_report
from trainer.protocol.report import DatasetReport, FindingKind, RefusalKind, Split

TEXT = b"a colored blur"


def kinds(report: DatasetReport, source: str) -> list[tuple[FindingKind, str]]:
    """The findings of an image, without blur: the images of these tests are soft."""
    (image,) = [image for image in report.images if image.source == source]
    return [(finding.kind, finding.action) for finding in image.findings if finding.kind is not FindingKind.BLUR]


def images(count: int) -> dict[str, bytes]:
    return {f"{number}.png": png(number) for number in range(1, count + 1)}


def test_a_zip_becomes_a_dataset_folder(tmp_path: Path) -> None:
    members = {**images(10), "1.txt": TEXT, "2.TXT": b"\xff\xfe" + "zwei".encode("utf-16-le"), "3.caption": b" \r\n"}
    report = prepare([make_zip(tmp_path / "a.zip", members)], tmp_path / "out", resolutions=(64,))
    assert report == read_report(tmp_path / "out")
    assert [image.source for image in report.images] == [f"a.zip!{number}.png" for number in range(1, 11)]
    assert [image.caption for image in report.images[:3]] == ["a colored blur", "zwei", ""]
    assert report.images[1].caption_source == "a.zip!2.TXT"
    assert kinds(report, "a.zip!1.png") == []
    assert kinds(report, "a.zip!3.png") == [(FindingKind.CAPTION_EMPTY, "kept")]
    assert kinds(report, "a.zip!4.png") == [(FindingKind.CAPTION_MISSING, "kept")]
    counts = report.counts
    assert (counts.kept, counts.train, counts.validation, counts.test, counts.captioned) == (10, 7, 2, 1, 2)
    assert sum(images for images, _cropped in report.fit(64).buckets.values()) == 10
    for image in report.images:
        assert image.path is not None
        with Image.open(tmp_path / "out" / image.path) as stored:
            assert (stored.mode, stored.size) == ("RGB", (image.width, image.height))
    names = ["decoded.jsonl", "dropped", "edits.json", "images", "report.json", "thumbnails"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out"]


def test_each_bad_image_is_a_finding_and_the_others_are_prepared(tmp_path: Path) -> None:
    members = {
        **images(4),
        "broken.jpg": encoded(noise(20), "JPEG")[:900],
        "garbage.png": b"not an image",
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
    report = prepare([make_zip(tmp_path / "a.zip", members)], tmp_path / "out", resolutions=(64,))

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
    # Dropped images are set aside; identical files are stored once.
    assert len(list((tmp_path / "out" / "dropped").iterdir())) == 3


def test_hostile_entries_are_refused_and_the_others_are_prepared(tmp_path: Path) -> None:
    inner = make_zip(tmp_path / "inner.zip", images(2)).read_bytes()
    members = {
        "locked.png": png(9),
        **images(3),
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
        "a.zip!lonely.txt": RefusalKind.WITHOUT_IMAGE,
        "a.zip!notes.pdf": RefusalKind.UNSUPPORTED,
    }
    assert report.counts.kept == 3
    assert not list(tmp_path.rglob("up.png"))


def test_folders_zips_and_loose_files_are_combined(tmp_path: Path) -> None:
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
        "cats/Tom.PNG": "a colored blur",
        "loose.jpg": "beside",
        "more.zip!cats/x.png": "",
        "elsewhere/more.zip!cats/x.png": "",
        "猫咪.png": "",
    }
    assert [(entry.source, entry.kind) for entry in report.refused] == [("link.png", RefusalKind.LINK)]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.zip", b"not an archive"),
        ("a.zip", b""),
        ("a.7z", b"7z\xbc\xaf\x27\x1c" + bytes(50)),
        ("a.zip", b"PK\x03\x04" + bytes(50)),
        ("a.png", b"not an image"),
    ],
)
def test_a_file_that_is_not_a_dataset_is_an_error(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError) as caught:
        prepare([tmp_path / name], tmp_path / "out")
    assert name in caught.value.message
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "members",
    [{}, {"readme.md": b"hello"}, {"a.pdf": b"%PDF", "b.txt": TEXT}, {"a.png": b"x", "b.png": png(1, 20, 20)}],
    ids=["empty", "one refused", "all refused", "all dropped"],
)
def test_a_zip_without_usable_images_is_an_error(tmp_path: Path, members: dict[str, bytes]) -> None:
    with pytest.raises(DatasetError, match=r"a\.zip"):
        prepare([make_zip(tmp_path / "a.zip", members)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_source_and_an_occupied_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere\.zip"):
        prepare([tmp_path / "nowhere.zip"], tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DatasetError, match="mine"):
        prepare([make_zip(tmp_path / "a.zip", images(3))], tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_only_other_input_is_prepared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = make_zip(tmp_path / "a.zip", images(3)), tmp_path / "out"
    first = prepare([path], out)
    with monkeypatch.context() as patched:
        patched.setattr(prepare_module, "read_images", lambda *_: pytest.fail("prepared again"))
        assert prepare([path], out) == first
    make_zip(path, images(4))
    assert prepare([path], out).counts.kept == 4
    (out / "images" / "0001.png").unlink()
    prepare([path], out)
    assert (out / "images" / "0001.png").is_file()


def test_near_duplicates_are_kept_in_one_group_and_split(tmp_path: Path) -> None:
    members = images(12) | {f"{number}_again.jpg": encoded(noise(number), "JPEG") for number in range(1, 7)}
    report = prepare([make_zip(tmp_path / "a.zip", members)], tmp_path / "out")
    by_source = {image.source.removeprefix("a.zip!"): image for image in report.images}
    for number in range(1, 7):
        one, other = by_source[f"{number}.png"], by_source[f"{number}_again.jpg"]
        assert (one.group, one.split) == (other.group, other.split)
        assert (FindingKind.NEAR_DUPLICATE, "kept") in kinds(report, other.source)
    assert len({image.group for image in report.images}) == 12


@pytest.mark.parametrize("seconds", [1, 30])
def test_frames_that_differ_much_share_a_group_if_they_were_taken_within_seconds(tmp_path: Path, seconds: int) -> None:
    frame = later = photograph(3)
    for seed in range(1, 7):
        later = burst_frame(later, seed)

    def taken(image: Image.Image, second: int) -> bytes:
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.Exif)[0x9003] = f"2026:05:01 12:00:{second:02}"
        return encoded(image, "JPEG", exif=exif.tobytes())

    members = {"first.jpg": taken(frame, 0), "other.jpg": taken(later, seconds)}
    report = prepare([make_zip(tmp_path / "a.zip", members)], tmp_path / "out")
    assert len({image.group for image in report.images}) == (1 if seconds == 1 else 2)


def test_two_images_both_train(tmp_path: Path) -> None:
    report = prepare([make_zip(tmp_path / "a.zip", images(2))], tmp_path / "out")
    assert [image.split for image in report.images] == [Split.TRAIN, Split.TRAIN]


def test_a_report_tells_about_each_base_and_holds_for_any(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {**images(3), "1.txt": TEXT})
    report = prepare([path], tmp_path / "any")
    assert (report.resolutions, kinds(report, "a.zip!1.png")) == ((512, 768, 1024), [])
    assert "enlarged: 3 at 512 px, 3 at 768 px, 3 at 1024 px" in report.summary
    assert [report.fit(side).enlarged for side in (64, 512)] == [0, 3]
    small = prepare([path], tmp_path / "small", resolutions=(64,))
    assert "enlarged" not in small.summary
    # The data is the same: a training on it is.
    assert small.digest == report.digest


def test_progress_and_sheets_are_called(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []

    def draw(report: DatasetReport, thumbnails: Mapping[int, Path], folder: Path) -> Sequence[Path]:
        assert sorted(thumbnails) == [1, 2, 3]
        (folder / "kept-1.png").write_bytes(thumbnails[1].read_bytes())
        return [folder / "kept-1.png"]

    path = make_zip(tmp_path / "a.zip", images(3))
    report = prepare([path], tmp_path / "out", draw_sheets=draw, progress=lambda *call: calls.append(call))
    assert report.sheets == ("sheets/kept-1.png",)
    assert (tmp_path / "out" / report.sheets[0]).is_file()
    assert ("reading", 3, 3) in calls
    assert calls[-1] == ("drawing", 1, 1)


def test_a_decoder_that_runs_out_of_memory_costs_only_its_image(tmp_path: Path) -> None:
    members = {**images(3), "large.png": encoded(Image.new("RGBA", (9000, 9000)), compress_level=1)}
    limits = Limits(memory_bytes=1024 * 2**20)
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


@pytest.mark.slow
def test_a_kill_leaves_no_partial_dataset_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    path, out, script = make_zip(tmp_path / "a.zip", images(3)), tmp_path / "sets" / "out", tmp_path / "run.py"
    script.write_text(KILLED_WHILE_DRAWING)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    with subprocess.Popen([sys.executable, script, path, out], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"drawing\n"
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    assert len(list(out.parent.iterdir())) == 1
    prepare([path], out)
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]


def test_prepare_imports_no_slow_library() -> None:
    slow = ["torch", "matplotlib", "scipy", "imgaug", "sklearn", "datasets", "pyarrow", "transformers", "py7zr"]
    code = (
        "import sys, json, trainer.dataset.preparing.prepare; "
        f"print(json.dumps([m for m in {slow} if m in sys.modules]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, cwd=Path(__file__).parents[4]
    )
    assert json.loads(result.stdout) == []
