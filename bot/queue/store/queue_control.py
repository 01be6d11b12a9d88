"""Whether jobs may start: the pause or drain that an operator orders (kept over restarts), and `Admission`."""

from __future__ import annotations

import logging
from datetime import datetime
from enum import StrEnum

from bot.db import Connection, put_setting, read_setting
from bot.db.audit import write_entry
from bot.queue.store import job_sql
from bot.queue.store.transitions import Transitions
from trainer.protocol.frozen import Frozen

log = logging.getLogger(__name__)

PAUSE_SETTING = "queue.pause"


class Admission(StrEnum):
    """Whether new jobs may start now, by the training windows and the machine."""

    ALLOW = "allow"
    #: Start nothing new; running jobs continue.
    HOLD = "hold"
    #: Start nothing new; running jobs save a checkpoint and wait in the queue.
    DRAIN = "drain"


class PauseKind(StrEnum):
    """What a pause of the queue stops."""

    #: Nothing new starts; running jobs continue.
    PAUSE = "pause"
    #: Nothing new starts; running jobs save a checkpoint, free their GPUs and wait at the front of the queue.
    DRAIN = "drain"


class QueuePause(Frozen):
    """Who paused the queue, when, and why."""

    kind: PauseKind
    by: int
    at: datetime
    why: str = ""


class QueueControl:
    """Pauses, drains and resumes the whole queue."""

    def __init__(self, transitions: Transitions) -> None:
        self._transitions = transitions
        self._db = transitions.db

    async def read(self) -> QueuePause | None:
        """Return the current pause, or None if the queue runs."""
        value = await read_setting(self._db, PAUSE_SETTING)
        return None if value is None else QueuePause.model_validate_json(value)

    async def pause(self, kind: PauseKind, *, by: int, why: str = "", guild_id: int | None = None) -> QueuePause:
        """Pause or drain the queue; a later call replaces an earlier one."""
        queue_pause = QueuePause(kind=kind, by=by, at=self._transitions.clock.now(), why=why)
        async with self._db.transaction() as connection:
            await put_setting(connection, PAUSE_SETTING, queue_pause.model_dump_json())
            await self._record(connection, str(kind), by, why, guild_id)
        log.info("queue: %s by %d %s", kind, by, why)
        return queue_pause

    async def resume(self, *, by: int, guild_id: int | None = None) -> bool:
        """Let the queue run again; False if it ran."""
        async with self._db.transaction() as connection:
            deleted = await connection.execute_fetchall(
                "DELETE FROM setting WHERE name = ? RETURNING value", (PAUSE_SETTING,)
            )
            if not list(deleted):
                return False
            await self._record(connection, "resume", by, "", guild_id)
        log.info("queue: resumed by %d", by)
        return True

    async def _record(self, connection: Connection, verb: str, by: int, why: str, guild_id: int | None) -> None:
        at = self._transitions.clock.time()
        await write_entry(connection, at=at, verb=f"queue {verb}", guild_id=guild_id, by=by, why=why)
        for row in await connection.execute_fetchall(job_sql.NEXT_QUEUED, (0,)):
            await self._transitions.outbox.cards.touch(connection, row["id"], channel_id=row["channel_id"])
        self._db.after_commit(self._transitions.changed.set)
