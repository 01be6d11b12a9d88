"""The dispatcher over a machine that the test plays, and over bots that are killed at every point."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bot.config import CardSettings, QueueSettings
from bot.db import Connection, Database, database, open_db
from bot.errors import LaunchFailed
from bot.outbox import Outbox, Sender
from bot.queue import Dispatcher, JobStore, State, StopIntent
from bot.runners import Handle
from tests.bot.conftest import CHANNEL, Submit, add_dataset, make_store, notices, set_slots, submitter
from tests.bot.fakes import (
    Clock,
    FakePost,
    FakeRunner,
    Fuse,
    Killed,
    Training,
    base_validated,
    epoch_ended,
    eventually,
    failed,
    finished,
    render,
    sampled,
    started,
    step_done,
    stopped,
)
from trainer.protocol.events import Event, FailureKind

Maker = Callable[[int], Event]


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def dispatcher(store: JobStore, runner: FakeRunner, clock: Clock) -> Dispatcher:
    return Dispatcher(store, runner, settings=QueueSettings(stop_grace_s=30), now=clock)


def epoch(number: int) -> list[Maker]:
    return [
        lambda seq: step_done(seq, number),
        lambda seq: sampled(seq, number),
        lambda seq: epoch_ended(seq, number),
    ]


async def state_of(store: JobStore, job_id: int = 1) -> State:
    return (await store.get(job_id)).state


async def test_a_job_runs_from_its_spec_to_its_end(
    store: JobStore, dispatcher: Dispatcher, runner: FakeRunner, submit: Submit
) -> None:
    job = await submit()
    await dispatcher.step()
    assert (store.job_dir(job) / "spec.json").exists()
    training = runner.trainings[0]
    runner.say(training, started, *epoch(1), finished)
    training.is_alive = False
    await dispatcher.step()

    assert await state_of(store) is State.SUCCEEDED


async def test_the_next_job_starts_only_when_the_process_has_left(
    store: JobStore, dispatcher: Dispatcher, runner: FakeRunner, submit: Submit
) -> None:
    await submit()
    await submit()
    await dispatcher.step()
    runner.say(runner.trainings[0], started, finished)
    await dispatcher.step()
    assert (await state_of(store), len(runner.trainings)) == (State.RUNNING, 1)

    runner.trainings[0].is_alive = False
    await dispatcher.step()
    assert (await state_of(store), len(runner.trainings)) == (State.SUCCEEDED, 2)


async def test_a_process_that_does_not_leave_after_its_last_word_is_killed(
    store: JobStore, dispatcher: Dispatcher, runner: FakeRunner, submit: Submit, clock: Clock
) -> None:
    await submit()
    await dispatcher.step()
    runner.say(runner.trainings[0], started, lambda seq: finished(seq, at=clock()))
    await dispatcher.step()
    assert runner.killed == []
    clock.advance(31)
    await dispatcher.step()
    await dispatcher.step()
    assert (runner.killed, await state_of(store)) == ([0], State.SUCCEEDED)


async def test_a_lost_training_is_told_in_words_and_goes_on(
    store: JobStore, db: Database, dispatcher: Dispatcher, runner: FakeRunner, submit: Submit
) -> None:
    await submit()
    await dispatcher.step()
    runner.say(runner.trainings[0], started, base_validated, *epoch(1), *epoch(2), lambda seq: step_done(seq, 3))
    runner.trainings[0].is_alive = False
    await dispatcher.step()

    job = await store.get(1)
    assert (job.state, job.attempt) == (State.PREPARING, 2)
    lost = await db.one("SELECT why FROM attempt WHERE attempt = 1")
    assert lost is not None
    assert lost["why"] == (
        "The training process of #1 died without a word in epoch 3 (killed, or the machine lost power). "
        "It goes on from the checkpoint of epoch 2 (attempt 2 of 3)."
    )
    runner.say(runner.trainings[1], started, *epoch(3), finished)
    runner.trainings[1].is_alive = False
    await dispatcher.step()
    assert await state_of(store) is State.SUCCEEDED
    assert Counter(await notices(db)).most_common(1)[0][1] == 1
    assert [key for key in await notices(db) if "epoch" in key] == [f"job:1:epoch:{number}" for number in (1, 2, 3)]


async def test_a_stop_is_sent_once_and_turns_into_a_kill_after_its_grace(
    store: JobStore, dispatcher: Dispatcher, runner: FakeRunner, submit: Submit, clock: Clock
) -> None:
    await submit()
    await dispatcher.step()
    await store.request_stop(1, by=1, intent=StopIntent.CANCEL)
    await dispatcher.step()
    assert runner.trainings[0].was_told_to_stop
    runner.trainings[0].was_told_to_stop = False
    await dispatcher.step()
    assert (runner.trainings[0].was_told_to_stop, runner.killed) == (False, [])

    clock.advance(31)
    await dispatcher.step()
    await dispatcher.step()
    assert (runner.killed, await state_of(store)) == ([0], State.CANCELLED)


async def test_keeping_the_best_starts_a_run_that_only_finishes(
    store: JobStore, dispatcher: Dispatcher, runner: FakeRunner, submit: Submit
) -> None:
    await submit()
    await dispatcher.step()
    runner.say(runner.trainings[0], started, *epoch(1))
    await store.request_stop(1, by=1, intent=StopIntent.KEEP_BEST)
    await dispatcher.step()
    runner.say(runner.trainings[0], stopped)
    runner.trainings[0].is_alive = False
    await dispatcher.step()

    assert [training.launch.finish for training in runner.trainings] == [False, True]


async def test_a_bad_dataset_is_not_tried_again_and_a_bug_once(
    store: JobStore, dispatcher: Dispatcher, runner: FakeRunner, submit: Submit
) -> None:
    for _ in range(2):
        await submit()
    await dispatcher.step()
    runner.say(runner.trainings[0], started, failed)
    runner.trainings[0].is_alive = False
    await dispatcher.step()
    assert await state_of(store, 1) is State.FAILED
    for training in (1, 2):
        runner.say(runner.trainings[training], started, lambda seq: failed(seq, FailureKind.BUG))
        runner.trainings[training].is_alive = False
        await dispatcher.step()
    assert [training.launch.job_id for training in runner.trainings] == [1, 2, 2]
    assert await state_of(store, 2) is State.FAILED


async def test_a_trainer_that_cannot_be_started_fails_the_job_in_words(
    store: JobStore, dispatcher: Dispatcher, runner: FakeRunner, submit: Submit
) -> None:
    runner.refuses = LaunchFailed(command="python", why="No such file")
    await submit()
    await dispatcher.step()

    job = await store.get(1)
    assert (job.state, job.attempt) == (State.FAILED, 3)
    assert job.end_reason is not None
    assert "No such file" in job.end_reason


async def test_a_bug_about_one_job_does_not_stop_another(
    store: JobStore, runner: FakeRunner, submit: Submit, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(FakeRunner):
        async def events(self, handle: Handle, job_dir: Path, offset: int) -> Any:
            if job_dir.name == "1":
                raise ZeroDivisionError
            return await super().events(handle, job_dir, offset)

    broken = Broken()
    await set_slots(store, 2)
    dispatcher = Dispatcher(store, broken, now=clock)
    for _ in range(2):
        await submit()
    await dispatcher.step()
    broken.say(broken.trainings[1], started, finished)
    broken.trainings[1].is_alive = False
    await dispatcher.step()
    assert await state_of(store, 2) is State.SUCCEEDED
    assert "#1 could not be looked after" in caplog.text


# -- a bot that is killed ------------------------------------------------------------------------------------------


@asynccontextmanager
async def a_bot(
    tmp_path: Path, clock: Clock, runner: FakeRunner, post: FakePost
) -> AsyncIterator[tuple[JobStore, Dispatcher, Sender]]:
    """A bot from nothing but what is on the disk."""
    async with open_db(tmp_path / "data" / "darkroom.sqlite") as db:
        await add_dataset(db)
        outbox = Outbox(db, now=clock)
        store = make_store(db, outbox, clock, tmp_path)
        await set_slots(store, 1)
        sender = Sender(outbox, post, render, settings=CardSettings(edit_interval_s=1), now=clock)
        yield store, Dispatcher(store, runner, now=clock), sender


#: What the first process of the job says, then how it goes on; each list is said between two steps of the bot.
_FIRST: list[list[Maker]] = [[started, base_validated], epoch(1), [lambda seq: step_done(seq, 2)]]
_SECOND: list[list[Maker]] = [[started], epoch(2), [finished]]


class Machine:
    """Lets trainings get on, whoever watches."""

    def __init__(self, runner: FakeRunner) -> None:
        self._runner = runner
        self._left: dict[int, list[list[Maker]]] = {}

    def tick(self) -> None:
        for number, training in enumerate(self._runner.trainings):
            if training.is_alive:
                self._tick(number, training)

    def _tick(self, number: int, training: Training) -> None:
        left = self._left.setdefault(number, list(_FIRST if number == 0 else _SECOND))
        if left:
            self._runner.say(training, *left.pop(0))
        else:
            # The first dies without a word, the second has said its last one.
            training.is_alive = False


async def live(tmp_path: Path, clock: Clock, runner: FakeRunner, machine: Machine, post: FakePost) -> None:
    async with a_bot(tmp_path, clock, runner, post) as (store, dispatcher, sender):
        await submitter(store)()
        for _ in range(40):
            await dispatcher.step()
            await sender.step()
            clock.advance(5)
            machine.tick()
            if await state_of(store) is State.SUCCEEDED:
                break
        await sender.step()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["nonce", "find"])
async def test_a_bot_killed_at_any_point_misses_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Killed before and after every commit, start and message; the next bot begins with what is on the disk."""
    fuse = Fuse()
    commit = Connection.commit

    async def fused_commit(connection: Connection) -> None:
        fuse.point()
        await commit(connection)
        fuse.point()

    monkeypatch.setattr(Connection, "commit", fused_commit)
    # Only this process dies, not the machine: no need to wait for the disk some 5,000 times.
    monkeypatch.setattr(database, "_PRAGMAS", ("journal_mode=WAL", "synchronous=OFF", "foreign_keys=ON"))
    burns_at = 0
    while burns_at == 0 or fuse.has_burnt:
        burns_at += 1
        fuse = Fuse(burns_at)
        clock, runner = Clock(), FakeRunner(fuse)
        machine = Machine(runner)
        post = FakePost(fuse=fuse, honours_nonce=way == "nonce", can_find=way == "find")
        folder = tmp_path / str(burns_at)
        try:
            await live(folder, clock, runner, machine, post)
        except (Killed, BaseExceptionGroup):
            assert fuse.has_burnt
            runner.fuse = post.fuse = fuse = Fuse()
            fuse.has_burnt = False
            await live(folder, clock, runner, machine, post)
            fuse.has_burnt = True
        assert post.texts(CHANNEL) == [
            "job 1 card",
            "job 1 base",
            "job 1 epoch 1",
            "job 1 lost",
            "job 1 epoch 2",
            "job 1 done",
        ], f"killed at point {burns_at}"
        assert len(runner.trainings) == 2
    assert burns_at > 40


async def test_a_running_dispatcher_is_woken_by_a_new_job(
    store: JobStore, runner: FakeRunner, submit: Submit, clock: Clock
) -> None:
    dispatcher = Dispatcher(store, runner, settings=QueueSettings(poll_s=60), now=clock)
    task = asyncio.create_task(dispatcher.run())
    try:
        await submit()

        async def is_started() -> bool:
            return bool(runner.trainings)

        await eventually(is_started)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
