"""Which files of ended jobs may go to make room: a pure plan, each deletion with its reason in a sentence.

Checkpoints go before whole jobs: results, samples and charts are what people come back for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from bot.config import RetentionSettings
from bot.queue.domain.job import State

_DAY_S = 86_400
_GIB = 1024**3
#: Retry goes on from the checkpoint of a failed job.
KEEP_FAILED_DAYS = 7
#: Nobody can queue these again, so what only serves to go on may go.
_FINAL = frozenset({State.SUCCEEDED, State.STOPPED})


class What(StrEnum):
    """How much of a job is deleted."""

    CHECKPOINTS = "checkpoints"
    EVERYTHING = "everything"


@dataclass(frozen=True, kw_only=True)
class Holding:
    """What one job keeps on the disk; of a study, with its children."""

    job_id: int
    name: str
    owner_id: int
    state: State
    #: Seconds since the epoch; None while it has not ended.
    ended_at: float | None
    #: It or one of its children is pinned, or shared with the team.
    is_pinned: bool
    is_shared: bool
    #: One of its children has not ended.
    is_busy: bool
    checkpoint_bytes: int
    #: All its files, checkpoints included.
    bytes: int
    #: It has more in an object store, where checkpoints may lie that this disk never had.
    is_in_store: bool = False

    def age_days(self, now: float) -> float:
        return 0.0 if self.ended_at is None else (now - self.ended_at) / _DAY_S


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """Files of one job that go."""

    job_id: int
    owner_id: int
    what: What
    bytes: int
    #: For people: what, and why.
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would be deleted, in this order."""

    deletions: tuple[Deletion, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(deletion.bytes for deletion in self.deletions)


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What stands on the disk, for people."""

    free_bytes: int
    bytes_by_owner: dict[int, int]
    #: Of ended jobs that are kept because they are pinned or shared.
    held_bytes: int


def totals_of(holdings: Sequence[Holding], free_bytes: int) -> Totals:
    """The sums that people see beside a plan."""
    by_owner: dict[int, int] = {}
    for holding in holdings:
        by_owner[holding.owner_id] = by_owner.get(holding.owner_id, 0) + holding.bytes
    held = sum(holding.bytes for holding in holdings if holding.is_pinned or holding.is_shared)
    return Totals(free_bytes=free_bytes, bytes_by_owner=by_owner, held_bytes=held)


def plan_retention(holdings: Sequence[Holding], settings: RetentionSettings, now: float) -> Plan:
    """What the settings say may go: by age first, then what is left above each person's limit, oldest first."""
    newest = _newest(holdings, settings.keep_newest)
    free = [one for one in holdings if _may_go(one, now) and one.job_id not in newest]
    free.sort(key=lambda one: (one.ended_at or 0.0, one.job_id))
    planner = _Planner()
    if settings.max_age_days:
        planner.by_age(free, settings.max_age_days, now)
    if settings.max_bytes_per_person:
        for owner_id in sorted({one.owner_id for one in free}):
            held = sum(one.bytes for one in holdings if one.owner_id == owner_id and one.state.is_end)
            planner.by_size([one for one in free if one.owner_id == owner_id], held, settings.max_bytes_per_person)
    return Plan(deletions=tuple(planner.deletions.values()))


class _Planner:
    """Collects deletions, no more than one for each job."""

    def __init__(self) -> None:
        self.deletions: dict[int, Deletion] = {}

    def by_age(self, free: Sequence[Holding], days: int, now: float) -> None:
        for one in free:
            why = f"it ended {one.age_days(now):.0f} days ago"
            if one.age_days(now) >= 2 * days:
                self._delete(one, What.EVERYTHING, f"{why} (limit: {2 * days})")
            elif one.age_days(now) >= days:
                self._delete(one, What.CHECKPOINTS, f"{why} (limit: {days})", even_elsewhere=one.is_in_store)

    def by_size(self, free: Sequence[Holding], held: int, limit: int) -> None:
        """`free` and `held` of one person."""
        held -= sum(self._freed(one) for one in free)
        for what in What:
            for one in free:
                if held <= limit:
                    return
                before = self._freed(one)
                self._delete(one, what, f"its owner's ended jobs take {_gib(held)} of {_gib(limit)}")
                held -= self._freed(one) - before

    def _freed(self, one: Holding) -> int:
        known = self.deletions.get(one.job_id)
        return known.bytes if known else 0

    def _delete(self, one: Holding, what: What, why: str, *, even_elsewhere: bool = False) -> None:
        """Delete so much of a job, if that frees more here than what goes already (or something `even_elsewhere`)."""
        is_checkpoints = what is What.CHECKPOINTS
        freed = one.checkpoint_bytes if is_checkpoints else one.bytes
        if is_checkpoints and one.state not in _FINAL:
            return
        if freed <= self._freed(one) and not even_elsewhere:
            return
        files = "the checkpoints" if is_checkpoints else "all files"
        amount = f"{_gib(freed)} here, and what the object store has" if even_elsewhere else _gib(freed)
        sentence = f"#{one.job_id} {one.name}: {files} ({amount}), because {why}."
        self.deletions.pop(one.job_id, None)
        self.deletions[one.job_id] = Deletion(
            job_id=one.job_id, owner_id=one.owner_id, what=what, bytes=freed, sentence=sentence
        )


def _may_go(one: Holding, now: float) -> bool:
    if not one.state.is_end or one.ended_at is None or one.is_busy or one.is_pinned or one.is_shared:
        return False
    return one.state is not State.FAILED or one.age_days(now) >= KEEP_FAILED_DAYS


def _newest(holdings: Sequence[Holding], keep: int) -> set[int]:
    """The newest results of each person."""
    kept: dict[int, list[int]] = {}
    for one in sorted(holdings, key=lambda one: (one.ended_at or 0.0, one.job_id), reverse=True):
        if one.state in _FINAL and one.bytes:
            kept.setdefault(one.owner_id, []).append(one.job_id)
    return {job_id for of_owner in kept.values() for job_id in of_owner[:keep]}


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB / 10 else f"{count / 1024**2:.0f} MiB"
