"""Blur and exposure are noticed where they are, and nowhere else; nothing is dropped for them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.trainer.dataset import defects
from trainer.dataset.images.quality import Quality, findings_of, measure
from trainer.protocol.report import Finding, FindingKind


def found(image: Image.Image) -> list[Finding]:
    return findings_of(measure(np.asarray(image)))


def kinds(image: Image.Image) -> list[FindingKind]:
    return [finding.kind for finding in found(image)]


@pytest.mark.parametrize("sigma_px", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_blurred_picture_is_said_to_be_perhaps_blurred_and_is_kept(seed: int, sigma_px: float) -> None:
    (finding,) = found(defects.blurred(defects.scene(seed), sigma_px))
    assert finding.kind is FindingKind.BLUR
    assert finding.action == "kept"
    assert finding.measure is not None
    assert finding.threshold is not None
    assert finding.measure > finding.threshold
    assert finding.message.startswith("may be blurred")


def test_the_measure_of_blur_grows_with_the_blur_and_is_near_it() -> None:
    measured = [measure(np.asarray(defects.blurred(defects.scene(4), sigma))).blur_p10 for sigma in (0.8, 1.5, 2.5)]
    assert all(width is not None for width in measured)
    assert measured == sorted(measured, key=lambda width: width or 0.0)
    assert measured[2] == pytest.approx(2.0, abs=0.5)


def test_a_moved_camera_is_noticed_by_one_direction() -> None:
    picture = defects.moved(defects.scene(0), 21)
    quality = measure(np.asarray(picture))
    assert quality.blur_p10 is not None
    assert quality.blur_p10 < 1.0
    (finding,) = findings_of(quality)
    assert finding.kind is FindingKind.BLUR
    assert "movement" in finding.message


@pytest.mark.parametrize(
    "picture",
    [
        pytest.param(defects.scene(3), id="a sharp scene"),
        pytest.param(defects.portrait(defects.scene(3)), id="a portrait before a blurred background"),
        pytest.param(defects.sky(), id="a clear sky"),
        pytest.param(defects.drawing(0), id="a flat drawing"),
        pytest.param(defects.pixel_art(), id="pixel art, enlarged"),
        pytest.param(defects.pixel_art(1, 32, 2), id="pixel art, small"),
    ],
)
def test_nothing_is_said_of_a_good_picture(picture: Image.Image) -> None:
    assert found(picture) == []


def test_a_sky_has_too_few_edges_to_judge_its_blur() -> None:
    quality = measure(np.asarray(defects.sky()))
    assert quality.edges < 60
    assert quality.blur_p10 is None
    assert quality.blur_worst_direction is None


def test_a_large_picture_is_judged_as_the_model_will_see_it() -> None:
    large = defects.scene(0).resize((2560, 2048), Image.Resampling.NEAREST)
    soft = defects.blurred(large, 3.0)
    assert kinds(soft) == []
    assert kinds(soft.crop((960, 768, 1600, 1280))) == [FindingKind.BLUR]


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (35, 30, 47)])
def test_one_flat_colour_is_blank_and_still_kept(colour: tuple[int, int, int]) -> None:
    (finding,) = found(Image.new("RGB", (300, 200), colour))
    assert finding.kind is FindingKind.BLANK
    assert finding.action == "kept"
    assert "nothing in it to learn" in finding.message


def test_a_thin_line_on_white_is_nearly_blank_but_not_nothing() -> None:
    picture = Image.new("RGB", (400, 400), "white")
    ImageDraw.Draw(picture).line((50, 200, 350, 200), fill="black", width=3)
    (finding,) = found(picture)
    assert finding.kind is FindingKind.BLANK
    assert "nearly all" in finding.message


@pytest.mark.parametrize(
    ("gain", "offset", "kind", "word"),
    [
        (0.12, 0, FindingKind.TOO_DARK, "dark"),
        (0.2, 200, FindingKind.WASHED_OUT, "washed out"),
        (0.07, 120, FindingKind.WASHED_OUT, "contrast"),
    ],
)
def test_dark_pale_and_dull_pictures_are_told_apart(gain: float, offset: float, kind: FindingKind, word: str) -> None:
    (finding,) = found(defects.levels(defects.scene(0), gain, offset))
    assert finding.kind is kind
    assert finding.action == "kept"
    assert word in finding.message


def test_a_moderately_dark_or_bright_picture_is_left_alone() -> None:
    assert kinds(defects.levels(defects.scene(0), 0.4, 0)) == []
    assert kinds(defects.levels(defects.scene(0), 0.4, 150)) == []


def test_a_pale_drawing_on_white_paper_is_not_washed_out() -> None:
    picture = Image.new("RGB", (400, 400), "white")
    ImageDraw.Draw(picture).ellipse((120, 120, 280, 280), fill=(225, 225, 230))
    assert kinds(picture) == []


def test_measures_survive_json_and_are_the_same_again() -> None:
    quality = measure(np.asarray(defects.scene(5)))
    assert Quality(**json.loads(json.dumps(dataclasses.asdict(quality)))) == quality
    assert measure(np.asarray(defects.scene(5))) == quality


@pytest.mark.parametrize("size", [(1, 1), (2, 50), (50, 1), (5, 4), (3000, 3)])
def test_pictures_of_any_size_are_measured(size: tuple[int, int]) -> None:
    quality = measure(np.asarray(Image.new("RGB", size, (200, 10, 10))))
    assert quality.edges == 0
    assert (quality.p1, quality.p99) == (67, 67)
