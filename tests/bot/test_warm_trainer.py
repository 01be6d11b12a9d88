"""A trainer kept ready: it gets the job, and whatever is wrong with it, the job is started cold."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bot.runners import Handle, Launch, LocalRunner, Status, WarmTrainer, read_events
from bot.runners.warm import MAX_DEATHS
from tests.bot.fakes import eventually
from trainer.protocol.events import Finished
from trainer.protocol.process import identify, read_process_file

ROOT = Path(__file__).parents[2]
PLAN_ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
MakeWarm = Callable[..., WarmTrainer]


def command_of(tmp_path: Path, **plan: Any) -> tuple[str, ...]:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"epochs": 3, **plan}))
    return (sys.executable, str(ROOT / "tests/bot/fake_trainer.py"), str(path))


@pytest.fixture
def make_warm(tmp_path: Path) -> MakeWarm:
    """`make_warm(wait="dies")`: a fake trainer that is to be kept ready; the next one would come in an hour."""

    def make(*, pause_s: float = 3600, answer_s: float = 20, **plan: Any) -> WarmTrainer:
        command = command_of(tmp_path, **plan)
        return WarmTrainer(command=command, env=PLAN_ENV, first_pause_s=0, pause_s=pause_s, answer_s=answer_s)

    return make


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    job_dir = tmp_path / "7"
    job_dir.mkdir()
    return Launch(job_id=7, attempt=1, job_dir=job_dir)


@asynccontextmanager
async def running(warm: WarmTrainer) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(warm.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_ready(warm: WarmTrainer) -> int:
    """Its pid."""

    async def is_ready() -> bool:
        return warm.is_ready

    await eventually(is_ready)
    assert warm.pid is not None
    return warm.pid


async def until_gone(runner: LocalRunner, handle: Handle) -> None:
    async def is_gone() -> bool:
        return await runner.poll(handle) is Status.GONE

    await eventually(is_gone)


def runner_with(warm: WarmTrainer, tmp_path: Path, **plan: Any) -> LocalRunner:
    return LocalRunner(command=command_of(tmp_path, **plan), env=PLAN_ENV, warm=warm)


def pid_of(handle: Handle) -> int:
    return int(json.loads(handle)["process"]["pid"])


async def test_a_job_is_handed_to_the_one_that_waits_and_runs_to_its_end(
    make_warm: MakeWarm, launch: Launch, tmp_path: Path
) -> None:
    warm = make_warm()
    runner = runner_with(warm, tmp_path)
    async with running(warm):
        pid = await until_ready(warm)
        handle = await runner.launch(launch)
        assert pid_of(handle) == pid
        assert os.getsid(pid) == os.getpgid(pid) == pid, "a kill of its group is to reach it and nobody else"
        assert not warm.is_ready
        await until_gone(runner, handle)

    assert isinstance(read_events(launch.job_dir, 0).lines[-1].event, Finished)
    assert not Path(f"/proc/{pid}").exists(), "it is left as a zombie"  # noqa: ASYNC240


async def test_the_next_one_is_started_after_a_pause(make_warm: MakeWarm, launch: Launch, tmp_path: Path) -> None:
    warm = make_warm(pause_s=0.1)
    runner = runner_with(warm, tmp_path)
    async with running(warm):
        first = await until_ready(warm)
        handle = await runner.launch(launch)
        assert await until_ready(warm) != first
        await until_gone(runner, handle)


async def test_a_training_that_was_handed_over_outlives_the_bot(
    make_warm: MakeWarm, launch: Launch, tmp_path: Path
) -> None:
    warm = make_warm(epochs=1000)
    async with running(warm):
        await until_ready(warm)
        handle = await runner_with(warm, tmp_path, epochs=1000).launch(launch)
    next_runner = LocalRunner(command=("/nothing",))

    async def holds_the_folder() -> bool:
        return read_process_file(launch.job_dir) is not None

    await eventually(holds_the_folder)
    assert await next_runner.poll(handle) is Status.RUNNING
    await next_runner.kill(handle)
    await until_gone(next_runner, handle)


async def test_a_bot_that_dies_before_it_stored_the_handle_finds_the_training_again(
    launch: Launch, tmp_path: Path
) -> None:
    """Killed as nothing else kills: right after the order was sent."""
    script = f"""
