"""The bot's health: one snapshot of the facts, for `/admin health`, `python -m bot doctor` and Prometheus.

It is read on a connection of its own, so that neither the bot nor its readers wait for it.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import aiosqlite

from bot.clock import SYSTEM_CLOCK, Clock
from bot.db import Database, Row, as_stored, integrity_of, open_to_read, schema_of
from bot.db.database import read_setting
from bot.db.errors import DatabaseDamaged
from bot.outbox import HoldReason, NotificationKind
from bot.queue import QueuePause, Slot, Slots, State
from bot.queue.domain.job import ActiveJob
from bot.queue.store import job_sql
from bot.queue.store.queue_control import PAUSE_SETTING
from trainer.exchange.attempt import HEARTBEAT_FILE

_MIB = 1024**2
_DAY_S = 86_400.0
_TOO_MANY_REQUESTS = 429
#: The sender clears a backlog in seconds; this is an outage, or a channel that refuses messages.
_LATE_S = 600.0
#: The log is truncated every hour; one this large has a reader that never ends.
_LARGE_WAL_BYTES = 512 * _MIB
#: Twelve missed heartbeats (`trainer.exchange.attempt.HEARTBEAT_S`).
_SILENT_S = 60.0
#: discord.py reconnects within seconds if it can.
_DISCONNECTED_S = 300.0

#: Both use partial indexes: sent messages cost nothing.
_UNSENT = "SELECT COUNT(*), MIN(created_at) FROM outbox INDEXED BY outbox_unsent WHERE state IN ('waiting', 'sending')"
_CARDS = "SELECT COUNT(*) FROM card INDEXED BY card_changed WHERE shown_version < version"
_OLDEST = """
SELECT reason FROM outbox INDEXED BY outbox_unsent WHERE state IN ('waiting', 'sending') ORDER BY created_at LIMIT 1
"""
_REFUSED_CARDS = "SELECT COUNT(*) FROM card INDEXED BY card_failed WHERE reason IS NOT NULL AND shown_version = version"
_DEAD = "SELECT COUNT(*) FROM outbox INDEXED BY outbox_dead WHERE state = 'dead' AND created_at >= ?"
_NEWEST_DEAD = """
SELECT job_id, guild_id, channel_id, json_extract(notification, '$.kind') AS kind, reason, created_at
FROM outbox INDEXED BY outbox_dead WHERE state = 'dead' AND created_at >= ? ORDER BY created_at DESC LIMIT ?
"""
#: Without those in which nothing waits any more.
_HELD = """
SELECT * FROM (
    SELECT channel_id, reason, detail, since,
        (SELECT COUNT(*) FROM outbox WHERE channel_id = channel_hold.channel_id AND recipient_id = 0
            AND state IN ('waiting', 'sending')) AS messages,
        (SELECT COUNT(*) FROM card WHERE channel_id = channel_hold.channel_id AND shown_version < version) AS cards,
        COALESCE(
            (SELECT guild_id FROM outbox WHERE channel_id = channel_hold.channel_id AND recipient_id = 0
                AND state IN ('waiting', 'sending') AND guild_id > 0 LIMIT 1),
            (SELECT guild_id FROM job WHERE id = (SELECT job_id FROM card
                WHERE channel_id = channel_hold.channel_id AND shown_version < version LIMIT 1)), 0) AS guild_id
    FROM channel_hold)
