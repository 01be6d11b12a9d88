"""How the bot is: a frozen value, and the sentences about what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from bot.queue.domain.job import State
from bot.queue.store.queue_control import Halt

_MIB, _GIB = 1024**2, 1024**3
#: The sender works off a backlog in seconds; this is an outage, or a channel that takes nothing.
_LATE_S = 600.0
#: The log is emptied every hour; one this large has a reader that never ends.
_LARGE_WAL_BYTES = 512 * _MIB
#: Twelve missed beats (`trainer.protocol.attempt.HEARTBEAT_S`).
_SILENT_S = 60.0
#: discord.py comes back within seconds where it can.
_AWAY_S = 300.0


@dataclass(frozen=True, kw_only=True)
class OutboxHealth:
    """What is to be told to people and is not yet."""

    #: Posts that wait, and cards that show less than the newest state.
    waiting: int
    cards: int
    #: Age of the oldest post that waits; None where none does.
    oldest_s: float | None
    #: Posts of the last day that Discord will never take.
    dead: int


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """A job that holds slots, and its signs of life."""

    job_id: int
    state: State
    attempt: int
    #: Since its trainer last said something, and since its process last gave a sign; None: never in this attempt.
    heard_s: float | None
    beat_s: float | None


@dataclass(frozen=True, kw_only=True)
class GatewayHealth:
    """The connection to Discord since the bot started."""

    is_connected: bool
    connects: int
    resumes: int
    disconnects: int
    disconnected_at: datetime | None
    rate_limits: int
    rate_limited_at: datetime | None
    blocks: int


@dataclass(frozen=True, kw_only=True)
class Health:
    """How the bot was at one moment."""

    at: datetime
    #: "ok", or what SQLite found; None: it was not asked.
    integrity: str | None
    schema: int
    database_bytes: int
    wal_bytes: int
    free_disk_bytes: int
    #: What should be free at least.
    min_free_bytes: int
    outbox: OutboxHealth
    #: States without a job are left out.
    jobs: Mapping[State, int]
    heartbeats: tuple[Heartbeat, ...]
    slots: int
    free_slots: int
    #: Slots that are gone or switched off and that a job still holds.
    lost_slots: int
    halt: Halt | None
    #: None where no bot was asked, only its files.
    gateway: GatewayHealth | None
    #: A sentence for each thing that is wrong; empty: all is well.
    problems: tuple[str, ...] = ()


def problems_of(health: Health) -> Iterator[str]:
    """What is wrong, worst first, each with what to do."""
    if health.integrity not in {None, "ok"}:
        yield (
            f"The database is damaged ({health.integrity}). Stop the bot and put back a copy: "
            "`python -m bot restore FILE`."
        )
    if health.free_disk_bytes < health.min_free_bytes:
        yield (
            f"Only {health.free_disk_bytes / _GIB:.1f} GiB are free for the data folder; "
            f"{health.min_free_bytes / _GIB:g} are wanted. Delete old jobs or make room."
        )
    if health.wal_bytes > _LARGE_WAL_BYTES:
        yield (
            f"The write-ahead log has {health.wal_bytes / _MIB:,.0f} MiB: some program keeps the database open. End it."
        )
    yield from _heartbeat_problems(health)
    yield from _outbox_problems(health.outbox)
    if health.gateway is not None:
        yield from _gateway_problems(health.gateway, health.at)
        # Without a running bot they are those of its last start.
        if health.slots == 0:
            yield "There is no slot, so nothing can start: no GPU was found. `python -m bot doctor` says why."


def _heartbeat_problems(health: Health) -> Iterator[str]:
    for beat in health.heartbeats:
        if beat.beat_s is not None and beat.beat_s > _SILENT_S:
            yield (
                f"#{beat.job_id} gives no sign of life for {beat.beat_s / 60:.0f} min. If that goes on, its process is "
                "ended and it goes on from its checkpoint."
            )


def _outbox_problems(outbox: OutboxHealth) -> Iterator[str]:
    if outbox.oldest_s is not None and outbox.oldest_s > _LATE_S:
        yield (
            f"The oldest message that is not sent waits for {outbox.oldest_s / 60:.0f} min ({outbox.waiting} wait). "
            "The log says what Discord answers."
        )
    if outbox.dead:
        yield (
            f"Messages of the last day that could not be delivered: {outbox.dead}. A channel is gone, or the bot may "
            "not write there; `python -m bot doctor` names missing permissions."
        )


def _gateway_problems(gateway: GatewayHealth, at: datetime) -> Iterator[str]:
    away = gateway.disconnected_at
    if not gateway.is_connected and away is not None and (at - away).total_seconds() > _AWAY_S:
        yield f"Not connected to Discord since {away:%H:%M} UTC. Trainings go on; messages wait."
    if gateway.blocks:
        yield (
            f"Requests that were refused before they reached Discord (429 without Via): {gateway.blocks}. This "
            "machine's address sent too many bad ones and is shut out for a while; messages wait."
        )
