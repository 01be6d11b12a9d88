"""Which way of ending candidates early finds the best of them on one device: all at a rung together, or one by one.

    python -m bench.halving

Simulated curves: each candidate's ratio falls to a floor of its own at a pace of its own, measured with noise. Printed
for each rule: how often the best candidate wins, how far the winner is from it, and the epochs that were trained.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from functools import partial
from math import exp
from statistics import fmean
from typing import TypeAlias

import optuna

from trainer.studies.halving import rungs, survivors

CANDIDATES, EPOCHS, KEEP_ONE_IN, NOISE, STUDIES = 9, 20, 2, 0.005, 300
#: Epochs before anybody is ended.
FIRST_LOOKS = 2, 4

Curve: TypeAlias = Sequence[float]
#: The place of the winner, and the epochs trained in all.
Result: TypeAlias = tuple[int, int]


def draw_curves(draw: random.Random) -> tuple[list[Curve], list[float]]:
    """Measured curves, and the true ratio at the end of each."""
    curves: list[Curve] = []
    ends = []
    for _ in range(CANDIDATES):
        floor, pace = draw.uniform(0.6, 0.9), draw.uniform(1, 8)
        true = [floor + (1 - floor) * exp(-epoch / pace) for epoch in range(1, EPOCHS + 1)]
        curves.append([ratio + draw.gauss(0, NOISE) for ratio in true])
        ends.append(true[-1])
    return curves, ends


def one_by_one(curves: Sequence[Curve], first: int) -> Result:
    """Optuna's pruner as it is meant: each candidate in turn, ended as it reports."""
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=KEEP_ONE_IN)
    study = optuna.create_study(direction="minimize", pruner=pruner)
    best, trained = {}, 0
    for place, curve in enumerate(curves):
        trial = study.ask()
        for epoch in range(1, EPOCHS + 1):
            trained += 1
            best[place] = min(curve[:epoch])
            trial.report(best[place], epoch)
            if trial.should_prune():
                break
    return min(best, key=best.__getitem__), trained


def together(curves: Sequence[Curve], first: int) -> Result:
    """All at a rung before anybody is ended, as `trainer compare` does."""
    alive = [str(place) for place in range(CANDIDATES)]
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
    return min(range(CANDIDATES), key=lambda place: min(curves[place])), CANDIDATES * EPOCHS


def main() -> None:
    """Print the table."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rules: dict[str, Callable[[Sequence[Curve]], Result]] = {
        "all to the end": all_to_the_end,
    }
    for first in FIRST_LOOKS:
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
