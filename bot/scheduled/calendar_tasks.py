"""Tasks that are due once a night or once a week: the database backup and the weekly digest.

What was done is stored, so that nothing is lost or done twice: a machine that slept through the hour makes up for it
when it wakes, and a clock that jumps back finds it done.
"""

from __future__ import annotations

import logging
from datetime import datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import BackupSettings
from bot.db import Database, back_up
from bot.db.database import put_setting, read_setting, write_setting
from bot.errors import DarkroomError
from bot.queue.planning.retention import Storage
from bot.queue.planning.windows import Windows
from bot.scheduled.alerts import AdminNotifier
from bot.ui.admin_news import BackupFailed, BestResult, LikedPicture, WeeklyDigest
from trainer.protocol.text import size

log = logging.getLogger(__name__)

_BACKUP_SETTING = "backup.last"
_DIGEST_SETTING = "digest.last"
#: Monday morning, in the time zone of the windows.
_WEEKDAY, _DIGEST_AT = 0, time(9)

#: One statement, so that all of it is of one moment: ends by state, GPU seconds by owner, the best results, and the
#: pictures of the gallery that were liked most in this week.
_WEEK = """
SELECT 'end' AS kind, state AS text, COUNT(*) AS number, NULL AS job_id, NULL AS value FROM job
    WHERE ended_at >= :since AND ended_at < :until AND parent_id IS NULL AND kind = 'train'
      AND state IN ('succeeded', 'stopped', 'failed', 'cancelled') GROUP BY state
UNION ALL
SELECT 'gpu', NULL, owner_id, NULL, SUM(gpus * (MIN(COALESCE(ended_at, :until), :until) - MAX(started_at, :since)))
    FROM attempt WHERE started_at < :until AND COALESCE(ended_at, :until) > :since AND gpus > 0 GROUP BY owner_id
UNION ALL
SELECT * FROM (
    SELECT 'best', name, owner_id, id, json_extract(terminal_event, '$.best_ratio') AS ratio FROM job
    WHERE ended_at >= :since AND ended_at < :until AND state IN ('succeeded', 'stopped')
      AND json_extract(terminal_event, '$.best_ratio') IS NOT NULL
    ORDER BY ratio, id LIMIT 5)
UNION ALL
SELECT * FROM (
    SELECT 'liked', job.name, post.owner_id, job.id, COUNT(*) AS likes FROM gallery_vote AS vote
    JOIN gallery_post AS post ON post.id = vote.post_id JOIN job ON job.id = post.job_id
    WHERE vote.at >= :since AND vote.at < :until AND post.withdrawn_at IS NULL
    GROUP BY post.id ORDER BY likes DESC, post.id LIMIT 3)
"""


def last_daily(now: float, clock_time: time, zone: ZoneInfo) -> datetime:
    """The newest moment, not after `now`, at which the clock of `zone` showed that time."""
    local = datetime.fromtimestamp(now, zone)
    today = datetime.combine(local.date(), clock_time, zone)
    return today if today <= local else datetime.combine(local.date() - timedelta(days=1), clock_time, zone)


def last_weekly(now: float, weekday: int, clock_time: time, zone: ZoneInfo) -> datetime:
    """As `last_daily`, on that day of the week (0 is Monday)."""
    day = last_daily(now, clock_time, zone)
    return datetime.combine(day.date() - timedelta(days=(day.weekday() - weekday) % 7), clock_time, zone)


async def is_due(db: Database, name: str, label: str) -> bool:
    """Whether the occurrence called `label` is still to be done; labels sort by time.

    At the very first check nothing is due: there is nothing yet to copy or to report.
    """
    done = await read_setting(db, name)
    if done is None:
        await write_setting(db, name, label)
        return False
    return label > done


class NightlyBackup:
    """Copies the database once a night, at its hour or as soon after it as the machine is awake."""

    def __init__(
        self,
        db: Database,
        notifier: AdminNotifier,
        *,
        settings: BackupSettings,
        zone: ZoneInfo,
        folder: Path,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._db = db
        self._notifier = notifier
        self._settings = settings
        self._zone = zone
        self._folder = folder
        self._clock = clock

    async def check(self) -> Path | None:
        """Make the copy if it is due; None if not, or if it failed: then there is news once a night, and a retry."""
        if self._settings.clock is None:
            return None
        night = f"{last_daily(self._clock.time(), self._settings.clock, self._zone):%Y-%m-%d}"
        if not await is_due(self._db, _BACKUP_SETTING, night):
            return None
        try:
            copy = await back_up(self._db.path, self._folder, keep=self._settings.keep, clock=self._clock)
        except (DarkroomError, OSError) as error:
            news = BackupFailed(error=str(error))
            await self._notifier.send(news, key=f"backup:{night}:failed", level=logging.ERROR)
            return None
        await write_setting(self._db, _BACKUP_SETTING, night)
        log.info("database copied to %s (%s), opened and found sound", copy.path, size(copy.bytes))
        return copy.path


class DigestSender:
    """Sends the digest of a week once, on Monday morning or as soon after it as the machine is awake."""

    def __init__(
        self,
        db: Database,
        notifier: AdminNotifier,
        storage: Storage,
        windows: Windows,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._db = db
        self._notifier = notifier
        self._storage = storage
        self._windows = windows
        self._clock = clock

    async def check(self) -> None:
        """Send the digest of the last week if it is due and was not sent."""
        until = last_weekly(self._clock.time(), _WEEKDAY, _DIGEST_AT, self._windows.zone)
        label = f"{until:%G-W%V}"
        if not await is_due(self._db, _DIGEST_SETTING, label):
            return
        digest = await self.read(until)
        async with self._db.transaction() as connection:
            await put_setting(connection, _DIGEST_SETTING, label)
            await self._notifier.put(connection, digest, key=f"digest:{label}", level=logging.INFO)

    async def read(self, until: datetime) -> WeeklyDigest:
        """Read what happened in the seven days before `until`."""
        end = until.timestamp()
        rows = await self._db.all(_WEEK, {"since": end - 7 * 86_400.0, "until": end})
        opening = self._windows.next_opening(self._clock.time())
        _plan, totals = await self._storage.survey()
        return WeeklyDigest(
            until=until,
            ends={row["text"]: row["number"] for row in rows if row["kind"] == "end"},
            gpu_seconds={row["number"]: row["value"] for row in rows if row["kind"] == "gpu"},
            best=tuple(
                BestResult(job_id=row["job_id"], name=row["text"], owner_id=row["number"], ratio=row["value"])
                for row in rows
                if row["kind"] == "best"
            ),
            liked=tuple(
                LikedPicture(job_id=row["job_id"], name=row["text"], owner_id=row["number"], likes=row["value"])
                for row in rows
                if row["kind"] == "liked"
            ),
            stored_bytes=sum(totals.bytes_by_owner.values()),
            free_bytes=totals.free_bytes,
            opens_at=None if opening is None else datetime.fromtimestamp(opening, self._windows.zone),
        )
