"""Images that are never learned are found, and hard images cause no false alarm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.trainer.training.simulated import Curve, simulated_images
from trainer.protocol.report import Split
from trainer.training.image_history import (
    ImageCurve,
    ImageHistory,
    describe_never_learned,
    never_learned,
    read_history,
)

NAMES = {f"{index:02}": f"{index:02}.png" for index in range(64)}


def history_of(curves: Curve, split: Split = Split.TRAIN) -> ImageHistory:
    history = ImageHistory()
    for epoch, ratios in enumerate(curves, 1):
        measured = {f"{index:02}": float(ratio) for index, ratio in enumerate(ratios)}
        history = history.after(epoch, split, measured, NAMES)
    return history


def found_in(curves: Curve, split: Split = Split.TRAIN) -> set[str]:
    return {curve.name for curve in never_learned(history_of(curves, split))}


@pytest.mark.parametrize("gain", [0.04, 0.1, 0.3, 0.5])
def test_three_planted_images_are_found_even_if_the_others_gain_little(gain: float) -> None:
    random = np.random.default_rng(1)

    found = [found_in(simulated_images(random, gain=gain, noise=gain / 20, planted=3)) for _ in range(40)]

    hits = sum(len(names & {"00.png", "01.png", "02.png"}) for names in found) / 120
    assert hits >= 0.95
    assert sum(len(names - {"00.png", "01.png", "02.png"}) for names in found) <= 1


@pytest.mark.parametrize("gain", [0.04, 0.1, 0.3, 0.5])
def test_at_most_one_in_a_hundred_clean_sets_has_a_false_alarm(gain: float) -> None:
    random = np.random.default_rng(2)

    alarms = [found_in(simulated_images(random, gain=gain, noise=gain / 10)) for _ in range(200)]

    assert sum(map(bool, alarms)) <= 2


def test_an_image_that_gets_worse_is_listed_first() -> None:
    curves = simulated_images(np.random.default_rng(3), planted=2)
    curves[:, 1] = np.linspace(1.0, 2.5, len(curves))

    assert [curve.name for curve in never_learned(history_of(curves))] == ["01.png", "00.png"]


def test_there_is_no_alarm_while_little_is_learned_or_known() -> None:
    random = np.random.default_rng(4)
    planted = simulated_images(random, planted=3)

    assert found_in(planted)
    assert not found_in(planted[:2])
    assert not any(found_in(simulated_images(random, images=7, planted=1)) for _ in range(20))
    assert any(found_in(simulated_images(random, images=8, planted=1)) for _ in range(20))
    assert not found_in(planted, Split.VALIDATION)
    assert not found_in(simulated_images(random, gain=0.01, noise=0.0005, planted=3))
    assert not any(found_in(simulated_images(random, gain=0.1, noise=0.03, planted=3)) for _ in range(20))


def test_an_epoch_that_is_measured_again_replaces_itself_and_later_ones() -> None:
    history = history_of(np.array([[0.9, 0.8], [0.7, 0.6], [0.5, 0.4]]))

    again = history.after(2, Split.TRAIN, {"00": 0.75}, NAMES)

    assert again.images["00"].ratios == {1: 0.9, 2: 0.75}
    assert again.images["01"].ratios == {1: 0.8, 2: 0.6, 3: 0.4}


def test_a_history_is_read_back(tmp_path: Path) -> None:
    history = history_of(np.array([[0.9, 0.8], [0.7, 0.6]]))
    path = tmp_path / "validation" / "images.json"

    assert read_history(path) == ImageHistory()
    history.write(path)

    assert read_history(path) == history
    assert [file.name for file in path.parent.iterdir()] == ["images.json"]


def test_the_description_lists_at_most_ten_names() -> None:
    curves = [ImageCurve(name=f"{index}.png", split=Split.TRAIN) for index in range(14)]

    assert describe_never_learned([]) == ""
    assert "0.png, 1.png and 2.png" in describe_never_learned(curves[:3])
    assert "9.png and 4 more" in describe_never_learned(curves)
