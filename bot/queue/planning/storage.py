"""What the jobs take on the disk, measured, and what the retention rules say of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from bot.config import RetentionSettings
from bot.db import Database, Row
from bot.queue.domain.job import ENDS, State
from bot.queue.planning.retention import Holding, Plan, Totals, plan_retention, totals_of
from bot.queue.store.job_rows import folder_of

CHECKPOINTS = "checkpoints"

_KEPT = "SELECT * FROM job WHERE spec IS NOT NULL AND files_deleted_at IS NULL ORDER BY id"


class Storage:
    """Looks at the folders of jobs; changes nothing."""

    def __init__(
        self,
        db: Database,
        *,
        data_dir: Path,
        settings: RetentionSettings | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._db = db
        self._data_dir = data_dir.absolute()
        self._settings = settings or RetentionSettings()
        self._now = now

    async def survey(self, in_store: Collection[int] = ()) -> tuple[Plan, Totals]:
        """What would be deleted now, and the sums beside it.

        `in_store`: jobs whose checkpoints may lie in an object store.
        """
        holdings = [replace(one, is_in_store=one.job_id in in_store) for one in await self.holdings()]
        usage = await asyncio.to_thread(shutil.disk_usage, self._data_dir)
        return plan_retention(holdings, self._settings, self._now()), totals_of(holdings, usage.free)

    async def holdings(self) -> list[Holding]:
        """What each job keeps; a study and its children, whose folders lie in its own, are one."""
        families: dict[int, list[Row]] = {}
        for row in await self._db.all(_KEPT):
            families.setdefault(row["parent_id"] or row["id"], []).append(row)
        return await asyncio.to_thread(self._measured, list(families.values()))

    def _measured(self, families: Sequence[Sequence[Row]]) -> list[Holding]:
        jobs_dir = self._data_dir / "jobs"
        return [holding_of(family, jobs_dir) for family in families if family[0]["parent_id"] is None]


def holding_of(family: Sequence[Row], jobs_dir: Path) -> Holding:
    """What a job and its children keep on the disk."""
    job = family[0]
    return Holding(
        job_id=job["id"],
        name=job["name"],
        owner_id=job["owner_id"],
        state=State(job["state"]),
        ended_at=job["ended_at"],
        is_pinned=any(row["pinned_at"] is not None for row in family),
        is_shared=any(row["shared_at"] is not None for row in family),
        is_busy=any(State(row["state"]) not in ENDS for row in family),
        checkpoint_bytes=sum(bytes_in(jobs_dir / folder_of(row) / CHECKPOINTS) for row in family),
        bytes=bytes_in(jobs_dir / folder_of(job)),
    )


def bytes_in(folder: Path) -> int:
    """The size of all files below a folder; links are not followed, and what vanishes meanwhile counts nothing."""
    if folder.is_symlink():
        return 0
    total = 0
    waiting = [os.fspath(folder)]
    while waiting:
        for entry in _entries(waiting.pop()):
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            else:
                total += _bytes_of(entry)
    return total


def _entries(folder: str) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _bytes_of(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0
