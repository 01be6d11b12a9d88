"""Compares two ways to stop candidates early on one device: all together at a rung, or one by one.

    python -m bench.halving

The curves are simulated: each candidate's ratio falls to its own floor at its own rate, with measurement noise. The
table shows for each rule how often the best candidate wins, how far the winner is behind it, and the trained epochs.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from functools import partial
from math import exp
from statistics import fmean
from typing import TypeAlias

from trainer.studies.comparison import rungs, survivors

CANDIDATES, EPOCHS, KEEP_ONE_IN, NOISE, STUDIES = 9, 20, 2, 0.005, 300
#: The first rungs to try: no candidate stops before this epoch.
FIRST_RUNGS = 2, 4

Curve: TypeAlias = Sequence[float]
#: The index of the winner, and the number of trained epochs.
Result: TypeAlias = tuple[int, int]


def draw_curves(draw: random.Random) -> tuple[list[Curve], list[float]]:
    """Return measured curves, and the true ratio at the end of each."""
    curves: list[Curve] = []
    ends = []
    for _ in range(CANDIDATES):
        floor, pace = draw.uniform(0.6, 0.9), draw.uniform(1, 8)
        true = [floor + (1 - floor) * exp(-epoch / pace) for epoch in range(1, EPOCHS + 1)]
        curves.append([ratio + draw.gauss(0, NOISE) for ratio in true])
        ends.append(true[-1])
    return curves, ends


def one_by_one(curves: Sequence[Curve], first: int) -> Result:
    """Train the candidates in turn; stop each at a rung unless it is in the best 1 / k that reached it so far."""
    best, trained = {}, 0
    reached: dict[int, list[float]] = {epoch: [] for epoch in rungs(first, KEEP_ONE_IN, EPOCHS)}
    for index, curve in enumerate(curves):
        for epoch in range(1, EPOCHS + 1):
            trained += 1
            best[index] = min(curve[:epoch])
            if epoch in reached:
                ratios = reached[epoch] = sorted([*reached[epoch], best[index]])
                if best[index] > ratios[max(len(ratios) // KEEP_ONE_IN, 1) - 1]:
                    break
    return min(best, key=best.__getitem__), trained


def together(curves: Sequence[Curve], first: int) -> Result:
    """Train all candidates to a rung before stopping any of them, as `trainer compare` does."""
    alive = [str(index) for index in range(CANDIDATES)]
    trained = 0
    reached = 0
    for epoch in rungs(first, KEEP_ONE_IN, EPOCHS):
        if len(alive) <= 2:
            break
        trained += len(alive) * (epoch - reached)
        reached = epoch
        alive = list(survivors({name: min(curves[int(name)][:epoch]) for name in alive}, KEEP_ONE_IN))
    trained += len(alive) * (EPOCHS - reached)
    return int(min(alive, key=lambda name: min(curves[int(name)]))), trained


def all_to_the_end(curves: Sequence[Curve]) -> Result:
    """Train all candidates for all epochs."""
    return min(range(CANDIDATES), key=lambda index: min(curves[index])), CANDIDATES * EPOCHS


def main() -> None:
    rules: dict[str, Callable[[Sequence[Curve]], Result]] = {
        "all to the end": all_to_the_end,
    }
    for first in FIRST_RUNGS:
        rules[f"one by one, from epoch {first}"] = partial(one_by_one, first=first)
        rules[f"together, from epoch {first}"] = partial(together, first=first)
    studies = [draw_curves(random.Random(seed)) for seed in range(STUDIES)]
    sys.stdout.write("| rule | best wins | behind the best | epochs | fewest – most |\n|---|--:|--:|--:|--:|\n")
    for name, rule in rules.items():
        results = [(rule(curves), ends) for curves, ends in studies]
        right = fmean(winner == min(range(CANDIDATES), key=ends.__getitem__) for (winner, _), ends in results)
        behind = fmean(ends[winner] - min(ends) for (winner, _), ends in results)
        epochs = [trained for (_, trained), _ in results]
        sys.stdout.write(
            f"| {name} | {right:.0%} | {behind:.4f} | {fmean(epochs):.0f} | {min(epochs)} – {max(epochs)} |\n"
        )


if __name__ == "__main__":
    main()
