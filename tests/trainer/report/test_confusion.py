"""Confusion matrices and verdicts as images, and as a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.report.confusion import correct_of, describe_confusion, draw_confusion


def _counts(classes: int) -> list[list[int]]:
    """Each class is mostly classified correctly, and sometimes mistaken for the next."""
    return [
        [20 + row if row == column else 3 if column == (row + 1) % classes else 0 for column in range(classes)]
        for row in range(classes)
    ]


@pytest.mark.parametrize("classes", [2, 12, 40])
def test_a_matrix_is_as_wide_as_a_chart_and_as_high_as_its_rows_need(classes: int, tmp_path: Path) -> None:
    names = [f"class number {place}" for place in range(classes)]
    path = draw_confusion(tmp_path / "charts" / "c.png", title="run", class_names=names, counts=_counts(classes))
    with Image.open(path) as drawn:
        # A third of it fits a phone; letters of 35 px are 11 px there.
        assert drawn.width == 900
        assert drawn.height >= classes * 45
        assert drawn.height < 2600
    assert list(path.parent.iterdir()) == [path]


def test_right_answers_are_blue_and_mistakes_are_not(tmp_path: Path) -> None:
    def share(counts: list[list[int]], *, is_right: bool) -> float:
        path = draw_confusion(tmp_path / "c.png", title="run", class_names=["a", "b"], counts=counts)
        with Image.open(path) as drawn:
            red, _, blue = (channel.astype(int) for channel in np.moveaxis(np.asarray(drawn.convert("RGB")), -1, 0))
        return float(((blue - red > 60) if is_right else (red - blue > 60)).mean())

    good, bad = [[9, 0], [0, 9]], [[0, 9], [9, 0]]
    assert share(good, is_right=True) > 0.15 > 0.01 > share(good, is_right=False)
    assert share(bad, is_right=False) > 0.15 > 0.01 > share(bad, is_right=True)


def test_strange_names_do_not_break_the_chart(tmp_path: Path) -> None:
    names = ["$\\frac{1}{$", "猫", "a very long name of a class that nobody can read", "line\nbreak"]
    path = draw_confusion(tmp_path / "c.png", title="$x^", class_names=names, counts=_counts(4))
    assert path.stat().st_size > 5000


def test_a_class_without_pictures_is_drawn_and_counts_for_nothing(tmp_path: Path) -> None:
    counts = [[3, 1], [0, 0]]
    assert correct_of(counts) == (3, 4)
    draw_confusion(tmp_path / "c.png", title="run", class_names=["a", "b"], counts=counts)
    draw_confusion(tmp_path / "c.png", title="run", class_names=["a", "b"], counts=[[0, 0], [0, 0]])


def test_the_description_names_the_most_frequent_mistake() -> None:
    assert describe_confusion(["cat", "dog"], [[4, 0], [0, 4]]) == "8 of 8 images are classified correctly (100 %)."
    assert describe_confusion(["cat", "dog", "newt"], [[4, 1, 0], [0, 3, 2], [0, 0, 0]]) == (
        "7 of 10 images are classified correctly (70 %). The most frequent mistake: dog is taken for newt (2)."
    )
