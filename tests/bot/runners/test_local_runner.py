"""The local runner, with real processes that train nothing."""

from __future__ import annotations

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
from bot.runners import Handle, LocalRunner, RunStatus
from bot.runners.local import find_marked
from bot.runners.runner import trainer_argv
from tests.bot.conftest import Submit, notifications
from tests.bot.fakes import FakeClock, eventually
from tests.bot.runners.conftest import forked_trainer, until_exited
from trainer.exchange.attempt import HEARTBEAT_FILE, read_attempt, read_heartbeat
from trainer.exchange.event_file import read_events
from trainer.exchange.process import ProcessIdentity, identify, read_process_file
from trainer.protocol.events import Finished
from trainer.protocol.run_options import RunOptions

ROOT = Path(__file__).parents[3]
MakeRunner = Callable[..., LocalRunner]


@pytest.fixture
def make_runner(tmp_path: Path) -> MakeRunner:
    """Make a runner of fake trainers, that of a new bot: `make_runner(epochs=3, dies_at=2)`.

    With `is_fresh`, the process that is launched is the trainer, and not a launcher of it.
    """

    def make(*, is_fresh: bool = False, **plan: Any) -> LocalRunner:
        path = tmp_path / "plan.json"
        path.write_text(json.dumps({"epochs": 3, **plan}))
        fresh = (sys.executable, str(ROOT / "tests/bot/runners/fake_trainer.py"))
        command = (*(fresh if is_fresh else forked_trainer()), str(path))
        return LocalRunner(command=command, env={**os.environ, "PYTHONPATH": str(ROOT)})

    return make


async def until_it_emits(job_dir: Path, lines: int = 1) -> None:
    await eventually(lambda: len(read_events(job_dir, 0).lines) >= lines)


async def test_a_training_runs_to_its_end_and_is_reaped(make_runner: MakeRunner, options: RunOptions) -> None:
    runner = make_runner()
    handle = await runner.launch(options)
    await until_exited(runner, handle)

    batch = read_events(options.job_dir, 0)
    assert isinstance(batch.lines[-1].event, Finished)
    assert batch.end == (options.job_dir / "events.jsonl").stat().st_size
    pid = json.loads(handle)["process"]["pid"]
    assert not Path(f"/proc/{pid}").exists(), "it is a zombie"  # noqa: ASYNC240


async def test_the_process_has_its_own_session_and_writes_to_its_log(
    make_runner: MakeRunner, options: RunOptions
) -> None:
    runner = LocalRunner(command=("sh", "-c", "echo out; echo err >&2; cat; ps -o sid= -p $$ | tr -d ' '; echo $$"))
    handle = await runner.launch(options)
    await until_exited(runner, handle)

    out, err, session, pid = (options.job_dir / "trainer.log").read_text().split()
    assert (out, err, session) == ("out", "err", pid)


