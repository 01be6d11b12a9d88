"""Simulated losses and validation curves with a known truth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.training.intervals import PairedLosses

Curve = NDArray[np.float64]

#: Loss of the base by band, and what is left of it after training.
_SCALES, _LEFT = np.array([0.25, 0.08, 0.03, 0.01]), np.array([0.60, 0.75, 0.85, 0.95])


def simulated_losses(
    images: int, random: np.random.Generator, *, spread: float = 0.3, noise: float = 0.5
) -> PairedLosses:
    """Simulate the losses of a set: images differ in their gain by `spread`, triples in difficulty by `noise`."""
    shape = (images, len(_SCALES))
    base_UK = _SCALES * random.lognormal(0, 0.6, (images, 1)) * random.lognormal(0, noise, shape)
    gain_UK = _LEFT * np.exp(spread * (random.standard_normal((images, 1)) + 0.5 * random.standard_normal(shape)))
    return PairedLosses(model=base_UK * gain_UK * random.lognormal(0, noise / 3, shape), base=base_UK)


def overfitting(epochs: int, *, minimum_at: float, depth: float, rise: float) -> Curve:
    """Simulate a validation ratio that falls from 1 by about `depth` and rises after epoch `minimum_at`.

    The sum of an exponential decay and a power of the epoch, with opposite slopes at the minimum; the power grows
    with `rise`.
    """
    epoch = np.arange(1, epochs + 1, dtype=np.float64)
    tau, power = minimum_at / 2.5, 1 + rise
    factor = depth / tau * np.exp(-minimum_at / tau) / (power * minimum_at ** (power - 1))
    curve: Curve = 1 - depth + depth * np.exp(-epoch / tau) + factor * epoch**power
    return curve


def random_overfitting(random: np.random.Generator, epochs: int = 80) -> Curve:
    """Simulate a curve with a random minimum: after 6 to 24 epochs, 15 % to 50 % below the base."""
    return overfitting(
        epochs,
        minimum_at=int(random.integers(6, 25)),
        depth=float(random.uniform(0.15, 0.5)),
        rise=float(random.uniform(0.3, 1.5)),
    )


def improving(epochs: int, *, fall: float) -> Curve:
    """Simulate a validation ratio that falls by `fall` per epoch."""
    curve: Curve = 1 - fall * np.arange(1, epochs + 1, dtype=np.float64)
    return curve


def simulated_images(
    random: np.random.Generator,
    *,
    images: int = 16,
    epochs: int = 12,
    gain: float = 0.3,
    spread: float = 0.4,
    noise: float = 0.03,
    planted: int = 0,
) -> Curve:
    """Simulate the ratios of training images, [epochs, images]; those of the first `planted` never fall.

    The median image gains about `gain`, others more or less by a factor of e^±`spread`.
    """
    gains = 1 - (1 - gain) ** random.lognormal(0, spread, images)
    pace = random.uniform(2, 6) * random.lognormal(0, 0.3, images)
    gone = np.exp(-np.arange(1, epochs + 1)[:, None] / pace)
    ratios = 1 - gains * (1 - gone)
    ratios[:, :planted] = 1.0
    curves: Curve = ratios * np.exp(noise * random.standard_normal(ratios.shape))
    return curves
