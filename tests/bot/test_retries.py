"""What becomes of a job whose start failed, by kind of failure: tried again, differently, later, or not at all."""

from __future__ import annotations

import pytest

from bot.config import QueueSettings
from bot.db import Database
from bot.errors import JobRefused, TooManyWaiting
from bot.outbox import NoticeKind, Outbox
from bot.queue import JobStore, State, StopIntent
from bot.queue.domain.rules import MAX_EXCUSED, MAX_RETRY_PAUSE_S, Run, after_last_word, after_loss
from tests.bot.conftest import Submit, claim, notices, set_slots
from tests.bot.fakes import Clock, epoch_ended, failed, finished, started, stopped
from trainer.protocol.events import Event, FailureKind, Started


def run(**changes: object) -> Run:
    values: dict[str, object] = {
        "job_id": 1,
        "state": State.RUNNING,
        "stop_intent": None,
        "starts": 1,
        "max_starts": 3,
        "epoch": 2,
        "kept_epoch": 1,
        "retry_pause_s": 30.0,
    }
    return Run(**{**values, **changes})  # type: ignore[arg-type]


def after(kind: FailureKind, **changes: object) -> tuple[State, float, int | None]:
    word = failed(1, kind)
    outcome = after_last_word(run(**changes), word)  # type: ignore[arg-type]
    return outcome.state, outcome.pause_s, outcome.micro_batch


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
def test_what_would_fail_again_is_not_tried_again(kind: FailureKind) -> None:
    assert after(kind) == (State.FAILED, 0.0, None)


def test_out_of_memory_goes_on_with_half_the_pictures_until_one_is_too_many() -> None:
    kind = FailureKind.OUT_OF_MEMORY
    assert after(kind, micro_batch=4) == (State.QUEUED, 0.0, 2)
    assert after(kind, micro_batch=2, starts=2) == (State.QUEUED, 0.0, 1)
    assert after(kind, micro_batch=1, starts=2)[0] is State.FAILED
    assert after(kind, micro_batch=4, starts=3)[0] is State.FAILED


def test_out_of_memory_before_the_first_step_is_tried_once_more_after_a_pause() -> None:
    assert after(FailureKind.OUT_OF_MEMORY) == (State.QUEUED, 30.0, None)
    assert after(FailureKind.OUT_OF_MEMORY, starts=2)[0] is State.FAILED


def test_a_lost_device_is_tried_again_after_longer_and_longer_pauses() -> None:
    pauses = [after(FailureKind.DEVICE_LOST, starts=starts, max_starts=20)[1] for starts in range(1, 9)]
    assert pauses == [30, 60, 120, 240, 480, 900, 900, 900]
    assert max(pauses) == MAX_RETRY_PAUSE_S
    assert after(FailureKind.DEVICE_LOST, starts=3)[0] is State.FAILED


def test_a_machine_that_went_down_does_not_count_unless_it_goes_down_every_time() -> None:
    outcome = after_loss(run(starts=3), is_cut_off=True)
    assert (outcome.state, outcome.is_excused, outcome.pause_s) == (State.QUEUED, True, 0.0)
    assert "its machine went down" in outcome.detail
    assert after_loss(run(starts=3, excused=MAX_EXCUSED), is_cut_off=True).state is State.FAILED


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
    outcome = after_loss(run(state=State.STOPPING, stop_intent=intent, starts=2))
    assert outcome.state is state
    assert outcome.finish is (True if intent is StopIntent.KEEP_BEST else None)


def fitted(seq: int, micro_batch: int) -> Event:
    first = started(seq)
    assert isinstance(first, Started)
    return first.model_copy(update={"micro_batch_size": micro_batch})


async def test_the_next_start_gets_fewer_pictures_at_once_and_the_channel_hears_why(
    store: JobStore, outbox: Outbox, submit: Submit
) -> None:
    await submit()
    await claim(store, 1)
    await store.runs.ingest(1, 1, [fitted(1, 8), failed(2, FailureKind.OUT_OF_MEMORY)], 10)
    claimed = await claim(store, 1)
    assert claimed is not None
    assert (claimed.attempt, claimed.micro_batch) == (2, 4)
    posting = await outbox.next_posting(100)
    assert posting is not None
    assert posting.notice.kind is NoticeKind.LOST
    assert "with at most 4 pictures in memory at once" in posting.notice.detail


async def test_a_pause_before_another_try_holds_up_nobody_else(
    db: Database, outbox: Outbox, submit: Submit, store: JobStore, clock: Clock
) -> None:
    store.runs._settings = QueueSettings(retry_pause_s=30)
    for owner in (1, 2):
        await submit(owner=owner)
    await claim(store, 1)
    await store.runs.lost(1, 1)

    other = await claim(store, 2)
    assert other is not None
    assert other.job_id == 2
    assert await claim(store, 2) is None
    clock.advance(31)
    again = await claim(store, 2)
    assert again is not None
    assert (again.job_id, again.attempt) == (1, 2)


