"""Trainings whose heart beats and that say no word: who is ended, when, and what is told."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from bot.config import QueueSettings
from bot.db import Database
from bot.errors import DatabaseUnwritable
from bot.outbox import Outbox
from bot.queue import Dispatcher, JobStore, State, StopIntent
from bot.queue.domain.rules import Run, after_loss
from bot.queue.liveness import MAX_LOOK_S, Pulse
from bot.scheduled.news import News
from bot.scheduled.silence import SilenceWatch
from bot.ui.text import clock as clock_time
from tests.bot.conftest import Submit, notices
from tests.bot.fakes import Clock, FakeRunner, epoch_ended, finished, started, step_done
from trainer.protocol.events import Event, Phase, PhaseBegan, Working

MINUTE_S = 60.0
HOUR_S = 3600.0


class Night:
    """A dispatcher and a machine, with a clock that only this test moves."""

    def __init__(self, store: JobStore, clock: Clock, hang_timeout_s: float = HOUR_S) -> None:
        self.store, self.clock, self.mono, self.runner = store, clock, Clock(0.0), FakeRunner()
        self.settings = QueueSettings(hang_timeout_s=hang_timeout_s, retry_pause_s=0, stop_grace_s=30)
        self.start_bot()

    def start_bot(self) -> None:
        pulse = Pulse(monotonic=self.mono)
        self.dispatcher = Dispatcher(self.store, self.runner, settings=self.settings, now=self.clock, pulse=pulse)

    def say(self, *makers: Callable[[int], Event]) -> None:
        self.runner.say(self.runner.trainings[-1], *makers)

    async def beat_for(self, seconds: float) -> None:
        """Let time go by in which the trainer's heart beats and the bot looks."""
        for _ in range(round(seconds / MAX_LOOK_S)):
            self.mono.advance(MAX_LOOK_S)
            self.clock.advance(MAX_LOOK_S)
            self.runner.beat = self.mono()
            await self.dispatcher.step()


@pytest.fixture
async def night(store: JobStore, submit: Submit, clock: Clock) -> Night:
    """One training, whose second epoch has begun."""
    night = Night(store, clock)
    await submit()
    await night.dispatcher.step()
    night.runner.beat = 0.0
    night.say(started, lambda seq: epoch_ended(seq, 1), lambda seq: step_done(seq, 2))
    await night.dispatcher.step()
    return night


def working(seq: int) -> Event:
    return Working(seq=seq, time=0.0)


def loading(seq: int) -> Event:
    return PhaseBegan(seq=seq, time=0.0, phase=Phase.LOADING)


def caching(seq: int) -> Event:
    return PhaseBegan(seq=seq, time=0.0, phase=Phase.CACHING)


async def test_a_training_that_beats_and_says_nothing_for_an_hour_is_ended_once_and_goes_on(
    store: JobStore, db: Database, night: Night
) -> None:
    await night.beat_for(HOUR_S - MINUTE_S)
    assert night.runner.killed == []
    await night.beat_for(3 * MINUTE_S)
    assert night.runner.killed == [0]
    job = await store.get(1)
    assert (job.state, job.attempt) == (State.PREPARING, 2)
    ended = await db.one("SELECT why FROM attempt WHERE attempt = 1")
    assert ended is not None
    assert ended["why"] == (
        "The training process of #1 was ended in epoch 2 (it hung: no word for 1 h although its process lived). "
        "It goes on from the checkpoint of epoch 1 (attempt 2 of 3)."
    )
    audited = await db.all("SELECT why FROM audit WHERE why LIKE '%it hung%'")
    assert [row["why"] for row in audited] == [ended["why"]]
    assert (await notices(db)).count("job:1:lost:1") == 1

    night.say(started, lambda seq: epoch_ended(seq, 2), finished)
    night.runner.trainings[-1].is_alive = False
    await night.dispatcher.step()
    assert (await store.get(1)).state is State.SUCCEEDED
    assert night.runner.killed == [0]


