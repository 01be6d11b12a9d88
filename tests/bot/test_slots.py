"""Slots and the main switch: who runs where, what waits for what, and what stands still."""

from __future__ import annotations

import pytest

from bot.config import QueueSettings
from bot.db import Database
from bot.errors import JobRefused
from bot.queue import Dispatcher, Gate, HaltKind, JobStore, NewJob, Slot, State, StopIntent, slots_of
from bot.queue.liveness import MAX_LOOK_S, Pulse
from bot.queue.store.audit import read_entries
from tests.bot.conftest import GUILD, Submit, set_slots
from tests.bot.fakes import Clock, FakeRunner, epoch_ended, finished, started, stopped
from trainer.protocol.devices import Devices, Gpu
from trainer.protocol.spec import make_spec

TWO_GPUS = Devices(gpus=tuple(Gpu(id=f"GPU-{n}", name="RTX 4090", memory_bytes=24 * 2**30) for n in "ab"))


def new(interaction: int, **changes: object) -> NewJob:
    values: dict[str, object] = {
        "interaction_id": interaction,
        "guild_id": GUILD,
        "channel_id": 1,
        "owner_id": 1,
        "dataset_id": 1,
        "spec": make_spec({"name": "fox", "dataset": "/nowhere"}),
    }
    return NewJob(**{**values, **changes})  # type: ignore[arg-type]


async def holders(store: JobStore) -> dict[str, int | None]:
    return {slot.id: slot.job_id for slot in await store.slots.all()}


def test_a_machine_has_a_slot_for_each_gpu_or_as_many_as_somebody_says() -> None:
    assert [(slot.id, slot.device) for slot in slots_of(TWO_GPUS, None)] == [
        ("gpu:GPU-a", "GPU-a"),
        ("gpu:GPU-b", "GPU-b"),
    ]
    assert [slot.device for slot in slots_of(TWO_GPUS, 1)] == ["GPU-a"]
    assert [slot.device for slot in slots_of(TWO_GPUS, 4)] == [""] * 4
    assert [(slot.id, slot.name) for slot in slots_of(Devices(problem="no driver"), None)] == [("place:1", "CPU")]


async def test_jobs_are_bound_to_gpus_and_a_gpu_is_never_given_twice(
    store: JobStore, submit: Submit, clock: Clock
) -> None:
    await store.slots.set(slots_of(TWO_GPUS, None))
    runner = FakeRunner()
    dispatcher = Dispatcher(store, runner, now=clock)
    for _ in range(3):
        await submit()
    await dispatcher.step()

    assert [training.launch.devices for training in runner.trainings] == [("GPU-a",), ("GPU-b",)]
    assert await holders(store) == {"gpu:GPU-a": 1, "gpu:GPU-b": 2}
    runner.say(runner.trainings[0], started, finished)
    runner.trainings[0].is_alive = False
    await dispatcher.step()
    assert runner.trainings[2].launch.devices == ("GPU-a",)
    assert (await store.get(1)).slots == ("GPU 0 · RTX 4090",)


async def test_a_job_of_two_gpus_waits_for_both_and_is_not_overtaken(store: JobStore, clock: Clock) -> None:
    await store.slots.set(slots_of(TWO_GPUS, None))
    runner = FakeRunner()
    dispatcher = Dispatcher(store, runner, now=clock)
    await store.submit(new(1))
    await dispatcher.step()
    await store.submit(new(2, owner_id=2, gpus=2))
    await store.submit(new(3, owner_id=3))
    await dispatcher.step()
    assert [training.launch.job_id for training in runner.trainings] == [1]

    runner.say(runner.trainings[0], started, finished)
    runner.trainings[0].is_alive = False
    await dispatcher.step()
    assert (runner.trainings[1].launch.gpus, runner.trainings[1].launch.devices) == (2, ("GPU-a", "GPU-b"))


async def test_more_gpus_than_there_are_is_refused_at_once(store: JobStore) -> None:
    await store.slots.set(slots_of(TWO_GPUS, None))
    with pytest.raises(JobRefused, match="asks for 3 GPUs, and there are 2"):
        await store.submit(new(1, gpus=3))


async def test_a_gpu_that_is_gone_is_kept_by_its_job_and_given_to_nobody(store: JobStore, submit: Submit) -> None:
    await store.slots.set(slots_of(TWO_GPUS, None))
    for _ in range(3):
        await submit()
    assert await store.runs.claim()
    await store.slots.set([Slot(id="gpu:GPU-b", device="GPU-b", name="GPU 0")])
    assert await store.runs.claim()
    assert await store.runs.claim() is None
    assert await holders(store) == {"gpu:GPU-a": 1, "gpu:GPU-b": 2}


async def test_what_runs_on_no_known_gpu_keeps_one_from_being_given_twice(store: JobStore, submit: Submit) -> None:
    await set_slots(store, 1)
    for _ in range(3):
        await submit()
    assert await store.runs.claim()
    # From now on there is a slot for each GPU; what runs since before may be on either.
    await store.slots.set(slots_of(TWO_GPUS, None))
    assert await store.runs.claim()
    assert await store.runs.claim() is None
    await store.runs.ingest(1, 1, [finished(1)], 1)
    assert await store.runs.claim()


async def test_a_slot_that_is_switched_off_is_given_to_nobody(store: JobStore, submit: Submit) -> None:
    await set_slots(store, 1)
    await submit()
    assert await store.slots.switch("place:1", is_enabled=False)
    assert await store.runs.claim() is None
    await set_slots(store, 1)
    assert await store.runs.claim() is None, "also after a restart"
    assert await store.slots.switch("place:1", is_enabled=True)
    assert await store.runs.claim()


