"""After a start, the log channel shows what happened to the trainings."""

from __future__ import annotations

from bot.db import Database
from bot.db.database import read_setting
from bot.queue import JobStore
from bot.runners import Handle
from bot.scheduled.alerts import AdminNotifier
from bot.scheduled.restart_report import RestartReport
from bot.ui.admin_news import BotRestarted
from tests.bot.conftest import Submit, claim
from tests.bot.fake_events import epoch_ended, finished, started
from tests.bot.fakes import FakeClock
from tests.bot.scheduled.conftest import LOG_CHANNEL, ReadNews


async def test_a_start_reports_what_became_of_the_trainings(
    db: Database,
    store: JobStore,
    submit: Submit,
    notifier: AdminNotifier,
    clock: FakeClock,
    sent_news: ReadNews,
) -> None:
    for number in (1, 2, 3):
        await submit()
        assert (await claim(store, number)) is not None
        await store.attempts.set_handle(number, 1, Handle("x"))
        await store.attempts.ingest(number, 1, [started(1)], 10)
    await RestartReport(db, notifier, clock=clock).mark_alive()
    clock.advance(42)
    report = RestartReport(db, notifier, clock=clock)
    await report.record()
    # The mark of each minute does not hide how long it was away.
    await report.mark_alive()
    await store.attempts.ingest(2, 1, [epoch_ended(2, 1), finished(3)], 20)
    await store.attempts.lost(3, 1)
    await report.send()
    await report.send()
    expected = BotRestarted(away_s=42, running=1, ended=1, lost=1, messages=3)
    assert await sent_news() == [(LOG_CHANNEL, expected)]
    assert await read_setting(db, "bot.last_seen") == str(clock.time())


async def test_a_start_that_is_killed_before_its_report_is_reported_by_the_next(
    db: Database, notifier: AdminNotifier, clock: FakeClock, sent_news: ReadNews
) -> None:
    await RestartReport(db, notifier, clock=clock).mark_alive()
    clock.advance(30)
    first = RestartReport(db, notifier, clock=clock)
    await first.record()
    await first.mark_alive()
    clock.advance(30)
    second = RestartReport(db, notifier, clock=clock)
    await second.record()
    await second.send()
    expected = BotRestarted(away_s=60, running=0, ended=0, lost=0, messages=0)
    assert await sent_news() == [(LOG_CHANNEL, expected)]


async def test_the_very_first_start_reports_nothing(
    db: Database, notifier: AdminNotifier, clock: FakeClock, sent_news: ReadNews
) -> None:
    report = RestartReport(db, notifier, clock=clock)
    await report.record()
    await report.send()
    assert await sent_news() == []
    assert await read_setting(db, "bot.last_seen") == str(clock.time())
