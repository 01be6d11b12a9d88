"""News of no job: a line of the log, and a post in the log channel where there is one."""

from __future__ import annotations

import logging
from collections.abc import Callable

from bot.db import Connection, Database
from bot.outbox import Notice, NoticeKind, Outbox

log = logging.getLogger(__name__)


class News:
    """Tells the people who run the machine."""

    def __init__(self, db: Database, outbox: Outbox, *, channel_id: int) -> None:
        self._db = db
        self._outbox = outbox
        #: 0: none.
        self._channel_id = channel_id

    async def tell(self, text: str, *, key: str, level: int = logging.WARNING) -> None:
        """Say it in a transaction of its own; a key that was there before says nothing again."""
        async with self._db.transaction() as connection:
            await self.put(connection, text, key=key, level=level)

    async def put(
        self,
        connection: Connection,
        text: str,
        *,
        key: str,
        level: int = logging.WARNING,
        channel_id: int | None = None,
    ) -> None:
        """Say it once the caller's transaction is committed; `channel_id` in the place of the log channel."""
        channel_id = self._channel_id if channel_id is None else channel_id
        self._db.after_commit(_line(level, text))
        if channel_id:
            notice = Notice(kind=NoticeKind.NEWS, job_id=0, detail=text)
            await self._outbox.put(connection, notice, channel_id=channel_id, dedupe_key=key)


def _line(level: int, text: str) -> Callable[[], None]:
    return lambda: log.log(level, "%s", " ".join(text.split()))