async def test_somebody_runs_no_more_than_they_may_and_the_next_person_goes_first(store: JobStore) -> None:
    await set_slots(store, 3)
    for number in (1, 2):
        await store.submit(new(number, max_running=1))
    await store.submit(new(3, owner_id=2))
    claimed = [await store.runs.claim() for _ in range(3)]
    assert [busy and busy.job_id for busy in claimed] == [1, 3, None]


async def test_a_delayed_start_waits_for_its_moment(store: JobStore, clock: Clock) -> None:
    await set_slots(store, 1)
    await store.submit(new(1, run_after=clock() + 3600))
    assert await store.runs.claim() is None
    clock.advance(3601)
    assert await store.runs.claim()


async def test_a_paused_queue_starts_nothing_and_what_runs_goes_on(
    store: JobStore, submit: Submit, clock: Clock, db: Database
) -> None:
    runner = FakeRunner()
    dispatcher = Dispatcher(store, runner, now=clock)
    await set_slots(store, 2)
    await submit()
    await dispatcher.step()
    await store.switch.halt(HaltKind.PAUSE, by=7, why="driver update")
    await submit()
    await dispatcher.step()
    assert len(runner.trainings) == 1
    assert not runner.trainings[0].was_told_to_stop
    halt = await store.switch.read()
    assert halt is not None
    assert (halt.by, halt.why) == (7, "driver update")

    assert await store.switch.resume(by=7)
    assert not await store.switch.resume(by=7)
    await dispatcher.step()
    assert len(runner.trainings) == 2
    verbs = [(entry.verb, entry.actor_id, entry.why) for entry in await read_entries(db) if entry.job_id is None]
    assert verbs == [("queue resume", 7, None), ("queue pause", 7, "driver update")]


@pytest.mark.parametrize("how", ["drain", "window"])
async def test_a_drained_machine_frees_its_gpus_and_goes_on_where_it_was(
    store: JobStore, submit: Submit, clock: Clock, how: str, db: Database
) -> None:
    runner = FakeRunner()
    gates = [Gate.OPEN]
    dispatcher = Dispatcher(store, runner, gate=lambda: gates[-1], now=clock)
    await submit(owner=1)
    await submit(owner=2)
    await dispatcher.step()
    runner.say(runner.trainings[0], started, lambda seq: epoch_ended(seq, 1))
    await dispatcher.step()
    if how == "drain":
        await store.switch.halt(HaltKind.DRAIN, by=7, why="driver update")
    else:
        gates.append(Gate.EMPTY)
    await dispatcher.step()
    await dispatcher.step()
    assert runner.trainings[0].was_told_to_stop
    runner.say(runner.trainings[0], stopped)
    runner.trainings[0].is_alive = False
    await dispatcher.step()
    assert await holders(store) == {"place:1": None}
    assert (await store.get(1)).state is State.QUEUED
    assert await store.line() == [1, 2]
    row = await db.one("SELECT excused FROM job WHERE id = 1")
    assert row is not None
    assert row["excused"] == 1

    gates.append(Gate.OPEN)
    await store.switch.resume(by=7)
    await dispatcher.step()
    assert (runner.trainings[1].launch.job_id, runner.trainings[1].launch.attempt) == (1, 2)


async def test_a_paused_job_frees_its_gpu_and_resumes_before_those_that_never_started(
    store: JobStore, submit: Submit, clock: Clock
) -> None:
    runner = FakeRunner()
    dispatcher = Dispatcher(store, runner, now=clock)
    for owner in (1, 2, 3):
        await submit(owner=owner)
    await dispatcher.step()
    await store.request_stop(1, by=1, intent=StopIntent.PAUSE)
    await dispatcher.step()
    runner.say(runner.trainings[0], started, stopped)
    runner.trainings[0].is_alive = False
    await dispatcher.step()
    assert (await store.get(1)).state is State.PAUSED
    assert [training.launch.job_id for training in runner.trainings] == [1, 2]

    await store.resume(1, by=1)
    assert await store.line() == [1, 3]
    assert (await store.resume(2, by=1)).state is State.PREPARING


async def test_a_process_that_gives_no_sign_of_life_is_killed_and_goes_on(
    store: JobStore, submit: Submit, clock: Clock
) -> None:
    runner, mono = FakeRunner(), Clock(0.0)
    settings = QueueSettings(heartbeat_timeout_s=30, retry_pause_s=0)
    dispatcher = Dispatcher(store, runner, settings=settings, now=clock, pulse=Pulse(monotonic=mono))
    await submit()
    await dispatcher.step()
    runner.say(runner.trainings[0], started)
    for beat in range(20):
        runner.beat = float(beat)
        mono.advance(5)
        await dispatcher.step()
    assert runner.killed == []
    # The clock on the wall says nothing: only looks at a beat that stays the same count.
    clock.advance(10_000)
    await dispatcher.step()
    mono.advance(10_000)
    await dispatcher.step()
    assert runner.killed == []
    for _ in range(4):
        mono.advance(MAX_LOOK_S)
        await dispatcher.step()
    assert runner.killed == [0]
    assert (await store.get(1)).attempt == 2


async def test_a_process_that_never_gave_a_sign_of_life_gets_longer_and_not_for_ever(
    store: JobStore, submit: Submit, clock: Clock
) -> None:
    runner, mono = FakeRunner(), Clock(0.0)
    settings = QueueSettings(heartbeat_timeout_s=30, retry_pause_s=0)
    dispatcher = Dispatcher(store, runner, settings=settings, now=clock, pulse=Pulse(monotonic=mono))
    await submit()
    for _ in range(15):
        await dispatcher.step()
        mono.advance(MAX_LOOK_S)
    assert runner.killed == []
    for _ in range(10):
        await dispatcher.step()
        mono.advance(MAX_LOOK_S)
    assert runner.killed == [0]
