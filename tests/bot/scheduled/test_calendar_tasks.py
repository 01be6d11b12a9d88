"""The nightly backup and the weekly digest: made once, at their hour or later, with the week's numbers."""

from __future__ import annotations

from datetime import datetime, time
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from bot.config import BackupSettings
from bot.db import Database, verify_copy
from bot.queue import JobStore
from bot.queue.planning.retention import Storage
from bot.queue.planning.windows import parse_windows
from bot.queue.store.gallery_store import Picture, ShownImage
from bot.scheduled.alerts import AdminNotifier
from bot.scheduled.calendar_tasks import DigestSender, NightlyBackup, is_due, last_daily, last_weekly
from bot.ui.admin_news import BackupFailed
from tests.bot.conftest import GUILD, Submit
from tests.bot.fake_events import finished
from tests.bot.fakes import FakeClock
from tests.bot.scheduled.conftest import ReadNews

BERLIN = ZoneInfo("Europe/Berlin")
HOUR_S = 3600.0


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


@pytest.mark.parametrize(
    ("now", "day"),
    [("2026-11-24T04:00", "2026-11-24"), ("2026-11-24T03:59", "2026-11-23"), ("2026-03-29T12:00", "2026-03-29")],
)
def test_the_newest_night_is_found(now: str, day: str) -> None:
    assert last_daily(at(now), time(4), BERLIN) == datetime.fromisoformat(f"{day}T04:00").replace(tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("now", "day"),
    [
        ("2026-11-23T09:00", "2026-11-23"),
        ("2026-11-23T08:59", "2026-11-16"),
        ("2026-11-29T23:00", "2026-11-23"),
    ],
)
def test_the_newest_monday_is_found(now: str, day: str) -> None:
    assert last_weekly(at(now), 0, time(9), BERLIN).date().isoformat() == day


async def test_a_done_task_is_not_due_again_when_the_clock_jumps_back(db: Database) -> None:
    assert not await is_due(db, "x", "2026-W47")
    assert await is_due(db, "x", "2026-W48")
    assert not await is_due(db, "x", "2026-W46")


# -- the nightly backup --------------------------------------------------------------------------------------------


@pytest.fixture
def backup(db: Database, notifier: AdminNotifier, clock: FakeClock, tmp_path: Path) -> NightlyBackup:
    settings = BackupSettings(at="04:00", keep=2)
    return NightlyBackup(db, notifier, settings=settings, zone=BERLIN, folder=tmp_path / "backups", clock=clock)


async def test_each_night_the_database_is_copied_once_and_the_copy_opens(
    backup: NightlyBackup, clock: FakeClock, tmp_path: Path, sent_news: ReadNews
) -> None:
    clock.at = at("2026-11-24T12:00")
    assert await backup.check() is None
    for night in ("2026-11-25", "2026-11-26", "2026-11-29"):
        clock.at = at(f"{night}T03:59")
        if night != "2026-11-29":
            assert await backup.check() is None
        clock.at = at(f"{night}T04:00")
        copy = await backup.check()
        assert copy is not None
        assert (await verify_copy(copy)).datasets == 1
        assert await backup.check() is None
    assert len(list((tmp_path / "backups").iterdir())) == 2
    # The clock is set back by days: the backup of that night exists.
    clock.at = at("2026-11-27T04:00")
    assert await backup.check() is None
    assert await sent_news() == []


async def test_a_failed_backup_is_reported_once_a_night_and_retried(
    backup: NightlyBackup, clock: FakeClock, tmp_path: Path, sent_news: ReadNews
) -> None:
    folder = tmp_path / "backups"
    folder.write_text("a file where the folder should be")
    clock.at = at("2026-11-24T12:00")
    await backup.check()
    clock.at = at("2026-11-25T04:00")
    assert await backup.check() is None
    clock.advance(3600)
    assert await backup.check() is None
    assert [type(news) for _, news in await sent_news()] == [BackupFailed]
    folder.unlink()
    clock.advance(3600)
    assert await backup.check() is not None


# -- the weekly digest ---------------------------------------------------------------------------------------------


@pytest.fixture
def digest(db: Database, notifier: AdminNotifier, clock: FakeClock, tmp_path: Path) -> DigestSender:
    storage = Storage(db, data_dir=tmp_path / "data", clock=clock)
    return DigestSender(db, notifier, storage, parse_windows(["20:00-08:00"], zone=BERLIN), clock=clock)


