"""How often a 95 % interval holds the true ratio: ours beside two bootstraps.

    python -m bench.intervals

A set has pictures of heavy-tailed losses and four bands whose losses differ 25-fold; both models answer the same noisy
triples. The truth is the ratio over 400,000 pictures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri  # type: ignore[import-untyped]

from tests.trainer.training.simulated import simulated_losses
from trainer.training.intervals import PairedLosses, interval, ratio_of

_RESAMPLES = 2000
Ends = tuple[float, float]


def jackknife(losses: PairedLosses, random: np.random.Generator) -> Ends:
    found = interval(losses)
    assert found is not None
    return found.low, found.high


def percentile(losses: PairedLosses, random: np.random.Generator) -> Ends:
    low, high = np.quantile(_resampled(losses, random), [0.025, 0.975])
    return float(low), float(high)


def bca(losses: PairedLosses, random: np.random.Generator) -> Ends:
    """Bias-corrected and accelerated (Efron 1987), as `scipy.stats.bootstrap` computes it."""
    drawn, left_out = _resampled(losses, random), _left_out(losses)
    bias = ndtri(np.clip((drawn < ratio_of(losses)).mean(), 1e-4, 1 - 1e-4))
    skew = left_out.mean() - left_out
    acceleration = (skew**3).sum() / (6 * (skew**2).sum() ** 1.5)
    z = bias + ndtri(np.array([0.025, 0.975]))
    low, high = np.quantile(drawn, ndtr(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def coverage(method: Callable[[PairedLosses, np.random.Generator], Ends], pictures: int, sets: int) -> float:
    """Share of `sets` simulated sets whose interval holds the truth."""
    random = np.random.default_rng(7)
    truth = ratio_of(simulated_losses(400_000, np.random.default_rng(9)))
    ends = (method(simulated_losses(pictures, random), np.random.default_rng(1)) for _ in range(sets))
    return sum(low <= truth <= high for low, high in ends) / sets


def _resampled(losses: PairedLosses, random: np.random.Generator) -> NDArray[np.float64]:
    pictures = len(losses.base)
    weights = random.multinomial(pictures, np.full(pictures, 1 / pictures), size=_RESAMPLES).astype(np.float64)
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
        shares = [coverage(method, pictures, sets) for pictures in (5, 8, 12, 20, 64)]
        sys.stdout.write(f"{name:12}" + "".join(f"{share:7.3f}" for share in shares) + "\n")
