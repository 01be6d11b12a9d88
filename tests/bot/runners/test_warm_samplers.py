"""Samplers that stay after a job: they take the next one, make room for a training, and end with the bot."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bot.runners import Handle, LocalRunner, RunStatus, WarmSamplers, WarmTrainer
from tests.bot.fakes import eventually
from tests.bot.runners.conftest import until_exited
from tests.bot.runners.test_warm_trainer import PLAN_ENV, command_of, pid_of
from trainer.exchange.event_file import read_events
from trainer.exchange.process import identify, read_process_file
from trainer.protocol.events import Finished, SamplingFinished
from trainer.protocol.run_options import JobKind, RunOptions

MakeJob = Callable[..., RunOptions]


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """Return the options of the n-th sampling job."""

    def make(number: int, **options: Any) -> RunOptions:
        folder = tmp_path / "jobs" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        given = {"attempt": 1, "kind": JobKind.SAMPLE, "stay_s": 600.0, **options}
        return RunOptions(job_id=number, job_dir=folder, **given)

    return make


@asynccontextmanager
async def sampling(tmp_path: Path, **plan: Any) -> AsyncIterator[tuple[LocalRunner, WarmSamplers]]:
    """A runner whose samplers stay, until the body ends."""
    samplers = WarmSamplers(answer_s=plan.pop("answer_s", 60))
    task = asyncio.create_task(samplers.run())
    try:
        yield LocalRunner(command=command_of(tmp_path, **plan), env=PLAN_ENV, samplers=samplers), samplers
    finally:
        pids = samplers.pids
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await eventually(lambda: not any(map(identify, pids)))


async def draw(runner: LocalRunner, options: RunOptions) -> Handle:
    handle = await runner.launch(options)
    await until_exited(runner, handle)
    assert isinstance(read_events(options.job_dir, 0).lines[-1].event, SamplingFinished)
    return handle


def is_waiting(samplers: WarmSamplers) -> bool:
    return all(each.process.is_alive() and each.process.is_ready for each in samplers._samplers)


async def test_the_next_job_is_taken_by_the_process_of_the_one_before(tmp_path: Path, make_job: MakeJob) -> None:
    async with sampling(tmp_path) as (runner, samplers):
        first = await draw(runner, make_job(1))
        pid = pid_of(first)
        assert identify(pid) is not None, "it stays"
        assert read_process_file(make_job(1).job_dir) is None, "it does not hold the folder any more"
        await eventually(lambda: is_waiting(samplers))

        second = await draw(runner, make_job(2))

        assert pid_of(second) == pid
        assert samplers.pids == (pid,)
        # Each has its own log.
        assert (make_job(2).job_dir / "trainer.log").read_text() == f"job 2 was drawn by {pid}\n"
        # A job that is over has no process: to kill it must not end the one that is at work for others.
        await runner.kill(first)
        await runner.stop(first)
        assert await runner.poll(first) is RunStatus.EXITED
        assert identify(pid) is not None


async def test_a_job_is_running_until_its_process_lets_go(tmp_path: Path, make_job: MakeJob) -> None:
    async with sampling(tmp_path, draw_s=600) as (runner, _samplers):
        handle = await runner.launch(make_job(1))
        await eventually(lambda: read_process_file(make_job(1).job_dir) is not None)
        assert await runner.poll(handle) is RunStatus.RUNNING
        # So it is for the next bot.
        assert await LocalRunner(command=("/nothing",)).poll(handle) is RunStatus.RUNNING
        await runner.kill(handle)
        await until_exited(runner, handle)


async def test_another_attempt_at_a_job_starts_beside_the_process_that_stays(tmp_path: Path, make_job: MakeJob) -> None:
    async with sampling(tmp_path) as (runner, samplers):
        first = await draw(runner, make_job(1))
        await eventually(lambda: is_waiting(samplers))
        second = await runner.launch(make_job(1, attempt=2))
        await until_exited(runner, second)

        # It is handed over, not killed as an earlier attempt's.
        assert pid_of(second) == pid_of(first)
        assert await runner.poll(second) is RunStatus.EXITED


async def test_a_busy_sampler_is_not_waited_for(tmp_path: Path, make_job: MakeJob) -> None:
    async with sampling(tmp_path, draw_s=600) as (runner, samplers):
        handles = [await runner.launch(make_job(number)) for number in (1, 2)]
        assert len(samplers.pids) == 2
        for handle in handles:
            await runner.kill(handle)
            await until_exited(runner, handle)


async def test_a_training_ends_the_sampler_that_waits_on_its_device(
    tmp_path: Path, make_job: MakeJob, options: RunOptions
) -> None:
    async with sampling(tmp_path) as (runner, samplers):
        there = await draw(runner, make_job(1, devices=("0",)))
        other = await draw(runner, make_job(2, devices=("1",)))
        assert pid_of(there) != pid_of(other)

        handle = await runner.launch(options.model_copy(update={"devices": ("0",)}))

        assert identify(pid_of(there)) is None, "its memory is free before the training starts"
        assert identify(pid_of(other)) is not None
        assert samplers.pids == (pid_of(other),)
        await until_exited(runner, handle)
        assert isinstance(read_events(options.job_dir, 0).lines[-1].event, Finished)


async def test_a_sampler_at_work_ends_after_its_job_if_a_training_began(
    tmp_path: Path, make_job: MakeJob, options: RunOptions
) -> None:
    async with sampling(tmp_path, draw_s=1) as (runner, samplers):
        handle = await runner.launch(make_job(1))
        await eventually(lambda: read_process_file(make_job(1).job_dir) is not None)
        training = await runner.launch(options)
        await until_exited(runner, handle)

        assert isinstance(read_events(make_job(1).job_dir, 0).lines[-1].event, SamplingFinished)
        assert samplers.pids == ()
        await eventually(lambda: identify(pid_of(handle)) is None)
        await until_exited(runner, training)


async def test_a_sampler_without_another_job_ends_by_itself(tmp_path: Path, make_job: MakeJob) -> None:
    async with sampling(tmp_path) as (runner, samplers):
        handle = await draw(runner, make_job(1, stay_s=0.1))
        await eventually(lambda: identify(pid_of(handle)) is None)
        await draw(runner, make_job(2, stay_s=0.1))
        assert pid_of(handle) not in samplers.pids


@pytest.mark.parametrize("how", ["ignores", "drops dead"])
async def test_a_sampler_that_does_not_take_a_job_is_replaced(tmp_path: Path, make_job: MakeJob, how: str) -> None:
    async with sampling(tmp_path, refuses_job=how, answer_s=0.5) as (runner, samplers):
        first = await draw(runner, make_job(1))
        await eventually(lambda: is_waiting(samplers))
        second = await draw(runner, make_job(2))

        assert pid_of(second) != pid_of(first)
        assert identify(pid_of(first)) is None


async def test_without_samplers_a_job_leaves_no_process(tmp_path: Path, make_job: MakeJob) -> None:
    runner = LocalRunner(command=command_of(tmp_path), env=PLAN_ENV)
    handle = await draw(runner, make_job(1))
    await eventually(lambda: identify(pid_of(handle)) is None)


async def test_the_samplers_of_a_bot_that_is_killed_end(tmp_path: Path, make_job: MakeJob) -> None:
    job = make_job(1)
    script = f"""
