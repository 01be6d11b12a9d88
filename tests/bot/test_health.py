"""The health report: what is counted, what is called a problem, and how it is shown."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from bot.db import Database, open_to_read
from bot.errors import DatabaseDamaged, DatabaseUnreadable, DatabaseUnwritable, SchemaTooOld
from bot.health import Counters, Health, examine_health
from bot.outbox import Outbox
from bot.queue import HaltKind, JobStore, State
from bot.runners import Handle
from bot.ui.health import health_message
from bot.ui.layout import weight
from tests.bot.conftest import Submit, claim
from tests.bot.fakes import Clock
from trainer.protocol.attempt import HEARTBEAT_FILE


async def look(db: Database, clock: Clock, counters: Counters | None = None, min_free_bytes: int = 0) -> Health:
    return await examine_health(db.path, counters=counters, min_free_bytes=min_free_bytes, now=clock)


async def test_a_bot_that_is_well_has_no_problems(db: Database, store: JobStore, submit: Submit, clock: Clock) -> None:
    await submit()
    await submit()
    await claim(store, 2)
    counters = Counters(now=clock)
    counters.connected()
    health = await look(db, clock, counters)
    assert health.problems == ()
    assert health.integrity == "ok"
    assert dict(health.jobs) == {State.PREPARING: 1, State.QUEUED: 1}
    assert (health.slots, health.free_slots) == (2, 1)
    assert health.outbox.cards == 2
    assert health.database_bytes > 0
    assert health.wal_bytes > 0


async def test_heartbeats_of_running_jobs_are_told(db: Database, store: JobStore, submit: Submit, clock: Clock) -> None:
    job = await submit()
    await claim(store, 1)
    await store.runs.started(1, 1, Handle("x"))
    job_dir = store.job_dir(job)
    job_dir.mkdir(parents=True)
    (beat,) = (await look(db, clock)).heartbeats
    assert (beat.job_id, beat.heard_s, beat.beat_s) == (1, None, None)
    (job_dir / HEARTBEAT_FILE).touch()
    os.utime(job_dir / HEARTBEAT_FILE, (clock.now + 2, clock.now + 2))
    clock.advance(10)
    assert (await look(db, clock)).heartbeats[0].beat_s == 8
    clock.advance(600)
    health = await look(db, clock)
    assert [problem[:40] for problem in health.problems] == ["#1 gives no sign of life for 10 min. If "]


async def test_a_beat_of_an_earlier_attempt_is_none(
    db: Database, store: JobStore, submit: Submit, clock: Clock
) -> None:
    job = await submit()
    job_dir = store.job_dir(job)
    job_dir.mkdir(parents=True)
    (job_dir / HEARTBEAT_FILE).touch()
    os.utime(job_dir / HEARTBEAT_FILE, (clock.now - 5000, clock.now - 5000))
    await claim(store, 1)
    assert (await look(db, clock)).heartbeats[0].beat_s is None


async def test_messages_that_wait_too_long_or_never_arrive_are_problems(
    db: Database, outbox: Outbox, clock: Clock
) -> None:
    async with db.transaction() as connection:
        for number, (state, age_s) in enumerate([("waiting", 3600), ("sent", 99_999), ("dead", 90_000), ("dead", 60)]):
            await connection.execute_fetchall(
                "INSERT INTO outbox (dedupe_key, job_id, channel_id, notice, nonce, state, created_at)"
                " VALUES (?, 1, 1, '', ?, ?, ?)",
                (str(number), str(number), state, clock.now - age_s),
            )
    health = await look(db, clock)
    assert (health.outbox.waiting, health.outbox.oldest_s, health.outbox.dead) == (1, 3600, 1)
    assert [problem.split(".")[0] for problem in health.problems] == [
        "The oldest message that is not sent waits for 60 min (1 wait)",
        "Messages of the last day that could not be delivered: 1",
    ]


async def test_little_room_on_the_disk_is_a_problem(db: Database, clock: Clock) -> None:
    health = await look(db, clock, min_free_bytes=2**60)
    assert health.problems[0].startswith("Only ")


async def test_a_long_loss_of_the_connection_is_a_problem_and_a_resume_ends_it(
    db: Database, store: JobStore, clock: Clock
) -> None:
    counters = Counters(now=clock)
    counters.connected()
    counters.disconnected()
    counters.disconnected()
    clock.advance(200)
    assert (await look(db, clock, counters)).problems == ()
    clock.advance(200)
    assert (await look(db, clock, counters)).problems[0].startswith("Not connected to Discord since 08:00 UTC")
    counters.resumed()
    health = await look(db, clock, counters)
    assert health.problems == ()
    assert health.gateway is not None
    assert (health.gateway.connects, health.gateway.resumes, health.gateway.disconnects) == (1, 1, 1)


async def test_a_bot_without_a_slot_has_a_problem(db: Database, clock: Clock) -> None:
    assert "There is no slot" in (await look(db, clock, Counters())).problems[0]


async def damaged(db: Database, what: str, path: Path) -> Path:
    """A copy of the database in which the first page of one table or index is noise."""
    await db.checkpoint()
    row = await db.one("SELECT rootpage FROM sqlite_schema WHERE name = ?", (what,))
    assert row is not None
    content = bytearray(db.path.read_bytes())
    content[4096 * (row[0] - 1) : 4096 * row[0]] = b"\xa5" * 4096
    path.write_bytes(content)  # noqa: ASYNC240
    return path


async def test_damage_is_found_and_comes_first(tmp_path: Path, db: Database, submit: Submit, clock: Clock) -> None:
    await submit()
    broken = await damaged(db, "audit_of_job", tmp_path / "index.db")
    health = await examine_health(broken, min_free_bytes=2**60, now=clock)
    assert health.integrity != "ok"
    assert health.problems[0].startswith("The database is damaged")
    broken = await damaged(db, "slot", tmp_path / "slot.db")
    with pytest.raises(DatabaseDamaged, match="malformed"):
        await examine_health(broken, now=clock)


async def test_looking_changes_nothing_and_refuses_what_it_cannot_read(db: Database, tmp_path: Path) -> None:
    async with open_to_read(db.path) as reading:
        with pytest.raises(DatabaseUnwritable):
            async with reading.transaction() as connection:
                await connection.execute("DELETE FROM job")
    with pytest.raises(DatabaseUnreadable, match="no such file"):
        await examine_health(tmp_path / "nowhere.db")
    async with db.transaction() as connection:
        await connection.execute("PRAGMA user_version = 1")
    with pytest.raises(SchemaTooOld, match="brings it up to date when it starts"):
        await examine_health(db.path)


async def test_the_report_fits_into_a_message_whatever_is_wrong(
    db: Database, store: JobStore, submit: Submit, clock: Clock
) -> None:
    for _ in range(15):
        await submit()
    for _ in range(15):
        await claim(store, 15)
    await store.switch.halt(HaltKind.DRAIN, by=1, why="driver")
    counters = Counters(now=clock)
    counters.rate_limited(is_block=True)
    message = health_message(await look(db, clock, counters, min_free_bytes=2**60))
    parts, characters, _ = weight(message.layout)
    assert parts < 10
    assert characters < 3500
    shown = str(message.layout.to_components())
    for words in ("2 problems", "draining", "met 1 time (429)", "0 of 15 free", "15 preparing", "sound"):
        assert words in shown


@asynccontextmanager
async def answering(status: int, headers: dict[str, str]) -> AsyncIterator[str]:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, headers=headers)

    application = web.Application()
    application.router.add_get("/", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "headers", "limits", "blocks"), [(200, {}, 0, 0), (429, {"Via": "1.1 google"}, 1, 0), (429, {}, 1, 1)]
)
async def test_rate_limits_are_counted_where_requests_end(
    status: int, headers: dict[str, str], limits: int, blocks: int
) -> None:
    counters = Counters()
    async with (
        answering(status, headers) as url,
        aiohttp.ClientSession(trace_configs=[counters.http_trace()]) as session,
        session.get(url),
    ):
        pass
    await asyncio.sleep(0)
    assert (counters.rate_limits, counters.blocks) == (limits, blocks)
