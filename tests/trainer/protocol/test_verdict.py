"""A loss beside the base model's is told in words that hold for any number."""

from __future__ import annotations

import pytest

from trainer.protocol.text import noise_levels, verdict


@pytest.mark.parametrize(
    ("ratio", "low", "high", "words"),
    [
        (0.49, 0.34, 0.71, "51 % better than the base model (29 to 66 %)"),
        (0.977, None, None, "2.3 % better than the base model"),
        (1.08, 1.02, 1.2, "8.0 % worse than the base model (2.0 to 20 %)"),
        (0.97, 0.9, 1.04, "3.0 % better than the base model (by chance anything from 4.0 % worse to 10 % better)"),
        (1.0001, None, None, "as good as the base model"),
        (float("nan"), None, None, "not comparable with the base model: its loss is no number"),
    ],
)
def test_the_verdict(ratio: float, low: float | None, high: float | None, words: str) -> None:
    assert verdict(ratio, low, high) == words


def test_levels_go_from_much_noise_to_little() -> None:
    assert noise_levels([0.54, 0.80, 0.89, 2.09]) == "layout 109 % worse, shapes 16 % better, detail 46 % better"
    assert noise_levels([0.5, 0.5]) == ""