import asyncio, os, signal
from bot.runners import LocalRunner, RunStatus, WarmSamplers
from trainer.protocol.run_options import RunOptions
async def main():
    runner = LocalRunner(command={command_of(tmp_path)!r}, samplers=WarmSamplers())
    handle = await runner.launch(RunOptions.model_validate_json({job.model_dump_json()!r}))
    while await runner.poll(handle) is RunStatus.RUNNING:
        await asyncio.sleep(0.02)
    print(handle, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    argv = [sys.executable, "-c", script]
    bot = await asyncio.to_thread(subprocess.run, argv, env=PLAN_ENV, capture_output=True, check=False)
    pid = int(json.loads(bot.stdout)["process"]["pid"])

    await eventually(lambda: identify(pid) is None)


async def test_a_warm_trainer_takes_the_first_sampling_job_and_stays(tmp_path: Path, make_job: MakeJob) -> None:
    """The fake one trains by the job's kind: here only the hand-over counts."""
    samplers = WarmSamplers()
    warm = WarmTrainer(command=command_of(tmp_path), env=PLAN_ENV, first_pause_s=0, pause_s=3600)
    runner = LocalRunner(command=command_of(tmp_path), env=PLAN_ENV, warm=warm, samplers=samplers)
    tasks = [asyncio.create_task(loop) for loop in (warm.run(), samplers.run())]
    try:
        await eventually(lambda: warm.is_ready)
        pid = warm.pid
        handle = await runner.launch(make_job(1))
        assert pid_of(handle) == pid
        assert samplers.pids == (pid,)
        await until_exited(runner, handle)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert pid is not None
    await eventually(lambda: identify(pid) is None)
    assert os.environ.get("DARKROOM_JOB_DIR") is None
