"""The weekly digest: its numbers from a real database, its words, and that it is told once."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from bot.db import Database
from bot.outbox import Outbox
from bot.queue import JobStore
from bot.queue.planning.retention import Totals
from bot.queue.planning.storage import Storage
from bot.queue.planning.windows import parse_windows
from bot.scheduled.digest import MAX_CHARACTERS, Best, Digest, Week, digest_text, read_week
from bot.scheduled.news import News
from tests.bot.conftest import Submit
from tests.bot.fakes import Clock, finished

BERLIN = ZoneInfo("Europe/Berlin")
TOTALS = Totals(free_bytes=50 * 1024**3, bytes_by_owner={1: 1024**3}, held_bytes=0)
HOUR_S = 3600.0


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


async def ended(db: Database, job_id: int, state: str, moment: float, word: str | None = None) -> None:
    async with db.transaction() as connection:
        await connection.execute_fetchall(
            "UPDATE job SET state = ?, ended_at = ?, last_word = ? WHERE id = ?", (state, moment, word, job_id)
        )


async def used(db: Database, job_id: int, owner: int, gpus: int, start: float, end: float | None) -> None:
    async with db.transaction() as connection:
        await connection.execute_fetchall(
            "INSERT INTO attempt (job_id, attempt, guild_id, owner_id, gpus, slots, started_at, ended_at)"
            " VALUES (?, 1, 10, ?, ?, '', ?, ?)",
            (job_id, owner, gpus, start, end),
        )


async def test_a_week_is_what_happened_in_it(db: Database, store: JobStore, submit: Submit) -> None:
    since, until = at("2026-11-16T09:00"), at("2026-11-23T09:00")
    word = finished(1)
    for _ in range(5):
        await submit()
    await ended(db, 1, "succeeded", since, word.model_copy(update={"best_ratio": 0.8}).model_dump_json())
    await ended(db, 2, "stopped", until - 1, word.model_copy(update={"best_ratio": 0.7}).model_dump_json())
    await ended(db, 3, "failed", since + 1)
    await ended(db, 4, "succeeded", until, word.model_dump_json())
    await ended(db, 5, "succeeded", since - 1, word.model_dump_json())
    await used(db, 1, 1, 2, since - HOUR_S, since + HOUR_S)
    await used(db, 2, 2, 1, until - 3 * HOUR_S, None)
    await used(db, 3, 2, 1, until + 1, None)
    week = await read_week(db, since, until)
    assert week.ends == {"succeeded": 1, "stopped": 1, "failed": 1}
    assert week.gpu_seconds == {1: 2 * HOUR_S, 2: 3 * HOUR_S}
    assert [(best.job_id, best.ratio) for best in week.best] == [(2, 0.7), (1, 0.8)]


def test_the_digest_in_words() -> None:
    week = Week(
        ends={"failed": 1, "succeeded": 12},
        gpu_seconds={1: 2 * HOUR_S, 2: 30.5 * HOUR_S},
        best=(Best(job_id=7, name="fox", owner_id=1, ratio=0.5),),
    )
    opens_at = datetime(2026, 11, 24, 19, tzinfo=UTC)
    assert digest_text(week, TOTALS, title="The week until 23 November", opens_at=opens_at) == (
        "### The week until 23 November\n"
        "**Jobs** 12 finished, 1 failed\n"
        "**GPUs** 32.5 h: <@2> 30.5 h, <@1> 2.0 h\n"
        "**Storage** 1.0 GiB of jobs, 50.0 GiB free\n"
        "**Next training window** <t:1795546800:F>\n"
        "**Best results** (validation loss against the base model's)\n"
        "- #7 fox <@1> 0.500×"
    )


def test_a_quiet_week_is_short() -> None:
    week = Week(ends={}, gpu_seconds={}, best=())
    assert digest_text(week, TOTALS, title="T") == "### T\nNo job ended.\n**Storage** 1.0 GiB of jobs, 50.0 GiB free"


def test_a_busy_week_fits() -> None:
    snowflake = 2**63 - 1
    best = tuple(Best(job_id=10**9 + n, name="*" * 64, owner_id=snowflake - n, ratio=1.0) for n in range(5))
    ends = dict.fromkeys(("succeeded", "stopped", "failed", "cancelled"), 99_999)
    week = Week(ends=ends, gpu_seconds={snowflake - n: 1e6 for n in range(200)}, best=best)
    text = digest_text(week, TOTALS, title="The week until 23 September", opens_at=datetime.now(UTC))
    assert len(text) <= MAX_CHARACTERS
    assert "195 others" in text


async def test_a_week_is_told_once_over_restarts_and_jumps_of_the_clock(
    db: Database, outbox: Outbox, clock: Clock, tmp_path: Path
) -> None:
    windows = parse_windows(["20:00-08:00"], timezone="Europe/Berlin")

    async def look(moment: str) -> list[str]:
        clock.now = at(moment)
        storage = Storage(db, data_dir=tmp_path / "data", now=clock)
        await Digest(db, News(db, outbox, channel_id=900), storage, windows, now=clock).look()
        return [row["dedupe_key"] for row in await db.all("SELECT dedupe_key FROM outbox ORDER BY id")]

    assert await look("2026-11-18T12:00") == []
    assert await look("2026-11-23T08:59") == []
    assert await look("2026-11-23T09:00") == ["digest:2026-W48"]
    assert await look("2026-11-24T09:00") == ["digest:2026-W48"]
    assert await look("2026-11-17T09:00") == ["digest:2026-W48"]
    # The machine slept through Monday, and over the turn of the year.
    assert await look("2027-01-06T12:00") == ["digest:2026-W48", "digest:2027-W01"]
