"""Real trainer processes (that train nothing): started, found again, stopped, killed, lost."""

from __future__ import annotations

import dataclasses
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
from bot.runners.command import trainer_argv
from tests.bot.conftest import Submit, notices
from tests.bot.fakes import Clock, eventually
from trainer.protocol.attempt import read_attempt
from trainer.protocol.events import Finished
from trainer.protocol.process import ProcessIdentity, identify, read_process_file

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

    said = await runner.events(handle, launch.job_dir, 0)
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
    make_runner: MakeRunner, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a warmed trainer, which has no mark: the bot dies before it holds the folder, the next starts another."""
    monkeypatch.setattr("bot.runners.local.find_marked", lambda job_dir: {})
    runner = make_runner(epochs=1000)
    handles = [await runner.launch(launch) for _ in range(2)]
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


# -- attempts -------------------------------------------------------------------------------------------------------


async def test_a_living_process_of_an_earlier_attempt_is_killed_before_the_next_one_starts(
    make_runner: MakeRunner, launch: Launch
) -> None:
    runner = make_runner(epochs=1000)
    first = await runner.launch(launch)
    await until_it_speaks(launch.job_dir)
    second = await runner.launch(dataclasses.replace(launch, attempt=2))

    assert await runner.poll(first) is Status.GONE
    assert read_attempt(launch.job_dir) == 2

    async def the_second_speaks() -> bool:
        return read_events(launch.job_dir, 0).lines[-1].event.attempt == 2

    await eventually(the_second_speaks)
    assert await runner.poll(first) is Status.GONE
    await runner.kill(first)
    assert await runner.poll(second) is Status.RUNNING, "the handle of an attempt reached another one"
    await runner.kill(second)
    await until_gone(runner, second)


async def test_what_an_earlier_attempt_left_behind_is_killed_too(launch: Launch) -> None:
    """As a rank of `accelerate launch`, in a session of its own, whose launcher was killed."""
    orphan = "import subprocess; print(subprocess.Popen(['sleep', '1000'], start_new_session=True).pid)"
    runner = LocalRunner(command=(sys.executable, "-c", orphan))
    await until_gone(runner, await runner.launch(launch))
    pid = int((launch.job_dir / "trainer.log").read_text())
    assert identify(pid) is not None

    handle = await runner.launch(dataclasses.replace(launch, attempt=2))

    assert identify(pid) is None
    await until_gone(runner, handle)
    await runner.kill(handle)
    last = int((launch.job_dir / "trainer.log").read_text().split()[-1])

    async def is_gone() -> bool:
        return identify(last) is None

    await eventually(is_gone)


async def test_a_process_that_does_not_end_is_no_reason_to_start_another(
    make_runner: MakeRunner, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_runner(epochs=1000)
    handle = await runner.launch(launch)
    await until_it_speaks(launch.job_dir)
    with monkeypatch.context() as patch:
        patch.setattr("bot.runners.local.GONE_S", 0.1)
        patch.setattr("bot.runners.local._kill", lambda identities, job_dir: None)
        with pytest.raises(LaunchFailed, match="of an earlier attempt does not end"):
            await runner.launch(dataclasses.replace(launch, attempt=2))
    assert read_attempt(launch.job_dir) == 1
    await runner.kill(handle)
    await until_gone(runner, handle)


async def test_a_start_that_nobody_wrote_down_is_found_before_it_holds_the_folder(launch: Launch) -> None:
    runner = LocalRunner(command=("sh", "-c", "sleep 1000"))
    handle = await runner.launch(launch)
    assert json.loads(await LocalRunner(command=("/nothing",)).launch(launch)) == json.loads(handle)
    await runner.kill(handle)
    await until_gone(runner, handle)


async def test_it_sees_the_gpus_that_it_got_and_is_told_all_of_its_start(launch: Launch) -> None:
    runner = LocalRunner(command=("sh", "-c", 'echo "$CUDA_VISIBLE_DEVICES" "$@"', "x"))
    got = dataclasses.replace(launch, attempt=3, devices=("GPU-1", "3"), gpus=1, micro_batch=2, finish=True)
    await until_gone(runner, await runner.launch(got))

    said = (launch.job_dir / "trainer.log").read_text().split()
    assert said == ["GPU-1,3", "run", str(launch.job_dir), "--attempt=3", "--finish", "--micro-batch=2"]


def test_several_gpus_are_shared_by_as_many_processes(launch: Launch) -> None:
    argv = trainer_argv(("python", "-m", "trainer"), dataclasses.replace(launch, gpus=2), "/job")
    assert argv[:3] == ("python", "-m", "accelerate.commands.launch")
    assert "--num_processes=2" in argv
    assert argv[-6:] == ("-m", "trainer", "run", "/job", "--attempt=1", "--processes=2")


async def test_a_stop_is_for_the_trainer_and_not_for_what_launched_it(launch: Launch) -> None:
    """`accelerate launch` gives its processes 30 s after a SIGTERM; a checkpoint may take longer."""
    launcher = "import subprocess, sys; sys.exit(subprocess.call(['sh', '-c', 'trap exit TERM; sleep 1000 & wait']))"
    runner = LocalRunner(command=(sys.executable, "-c", launcher))
    handle = await runner.launch(launch)

    pid = json.loads(handle)["process"]["pid"]
    children = Path(f"/proc/{pid}/task/{pid}/children")

    async def has_a_child() -> bool:
        return bool(children.read_text())  # noqa: ASYNC240

    await eventually(has_a_child)
    holder = identify(int(children.read_text()))  # noqa: ASYNC240
    assert holder is not None
    (launch.job_dir / "process.json").write_text(holder.model_dump_json())
    signalled = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.kill", lambda pid, number: signalled.append(pid))
        await runner.stop(handle)
    assert signalled == [holder.pid]
    await runner.kill(handle)
    await until_gone(runner, handle)
    assert not holder.is_alive()


async def test_the_last_beat_is_of_this_attempt(launch: Launch) -> None:
    beat = launch.job_dir / "heartbeat"
    beat.touch()
    runner = LocalRunner(command=("true",))
    handle = await runner.launch(launch)
    assert await runner.last_beat(handle, launch.job_dir) is None
    beat.touch()
    os.utime(beat, (1000.0, 1000.0))
    assert await runner.last_beat(handle, launch.job_dir) == 1000.0
    await until_gone(runner, handle)


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
    await until_it_speaks(store.job_dir(await store.get(1)), 4)
    # The next bot: a new dispatcher and a new runner know nothing but the database and the folder.
    await until_ended(store, Dispatcher(store, make_runner(**plan)))

    assert (await store.get(1)).attempt == 1
    assert await notices(db) == [*(f"job:1:epoch:{number}" for number in range(1, 21)), "job:1:end"]


async def test_a_cancelled_training_saves_and_ends(
    store: JobStore, db: Database, submit: Submit, make_runner: MakeRunner, clock: Clock
) -> None:
    await submit()
    dispatcher = Dispatcher(store, make_runner(epochs=1000), now=clock)
    await dispatcher.step()
    await until_it_speaks(store.job_dir(await store.get(1)), 2)
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
    await until_it_speaks(store.job_dir(await store.get(1)), 2)
    await store.request_stop(1, by=5, intent=StopIntent.CANCEL)
    await dispatcher.step()
    clock.advance(21)
    await until_ended(store, dispatcher)
    assert (await store.get(1)).state is State.CANCELLED


async def test_the_best_is_kept_by_a_second_short_run(
    store: JobStore, submit: Submit, make_runner: MakeRunner, clock: Clock
) -> None:
    await submit()
    dispatcher = Dispatcher(store, make_runner(epochs=1000), now=clock)
    await dispatcher.step()
    await until_it_speaks(store.job_dir(await store.get(1)), 3)
    await store.request_stop(1, by=5, intent=StopIntent.KEEP_BEST)
    await until_ended(store, dispatcher)
    assert (await store.get(1)).state is State.STOPPED


async def test_a_trainer_stopped_by_somebody_else_goes_on(
    store: JobStore, db: Database, submit: Submit, make_runner: MakeRunner
) -> None:
    await submit()
    dispatcher = Dispatcher(store, make_runner(epochs=6, pause_s=0.2))
    await dispatcher.step()
    await until_it_speaks(store.job_dir(await store.get(1)), 2)
    holder = read_process_file(store.job_dir(await store.get(1)))
    assert holder is not None
    os.kill(holder.pid, signal.SIGTERM)
    await until_ended(store, dispatcher)

    assert (await store.get(1)).state is State.SUCCEEDED
    assert "job:1:lost:1" in await notices(db)
    assert only_once(await notices(db))


async def test_a_process_that_went_down_with_its_machine_is_told_from_one_that_died(tmp_path: Path) -> None:
    mine = identify(os.getpid())
    assert mine is not None
    runner = LocalRunner()
    for boot_id, status in ((mine.boot_id, Status.GONE), ("another-boot", Status.CUT_OFF)):
        gone = ProcessIdentity(pid=2**22 + 1, start_time=1, boot_id=boot_id)
        handle = Handle(json.dumps({"job_dir": str(tmp_path), "process": gone.model_dump(), "attempt": 1}))
        assert await runner.poll(handle) is status
