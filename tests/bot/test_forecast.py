"""When a waiting job starts is found by playing the line; the play and the claims agree."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bot.config import AtClose
from bot.db import Database, open_db
from bot.outbox import Outbox
from bot.queue import Forecast, HaltKind, JobStore, Priority, StopIntent
from bot.queue.planning import forecast as module
from bot.queue.planning.estimates import Estimates
from bot.queue.planning.forecast import Forecaster, Held, Waiting, after_work, start_times
from bot.queue.planning.windows import parse_windows
from tests.bot.conftest import add_dataset, claim, make_store, set_slots
from tests.bot.fakes import Clock, finished, started, step_done
from tests.bot.jobs import new_job

NIGHTS = ["20:00-08:00"]
#: A Wednesday noon, UTC.
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
HOUR = 3600.0


def waiting(job_id: int, seconds: float | None = 100.0, *, owner: int = 1, gpus: int = 1, **more: float) -> Waiting:
    return Waiting(
        job_id=job_id,
        owner_id=owner,
        gpus=gpus,
        seconds=seconds,
        run_after=more.get("run_after", 0.0),
        max_running=None if "max_running" not in more else int(more["max_running"]),
    )


def starts(line: list[Waiting], *held: tuple[int, int, float], free: int = 0) -> list[float | None]:
    """Starts in line order; `held` are (owner, GPUs, seconds left)."""
    slots = [Held(owner_id=owner, gpus=gpus, until=until) for owner, gpus, until in held]
    found = start_times(line, slots, free=free, now=0.0)
    return [found[job.job_id] for job in line]


def test_one_after_another_on_one_gpu_and_side_by_side_on_two() -> None:
    line = [waiting(1, 10), waiting(2, 20), waiting(3, 30)]

    assert starts(line, free=1) == [0, 10, 30]
    assert starts(line, free=2) == [0, 0, 10]
    assert starts(line, (9, 1, 50.0)) == [50, 60, 80]


def test_nobody_overtakes_a_job_that_needs_several_gpus() -> None:
    assert starts([waiting(1, 10, gpus=2), waiting(2, 5)], (9, 1, 40.0), free=1) == [40, 50]


def test_a_delayed_job_lets_others_go_first() -> None:
    assert starts([waiting(1, 10, run_after=25), waiting(2, 20), waiting(3, 20)], free=1) == [40, 0, 20]


def test_who_runs_as_many_as_they_may_lets_others_go_first() -> None:
    line = [waiting(1, 10, max_running=1), waiting(2, 10, max_running=1), waiting(3, 10, owner=2)]

    assert starts(line, free=2) == [0, 10, 0]


def test_behind_a_job_of_unknown_length_nothing_is_said_unless_there_is_another_way() -> None:
    line = [waiting(1, None), waiting(2, 10), waiting(3, 10)]

    assert starts(line, free=1) == [0, None, None]
    assert starts(line, free=2) == [0, 0, 10]
    assert starts([waiting(1)], (9, 1, inf)) == [None]


def test_a_study_starts_at_once_and_takes_no_slot() -> None:
    assert starts([waiting(1, 10), waiting(2, None, gpus=0), waiting(3, 10)], (9, 1, 5.0)) == [5, 0, 15]


def test_a_job_that_can_never_start_ends_the_play() -> None:
    assert starts([waiting(1, gpus=4), waiting(2)], free=2) == [None, None]


def test_starts_wait_for_the_training_window() -> None:
    nights = parse_windows(NIGHTS, timezone="UTC")
    # What runs when the window closes goes on; the next one waits for the next night.
    line = [waiting(1, 13 * HOUR), waiting(2, HOUR)]
    found = start_times(line, [], free=1, now=NOON, windows=nights)

    assert [(each or 0) - NOON for each in found.values()] == [8 * HOUR, (24 + 8) * HOUR]


def test_where_windows_interrupt_what_runs_only_open_hours_count() -> None:
    nights = parse_windows(NIGHTS, timezone="UTC", at_close=AtClose.REQUEUE)

    assert after_work(nights, NOON, 13 * HOUR) - NOON == (24 + 8 + 1) * HOUR
    assert after_work(nights, NOON, 12 * HOUR) - NOON == 20 * HOUR
    found = start_times([waiting(1, 13 * HOUR), waiting(2, HOUR)], [], free=1, now=NOON, windows=nights)
    assert [(each or 0) - NOON for each in found.values()] == [8 * HOUR, (24 + 9) * HOUR]


# -- the database's line -------------------------------------------------------------------------------------------


def forecaster(db: Database, store: JobStore, clock: Clock) -> Forecaster:
    return Forecaster(db, store.switch, Estimates(db), now=clock)


async def test_running_jobs_say_themselves_when_they_end_and_a_stopping_one_ends_now(
    db: Database, store: JobStore, clock: Clock
) -> None:
    play = forecaster(db, store, clock)
    first = await store.submit(new_job(estimate_s=1000.0))
    second = await store.submit(new_job(owner=2, estimate_s=50.0))
    await claim(store, 1)
    began = clock()
    assert await play.of(first.id) == Forecast(job_id=first.id, starts_at=None, ends_at=began + 1000, seconds=1000)
    assert await play.of(second.id) == Forecast(
        job_id=second.id, starts_at=began + 1000, ends_at=began + 1050, seconds=50
    )
    clock.advance(100)
    step = step_done(2, 1, at=clock()).model_copy(update={"eta_s": 300.0})
    await store.runs.ingest(first.id, 1, [started(1), step], 1)
    clock.advance(60)
    found = await play.all()
    assert [found[job.id].starts_at for job in (first, second)] == [None, began + 400]
    assert found[first.id].seconds == pytest.approx(240)
    await store.request_stop(first.id, by=1, intent=StopIntent.PAUSE)
    found = await play.all()
    assert found[second.id].starts_at == clock()


async def test_a_step_of_an_earlier_start_says_nothing_of_this_one(db: Database, store: JobStore, clock: Clock) -> None:
    job = await store.submit(new_job(estimate_s=1000.0))
    await claim(store, 1)
    step = step_done(2, 1, at=clock()).model_copy(update={"eta_s": 9000.0})
    await store.runs.ingest(job.id, 1, [started(1), step], 1)
    clock.advance(400)
    await store.runs.lost(job.id, 1)
    assert (await forecaster(db, store, clock).all())[job.id].seconds == 600
    clock.advance(10)
    await claim(store, 1)
    assert (await forecaster(db, store, clock).all())[job.id].seconds == 600


async def test_a_job_queued_before_anything_was_measured_gets_its_length_later(
    db: Database, store: JobStore, clock: Clock
) -> None:
    first = await store.submit(new_job())
    second = await store.submit(new_job())
    third = await store.submit(new_job())
    play = forecaster(db, store, clock)
    await claim(store, 1)
    found = await play.all()
    assert [found[job.id].starts_at for job in (second, third)] == [None, None]
    clock.advance(500)
    await store.runs.ingest(first.id, 1, [started(1), finished(2)], 1)
    found = await play.all()
    assert [found[job.id].starts_at for job in (second, third)] == [clock(), clock() + 500]


async def test_nobody_starts_while_the_queue_is_switched_off(db: Database, store: JobStore, clock: Clock) -> None:
    job = await store.submit(new_job(estimate_s=60.0))
    await store.switch.halt(HaltKind.PAUSE, by=9)

    assert (await forecaster(db, store, clock).all())[job.id] == Forecast(
        job_id=job.id, starts_at=None, ends_at=None, seconds=60.0
    )


async def test_ended_jobs_are_not_looked_at(db: Database) -> None:
    for statement in (module._LINE, module._ACTIVE):
        plan = [row["detail"] for row in await db.all("EXPLAIN QUERY PLAN " + statement)]
        assert not [step for step in plan if step.startswith("SCAN") and "job_line" not in step], plan


# -- the play against the claims -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    owner: int
    gpus: int
    seconds: int
    priority: int
    delay: int
    max_running: int | None


asked = st.builds(
    Asked,
    owner=st.integers(1, 3),
    gpus=st.sampled_from([1, 1, 1, 2]),
    seconds=st.integers(1, 30),
    priority=st.sampled_from([-1, 0, 0, 1]),
    delay=st.sampled_from([0, 0, 0, 7, 40]),
    max_running=st.sampled_from([None, None, 1, 2]),
)


@given(st.lists(asked, min_size=1, max_size=9), st.integers(2, 3))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_play_hands_out_jobs_when_and_in_the_order_in_which_claims_do(jobs: list[Asked], slots: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        foretold, happened = asyncio.run(_both(Path(folder), jobs, slots))
    assert foretold == happened


async def _both(folder: Path, jobs: list[Asked], slots: int) -> tuple[list[tuple[float, int]], list[tuple[float, int]]]:
    """(start, job) as foretold before anything ran, and as it happened."""
    clock = Clock()
    async with open_db(folder / "data" / "darkroom.sqlite") as db:
        await add_dataset(db)
        store = make_store(db, Outbox(db, now=clock), clock, folder)
        await set_slots(store, slots)
        needs: dict[int, float] = {}
        for each in jobs:
            job = await store.submit(
                new_job(
                    owner=each.owner,
                    gpus=each.gpus,
                    estimate_s=float(each.seconds),
                    priority=Priority(each.priority),
                    run_after=clock() + each.delay if each.delay else 0.0,
                    max_running=each.max_running,
                )
            )
            needs[job.id] = float(each.seconds)
        found = await forecaster(db, store, clock).all()
        happened = await _run(store, clock, needs)
    return [(forecast.starts_at or 0.0, forecast.job_id) for forecast in found.values()], happened


async def _run(store: JobStore, clock: Clock, needs: dict[int, float]) -> list[tuple[float, int]]:
    """Claim whatever may start, and put the clock forward second by second, until nothing is left."""
    happened: list[tuple[float, int]] = []
    ends: dict[int, float] = {}
    while len(happened) < len(needs) or ends:
        for job_id in [job_id for job_id, end in ends.items() if end <= clock()]:
            await store.runs.ingest(job_id, 1, [started(1), finished(2)], 1)
            del ends[job_id]
        while (busy := await store.runs.claim()) is not None:
            happened.append((clock(), busy.job_id))
            ends[busy.job_id] = clock() + needs[busy.job_id]
        clock.advance(1)
    return happened
