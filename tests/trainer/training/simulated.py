"""Losses and validation curves whose truth is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.training.intervals import PairedLosses

Curve = NDArray[np.float64]

#: Loss of the base by band, and what is left of it after training.
_SCALES, _LEFT = np.array([0.25, 0.08, 0.03, 0.01]), np.array([0.60, 0.75, 0.85, 0.95])


def simulated_losses(
    pictures: int, random: np.random.Generator, *, spread: float = 0.3, noise: float = 0.5
) -> PairedLosses:
    """Losses of a set: pictures differ in what they gain by `spread`, triples in difficulty by `noise`."""
    shape = (pictures, len(_SCALES))
    base_UK = _SCALES * random.lognormal(0, 0.6, (pictures, 1)) * random.lognormal(0, noise, shape)
    gain_UK = _LEFT * np.exp(spread * (random.standard_normal((pictures, 1)) + 0.5 * random.standard_normal(shape)))
    return PairedLosses(model=base_UK * gain_UK * random.lognormal(0, noise / 3, shape), base=base_UK)


def overfitting(epochs: int, *, minimum_at: int, depth: float, rise: float) -> Curve:
    """Validation ratio by epoch that falls from 1 by about `depth`, and rises again after `minimum_at`.

    An exponential fall beside a power of the epoch, the slopes of both equal at the minimum; `rise` bends it up.
    """
    epoch = np.arange(1, epochs + 1, dtype=np.float64)
    tau, power = minimum_at / 2.5, 1 + rise
    factor = depth / tau * np.exp(-minimum_at / tau) / (power * minimum_at ** (power - 1))
    curve: Curve = 1 - depth + depth * np.exp(-epoch / tau) + factor * epoch**power
    return curve


def some_overfitting(random: np.random.Generator, epochs: int = 80) -> Curve:
    """One of many: the minimum after 6 to 24 epochs, 15 % to 50 % below the base."""
    return overfitting(
        epochs,
        minimum_at=int(random.integers(6, 25)),
        depth=float(random.uniform(0.15, 0.5)),
        rise=float(random.uniform(0.3, 1.5)),
    )


def improving(epochs: int, *, fall: float) -> Curve:
    """Validation ratio that falls by `fall` with each epoch."""
    curve: Curve = 1 - fall * np.arange(1, epochs + 1, dtype=np.float64)
    return curve


def simulated_pictures(
    random: np.random.Generator,
    *,
    pictures: int = 16,
    epochs: int = 12,
    gain: float = 0.3,
    spread: float = 0.4,
    noise: float = 0.03,
    planted: int = 0,
) -> Curve:
    """Ratio of each training picture by epoch, [epochs, pictures]; the first `planted` never fall.

    The median picture gains about `gain`, others more or less of it by a factor of e^±`spread`.
    """
    gains = 1 - (1 - gain) ** random.lognormal(0, spread, pictures)
    pace = random.uniform(2, 6) * random.lognormal(0, 0.3, pictures)
    gone = np.exp(-np.arange(1, epochs + 1)[:, None] / pace)
    ratios = 1 - gains * (1 - gone)
    ratios[:, :planted] = 1.0
    curves: Curve = ratios * np.exp(noise * random.standard_normal(ratios.shape))
    return curves