import asyncio, os, signal
from pathlib import Path
from bot.runners import Launch, LocalRunner, WarmTrainer
command = {command_of(tmp_path, epochs=1000)!r}
async def main():
    warm = WarmTrainer(command=command, env=dict(os.environ), first_pause_s=0)
    running = asyncio.create_task(warm.run())
    while not warm.is_ready:
        await asyncio.sleep(0.02)
    await LocalRunner(warm=warm).launch(Launch(job_id=7, attempt=1, job_dir=Path({str(launch.job_dir)!r})))
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    bot = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", script], env=PLAN_ENV, check=False)
    assert bot.returncode == -signal.SIGKILL

    async def holds_the_folder() -> bool:
        return read_process_file(launch.job_dir) is not None

    await eventually(holds_the_folder)
    holder = read_process_file(launch.job_dir)
    assert holder is not None
    runner = LocalRunner(command=("/nothing",))
    handle = await runner.launch(launch)
    assert pid_of(handle) == holder.pid
    await runner.kill(handle)
    await until_gone(runner, handle)


async def test_the_one_that_waits_goes_when_the_bot_does(make_warm: MakeWarm) -> None:
    warm = make_warm()
    async with running(warm):
        pid = await until_ready(warm)
        assert identify(pid) is not None
    assert identify(pid) is None


async def test_the_one_that_waits_goes_when_the_bot_is_killed(tmp_path: Path) -> None:
    script = f"""
import asyncio, os, signal
from bot.runners import WarmTrainer
async def main():
    warm = WarmTrainer(command={command_of(tmp_path)!r}, env=dict(os.environ), first_pause_s=0)
    running = asyncio.create_task(warm.run())
    while not warm.is_ready:
        await asyncio.sleep(0.02)
    print(warm.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    argv = [sys.executable, "-c", script]
    bot = await asyncio.to_thread(subprocess.run, argv, env=PLAN_ENV, capture_output=True, check=False)
    pid = int(bot.stdout)

    async def is_gone() -> bool:
        return identify(pid) is None

    await eventually(is_gone)


@pytest.mark.parametrize("wait", ["loads", "ignores", "drops dead"])
async def test_one_that_cannot_take_a_job_costs_no_more_than_a_cold_start(
    make_warm: MakeWarm, launch: Launch, tmp_path: Path, wait: str
) -> None:
    warm = make_warm(wait=wait, answer_s=0.5)
    runner = runner_with(warm, tmp_path, wait=wait)
    async with running(warm):

        async def is_there() -> bool:
            return warm.pid is not None and (warm.is_ready or wait == "loads")

        await eventually(is_there)
        pid = warm.pid
        handle = await runner.launch(launch)
        assert pid_of(handle) != pid
        assert pid is not None
        assert (identify(pid) is None) is (wait != "loads"), "two might train the same job"
        await until_gone(runner, handle)
    assert isinstance(read_events(launch.job_dir, 0).lines[-1].event, Finished)


async def test_one_that_died_while_it_waited_is_replaced(make_warm: MakeWarm) -> None:
    warm = make_warm(pause_s=0.1)
    async with running(warm):
        pid = await until_ready(warm)
        os.kill(pid, signal.SIGKILL)

        async def there_is_another() -> bool:
            return warm.is_ready and warm.pid != pid

        await eventually(there_is_another)


async def test_one_that_always_dies_is_given_up(make_warm: MakeWarm, caplog: pytest.LogCaptureFixture) -> None:
    warm = make_warm(wait="dies", pause_s=0)
    with caplog.at_level(logging.WARNING):
        async with running(warm) as task:
            await asyncio.wait_for(task, 30)
    assert sum("died (status 1)" in record.message for record in caplog.records) == MAX_DEATHS
    assert "trainings start cold" in caplog.records[-1].message


async def test_a_command_that_is_not_there_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    warm = WarmTrainer(command=("/no-such-python",), env={}, first_pause_s=0, pause_s=0)
    await asyncio.wait_for(warm.run(), 30)
    assert "No such file" in caplog.records[0].message
