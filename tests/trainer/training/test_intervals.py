"""The confidence interval has the coverage that it claims."""

from __future__ import annotations

import numpy as np
import pytest

from tests.trainer.training.simulated import simulated_losses
from trainer.training.intervals import PairedLosses, jackknife_interval, mean_band_ratio, pair_losses


def test_90_to_98_percent_of_the_intervals_contain_the_truth() -> None:
    random = np.random.default_rng(3)
    truth = mean_band_ratio(simulated_losses(200_000, np.random.default_rng(4)))

    found = [jackknife_interval(simulated_losses(20, random)) for _ in range(300)]

    covered = sum(one.low <= truth <= one.high for one in found if one) / 300
    assert 0.90 <= covered <= 0.98


def test_a_constant_ratio_has_an_interval_of_width_zero() -> None:
    base = simulated_losses(12, np.random.default_rng(0)).base

    found = jackknife_interval(PairedLosses(model=0.7 * base, base=base))

    assert found is not None
    assert (found.low, found.ratio, found.high) == pytest.approx((0.7, 0.7, 0.7))


def test_an_interval_needs_five_units() -> None:
    assert jackknife_interval(simulated_losses(4, np.random.default_rng(0))) is None
    assert jackknife_interval(simulated_losses(5, np.random.default_rng(0))) is not None


def test_the_width_falls_with_the_square_root_of_the_images() -> None:
    def width(images: int) -> float:
        found = [jackknife_interval(simulated_losses(images, np.random.default_rng(seed))) for seed in range(40)]
        return float(np.mean([one.high - one.low for one in found if one]))

    assert width(160) / width(40) == pytest.approx(0.5, abs=0.1)


def test_the_order_of_units_does_not_matter() -> None:
    losses = simulated_losses(20, np.random.default_rng(1))
    reversed_losses = PairedLosses(model=losses.model[::-1], base=losses.base[::-1])

    first, second = jackknife_interval(losses), jackknife_interval(reversed_losses)

    assert first is not None
    assert second is not None
    assert (first.low, first.high) == pytest.approx((second.low, second.high))


def test_losses_are_summed_per_unit_and_band() -> None:
    losses = pair_losses(units=["a", "b", "a", "a"], bands=[2, 2, 0, 2], model=[1, 2, 3, 4], base=[5, 6, 7, 8])

    assert losses.model.tolist() == [[3, 5], [0, 2]]
    assert losses.base.tolist() == [[7, 13], [0, 6]]
