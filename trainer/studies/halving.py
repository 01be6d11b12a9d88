"""Successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943): the worse half ends early, the rest go on.

Synchronous: all candidates reach a rung before anybody is ended there. Optuna's pruner answers as each trial reports,
so that on one device the first candidate is never ended and the order of the others decides with their merit; here
each candidate's question is put when all the others have reported. It costs a restart for each survivor of a rung,
which goes on from its checkpoint to the bit (docs/adr/0011).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: The last two run to their end, so that the winner is told from a rival of the same length.
FEWEST_SURVIVORS = 2
#: An epoch's first measure is more noise than merit.
FIRST_EPOCH = 2


def rungs(first: int, keep_one_in: int, epochs: int) -> tuple[int, ...]:
    """The epochs after which the worse are ended: `first`, and each `keep_one_in` times the one before."""
    found = []
    epoch = max(first, FIRST_EPOCH)
    while epoch < epochs:
        found.append(epoch)
        epoch *= keep_one_in
    return tuple(found)


def survivors(ratios: Mapping[str, float], keep_one_in: int) -> tuple[str, ...]:
    """Who goes on, best first: one in `keep_one_in`, those that tie with them, and never fewer than two."""
    order = sorted(ratios, key=lambda name: (ratios[name], name))
    kept = [name for name in order if not _is_ended(name, ratios, keep_one_in)]
    return tuple(order[: max(len(kept), FEWEST_SURVIVORS)])


def _is_ended(name: str, ratios: Mapping[str, float], keep_one_in: int) -> bool:
    # Takes half a second to load, and only a comparison needs it.
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=keep_one_in)
    study = optuna.create_study(direction="minimize", pruner=pruner)
    answers: Sequence[float] = [*(ratio for other, ratio in ratios.items() if other != name), ratios[name]]
    is_ended = False
    for answer in answers:
        trial = study.ask()
        trial.report(answer, step=1)
        is_ended = trial.should_prune()
    return is_ended
