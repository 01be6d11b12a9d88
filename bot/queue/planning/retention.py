"""Retention: what jobs keep on the disk, and a plan which files of ended jobs to delete. Deletes nothing itself.

Checkpoints go before whole jobs: people come back for results, samples and charts.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import RetentionSettings
from bot.db import Database, Row
from bot.queue.domain.job import ENDS, State, folder_of
from bot.queue.store.job_sql import listed
from trainer.protocol.run_options import JobKind

CHECKPOINTS = "checkpoints"
#: Folders of samplings whose members brought a file begin so; the rest is the interaction.
BROUGHT_FILES = "file-"
#: Retry continues from the checkpoint of a failed job.
KEEP_FAILED_DAYS = 7

_DAY_S = 86_400
#: These are done, so their checkpoints may go, and with them the way to extend them.
_FINAL = frozenset({State.SUCCEEDED, State.STOPPED})
#: True while a job that has not ended draws with a training, or with a run of a study, or starts from it.
IS_SOURCE = f"""EXISTS (SELECT 1 FROM job AS following WHERE following.state NOT IN {listed(ENDS)}
    AND following.source_id IN (SELECT job.id UNION ALL SELECT run.id FROM job AS run WHERE run.parent_id = job.id))"""
_KEPT = f"SELECT *, {IS_SOURCE} AS is_source FROM job WHERE files_deleted_at IS NULL ORDER BY id"


def has_checkpoint(job_dir: Path) -> bool:
    """True unless the checkpoints of a job were deleted to make room."""
    return next((job_dir / CHECKPOINTS).glob("*"), None) is not None


class DeletionScope(StrEnum):
    """How much of a job is deleted."""

    CHECKPOINTS = "checkpoints"
    EVERYTHING = "everything"


class DeletionReason(StrEnum):
    """The limit that a deletion enforces."""

    #: `RetentionSettings.max_age_days`, in days.
    AGE = "age"
    #: `RetentionSettings.max_gib_per_person`, in bytes of the owner's ended jobs.
    SIZE = "size"


@dataclass(frozen=True, kw_only=True)
class StoredJob:
    """What one job keeps on the disk; a study includes its children."""

    job_id: int
    name: str
    owner_id: int
    state: State
    #: Seconds since the epoch; None while it has not ended.
    ended_at: float | None
    #: It or one of its children is pinned, or shared with the team.
    is_pinned: bool
    is_shared: bool
    #: It or one of its children has not ended, or a job that has not ended uses its weights.
    is_active: bool
    #: It is a sampling: a few images, and no result to keep for its own sake.
    is_sampling: bool = False
    checkpoint_bytes: int
    #: All its files, checkpoints included.
    bytes: int

    def age_days(self, now: float) -> float:
        """Days since it ended; 0 if it has not."""
        return 0.0 if self.ended_at is None else (now - self.ended_at) / _DAY_S


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """Files of one job that are deleted, and why."""

    job_id: int
    name: str
    owner_id: int
    scope: DeletionScope
    bytes: int
    reason: DeletionReason
    #: In days or bytes, as the reason is.
    value: float
    limit: float


@dataclass(frozen=True, kw_only=True)
class RetentionPlan:
    """What would be deleted, in this order."""

    deletions: tuple[Deletion, ...] = ()

    @property
    def bytes(self) -> int:
        """All that the deletions free."""
        return sum(deletion.bytes for deletion in self.deletions)


@dataclass(frozen=True, kw_only=True)
class StorageTotals:
    """The sums beside a plan."""

    free_bytes: int
    bytes_by_owner: dict[int, int]
    #: Of jobs that are kept because they are pinned or shared.
    protected_bytes: int


class Storage:
    """Measures the folders of jobs and plans deletions."""

    def __init__(
        self,
        db: Database,
        *,
        data_dir: Path,
        settings: RetentionSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._db = db
        self._data_dir = data_dir.absolute()
        self._settings = settings or RetentionSettings()
        self._clock = clock

    async def survey(self) -> tuple[RetentionPlan, StorageTotals]:
        """What would be deleted now, and the sums beside it."""
        families: dict[int, list[Row]] = {}
        for row in await self._db.all(_KEPT):
            families.setdefault(row["parent_id"] or row["id"], []).append(row)
        jobs = await asyncio.to_thread(self._measure, list(families.values()))
        usage = await asyncio.to_thread(shutil.disk_usage, self._data_dir)
        return plan_retention(jobs, self._settings, self._clock.time()), totals_of(jobs, usage.free)

    def _measure(self, families: Sequence[Sequence[Row]]) -> list[StoredJob]:
        jobs_dir = self._data_dir / "jobs"
        return [_stored_job(family, jobs_dir) for family in families if family[0]["parent_id"] is None]


def _stored_job(family: Sequence[Row], jobs_dir: Path) -> StoredJob:
    """Measure a job and its children, whose folders lie in its own."""
    job = family[0]
    return StoredJob(
        job_id=job["id"],
        name=job["name"],
        owner_id=job["owner_id"],
        state=State(job["state"]),
        ended_at=job["ended_at"],
        is_pinned=any(row["pinned_at"] is not None for row in family),
        is_shared=any(row["shared_at"] is not None for row in family),
        is_active=any(State(row["state"]) not in ENDS or row["is_source"] for row in family),
        is_sampling=job["kind"] == JobKind.SAMPLE,
        checkpoint_bytes=sum(bytes_in(jobs_dir / folder_of(row) / CHECKPOINTS) for row in family),
        bytes=bytes_in(jobs_dir / folder_of(job)),
    )


def totals_of(jobs: Sequence[StoredJob], free_bytes: int) -> StorageTotals:
    """Sum up what jobs keep."""
    by_owner: dict[int, int] = {}
    for job in jobs:
        by_owner[job.owner_id] = by_owner.get(job.owner_id, 0) + job.bytes
    protected = sum(job.bytes for job in jobs if job.is_pinned or job.is_shared)
    return StorageTotals(free_bytes=free_bytes, bytes_by_owner=by_owner, protected_bytes=protected)


def plan_retention(jobs: Sequence[StoredJob], settings: RetentionSettings, now: float) -> RetentionPlan:
    """Plan deletions: first by age, then what exceeds each owner's limit, the oldest first."""
    newest = _newest_results(jobs, settings.keep_newest)
    deletable = [job for job in jobs if _is_deletable(job, now) and job.job_id not in newest]
    deletable.sort(key=lambda job: (job.ended_at or 0.0, job.job_id))
    planner = _Planner()
    if settings.max_age_days:
        planner.apply_age(deletable, settings.max_age_days, now)
    if settings.max_bytes_per_person:
        for owner_id in sorted({job.owner_id for job in deletable}):
            held = sum(job.bytes for job in jobs if job.owner_id == owner_id and job.state.is_end)
            of_owner = [job for job in deletable if job.owner_id == owner_id]
            planner.apply_size(of_owner, held, settings.max_bytes_per_person)
    return RetentionPlan(deletions=tuple(planner.deletions.values()))


