"""The warm trainer: it takes the next job; if anything is wrong with it, the job starts cold."""

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

from bot.runners import Handle, LocalRunner, RunStatus, WarmTrainer
from bot.runners.warm import MAX_DEATHS
from tests.bot.fakes import eventually
from tests.bot.runners.conftest import until_exited
from trainer.exchange.event_file import read_events
from trainer.exchange.process import identify, read_process_file
from trainer.protocol.events import Finished
from trainer.protocol.run_options import RunOptions

ROOT = Path(__file__).parents[3]
PLAN_ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
MakeWarm = Callable[..., WarmTrainer]


def command_of(tmp_path: Path, **plan: Any) -> tuple[str, ...]:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"epochs": 3, **plan}))
    return (sys.executable, str(ROOT / "tests/bot/runners/fake_trainer.py"), str(path))


@pytest.fixture
def make_warm(tmp_path: Path) -> MakeWarm:
    """Make a warm fake trainer: `make_warm(wait="dies")`. The next one would be started in an hour."""

    def make(*, pause_s: float = 3600, answer_s: float = 20, **plan: Any) -> WarmTrainer:
        command = command_of(tmp_path, **plan)
        return WarmTrainer(command=command, env=PLAN_ENV, first_pause_s=0, pause_s=pause_s, answer_s=answer_s)

    return make


@asynccontextmanager
async def running(warm: WarmTrainer) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(warm.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_ready(warm: WarmTrainer) -> int:
    """Wait until it is ready; return its pid."""

    await eventually(lambda: warm.is_ready)
    assert warm.pid is not None
    return warm.pid


def runner_with(warm: WarmTrainer, tmp_path: Path, **plan: Any) -> LocalRunner:
    return LocalRunner(command=command_of(tmp_path, **plan), env=PLAN_ENV, warm=warm)


def pid_of(handle: Handle) -> int:
    return int(json.loads(handle)["process"]["pid"])


async def test_a_warm_trainer_takes_the_job_and_runs_it_to_its_end(
    make_warm: MakeWarm, options: RunOptions, tmp_path: Path
) -> None:
    warm = make_warm()
    runner = runner_with(warm, tmp_path)
    async with running(warm):
        pid = await until_ready(warm)
        handle = await runner.launch(options)
        assert pid_of(handle) == pid
        assert os.getsid(pid) == os.getpgid(pid) == pid, "a kill of its group must reach only this process"
        assert not warm.is_ready
        await until_exited(runner, handle)

    assert isinstance(read_events(options.job_dir, 0).lines[-1].event, Finished)
    assert not Path(f"/proc/{pid}").exists(), "it is a zombie"  # noqa: ASYNC240


async def test_the_next_warm_trainer_starts_after_a_pause(
    make_warm: MakeWarm, options: RunOptions, tmp_path: Path
) -> None:
    warm = make_warm(pause_s=0.1)
    runner = runner_with(warm, tmp_path)
    async with running(warm):
        first = await until_ready(warm)
        handle = await runner.launch(options)
        assert await until_ready(warm) != first
        await until_exited(runner, handle)


async def test_a_training_of_a_warm_trainer_outlives_the_bot(
    make_warm: MakeWarm, options: RunOptions, tmp_path: Path
) -> None:
    warm = make_warm(epochs=1000)
    async with running(warm):
        await until_ready(warm)
        handle = await runner_with(warm, tmp_path, epochs=1000).launch(options)
    next_runner = LocalRunner(command=("/nothing",))

    await eventually(lambda: read_process_file(options.job_dir) is not None)
    assert await next_runner.poll(handle) is RunStatus.RUNNING
    await next_runner.kill(handle)
    await until_exited(next_runner, handle)


async def test_the_next_bot_finds_a_warm_training_whose_handle_was_not_stored(
    options: RunOptions, tmp_path: Path
) -> None:
    script = f"""
import asyncio, os, signal
from pathlib import Path
from bot.runners import LocalRunner, WarmTrainer
from trainer.protocol.run_options import RunOptions
command = {command_of(tmp_path, epochs=1000)!r}
async def main():
    warm = WarmTrainer(command=command, env=dict(os.environ), first_pause_s=0)
    running = asyncio.create_task(warm.run())
    while not warm.is_ready:
        await asyncio.sleep(0.02)
    await LocalRunner(warm=warm).launch(RunOptions(job_id=7, attempt=1, job_dir=Path({str(options.job_dir)!r})))
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    bot = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", script], env=PLAN_ENV, check=False)
    assert bot.returncode == -signal.SIGKILL

    await eventually(lambda: read_process_file(options.job_dir) is not None)
    holder = read_process_file(options.job_dir)
    assert holder is not None
    runner = LocalRunner(command=("/nothing",))
    handle = await runner.launch(options)
    assert pid_of(handle) == holder.pid
    await runner.kill(handle)
    await until_exited(runner, handle)


async def test_a_waiting_trainer_ends_with_the_bot(make_warm: MakeWarm) -> None:
    warm = make_warm()
    async with running(warm):
        pid = await until_ready(warm)
        assert identify(pid) is not None
    assert identify(pid) is None


async def test_a_waiting_trainer_ends_when_the_bot_is_killed(tmp_path: Path) -> None:
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

    await eventually(lambda: identify(pid) is None)


@pytest.mark.parametrize("wait", ["loads", "ignores", "drops dead"])
async def test_a_warm_trainer_that_cannot_take_a_job_causes_a_cold_start(
    make_warm: MakeWarm, options: RunOptions, tmp_path: Path, wait: str
) -> None:
    warm = make_warm(wait=wait, answer_s=0.5)
    runner = runner_with(warm, tmp_path, wait=wait)
    async with running(warm):
        await eventually(lambda: warm.pid is not None and (warm.is_ready or wait == "loads"))
        pid = warm.pid
        handle = await runner.launch(options)
        assert pid_of(handle) != pid
        assert pid is not None
        assert (identify(pid) is None) is (wait != "loads"), "two processes could train the same job"
        await until_exited(runner, handle)
    assert isinstance(read_events(options.job_dir, 0).lines[-1].event, Finished)


async def test_a_trainer_that_died_while_it_waited_is_replaced(make_warm: MakeWarm) -> None:
    warm = make_warm(pause_s=0.1)
    async with running(warm):
        pid = await until_ready(warm)
        os.kill(pid, signal.SIGKILL)

        await eventually(lambda: warm.is_ready and warm.pid != pid)


async def test_after_three_deaths_no_warm_trainer_is_started(
    make_warm: MakeWarm, caplog: pytest.LogCaptureFixture
) -> None:
    warm = make_warm(wait="dies", pause_s=0)
    with caplog.at_level(logging.WARNING):
        async with running(warm) as task:
            await asyncio.wait_for(task, 60)
    assert sum("died (status 1)" in record.message for record in caplog.records) == MAX_DEATHS
    assert "trainings start cold" in caplog.records[-1].message


async def test_with_a_missing_command_no_warm_trainer_is_started(caplog: pytest.LogCaptureFixture) -> None:
    warm = WarmTrainer(command=("/no-such-python",), env={}, first_pause_s=0, pause_s=0)
    await asyncio.wait_for(warm.run(), 60)
    assert "No such file" in caplog.records[0].message
