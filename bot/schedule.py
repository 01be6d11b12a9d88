"""Chores by the clock (APScheduler 3): each is a plain function that can be called without it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from bot.datasets import DatasetStore
from bot.db import Database
from bot.queue import DraftStore, JobStore

log = logging.getLogger(__name__)

_DAY_S = 86_400.0


async def sweep_leftovers(datasets: DatasetStore) -> None:
    """Delete uploads that became no dataset, deleted datasets and old revisions that no job needs, after a day."""
    if count := await datasets.sweep(older_than_s=_DAY_S):
        log.info("%d left-over folders of datasets deleted", count)


async def sweep_drafts(drafts: DraftStore) -> None:
    """Delete requests that nobody let go for a day."""
    if count := await drafts.sweep():
        log.info("%d requests that waited for a day deleted", count)


async def empty_wal(db: Database) -> None:
    """Bring the write-ahead log back to nothing; readers that never pause can make it grow."""
    await db.checkpoint()


class SilenceWatch:
    """Notes trainings whose process lives and says nothing, once for each silence."""

    def __init__(self, jobs: JobStore, *, silence_s: float, now: Callable[[], float] = time.time) -> None:
        self._jobs = jobs
        self._silence_s = silence_s
        self._now = now
        self._noted: set[tuple[int, float]] = set()

    async def look(self) -> None:
        """Look at every running job once."""
        silent: set[tuple[int, float]] = set()
        for busy in await self._jobs.busy():
            if busy.heard_at is None or self._now() < busy.heard_at + self._silence_s:
                continue
            silent.add((busy.job_id, busy.heard_at))
            if (busy.job_id, busy.heard_at) not in self._noted:
                log.warning(
                    "#%d has said nothing for %.0f min; its process lives",
                    busy.job_id,
                    (self._now() - busy.heard_at) / 60,
                )
        self._noted = silent


class Schedule:
    """A plain service around APScheduler's; `start` needs a running event loop."""

    def __init__(
        self, *, db: Database, datasets: DatasetStore, drafts: DraftStore, jobs: JobStore, silence_s: float
    ) -> None:
        self._scheduler = AsyncIOScheduler(timezone="UTC", job_defaults={"coalesce": True, "max_instances": 1})
        watch = SilenceWatch(jobs, silence_s=silence_s)
        self._scheduler.add_job(sweep_leftovers, "interval", hours=6, args=[datasets])
        self._scheduler.add_job(sweep_drafts, "interval", hours=1, args=[drafts])
        self._scheduler.add_job(empty_wal, "interval", hours=1, args=[db])
        self._scheduler.add_job(watch.look, "interval", minutes=1)

    def start(self) -> None:
        """Begin; the first chore comes after its interval."""
        self._scheduler.start()

    def stop(self) -> None:
        """End; a chore that runs is cancelled."""
        self._scheduler.shutdown(wait=False)
