"""After a start: how long the bot was away, and what became of the trainings meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from bot.db import Database
from bot.db.setting import put_setting, read_setting, write_setting
from bot.scheduled.news import News
from bot.ui.text import counted, duration

log = logging.getLogger(__name__)

_SETTING = "bot.last_seen"
#: What is there at the start: starts that hold slots, posts that wait, the newest post.
_BEFORE = """
SELECT (SELECT COALESCE(MAX(id), 0) FROM outbox) AS newest_post,
    (SELECT COUNT(*) FROM outbox WHERE state IN ('waiting', 'sending')) AS unsent
"""
_STARTS = """
SELECT id AS job_id, attempt FROM job
WHERE state IN ('preparing', 'running', 'stopping') AND gpus > 0 AND handle IS NOT NULL
"""
#: What became of a start: it goes on, it ended with a word of its trainer's, or it is gone.
_AFTER = """
SELECT ended_at IS NULL AS is_there, EXISTS (
    SELECT 1 FROM job_event WHERE job_event.job_id = attempt.job_id AND job_event.attempt = attempt.attempt
    AND type IN ('finished', 'stopped', 'failed')) AS has_word
FROM attempt WHERE job_id = ? AND attempt = ?
"""


@dataclass(frozen=True, kw_only=True)
class Before:
    """How things stood when the bot started."""

    #: None: it never ran before.
    last_seen: float | None
    starts: tuple[tuple[int, int], ...]
    newest_post: int
    unsent: int


class Boot:
    """`remember` before the dispatcher runs, `tell` when it has looked at every training, `seen` each minute."""

    def __init__(self, db: Database, news: News, *, now: Callable[[], float] = time.time) -> None:
        self._db = db
        self._news = news
        self._now = now
        self._before: Before | None = None

    async def remember(self) -> None:
        """Note how things stand, before anybody changes them."""
        seen = await read_setting(self._db, _SETTING)
        row = await self._db.one(_BEFORE)
        assert row is not None
        self._before = Before(
            last_seen=None if seen is None else float(seen),
            starts=tuple((start["job_id"], start["attempt"]) for start in await self._db.all(_STARTS)),
            newest_post=row["newest_post"],
            unsent=row["unsent"],
        )

    async def tell(self) -> None:
        """Say what became of it, once; a bot that was killed before it could, says it at its next start."""
        before, self._before = self._before, None
        if before is None:
            return
        if before.last_seen is None:
            await self.seen()
            return
        text = await self._text(before, before.last_seen)
        async with self._db.transaction() as connection:
            await self._news.put(connection, text, key=f"boot:{before.last_seen}", level=logging.INFO)
            await put_setting(connection, _SETTING, str(self._now()))

    async def seen(self) -> None:
        """Note that the bot is there; not before it has told how long it was away."""
        if self._before is None:
            await write_setting(self._db, _SETTING, str(self._now()))

    async def _text(self, before: Before, last_seen: float) -> str:
        kept = lost = ended = 0
        for start in before.starts:
            row = await self._db.one(_AFTER, start)
            if row is None or row["is_there"]:
                kept += 1
            elif row["has_word"]:
                ended += 1
            else:
                lost += 1
        new = await self._db.one("SELECT COUNT(*) AS number FROM outbox WHERE id > ?", (before.newest_post,))
        assert new is not None
        parts = [f"{counted(kept, 'job')} kept running"]
        parts += [f"{ended} ended meanwhile"] if ended else []
        parts += [f"{lost} lost", f"{counted(before.unsent + new['number'], 'message')} caught up"]
        return f"Back after {duration(max(0.0, self._now() - last_seen))}: {', '.join(parts)}."
