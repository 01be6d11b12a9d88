"""Images that a person cropped: what is stored, what stays as it was, and how a crop is taken back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PILImage
from pydantic import ValidationError

from tests.trainer.dataset.image_files import encoded, noise, png
from trainer.dataset.images.decoding import open_for_bucket
from trainer.dataset.input_files import Limits
from trainer.dataset.preparing.prepare import prepare
from trainer.protocol.edits import Crop, Edits
from trainer.protocol.report import DatasetReport, FindingKind

LEFT_HALF = Crop(right=0.5)


def folder_of(path: Path, count: int = 12, size: tuple[int, int] = (240, 192)) -> Path:
    path.mkdir()
    for number in range(count):
        (path / f"{number:02}.png").write_bytes(png(number, *size))
    return path


def key_of(report: DatasetReport, number: int) -> str:
    key = report.images[number - 1].pixels_sha256
    assert key is not None
    return key


def pixels(path: Path) -> NDArray[np.uint8]:
    with PILImage.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


def stored(out: Path, report: DatasetReport, number: int) -> NDArray[np.uint8]:
    path = report.images[number - 1].path
    assert path is not None
    return pixels(out / path)


def test_the_part_is_stored_and_all_else_stays(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "images")
    before = prepare([source], tmp_path / "one")
    edits = Edits(crops={key_of(before, 3): Crop(left=0.25, top=0.5, right=0.75, bottom=1.0)})
    after = prepare([source], tmp_path / "two", edits=edits, earlier=[tmp_path / "one"])

    image = after.images[2]
    assert (image.width, image.height) == (120, 96)
    assert np.array_equal(stored(tmp_path / "two", after, 3), pixels(source / "02.png")[96:192, 60:180])
    assert image.crop == edits.crops[key_of(before, 3)]
    assert image.uncropped is not None
    assert np.array_equal(pixels(tmp_path / "two" / image.uncropped), pixels(source / "02.png"))
    assert image.thumbnail is not None
    assert pixels(tmp_path / "two" / image.thumbnail).shape == (96, 120, 3)
    # The same image in the same split, and another dataset to train on.
    assert [(i.pixels_sha256, i.split, i.status) for i in after.images] == [
        (i.pixels_sha256, i.split, i.status) for i in before.images
    ]
    assert after.digest != before.digest
    # What is linked from the earlier revision is not changed.
    assert np.array_equal(stored(tmp_path / "one", before, 3), pixels(source / "02.png"))


def test_another_crop_is_of_the_whole_image_and_no_crop_is_as_before(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "images")
    before = prepare([source], tmp_path / "one")
    key = key_of(before, 1)
    prepare([source], tmp_path / "two", edits=Edits(crops={key: LEFT_HALF}), earlier=[tmp_path / "one"])
    right = Edits(crops={key: Crop(left=0.5)})
    third = prepare([source], tmp_path / "three", edits=right, earlier=[tmp_path / "two"])
    assert np.array_equal(stored(tmp_path / "three", third, 1), pixels(source / "00.png")[:, 120:])
    last = prepare([source], tmp_path / "four", earlier=[tmp_path / "three"])
    assert last.digest == before.digest
    assert np.array_equal(stored(tmp_path / "four", last, 1), pixels(source / "00.png"))
    assert last.images[0].thumbnail is not None
    assert pixels(tmp_path / "four" / last.images[0].thumbnail).shape == (154, 192, 3)


def test_a_mask_is_cropped_with_its_image(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "images")
    cut_out = noise(50, 240, 192).convert("RGBA")
    cut_out.putalpha(PILImage.new("L", (240, 192), 0))
    cut_out.paste(noise(50, 240, 192), (120, 0))
    (source / "00.png").write_bytes(encoded(cut_out, "PNG"))
    before = prepare([source], tmp_path / "one")
    key = key_of(before, 1)

    half = prepare([source], tmp_path / "two", edits=Edits(crops={key: Crop(left=0.25, right=0.75)}))
    mask = half.images[0].mask
    assert mask is not None
    assert pixels(tmp_path / "two" / mask)[0, :, 0].tolist() == [0] * 60 + [255] * 60

    outside = prepare([source], tmp_path / "three", edits=Edits(crops={key: LEFT_HALF}))
    assert outside.images[0].mask is None
    assert FindingKind.MASK in {finding.kind for finding in outside.images[0].findings}


def test_sizes_are_judged_by_what_the_crop_leaves(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "images")
    (source / "00.png").write_bytes(png(70, 900, 90))
    limits = Limits(min_side_px=32, max_aspect=4)
    before = prepare([source], tmp_path / "one", limits=limits)
    key = key_of(before, 1)
    assert FindingKind.EXTREME_ASPECT in {finding.kind for finding in before.images[0].findings}

    square = prepare([source], tmp_path / "two", limits=limits, edits=Edits(crops={key: Crop(right=0.1)}))
    assert FindingKind.EXTREME_ASPECT not in {finding.kind for finding in square.images[0].findings}
    small = prepare([source], tmp_path / "three", limits=limits, edits=Edits(crops={key: Crop(right=0.02)}))
    image = small.images[0]
    assert (image.status, image.crop) == ("dropped", None)
    assert [f.kind for f in image.findings if f.action == "dropped"] == [FindingKind.TOO_SMALL]


@pytest.mark.parametrize(("format_name", "suffix"), [("JPEG", ".jpg"), ("WEBP", ".webp")])
def test_a_lossy_image_is_cropped_with_hardly_a_loss(tmp_path: Path, format_name: str, suffix: str) -> None:
    source = folder_of(tmp_path / "images")
    photo = noise(80, 24, 24).resize((600, 480), PILImage.Resampling.BICUBIC)
    (source / "00.png").unlink()
    (source / f"00{suffix}").write_bytes(encoded(photo, format_name))
    before = prepare([source], tmp_path / "one")
    report = prepare([source], tmp_path / "two", edits=Edits(crops={key_of(before, 1): LEFT_HALF}))
    part = stored(tmp_path / "two", report, 1)
    assert part.shape == (480, 300, 3)
    assert np.abs(part.astype(int) - pixels(source / f"00{suffix}")[:, :300]).mean() < 2
    path = report.images[0].path
    assert path is not None
    assert path.endswith(suffix)
    assert open_for_bucket(tmp_path / "two", path, (300, 480)).size == (300, 480)


def test_a_part_of_a_large_image_is_stored_no_larger_than_a_whole_one(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "images")
    photo = noise(80, 40, 30).resize((1600, 1200), PILImage.Resampling.BICUBIC)
    (source / "00.png").unlink()
    (source / "00.jpg").write_bytes(encoded(photo, "JPEG"))
    limits = Limits(max_stored_pixels=400 * 300)
    before = prepare([source], tmp_path / "one", limits=limits)
    report = prepare(
        [source], tmp_path / "two", limits=limits, edits=Edits(crops={key_of(before, 1): Crop(bottom=0.5)})
    )
    assert (report.images[0].width, report.images[0].height) == (1600, 600)
    height, width, _colors = stored(tmp_path / "two", report, 1).shape
    assert width * height <= 400 * 300 * 1.01
    assert width / height == pytest.approx(1600 / 600, rel=0.02)


@pytest.mark.parametrize(
    "sides",
    [{"left": 0.5, "right": 0.5}, {"top": 0.7, "bottom": 0.2}, {"left": -0.1}, {"right": 1.1}, {"left": float("nan")}],
)
def test_a_crop_leaves_a_part_within_the_image(sides: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Crop.model_validate(sides)
