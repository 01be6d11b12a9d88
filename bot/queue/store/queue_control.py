"""The queue's main switch: whether anything may start, and whether what runs may go on; kept over restarts."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from bot.db import Connection
from bot.db.setting import read_setting
from bot.queue.store import job_sql
from bot.queue.store.audit import write_entry
from bot.queue.store.transitions import Moves

log = logging.getLogger(__name__)

HALT_SETTING = "queue.halt"


class HaltKind(StrEnum):
    """How much stands still."""

    #: Nothing new starts; what runs goes on.
    PAUSE = "pause"
    #: Nothing new starts; what runs saves its checkpoint, frees its GPU and waits at the front of the line.
    DRAIN = "drain"


class Halt(BaseModel):
    """Who switched the queue off, when, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: HaltKind
    by: int
    at: datetime
    why: str = ""


class MainSwitch:
    """Pauses, drains and resumes the whole queue."""

    def __init__(self, moves: Moves) -> None:
        self._moves = moves

    async def read(self) -> Halt | None:
        """How it stands; None: the queue runs."""
        value = await read_setting(self._moves.db, HALT_SETTING)
        return None if value is None else Halt.model_validate_json(value)

    async def halt(self, kind: HaltKind, *, by: int, why: str = "", guild_id: int | None = None) -> Halt:
        """Pause or drain the queue; a later word takes the place of an earlier one."""
        halt = Halt(kind=kind, by=by, at=datetime.fromtimestamp(self._moves.now(), UTC), why=why)
        async with self._moves.db.transaction() as connection:
            await connection.execute_fetchall(
                "INSERT INTO setting (name, value) VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (HALT_SETTING, halt.model_dump_json()),
            )
            await self._changed(connection, str(kind), by, why, guild_id)
        log.info("queue: %s by %d %s", kind, by, why)
        return halt

    async def resume(self, *, by: int, guild_id: int | None = None) -> bool:
        """Let the queue run again; False if it ran."""
        async with self._moves.db.transaction() as connection:
            rows = await connection.execute_fetchall(
                "DELETE FROM setting WHERE name = ? RETURNING value", (HALT_SETTING,)
            )
            if not list(rows):
                return False
            await self._changed(connection, "resume", by, "", guild_id)
        log.info("queue: resumed by %d", by)
        return True

    async def _changed(self, connection: Connection, verb: str, by: int, why: str, guild_id: int | None) -> None:
        await write_entry(connection, at=self._moves.now(), verb=f"queue {verb}", guild_id=guild_id, by=by, why=why)
        for row in await connection.execute_fetchall(job_sql.NEXT_WAITING, (0,)):
            await self._moves.outbox.touch_card(connection, row["id"], channel_id=row["channel_id"])
        self._moves.db.after_commit(self._moves.changed.set)
