"""Slots, and pausing or draining the queue: which job runs where, and what waits."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bot.db import Database
from bot.db.audit import read_entries
from bot.queue import Admission, Dispatcher, JobStore, PauseKind, Slot, State, StopIntent, slots_of
from bot.queue.store.limits import NotEnoughGpus
from tests.bot.conftest import Submit, set_slots
from tests.bot.fake_events import epoch_ended, finished, started, stopped
from tests.bot.fakes import FakeClock, FakeRunner
from tests.bot.jobs import new_job
from trainer.protocol.devices import Devices, Gpu

TWO_GPUS = Devices(gpus=tuple(Gpu(id=f"GPU-{n}", name="RTX 4090", memory_bytes=24 * 2**30) for n in "ab"))


async def holders(store: JobStore) -> dict[str, int | None]:
    return {slot.id: slot.job_id for slot in await store.slots.all()}


def test_a_machine_has_a_slot_for_each_gpu_or_as_many_as_configured() -> None:
    assert [(slot.id, slot.device) for slot in slots_of(TWO_GPUS, None)] == [
        ("gpu:GPU-a", "GPU-a"),
        ("gpu:GPU-b", "GPU-b"),
    ]
    assert [slot.device for slot in slots_of(TWO_GPUS, 1)] == ["GPU-a"]
    assert [slot.device for slot in slots_of(TWO_GPUS, 4)] == [""] * 4
    assert [(slot.id, slot.name) for slot in slots_of(Devices(problem="no driver"), None)] == [("place:1", "CPU")]


async def test_jobs_are_bound_to_gpus_and_no_gpu_is_taken_twice(
    store: JobStore, submit: Submit, clock: FakeClock
) -> None:
    await store.slots.set(slots_of(TWO_GPUS, None))
    runner = FakeRunner()
    dispatcher = Dispatcher(store, runner, clock=clock)
    for _ in range(3):
        await submit()
    await dispatcher.step()

    assert [training.options.devices for training in runner.trainings] == [("GPU-a",), ("GPU-b",)]
    assert await holders(store) == {"gpu:GPU-a": 1, "gpu:GPU-b": 2}
    runner.end(runner.trainings[0], started, finished)
    await dispatcher.step()
    assert runner.trainings[2].options.devices == ("GPU-a",)
    assert (await store.get(1)).slots == ("GPU 0 · RTX 4090",)


async def test_a_job_of_two_gpus_waits_for_both_and_is_not_overtaken(store: JobStore, clock: FakeClock) -> None:
    await store.slots.set(slots_of(TWO_GPUS, None))
    runner = FakeRunner()
    dispatcher = Dispatcher(store, runner, clock=clock)
    await store.submit(new_job())
    await dispatcher.step()
    await store.submit(new_job(owner=2, gpus=2))
    await store.submit(new_job(owner=3))
    await dispatcher.step()
    assert [training.options.job_id for training in runner.trainings] == [1]

    runner.end(runner.trainings[0], started, finished)
    await dispatcher.step()
    assert (runner.trainings[1].options.gpus, runner.trainings[1].options.devices) == (2, ("GPU-a", "GPU-b"))


async def test_a_job_that_needs_more_gpus_than_there_are_is_refused(store: JobStore) -> None:
    await store.slots.set(slots_of(TWO_GPUS, None))
    with pytest.raises(NotEnoughGpus):
        await store.submit(new_job(gpus=3))


async def test_a_gpu_that_is_gone_is_kept_by_its_job_and_not_taken_again(store: JobStore, submit: Submit) -> None:
    await store.slots.set(slots_of(TWO_GPUS, None))
    for _ in range(3):
        await submit()
    assert await store.attempts.claim()
    await store.slots.set([Slot(id="gpu:GPU-b", device="GPU-b", name="GPU 0")])
    assert await store.attempts.claim()
    assert await store.attempts.claim() is None
    assert await holders(store) == {"gpu:GPU-a": 1, "gpu:GPU-b": 2}


async def test_a_job_on_an_unknown_gpu_keeps_one_free(store: JobStore, submit: Submit) -> None:
    await set_slots(store, 1)
    for _ in range(3):
        await submit()
    assert await store.attempts.claim()
    # Now there is a slot for each GPU, and the running job may be on either.
    await store.slots.set(slots_of(TWO_GPUS, None))
    assert await store.attempts.claim()
    assert await store.attempts.claim() is None
    await store.attempts.ingest(1, 1, [finished(1)], 1)
    assert await store.attempts.claim()


async def test_a_disabled_slot_is_not_taken(store: JobStore, submit: Submit) -> None:
    await set_slots(store, 1)
    await submit()
    assert await store.slots.set_enabled("place:1", is_enabled=False)
    assert await store.attempts.claim() is None
    await set_slots(store, 1)
    assert await store.attempts.claim() is None, "also after a restart"
    assert await store.slots.set_enabled("place:1", is_enabled=True)
    assert await store.attempts.claim()


async def test_an_owner_at_their_limit_is_overtaken_by_the_next_owner(store: JobStore) -> None:
    await set_slots(store, 3)
    for _ in range(2):
        await store.submit(new_job(max_running=1))
    await store.submit(new_job(owner=2))
    claimed = [await store.attempts.claim() for _ in range(3)]
    assert [busy and busy.id for busy in claimed] == [1, 3, None]


async def test_a_delayed_start_waits_for_its_moment(store: JobStore, clock: FakeClock) -> None:
    await set_slots(store, 1)
    await store.submit(new_job(run_after=datetime.fromtimestamp(clock() + 3600, UTC)))
    assert await store.attempts.claim() is None
    clock.advance(3601)
    assert await store.attempts.claim()


async def test_a_paused_queue_starts_nothing_and_running_jobs_continue(
    store: JobStore, submit: Submit, clock: FakeClock, db: Database
) -> None:
    runner = FakeRunner()
    dispatcher = Dispatcher(store, runner, clock=clock)
    await set_slots(store, 2)
    await submit()
    await dispatcher.step()
    await store.control.pause(PauseKind.PAUSE, by=7, why="driver update")
    await submit()
    await dispatcher.step()
    assert len(runner.trainings) == 1
    assert not runner.trainings[0].was_asked_to_stop
    queue_pause = await store.control.read()
    assert queue_pause is not None
    assert (queue_pause.by, queue_pause.why) == (7, "driver update")

    assert await store.control.resume(by=7)
    assert not await store.control.resume(by=7)
    await dispatcher.step()
    assert len(runner.trainings) == 2
    verbs = [(entry.verb, entry.actor_id, entry.why) for entry in await read_entries(db) if entry.job_id is None]
    assert verbs == [("queue resume", 7, None), ("queue pause", 7, "driver update")]


@pytest.mark.parametrize("how", ["drain", "window"])
async def test_a_drained_queue_frees_its_gpus_and_continues_where_it_was(
    store: JobStore, submit: Submit, clock: FakeClock, how: str, db: Database
) -> None:
    runner = FakeRunner()
    admissions = [Admission.ALLOW]
    dispatcher = Dispatcher(store, runner, admission=lambda: admissions[-1], clock=clock)
    await submit(owner=1)
    await submit(owner=2)
    await dispatcher.step()
    runner.emit(runner.trainings[0], started, lambda seq: epoch_ended(seq, 1))
    await dispatcher.step()
    if how == "drain":
        await store.control.pause(PauseKind.DRAIN, by=7, why="driver update")
    else:
        admissions.append(Admission.DRAIN)
    await dispatcher.step()
    await dispatcher.step()
    assert runner.trainings[0].was_asked_to_stop
    runner.end(runner.trainings[0], stopped)
    await dispatcher.step()
    assert await holders(store) == {"place:1": None}
    assert (await store.get(1)).state is State.QUEUED
    assert await store.queued_ids() == [1, 2]
    row = await db.one("SELECT uncounted FROM job WHERE id = 1")
    assert row is not None
    assert row["uncounted"] == 1

    admissions.append(Admission.ALLOW)
    await store.control.resume(by=7)
    await dispatcher.step()
    assert (runner.trainings[1].options.job_id, runner.trainings[1].options.attempt) == (1, 2)


async def test_a_paused_job_frees_its_gpu_and_resumes_before_jobs_that_never_started(
    store: JobStore, submit: Submit, clock: FakeClock
) -> None:
    runner = FakeRunner()
    dispatcher = Dispatcher(store, runner, clock=clock)
    for owner in (1, 2, 3):
        await submit(owner=owner)
    await dispatcher.step()
    await store.request_stop(1, by=1, intent=StopIntent.PAUSE)
    await dispatcher.step()
    runner.end(runner.trainings[0], started, stopped)
    await dispatcher.step()
    assert (await store.get(1)).state is State.PAUSED
    assert [training.options.job_id for training in runner.trainings] == [1, 2]

    await store.resume(1, by=1)
    assert await store.queued_ids() == [1, 3]
    assert (await store.resume(2, by=1)).state is State.PREPARING
