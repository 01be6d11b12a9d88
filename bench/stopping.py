"""Compares our early stopping with the rules of Prechelt 1998 ("Early stopping, but when?") on simulated curves.

    python -m bench.stopping

Curves: `tests/trainer/training/simulated.py`, with measurement noise only. Each rule exports its epoch with the lowest
measured ratio and stops after at most 80 epochs. Figures: docs/adr/0008.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from tests.trainer.training.simulated import Curve, improving, overfitting, random_overfitting
from trainer.protocol.settings import EarlyStopping
from trainer.training.early_stopping import StopMemory

#: Returns True to stop after these validation ratios and training losses.
Rule = Callable[[Curve, Curve], bool]
_EPOCHS, _CURVES = 80, 400
#: Relative noise of an epoch's training loss, from its random timesteps and noise.
_TRAIN_NOISE = 0.03


def ours(settings: EarlyStopping) -> Rule:
    def stops(ratios: Curve, losses: Curve) -> bool:
        memory = StopMemory()
        for epoch, ratio in enumerate(ratios, 1):
            memory = memory.after(epoch, ratio, settings)
        return memory.stop_reason(len(ratios), settings, seconds=0) is not None

    return stops


def generalization_loss(percent: float) -> Rule:
    """GL: stop if the last ratio is `percent` above the lowest."""
    return lambda ratios, losses: _generalization_loss(ratios) > percent


def progress_quotient(limit: float, strip: int = 5) -> Rule:
    """PQ: stop on the ratio of generalization loss and training progress (per mille) within a strip of epochs."""

    def stops(ratios: Curve, losses: Curve) -> bool:
        if len(ratios) % strip:
            return False
        last = losses[-strip:]
        progress = 1000 * (last.mean() / last.min() - 1)
        return bool(_generalization_loss(ratios) / progress > limit)

    return stops


def upward(strips: int, strip: int) -> Rule:
    """UP: stop if the ratio rose over `strips` successive strips of epochs."""

    def stops(ratios: Curve, losses: Curve) -> bool:
        if len(ratios) % strip or len(ratios) <= strips * strip:
            return False
        ends = ratios[::-strip][: strips + 1]
        return bool(np.all(ends[:-1] > ends[1:]))

    return stops


RULES: Mapping[str, Rule] = {
    "ours (patience 4, smoothing 0.3)": ours(EarlyStopping()),
    "ours, smoothing 0": ours(EarlyStopping(smoothing=0)),
    "GL 1 %": generalization_loss(1),
    "GL 2 %": generalization_loss(2),
    "GL 5 %": generalization_loss(5),
    "PQ 0.5, strip 5": progress_quotient(0.5),
    "PQ 1, strip 5": progress_quotient(1),
    "UP 2, strip 1": upward(2, 1),
    "UP 3, strip 1": upward(3, 1),
    "UP 2, strip 3": upward(2, 3),
}


def _generalization_loss(ratios: Curve) -> float:
    return float(100 * (ratios[-1] / ratios.min() - 1))


def _outcomes(rule: Rule, noise: float, truths: Iterator[Curve]) -> Iterator[tuple[Curve, int, int]]:
    """Yield the true curve, the epoch of the stop (81: never) and the exported epoch of each curve."""
    random = np.random.default_rng(1)
    for truth in truths:
        measured = truth + noise * random.standard_normal(len(truth))
        falling = np.linspace(1, 0.6, len(truth)) * (1 + _TRAIN_NOISE * random.standard_normal(len(truth)))
        stop = next((n for n in range(1, len(measured) + 1) if rule(measured[:n], falling[:n])), len(measured) + 1)
        yield truth, stop, int(measured[:stop].argmin()) + 1


def _row(name: str, rule: Rule, noise: float) -> str:
    random = np.random.default_rng(2)
    found = list(_outcomes(rule, noise, (random_overfitting(random, _EPOCHS) for _ in range(_CURVES))))
    late = np.array([stop - int(truth.argmin()) - 1 for truth, stop, _ in found])
    loss = np.array([truth[epoch - 1] / truth.min() for truth, _, epoch in found])
    falls = _outcomes(rule, noise, (improving(60, fall=1.2 * noise) for _ in range(_CURVES)))
    cut = np.mean([stop <= 60 for _, stop, _ in falls])
    low, middle, high = (round(float(at)) for at in np.quantile(late, [0.05, 0.5, 0.95]))
    good = float(np.mean(loss <= 1.01))
    return f"| {name} | {low:+d} / {middle:+d} / {high:+d} | {good:.0%} | {loss.mean() - 1:.2%} | {cut:.0%} |\n"


def _length_row(length: int, noise: float) -> str:
    """Our rule on curves with a minimum after 1,500 to 7,000 images, measured every `length` images."""
    random = np.random.default_rng(3)
    epochs = 16_000 // length
    truths = [
        overfitting(
            epochs,
            minimum_at=random.uniform(1500, 7000) / length,
            depth=random.uniform(0.15, 0.5),
            rise=random.uniform(0.3, 1.5),
        )
        for _ in range(_CURVES)
    ]
    found = list(_outcomes(ours(EarlyStopping()), noise, iter(truths)))
    late = [round(length * (stop - 1 - float(truth.argmin()))) for truth, stop, _ in found]
    low, middle, high = (round(float(at)) for at in np.quantile(late, [0.05, 0.5, 0.95]))
    good = np.mean([truth[epoch - 1] / truth.min() <= 1.01 for truth, _, epoch in found])
    return f"| {length} | {low:+d} / {middle:+d} / {high:+d} | {good:.0%} |\n"


if __name__ == "__main__":
    for noise in (0.003, 0.005, 0.01):
        sys.stdout.write(
            f"\nnoise {noise}\n| rule | stop − minimum (5 %, median, 95 %) | within 1 % | excess | cut off |\n"
        )
        for name, rule in RULES.items():
            sys.stdout.write(_row(name, rule, noise))
        sys.stdout.write("\n| images in an epoch | stop − minimum, images (5 %, median, 95 %) | within 1 % |\n")
        for length in (26, 90, 175, 350, 700):
            sys.stdout.write(_length_row(length, noise))
