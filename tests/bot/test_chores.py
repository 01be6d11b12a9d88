"""Chores by the clock, called without it; and that the clock calls them, also after a jump."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from bot.config import BackupSettings, Config, QueueSettings, WindowSettings
from bot.datasets import DatasetStore
from bot.db import Database, verify_copy
from bot.db.setting import read_setting
from bot.outbox import Outbox
from bot.queue import DraftStore, JobStore, StopIntent
from bot.queue.domain.admission import Gate
from bot.queue.planning.windows import parse_windows
from bot.runners import Handle
from bot.scheduled import Chore, Chores, Disk, Gates, plan_chores
from bot.scheduled.backup import NightlyBackup
from bot.scheduled.boot import Boot
from bot.scheduled.due import is_due, last_daily, last_weekly
from bot.scheduled.news import News
from bot.scheduled.silence import SilenceWatch
from bot.scheduled.sweeping import empty_wal, sweep_drafts, sweep_leftovers
from bot.scheduled.waking import Waking
from tests.bot.conftest import CHANNEL, Submit, claim
from tests.bot.fakes import Clock, epoch_ended, eventually, finished, started, step_done
from trainer.protocol.devices import Devices

LOG_CHANNEL = 900
BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


@pytest.fixture
def news(db: Database, outbox: Outbox) -> News:
    return News(db, outbox, channel_id=LOG_CHANNEL)


async def told(db: Database) -> list[tuple[int, str]]:
    """(channel, text) of all news ever."""
    rows = await db.all(
        "SELECT channel_id, json_extract(notice, '$.detail') AS text FROM outbox"
        " WHERE json_extract(notice, '$.kind') = 'news' ORDER BY id"
    )
    return [(row["channel_id"], row["text"]) for row in rows]


# -- news ----------------------------------------------------------------------------------------------------------


async def test_news_go_to_the_log_and_the_channel_once(
    db: Database, news: News, caplog: pytest.LogCaptureFixture
) -> None:
    await news.tell("The disk\nis full.", key="disk:1")
    await news.tell("The disk\nis full.", key="disk:1")
    assert await told(db) == [(LOG_CHANNEL, "The disk\nis full.")]
    assert "The disk is full." in caplog.text


async def test_news_without_a_channel_are_only_logged(
    db: Database, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    await News(db, outbox, channel_id=0).tell("The disk is full.", key="disk:1")
    assert await told(db) == []
    assert "The disk is full." in caplog.text


# -- silence -------------------------------------------------------------------------------------------------------


@pytest.fixture
def watch(db: Database, store: JobStore, news: News, clock: Clock) -> SilenceWatch:
    return SilenceWatch(db, store, news, settings=QueueSettings(silence_s=600, stop_grace_s=60), now=clock)


async def test_a_silent_training_is_told_in_its_channel_once_for_each_silence(
    db: Database, store: JobStore, submit: Submit, clock: Clock, watch: SilenceWatch, caplog: pytest.LogCaptureFixture
) -> None:
    await submit()
    await claim(store, 1)
    await store.runs.ingest(1, 1, [started(1)], 10)
    clock.advance(599)
    await watch.look()
    assert await told(db) == []
    clock.advance(1)
    await watch.look()
    await watch.look()
    assert [(channel, text[:45]) for channel, text in await told(db)] == [
        (CHANNEL, "#1 fox has said nothing for 10 min; its proce")
    ]
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    await store.runs.ingest(1, 1, [step_done(2, 1)], 20)
    await watch.look()
    clock.advance(1200)
    await watch.look()
    assert ["20 min" in text for _, text in await told(db)] == [False, True]


async def test_a_training_that_will_not_die_is_told_once(
    db: Database, store: JobStore, submit: Submit, clock: Clock, watch: SilenceWatch
) -> None:
    await submit()
    await claim(store, 1)
    await store.request_stop(1, by=1, intent=StopIntent.CANCEL)
    await store.runs.stop_sent(1, 1)
    clock.advance(179)
    await watch.look()
    assert await told(db) == []
    clock.advance(1)
    await watch.look()
    await watch.look()
    assert [text[:26] for _, text in await told(db)] == ["#1 fox was told to stop 3 "]


# -- waking --------------------------------------------------------------------------------------------------------


async def test_the_dispatcher_is_woken_at_the_edge_of_a_window(db: Database, store: JobStore, clock: Clock) -> None:
    windows = parse_windows(["20:00-08:00"], timezone="Europe/Berlin")
    clock.now = at("2026-11-24T19:59")
    gates = Gates(windows, Disk(Path("/"), min_free_bytes=0), now=clock)
    waking = Waking(db, store.changed, gates, now=clock)
    await waking.look()
    store.changed.clear()
    await waking.look()
    assert not store.changed.is_set()
    clock.advance(60)
    await waking.look()
    assert store.changed.is_set()


async def test_the_dispatcher_is_woken_when_a_delayed_start_comes(
    db: Database, store: JobStore, submit: Submit, clock: Clock
) -> None:
    waking = Waking(db, store.changed, lambda: Gate.OPEN, now=clock)
    await submit()
    async with db.transaction() as connection:
        await connection.execute_fetchall("UPDATE job SET run_after = ?", (clock.now + 61,))
    await waking.look()
    store.changed.clear()
    await asyncio.sleep(0.05)
    assert not store.changed.is_set()
    clock.advance(60.99)
    await waking.look()
    assert not store.changed.is_set()
    await asyncio.wait_for(store.changed.wait(), 5)


# -- gates ---------------------------------------------------------------------------------------------------------


def test_nothing_starts_outside_the_windows_or_while_the_disk_is_full(clock: Clock) -> None:
    free = [100]
    windows = parse_windows(["mon-fri 20:00-08:00"], timezone="Europe/Berlin")
    gates = Gates(windows, Disk(Path("/"), min_free_bytes=50, free=lambda path: free[0]), now=clock)
    clock.now = at("2026-11-24T21:00")
    assert (gates(), gates.reason()) == (Gate.OPEN, "")
    free[0] = 49
    assert gates() is Gate.CLOSED
    assert gates.reason() == "The disk is nearly full (49 B free); nothing starts until there is room."
    clock.now = at("2026-11-28T12:00")
    assert gates() is Gate.CLOSED
    assert gates.reason() == "The training window opens Mon 20:00 (Europe/Berlin)."


def test_a_full_disk_opens_again_with_some_room_to_spare() -> None:
    free = [49]
    disk = Disk(Path("/"), min_free_bytes=50, free=lambda path: free[0])
    said = []
    for free[0] in (49, 52, 56, 52, 49):
        said.append(disk.is_low())
    assert said == [True, True, False, False, True]
    assert not Disk(Path("/"), min_free_bytes=0, free=lambda path: 0).is_low()


# -- once a night, once a week -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "day"),
    [("2026-11-24T04:00", "2026-11-24"), ("2026-11-24T03:59", "2026-11-23"), ("2026-03-29T12:00", "2026-03-29")],
)
def test_the_newest_night_is_found(now: str, day: str) -> None:
    clock = datetime.fromisoformat("2026-01-01T04:00").time()
    assert last_daily(at(now), clock, BERLIN) == datetime.fromisoformat(f"{day}T04:00").replace(tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("now", "day"),
    [
        ("2026-11-23T09:00", "2026-11-23"),
        ("2026-11-23T08:59", "2026-11-16"),
        ("2026-11-29T23:00", "2026-11-23"),
    ],
)
def test_the_newest_monday_is_found(now: str, day: str) -> None:
    clock = datetime.fromisoformat("2026-01-01T09:00").time()
    assert last_weekly(at(now), 0, clock, BERLIN).date().isoformat() == day


async def test_what_was_done_is_not_due_again_when_the_clock_jumps_back(db: Database) -> None:
    assert not await is_due(db, "x", "2026-W47")
    assert await is_due(db, "x", "2026-W48")
    assert not await is_due(db, "x", "2026-W46")


def make_backup(db: Database, news: News, clock: Clock, folder: Path) -> NightlyBackup:
    settings, windows = BackupSettings(at="04:00", keep=2), WindowSettings(timezone="Europe/Berlin")
    return NightlyBackup(db, news, settings=settings, windows=windows, folder=folder, now=clock)


async def test_each_night_the_database_is_copied_once_and_the_copy_opens(
    db: Database, news: News, clock: Clock, tmp_path: Path
) -> None:
    folder = tmp_path / "backups"
    backup = make_backup(db, news, clock, folder)
    clock.now = at("2026-11-24T12:00")
    assert await backup.look() is None
    for night in ("2026-11-25", "2026-11-26", "2026-11-29"):
        clock.now = at(f"{night}T03:59")
        if night != "2026-11-29":
            assert await backup.look() is None
        clock.now = at(f"{night}T04:00")
        copy = await backup.look()
        assert copy is not None
        assert (await verify_copy(copy)).datasets == 1
        assert await backup.look() is None
    assert len(list(folder.iterdir())) == 2
    # The clock is set back by days: that night was done.
    clock.now = at("2026-11-27T04:00")
    assert await backup.look() is None
    assert await told(db) == []


async def test_a_night_without_a_copy_is_news_and_made_up_for(
    db: Database, news: News, clock: Clock, tmp_path: Path
) -> None:
    folder = tmp_path / "backups"
    folder.write_text("a file where the folder should be")
    backup = make_backup(db, news, clock, folder)
    clock.now = at("2026-11-24T12:00")
    await backup.look()
    clock.now = at("2026-11-25T04:00")
    assert await backup.look() is None
    clock.advance(3600)
    assert await backup.look() is None
    assert [text[:40] for _, text in await told(db)] == ["The nightly copy of the database failed:"]
    folder.unlink()
    clock.advance(3600)
    assert await backup.look() is not None


# -- after a start -------------------------------------------------------------------------------------------------


async def test_a_start_tells_what_became_of_the_trainings(
    db: Database, store: JobStore, submit: Submit, news: News, clock: Clock
) -> None:
    for number in (1, 2, 3):
        await submit()
        assert (await claim(store, number)) is not None
        await store.runs.started(number, 1, Handle("x"))
        await store.runs.ingest(number, 1, [started(1)], 10)
    await Boot(db, news, now=clock).seen()
    clock.advance(42)
    boot = Boot(db, news, now=clock)
    await boot.remember()
    # A look each minute does not hide how long it was away.
    await boot.seen()
    await store.runs.ingest(2, 1, [epoch_ended(2, 1), finished(3)], 20)
    await store.runs.lost(3, 1)
    await boot.tell()
    await boot.tell()
    assert await told(db) == [
        (LOG_CHANNEL, "Back after 42 s: 1 job kept running, 1 ended meanwhile, 1 lost, 3 messages caught up.")
    ]
    assert await read_setting(db, "bot.last_seen") == str(clock.now)


async def test_a_start_that_is_killed_before_it_tells_is_told_by_the_next(
    db: Database, news: News, clock: Clock
) -> None:
    await Boot(db, news, now=clock).seen()
    clock.advance(30)
    first = Boot(db, news, now=clock)
    await first.remember()
    await first.seen()
    clock.advance(30)
    boot = Boot(db, news, now=clock)
    await boot.remember()
    await boot.tell()
    assert [text for _, text in await told(db)] == [
        "Back after 1 min 00 s: 0 jobs kept running, 0 lost, 0 messages caught up."
    ]


async def test_the_very_first_start_tells_nothing(db: Database, news: News, clock: Clock) -> None:
    boot = Boot(db, news, now=clock)
    await boot.remember()
    await boot.tell()
    assert await told(db) == []
    assert await read_setting(db, "bot.last_seen") == str(clock.now)


# -- housekeeping and the clock ------------------------------------------------------------------------------------


async def test_the_log_of_the_database_is_emptied(db: Database) -> None:
    def wal_bytes() -> int:
        return Path(f"{db.path}-wal").stat().st_size

    assert wal_bytes() > 0
    await empty_wal(db)
    assert wal_bytes() == 0


async def test_a_chore_that_fails_keeps_no_other_from_its_turn(caplog: pytest.LogCaptureFixture) -> None:
    done = asyncio.Event()

    async def fail() -> None:
        raise OSError("the disk is gone")

    async def work() -> None:
        done.set()

    chores = Chores(
        [
            Chore(name="fails", run=fail, when={"second": "*"}, at_start=True),
            Chore(name="works", run=work, when={"second": "*"}),
        ]
    )
    task = asyncio.create_task(chores.run())
    async with asyncio.timeout(10):
        await done.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert "the chore 'fails' failed" in caplog.text


async def test_a_clock_that_was_set_back_delays_no_chore(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done = asyncio.Event()

    async def work() -> None:
        done.set()

    chores = Chores([Chore(name="works", run=work, when={"second": "*"})], mend_s=0.01)
    task = asyncio.create_task(chores.run())
    await asyncio.sleep(0.05)
    # As after a jump back by a day: planned for what is tomorrow now.
    [job] = chores.planned()
    job.modify(next_run_time=datetime.now(BERLIN) + timedelta(days=1))
    done.clear()
    async with asyncio.timeout(10):
        await done.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert "the clock was set back" in caplog.text


async def is_seen(db: Database) -> bool:
    return await read_setting(db, "bot.last_seen") is not None


async def test_all_chores_are_planned_and_end_in_peace(
    db: Database, outbox: Outbox, store: JobStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    datasets, drafts = DatasetStore(db, data_dir=tmp_path / "data"), DraftStore(db)
    await sweep_leftovers(datasets)
    await sweep_drafts(drafts)

    async def ask() -> Devices:
        return Devices()

    config = Config.model_validate({"windows": {"timezone": "Europe/Berlin"}})
    gates = Gates(
        parse_windows([], timezone="Europe/Berlin"), Disk(tmp_path, min_free_bytes=config.health.min_free_bytes)
    )
    chores = plan_chores(
        config,
        db=db,
        outbox=outbox,
        datasets=datasets,
        drafts=drafts,
        jobs=store,
        gates=gates,
        ask=ask,
        data_dir=tmp_path / "data",
    )
    await chores.remember()
    task = asyncio.create_task(chores.run())
    await asyncio.sleep(0.3)
    assert await read_setting(db, "bot.last_seen") is None
    chores.looked.set()
    await eventually(lambda: is_seen(db))
    assert {job.id for job in chores.planned()} == {
        "waking", "disk", "silence", "seen", "drafts", "wal", "leftovers", "trash", "retention", "digest", "backup",
        "gpus",
    }  # fmt: skip
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert "failed" not in caplog.text
