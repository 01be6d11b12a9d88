"""Real trainer processes (that train nothing): started, found again, stopped, killed, lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot.config import QueueSettings
from bot.db import Database
from bot.errors import LaunchFailed
from bot.queue import Dispatcher, JobStore, State, StopIntent
from bot.runners import Handle, Launch, LocalRunner, Status, read_events
from tests.bot.conftest import Submit, notices
from tests.bot.fakes import Clock, eventually, finished, started
from trainer.protocol.events import Finished
from trainer.protocol.process import identify, read_process_file

ROOT = Path(__file__).parents[2]
MakeRunner = Callable[..., LocalRunner]


@pytest.fixture
def make_runner(tmp_path: Path) -> MakeRunner:
    """`make_runner(epochs=3, starts=[…])`: a runner of fake trainers; each call is a new bot's."""

    def make(**plan: Any) -> LocalRunner:
        path = tmp_path / "plan.json"
        path.write_text(json.dumps({"epochs": 3, **plan}))
        command = (sys.executable, str(ROOT / "tests/bot/fake_trainer.py"), str(path))
        return LocalRunner(command=command, env={**os.environ, "PYTHONPATH": str(ROOT)})

    return make


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    job_dir = tmp_path / "7"
    job_dir.mkdir()
    return Launch(job_id=7, attempt=1, job_dir=job_dir)


async def until_gone(runner: LocalRunner, handle: Handle) -> None:
    async def is_gone() -> bool:
        return await runner.poll(handle) is Status.GONE

    await eventually(is_gone)


async def until_it_speaks(job_dir: Path, lines: int = 1) -> None:
    async def speaks() -> bool:
        return len(read_events(job_dir, 0).lines) >= lines

    await eventually(speaks)


async def test_a_training_runs_by_itself_and_is_heard(make_runner: MakeRunner, launch: Launch) -> None:
    runner = make_runner()
    handle = await runner.launch(launch)
    await until_gone(runner, handle)

    said = await runner.events(launch.job_dir, 0)
    assert isinstance(said.lines[-1].event, Finished)
    assert said.end == (launch.job_dir / "events.jsonl").stat().st_size
    pid = json.loads(handle)["process"]["pid"]
    assert not Path(f"/proc/{pid}").exists(), "it is left as a zombie"  # noqa: ASYNC240


async def test_it_has_a_session_of_its_own_and_writes_into_its_log(make_runner: MakeRunner, launch: Launch) -> None:
    runner = LocalRunner(command=("sh", "-c", "echo out; echo err >&2; cat; ps -o sid= -p $$ | tr -d ' '; echo $$"))
    handle = await runner.launch(launch)
    await until_gone(runner, handle)

    out, err, session, pid = (launch.job_dir / "trainer.log").read_text().split()
    assert (out, err, session) == ("out", "err", pid)


async def test_the_next_bot_finds_it_and_starts_no_second_one(make_runner: MakeRunner, launch: Launch) -> None:
    handle = await make_runner(epochs=1000).launch(launch)
    await until_it_speaks(launch.job_dir)
    runner = make_runner(epochs=1000)

    assert await runner.poll(handle) is Status.RUNNING
    again = await runner.launch(launch)
    assert json.loads(again) == json.loads(handle)
    await runner.kill(again)
    await until_gone(runner, handle)


async def test_two_starts_that_did_not_know_of_each_other_are_one_training(
    make_runner: MakeRunner, launch: Launch
) -> None:
    """A bot that dies right after a start, before the trainer holds the folder: the next bot starts another one."""
    runner = make_runner(epochs=1000)
    handles = await asyncio.gather(runner.launch(launch), runner.launch(launch))
    await until_it_speaks(launch.job_dir)
    holder = read_process_file(launch.job_dir)
    assert holder is not None
    pids = [json.loads(handle)["process"]["pid"] for handle in handles]
    assert holder.pid in pids

    async def only_one_is_left() -> bool:
        await runner.poll(handles[0])
        return sum(identify(pid) is not None for pid in pids) == 1

    await eventually(only_one_is_left)
    assert [await runner.poll(handle) for handle in handles] == [Status.RUNNING] * 2
    await runner.kill(handles[0])
    await until_gone(runner, handles[1])


async def test_a_stop_lets_it_say_its_last_word(make_runner: MakeRunner, launch: Launch) -> None:
    runner = make_runner(epochs=1000)
    handle = await runner.launch(launch)
    await until_it_speaks(launch.job_dir, 2)
    await runner.stop(handle)
    await until_gone(runner, handle)

    assert read_events(launch.job_dir, 0).lines[-1].event.type == "stopped"


async def test_a_kill_ends_its_helpers_too(launch: Launch) -> None:
    runner = LocalRunner(command=("sh", "-c", "sleep 1000 & echo $!; wait"))
    handle = await runner.launch(launch)
    log = launch.job_dir / "trainer.log"

    async def has_helper() -> bool:
        return log.exists() and log.read_text().endswith("\n")

    await eventually(has_helper)
    helper = int(log.read_text())
    await runner.kill(handle)
    await until_gone(runner, handle)

    async def helper_is_gone() -> bool:
        return identify(helper) is None

    await eventually(helper_is_gone)


async def test_another_process_with_the_same_number_is_left_alone(make_runner: MakeRunner, launch: Launch) -> None:
    runner = make_runner()
    me = identify(os.getpid())
    assert me is not None
    other = me.model_copy(update={"start_time": me.start_time + 1})
    handle = Handle(json.dumps({"job_dir": str(launch.job_dir), "process": other.model_dump()}))

    assert await runner.poll(handle) is Status.GONE
    await runner.stop(handle)
    await runner.kill(handle)


