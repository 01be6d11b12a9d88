"""Estimates come from comparable past runs, with their range and usual error."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.db import Database
from bot.queue import JobStore, StopIntent
from bot.queue.planning import estimates
from bot.queue.planning.estimates import Estimate, Estimates, PastRun, estimate_from
from bot.queue.store.measures import planned_steps, signature_of
from tests.bot.conftest import claim
from tests.bot.fake_events import epoch_ended, finished, started, stopped
from tests.bot.fakes import FakeClock
from tests.bot.jobs import new_job
from trainer.protocol.report import Counts
from trainer.protocol.spec import Spec, make_spec

COUNTS = Counts(images=10, kept=10, dropped=0, refused=0, train=7, validation=1, test=1, captioned=9)


def spec(**training: Any) -> Spec:
    return make_spec({"dataset": "/a", "training": training})


def mixed(**settings: Any) -> Spec:
    return make_spec({"dataset": "/a", "training": {"epochs": 1, "batch_size": 1}, **settings})


def test_steps_are_planned_from_images_repeats_epochs_and_batch_size() -> None:
    assert planned_steps(spec(epochs=10, batch_size=2), COUNTS) == 10 * 4
    assert planned_steps(spec(epochs=10, batch_size=2, repeats=3), COUNTS) == 10 * 11
    # Chosen: 50 times 7 images.
    assert planned_steps(spec(epochs=10, batch_size=2, repeats=0), COUNTS) == 10 * 175
    assert planned_steps(mixed(split={"kind": "all"}, early_stopping={"enabled": False}), COUNTS) == 8
    assert planned_steps(mixed(split={"kind": "fold", "folds": 4}), COUNTS) == 6
    # As many class images as own ones.
    assert planned_steps(mixed(prior={"class_prompt": "a dog", "weight": 0.5}), COUNTS) == 14


def test_without_runs_there_is_no_estimate() -> None:
    assert estimate_from(100, []) is None


def test_one_run_gives_its_pace_and_no_range() -> None:
    found = estimate_from(200, [PastRun(views=100, seconds=50.0)])

    assert found == Estimate(seconds=100.0, low_s=100.0, high_s=100.0, usual_error=None, runs=1)


def test_an_estimate_is_the_median_pace_although_two_runs_were_off() -> None:
    runs = [PastRun(views=views, seconds=0.5 * views) for views in (100, 200, 400, 800, 1600)]
    runs += [PastRun(views=300, seconds=9000.0), PastRun(views=500, seconds=9.0)]

    found = estimate_from(1000, runs)

    assert found is not None
    assert found.seconds == pytest.approx(500)
    assert found.low_s < found.seconds < found.high_s


def test_the_usual_error_is_the_median_of_past_ones_and_needs_three() -> None:
    def runs(*estimates_s: float | None) -> list[PastRun]:
        return [PastRun(views=10, seconds=100.0, estimate_s=each) for each in estimates_s]

    few, enough = estimate_from(10, runs(80.0, 125.0, None)), estimate_from(10, runs(80.0, 125.0, 50.0))
    assert few is not None
    assert few.usual_error is None
    assert enough is not None
    assert enough.usual_error == pytest.approx(0.25)


@given(st.lists(st.tuples(st.integers(1, 9999), st.floats(1, 1e5)), min_size=1, max_size=20), st.integers(1, 9999))
def test_a_longer_job_never_takes_less_and_the_range_holds_the_estimate(
    measured: list[tuple[int, float]], views: int
) -> None:
    runs = [PastRun(views=each, seconds=seconds) for each, seconds in measured]
    short, long = estimate_from(views, runs), estimate_from(views * 2, runs)
    assert short is not None
    assert long is not None
    assert 0 < short.low_s <= short.seconds <= short.high_s
    assert short.seconds <= long.seconds


async def _measured(db: Database, job_id: int, of: Spec, seconds: float, *, gpus: int = 1, ended_at: float = 0) -> None:
    values = (job_id, signature_of(of, gpus), planned_steps(of, COUNTS), seconds, ended_at or job_id)
    async with db.transaction() as connection:
        await connection.execute_fetchall("PRAGMA defer_foreign_keys = ON")
        await connection.execute_fetchall(
            "INSERT INTO job (id, guild_id, channel_id, owner_id, dataset_id, name, state, spec, created_at)"
            " VALUES (?, 1, 1, 1, 1, 'x', 'succeeded', '{}', 0)",
            (job_id,),
        )
        await connection.execute_fetchall(
            "INSERT INTO measure (job_id, signature, steps, seconds, ended_at) VALUES (?, ?, ?, ?, ?)", values
        )


async def test_the_most_comparable_runs_are_used_and_others_only_if_there_are_none(db: Database) -> None:
    found = Estimates(db)
    fast, slow = spec(resolution=512, batch_size=4), spec(resolution=1024, batch_size=4)
    await _measured(db, 1, fast, 100.0)
    await _measured(db, 2, slow, 400.0)

    async def seconds(wanted: Spec, gpus: int = 1) -> float | None:
        estimate = await found.of(wanted, COUNTS, gpus)
        return None if estimate is None else estimate.seconds

    assert await seconds(fast) == pytest.approx(100)
    assert await seconds(slow) == pytest.approx(400)
    # Another batch size at that resolution: the same images at the same pace (8 views an epoch in both).
    assert await seconds(spec(resolution=1024, batch_size=8)) == pytest.approx(400)
    # Another resolution: the median of the known ones.
    assert await seconds(spec(resolution=768, batch_size=4)) == pytest.approx(250)
    # Another base, method or number of GPUs: none.
    assert await seconds(make_spec({"dataset": "/a", "base": {"source": "tinyer"}})) is None
    assert await seconds(make_spec({"dataset": "/a", "method": {"kind": "loha"}})) is None
    assert await seconds(fast, gpus=2) is None


async def test_only_the_newest_twenty_count(db: Database) -> None:
    for number in range(1, 36):
        await _measured(db, number, spec(), 1000.0 if number <= 15 else 100.0)

    found = await Estimates(db).of(spec(), COUNTS)

    assert found is not None
    assert found.runs == 20
    assert found.seconds == pytest.approx(100)


async def test_comparable_runs_are_found_by_the_index(db: Database) -> None:
    plan = [
        row["detail"]
        for row in await db.all("EXPLAIN QUERY PLAN " + estimates._COMPARABLE, {"begin": "a|", "end": "a}"})
    ]
    assert not [step for step in plan if step.startswith("SCAN measure")], plan
    assert any("measure_by_signature" in step for step in plan)


async def test_a_succeeded_job_is_measured_over_all_its_attempts_without_the_wait_between(
    store: JobStore, clock: FakeClock, db: Database
) -> None:
    job = await store.submit(new_job(epochs=10, estimate_s=150.0))
    await claim(store, 1)
    clock.advance(60)
    await store.attempts.lost(job.id, 1)
    clock.advance(5000)
    await claim(store, 1)
    clock.advance(100)
    await store.attempts.ingest(job.id, 2, [started(1), epoch_ended(2, 1), finished(3)], 1)

    (row,) = await db.all("SELECT * FROM measure")
    assert (row["job_id"], row["seconds"], row["estimate_s"]) == (job.id, 160.0, 150.0)
    assert row["steps"] == planned_steps(job.spec, COUNTS)
    found = await Estimates(db).of(job.spec, COUNTS)
    assert found is not None
    assert found.seconds == pytest.approx(160)


async def test_a_job_ended_early_counts_for_what_it_trained_and_not_for_the_error(
    store: JobStore, clock: FakeClock, db: Database
) -> None:
    job = await store.submit(new_job(epochs=3, estimate_s=600.0))
    await claim(store, 1)
    clock.advance(100)
    await store.attempts.ingest(job.id, 1, [started(1), epoch_ended(2, 1)], 1)
    await store.request_stop(job.id, by=1, intent=StopIntent.KEEP_BEST)
    await store.attempts.ingest(job.id, 1, [stopped(3)], 2)
    await claim(store, 1)
    clock.advance(20)
    await store.attempts.ingest(job.id, 2, [finished(4)], 3)

    (row,) = await db.all("SELECT * FROM measure")
    # 10 of the 30 steps that `started` announces.
    assert (row["steps"], row["seconds"], row["estimate_s"]) == (planned_steps(job.spec, COUNTS) // 3, 120.0, None)


async def test_a_job_that_never_trained_is_not_measured(store: JobStore, clock: FakeClock, db: Database) -> None:
    job = await store.submit(new_job())
    await claim(store, 1)
    clock.advance(9)
    await store.attempts.ingest(job.id, 1, [finished(1)], 1)

    assert await db.all("SELECT * FROM measure") == []
