"""Ranks the candidates of a comparison, and measures how sure it is that each is worse than the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, TypeAdapter

from trainer.protocol.study import ChildState
from trainer.studies.child_specs import Candidate
from trainer.studies.run_history import Child, RunHistory
from trainer.training.intervals import Interval, jackknife_interval, pair_losses


@dataclass(frozen=True, kw_only=True)
class LeaderboardEntry:
    """One candidate and its results."""

    candidate: Candidate
    child: Child
    #: The epoch after which the comparison ended it; None if it did not.
    ended_after: int | None = None
    #: Its loss over the first one's, at their best epochs up to the same one; None for the first itself, and if there
    #: are too few images.
    against_first: Interval | None = None

    @property
    def has_failed(self) -> bool:
        return self.child.state is ChildState.FAILED

    @property
    def is_contender(self) -> bool:
        """True if it may win: it has a loss, and neither failed nor was ended early."""
        return self.child.ratio is not None and not self.has_failed and self.ended_after is None

    @property
    def may_be_as_good(self) -> bool:
        """True if its interval beside the first holds no difference; False if there is no interval."""
        return self.against_first is not None and self.against_first.low <= 1


def rank(entries: Sequence[LeaderboardEntry], groups: Mapping[str, int]) -> tuple[LeaderboardEntry, ...]:
    """Sort best first: contenders, then those that ended early (the last ones first), then those that failed."""
    order = sorted(entries, key=_sort_key)
    if not order or not order[0].is_contender:
        return tuple(order)
    first = order[0]
    return (first, *(replace(entry, against_first=_against(entry, first, groups)) for entry in order[1:]))


def _sort_key(entry: LeaderboardEntry) -> tuple[bool, int, float]:
    ratio = entry.child.ratio if entry.child.ratio is not None else float("inf")
    return entry.has_failed, -(entry.ended_after or 10**9), ratio


def _against(entry: LeaderboardEntry, first: LeaderboardEntry, groups: Mapping[str, int]) -> Interval | None:
    history, rival = entry.child.history, first.child.history
    until = entry.ended_after or max(history.last_epoch, rival.last_epoch)
    return compare_best(history, rival, groups, until_epoch=until)


class _Triple(BaseModel):
    """A frozen triple (image, timestep, noise), as far as a comparison needs it."""

    image: int
    pixels_sha256: str
    timestep: int


class _Losses(BaseModel):
    """The plain loss of each triple after an epoch, in their order."""

    validation: list[float]


_triples: TypeAdapter[list[_Triple]] = TypeAdapter(list[_Triple])


def compare_best(a: RunHistory, b: RunHistory, groups: Mapping[str, int], *, until_epoch: int) -> Interval | None:
    """The ratio of a's loss over b's, each at its best epoch up to `until_epoch`, with a paired interval over images.

    Args:
        a, b: The runs; if the whole interval is below 1, a is better.
        groups: The group of near duplicates of an image by the hash of its pixels; a group is one observation.
        until_epoch: The last epoch that counts.

    Returns:
        None if the two were not measured on the same triples, or on too few images.
    """
    if a.base is None:
        return None
    triples = _read_triples(a.job_dir)
    if not triples or triples != _read_triples(b.job_dir):
        return None
    bests = [(run, run.best_until(until_epoch)) for run in (a, b)]
    losses = [_read_losses(run.job_dir, best.epoch) if best else () for run, best in bests]
    if any(len(each) != len(triples) for each in losses):
        return None
    firsts = [band.first_timestep for band in a.base.validation.bands]
    return jackknife_interval(
        pair_losses(
            units=[groups.get(triple.pixels_sha256, triple.pixels_sha256) for triple in triples],
            bands=[sum(first <= triple.timestep for first in firsts) for triple in triples],
            model=losses[0],
            base=losses[1],
        )
    )


def _read_triples(job_dir: Path) -> Sequence[_Triple]:
    path = job_dir / "validation" / "validation-triples.json"
    return _triples.validate_json(path.read_bytes()) if path.exists() else ()


def _read_losses(job_dir: Path, epoch: int) -> Sequence[float]:
    """The plain loss of each triple; empty if the trainer kept none."""
    path = job_dir / "validation" / f"epoch-{epoch:03d}.json"
    return _Losses.model_validate_json(path.read_bytes()).validation if path.exists() else ()
