"""Trainings whose process lives and says nothing, and those that will not die: told once for each silence."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from bot.config import QueueSettings
from bot.db import Connection, Database
from bot.queue import JobStore, State
from bot.queue.liveness import hang_limit_s
from bot.queue.store.job_rows import Busy
from bot.scheduled.news import News
from bot.ui.text import clock, duration, plain

log = logging.getLogger(__name__)

#: A process gets one grace to save its checkpoint, is killed after it, and is gone moments later, or never.
_GRACES = 3


class SilenceWatch:
    """Looks at what runs; the dispatcher is who does something about it."""

    def __init__(
        self,
        db: Database,
        jobs: JobStore,
        news: News,
        *,
        settings: QueueSettings | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._db = db
        self._jobs = jobs
        self._news = news
        self._settings = settings or QueueSettings()
        self._now = now
        #: The dispatcher counts silence from its own start on.
        self._began_at = now()

    async def look(self) -> None:
        """Look at every running job once."""
        for busy in await self._jobs.runs.busy():
            if busy.is_study:
                continue
            is_left_alone = busy.stop_sent_at is None and busy.state is not State.STOPPING
            if is_left_alone and busy.heard_at is not None and self._now() >= busy.heard_at + self._settings.silence_s:
                await self._tell_silence(busy, busy.heard_at)
            if busy.stop_sent_at is not None and self._is_overdue(busy.stop_sent_at):
                await self._tell_undead(busy, busy.stop_sent_at)

    def _is_overdue(self, stop_sent_at: float) -> bool:
        return self._now() >= stop_sent_at + _GRACES * self._settings.stop_grace_s

    async def _tell_silence(self, busy: Busy, heard_at: float) -> None:
        silent = duration(self._now() - heard_at)
        text = f"has said nothing for {silent}; its process lives. {self._what_follows(busy, heard_at)}"
        await self._tell(busy, text, key=f"job:{busy.job_id}:silent:{busy.attempt}:{heard_at}")

    def _what_follows(self, busy: Busy, heard_at: float) -> str:
        limit_s = hang_limit_s(busy, self._settings)
        if limit_s is None:
            return "If it hangs, cancel it: the checkpoint is kept."
        ends_at = max(heard_at, self._began_at) + limit_s
        if ends_at <= self._now():
            # The bot or the machine slept, which counts for nothing: at most the whole time is still to come.
            ends_at = self._now() + limit_s
        until = clock(datetime.fromtimestamp(ends_at, UTC))
        return f"If it says nothing until about {until}, it is ended and goes on from its checkpoint."

    async def _tell_undead(self, busy: Busy, stop_sent_at: float) -> None:
        happened = "was told to stop" if busy.state is State.STOPPING else "was ended"
        text = (
            f"{happened} {duration(self._now() - stop_sent_at)} ago and is still there, although it was killed. "
            "It holds its GPU; a driver that hangs needs a restart of the machine."
        )
        await self._tell(busy, text, key=f"job:{busy.job_id}:undead:{busy.attempt}:{stop_sent_at}")

    async def _tell(self, busy: Busy, text: str, *, key: str) -> None:
        async with self._db.transaction() as connection:
            if await _is_told(connection, key):
                return
            rows = list(
                await connection.execute_fetchall("SELECT name, channel_id FROM job WHERE id = ?", (busy.job_id,))
            )
            words = f"#{busy.job_id} {plain(rows[0]['name'])} {text}"
            await self._news.put(connection, words, key=key, channel_id=rows[0]["channel_id"])


async def _is_told(connection: Connection, key: str) -> bool:
    return bool(list(await connection.execute_fetchall("SELECT 1 FROM outbox WHERE dedupe_key = ?", (key,))))