WHERE messages + cards > 0 ORDER BY since
"""
#: Undeliverable messages are named for a week, and a problem for a day.
_NAMED_FOR_S, _MAX_NAMED = 7 * 86_400.0, 10


class ProblemKind(StrEnum):
    """What can be wrong, the worst first."""

    DATABASE_DAMAGED = "database_damaged"
    DISK_FULL = "disk_full"
    #: The write-ahead log is large.
    WAL_LARGE = "wal_large"
    #: A job sends no heartbeats.
    NO_HEARTBEAT = "no_heartbeat"
    #: The oldest unsent message is old.
    OUTBOX_LATE = "outbox_late"
    #: A channel takes no messages.
    CHANNEL_HELD = "channel_held"
    #: Messages of the last day cannot be delivered.
    UNDELIVERABLE = "undeliverable"
    DISCONNECTED = "disconnected"
    #: Requests were refused before they reached Discord (429 without `Via`).
    BLOCKED = "blocked"
    NO_SLOTS = "no_slots"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong; its numbers are in the snapshot."""

    kind: ProblemKind
    #: The job whose heartbeats are missing.
    job: JobHealth | None = None
    #: The channel that takes no messages.
    held: HeldChannel | None = None


@dataclass(frozen=True, kw_only=True)
class ConnectionStats:
    """The connection to Discord since the bot started."""

    is_connected: bool = False
    #: New sessions at the gateway, and sessions that were resumed without a loss.
    connects: int = 0
    resumes: int = 0
    disconnects: int = 0
    disconnected_at: datetime | None = None
    #: Requests refused with 429; discord.py waits and sends them again.
    rate_limits: int = 0
    rate_limited_at: datetime | None = None
    #: Of these, refused by the proxy before Discord: this address is blocked for a while.
    blocks: int = 0


class ConnectionMonitor:
    """Counts what happens to the connection; the Discord client reports it."""

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self.stats = ConnectionStats()

    def connected(self) -> None:
        """Count a new session."""
        self.stats = replace(self.stats, is_connected=True, connects=self.stats.connects + 1)

    def resumed(self) -> None:
        """Count a resumed session."""
        self.stats = replace(self.stats, is_connected=True, resumes=self.stats.resumes + 1)

    def disconnected(self) -> None:
        """Count a lost connection; discord.py calls this again for each failed attempt to reconnect."""
        if self.stats.is_connected:
            disconnects = self.stats.disconnects + 1
            self.stats = replace(
                self.stats, is_connected=False, disconnects=disconnects, disconnected_at=self._clock.now()
            )

    def rate_limited(self, *, is_block: bool) -> None:
        """Count a refused request."""
        self.stats = replace(
            self.stats,
            rate_limits=self.stats.rate_limits + 1,
            rate_limited_at=self._clock.now(),
            blocks=self.stats.blocks + is_block,
        )

    def http_trace(self) -> aiohttp.TraceConfig:
        """For `discord.Client(http_trace=…)`: sees each response to the client and to its interactions."""
        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(self._on_response)
        return trace

    async def _on_response(
        self, _session: aiohttp.ClientSession, _context: SimpleNamespace, end: aiohttp.TraceRequestEndParams
    ) -> None:
        if end.response.status == _TOO_MANY_REQUESTS:
            # Discord's own responses come through a proxy and have `Via`; discord.py distinguishes them so, too.
            self.rate_limited(is_block="Via" not in end.response.headers)


@dataclass(frozen=True, kw_only=True)
class HeldChannel:
    """A channel that takes no messages for now."""

    channel_id: int
    #: 0: unknown.
    guild_id: int
    reason: HoldReason
    #: Discord's words.
    detail: str
    since: datetime
    #: What waits: messages, and cards.
    messages: int
    cards: int


@dataclass(frozen=True, kw_only=True)
class DeadMessage:
    """A message that could not be delivered."""

    #: 0: of no job.
    job_id: int
    guild_id: int
    #: 0: a direct message.
    channel_id: int
    kind: NotificationKind
    reason: str
    at: datetime


@dataclass(frozen=True, kw_only=True)
class OutboxHealth:
    """What is not sent yet."""

    #: Waiting messages, and cards that show less than the newest state.
    waiting: int
    cards: int
    #: Age of the oldest waiting message, and why its last try failed; None if there is none.
    oldest_s: float | None
    oldest_reason: str | None = None
    #: Cards whose newest state was refused; their next change is tried.
    refused_cards: int = 0
    #: Messages of the last day that cannot be delivered, and the newest ones of a week.
    dead: int
    newest_dead: tuple[DeadMessage, ...] = ()
    held: tuple[HeldChannel, ...] = ()


