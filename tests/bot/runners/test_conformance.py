"""What every runner keeps: the same stories on this machine and on a real Ray cluster of two workers."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from pathlib import Path

import pytest

from bot.errors import LaunchFailed, RunnerUnreachable
from bot.runners import Handle, Runner, Status
from tests.bot.runners.cluster import RayCluster
from tests.bot.runners.conftest import Bench, Listener, everywhere, make_bench, until
from tests.trainer.conftest import SMALL, draw_pictures
from trainer.dataset.preparing.prepare import prepare
from trainer.protocol.events import Event, Exported, Finished, Started, Stopped
from trainer.protocol.order import LOG_FILE
from trainer.protocol.spec import make_spec


def numbers(events: list[Event]) -> list[int]:
    return [event.seq for event in events]


def assert_nothing_missed_or_repeated(events: list[Event]) -> None:
    assert numbers(events) == list(range(1, len(events) + 1))


def printed(job_dir: Path) -> list[str]:
    """What the trainer itself printed."""
    return [line for line in (job_dir / LOG_FILE).read_text().splitlines() if "printed this" in line]


@everywhere
async def test_a_training_is_heard_from_its_first_to_its_last_word(bench: Bench) -> None:
    runner, launch = bench.runner(), bench.launch()
    handle = await runner.launch(launch)
    heard = Listener(launch.job_dir)
    await heard.until_gone(runner, handle)

    assert [event.type for event in heard.events] == ["started", *["epoch_ended"] * 3, "finished"]
    assert_nothing_missed_or_repeated(heard.events)
    assert {event.attempt for event in heard.events} == {1}
    assert printed(launch.job_dir) == [f"attempt 1 printed this in epoch {epoch}" for epoch in (1, 2, 3)]
    beat = await runner.last_beat(handle, launch.job_dir)
    assert beat is not None
    assert abs(beat - time.time()) < 60
    if bench.cluster is not None:
        # The node has the dataset elsewhere, and the spec is the same there.
        [(spec_says, lies_at)] = json.loads((launch.job_dir / "output/comparison.png").read_text()).items()
        assert spec_says == str(bench.data_dir / "datasets/1/prepared")
        assert lies_at != spec_says
        assert lies_at.endswith("1/prepared")


@everywhere
async def test_two_launches_of_an_attempt_are_one_process(bench: Bench) -> None:
    bench.plan(epochs=5, pause_s=0.3)
    launch = bench.launch()
    handles = [await bench.runner().launch(launch), await bench.runner().launch(launch)]
    heard = Listener(launch.job_dir)
    runner = bench.runner()
    await heard.until_gone(runner, handles[1])

    assert await runner.poll(handles[0]) is Status.GONE
    assert sum(isinstance(event, Started) for event in heard.events) == 1
    assert_nothing_missed_or_repeated(heard.events)


@everywhere
async def test_a_stopped_one_keeps_a_checkpoint_and_the_next_attempt_goes_on_from_it(bench: Bench) -> None:
    bench.plan(epochs=4, pause_s=0.4)
    runner, launch = bench.runner(), bench.launch()
    handle = await runner.launch(launch)
    heard = Listener(launch.job_dir)
    await heard.until_said(runner, handle, 2)
    await runner.stop(handle)
    await heard.until_gone(runner, handle)
    word = heard.events[-1]
    assert isinstance(word, Stopped)
    assert word.checkpoint is not None
    assert word.step > 0

    handle = await runner.launch(bench.launch(attempt=2))
    await heard.until_gone(runner, handle)
    again = next(event for event in heard.events if isinstance(event, Started) and event.attempt == 2)
    assert again.resumed_from_step == word.step
    assert isinstance(heard.events[-1], Finished)
    assert_nothing_missed_or_repeated(heard.events)


@everywhere
async def test_one_that_does_not_obey_is_killed(bench: Bench) -> None:
    bench.plan(epochs=1000, pause_s=0.1, ignores_stop=True)
    runner, launch = bench.runner(stop_grace_s=1), bench.launch()
    handle = await runner.launch(launch)
    heard = Listener(launch.job_dir)
    await heard.until_said(runner, handle, 2)
    await runner.kill(handle)
    await heard.until_gone(runner, handle)

    assert not isinstance(heard.events[-1], Stopped | Finished)


@everywhere
async def test_the_next_bot_misses_and_repeats_nothing(bench: Bench) -> None:
    bench.plan(epochs=6, pause_s=0.3)
    runner, launch = bench.runner(), bench.launch()
    handle = await runner.launch(launch)
    heard = Listener(launch.job_dir)
    await heard.until_said(runner, handle, 3)
    # It read further than it stored, and died in the middle of writing a line.
    heard.offset, heard.lines = heard.lines[1].end, heard.lines[:2]
    if bench.settings.get("store"):
        with (launch.job_dir / "events.jsonl").open("ab") as file:
            file.write(b'{"seq": 4, "ty')

    await heard.until_gone(bench.runner(), Handle(str(handle)))
    assert isinstance(heard.events[-1], Finished)
    assert_nothing_missed_or_repeated(heard.events)


@everywhere
async def test_one_that_dies_without_a_word_is_gone_and_the_next_goes_on(bench: Bench) -> None:
    # Longer than a round of sending, so that the checkpoint of the first epoch is in the store.
    bench.plan(epochs=3, pause_s=1.3, dies_at=2, in_attempt=1)
    runner, launch = bench.runner(), bench.launch()
    handle = await runner.launch(launch)
    heard = Listener(launch.job_dir)
    await heard.until_gone(runner, handle)
    assert [event.type for event in heard.events] == ["started", "epoch_ended"]

    bench.plan(epochs=3)
    handle = await runner.launch(bench.launch(attempt=2))
    await heard.until_gone(runner, handle)
    assert [event.resumed_from_step for event in heard.events if isinstance(event, Started)] == [0, 10]
    assert printed(launch.job_dir) == [
        f"attempt {1 if epoch == 1 else 2} printed this in epoch {epoch}" for epoch in (1, 2, 3)
    ]
    assert isinstance(heard.events[-1], Finished)
    assert_nothing_missed_or_repeated(heard.events)


@everywhere
async def test_an_attempt_that_lost_its_job_writes_nothing_more(bench: Bench) -> None:
    bench.plan(epochs=1000, pause_s=0.2, ignores_stop=True)
    runner, launch = bench.runner(), bench.launch()
    first = await runner.launch(launch)
    heard = Listener(launch.job_dir)
    await heard.until_said(runner, first, 3)
    bench.plan(epochs=8)
    # It may find the folder held until the old one has noticed.
    attempt, second = await next_that_runs(bench, runner)
    old = Listener(launch.job_dir)
    await old.until_gone(runner, first)
    await heard.until_gone(runner, second)

    assert_nothing_missed_or_repeated(heard.events)
    attempts = [event.attempt for event in heard.events]
    assert attempts == sorted(attempts)
    assert {1, attempt} == set(attempts)
    assert isinstance(heard.events[-1], Finished)


async def next_that_runs(bench: Bench, runner: Runner) -> tuple[int, Handle]:
    for attempt in range(2, 6):
        handle = await runner.launch(bench.launch(attempt=attempt))
        heard = Listener(bench.launch().job_dir)

        async def speaks_or_is_gone(attempt: int = attempt, handle: Handle = handle, heard: Listener = heard) -> bool:
            status = await heard.hear(runner, handle)
            return status is Status.GONE or heard.events[-1].attempt == attempt

        await until(speaks_or_is_gone)
        if heard.events[-1].attempt == attempt:
            return attempt, handle
    raise AssertionError("no later attempt came to run")


# -- the cluster ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_third_job_waits_for_a_gpu_and_can_be_withdrawn(shared_bench: Bench) -> None:
    shared_bench.plan(epochs=1000)
    runner = shared_bench.runner()
    handles = [await runner.launch(shared_bench.launch(job_id=number)) for number in (1, 2)]

    async def both_run() -> bool:
        return [await runner.poll(handle) for handle in handles] == [Status.RUNNING] * 2

    await until(both_run)
    third = await runner.launch(shared_bench.launch(job_id=3))
    await asyncio.sleep(2)
    assert await runner.poll(third) is Status.WAITING
    await runner.stop(third)
    assert await runner.poll(third) is Status.GONE
    fourth = await runner.launch(shared_bench.launch(job_id=4))
    await runner.stop(handles[0])

    async def fourth_runs() -> bool:
        return await runner.poll(fourth) is Status.RUNNING

    await until(fourth_runs)
    # Its turn came first, and it said nothing.
    assert (await runner.events(third, shared_bench.launch(job_id=3).job_dir, 0)).lines == ()
    for number, handle in ((2, handles[1]), (4, fourth)):
        await runner.stop(handle)
        await Listener(shared_bench.launch(job_id=number).job_dir).until_gone(runner, handle)


@pytest.mark.slow
async def test_jobs_whose_nodes_are_lost_go_on_on_others(
    request: pytest.FixtureRequest, tmp_path: Path, cluster: RayCluster
) -> None:
    # Both ways of handing job folders over at once: to notice that a node is gone takes the cluster a while.
    benches = [make_bench(kind, request, tmp_path / kind) for kind in ("ray_shared", "ray_store")]
    starts = [await under_way(bench) for bench in benches]
    nodes = [await cluster.node_of(json.loads(handle)["submission_id"]) for handle, _ in starts]
    assert nodes[0] != nodes[1]
    try:
        for node in nodes:
            await asyncio.to_thread(cluster.ask, f"kill {node}")
        started_at = time.monotonic()
        for bench, (handle, heard) in zip(benches, starts, strict=True):
            await heard.until_gone(bench.runner(), handle, within_s=30, status=Status.CUT_OFF)
            assert "Job supervisor actor died" in (heard.job_dir / LOG_FILE).read_text()
        assert time.monotonic() - started_at < 30
    finally:
        for _ in nodes:
            await asyncio.to_thread(cluster.ask, "add")
    await asyncio.gather(*(goes_on(bench, heard) for bench, (_, heard) in zip(benches, starts, strict=True)))


async def under_way(bench: Bench) -> tuple[Handle, Listener]:
    bench.plan(epochs=1000, pause_s=0.4)
    launch = bench.launch()
    handle = await bench.runner().launch(launch)
    heard = Listener(launch.job_dir)
    # In a store a checkpoint follows its events by a moment.
    await heard.until_said(bench.runner(), handle, 5)
    return handle, heard


async def goes_on(bench: Bench, heard: Listener) -> None:
    assert not isinstance(heard.events[-1], Finished)
    bench.plan(epochs=len(heard.events) + 3, pause_s=0.1)
    handle = await bench.runner().launch(bench.launch(attempt=2))
    await heard.until_gone(bench.runner(), handle)
    steps = [event.resumed_from_step for event in heard.events if isinstance(event, Started)]
    assert len(steps) == 2
    assert steps[1] > 0
    log = (heard.job_dir / LOG_FILE).read_text()
    assert log.index("Job supervisor actor died") < log.index("attempt 2 printed this")
    assert isinstance(heard.events[-1], Finished)
    assert_nothing_missed_or_repeated(heard.events)


@pytest.mark.slow
async def test_more_than_any_machine_has_is_said_at_once(shared_bench: Bench) -> None:
    with pytest.raises(LaunchFailed, match=r"asks for 3 GPUs.*the most that one has is 1 GPUs"):
        await shared_bench.runner().launch(shared_bench.launch(gpus=3))


@pytest.mark.slow
async def test_a_cluster_that_does_not_answer_is_not_a_job_that_is_gone(shared_bench: Bench) -> None:
    runner, launch = shared_bench.runner(), shared_bench.launch()
    handle = await runner.launch(launch)
    away = shared_bench.runner(address="http://127.0.0.1:9", timeout_s=2)
    for question in (away.poll(handle), away.stop(handle), away.launch(launch)):
        with pytest.raises(RunnerUnreachable, match=r"may well go on"):
            await question
    stranger = shared_bench.runner(token_env="NO_SUCH_VARIABLE")
    with pytest.raises(RunnerUnreachable, match=r"refuses the token"):
        await stranger.poll(handle)
    forgotten = Handle(str(handle).replace("darkroom-7-1", "darkroom-8-1"))
    assert await runner.poll(forgotten) is Status.GONE
    await Listener(launch.job_dir).until_gone(runner, handle)


@pytest.mark.slow
async def test_a_store_out_of_reach_does_not_stop_a_training(store_bench: Bench) -> None:
    store_bench.plan(epochs=5, pause_s=0.5)
    runner, launch = store_bench.runner(), store_bench.launch()
    handle = await runner.launch(launch)
    heard = Listener(launch.job_dir)
    await heard.until_said(runner, handle, 2)
    store = store_bench.folder / "store"
    shutil.move(store, store_bench.folder / "away")
    # A file where the folder was: whoever writes gets an error.
    store.write_text("")
    with pytest.raises(RunnerUnreachable, match=r"may well go on"):
        await runner.events(handle, launch.job_dir, heard.offset)
    await asyncio.sleep(2)
    store.unlink()
    shutil.move(store_bench.folder / "away", store)
    await heard.until_gone(runner, handle)

    assert isinstance(heard.events[-1], Finished)
    assert_nothing_missed_or_repeated(heard.events)


@pytest.mark.slow
async def test_a_real_training_goes_through_the_store(store_bench: Bench) -> None:
    dataset = store_bench.data_dir / "datasets/1/prepared"
    draw_pictures(store_bench.folder / "pictures", 8)
    await asyncio.to_thread(prepare, [store_bench.folder / "pictures"], dataset, resolution=64)
    launch = store_bench.launch()
    settings = {**SMALL, "training": {**SMALL["training"], "epochs": 1, "repeats": 1}, "base": {"source": "tiny"}}
    make_spec({"name": "egg", "dataset": str(dataset), **settings}).write(launch.job_dir)
    store_bench.command = (sys.executable, "-m", "trainer")
    runner, heard = store_bench.runner(), Listener(launch.job_dir)
    handle = await runner.launch(launch)
    # From here on it is in the store only.
    dataset.rename(store_bench.folder / "away")
    await heard.until_gone(runner, handle, within_s=120)

    word = heard.events[-1]
    assert isinstance(word, Finished), word
    assert_nothing_missed_or_repeated(heard.events)
    exported = [event for event in heard.events if isinstance(event, Exported)]
    assert exported
    assert all((launch.job_dir / event.path).exists() for event in exported)
    assert word.report is not None
    assert (launch.job_dir / word.report).stat().st_size > 0
    assert "finished: best epoch" in (launch.job_dir / LOG_FILE).read_text()
    assert not (launch.job_dir / "checkpoints").exists()
    packed = sorted((store_bench.folder / "store").rglob("checkpoints/*.tar"))
    assert packed, "the next attempt could not go on"