async def end(db: Database, job_id: int, state: str, moment: float, terminal_event: str | None = None) -> None:
    async with db.transaction() as connection:
        await connection.execute_fetchall(
            "UPDATE job SET state = ?, ended_at = ?, terminal_event = ? WHERE id = ?",
            (state, moment, terminal_event, job_id),
        )


async def use_gpus(db: Database, job_id: int, owner: int, gpus: int, start: float, end: float | None) -> None:
    async with db.transaction() as connection:
        await connection.execute_fetchall(
            "INSERT INTO attempt (job_id, attempt, guild_id, owner_id, gpus, slots, started_at, ended_at)"
            " VALUES (?, 1, 10, ?, ?, '', ?, ?)",
            (job_id, owner, gpus, start, end),
        )


async def test_a_digest_covers_exactly_its_week(
    db: Database, store: JobStore, submit: Submit, digest: DigestSender, clock: FakeClock
) -> None:
    since, until = at("2026-11-16T09:00"), at("2026-11-23T09:00")
    clock.at = until
    event = finished(1)
    for _number in range(5):
        await submit()
    await end(db, 1, "succeeded", since, event.model_copy(update={"best_ratio": 0.8}).model_dump_json())
    await end(db, 2, "stopped", until - 1, event.model_copy(update={"best_ratio": 0.7}).model_dump_json())
    await end(db, 3, "failed", since + 1)
    await end(db, 4, "succeeded", until, event.model_dump_json())
    await end(db, 5, "succeeded", since - 1, event.model_dump_json())
    await use_gpus(db, 1, 1, 2, since - HOUR_S, since + HOUR_S)
    await use_gpus(db, 2, 2, 1, until - 3 * HOUR_S, None)
    await use_gpus(db, 3, 2, 1, until + 1, None)
    week = await digest.read(datetime.fromtimestamp(until, BERLIN))
    assert week.ends == {"succeeded": 1, "stopped": 1, "failed": 1}
    assert week.gpu_seconds == {1: 2 * HOUR_S, 2: 3 * HOUR_S}
    assert [(best.job_id, best.ratio) for best in week.best] == [(2, 0.7), (1, 0.8)]
    assert week.opens_at is not None
    assert week.opens_at.timestamp() == at("2026-11-23T20:00")


async def test_a_digest_names_the_pictures_that_were_liked_most_in_its_week(
    store: JobStore, submit: Submit, digest: DigestSender, clock: FakeClock
) -> None:
    since, until = at("2026-11-16T09:00"), at("2026-11-23T09:00")
    clock.at = since - 1
    posts = []
    for number in range(3):
        picture = Picture(path=f"{number}.png", images=(ShownImage(prompt="a fox", seed=1),))
        job = await submit(owner=number + 1)
        posts.append(await store.gallery.post(job, picture, model_job_id=job.id, base="b", channel_id=1, by=1))
    # Before the week, in it, and after it.
    await store.gallery.vote(GUILD, posts[0].id, 7)
    clock.at = since
    for post, users in ((posts[0], [8]), (posts[1], [7, 8]), (posts[2], [7, 8, 9])):
        for user in users:
            await store.gallery.vote(GUILD, post.id, user)
    await store.gallery.withdraw(GUILD, posts[2].id, by=3, can_manage=False)
    clock.at = until
    await store.gallery.vote(GUILD, posts[0].id, 9)
    week = await digest.read(datetime.fromtimestamp(until, BERLIN))
    assert [(each.job_id, each.owner_id, each.likes) for each in week.liked] == [
        (posts[1].job_id, 2, 2),
        (posts[0].job_id, 1, 1),
    ]


async def test_a_digest_is_sent_once_over_restarts_and_jumps_of_the_clock(
    db: Database, digest: DigestSender, clock: FakeClock
) -> None:
    async def check(moment: str) -> list[str]:
        clock.at = at(moment)
        await digest.check()
        return [row["dedupe_key"] for row in await db.all("SELECT dedupe_key FROM outbox ORDER BY id")]

    assert await check("2026-11-18T12:00") == []
    assert await check("2026-11-23T08:59") == []
    assert await check("2026-11-23T09:00") == ["digest:2026-W48"]
    assert await check("2026-11-24T09:00") == ["digest:2026-W48"]
    assert await check("2026-11-17T09:00") == ["digest:2026-W48"]
    # The machine slept through Monday, and over the turn of the year.
    assert await check("2027-01-06T12:00") == ["digest:2026-W48", "digest:2027-W01"]
