"""News for operators: about silent and unkillable trainings, and about the disk."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bot.config import QueueSettings
from bot.db import Database
from bot.outbox import Outbox
from bot.queue import JobStore, StopIntent
from bot.scheduled.admission_control import DiskMonitor
from bot.scheduled.alerts import AdminNotifier, DiskAlerts, HangAlerts
from bot.ui.admin_news import BackupFailed, DiskSpace, JobSilent, JobUnkillable
from tests.bot.conftest import CHANNEL, Submit, claim
from tests.bot.fake_events import started, step_done
from tests.bot.fakes import FakeClock
from tests.bot.scheduled.conftest import LOG_CHANNEL, ReadNews

GIB = 1024**3
NEWS = BackupFailed(error="The disk\nis full.")


async def test_news_goes_to_the_log_and_the_channel_once(
    notifier: AdminNotifier, sent_news: ReadNews, caplog: pytest.LogCaptureFixture
) -> None:
    await notifier.send(NEWS, key="disk:1")
    await notifier.send(NEWS, key="disk:1")
    assert await sent_news() == [(LOG_CHANNEL, NEWS)]
    assert "The disk is full." in caplog.text


async def test_news_without_a_channel_is_only_logged(
    db: Database, outbox: Outbox, sent_news: ReadNews, caplog: pytest.LogCaptureFixture
) -> None:
    await AdminNotifier(db, outbox, channel_id=0).send(NEWS, key="disk:1")
    assert await sent_news() == []
    assert "The disk is full." in caplog.text


@pytest.fixture
def hangs(db: Database, store: JobStore, notifier: AdminNotifier, clock: FakeClock) -> HangAlerts:
    settings = QueueSettings(silence_s=600, stop_grace_s=60, hang_timeout_s=3600)
    return HangAlerts(db, store, notifier, settings=settings, clock=clock)


async def test_a_silent_training_is_reported_in_its_channel_once_for_each_silence(
    store: JobStore,
    submit: Submit,
    clock: FakeClock,
    hangs: HangAlerts,
    sent_news: ReadNews,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await submit()
    await claim(store, 1)
    await store.attempts.ingest(1, 1, [started(1), step_done(2, 1)], 10)
    silent_since = clock.time()
    clock.advance(599)
    await hangs.check()
    assert await sent_news() == []
    clock.advance(1)
    await hangs.check()
    await hangs.check()
    kill_at = datetime.fromtimestamp(silent_since + 3600, UTC)
    first = JobSilent(job_id=1, name="fox", silent_s=600, kill_at=kill_at)
    assert await sent_news() == [(CHANNEL, first)]
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    await store.attempts.ingest(1, 1, [step_done(3, 1)], 20)
    await hangs.check()
    clock.advance(1200)
    await hangs.check()
    _channels, news = zip(*await sent_news(), strict=True)
    assert [each.silent_s for each in news if isinstance(each, JobSilent)] == [600, 1200]


async def test_a_training_that_survives_its_kill_is_reported_once(
    store: JobStore, submit: Submit, clock: FakeClock, hangs: HangAlerts, sent_news: ReadNews
) -> None:
    await submit()
    await claim(store, 1)
    await store.request_stop(1, by=1, intent=StopIntent.CANCEL)
    await store.attempts.mark_stop_sent(1, 1)
    clock.advance(179)
    await hangs.check()
    assert await sent_news() == []
    clock.advance(1)
    await hangs.check()
    await hangs.check()
    assert await sent_news() == [(CHANNEL, JobUnkillable(job_id=1, name="fox", since_s=180, was_stopped=True))]


async def test_a_full_disk_is_reported_once_for_each_crossing_also_over_restarts(
    db: Database, notifier: AdminNotifier, clock: FakeClock, tmp_path: Path, sent_news: ReadNews
) -> None:
    async def check(free_gib: int) -> list[bool]:
        disk = DiskMonitor(tmp_path, min_free_bytes=10 * GIB, free=lambda path: free_gib * GIB)
        await DiskAlerts(db, notifier, disk, clock=clock).check()
        clock.advance(60)
        return [news.is_low for _, news in await sent_news() if isinstance(news, DiskSpace)]

    assert await check(20) == []
    assert await check(9) == [True]
    assert await check(9) == [True]
    assert await check(20) == [True, False]
    assert await check(9) == [True, False, True]
    assert (await sent_news())[0] == (
        LOG_CHANNEL,
        DiskSpace(is_low=True, free_bytes=9 * GIB, min_free_bytes=10 * GIB),
    )
