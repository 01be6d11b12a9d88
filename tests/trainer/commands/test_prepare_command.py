"""`python -m trainer prepare` as a person types it: decisions by number hold until they are changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.trainer.conftest import draw_pictures
from trainer.__main__ import main
from trainer.protocol.events import EXIT_REFUSED
from trainer.protocol.report import DatasetReport, read_report


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return draw_pictures(tmp_path / "pictures")


def prepared(pictures: Path, *options: str) -> DatasetReport:
    out = pictures.parent / "out"
    assert main(["prepare", str(pictures), "--out", str(out), "--resolution", "64", *options]) == 0
    return read_report(out)


def refused(capsys: pytest.CaptureFixture[str], pictures: Path, *options: str) -> str:
    assert main(["prepare", str(pictures), "--out", str(pictures.parent / "out"), *options]) == EXIT_REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    return line


def dropped(report: DatasetReport) -> list[int]:
    return [number for number, image in enumerate(report.images, start=1) if image.status == "dropped"]


def test_what_is_dropped_by_number_stays_dropped_until_undecided(pictures: Path) -> None:
    prepared(pictures)
    assert dropped(prepared(pictures, "--drop", "3,5")) == [3, 5]
    assert dropped(prepared(pictures)) == [3, 5]
    assert dropped(prepared(pictures, "--drop", "1", "--undecide", "5")) == [1, 3]


def test_captions_are_edited_by_rule(pictures: Path) -> None:
    report = prepared(pictures, "--trigger", "zkz", "--suffix", ", on paper", "--replace", "egg=stone")
    assert report.images[0].caption == "zkz, a red stone, on paper"
    assert report.captions is not None
    assert (report.captions.trigger, report.captions.with_trigger) == ("zkz", 12)
    # What is not named stays; an empty word takes a rule away.
    assert prepared(pictures, "--trigger", "").images[0].caption == "a red stone, on paper"


def test_numbers_limits_and_shares_that_make_no_sense_are_refused_in_one_line(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "have no numbers yet" in refused(capsys, pictures, "--drop", "3")
    prepared(pictures)
    capsys.readouterr()
    assert "--drop 99: there is no such picture" in refused(capsys, pictures, "--drop", "99")
    assert "there is no limit 'max_pixel'" in refused(capsys, pictures, "--limit", "max_pixel=3")
    assert "'many' is not a number" in refused(capsys, pictures, "--limit", "max_pixels=many")
    assert "must leave something to train on" in refused(capsys, pictures, "--validation", "0.9", "--test", "0.2")
    assert "cannot be read" in refused(capsys, pictures, "--edits", "nowhere.json")


def test_limits_and_background_reach_the_decoder(pictures: Path) -> None:
    report = prepared(pictures, "--limit", "min_side_px=100", "--background", "#102030")
    assert dropped(report) == [1, 4, 7, 10]


def test_the_bar_is_for_terminals_and_the_summary_for_stdout(pictures: Path) -> None:
    command = [sys.executable, "-m", "trainer", "prepare", str(pictures), "--out", str(pictures.parent / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith("12 images: 12 kept")


def test_a_preview_of_augmentation_is_drawn_before_anything_is_trained(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(pictures)
    out, sheet = pictures.parent / "out", pictures.parent / "sheet.png"
    assert main(["preview", str(out), "--preset", "photo", "--variants", "2", "--out", str(sheet)]) == 0
    with Image.open(sheet) as drawn:
        assert drawn.width > drawn.height / 4
    capsys.readouterr()
    assert main(["preview", str(pictures), "--out", str(sheet)]) == EXIT_REFUSED
    assert "is not a prepared dataset" in capsys.readouterr().err
