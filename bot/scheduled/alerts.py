"""Alerts about the machine: `AdminNotifier` stores them, `DiskAlerts` and `HangAlerts` watch for two kinds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime

from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import QueueSettings
from bot.db import Connection, Database
from bot.db.database import put_setting, read_setting
from bot.outbox import Notification, NotificationKind, Outbox
from bot.queue import JobStore, State
from bot.queue.domain.job import ActiveJob
from bot.queue.liveness import hang_limit_s
from bot.scheduled.admission_control import DiskMonitor
from bot.ui.admin_news import DiskSpace, JobSilent, JobUnkillable, News, news_text

log = logging.getLogger(__name__)

_DISK_SETTING = "health.disk"
#: A process gets one grace time to save its checkpoint, is killed after it, and exits moments later, or never.
_GRACES = 3


class AdminNotifier:
    """Sends news to the log, and to the log channel if there is one."""

    def __init__(self, db: Database, outbox: Outbox, *, channel_id: int) -> None:
        self._db = db
        self._outbox = outbox
        #: 0: none.
        self._channel_id = channel_id

    async def send(self, news: News, *, key: str, level: int = logging.WARNING) -> None:
        """Send news in a transaction of its own, once for each `key`."""
        async with self._db.transaction() as connection:
            await self.put(connection, news, key=key, level=level)

    async def put(
        self,
        connection: Connection,
        news: News,
        *,
        key: str,
        level: int = logging.WARNING,
        channel_id: int | None = None,
    ) -> None:
        """Send news when the caller's transaction commits; `channel_id` replaces the log channel."""
        channel_id = self._channel_id if channel_id is None else channel_id
        self._db.after_commit(lambda: log.log(level, "%s", " ".join(news_text(news).split())))
        if channel_id:
            notification = Notification(kind=NotificationKind.NEWS, dedupe_key=key, detail=news.model_dump_json())
            await self._outbox.put(connection, notification, channel_id=channel_id)


class DiskAlerts:
    """Sends news when the free disk space crosses its limit; the state survives restarts."""

    def __init__(
        self, db: Database, notifier: AdminNotifier, disk: DiskMonitor, *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._db = db
        self._notifier = notifier
        self._disk = disk
        self._clock = clock

    async def check(self) -> None:
        """Send news if the disk has become almost full, or has free space again."""
        is_low = await asyncio.to_thread(self._disk.is_low)
        if is_low == (await read_setting(self._db, _DISK_SETTING) == "low"):
            return
        news = DiskSpace(is_low=is_low, free_bytes=self._disk.free_bytes, min_free_bytes=self._disk.min_free_bytes)
        async with self._db.transaction() as connection:
            await put_setting(connection, _DISK_SETTING, "low" if is_low else "ok")
            level = logging.WARNING if is_low else logging.INFO
            await self._notifier.put(connection, news, key=f"disk:{is_low}:{self._clock.time():.0f}", level=level)


class HangAlerts:
    """Alerts, in the job's channel, to trainings that send no events and to processes that survive their kill.

    The dispatcher is what kills them.
    """

    def __init__(
        self,
        db: Database,
        jobs: JobStore,
        notifier: AdminNotifier,
        *,
        settings: QueueSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._db = db
        self._jobs = jobs
        self._notifier = notifier
        self._settings = settings or QueueSettings()
        self._clock = clock
        #: The dispatcher measures silence from its own start on.
        self._began_at = clock.time()

    async def check(self) -> None:
        """Check every running job once."""
        now = self._clock.time()
        for job in await self._jobs.attempts.active():
            if job.is_study:
                continue
            if job.stop_sent_at is not None:
                if now >= job.stop_sent_at + _GRACES * self._settings.stop_grace_s:
                    await self._alert_unkillable(job, job.stop_sent_at, now)
            elif (
                job.state is not State.STOPPING
                and job.last_event_at is not None
                and now >= job.last_event_at.timestamp() + self._settings.silence_s
            ):
                await self._alert_silent(job, job.last_event_at.timestamp(), now)

    async def _alert_silent(self, job: ActiveJob, last_event_at: float, now: float) -> None:
        kill_at = self._kill_at(job, last_event_at, now)
        await self._alert(
            job,
            lambda name: JobSilent(job_id=job.id, name=name, silent_s=now - last_event_at, kill_at=kill_at),
            key=f"job:{job.id}:silent:{job.attempt}:{last_event_at}",
        )

    def _kill_at(self, job: ActiveJob, last_event_at: float, now: float) -> datetime | None:
        limit_s = hang_limit_s(job, self._settings)
        if limit_s is None:
            return None
        kill_at = max(last_event_at, self._began_at) + limit_s
        if kill_at <= now:
            # The bot or the machine slept, which does not count: at most the whole time is left.
            kill_at = now + limit_s
        return datetime.fromtimestamp(kill_at, UTC)

    async def _alert_unkillable(self, job: ActiveJob, stop_sent_at: float, now: float) -> None:
        was_stopped = job.state is State.STOPPING
        await self._alert(
            job,
            lambda name: JobUnkillable(job_id=job.id, name=name, since_s=now - stop_sent_at, was_stopped=was_stopped),
            key=f"job:{job.id}:unkillable:{job.attempt}:{stop_sent_at}",
        )

    async def _alert(self, job: ActiveJob, news_of: Callable[[str], News], *, key: str) -> None:
        """Send news once for each `key`, to the log too; `news_of` makes it from the job's name."""
        async with self._db.transaction() as connection:
            if list(await connection.execute_fetchall("SELECT 1 FROM outbox WHERE dedupe_key = ?", (key,))):
                return
            rows = await connection.execute_fetchall("SELECT name, channel_id FROM job WHERE id = ?", (job.id,))
            (row,) = rows
            await self._notifier.put(connection, news_of(row["name"]), key=key, channel_id=row["channel_id"])
