"""Trainings that live and send no events: which are killed, when, and with which reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from bot.config import QueueSettings
from bot.db import Database
from bot.db.errors import DatabaseUnwritable
from bot.queue import Dispatcher, EndReasonKind, JobStore, State, StopIntent
from bot.queue.liveness import MAX_POLL_S, LivenessMonitor
from tests.bot.conftest import Submit, notifications
from tests.bot.fake_events import epoch_ended, finished, started, step_done
from tests.bot.fakes import FakeClock, FakeRunner
from trainer.protocol.events import Event, KeepAlive, Phase, PhaseBegan

#: Of a training without progress; the default is an hour, which would take three times as many polls.
LIMIT_S = 1200.0
#: Two polls.
MARGIN_S = 20.0
#: Most of the limit.
SHORT_S = 1000.0


class Bench:
    """A dispatcher and a machine, with clocks that only the test advances."""

    def __init__(self, store: JobStore, clock: FakeClock, hang_timeout_s: float = LIMIT_S) -> None:
        self.store, self.clock, self.monotonic, self.runner = store, clock, FakeClock(0.0), FakeRunner()
        self.settings = QueueSettings(
            hang_timeout_s=hang_timeout_s, retry_pause_s=0, stop_grace_s=30, heartbeat_timeout_s=600
        )
        self.start_bot()

    def start_bot(self) -> None:
        monitor = LivenessMonitor(clock=self.monotonic)
        self.dispatcher = Dispatcher(self.store, self.runner, settings=self.settings, clock=self.clock, monitor=monitor)

    def emit(self, *makers: Callable[[int], Event]) -> None:
        self.runner.emit(self.runner.trainings[-1], *makers)

    async def beat_for(self, seconds: float) -> None:
        """Let time pass in which the trainer sends heartbeats and the bot polls."""
        for _ in range(round(seconds / MAX_POLL_S)):
            self.monotonic.advance(MAX_POLL_S)
            self.clock.advance(MAX_POLL_S)
            self.runner.beat(self.monotonic())
            await self.dispatcher.step()


@pytest.fixture
async def bench(store: JobStore, submit: Submit, clock: FakeClock) -> Bench:
    """One training, whose second epoch has begun."""
    bench = Bench(store, clock)
    await submit()
    await bench.dispatcher.step()
    bench.runner.beat(0.0)
    bench.emit(started, lambda seq: epoch_ended(seq, 1), lambda seq: step_done(seq, 2))
    await bench.dispatcher.step()
    return bench


def keep_alive(seq: int) -> Event:
    return KeepAlive(seq=seq, time=0.0)


def loading(seq: int) -> Event:
    return PhaseBegan(seq=seq, time=0.0, phase=Phase.LOADING)


def caching(seq: int) -> Event:
    return PhaseBegan(seq=seq, time=0.0, phase=Phase.CACHING)


async def test_a_training_without_progress_is_killed_once_and_continues(
    store: JobStore, db: Database, bench: Bench
) -> None:
    await bench.beat_for(LIMIT_S - MARGIN_S)
    assert bench.runner.killed == []
    await bench.beat_for(3 * MARGIN_S)
    assert bench.runner.killed == [0]
    job = await store.get(1)
    assert (job.state, job.attempt) == (State.PREPARING, 2)
    reason = (await store.attempt_history(1))[0].reason
    assert reason is not None
    assert (reason.kind, reason.stalled_for_s) == (EndReasonKind.NO_PROGRESS, LIMIT_S)
    assert (reason.epoch, reason.kept_epoch, reason.is_retried) == (2, 1, True)
    assert len(await db.all("SELECT 1 FROM audit WHERE why = ?", (EndReasonKind.NO_PROGRESS,))) == 1
    assert (await notifications(db)).count("job:1:lost:1") == 1

    bench.emit(started, lambda seq: epoch_ended(seq, 2), finished)
    bench.runner.trainings[-1].is_alive = False
    await bench.dispatcher.step()
    assert (await store.get(1)).state is State.SUCCEEDED
    assert bench.runner.killed == [0]


@pytest.mark.parametrize("event", [keep_alive, lambda seq: step_done(seq, 2)])
async def test_a_training_that_sends_an_event_within_the_limit_is_not_killed(
    store: JobStore, db: Database, bench: Bench, event: Callable[[int], Event]
) -> None:
    for _ in range(4):
        await bench.beat_for(SHORT_S)
        bench.emit(event)
    await bench.beat_for(SHORT_S)
    assert bench.runner.killed == []
    assert (await store.get(1)).attempt == 1
    stored = await db.all("SELECT DISTINCT type FROM job_event ORDER BY type")
    assert [row["type"] for row in stored] == ["epoch_ended", "started"]


async def test_events_that_cannot_be_stored_count_as_progress(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object) -> None:
        raise DatabaseUnwritable(path=Path("darkroom.db"), why="full")

    monkeypatch.setattr(bench.store.attempts, "ingest", fails)
    for _ in range(3):
        bench.emit(keep_alive)
        await bench.beat_for(SHORT_S)
    assert bench.runner.killed == []


async def test_a_bot_that_was_frozen_for_long_kills_nothing(bench: Bench) -> None:
    await bench.beat_for(SHORT_S)
    bench.monotonic.advance(2 * LIMIT_S)
    bench.clock.advance(2 * LIMIT_S)
    await bench.beat_for(MARGIN_S)
    assert bench.runner.killed == []


async def test_a_wall_clock_that_jumps_kills_nothing(bench: Bench) -> None:
    for jump_s in (86_400.0, -2 * 86_400.0, 86_400.0):
        bench.clock.advance(jump_s)
        await bench.beat_for(10 * MARGIN_S)
    assert bench.runner.killed == []


async def test_a_restarted_bot_measures_from_its_own_start(bench: Bench) -> None:
    await bench.beat_for(SHORT_S)
    bench.start_bot()
    await bench.beat_for(SHORT_S)
    assert bench.runner.killed == []
    await bench.beat_for(11 * MARGIN_S)
    assert bench.runner.killed == [0]


async def test_a_bot_that_dies_while_it_kills_leaves_the_kill_and_its_reason_to_the_next(
    store: JobStore, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(handle: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bench.runner, "kill", die)
        with pytest.raises(KeyboardInterrupt):
            await bench.beat_for(LIMIT_S + MARGIN_S)
    assert bench.runner.killed == []
    bench.start_bot()
    await bench.beat_for(MARGIN_S)
    assert bench.runner.killed == [0]
    reason = (await store.attempt_history(1))[0].reason
    assert reason is not None
    assert reason.kind is EndReasonKind.NO_PROGRESS


async def test_a_limit_of_0_never_kills_a_silent_training(store: JobStore, submit: Submit, clock: FakeClock) -> None:
    bench = Bench(store, clock, hang_timeout_s=0)
    await submit()
    await bench.dispatcher.step()
    bench.emit(started)
    await bench.beat_for(5 * LIMIT_S)
    assert bench.runner.killed == []


@pytest.mark.parametrize(
    ("events", "limits"), [([], 4), ([loading], 4), ([loading, caching], 1), ([loading, caching, started], 1)]
)
async def test_a_training_that_loads_its_model_may_be_silent_four_times_as_long(
    store: JobStore, submit: Submit, clock: FakeClock, events: list[Callable[[int], Event]], limits: int
) -> None:
    bench = Bench(store, clock)
    await submit()
    await bench.dispatcher.step()
    bench.emit(*events)
    await bench.beat_for(limits * LIMIT_S - MARGIN_S)
    assert bench.runner.killed == []
    await bench.beat_for(2 * MARGIN_S)
    assert bench.runner.killed == [0]


async def test_the_next_attempt_may_take_as_long_to_load(store: JobStore, bench: Bench) -> None:
    await bench.beat_for(LIMIT_S + MARGIN_S)
    assert (await store.get(1)).attempt == 2
    await bench.beat_for(4 * LIMIT_S - 5 * MARGIN_S)
    assert bench.runner.killed == [0]


async def test_a_training_that_is_being_stopped_is_killed_after_its_grace_and_not_as_hung(
    store: JobStore, bench: Bench
) -> None:
    await bench.beat_for(LIMIT_S - MARGIN_S)
    await store.request_stop(1, by=1, intent=StopIntent.PAUSE)
    await bench.beat_for(4 * MARGIN_S)
    assert bench.runner.killed == [0]
    assert (await store.get(1)).state is State.PAUSED
    assert (await store.attempt_history(1))[0].reason is None


async def test_a_process_without_heartbeats_is_killed_by_the_monotonic_clock_only(bench: Bench) -> None:
    bench.clock.advance(10 * LIMIT_S)
    await bench.dispatcher.step()
    bench.monotonic.advance(10 * LIMIT_S)
    await bench.dispatcher.step()
    assert bench.runner.killed == [], "one poll counts for ten seconds at most"
    for _ in range(round(bench.settings.heartbeat_timeout_s / MAX_POLL_S)):
        bench.monotonic.advance(MAX_POLL_S)
        await bench.dispatcher.step()
    assert bench.runner.killed == [0]
    reason = (await bench.store.attempt_history(1))[0].reason
    assert reason is not None
    assert reason.kind is EndReasonKind.NO_HEARTBEAT


async def test_a_process_gets_six_times_as_long_for_its_first_heartbeat(
    store: JobStore, submit: Submit, clock: FakeClock
) -> None:
    bench = Bench(store, clock)
    await submit()
    polls = round(bench.settings.heartbeat_timeout_s / MAX_POLL_S)
    for _ in range(6 * polls):
        await bench.dispatcher.step()
        bench.monotonic.advance(MAX_POLL_S)
    assert bench.runner.killed == []
    for _ in range(3):
        await bench.dispatcher.step()
        bench.monotonic.advance(MAX_POLL_S)
    assert bench.runner.killed == [0]


def test_a_limit_that_would_kill_healthy_trainings_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"set 0 \(never\), or 600 or more"):
        QueueSettings(hang_timeout_s=30)
