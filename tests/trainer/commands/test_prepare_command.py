"""`python -m trainer prepare` and `preview` as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.golden import check_sentences
from tests.trainer.conftest import draw_images
from trainer.__main__ import main
from trainer.exchange.dataset_dir import read_progress, read_report
from trainer.protocol.events import EXIT_REFUSED
from trainer.protocol.progress import PreparePhase
from trainer.protocol.report import DatasetReport


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw_images(tmp_path / "images")


def prepared(images: Path, *options: str) -> DatasetReport:
    out = images.parent / "out"
    assert main(["prepare", str(images), "--out", str(out), "--resolution", "64", *options]) == 0
    return read_report(out)


def refused(capsys: pytest.CaptureFixture[str], images: Path, *options: str) -> str:
    assert main(["prepare", str(images), "--out", str(images.parent / "out"), *options]) == EXIT_REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    return line.replace(str(images.parent), "FOLDER")


def dropped(report: DatasetReport) -> list[int]:
    return [number for number, image in enumerate(report.images, start=1) if image.status == "dropped"]


def test_images_dropped_by_number_stay_dropped_until_undecided(images: Path) -> None:
    prepared(images)
    assert dropped(prepared(images, "--drop", "3,5")) == [3, 5]
    assert dropped(prepared(images)) == [3, 5]
    assert dropped(prepared(images, "--drop", "1", "--undecide", "5")) == [1, 3]


def test_captions_are_edited_by_rule(images: Path) -> None:
    report = prepared(images, "--trigger", "zkz", "--suffix", ", on paper", "--replace", "egg=stone")
    assert report.images[0].caption == "zkz, a red stone, on paper"
    assert report.captions is not None
    assert (report.captions.trigger, report.captions.with_trigger) == ("zkz", 12)
    # A rule that is not named stays; an empty one is removed.
    assert prepared(images, "--trigger", "").images[0].caption == "a red stone, on paper"


def test_invalid_numbers_limits_and_shares_are_refused_in_one_line(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentences = {"before the first preparation": refused(capsys, images, "--drop", "3")}
    prepared(images)
    capsys.readouterr()
    for options in (
        "--drop 99",
        "--limit max_pixel=3",
        "--limit max_pixels=many",
        "--validation 0.9 --test 0.2",
        "--edits nowhere.json",
    ):
        sentences[options] = refused(capsys, images, *options.split())
    check_sentences(Path(__file__).parent / "golden" / "refused_prepare_options.txt", sentences)


def test_limits_and_background_reach_the_decoder(images: Path) -> None:
    report = prepared(images, "--limit", "min_side_px=100", "--background", "#102030")
    assert dropped(report) == [1, 4, 7, 10]


def test_without_a_terminal_there_is_no_bar_and_the_summary_is_on_stdout(images: Path) -> None:
    command = [sys.executable, "-m", "trainer", "prepare", str(images), "--out", str(images.parent / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith("12 images: 12 kept")


def test_the_progress_is_written_for_another_process(images: Path) -> None:
    file = images.parent / "progress.json"
    prepared(images, "--progress", str(file))

    progress = read_progress(file)

    # The last phase; each begins with a line, however short it is.
    assert progress is not None
    assert (progress.phase, progress.total) == (PreparePhase.DRAWING, 1)
    # What cannot be written does not end the work.
    prepared(images, "--progress", str(images / "no" / "such" / "folder"))


def test_a_preview_of_augmentation_is_drawn(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(images)
    out, sheet = images.parent / "out", images.parent / "sheet.png"
    assert main(["preview", str(out), "--preset", "photo", "--variants", "2", "--out", str(sheet)]) == 0
    with Image.open(sheet) as drawn:
        assert drawn.width > drawn.height / 4
    capsys.readouterr()
    assert main(["preview", str(images), "--out", str(sheet)]) == EXIT_REFUSED
    assert str(images) in capsys.readouterr().err