async def test_two_processes_of_one_attempt_are_one_training(
    make_runner: MakeRunner, options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warm trainer has no mark: if the bot dies before it locks the folder, the next bot starts a second process."""
    monkeypatch.setattr("bot.runners.local.find_marked", lambda job_dir: {})
    runner = make_runner(epochs=1000, is_fresh=True)
    handles = [await runner.launch(options) for _ in range(2)]
    await until_it_emits(options.job_dir)
    holder = read_process_file(options.job_dir)
    assert holder is not None
    pids = [json.loads(handle)["process"]["pid"] for handle in handles]
    assert holder.pid in pids

    async def only_one_is_left() -> bool:
        await runner.poll(handles[0])
        return sum(identify(pid) is not None for pid in pids) == 1

    await eventually(only_one_is_left)
    assert [await runner.poll(handle) for handle in handles] == [RunStatus.RUNNING] * 2
    await runner.kill(handles[0])
    await until_exited(runner, handles[1])


async def test_a_kill_ends_helper_processes_too(options: RunOptions) -> None:
    runner = LocalRunner(command=("sh", "-c", "sleep 1000 & echo $!; wait"))
    handle = await runner.launch(options)
    log = options.job_dir / "trainer.log"

    await eventually(lambda: log.exists() and log.read_text().endswith("\n"))
    helper = int(log.read_text())
    await runner.kill(handle)
    await until_exited(runner, handle)

    await eventually(lambda: identify(helper) is None)


async def test_another_process_with_the_same_pid_is_left_alone(make_runner: MakeRunner, options: RunOptions) -> None:
    runner = make_runner()
    me = identify(os.getpid())
    assert me is not None
    other = me.model_copy(update={"start_time": me.start_time + 1})
    handle = Handle(json.dumps({"job_dir": str(options.job_dir), "process": other.model_dump(), "attempt": 1}))

    assert await runner.poll(handle) is RunStatus.EXITED
    await runner.stop(handle)
    await runner.kill(handle)


async def test_a_missing_command_fails_the_launch(options: RunOptions) -> None:
    with pytest.raises(LaunchFailed, match=r"no-such-python run .*: No such file"):
        await LocalRunner(command=("/no-such-python",)).launch(options)


# -- attempts -------------------------------------------------------------------------------------------------------


async def test_a_living_process_of_an_earlier_attempt_is_killed_before_the_next_one_starts(
    make_runner: MakeRunner, options: RunOptions
) -> None:
    runner = make_runner(epochs=1000)
    first = await runner.launch(options)
    await until_it_emits(options.job_dir)
    second = await runner.launch(options.model_copy(update={"attempt": 2}))

    assert await runner.poll(first) is RunStatus.EXITED
    assert read_attempt(options.job_dir) == 2

    await eventually(lambda: read_events(options.job_dir, 0).lines[-1].event.attempt == 2)
    assert await runner.poll(first) is RunStatus.EXITED
    await runner.kill(first)
    assert await runner.poll(second) is RunStatus.RUNNING, "the handle of an attempt reached another one"
    await runner.kill(second)
    await until_exited(runner, second)


async def test_orphans_of_an_earlier_attempt_are_killed_too(options: RunOptions) -> None:
    """Such as a rank of `accelerate launch`, which has a session of its own, after its launcher was killed."""
    orphan = "import subprocess; print(subprocess.Popen(['sleep', '1000'], start_new_session=True).pid)"
    runner = LocalRunner(command=(sys.executable, "-c", orphan))
    await until_exited(runner, await runner.launch(options))
    pid = int((options.job_dir / "trainer.log").read_text())
    assert identify(pid) is not None

    handle = await runner.launch(options.model_copy(update={"attempt": 2}))

    assert identify(pid) is None
    await until_exited(runner, handle)
    await runner.kill(handle)
    last = int((options.job_dir / "trainer.log").read_text().split()[-1])

    await eventually(lambda: identify(last) is None)


async def test_no_attempt_starts_while_an_earlier_process_does_not_exit(
    make_runner: MakeRunner, options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_runner(epochs=1000)
    handle = await runner.launch(options)
    await until_it_emits(options.job_dir)
    with monkeypatch.context() as patch:
        patch.setattr("bot.runners.local.EVICTION_S", 0.1)
        patch.setattr("bot.runners.local._kill", lambda identities, job_dir: None)
        with pytest.raises(LaunchFailed, match="of an earlier attempt does not end"):
            await runner.launch(options.model_copy(update={"attempt": 2}))
    assert read_attempt(options.job_dir) == 1
    await runner.kill(handle)
    await until_exited(runner, handle)


async def test_a_process_whose_handle_was_not_stored_is_found_before_it_locks_the_folder(options: RunOptions) -> None:
    runner = LocalRunner(command=("sh", "-c", "sleep 1000"))
    handle = await runner.launch(options)

    # For a moment after its start, a process has no environment yet.
    await eventually(lambda: bool(find_marked(options.job_dir)))
    assert json.loads(await LocalRunner(command=("/nothing",)).launch(options)) == json.loads(handle)
    await runner.kill(handle)
    await until_exited(runner, handle)


async def test_the_process_gets_its_gpus_and_all_run_options(options: RunOptions) -> None:
    runner = LocalRunner(command=("sh", "-c", 'echo "$CUDA_VISIBLE_DEVICES" "$@"', "x"))
    got = options.model_copy(
        update={"attempt": 3, "devices": ("GPU-1", "3"), "gpus": 1, "micro_batch": 2, "finish": True}
    )
    await until_exited(runner, await runner.launch(got))

    output = (options.job_dir / "trainer.log").read_text().split()
    assert output == ["GPU-1,3", "run", str(options.job_dir), "--attempt=3", "--finish", "--micro-batch=2"]


def test_each_of_several_gpus_gets_a_process(options: RunOptions) -> None:
    argv = trainer_argv(("python", "-m", "trainer"), options.model_copy(update={"gpus": 2}))
    assert argv[:3] == ("python", "-m", "accelerate.commands.launch")
    assert "--num_processes=2" in argv
    assert argv[-6:] == ("-m", "trainer", "run", str(options.job_dir), "--attempt=1", "--gpus=2")


async def test_a_stop_signals_the_trainer_and_not_its_launcher(options: RunOptions) -> None:
    """`accelerate launch` gives its processes 30 s after a SIGTERM; a checkpoint may take longer."""
    launcher = "import subprocess, sys; sys.exit(subprocess.call(['sh', '-c', 'trap exit TERM; sleep 1000 & wait']))"
    runner = LocalRunner(command=(sys.executable, "-c", launcher))
    handle = await runner.launch(options)

    pid = json.loads(handle)["process"]["pid"]
    children = Path(f"/proc/{pid}/task/{pid}/children")

    await eventually(lambda: bool(children.read_text()))
    holder = identify(int(children.read_text()))  # noqa: ASYNC240
    assert holder is not None
    (options.job_dir / "process.json").write_text(holder.model_dump_json())
    signalled = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.kill", lambda pid, number: signalled.append(pid))
        await runner.stop(handle)
    assert signalled == [holder.pid]
    await runner.kill(handle)
    await until_exited(runner, handle)
    assert not holder.is_alive()


async def test_a_new_attempt_has_no_heartbeat_yet(options: RunOptions) -> None:
    (options.job_dir / HEARTBEAT_FILE).touch()
    runner = LocalRunner(command=("true",))
    handle = await runner.launch(options)
    assert read_heartbeat(options.job_dir) is None
    await until_exited(runner, handle)


# -- with the queue ------------------------------------------------------------------------------------------------


async def until_ended(store: JobStore, dispatcher: Dispatcher) -> None:
    async def has_ended() -> bool:
        await dispatcher.step()
        return (await store.get(1)).state.is_end

    await eventually(has_ended)


def only_once(keys: list[str]) -> bool:
    return max(Counter(keys).values()) == 1


async def test_a_killed_trainer_resumes_and_its_job_ends_once(
    store: JobStore, db: Database, submit: Submit, make_runner: MakeRunner
) -> None:
    await submit()
    await until_ended(store, Dispatcher(store, make_runner(dies_at=2, in_attempt=1)))

    job = await store.get(1)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 2)
    assert await notifications(db) == [
        "job:1:epoch:1",
        "job:1:lost:1",
        "job:1:epoch:2",
        "job:1:epoch:3",
        "job:1:end",
    ]


async def test_a_training_outlives_the_bot_and_no_event_is_missed_or_repeated(
    store: JobStore, db: Database, submit: Submit, make_runner: MakeRunner
) -> None:
    await submit()
    plan = {"epochs": 20, "pause_s": 0.1}
    await Dispatcher(store, make_runner(**plan)).step()
    await until_it_emits(store.job_dir(await store.get(1)), 4)
    # The next bot: its dispatcher and runner know only the database and the folder.
    await until_ended(store, Dispatcher(store, make_runner(**plan)))

    assert (await store.get(1)).attempt == 1
    assert await notifications(db) == [*(f"job:1:epoch:{number}" for number in range(1, 21)), "job:1:end"]


async def test_a_cancelled_training_emits_its_terminal_event(
    store: JobStore, db: Database, submit: Submit, make_runner: MakeRunner, clock: FakeClock
) -> None:
    await submit()
    dispatcher = Dispatcher(store, make_runner(epochs=1000), clock=clock)
    await dispatcher.step()
    await until_it_emits(store.job_dir(await store.get(1)), 2)
    await store.request_stop(1, by=5, intent=StopIntent.CANCEL)
    await until_ended(store, dispatcher)

    job = await store.get(1)
    assert (job.state, job.stopped_by) == (State.CANCELLED, 5)
    assert job.terminal_event is not None
    assert only_once(await notifications(db))


async def test_a_training_that_ignores_a_stop_is_killed_after_the_grace(
    store: JobStore, submit: Submit, make_runner: MakeRunner, clock: FakeClock
) -> None:
    await submit()
    runner = make_runner(epochs=1000, ignores_stop=True)
    dispatcher = Dispatcher(store, runner, settings=QueueSettings(stop_grace_s=20), clock=clock)
    await dispatcher.step()
    await until_it_emits(store.job_dir(await store.get(1)), 2)
    await store.request_stop(1, by=5, intent=StopIntent.CANCEL)
    await dispatcher.step()
    clock.advance(21)
    await until_ended(store, dispatcher)
    assert (await store.get(1)).state is State.CANCELLED


async def test_a_trainer_stopped_from_outside_is_started_again(
    store: JobStore, db: Database, submit: Submit, make_runner: MakeRunner
) -> None:
    await submit()
    dispatcher = Dispatcher(store, make_runner(epochs=6, pause_s=0.2))
    await dispatcher.step()
    await until_it_emits(store.job_dir(await store.get(1)), 2)
    holder = read_process_file(store.job_dir(await store.get(1)))
    assert holder is not None
    os.kill(holder.pid, signal.SIGTERM)
    await until_ended(store, dispatcher)

    assert (await store.get(1)).state is State.SUCCEEDED
    assert "job:1:lost:1" in await notifications(db)
    assert only_once(await notifications(db))


async def test_a_process_of_an_earlier_boot_was_lost_with_its_node(tmp_path: Path) -> None:
    mine = identify(os.getpid())
    assert mine is not None
    runner = LocalRunner()
    for boot_id, status in ((mine.boot_id, RunStatus.EXITED), ("another-boot", RunStatus.NODE_LOST)):
        gone = ProcessIdentity(pid=2**22 + 1, start_time=1, boot_id=boot_id)
        handle = Handle(json.dumps({"job_dir": str(tmp_path), "process": gone.model_dump(), "attempt": 1}))
        assert await runner.poll(handle) is status
