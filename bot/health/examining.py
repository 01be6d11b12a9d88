"""Finding out how the bot is: on a connection of its own, so that neither the bot nor its readers wait for it."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import aiosqlite

from bot.db import Database, Row, integrity_of, open_to_read, schema_of
from bot.db.setting import read_setting
from bot.errors import DatabaseDamaged
from bot.health.counters import Counters
from bot.health.health import GatewayHealth, Health, Heartbeat, OutboxHealth, problems_of
from bot.queue import Halt, Slots, State
from bot.queue.store import job_sql
from bot.queue.store.job_rows import Busy, busy_of
from bot.queue.store.queue_control import HALT_SETTING
from trainer.protocol.attempt import HEARTBEAT_FILE

_DAY_S = 86_400.0
#: Both go by partial indexes: what was sent long ago costs nothing.
_UNSENT = "SELECT COUNT(*), MIN(created_at) FROM outbox INDEXED BY outbox_unsent WHERE state IN ('waiting', 'sending')"
_CARDS = "SELECT COUNT(*) FROM card INDEXED BY card_changed WHERE shown_version < version AND state != 'dead'"
#: From the newest backwards: a day's posts, however many there were before.
_DEAD = """
SELECT COUNT(*) FROM outbox WHERE state = 'dead' AND id > COALESCE(
    (SELECT id FROM outbox WHERE created_at < ? ORDER BY id DESC LIMIT 1), 0)
"""


async def examine_health(
    database: Path,
    *,
    counters: Counters | None = None,
    min_free_bytes: int = 0,
    checks_integrity: bool = True,
    now: Callable[[], float] = time.time,
) -> Health:
    """How the bot of a database is; `counters` are those of the running bot. The check of integrity reads all of it.

    Raises:
        DatabaseUnreadable, SchemaTooNew, SchemaTooOld, DatabaseDamaged: it cannot be asked.
    """
    try:
        async with open_to_read(database) as db:
            return await examine(
                db, counters=counters, min_free_bytes=min_free_bytes, checks_integrity=checks_integrity, at=now()
            )
    except aiosqlite.OperationalError:
        raise
    except aiosqlite.DatabaseError as error:
        raise DatabaseDamaged(path=database, finding=str(error)) from error


async def examine(
    db: Database, *, counters: Counters | None, min_free_bytes: int, checks_integrity: bool, at: float
) -> Health:
    """As `examine_health`, of an open database."""
    halt = await read_setting(db, HALT_SETTING)
    slots = await Slots(db).all()
    busy = [busy_of(row) for row in await db.all(job_sql.BUSY)]
    health = Health(
        at=_moment(at),
        integrity=await integrity_of(db) if checks_integrity else None,
        schema=await schema_of(db),
        database_bytes=await asyncio.to_thread(_bytes, db.path),
        wal_bytes=await asyncio.to_thread(_bytes, db.path.with_name(f"{db.path.name}-wal")),
        free_disk_bytes=(await asyncio.to_thread(shutil.disk_usage, db.path.parent)).free,
        min_free_bytes=min_free_bytes,
        outbox=await _outbox(db, at),
        jobs={State(row[0]): int(row[1]) for row in await db.all("SELECT state, COUNT(*) FROM job GROUP BY state")},
        heartbeats=await asyncio.to_thread(_heartbeats, busy, db.path.parent.absolute() / "jobs", at),
        slots=sum(slot.is_enabled for slot in slots),
        free_slots=sum(slot.is_enabled and slot.job_id is None for slot in slots),
        lost_slots=sum(not slot.is_enabled for slot in slots),
        halt=None if halt is None else Halt.model_validate_json(halt),
        gateway=None if counters is None else _gateway(counters),
    )
    return replace(health, problems=tuple(problems_of(health)))


async def _outbox(db: Database, at: float) -> OutboxHealth:
    unsent, cards, dead = await _row(db, _UNSENT), await _row(db, _CARDS), await _row(db, _DEAD, at - _DAY_S)
    return OutboxHealth(
        waiting=unsent[0],
        cards=cards[0],
        oldest_s=None if unsent[1] is None else max(0.0, at - unsent[1]),
        dead=dead[0],
    )


async def _row(db: Database, query: str, *values: float) -> Row:
    row = await db.one(query, values)
    assert row is not None
    return row


def _heartbeats(all_busy: list[Busy], jobs_dir: Path, at: float) -> tuple[Heartbeat, ...]:
    return tuple(
        Heartbeat(
            job_id=busy.job_id,
            state=busy.state,
            attempt=busy.attempt,
            heard_s=None if busy.heard_at is None else max(0.0, at - busy.heard_at),
            beat_s=_beat_s(jobs_dir / busy.folder / HEARTBEAT_FILE, busy, at),
        )
        for busy in all_busy
        if not busy.is_study
    )


def _beat_s(file: Path, busy: Busy, at: float) -> float | None:
    try:
        beat = file.stat().st_mtime
    except FileNotFoundError:
        return None
    # An earlier attempt's beat says nothing of this one.
    return None if beat < busy.claimed_at else max(0.0, at - beat)


def _gateway(counters: Counters) -> GatewayHealth:
    return GatewayHealth(
        is_connected=counters.is_connected,
        connects=counters.connects,
        resumes=counters.resumes,
        disconnects=counters.disconnects,
        disconnected_at=None if counters.disconnected_at is None else _moment(counters.disconnected_at),
        rate_limits=counters.rate_limits,
        rate_limited_at=None if counters.rate_limited_at is None else _moment(counters.rate_limited_at),
        blocks=counters.blocks,
    )


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
