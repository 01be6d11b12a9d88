"""An interval holds the truth about as often as it says, and costs next to nothing."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tests.trainer.training.simulated import simulated_losses
from trainer.training.intervals import PairedLosses, interval, paired, ratio_of


def test_of_300_sets_of_20_pictures_90_to_98_per_cent_of_the_intervals_hold_the_truth() -> None:
    random = np.random.default_rng(3)
    truth = ratio_of(simulated_losses(200_000, np.random.default_rng(4)))

    found = [interval(simulated_losses(20, random)) for _ in range(300)]

    held = sum(one.low <= truth <= one.high for one in found if one) / 300
    assert 0.90 <= held <= 0.98


def test_a_ratio_that_is_the_same_everywhere_is_certain() -> None:
    base = simulated_losses(12, np.random.default_rng(0)).base

    found = interval(PairedLosses(model=0.7 * base, base=base))

    assert found is not None
    assert (found.low, found.ratio, found.high) == pytest.approx((0.7, 0.7, 0.7))


def test_four_pictures_are_too_few_and_five_are_enough() -> None:
    assert interval(simulated_losses(4, np.random.default_rng(0))) is None
    assert interval(simulated_losses(5, np.random.default_rng(0))) is not None


def test_more_pictures_make_it_narrower_as_the_square_root() -> None:
    def width(pictures: int) -> float:
        found = [interval(simulated_losses(pictures, np.random.default_rng(seed))) for seed in range(40)]
        return float(np.mean([one.high - one.low for one in found if one]))

    assert width(160) / width(40) == pytest.approx(0.5, abs=0.1)


def test_the_order_of_the_pictures_does_not_matter() -> None:
    losses = simulated_losses(20, np.random.default_rng(1))
    turned = PairedLosses(model=losses.model[::-1], base=losses.base[::-1])

    first, second = interval(losses), interval(turned)

    assert first is not None
    assert second is not None
    assert (first.low, first.high) == pytest.approx((second.low, second.high))


def test_losses_are_added_up_for_each_picture_and_band() -> None:
    losses = paired(units=["a", "b", "a", "a"], bands=[2, 2, 0, 2], model=[1, 2, 3, 4], base=[5, 6, 7, 8])

    assert losses.model.tolist() == [[3, 5], [0, 2]]
    assert losses.base.tolist() == [[7, 13], [0, 6]]


def test_64_pictures_of_8_triples_take_a_few_milliseconds() -> None:
    random = np.random.default_rng(0)
    units, bands = [i // 8 for i in range(512)], [i % 4 for i in range(512)]
    model, base = random.random(512).tolist(), random.random(512).tolist()
    interval(paired(units=units, bands=bands, model=model, base=base))  # the first call loads scipy

    began = time.perf_counter()
    for _ in range(10):
        interval(paired(units=units, bands=bands, model=model, base=base))

    assert (time.perf_counter() - began) / 10 < 0.02
