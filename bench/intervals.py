"""Measures how often a 95 % interval contains the true ratio: our jackknife and two bootstraps.

    python -m bench.intervals [--sets 600]

A set has images of heavy-tailed losses and four bands whose losses differ 25-fold; both models predict the same noisy
triples. The truth is the ratio over 400,000 images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri  # type: ignore[import-untyped]

from tests.trainer.training.simulated import simulated_losses
from trainer.training.intervals import PairedLosses, jackknife_interval, mean_band_ratio

_RESAMPLES = 2000
Ends = tuple[float, float]


def jackknife(losses: PairedLosses, random: np.random.Generator) -> Ends:
    found = jackknife_interval(losses)
    assert found is not None
    return found.low, found.high


def percentile(losses: PairedLosses, random: np.random.Generator) -> Ends:
    low, high = np.quantile(_resampled(losses, random), [0.025, 0.975])
    return float(low), float(high)


def bca(losses: PairedLosses, random: np.random.Generator) -> Ends:
    """Return the bias-corrected and accelerated interval (Efron 1987), as `scipy.stats.bootstrap` computes it."""
    drawn, left_out = _resampled(losses, random), _left_out(losses)
    bias = ndtri(np.clip((drawn < mean_band_ratio(losses)).mean(), 1e-4, 1 - 1e-4))
    skew = left_out.mean() - left_out
    acceleration = (skew**3).sum() / (6 * (skew**2).sum() ** 1.5)
    z = bias + ndtri(np.array([0.025, 0.975]))
    low, high = np.quantile(drawn, ndtr(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def coverage(method: Callable[[PairedLosses, np.random.Generator], Ends], images: int, sets: int) -> float:
    """Return the share of `sets` simulated sets whose interval contains the truth."""
    random = np.random.default_rng(7)
    truth = mean_band_ratio(simulated_losses(400_000, np.random.default_rng(9)))
    ends = (method(simulated_losses(images, random), np.random.default_rng(1)) for _ in range(sets))
    return sum(low <= truth <= high for low, high in ends) / sets


def _resampled(losses: PairedLosses, random: np.random.Generator) -> NDArray[np.float64]:
    images = len(losses.base)
    weights = random.multinomial(images, np.full(images, 1 / images), size=_RESAMPLES).astype(np.float64)
    ratios: NDArray[np.float64] = ((weights @ losses.model) / (weights @ losses.base)).mean(axis=1)
    return ratios


def _left_out(losses: PairedLosses) -> NDArray[np.float64]:
    model_UK = losses.model.sum(axis=0) - losses.model
    base_UK = losses.base.sum(axis=0) - losses.base
    ratios: NDArray[np.float64] = (model_UK / base_UK).mean(axis=1)
    return ratios


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=600)
    sets = parser.parse_args().sets
    for name, method in (("jackknife", jackknife), ("percentile", percentile), ("bca", bca)):
        shares = [coverage(method, images, sets) for images in (5, 8, 12, 20, 64)]
        sys.stdout.write(f"{name:12}" + "".join(f"{share:7.3f}" for share in shares) + "\n")