async def test_a_command_that_is_not_there_is_said(launch: Launch) -> None:
    with pytest.raises(LaunchFailed, match=r"no-such-python run .*: No such file"):
        await LocalRunner(command=("/no-such-python",)).launch(launch)


# -- event files ---------------------------------------------------------------------------------------------------


def test_a_torn_line_waits_until_it_is_whole(tmp_path: Path) -> None:
    whole = started(1).model_dump_json().encode() + b"\n"
    path = tmp_path / "events.jsonl"
    for cut in range(len(whole)):
        path.write_bytes(whole + whole[:cut])
        said = read_events(tmp_path, 0)
        assert (len(said.lines), said.end) == (1, len(whole))
    path.write_bytes(whole * 2)
    assert [line.end for line in read_events(tmp_path, len(whole)).lines] == [2 * len(whole)]


def test_a_line_that_is_no_event_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [b'{"type": "sang", "seq": 1}', b"\xff\x00", b"", finished(2).model_dump_json().encode()]
    (tmp_path / "events.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    said = read_events(tmp_path, 0)

    assert [line.event.seq for line in said.lines] == [2]
    assert len(caplog.records) == 2


def test_no_file_is_no_events(tmp_path: Path) -> None:
    said = read_events(tmp_path, 0)
    assert (said.lines, said.end) == ((), 0)


# -- with the queue ------------------------------------------------------------------------------------------------


async def until_ended(store: JobStore, dispatcher: Dispatcher) -> None:
    async def has_ended() -> bool:
        await dispatcher.step()
        return (await store.get(1)).state.is_end

    await eventually(has_ended)


def only_once(keys: list[str]) -> bool:
    return max(Counter(keys).values()) == 1


async def test_a_killed_trainer_is_lost_goes_on_and_ends_once(
    store: JobStore, db: Database, submit: Submit, make_runner: MakeRunner
) -> None:
    await submit()
    await until_ended(store, Dispatcher(store, make_runner(starts=["die:2"])))

    job = await store.get(1)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 2)
    assert await notices(db) == [
        "job:1:epoch:1",
        "job:1:lost:1",
        "job:1:epoch:2",
        "job:1:epoch:3",
        "job:1:end",
    ]


async def test_a_trainer_that_always_dies_silently_fails_in_the_end(
    store: JobStore, db: Database, submit: Submit, make_runner: MakeRunner
) -> None:
    await submit()
    await until_ended(store, Dispatcher(store, make_runner(starts=["silent"])))

    job = await store.get(1)
    assert (job.state, job.attempt) == (State.FAILED, 3)
    assert job.end_reason is not None
    assert job.end_reason.startswith("The training process of #1 died without a word before its first step")


async def test_a_training_outlives_the_bot_and_nothing_is_missed_or_repeated(
    store: JobStore, db: Database, submit: Submit, make_runner: MakeRunner
) -> None:
    await submit()
    plan = {"epochs": 20, "pause_s": 0.1}
    await Dispatcher(store, make_runner(**plan)).step()
    await until_it_speaks(store.job_dir(1), 4)
    # The next bot: a new dispatcher and a new runner know nothing but the database and the folder.
    await until_ended(store, Dispatcher(store, make_runner(**plan)))

    assert (await store.get(1)).attempt == 1
    assert await notices(db) == [*(f"job:1:epoch:{number}" for number in range(1, 21)), "job:1:end"]


async def test_a_cancelled_training_saves_and_ends(
    store: JobStore, db: Database, submit: Submit, make_runner: MakeRunner
) -> None:
    await submit()
    dispatcher = Dispatcher(store, make_runner(epochs=1000))
    await dispatcher.step()
    await until_it_speaks(store.job_dir(1), 2)
    await store.request_stop(1, by=5, intent=StopIntent.CANCEL)
    await until_ended(store, dispatcher)

    job = await store.get(1)
    assert (job.state, job.stopped_by) == (State.CANCELLED, 5)
    assert job.last_word is not None
    assert only_once(await notices(db))


async def test_a_training_that_does_not_obey_is_killed(
    store: JobStore, submit: Submit, make_runner: MakeRunner, clock: Clock
) -> None:
    await submit()
    runner = make_runner(epochs=1000, ignores_stop=True)
    dispatcher = Dispatcher(store, runner, settings=QueueSettings(stop_grace_s=20), now=clock)
    await dispatcher.step()
    await until_it_speaks(store.job_dir(1), 2)
    await store.request_stop(1, by=5, intent=StopIntent.CANCEL)
    await dispatcher.step()
    clock.advance(21)
    await until_ended(store, dispatcher)
    assert (await store.get(1)).state is State.CANCELLED


async def test_the_best_is_kept_by_a_second_short_run(store: JobStore, submit: Submit, make_runner: MakeRunner) -> None:
    await submit()
    dispatcher = Dispatcher(store, make_runner(epochs=1000))
    await dispatcher.step()
    await until_it_speaks(store.job_dir(1), 3)
    await store.request_stop(1, by=5, intent=StopIntent.KEEP_BEST)
    await until_ended(store, dispatcher)
    assert (await store.get(1)).state is State.SUCCEEDED


async def test_a_trainer_stopped_by_somebody_else_goes_on(
    store: JobStore, db: Database, submit: Submit, make_runner: MakeRunner
) -> None:
    await submit()
    dispatcher = Dispatcher(store, make_runner(epochs=6, pause_s=0.2))
    await dispatcher.step()
    await until_it_speaks(store.job_dir(1), 2)
    holder = read_process_file(store.job_dir(1))
    assert holder is not None
    os.kill(holder.pid, signal.SIGTERM)
    await until_ended(store, dispatcher)

    assert (await store.get(1)).state is State.SUCCEEDED
    assert "job:1:lost:1" in await notices(db)
    assert only_once(await notices(db))