@pytest.mark.parametrize("word", [working, lambda seq: step_done(seq, 2)])
async def test_a_training_that_speaks_every_50_minutes_is_left_alone(
    store: JobStore, db: Database, night: Night, word: Callable[[int], Event]
) -> None:
    for _ in range(4):
        await night.beat_for(50 * MINUTE_S)
        night.say(word)
    await night.beat_for(50 * MINUTE_S)
    assert night.runner.killed == []
    assert (await store.get(1)).attempt == 1
    # A night of them is not kept.
    kept = await db.all("SELECT DISTINCT type FROM job_event ORDER BY type")
    assert [row["type"] for row in kept] == ["epoch_ended", "started"]


async def test_words_that_cannot_be_written_down_count(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object) -> None:
        raise DatabaseUnwritable(path=Path("darkroom.db"), why="full")

    monkeypatch.setattr(night.store.runs, "ingest", fails)
    for _ in range(3):
        night.say(working)
        await night.beat_for(50 * MINUTE_S)
    assert night.runner.killed == []


async def test_a_bot_that_was_frozen_for_two_hours_ends_nothing(night: Night) -> None:
    await night.beat_for(50 * MINUTE_S)
    night.mono.advance(2 * HOUR_S)
    night.clock.advance(2 * HOUR_S)
    await night.beat_for(MINUTE_S)
    assert night.runner.killed == []


async def test_a_clock_that_jumps_ends_nothing(night: Night) -> None:
    for jump_s in (86_400.0, -2 * 86_400.0, 86_400.0):
        night.clock.advance(jump_s)
        await night.beat_for(10 * MINUTE_S)
    assert night.runner.killed == []


async def test_a_bot_that_was_restarted_counts_anew(night: Night) -> None:
    await night.beat_for(50 * MINUTE_S)
    night.start_bot()
    await night.beat_for(50 * MINUTE_S)
    assert night.runner.killed == []
    await night.beat_for(11 * MINUTE_S)
    assert night.runner.killed == [0]


