"""The health snapshot: its figures and its problems."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from bot.db import Database, open_to_read
from bot.db.errors import DatabaseDamaged, DatabaseUnreadable, DatabaseUnwritable, SchemaTooOld
from bot.health import ConnectionMonitor, HealthSnapshot, ProblemKind, read_health
from bot.outbox import Destination, HoldReason, Notification, NotificationKind, Outbox
from bot.queue import JobStore, State
from bot.runners import Handle
from tests.bot.conftest import Submit, claim
from tests.bot.fakes import FakeClock, serve
from trainer.exchange.attempt import HEARTBEAT_FILE


async def read(
    db: Database, clock: FakeClock, monitor: ConnectionMonitor | None = None, min_free_bytes: int = 0
) -> HealthSnapshot:
    connection = None if monitor is None else monitor.stats
    return await read_health(db.path, connection=connection, min_free_bytes=min_free_bytes, clock=clock)


def kinds(health: HealthSnapshot) -> list[ProblemKind]:
    return [problem.kind for problem in health.problems]


async def test_a_healthy_bot_has_no_problems(db: Database, store: JobStore, submit: Submit, clock: FakeClock) -> None:
    await submit()
    await submit()
    await claim(store, 2)
    monitor = ConnectionMonitor(clock=clock)
    monitor.connected()
    health = await read(db, clock, monitor)
    assert kinds(health) == []
    assert health.integrity == "ok"
    assert dict(health.jobs) == {State.PREPARING: 1, State.QUEUED: 1}
    assert (health.enabled_slots, health.free_slots) == (2, 1)
    assert health.outbox.cards == 2
    assert health.database_bytes > 0
    assert health.wal_bytes > 0


async def test_the_heartbeats_of_running_jobs_are_read(
    db: Database, store: JobStore, submit: Submit, clock: FakeClock
) -> None:
    job = await submit()
    await claim(store, 1)
    await store.attempts.set_handle(1, 1, Handle("x"))
    job_dir = store.job_dir(job)
    job_dir.mkdir(parents=True)
    (beat,) = (await read(db, clock)).running
    assert (beat.job_id, beat.event_age_s, beat.heartbeat_age_s) == (1, None, None)
    (job_dir / HEARTBEAT_FILE).touch()
    os.utime(job_dir / HEARTBEAT_FILE, (clock.at + 2, clock.at + 2))
    clock.advance(10)
    assert (await read(db, clock)).running[0].heartbeat_age_s == 8
    clock.advance(600)
    health = await read(db, clock)
    (problem,) = health.problems
    assert (problem.kind, problem.job) == (ProblemKind.NO_HEARTBEAT, health.running[0])


async def test_a_heartbeat_of_an_earlier_attempt_does_not_count(
    db: Database, store: JobStore, submit: Submit, clock: FakeClock
) -> None:
    job = await submit()
    job_dir = store.job_dir(job)
    job_dir.mkdir(parents=True)
    (job_dir / HEARTBEAT_FILE).touch()
    os.utime(job_dir / HEARTBEAT_FILE, (clock.at - 5000, clock.at - 5000))
    await claim(store, 1)
    assert (await read(db, clock)).running[0].heartbeat_age_s is None


async def test_late_and_undeliverable_messages_are_problems(db: Database, outbox: Outbox, clock: FakeClock) -> None:
    async with db.transaction() as connection:
        for number, (state, age_s) in enumerate([("waiting", 3600), ("sent", 99_999), ("dead", 90_000), ("dead", 60)]):
            await connection.execute_fetchall(
                "INSERT INTO outbox (dedupe_key, job_id, channel_id, notification, nonce, state, created_at)"
                ' VALUES (?, 1, 1, \'{"kind": "done"}\', ?, ?, ?)',
                (str(number), str(number), state, clock.at - age_s),
            )
    health = await read(db, clock)
    assert (health.outbox.waiting, health.outbox.oldest_s, health.outbox.dead) == (1, 3600, 1)
    assert kinds(health) == [ProblemKind.OUTBOX_LATE, ProblemKind.UNDELIVERABLE]


async def test_held_channels_and_undeliverable_messages_are_named_with_their_reason(
    db: Database, outbox: Outbox, store: JobStore, submit: Submit, clock: FakeClock
) -> None:
    # Its card waits in the job's channel.
    job = await submit()
    notification = Notification(kind=NotificationKind.DONE, job_id=1, dedupe_key="done", guild_id=job.guild_id)
    async with outbox.transaction() as connection:
        for channel_id in (job.channel_id, 7):
            await outbox.hold(connection, channel_id, HoldReason.NO_ACCESS, "403 50001", tried_at=clock.time())
        await outbox.put(connection, notification, channel_id=8)
    pending = await outbox.next_pending(Destination(channel_id=8))
    assert pending is not None
    async with outbox.transaction() as connection:
        await outbox.end(connection, pending, "404 10003")
    clock.advance(120)

    health = await read(db, clock)
    # Nothing waits in channel 7.
    (held,) = health.outbox.held
    assert (held.channel_id, held.guild_id, held.reason) == (job.channel_id, job.guild_id, HoldReason.NO_ACCESS)
    assert (held.messages, held.cards) == (0, 1)
    assert clock.now() - held.since == timedelta(seconds=120)
    (dead,) = health.outbox.newest_dead
    assert (dead.job_id, dead.channel_id, dead.kind, dead.reason) == (1, 8, NotificationKind.DONE, "404 10003")
    assert kinds(health) == [ProblemKind.CHANNEL_HELD, ProblemKind.UNDELIVERABLE]


async def test_a_full_disk_is_a_problem(db: Database, clock: FakeClock) -> None:
    health = await read(db, clock, min_free_bytes=2**60)
    assert kinds(health) == [ProblemKind.DISK_FULL]


async def test_a_long_loss_of_the_connection_is_a_problem_and_a_resume_ends_it(
    db: Database, store: JobStore, clock: FakeClock
) -> None:
    monitor = ConnectionMonitor(clock=clock)
    monitor.connected()
    monitor.disconnected()
    monitor.disconnected()
    clock.advance(200)
    assert kinds(await read(db, clock, monitor)) == []
    clock.advance(200)
    assert kinds(await read(db, clock, monitor)) == [ProblemKind.DISCONNECTED]
    monitor.resumed()
    health = await read(db, clock, monitor)
    assert kinds(health) == []
    assert health.connection is not None
    assert (health.connection.connects, health.connection.resumes, health.connection.disconnects) == (1, 1, 1)


async def test_a_bot_without_a_slot_has_a_problem(db: Database, clock: FakeClock) -> None:
    assert kinds(await read(db, clock, ConnectionMonitor())) == [ProblemKind.NO_SLOTS]


async def damaged(db: Database, name: str, path: Path) -> Path:
    """A copy of the database in which the first page of one table or index is noise."""
    await db.checkpoint()
    row = await db.one("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,))
    assert row is not None
    content = bytearray(db.path.read_bytes())
    content[4096 * (row[0] - 1) : 4096 * row[0]] = b"\xa5" * 4096
    path.write_bytes(content)  # noqa: ASYNC240
    return path


async def test_damage_is_found_and_comes_first(tmp_path: Path, db: Database, submit: Submit, clock: FakeClock) -> None:
    await submit()
    broken = await damaged(db, "audit_of_job", tmp_path / "index.db")
    health = await read_health(broken, min_free_bytes=2**60, clock=clock)
    assert health.integrity != "ok"
    assert kinds(health)[0] is ProblemKind.DATABASE_DAMAGED
    broken = await damaged(db, "slot", tmp_path / "slot.db")
    with pytest.raises(DatabaseDamaged, match="malformed"):
        await read_health(broken, clock=clock)


async def test_reading_changes_nothing_and_refuses_what_it_cannot_read(db: Database, tmp_path: Path) -> None:
    async with open_to_read(db.path) as reading:
        with pytest.raises(DatabaseUnwritable):
            async with reading.transaction() as connection:
                await connection.execute("DELETE FROM job")
    with pytest.raises(DatabaseUnreadable, match="no such file"):
        await read_health(tmp_path / "nowhere.db")
    async with db.transaction() as connection:
        await connection.execute("PRAGMA user_version = 0")
    with pytest.raises(SchemaTooOld, match="upgrades it when it starts"):
        await read_health(db.path)


@pytest.mark.parametrize(
    ("status", "headers", "limits", "blocks"), [(200, {}, 0, 0), (429, {"Via": "1.1 google"}, 1, 0), (429, {}, 1, 1)]
)
async def test_rate_limits_are_counted_at_the_end_of_requests(
    status: int, headers: dict[str, str], limits: int, blocks: int
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, headers=headers)

    monitor = ConnectionMonitor()
    async with (
        serve(web.get("/", answer)) as url,
        aiohttp.ClientSession(trace_configs=[monitor.http_trace()]) as session,
        session.get(url),
    ):
        pass
    await asyncio.sleep(0)
    assert (monitor.stats.rate_limits, monitor.stats.blocks) == (limits, blocks)
