"""What follows when an attempt ends: retried, differently, later, or not at all."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from bot.config import QueueSettings
from bot.db import Database
from bot.errors import JobFilesDeleted, TooManyWaiting
from bot.outbox import Destination, NotificationKind, Outbox
from bot.queue import ActiveJob, EndReason, EndReasonKind, JobStore, Progress, State, StopIntent
from bot.queue.domain.rules import MAX_RETRY_PAUSE_S, MAX_UNCOUNTED, AttemptOutcome, after_loss, after_terminal_event
from tests.bot.conftest import Submit, claim, notifications, set_slots
from tests.bot.fake_events import epoch_ended, failed, finished, started, step_done, stopped
from tests.bot.fakes import FakeClock
from trainer.protocol.events import Event, Failed, FailureKind, Started
from trainer.protocol.spec import make_spec


def active(**changes: Any) -> ActiveJob:
    """A running job in epoch 2, with a checkpoint of epoch 1."""
    progress = {"step": step_done(9, 2), "epochs": (epoch_ended(8, 1),)}
    progress |= {name: changes.pop(name) for name in tuple(changes) if name in Progress.model_fields}
    values = {
        "id": 1, "guild_id": 1, "channel_id": 1, "owner_id": 1, "dataset_id": 1, "dataset_name": "foxes",
        "name": "fox", "spec_json": make_spec({"name": "fox", "dataset": "/nowhere"}).model_dump_json(),
        "state": State.RUNNING, "attempt": 1,
        "created_at": datetime.fromtimestamp(0, UTC), "progress": Progress(**progress), "handle": None,
        "read_bytes": 0, "last_seq": 9, "is_finishing": False, "stop_sent_at": None, "devices": (),
        "micro_batch": None, "uncounted": 0, "claimed_at": 0.0,
    }  # fmt: skip
    return ActiveJob(**{**values, **changes})


def after(kind: FailureKind, *, max_attempts: int = 3, **changes: Any) -> tuple[State, float, int | None]:
    settings = QueueSettings(retry_pause_s=30, max_attempts=max_attempts)
    event = failed(10, kind)
    assert isinstance(event, Failed)
    outcome = after_terminal_event(active(**changes), event, settings)
    return outcome.state, outcome.pause_s, outcome.micro_batch


def lost(kind: EndReasonKind = EndReasonKind.PROCESS_DIED, **changes: Any) -> AttemptOutcome:
    return after_loss(active(**changes), EndReason(kind=kind), QueueSettings(retry_pause_s=30, max_attempts=3))


@pytest.mark.parametrize(
    "kind",
    [
        FailureKind.BAD_SPEC,
        FailureKind.BAD_DATASET,
        FailureKind.MISSING_MODEL,
        FailureKind.DIVERGED,
        FailureKind.MISSING_LIBRARY,
        FailureKind.BAD_CHECKPOINT,
        FailureKind.BAD_EXPORT,
    ],
)
def test_failures_that_would_repeat_are_not_retried(kind: FailureKind) -> None:
    assert after(kind) == (State.FAILED, 0.0, None)


def test_out_of_memory_is_retried_with_half_the_images_down_to_one() -> None:
    kind = FailureKind.OUT_OF_MEMORY
    assert after(kind, micro_batch_size=4) == (State.QUEUED, 0.0, 2)
    assert after(kind, micro_batch_size=2, attempt=2) == (State.QUEUED, 0.0, 1)
    assert after(kind, micro_batch_size=1, attempt=2)[0] is State.FAILED
    assert after(kind, micro_batch_size=4, attempt=3)[0] is State.FAILED


def test_out_of_memory_before_the_first_step_is_retried_once_after_a_pause() -> None:
    assert after(FailureKind.OUT_OF_MEMORY) == (State.QUEUED, 30.0, None)
    assert after(FailureKind.OUT_OF_MEMORY, attempt=2)[0] is State.FAILED


def test_a_lost_device_is_retried_with_exponential_back_off() -> None:
    pauses = [after(FailureKind.DEVICE_LOST, attempt=attempt, max_attempts=20)[1] for attempt in range(1, 9)]
    assert pauses == [30, 60, 120, 240, 480, 900, 900, 900]
    assert max(pauses) == MAX_RETRY_PAUSE_S
    assert after(FailureKind.DEVICE_LOST, attempt=3)[0] is State.FAILED


def test_a_lost_node_does_not_count_unless_it_is_lost_every_time() -> None:
    outcome = lost(EndReasonKind.NODE_LOST, attempt=3)
    assert (outcome.state, outcome.is_uncounted, outcome.pause_s) == (State.QUEUED, True, 0.0)
    assert outcome.reason == EndReason(
        kind=EndReasonKind.NODE_LOST, attempt=3, max_attempts=3, epoch=2, kept_epoch=1, is_retried=True,
        is_counted=False,
    )  # fmt: skip
    often = lost(EndReasonKind.NODE_LOST, attempt=3 + MAX_UNCOUNTED, uncounted=MAX_UNCOUNTED)
    assert often.state is State.FAILED


@pytest.mark.parametrize("kind", [EndReasonKind.PROCESS_DIED, EndReasonKind.NO_HEARTBEAT, EndReasonKind.NO_PROGRESS])
def test_a_lost_process_is_retried_up_to_the_limit(kind: EndReasonKind) -> None:
    outcomes = [lost(kind, attempt=attempt) for attempt in (1, 2, 3)]
    assert [(outcome.state, outcome.pause_s) for outcome in outcomes] == [
        (State.QUEUED, 30),
        (State.QUEUED, 60),
        (State.FAILED, 0),
    ]
    assert [outcome.reason and outcome.reason.is_retried for outcome in outcomes] == [True, True, False]


@pytest.mark.parametrize(
    ("intent", "state"),
    [
        (StopIntent.PAUSE, State.PAUSED),
        (StopIntent.REQUEUE, State.QUEUED),
        (StopIntent.CANCEL, State.CANCELLED),
        (StopIntent.KEEP_BEST, State.QUEUED),
    ],
)
def test_a_process_lost_while_it_stops_ends_as_it_was_asked_to(intent: StopIntent, state: State) -> None:
    outcome = lost(state=State.STOPPING, stop_intent=intent, attempt=2)
    assert outcome.state is state
    assert outcome.finish is (True if intent is StopIntent.KEEP_BEST else None)


def fitted(seq: int, micro_batch: int) -> Event:
    first = started(seq)
    assert isinstance(first, Started)
    return first.model_copy(update={"micro_batch_size": micro_batch})


async def test_the_attempt_after_out_of_memory_gets_fewer_images_at_once(
    store: JobStore, outbox: Outbox, submit: Submit
) -> None:
    await submit()
    await claim(store, 1)
    await store.attempts.ingest(1, 1, [fitted(1, 8), failed(2, FailureKind.OUT_OF_MEMORY)], 10)
    claimed = await claim(store, 1)
    assert claimed is not None
    assert (claimed.attempt, claimed.micro_batch) == (2, 4)
    pending = await outbox.next_pending(Destination(channel_id=100, thread_of=1))
    assert pending is not None
    assert pending.notification.kind is NotificationKind.LOST
    reason = await store.end_reason_of(pending.notification)
    assert reason is not None
    assert (reason.kind, reason.micro_batch) == (EndReasonKind.TRAINER_FAILED, 4)


async def test_a_back_off_delays_no_other_job(
    db: Database, outbox: Outbox, submit: Submit, store: JobStore, clock: FakeClock
) -> None:
    store.attempts._settings = QueueSettings(retry_pause_s=30)
    for owner in (1, 2):
        await submit(owner=owner)
    await claim(store, 1)
    await store.attempts.lost(1, 1)

    other = await claim(store, 2)
    assert other is not None
    assert other.id == 2
    assert await claim(store, 2) is None
    clock.advance(31)
    again = await claim(store, 2)
    assert again is not None
    assert (again.id, again.attempt) == (1, 2)


async def test_a_clock_that_was_set_back_does_not_extend_the_back_off(
    store: JobStore, submit: Submit, clock: FakeClock
) -> None:
    store.attempts._settings = QueueSettings(retry_pause_s=30)
    await submit()
    await claim(store, 1)
    await store.attempts.lost(1, 1)
    clock.advance(-86_400)
    assert await claim(store, 1)


async def test_a_retried_job_continues_in_its_next_round_and_ends_again(
    store: JobStore, db: Database, submit: Submit
) -> None:
    await submit()
    await claim(store, 1)
    await store.attempts.ingest(1, 1, [started(1), epoch_ended(2, 1), failed(3)], 30)
    assert (await store.get(1)).state is State.FAILED

    job = await store.retry(1, by=9)
    again = await store.retry(1, by=9)
    assert (job.state, job.round, again.round, job.terminal_event) == (State.QUEUED, 2, 2, None)
    claimed = await claim(store, 1)
    assert claimed is not None
    await store.attempts.ingest(1, 2, [started(4), finished(5)], 50)
    assert (await store.get(1)).state is State.SUCCEEDED
    assert [key for key in await notifications(db) if "end" in key] == ["job:1:end", "job:1:end:2"]
    assert (await store.retry(1, by=9)).state is State.SUCCEEDED


async def test_a_new_round_has_all_its_attempts_again(store: JobStore, submit: Submit) -> None:
    await submit()
    for _ in range(3):
        claimed = await claim(store, 1)
        assert claimed is not None
        await store.attempts.lost(1, claimed.attempt)
    assert (await store.get(1)).state is State.FAILED
    await store.retry(1, by=1)
    starts = 0
    while claimed := await claim(store, 1):
        starts += 1
        await store.attempts.lost(1, claimed.attempt)
    assert starts == 3


async def test_a_retry_is_refused_without_files_or_without_room(store: JobStore, db: Database, submit: Submit) -> None:
    await submit()
    await store.request_stop(1, by=1, intent=StopIntent.CANCEL)
    async with db.transaction() as connection:
        await connection.execute_fetchall("UPDATE job SET files_deleted_at = 1")
    with pytest.raises(JobFilesDeleted):
        await store.retry(1, by=1)
    async with db.transaction() as connection:
        await connection.execute_fetchall("UPDATE job SET files_deleted_at = NULL")
    for _ in range(100):
        await submit()
    with pytest.raises(TooManyWaiting):
        await store.retry(1, by=1)


async def test_an_external_stop_counts_after_too_many_of_them(store: JobStore, submit: Submit) -> None:
    await submit()
    await set_slots(store, 1)
    starts = 0
    while claimed := await store.attempts.claim():
        starts += 1
        assert starts < 100
        await store.attempts.ingest(1, claimed.attempt, [stopped(starts)], starts)
        if (await store.get(1)).state is State.QUEUED and starts > MAX_UNCOUNTED + 5:
            break
    uncounted = await store._db.one("SELECT uncounted FROM job")
    assert uncounted is not None
    assert uncounted["uncounted"] == MAX_UNCOUNTED


async def test_a_job_that_keeps_its_best_epoch_ends_as_stopped_even_if_the_queue_is_drained_meanwhile(
    store: JobStore, submit: Submit
) -> None:
    await submit()
    await claim(store, 1)
    await store.attempts.ingest(1, 1, [started(1), epoch_ended(2, 1)], 20)
    await store.request_stop(1, by=7, intent=StopIntent.KEEP_BEST)
    await store.attempts.ingest(1, 1, [stopped(3)], 30)
    await claim(store, 1)
    await store.requeue_all(by=9, why="driver update")
    await store.attempts.ingest(1, 2, [stopped(4)], 40)
    await claim(store, 1)
    await store.attempts.ingest(1, 3, [finished(5)], 50)
    job = await store.get(1)
    assert (job.state, job.stopped_by, job.stop_intent) == (State.STOPPED, 7, StopIntent.KEEP_BEST)


async def test_a_retry_counts_against_the_limit_of_the_jobs_owner(store: JobStore, submit: Submit) -> None:
    await submit()
    await store.request_stop(1, by=1, intent=StopIntent.CANCEL)
    for _ in range(3):
        await submit()
    with pytest.raises(TooManyWaiting):
        await store.retry(1, by=1, max_waiting=3)
    assert (await store.retry(1, by=1, max_waiting=4)).state is State.QUEUED