@dataclass(frozen=True, kw_only=True)
class JobHealth:
    """The liveness of a running job."""

    job_id: int
    state: State
    attempt: int
    #: Since the last event of its trainer, and since its process's last heartbeat; None: none in this attempt.
    event_age_s: float | None
    heartbeat_age_s: float | None


@dataclass(frozen=True, kw_only=True)
class HealthSnapshot:
    """The bot at one moment."""

    at: datetime
    #: "ok", or what SQLite found; None if it was not checked.
    integrity: str | None
    schema: int
    database_bytes: int
    wal_bytes: int
    free_disk_bytes: int
    #: Free space that trainings need to start.
    min_free_bytes: int
    outbox: OutboxHealth
    #: States without a job are left out.
    jobs: Mapping[State, int]
    running: tuple[JobHealth, ...]
    #: Enabled ones, and disabled ones that a job still holds.
    slots: tuple[Slot, ...]
    queue_pause: QueuePause | None
    #: None if only the files were read, without a running bot.
    connection: ConnectionStats | None

    @property
    def enabled_slots(self) -> int:
        """Slots that may be claimed."""
        return sum(slot.is_enabled for slot in self.slots)

    @property
    def free_slots(self) -> int:
        """Enabled slots that no job holds."""
        return sum(slot.is_enabled and slot.job_id is None for slot in self.slots)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong, the worst first."""
        return tuple(sorted(self._problems(), key=lambda problem: list(ProblemKind).index(problem.kind)))

    def _problems(self) -> Iterator[Problem]:
        checks = {
            ProblemKind.DATABASE_DAMAGED: self.integrity not in {None, "ok"},
            ProblemKind.DISK_FULL: self.free_disk_bytes < self.min_free_bytes,
            ProblemKind.WAL_LARGE: self.wal_bytes > _LARGE_WAL_BYTES,
            ProblemKind.OUTBOX_LATE: self.outbox.oldest_s is not None and self.outbox.oldest_s > _LATE_S,
            ProblemKind.UNDELIVERABLE: self.outbox.dead > 0,
        }
        if self.connection is not None:
            since = None if self.connection.is_connected else self.connection.disconnected_at
            is_away = since is not None and (self.at - since).total_seconds() > _DISCONNECTED_S
            # Without a running bot the slots are those of its last start.
            checks |= {
                ProblemKind.DISCONNECTED: is_away,
                ProblemKind.BLOCKED: self.connection.blocks > 0,
                ProblemKind.NO_SLOTS: self.enabled_slots == 0,
            }
        yield from (Problem(kind=kind) for kind, is_wrong in checks.items() if is_wrong)
        yield from (Problem(kind=ProblemKind.CHANNEL_HELD, held=held) for held in self.outbox.held)
        for job in self.running:
            if job.heartbeat_age_s is not None and job.heartbeat_age_s > _SILENT_S:
                yield Problem(kind=ProblemKind.NO_HEARTBEAT, job=job)


async def read_health(
    database: Path,
    *,
    connection: ConnectionStats | None = None,
    min_free_bytes: int = 0,
    clock: Clock = SYSTEM_CLOCK,
) -> HealthSnapshot:
    """Read the health of the bot with that database, and check all of the file's integrity.

    Args:
        database: A bot may be using it.
        connection: Of the running bot, if it is the caller.
        min_free_bytes: Free disk space below which there is a problem.
        clock: Of the moment of the snapshot.

    Raises:
        DatabaseUnreadable, SchemaTooNew, SchemaTooOld, DatabaseDamaged: It cannot be read.
    """
    try:
        async with open_to_read(database) as db:
            integrity = await integrity_of(db)
            return await snapshot(
                db, connection=connection, min_free_bytes=min_free_bytes, integrity=integrity, at=clock.time()
            )
    except aiosqlite.OperationalError:
        raise
    except aiosqlite.DatabaseError as error:
        raise DatabaseDamaged(path=database, finding=str(error)) from error


async def snapshot(
    db: Database, *, connection: ConnectionStats | None, min_free_bytes: int, integrity: str | None, at: float
) -> HealthSnapshot:
    """Take the snapshot of an open database."""
    pause = await read_setting(db, PAUSE_SETTING)
    active = [ActiveJob.from_row(row) for row in await db.all(job_sql.ACTIVE_JOBS)]
    jobs_dir = db.path.parent.absolute() / "jobs"
    usage = await asyncio.to_thread(shutil.disk_usage, db.path.parent)
    return HealthSnapshot(
        at=datetime.fromtimestamp(at, UTC),
        integrity=integrity,
        schema=await schema_of(db),
        database_bytes=await asyncio.to_thread(_size_of, db.path),
        wal_bytes=await asyncio.to_thread(_size_of, db.path.with_name(f"{db.path.name}-wal")),
        free_disk_bytes=usage.free,
        min_free_bytes=min_free_bytes,
        outbox=await _outbox_health(db, at),
        jobs={State(row[0]): int(row[1]) for row in await db.all("SELECT state, COUNT(*) FROM job GROUP BY state")},
        running=await asyncio.to_thread(
            lambda: tuple(_job_health(job, jobs_dir, at) for job in active if not job.is_study)
        ),
        slots=tuple(await Slots(db).all()),
        queue_pause=None if pause is None else QueuePause.model_validate_json(pause),
        connection=connection,
    )


async def _outbox_health(db: Database, at: float) -> OutboxHealth:
    unsent, oldest = await _row(db, _UNSENT), await db.one(_OLDEST)
    return OutboxHealth(
        waiting=unsent[0],
        cards=(await _row(db, _CARDS))[0],
        oldest_s=None if unsent[1] is None else max(0.0, at - unsent[1]),
        oldest_reason=None if oldest is None else oldest["reason"],
        refused_cards=(await _row(db, _REFUSED_CARDS))[0],
        dead=(await _row(db, _DEAD, at - _DAY_S))[0],
        newest_dead=tuple(map(_dead_message, await db.all(_NEWEST_DEAD, (at - _NAMED_FOR_S, _MAX_NAMED)))),
        held=tuple(map(_held_channel, await db.all(_HELD))),
    )


def _held_channel(row: Row) -> HeldChannel:
    values = as_stored(HeldChannel, row)
    values |= {"reason": HoldReason(row["reason"]), "since": datetime.fromtimestamp(row["since"], UTC)}
    return HeldChannel(**values)


def _dead_message(row: Row) -> DeadMessage:
    values = as_stored(DeadMessage, row) | {
        "kind": NotificationKind(row["kind"]),
        "reason": row["reason"] or "",
        "at": datetime.fromtimestamp(row["created_at"], UTC),
    }
    return DeadMessage(**values)


async def _row(db: Database, query: str, *values: float) -> Row:
    row = await db.one(query, values)
    assert row is not None
    return row


def _job_health(job: ActiveJob, jobs_dir: Path, at: float) -> JobHealth:
    return JobHealth(
        job_id=job.id,
        state=job.state,
        attempt=job.attempt,
        event_age_s=None if job.last_event_at is None else max(0.0, at - job.last_event_at.timestamp()),
        heartbeat_age_s=_heartbeat_age_s(jobs_dir / job.folder / HEARTBEAT_FILE, job, at),
    )


def _heartbeat_age_s(file: Path, job: ActiveJob, at: float) -> float | None:
    try:
        beat = file.stat().st_mtime
    except FileNotFoundError:
        return None
    # A heartbeat of an earlier attempt does not count.
    return None if beat < job.claimed_at else max(0.0, at - beat)


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
