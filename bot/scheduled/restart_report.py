"""Reports after a start how long the bot was away, and what became of the attempts that ran before."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from bot.clock import SYSTEM_CLOCK, Clock
from bot.db import Database
from bot.db.database import put_setting, read_setting, write_setting
from bot.scheduled.alerts import AdminNotifier
from bot.ui.admin_news import BotRestarted

_SETTING = "bot.last_seen"
_OUTBOX = """
SELECT (SELECT COALESCE(MAX(id), 0) FROM outbox) AS newest,
    (SELECT COUNT(*) FROM outbox WHERE state IN ('waiting', 'sending')) AS unsent
"""
_RUNNING = """
SELECT id AS job_id, attempt FROM job
WHERE state IN ('preparing', 'running', 'stopping') AND gpus > 0 AND handle IS NOT NULL
"""
_AFTER = """
SELECT ended_at IS NULL AS is_running, EXISTS (
    SELECT 1 FROM job_event WHERE job_event.job_id = attempt.job_id AND job_event.attempt = attempt.attempt
    AND type IN ('finished', 'stopped', 'failed')) AS has_terminal_event
FROM attempt WHERE job_id = ? AND attempt = ?
"""


@dataclass(frozen=True, kw_only=True)
class _StateAtStart:
    #: None if the bot never ran before.
    last_seen: float | None
    #: (job, attempt) that ran.
    attempts: tuple[tuple[int, int], ...]
    newest_message: int
    unsent: int


class RestartReport:
    """`record` before the dispatcher runs, `send` after its first pass, `mark_alive` each minute."""

    def __init__(self, db: Database, notifier: AdminNotifier, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._db = db
        self._notifier = notifier
        self._clock = clock
        self._before: _StateAtStart | None = None

    async def record(self) -> None:
        """Record the state at the start, before anything changes it."""
        seen = await read_setting(self._db, _SETTING)
        row = await self._db.one(_OUTBOX)
        assert row is not None
        self._before = _StateAtStart(
            last_seen=None if seen is None else float(seen),
            attempts=tuple((each["job_id"], each["attempt"]) for each in await self._db.all(_RUNNING)),
            newest_message=row["newest"],
            unsent=row["unsent"],
        )

    async def send(self) -> None:
        """Send the report, once; if the bot is killed before, the next start reports it."""
        before, self._before = self._before, None
        if before is None:
            return
        if before.last_seen is None:
            await self.mark_alive()
            return
        news = await self._compare(before, before.last_seen)
        async with self._db.transaction() as connection:
            await self._notifier.put(connection, news, key=f"boot:{before.last_seen}", level=logging.INFO)
            await put_setting(connection, _SETTING, str(self._clock.time()))

    async def mark_alive(self) -> None:
        """Record that the bot runs; not before it has reported how long it was away."""
        if self._before is None:
            await write_setting(self._db, _SETTING, str(self._clock.time()))

    async def _compare(self, before: _StateAtStart, last_seen: float) -> BotRestarted:
        running = ended = 0
        for attempt in before.attempts:
            row = await self._db.one(_AFTER, attempt)
            if row is None or row["is_running"]:
                running += 1
            elif row["has_terminal_event"]:
                ended += 1
        new = await self._db.one("SELECT COUNT(*) AS number FROM outbox WHERE id > ?", (before.newest_message,))
        assert new is not None
        return BotRestarted(
            away_s=max(0.0, self._clock.time() - last_seen),
            running=running,
            ended=ended,
            lost=len(before.attempts) - running - ended,
            messages=before.unsent + new["number"],
        )
