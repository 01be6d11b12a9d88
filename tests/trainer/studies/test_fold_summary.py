"""The folds together: mean, interval, and the length of the final run."""

from __future__ import annotations

import random
import statistics

import pytest
from scipy import stats  # type: ignore[import-untyped]

from trainer.studies.fold_summary import FoldSummary


def summary(*ratios: float, epochs: tuple[int, ...] = (5, 6)) -> FoldSummary:
    return FoldSummary(ratios=ratios, best_epochs=epochs, still_falling=0, mean_curve=())


def test_the_interval_is_students_t_with_the_variance_of_overlapping_folds() -> None:
    ratios = (0.61, 0.64, 0.58, 0.66, 0.63)
    known = summary(*ratios).interval
    assert known is not None
    plain = stats.t.interval(0.95, 4, statistics.fmean(ratios), stats.sem(ratios))
    # 1/5 of the variance becomes 1/5 + 1/4.
    widened = (plain[1] - plain[0]) * (0.45 / 0.2) ** 0.5
    assert known[1] - known[0] == pytest.approx(widened)
    assert statistics.fmean(known) == pytest.approx(statistics.fmean(ratios))


def test_one_fold_has_no_interval() -> None:
    assert summary(0.5).interval is None


def test_the_interval_is_wider_than_chance_would_make_it() -> None:
    draw = random.Random(0)
    held = 0
    for _ in range(400):
        known = summary(*(draw.gauss(0.6, 0.05) for _ in range(5))).interval
        assert known is not None
        held += known[0] <= 0.6 <= known[1]
    assert held / 400 > 0.97


@pytest.mark.parametrize(("epochs", "length"), [((5, 6), 6), ((4, 5), 5), ((5, 5, 6), 5), ((1,), 1), ((2, 3, 3), 3)])
def test_the_final_run_is_as_long_as_the_mean_with_halves_rounded_up(epochs: tuple[int, ...], length: int) -> None:
    assert summary(0.5, epochs=epochs).final_epochs == length