class _Planner:
    """Collects deletions, at most one for each job."""

    def __init__(self) -> None:
        self.deletions: dict[int, Deletion] = {}

    def apply_age(self, jobs: Sequence[StoredJob], days: int, now: float) -> None:
        for job in jobs:
            age = job.age_days(now)
            if age >= 2 * days:
                self._delete(job, DeletionScope.EVERYTHING, DeletionReason.AGE, age, 2 * days)
            elif age >= days:
                self._delete(job, DeletionScope.CHECKPOINTS, DeletionReason.AGE, age, days)

    def apply_size(self, jobs: Sequence[StoredJob], held: int, limit: int) -> None:
        """Delete until one owner's ended jobs, `held` bytes, are within the limit; `jobs` are the deletable ones."""
        held -= sum(self._freed(job) for job in jobs)
        for scope in DeletionScope:
            for job in jobs:
                if held <= limit:
                    return
                before = self._freed(job)
                self._delete(job, scope, DeletionReason.SIZE, held, limit)
                held -= self._freed(job) - before

    def _freed(self, job: StoredJob) -> int:
        known = self.deletions.get(job.job_id)
        return known.bytes if known else 0

    def _delete(self, job: StoredJob, scope: DeletionScope, reason: DeletionReason, value: float, limit: float) -> None:
        """Add a deletion if it frees more than the one planned already."""
        is_checkpoints = scope is DeletionScope.CHECKPOINTS
        freed = job.checkpoint_bytes if is_checkpoints else job.bytes
        if freed <= self._freed(job) or (is_checkpoints and job.state not in _FINAL):
            return
        self.deletions.pop(job.job_id, None)
        self.deletions[job.job_id] = Deletion(
            job_id=job.job_id,
            name=job.name,
            owner_id=job.owner_id,
            scope=scope,
            bytes=freed,
            reason=reason,
            value=value,
            limit=limit,
        )


def _is_deletable(job: StoredJob, now: float) -> bool:
    if not job.state.is_end or job.ended_at is None or job.is_active or job.is_pinned or job.is_shared:
        return False
    return job.state is not State.FAILED or job.age_days(now) >= KEEP_FAILED_DAYS


def _newest_results(jobs: Sequence[StoredJob], keep: int) -> set[int]:
    kept: dict[int, list[int]] = {}
    for job in sorted(jobs, key=lambda job: (job.ended_at or 0.0, job.job_id), reverse=True):
        if job.state in _FINAL and job.bytes and not job.is_sampling:
            kept.setdefault(job.owner_id, []).append(job.job_id)
    return {job_id for of_owner in kept.values() for job_id in of_owner[:keep]}


def bytes_in(folder: Path) -> int:
    """The size of all files below a folder; links are not followed, and files that vanish meanwhile do not count."""
    if folder.is_symlink():
        return 0
    total = 0
    pending = [os.fspath(folder)]
    while pending:
        for entry in _entries(pending.pop()):
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            else:
                total += _size_of(entry)
    return total


def _entries(folder: str) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _size_of(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0
