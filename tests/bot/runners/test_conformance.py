"""The contract of a runner: the same tests on this machine and on a real Ray cluster of two workers."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from bot.errors import LaunchFailed, RunnerUnreachable
from bot.runners import Handle, Runner, RunStatus
from tests.bot.fakes import eventually
from tests.bot.runners.cluster import RayCluster
from tests.bot.runners.conftest import Bench, EventReader
from tests.trainer.conftest import SMALL, draw_images
from tests.trainer.fork_server import ForkServer
from tests.trainer.random_base import make_random_base
from trainer.dataset.preparing.prepare import prepare
from trainer.exchange.attempt import read_heartbeat
from trainer.exchange.job_dir import LOG_FILE, write_spec
from trainer.protocol.events import Event, Exported, Finished, Started, Stopped
from trainer.protocol.spec import make_spec


def assert_no_event_is_missed_or_repeated(events: list[Event]) -> None:
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


def printed_lines(job_dir: Path) -> list[str]:
    """Lines that the trainer itself printed."""
    return [line for line in (job_dir / LOG_FILE).read_text().splitlines() if "printed this" in line]


async def test_a_training_runs_from_its_first_to_its_terminal_event(bench: Bench) -> None:
    runner, options = bench.runner(), bench.options()
    handle = await runner.launch(options)
    reader = EventReader(options.job_dir)
    await reader.until_exited(runner, handle)

    assert [event.type for event in reader.events] == ["started", *["epoch_ended"] * 3, "finished"]
    assert_no_event_is_missed_or_repeated(reader.events)
    assert {event.attempt for event in reader.events} == {1}
    assert printed_lines(options.job_dir) == [f"attempt 1 printed this in epoch {epoch}" for epoch in (1, 2, 3)]
    heartbeat = read_heartbeat(options.job_dir)
    assert heartbeat is not None
    assert abs(heartbeat - time.time()) < 60
    if bench.cluster is not None:
        # The dataset has another path on the node, and the same spec.
        [(in_spec, on_node)] = json.loads((options.job_dir / "output/comparison.png").read_text()).items()
        assert in_spec == str(bench.data_dir / "datasets/1/prepared")
        assert on_node != in_spec
        assert on_node.endswith("1/prepared")


async def test_two_launches_of_an_attempt_are_one_process(bench: Bench) -> None:
    bench.plan(epochs=5, pause_s=0.3)
    options = bench.options()
    handles = [await bench.runner().launch(options), await bench.runner().launch(options)]
    reader = EventReader(options.job_dir)
    runner = bench.runner()
    await reader.until_exited(runner, handles[1])

    assert await runner.poll(handles[0]) is RunStatus.EXITED
    assert sum(isinstance(event, Started) for event in reader.events) == 1
    assert_no_event_is_missed_or_repeated(reader.events)


async def test_a_stopped_training_saves_a_checkpoint_and_the_next_attempt_resumes_from_it(bench: Bench) -> None:
    bench.plan(epochs=4, pause_s=0.4)
    runner, options = bench.runner(), bench.options()
    handle = await runner.launch(options)
    reader = EventReader(options.job_dir)
    await reader.until_emitted(runner, handle, 2)
    await runner.stop(handle)
    await reader.until_exited(runner, handle)
    stopped = reader.events[-1]
    assert isinstance(stopped, Stopped)
    assert stopped.checkpoint is not None
    assert stopped.step > 0

    handle = await runner.launch(bench.options(attempt=2))
    await reader.until_exited(runner, handle)
    again = next(event for event in reader.events if isinstance(event, Started) and event.attempt == 2)
    assert again.resumed_from_step == stopped.step
    assert isinstance(reader.events[-1], Finished)
    assert_no_event_is_missed_or_repeated(reader.events)


async def test_a_training_that_ignores_a_stop_is_killed(bench: Bench) -> None:
    bench.plan(epochs=1000, pause_s=0.1, ignores_stop=True)
    runner, options = bench.runner(stop_grace_s=1), bench.options()
    handle = await runner.launch(options)
    reader = EventReader(options.job_dir)
    await reader.until_emitted(runner, handle, 2)
    await runner.kill(handle)
    await reader.until_exited(runner, handle)

    assert not isinstance(reader.events[-1], Stopped | Finished)


async def test_the_next_bot_misses_and_repeats_nothing(bench: Bench) -> None:
    bench.plan(epochs=6, pause_s=0.3)
    runner, options = bench.runner(), bench.options()
    handle = await runner.launch(options)
    reader = EventReader(options.job_dir)
    await reader.until_emitted(runner, handle, 3)
    # The bot dies after it read more than it stored.
    reader.offset, reader.lines = reader.lines[1].end, reader.lines[:2]

    await reader.until_exited(bench.runner(), Handle(str(handle)))
    assert isinstance(reader.events[-1], Finished)
    assert_no_event_is_missed_or_repeated(reader.events)


async def test_after_a_crash_the_next_attempt_resumes_from_the_last_checkpoint(bench: Bench) -> None:
    bench.plan(epochs=3, dies_at=2, in_attempt=1)
    runner, options = bench.runner(), bench.options()
    handle = await runner.launch(options)
    reader = EventReader(options.job_dir)
    await reader.until_exited(runner, handle)
    assert [event.type for event in reader.events] == ["started", "epoch_ended"]

    bench.plan(epochs=3)
    handle = await runner.launch(bench.options(attempt=2))
    await reader.until_exited(runner, handle)
    assert [event.resumed_from_step for event in reader.events if isinstance(event, Started)] == [0, 10]
    assert printed_lines(options.job_dir) == [
        f"attempt {1 if epoch == 1 else 2} printed this in epoch {epoch}" for epoch in (1, 2, 3)
    ]
    assert isinstance(reader.events[-1], Finished)
    assert_no_event_is_missed_or_repeated(reader.events)


async def test_a_superseded_attempt_writes_nothing_more(bench: Bench) -> None:
    bench.plan(epochs=1000, pause_s=0.2, ignores_stop=True)
    runner, options = bench.runner(), bench.options()
    first = await runner.launch(options)
    reader = EventReader(options.job_dir)
    await reader.until_emitted(runner, first, 3)
    bench.plan(epochs=8)
    # It may find the folder locked until the old attempt has noticed the fence.
    attempt, second = await launch_until_it_runs(bench, runner)
    await EventReader(options.job_dir).until_exited(runner, first)
    await reader.until_exited(runner, second)

    assert_no_event_is_missed_or_repeated(reader.events)
    attempts = [event.attempt for event in reader.events]
    assert attempts == sorted(attempts)
    assert set(attempts) == {1, attempt}
    assert isinstance(reader.events[-1], Finished)


async def launch_until_it_runs(bench: Bench, runner: Runner) -> tuple[int, Handle]:
    for attempt in range(2, 6):
        handle = await runner.launch(bench.options(attempt=attempt))
        reader = EventReader(bench.options().job_dir)

        async def runs_or_exited(attempt: int = attempt, handle: Handle = handle, reader: EventReader = reader) -> bool:
            status = await reader.read(runner, handle)
            return status is RunStatus.EXITED or reader.events[-1].attempt == attempt

        await eventually(runs_or_exited)
        if reader.events[-1].attempt == attempt:
            return attempt, handle
    raise AssertionError("no later attempt ran")


# -- only on the cluster -------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_third_job_waits_for_a_gpu_and_can_be_withdrawn(ray_bench: Bench) -> None:
    ray_bench.plan(epochs=1000)
    runner = ray_bench.runner()
    handles = [await runner.launch(ray_bench.options(job_id=number)) for number in (1, 2)]

    async def both_run() -> bool:
        return [await runner.poll(handle) for handle in handles] == [RunStatus.RUNNING] * 2

    await eventually(both_run)
    third = await runner.launch(ray_bench.options(job_id=3))
    await asyncio.sleep(2)
    assert await runner.poll(third) is RunStatus.WAITING
    await runner.stop(third)
    assert await runner.poll(third) is RunStatus.EXITED
    fourth = await runner.launch(ray_bench.options(job_id=4))
    await runner.stop(handles[0])

    async def fourth_runs() -> bool:
        return await runner.poll(fourth) is RunStatus.RUNNING

    await eventually(fourth_runs)
    # The third one was next in line, and did not run.
    assert not (ray_bench.options(job_id=3).job_dir / "events.jsonl").exists()
    for number, handle in ((2, handles[1]), (4, fourth)):
        await runner.stop(handle)
        await EventReader(ray_bench.options(job_id=number).job_dir).until_exited(runner, handle)


@pytest.mark.slow
async def test_a_job_whose_node_is_lost_resumes_on_another_node(ray_bench: Bench, cluster: RayCluster) -> None:
    ray_bench.plan(epochs=1000, pause_s=0.4)
    runner, options = ray_bench.runner(), ray_bench.options()
    handle = await runner.launch(options)
    reader = EventReader(options.job_dir)
    await reader.until_emitted(runner, handle, 5)
    node = await cluster.node_of(json.loads(handle)["submission_id"])
    try:
        await asyncio.to_thread(cluster.ask, f"kill {node}")
        await reader.until_exited(ray_bench.runner(), handle, within_s=120, status=RunStatus.NODE_LOST)
    finally:
        await asyncio.to_thread(cluster.ask, "add")

    assert not isinstance(reader.events[-1], Finished)
    ray_bench.plan(epochs=len(reader.events) + 3, pause_s=0.1)
    handle = await ray_bench.runner().launch(ray_bench.options(attempt=2))
    await reader.until_exited(ray_bench.runner(), handle)
    steps = [event.resumed_from_step for event in reader.events if isinstance(event, Started)]
    assert len(steps) == 2
    assert steps[1] > 0
    log = (options.job_dir / LOG_FILE).read_text()
    assert log.index("Job supervisor actor died") < log.index("attempt 2 printed this")
    assert isinstance(reader.events[-1], Finished)
    assert_no_event_is_missed_or_repeated(reader.events)


@pytest.mark.slow
async def test_a_job_that_fits_on_no_machine_is_refused(ray_bench: Bench) -> None:
    with pytest.raises(LaunchFailed, match=r"3 GPUs.*the largest has 1 GPUs"):
        await ray_bench.runner().launch(ray_bench.options(gpus=3))


@pytest.mark.slow
async def test_the_state_of_a_job_is_unknown_while_the_cluster_does_not_answer(ray_bench: Bench) -> None:
    runner, options = ray_bench.runner(), ray_bench.options()
    handle = await runner.launch(options)
    away = ray_bench.runner(address="http://127.0.0.1:9", timeout_s=2)
    for call in (away.poll(handle), away.stop(handle), away.launch(options)):
        with pytest.raises(RunnerUnreachable):
            await call
    without_token = ray_bench.runner(token_env="NO_SUCH_VARIABLE")
    with pytest.raises(RunnerUnreachable, match=r"refuses the token"):
        await without_token.poll(handle)
    forgotten = Handle(str(handle).replace("darkroom-7-1", "darkroom-8-1"))
    assert await runner.poll(forgotten) is RunStatus.EXITED
    await EventReader(options.job_dir).until_exited(runner, handle)


@pytest.mark.slow
async def test_a_real_training_runs_on_the_cluster(ray_bench: Bench, fork_server: ForkServer) -> None:
    dataset = ray_bench.data_dir / "datasets/1/prepared"
    draw_images(ray_bench.folder / "images", 8)
    await asyncio.to_thread(prepare, [ray_bench.folder / "images"], dataset, resolutions=(64,))
    options = ray_bench.options()
    base = make_random_base(ray_bench.folder / "base")
    settings = {**SMALL, "training": {**SMALL["training"], "epochs": 1, "repeats": 1}, "base": {"source": str(base)}}
    write_spec(options.job_dir, make_spec({"name": "egg", "dataset": str(dataset), **settings}))
    ray_bench.command = fork_server.command
    runner, reader = ray_bench.runner(), EventReader(options.job_dir)
    handle = await runner.launch(options)
    await reader.until_exited(runner, handle, within_s=120)

    finished = reader.events[-1]
    assert isinstance(finished, Finished), finished
    assert_no_event_is_missed_or_repeated(reader.events)
    exported = [event for event in reader.events if isinstance(event, Exported)]
    assert exported
    assert all((options.job_dir / event.path).exists() for event in exported)
    assert finished.report is not None
    assert (options.job_dir / finished.report).stat().st_size > 0
    assert "finished: epoch" in (options.job_dir / LOG_FILE).read_text()
