"""Pictures that never learn are named, and hard ones are not accused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.trainer.training.simulated import Curve, simulated_pictures
from trainer.protocol.report import Split
from trainer.training.image_history import ImageHistory, PictureHistory, never_learnt, read_history, sentence_of

NAMES = {f"{place:02}": f"{place:02}.png" for place in range(64)}


def history_of(curves: Curve, split: Split = Split.TRAIN) -> ImageHistory:
    history = ImageHistory()
    for epoch, ratios in enumerate(curves, 1):
        measured = {f"{place:02}": float(ratio) for place, ratio in enumerate(ratios)}
        history = history.after(epoch, split, measured, NAMES)
    return history


def found_in(curves: Curve, split: Split = Split.TRAIN) -> set[str]:
    return {picture.name for picture in never_learnt(history_of(curves, split))}


@pytest.mark.parametrize("gain", [0.04, 0.1, 0.3, 0.5])
def test_three_planted_pictures_are_found_however_little_the_others_gain(gain: float) -> None:
    random = np.random.default_rng(1)

    found = [found_in(simulated_pictures(random, gain=gain, noise=gain / 20, planted=3)) for _ in range(40)]

    hits = sum(len(names & {"00.png", "01.png", "02.png"}) for names in found) / 120
    assert hits >= 0.95
    assert sum(len(names - {"00.png", "01.png", "02.png"}) for names in found) <= 1


@pytest.mark.parametrize("gain", [0.04, 0.1, 0.3, 0.5])
def test_of_200_clean_sets_at_most_one_in_a_hundred_has_a_picture_accused(gain: float) -> None:
    random = np.random.default_rng(2)

    accused = [found_in(simulated_pictures(random, gain=gain, noise=gain / 10)) for _ in range(200)]

    assert sum(map(bool, accused)) <= 2


def test_a_label_that_gets_ever_worse_is_found_first() -> None:
    curves = simulated_pictures(np.random.default_rng(3), planted=2)
    curves[:, 1] = np.linspace(1.0, 2.5, len(curves))

    assert [picture.name for picture in never_learnt(history_of(curves))] == ["01.png", "00.png"]


def test_nobody_is_accused_while_nothing_was_learnt_or_little_is_known() -> None:
    random = np.random.default_rng(4)
    planted = simulated_pictures(random, planted=3)

    assert found_in(planted)
    assert not found_in(planted[:2])
    assert not any(found_in(simulated_pictures(random, pictures=7, planted=1)) for _ in range(20))
    assert any(found_in(simulated_pictures(random, pictures=8, planted=1)) for _ in range(20))
    assert not found_in(planted, Split.VALIDATION)
    assert not found_in(simulated_pictures(random, gain=0.01, noise=0.0005, planted=3))
    assert not any(found_in(simulated_pictures(random, gain=0.1, noise=0.03, planted=3)) for _ in range(20))


def test_an_epoch_that_is_measured_again_takes_its_own_place() -> None:
    history = history_of(np.array([[0.9, 0.8], [0.7, 0.6], [0.5, 0.4]]))

    again = history.after(2, Split.TRAIN, {"00": 0.75}, NAMES)

    assert again.pictures["00"].ratios == {1: 0.9, 2: 0.75}
    assert again.pictures["01"].ratios == {1: 0.8, 2: 0.6, 3: 0.4}


def test_it_is_written_whole_and_read_back(tmp_path: Path) -> None:
    history = history_of(np.array([[0.9, 0.8], [0.7, 0.6]]))
    path = tmp_path / "validation" / "images.json"

    assert read_history(path) == ImageHistory()
    history.write(path)

    assert read_history(path) == history
    assert [file.name for file in path.parent.iterdir()] == ["images.json"]


def test_the_sentence_names_them() -> None:
    pictures = [PictureHistory(name=name, split=Split.TRAIN) for name in ("a.png", "b.png", "c.png")]

    assert sentence_of([]) == ""
    assert sentence_of(pictures[:1]).startswith("This picture looks wrong: a.png.")
    assert sentence_of(pictures).startswith("These 3 pictures look wrong: a.png, b.png, c.png.")
    many = [PictureHistory(name=f"{place}.png", split=Split.TRAIN) for place in range(14)]
    assert "9.png and 4 more." in sentence_of(many)