async def test_a_bot_killed_as_it_kills_leaves_the_kill_and_its_reason_to_the_next(
    db: Database, night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(handle: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(night.runner, "kill", die)
        with pytest.raises(KeyboardInterrupt):
            await night.beat_for(HOUR_S + MINUTE_S)
    assert night.runner.killed == []
    night.start_bot()
    await night.beat_for(MINUTE_S)
    assert night.runner.killed == [0]
    ended = await db.one("SELECT why FROM attempt WHERE attempt = 1")
    assert ended is not None
    assert "it hung: no word for 1 h" in ended["why"]


async def test_with_0_a_silent_training_is_never_ended(store: JobStore, submit: Submit, clock: Clock) -> None:
    night = Night(store, clock, hang_timeout_s=0)
    await submit()
    await night.dispatcher.step()
    night.say(started)
    await night.beat_for(10 * HOUR_S)
    assert night.runner.killed == []


@pytest.mark.parametrize(
    ("words", "hours"), [([], 4), ([loading], 4), ([loading, caching], 1), ([loading, caching, started], 1)]
)
async def test_a_training_that_loads_its_model_may_be_silent_four_times_as_long(
    store: JobStore, submit: Submit, clock: Clock, words: list[Callable[[int], Event]], hours: int
) -> None:
    night = Night(store, clock)
    await submit()
    await night.dispatcher.step()
    night.say(*words)
    await night.beat_for(hours * HOUR_S - MINUTE_S)
    assert night.runner.killed == []
    await night.beat_for(2 * MINUTE_S)
    assert night.runner.killed == [0]


async def test_the_next_start_loads_its_model_in_peace_too(store: JobStore, night: Night) -> None:
    await night.beat_for(HOUR_S + MINUTE_S)
    assert (await store.get(1)).attempt == 2
    await night.beat_for(4 * HOUR_S - 5 * MINUTE_S)
    assert night.runner.killed == [0]


async def test_a_training_that_is_being_stopped_has_its_grace_and_no_more_is_said(
    store: JobStore, db: Database, night: Night
) -> None:
    await night.beat_for(HOUR_S - MINUTE_S)
    await store.request_stop(1, by=1, intent=StopIntent.PAUSE)
    await night.beat_for(2 * MINUTE_S)
    assert night.runner.killed == [0]
    assert (await store.get(1)).state is State.PAUSED
    assert await db.all("SELECT why FROM audit WHERE why LIKE '%it hung%'") == []


async def test_a_process_that_a_kill_does_not_end_is_killed_again_and_told(
    store: JobStore, db: Database, outbox: Outbox, clock: Clock, night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = []

    async def kill(handle: str) -> None:
        kills.append(handle)

    monkeypatch.setattr(night.runner, "kill", kill)
    watch = SilenceWatch(db, store, News(db, outbox, channel_id=0), settings=night.settings, now=clock)
    await night.beat_for(HOUR_S + 3 * MINUTE_S)
    await watch.look()
    assert len(kills) > 1
    assert (await store.get(1)).attempt == 1
    (key,) = [key for key in await notices(db) if ":undead:" in key]
    told = await db.one("SELECT notice FROM outbox WHERE dedupe_key = ?", (key,))
    assert told is not None
    assert "was ended 2 min" in told["notice"]

    night.runner.trainings[0].is_alive = False
    await night.dispatcher.step()
    assert (await store.get(1)).attempt == 2


async def test_the_notice_of_a_silence_says_when_the_training_is_ended(
    store: JobStore, db: Database, outbox: Outbox, clock: Clock, night: Night
) -> None:
    watch = SilenceWatch(db, store, News(db, outbox, channel_id=0), settings=night.settings, now=clock)
    ends_at = datetime.fromtimestamp(clock() + HOUR_S, UTC)
    await night.beat_for(15 * MINUTE_S)
    await watch.look()
    (told,) = await db.all("SELECT notice FROM outbox WHERE dedupe_key LIKE '%silent%'")
    assert (
        f"has said nothing for 15 min; its process lives. If it says nothing until about {clock_time(ends_at)}, it is "
        "ended and goes on from its checkpoint."
    ) in told["notice"]


async def test_after_a_restart_the_notice_counts_as_the_dispatcher_does(
    store: JobStore, db: Database, outbox: Outbox, clock: Clock, night: Night
) -> None:
    await night.beat_for(10 * MINUTE_S)
    night.start_bot()
    watch = SilenceWatch(db, store, News(db, outbox, channel_id=0), settings=night.settings, now=clock)
    ends_at = datetime.fromtimestamp(clock() + HOUR_S, UTC)
    await night.beat_for(10 * MINUTE_S)
    await watch.look()
    (told,) = await db.all("SELECT notice FROM outbox WHERE dedupe_key LIKE '%silent%'")
    assert clock_time(ends_at) in told["notice"]


async def test_the_notice_of_a_silence_promises_no_time_that_is_past(
    store: JobStore, db: Database, outbox: Outbox, clock: Clock, night: Night
) -> None:
    watch = SilenceWatch(db, store, News(db, outbox, channel_id=0), settings=night.settings, now=clock)
    clock.advance(5 * HOUR_S)
    await watch.look()
    (told,) = await db.all("SELECT notice FROM outbox WHERE dedupe_key LIKE '%silent%'")
    assert clock_time(datetime.fromtimestamp(clock() + HOUR_S, UTC)) in told["notice"]


async def test_where_nothing_is_ended_the_notice_says_what_to_do(
    store: JobStore, db: Database, outbox: Outbox, clock: Clock, night: Night
) -> None:
    never = QueueSettings(hang_timeout_s=0)
    watch = SilenceWatch(db, store, News(db, outbox, channel_id=0), settings=never, now=clock)
    await night.beat_for(15 * MINUTE_S)
    await watch.look()
    (told,) = await db.all("SELECT notice FROM outbox WHERE dedupe_key LIKE '%silent%'")
    assert "If it hangs, cancel it: the checkpoint is kept." in told["notice"]


def test_the_last_start_that_hung_fails_in_words() -> None:
    run = Run(job_id=7, state=State.RUNNING, stop_intent=None, starts=3, max_starts=3, epoch=2, kept_epoch=1)
    assert after_loss(run, killed="it hung: no word for 1 h although its process lived").detail == (
        "The training process of #7 was ended in epoch 2 (it hung: no word for 1 h although its process lived), after "
        "3 starts. It is not started again; the checkpoint of epoch 1 and its log are kept (trainer.log in its folder)."
    )


def test_a_limit_that_would_end_trainings_at_work_is_refused() -> None:
    with pytest.raises(ValidationError, match="or 600 up"):
        QueueSettings(hang_timeout_s=30)
