"""How the candidates of a comparison stand: their order, and how sure it is that each is worse than the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trainer.studies.children import End, Outcome
from trainer.studies.grid import Candidate
from trainer.studies.measured import compare_best
from trainer.training.intervals import Interval


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One candidate and how far it came."""

    candidate: Candidate
    outcome: Outcome
    #: The epoch after which the comparison ended it; None if it did not.
    ended_after: int | None = None
    #: Its loss over the first one's, at their best epochs up to the same one; None for the first itself, and where
    #: there are too few pictures.
    against_first: Interval | None = None

    @property
    def ratio(self) -> float | None:
        """The best validation loss over the base model's; None before the first epoch."""
        best = self.outcome.story.best
        return best.validation.ratio if best else None

    @property
    def has_failed(self) -> bool:
        return self.outcome.end is End.FAILED

    @property
    def is_in_the_running(self) -> bool:
        return self.ratio is not None and not self.has_failed and self.ended_after is None

    @property
    def may_be_as_good(self) -> bool:
        """Whether chance alone may have put it behind the first; without an interval nobody knows."""
        return self.against_first is not None and self.against_first.low <= 1


def rank(standings: Sequence[Standing], groups: Mapping[str, int]) -> tuple[Standing, ...]:
    """Best first: those in the running, those that were ended (the last ones first), those that failed."""
    order = sorted(standings, key=_place)
    if not order or not order[0].is_in_the_running:
        return tuple(order)
    first = order[0]
    return (first, *(replace(one, against_first=_against(one, first, groups)) for one in order[1:]))


def _place(standing: Standing) -> tuple[bool, int, float]:
    ratio = standing.ratio if standing.ratio is not None else float("inf")
    return standing.has_failed, -(standing.ended_after or 10**9), ratio


def _against(standing: Standing, first: Standing, groups: Mapping[str, int]) -> Interval | None:
    until = standing.ended_after or max(standing.outcome.story.last_epoch, first.outcome.story.last_epoch)
    return compare_best(standing.outcome.story, first.outcome.story, groups, until_epoch=until)
