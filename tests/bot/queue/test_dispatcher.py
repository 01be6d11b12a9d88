"""The dispatcher over a fake machine, and over bots that are killed at every point."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bot.config import CardSettings, QueueSettings
from bot.db import Connection, Database, open_db
from bot.errors import LaunchFailed
from bot.outbox import NoThread, Outbox, Sender
from bot.queue import Dispatcher, EndReason, EndReasonKind, JobStore, State, StopIntent
from bot.runners import Handle, RunStatus
from tests.bot.conftest import CHANNEL, Submit, add_dataset, make_store, notifications, set_slots, submitter
from tests.bot.fake_events import base_validated, epoch_ended, failed, finished, sampled, started, step_done, stopped
from tests.bot.fakes import FakeClock, FakePost, FakeRunner, Killed, KillSwitch, Training, eventually, render
from trainer.protocol.events import Event, FailureKind

Maker = Callable[[int], Event]


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def dispatcher(store: JobStore, runner: FakeRunner, clock: FakeClock) -> Dispatcher:
    return Dispatcher(store, runner, settings=QueueSettings(stop_grace_s=30), clock=clock)


def epoch(number: int) -> list[Maker]:
    return [
        lambda seq: step_done(seq, number),
        lambda seq: sampled(seq, number),
        lambda seq: epoch_ended(seq, number),
    ]


async def state_of(store: JobStore, job_id: int = 1) -> State:
    return (await store.get(job_id)).state


async def test_the_next_job_starts_only_after_the_process_has_exited(
    store: JobStore, dispatcher: Dispatcher, runner: FakeRunner, submit: Submit
) -> None:
    job = await submit()
    await submit()
    await dispatcher.step()
    assert (store.job_dir(job) / "spec.json").exists()
    runner.emit(runner.trainings[0], started, finished)
    await dispatcher.step()
    assert (await state_of(store), len(runner.trainings)) == (State.RUNNING, 1)

    runner.trainings[0].is_alive = False
    await dispatcher.step()
    assert (await state_of(store), len(runner.trainings)) == (State.SUCCEEDED, 2)


async def test_a_process_that_does_not_exit_after_its_terminal_event_is_killed(
    store: JobStore, dispatcher: Dispatcher, runner: FakeRunner, submit: Submit, clock: FakeClock
) -> None:
    await submit()
    await dispatcher.step()
    runner.emit(runner.trainings[0], started, lambda seq: finished(seq, at=clock()))
    await dispatcher.step()
    assert runner.killed == []
    clock.advance(31)
    await dispatcher.step()
    await dispatcher.step()
    assert (runner.killed, await state_of(store)) == ([0], State.SUCCEEDED)


async def test_a_lost_training_is_reported_and_continues(
    store: JobStore, db: Database, dispatcher: Dispatcher, runner: FakeRunner, submit: Submit
) -> None:
    await submit()
    await dispatcher.step()
    runner.end(runner.trainings[0], started, base_validated, *epoch(1), *epoch(2), lambda seq: step_done(seq, 3))
    await dispatcher.step()

    job = await store.get(1)
    assert (job.state, job.attempt) == (State.PREPARING, 2)
    assert (await store.attempt_history(1))[0].reason == EndReason(
        kind=EndReasonKind.PROCESS_DIED, attempt=1, max_attempts=3, epoch=3, kept_epoch=2, is_retried=True
    )
    runner.end(runner.trainings[1], started, *epoch(3), finished)
    await dispatcher.step()
    assert await state_of(store) is State.SUCCEEDED
    assert Counter(await notifications(db)).most_common(1)[0][1] == 1
    assert [key for key in await notifications(db) if "epoch" in key] == [
        f"job:1:epoch:{number}" for number in (1, 2, 3)
    ]


async def test_a_stop_is_sent_once_and_followed_by_a_kill_after_its_grace(
    store: JobStore, dispatcher: Dispatcher, runner: FakeRunner, submit: Submit, clock: FakeClock
) -> None:
    await submit()
    await dispatcher.step()
    await store.request_stop(1, by=1, intent=StopIntent.CANCEL)
    await dispatcher.step()
    assert runner.trainings[0].was_asked_to_stop
    runner.trainings[0].was_asked_to_stop = False
    await dispatcher.step()
    assert (runner.trainings[0].was_asked_to_stop, runner.killed) == (False, [])

    clock.advance(31)
    await dispatcher.step()
    await dispatcher.step()
    assert (runner.killed, await state_of(store)) == ([0], State.CANCELLED)


async def test_keep_best_starts_an_attempt_that_only_finishes(
    store: JobStore, dispatcher: Dispatcher, runner: FakeRunner, submit: Submit
) -> None:
    await submit()
    await dispatcher.step()
    runner.emit(runner.trainings[0], started, *epoch(1))
    await store.request_stop(1, by=1, intent=StopIntent.KEEP_BEST)
    await dispatcher.step()
    runner.end(runner.trainings[0], stopped)
    await dispatcher.step()

    assert [training.options.finish for training in runner.trainings] == [False, True]


async def test_a_bad_dataset_is_not_retried_and_a_bug_once(
    store: JobStore, dispatcher: Dispatcher, runner: FakeRunner, submit: Submit
) -> None:
    for _ in range(2):
        await submit()
    await dispatcher.step()
    runner.end(runner.trainings[0], started, failed)
    await dispatcher.step()
    assert await state_of(store, 1) is State.FAILED
    for training in (1, 2):
        runner.end(runner.trainings[training], started, lambda seq: failed(seq, FailureKind.BUG))
        await dispatcher.step()
    assert [training.options.job_id for training in runner.trainings] == [1, 2, 2]
    assert await state_of(store, 2) is State.FAILED


async def test_a_trainer_that_cannot_be_started_fails_the_job(
    store: JobStore, dispatcher: Dispatcher, runner: FakeRunner, submit: Submit
) -> None:
    runner.launch_error = LaunchFailed(command="python", why="No such file")
    await submit()
    await dispatcher.step()

    job = await store.get(1)
    assert (job.state, job.attempt) == (State.FAILED, 3)
    assert job.end_reason is not None
    assert job.end_reason.kind is EndReasonKind.LAUNCH_FAILED
    assert "No such file" in job.end_reason.message


async def test_an_exception_about_one_job_does_not_stop_another(
    store: JobStore, runner: FakeRunner, submit: Submit, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(FakeRunner):
        async def poll(self, handle: Handle) -> RunStatus:
            if handle == "0":
                raise ZeroDivisionError
            return await super().poll(handle)

    broken = Broken()
    await set_slots(store, 2)
    dispatcher = Dispatcher(store, broken, clock=clock)
    for _ in range(2):
        await submit()
    await dispatcher.step()
    broken.end(broken.trainings[1], started, finished)
    await dispatcher.step()
    assert await state_of(store, 2) is State.SUCCEEDED
    assert "#1 could not be reconciled" in caplog.text


# -- a bot that is killed ------------------------------------------------------------------------------------------


@asynccontextmanager
async def a_bot(
    tmp_path: Path, clock: FakeClock, runner: FakeRunner, post: FakePost
) -> AsyncIterator[tuple[JobStore, Dispatcher, Sender]]:
    """A bot that starts from the disk alone."""
    async with open_db(tmp_path / "data" / "darkroom.sqlite") as db:
        await add_dataset(db)
        outbox = Outbox(db, clock=clock)
        store = make_store(db, outbox, clock, tmp_path)
        await set_slots(store, 1)
        cards = CardSettings(edit_interval_s=1, epoch_interval_s=0)
        sender = Sender(outbox, post, render, settings=cards, clock=clock)
        yield store, Dispatcher(store, runner, clock=clock), sender


#: Events of the job's first process and of its second one; one list between two steps of the bot.
_FIRST: list[list[Maker]] = [[started, base_validated], epoch(1), [lambda seq: step_done(seq, 2)]]
_SECOND: list[list[Maker]] = [[started], epoch(2), [finished]]


class Machine:
    """Advances the trainings, whether a bot runs or not."""

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
            self._runner.emit(training, *left.pop(0))
        else:
            # The first dies, the second has finished.
            training.is_alive = False


async def live(tmp_path: Path, clock: FakeClock, runner: FakeRunner, machine: Machine, post: FakePost) -> None:
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
@pytest.mark.usefixtures("statements_at_once")
@pytest.mark.parametrize("way", ["nonce", "find", "no thread"])
async def test_a_bot_killed_at_any_point_loses_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Killed before and after every commit, launch and message; the next bot starts from the disk."""
    kill_switch = KillSwitch()
    commit = Connection.commit

    async def killable_commit(connection: Connection) -> None:
        kill_switch.point()
        await commit(connection)
        kill_switch.point()

    monkeypatch.setattr(Connection, "commit", killable_commit)
    kill_at = 0
    while kill_at == 0 or kill_switch.has_killed:
        kill_at += 1
        kill_switch = KillSwitch(kill_at)
        clock, runner = FakeClock(), FakeRunner(kill_switch)
        machine = Machine(runner)
        post = FakePost(kill_switch=kill_switch, enforces_nonce=way != "find", can_find=way == "find")
        post.thread_error = NoThread("403 50013") if way == "no thread" else None
        folder = tmp_path / str(kill_at)
        try:
            await live(folder, clock, runner, machine, post)
        except (Killed, BaseExceptionGroup):
            assert kill_switch.has_killed
            runner.kill_switch = post.kill_switch = kill_switch = KillSwitch()
            kill_switch.has_killed = False
            await live(folder, clock, runner, machine, post)
            kill_switch.has_killed = True
        in_thread = ["job 1 base", "job 1 epoch 1", "job 1 lost", "job 1 epoch 2"]
        channel, thread = ["job 1 card", "job 1 done"], in_thread
        if way == "no thread":
            channel, thread = ["job 1 card", "job 1 latest", "job 1 done"], []
        assert sorted(post.texts(CHANNEL)) == sorted(channel), f"killed at point {kill_at}"
        assert [text for each in post.threads for text in post.texts(each)] == thread, f"killed at point {kill_at}"
        assert len(runner.trainings) == 2
    assert kill_at > 40


async def test_a_running_dispatcher_is_woken_by_a_new_job(
    store: JobStore, runner: FakeRunner, submit: Submit, clock: FakeClock
) -> None:
    dispatcher = Dispatcher(store, runner, settings=QueueSettings(poll_s=60), clock=clock)
    task = asyncio.create_task(dispatcher.run())
    try:
        await submit()

        await eventually(lambda: bool(runner.trainings))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