async def test_a_clock_that_was_set_back_does_not_make_a_lost_job_wait_for_it(
    store: JobStore, submit: Submit, clock: Clock
) -> None:
    store.runs._settings = QueueSettings(retry_pause_s=30)
    await submit()
    await claim(store, 1)
    await store.runs.lost(1, 1)
    clock.advance(-86_400)
    assert await claim(store, 1)


async def test_a_failed_job_goes_on_in_its_next_round_and_ends_once_more(
    store: JobStore, db: Database, submit: Submit
) -> None:
    await submit()
    await claim(store, 1)
    await store.runs.ingest(1, 1, [started(1), epoch_ended(2, 1), failed(3)], 30)
    assert (await store.get(1)).state is State.FAILED

    job = await store.retry(1, by=9)
    again = await store.retry(1, by=9)
    assert (job.state, job.round, again.round, job.last_word) == (State.QUEUED, 2, 2, None)
    claimed = await claim(store, 1)
    assert claimed is not None
    await store.runs.ingest(1, 2, [started(4), finished(5)], 50)
    assert (await store.get(1)).state is State.SUCCEEDED
    assert [key for key in await notices(db) if "end" in key] == ["job:1:end", "job:1:end:2"]
    assert (await store.retry(1, by=9)).state is State.SUCCEEDED


async def test_a_new_round_has_all_its_starts_to_come(store: JobStore, submit: Submit) -> None:
    await submit()
    for _ in range(3):
        claimed = await claim(store, 1)
        assert claimed is not None
        await store.runs.lost(1, claimed.attempt)
    assert (await store.get(1)).state is State.FAILED
    await store.retry(1, by=1)
    starts = 0
    while claimed := await claim(store, 1):
        starts += 1
        await store.runs.lost(1, claimed.attempt)
    assert starts == 3


async def test_a_retry_is_refused_where_there_is_nothing_to_go_on_from_or_no_room(
    store: JobStore, db: Database, submit: Submit
) -> None:
    await submit()
    await store.request_stop(1, by=1, intent=StopIntent.CANCEL)
    async with db.transaction() as connection:
        await connection.execute_fetchall("UPDATE job SET files_deleted_at = 1")
    with pytest.raises(JobRefused, match="were deleted to make room"):
        await store.retry(1, by=1)
    async with db.transaction() as connection:
        await connection.execute_fetchall("UPDATE job SET files_deleted_at = NULL")
    for _ in range(100):
        await submit()
    with pytest.raises(TooManyWaiting):
        await store.retry(1, by=1)


async def test_what_an_earlier_attempt_still_says_is_refused(store: JobStore, db: Database, submit: Submit) -> None:
    await submit()
    await claim(store, 1)
    await store.runs.ingest(1, 1, [started(1)], 10)
    await store.runs.lost(1, 1)
    await claim(store, 1)
    late = epoch_ended(2, 1).model_copy(update={"attempt": 1})
    mine = epoch_ended(2, 1).model_copy(update={"attempt": 2, "train_loss": 0.125})

    await store.runs.ingest(1, 2, [late], 20)
    assert (await store.get(1)).progress.epochs == ()
    await store.runs.ingest(1, 2, [mine], 40)
    assert [epoch.train_loss for epoch in (await store.get(1)).progress.epochs] == [0.125]


async def test_a_stop_from_outside_counts_once_it_has_come_too_often(store: JobStore, submit: Submit) -> None:
    await submit()
    await set_slots(store, 1)
    starts = 0
    while claimed := await store.runs.claim():
        starts += 1
        assert starts < 100
        await store.runs.ingest(1, claimed.attempt, [stopped(starts)], starts)
        if (await store.get(1)).state is State.QUEUED and starts > MAX_EXCUSED + 5:
            break
    excused = await store._db.one("SELECT excused FROM job")
    assert excused is not None
    assert excused["excused"] == MAX_EXCUSED


async def test_a_job_that_keeps_its_best_is_ended_by_a_person_also_when_the_machine_is_drained_meanwhile(
    store: JobStore, submit: Submit
) -> None:
    await submit()
    await claim(store, 1)
    await store.runs.ingest(1, 1, [started(1), epoch_ended(2, 1)], 20)
    await store.request_stop(1, by=7, intent=StopIntent.KEEP_BEST)
    await store.runs.ingest(1, 1, [stopped(3)], 30)
    await claim(store, 1)
    await store.requeue_all(by=9, why="driver update")
    await store.runs.ingest(1, 2, [stopped(4)], 40)
    await claim(store, 1)
    await store.runs.ingest(1, 3, [finished(5)], 50)
    job = await store.get(1)
    assert (job.state, job.stopped_by, job.stop_intent) == (State.STOPPED, 7, StopIntent.KEEP_BEST)


async def test_a_retry_asks_the_limit_of_whoever_owns_it(store: JobStore, submit: Submit) -> None:
    await submit()
    await store.request_stop(1, by=1, intent=StopIntent.CANCEL)
    for _ in range(3):
        await submit()
    with pytest.raises(TooManyWaiting):
        await store.retry(1, by=1, max_waiting=3)
    assert (await store.retry(1, by=1, max_waiting=4)).state is State.QUEUED
