"""Forecasts come from a simulation of the queue; it agrees with what the queue does."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bot.config import AtClose
from bot.db import Database, open_db
from bot.outbox import Outbox
from bot.queue import Forecast, JobStore, PauseKind, Priority, StopIntent
from bot.queue.planning import forecast as module
from bot.queue.planning.estimates import Estimates
from bot.queue.planning.forecast import Forecaster, Occupied, WaitingJob, start_times
from bot.queue.planning.windows import ALWAYS_OPEN, OpenHours, parse_windows
from tests.bot.conftest import add_dataset, claim, make_store, set_slots
from tests.bot.fake_events import finished, started, step_done
from tests.bot.fakes import FakeClock
from tests.bot.jobs import new_job

NIGHTS = ["20:00-08:00"]
#: A Wednesday noon, UTC.
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
HOUR = 3600.0


def waiting(job_id: int, seconds: float | None = 100.0, *, owner: int = 1, gpus: int = 1, **more: float) -> WaitingJob:
    return WaitingJob(
        job_id=job_id,
        owner_id=owner,
        gpus=gpus,
        seconds=seconds,
        run_after=more.get("run_after", 0.0),
        max_running=None if "max_running" not in more else int(more["max_running"]),
    )


def starts(line: list[WaitingJob], *occupied: tuple[int, int, float], free: int = 0) -> list[float | None]:
    """Starts in line order; `occupied` are (owner, GPUs, seconds left)."""
    slots = [Occupied(owner_id=owner, gpus=gpus, until=until) for owner, gpus, until in occupied]
    found = start_times(line, slots, free=free, now=0.0, hours=OpenHours(ALWAYS_OPEN, 0.0))
    return [found[job.job_id] for job in line]


def test_one_after_another_on_one_gpu_and_side_by_side_on_two() -> None:
    line = [waiting(1, 10), waiting(2, 20), waiting(3, 30)]

    assert starts(line, free=1) == [0, 10, 30]
    assert starts(line, free=2) == [0, 0, 10]
    assert starts(line, (9, 1, 50.0)) == [50, 60, 80]


def test_no_job_overtakes_one_that_needs_several_gpus() -> None:
    assert starts([waiting(1, 10, gpus=2), waiting(2, 5)], (9, 1, 40.0), free=1) == [40, 50]


def test_a_delayed_job_lets_others_go_first() -> None:
    assert starts([waiting(1, 10, run_after=25), waiting(2, 20), waiting(3, 20)], free=1) == [40, 0, 20]


def test_an_owner_at_the_running_limit_lets_others_go_first() -> None:
    line = [waiting(1, 10, max_running=1), waiting(2, 10, max_running=1), waiting(3, 10, owner=2)]

    assert starts(line, free=2) == [0, 10, 0]


def test_jobs_behind_one_of_unknown_duration_get_no_start_unless_another_slot_frees() -> None:
    line = [waiting(1, None), waiting(2, 10), waiting(3, 10)]

    assert starts(line, free=1) == [0, None, None]
    assert starts(line, free=2) == [0, 0, 10]
    assert starts([waiting(1)], (9, 1, inf)) == [None]


def test_a_study_starts_at_once_and_takes_no_slot() -> None:
    assert starts([waiting(1, 10), waiting(2, None, gpus=0), waiting(3, 10)], (9, 1, 5.0)) == [5, 0, 15]


def test_a_job_that_can_never_start_ends_the_simulation() -> None:
    assert starts([waiting(1, gpus=4), waiting(2)], free=2) == [None, None]


def test_starts_wait_for_the_training_window() -> None:
    nights = parse_windows(NIGHTS, zone=ZoneInfo("UTC"))
    # A running job continues after the window closes; the next one waits for the next night.
    line = [waiting(1, 13 * HOUR), waiting(2, HOUR)]
    found = start_times(line, [], free=1, now=NOON, hours=OpenHours(nights, NOON))

    assert [(each or 0) - NOON for each in found.values()] == [8 * HOUR, (24 + 8) * HOUR]


def test_only_open_hours_count_where_windows_interrupt_running_jobs() -> None:
    nights = parse_windows(NIGHTS, zone=ZoneInfo("UTC"), at_close=AtClose.REQUEUE)

    assert OpenHours(nights, NOON).finish(NOON, 13 * HOUR) - NOON == (24 + 8 + 1) * HOUR
    assert OpenHours(nights, NOON).finish(NOON, 12 * HOUR) - NOON == 20 * HOUR
    found = start_times([waiting(1, 13 * HOUR), waiting(2, HOUR)], [], free=1, now=NOON, hours=OpenHours(nights, NOON))
    assert [(each or 0) - NOON for each in found.values()] == [8 * HOUR, (24 + 9) * HOUR]


# -- the queue in the database -----------------------------------------------------------------------------------------


def forecaster(db: Database, store: JobStore, clock: FakeClock) -> Forecaster:
    return Forecaster(db, store.control, Estimates(db), clock=clock)


async def test_a_running_job_ends_when_its_trainer_says_and_a_stopping_one_now(
    db: Database, store: JobStore, clock: FakeClock
) -> None:
    simulation = forecaster(db, store, clock)
    first = await store.submit(new_job(estimate_s=1000.0))
    second = await store.submit(new_job(owner=2, estimate_s=50.0))
    await claim(store, 1)
    began = clock()
    assert await simulation.of(first.id) == Forecast(
        job_id=first.id, starts_at=None, ends_at=began + 1000, seconds=1000
    )
    assert await simulation.of(second.id) == Forecast(
        job_id=second.id, starts_at=began + 1000, ends_at=began + 1050, seconds=50
    )
    clock.advance(100)
    step = step_done(2, 1, at=clock()).model_copy(update={"eta_s": 300.0})
    await store.attempts.ingest(first.id, 1, [started(1), step], 1)
    clock.advance(60)
    found = await simulation.all()
    assert [found[job.id].starts_at for job in (first, second)] == [None, began + 400]
    assert found[first.id].seconds == pytest.approx(240)
    await store.request_stop(first.id, by=1, intent=StopIntent.PAUSE)
    found = await simulation.all()
    assert found[second.id].starts_at == clock()


async def test_a_step_of_an_earlier_attempt_does_not_count(db: Database, store: JobStore, clock: FakeClock) -> None:
    job = await store.submit(new_job(estimate_s=1000.0))
    await claim(store, 1)
    step = step_done(2, 1, at=clock()).model_copy(update={"eta_s": 9000.0})
    await store.attempts.ingest(job.id, 1, [started(1), step], 1)
    clock.advance(400)
    await store.attempts.lost(job.id, 1)
    assert (await forecaster(db, store, clock).all())[job.id].seconds == 600
    clock.advance(10)
    await claim(store, 1)
    assert (await forecaster(db, store, clock).all())[job.id].seconds == 600


async def test_a_job_queued_before_anything_was_measured_gets_its_duration_later(
    db: Database, store: JobStore, clock: FakeClock
) -> None:
    first = await store.submit(new_job())
    second = await store.submit(new_job())
    third = await store.submit(new_job())
    simulation = forecaster(db, store, clock)
    await claim(store, 1)
    found = await simulation.all()
    assert [found[job.id].starts_at for job in (second, third)] == [None, None]
    clock.advance(500)
    await store.attempts.ingest(first.id, 1, [started(1), finished(2)], 1)
    found = await simulation.all()
    assert [found[job.id].starts_at for job in (second, third)] == [clock(), clock() + 500]


async def test_nothing_starts_while_the_queue_is_paused(db: Database, store: JobStore, clock: FakeClock) -> None:
    job = await store.submit(new_job(estimate_s=60.0))
    await store.control.pause(PauseKind.PAUSE, by=9)

    assert (await forecaster(db, store, clock).all())[job.id] == Forecast(
        job_id=job.id, starts_at=None, ends_at=None, seconds=60.0
    )


async def test_ended_jobs_are_not_read(db: Database) -> None:
    for statement in (module._WAITING, module._RUNNING):
        plan = [row["detail"] for row in await db.all("EXPLAIN QUERY PLAN " + statement)]
        assert not [step for step in plan if step.startswith("SCAN") and "job_queue" not in step], plan


# -- the simulation against the queue ----------------------------------------------------------------------------------


#: (start, job ID) of each job.
Starts = list[tuple[float, int]]


@dataclass(frozen=True)
class Request:
    owner: int
    gpus: int
    seconds: int
    priority: int
    delay: int
    max_running: int | None


requests = st.builds(
    Request,
    owner=st.integers(1, 3),
    gpus=st.sampled_from([1, 1, 1, 2]),
    seconds=st.integers(1, 30),
    priority=st.sampled_from([-1, 0, 0, 1]),
    delay=st.sampled_from([0, 0, 0, 7, 40]),
    max_running=st.sampled_from([None, None, 1, 2]),
)


@given(st.lists(requests, min_size=1, max_size=9), st.integers(2, 3))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_simulation_starts_jobs_when_and_in_the_order_in_which_they_are_claimed(
    jobs: list[Request], slots: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        forecast, actual = asyncio.run(_forecast_and_run(Path(folder), jobs, slots))
    assert forecast == actual


async def _forecast_and_run(folder: Path, jobs: list[Request], slots: int) -> tuple[Starts, Starts]:
    """Forecast the starts before any job runs, then run the queue and record them."""
    clock = FakeClock()
    async with open_db(folder / "data" / "darkroom.sqlite") as db:
        await add_dataset(db)
        store = make_store(db, Outbox(db, clock=clock), clock, folder)
        await set_slots(store, slots)
        needs: dict[int, float] = {}
        for each in jobs:
            job = await store.submit(
                new_job(
                    owner=each.owner,
                    gpus=each.gpus,
                    estimate_s=float(each.seconds),
                    priority=Priority(each.priority),
                    run_after=datetime.fromtimestamp(clock() + each.delay, UTC) if each.delay else None,
                    max_running=each.max_running,
                )
            )
            needs[job.id] = float(each.seconds)
        found = await forecaster(db, store, clock).all()
        actual = await _run(store, clock, needs)
    return [(forecast.starts_at or 0.0, forecast.job_id) for forecast in found.values()], actual


async def _run(store: JobStore, clock: FakeClock, needs: dict[int, float]) -> Starts:
    """Claim all that may start and advance the clock second by second, until nothing is left."""
    actual: Starts = []
    ends: dict[int, float] = {}
    while len(actual) < len(needs) or ends:
        for job_id in [job_id for job_id, end in ends.items() if end <= clock()]:
            await store.attempts.ingest(job_id, 1, [started(1), finished(2)], 1)
            del ends[job_id]
        while (busy := await store.attempts.claim()) is not None:
            actual.append((clock(), busy.id))
            ends[busy.id] = clock() + needs[busy.id]
        clock.advance(1)
    return actual
