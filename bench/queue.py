"""Measures what the queue costs, by the number of jobs: claims, events, positions, boards.

    python -m bench.queue                  # 10, 1,000 and 100,000 ended jobs with 100 queued; then up to 10,000 queued
    python -m bench.queue --folder /data   # on another disk: a commit waits for it

Each size has its own database; they take turns round by round, so that a busy machine slows all of them alike.
Medians in milliseconds; in brackets, the ratio to the first size. Commits are durable (synchronous=FULL).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from bot.config import LimitSettings
from bot.db import Database, open_db
from bot.outbox import Outbox
from bot.queue import JobStore, NewJob, Slot
from bot.queue.planning.estimates import Estimates
from bot.queue.planning.forecast import Forecaster
from bot.ui.job_card import job_choice
from bot.ui.layout import MessageContent
from bot.ui.queue_pages import MAX_LISTED, BoardSnapshot, queue_board
from trainer.protocol.events import BandLoss, EpochEnded, Event, Finished, StepDone, ValidationLoss
from trainer.protocol.spec import make_spec

_USERS = 50
_GUILD, _CHANNEL = 10, 100
_SPEC = make_spec({"name": "fox", "dataset": "/nowhere"})
_COUNTS = '{"images":90,"kept":90,"dropped":0,"refused":0,"train":70,"validation":10,"test":10,"captioned":90}'

#: Each job has its own settings, so that nothing is parsed once for all.
_OWN_SPEC = "json_set(:spec, '$.training.seed', n)"
_ENDED = f"""
WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < :jobs)
INSERT INTO job (id, interaction_id, guild_id, channel_id, owner_id, dataset_id, name, spec, state, turn, attempt,
    claim_number, created_at, started_at, ended_at)
SELECT n, n, :guild, :channel, n % :people, 1, 'fox', {_OWN_SPEC}, 'succeeded', n / :people, 1, n, n, n, n + 60
FROM number
"""
_WAITING = f"""
WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < :jobs)
INSERT INTO job (interaction_id, guild_id, channel_id, owner_id, dataset_id, name, spec, state, turn, created_at)
SELECT 10000000 + n, :guild, :channel, n % :people, 1, 'fox', {_OWN_SPEC}, 'queued', 1000000 + n / :people, n
FROM number
"""
_STARTS = """
INSERT INTO attempt (job_id, attempt, guild_id, owner_id, gpus, slots, started_at, ended_at, outcome)
SELECT id, 1, guild_id, owner_id, 1, 'GPU 0', started_at, ended_at, state FROM job WHERE attempt = 1
"""
_MEASURES = """
INSERT INTO measure (job_id, signature, steps, seconds, ended_at) SELECT id, '?', 100, 60.0, ended_at FROM job
WHERE attempt = 1
"""


@dataclass
class BenchDatabase:
    """A database of one size, and the times measured on it."""

    ended: int
    waiting: int
    db: Database
    store: JobStore
    forecaster: Forecaster
    interactions: count[int] = field(default_factory=lambda: count(50_000_000))
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.ended:,} ended" + (f", {self.waiting:,} waiting" if self.waiting > 100 else "")

    async def timed(self, what: str, work: Callable[[], Awaitable[object]]) -> object:
        start = time.perf_counter()
        result = await work()
        self.seconds.setdefault(what, []).append(time.perf_counter() - start)
        return result

    def milliseconds(self, what: str) -> float:
        return 1000 * statistics.median(self.seconds[what])


@asynccontextmanager
async def bench_database(folder: Path, ended: int, waiting: int) -> AsyncIterator[BenchDatabase]:
    """Open a new database with `ended` and `waiting` jobs."""
    async with open_db(folder / f"{ended}-{waiting}.db") as db:
        await fill(db, ended, waiting, guild_id=_GUILD, channel_id=_CHANNEL)
        store = JobStore(db, Outbox(db), data_dir=folder, limits=LimitSettings(max_jobs_per_user=100))
        await store.slots.set([Slot(id="gpu:0", device="0", name="GPU 0")])
        forecaster = Forecaster(db, store.control, Estimates(db))
        yield BenchDatabase(ended, waiting, db, store, forecaster)


async def fill(db: Database, ended: int, waiting: int, *, guild_id: int, channel_id: int) -> None:
    """Put a dataset, and `ended` and `waiting` jobs of 50 users into a new database."""
    values = {"guild": guild_id, "channel": channel_id, "people": _USERS, "spec": _SPEC.model_dump_json()}
    async with db.transaction() as connection:
        await connection.execute_fetchall(
            """INSERT INTO dataset (id, guild_id, owner_id, name, sha256, digest, counts, summary, created_at)
               VALUES (1, ?, 1, 'foxes', 'a', 'd', ?, '', 0)""",
            (guild_id, _COUNTS),
        )
        await connection.execute_fetchall(_ENDED, {**values, "jobs": ended})
        await connection.execute_fetchall(_WAITING, {**values, "jobs": waiting})
        await connection.execute_fetchall(_STARTS)
        await connection.execute_fetchall(_MEASURES)
        await connection.execute_fetchall("ANALYZE")


async def one_round(bench: BenchDatabase) -> None:
    """Time one job from its submission to its end, and the pages that users look at meanwhile."""
    number = next(bench.interactions)
    new = NewJob(
        interaction_id=number,
        guild_id=_GUILD,
        channel_id=_CHANNEL,
        # A new owner each time: the jobs of one owner are limited.
        owner_id=number,
        dataset_id=1,
        spec=_SPEC,
        fingerprint=str(number),
    )
    await bench.timed("submit", lambda: bench.store.submit(new))
    job = await bench.store.attempts.claim()
    assert job is not None
    steps = [_step(seq) for seq in range(1, 21)]
    await bench.timed("ingest 20 step events", lambda: bench.store.attempts.ingest(job.id, job.attempt, steps, 20))
    await bench.timed("ingest an epoch", lambda: bench.store.attempts.ingest(job.id, job.attempt, [_epoch(21, 1)], 21))
    await bench.timed("running jobs", bench.store.attempts.active)
    last = (await bench.store.queued_ids())[-1]
    await bench.timed("position of the last", lambda: bench.store.queue_position(last))
    await bench.timed("expected starts", bench.forecaster.all)
    await bench.timed("the page of /queue", lambda: queue_page(bench))
    await bench.timed("choices of /job status", lambda: choices(bench, ""))
    await bench.timed("choices for a text that nothing has", lambda: choices(bench, "cat"))
    await bench.timed("one job", lambda: bench.store.get(job.id))
    await bench.timed("newest 15 jobs", lambda: bench.store.recent(_GUILD, 15))
    await bench.timed("end of a job", lambda: bench.store.attempts.ingest(job.id, job.attempt, [_finished(22)], 22))
    again = await bench.timed("claim", bench.store.attempts.claim)
    assert again is not None
    await bench.store.attempts.ingest(again.id, again.attempt, [_finished(1)], 1)  # type: ignore[attr-defined]


async def queue_page(bench: BenchDatabase) -> MessageContent:
    """Make the answer to `/queue`."""
    shown = await bench.store.living(_GUILD, most=MAX_LISTED)
    snapshot = BoardSnapshot(
        now=datetime.now(UTC),
        jobs=shown,
        counts=await bench.store.count_living(_GUILD),
        positions=await bench.store.queue_positions([job.id for job in shown]),
        forecasts=await bench.forecaster.all(),
        slots=await bench.store.slots.all(with_unused=True),
        queue_pause=await bench.store.control.read(),
    )
    return queue_board(snapshot)


async def choices(bench: BenchDatabase, typed: str) -> list[str]:
    """Make the choices of a command that takes any job."""
    return [job_choice(job) for job in await bench.store.search(_GUILD, typed)]


def _step(seq: int) -> Event:
    return StepDone(
        seq=seq, time=time.time(), step=seq, epoch=1, loss=0.2, learning_rate=1e-4, steps_per_s=1.0, eta_s=60.0,
        peak_memory_bytes=0,
    )  # fmt: skip


def _epoch(seq: int, epoch: int) -> Event:
    band = BandLoss(first_timestep=0, last_timestep=999, loss=0.1, ratio=0.9)
    loss = ValidationLoss(loss=0.1, ratio=0.9, bands=(band,) * 4)
    return EpochEnded(
        seq=seq, time=0.0, epoch=epoch, step=epoch * 10, train_loss=0.2, validation=loss, learning_rate=1e-4,
        seconds=1.0, is_best=True, best_epoch=epoch, chart="c.png",
    )  # fmt: skip


def _finished(seq: int) -> Event:
    return Finished(
        seq=seq, time=0.0, epochs=3, best_epoch=3, stopped_early=False, base_loss=0.2, best_loss=0.1, best_ratio=0.5,
        seconds=1.0, comparison="c.png", comparison_alt="",
    )  # fmt: skip


async def long_job(bench: BenchDatabase, epochs: int) -> tuple[float, float]:
    """Return the milliseconds to ingest an epoch: medians of the first and last ten of one long job."""
    number = next(bench.interactions)
    await bench.store.submit(
        NewJob(interaction_id=number, guild_id=_GUILD, channel_id=_CHANNEL, owner_id=1, dataset_id=1, spec=_SPEC)
    )
    job = await bench.store.attempts.claim()
    assert job is not None
    took = []
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        await bench.store.attempts.ingest(job.id, job.attempt, [_epoch(epoch, epoch)], epoch)
        took.append(1000 * (time.perf_counter() - start))
    await bench.store.attempts.ingest(job.id, job.attempt, [_finished(epochs + 1)], epochs + 1)
    return statistics.median(took[:10]), statistics.median(took[-10:])


async def measure(folder: Path, rounds: int) -> None:
    """Create the databases, measure round by round, and print the table."""
    async with AsyncExitStack() as stack:
        sizes = [(10, 100), (1000, 100), (100_000, 100), (1000, 2000), (1000, 10_000)]
        databases = [await stack.enter_async_context(bench_database(folder, *size)) for size in sizes]
        for _ in range(rounds):
            for each in databases:
                await one_round(each)
        out = sys.stdout.write
        labels = " | ".join(each.label for each in databases)
        out(f"| ms (times the first) | {labels} |\n|---|{'--:|' * len(databases)}\n")
        for what in databases[0].seconds:
            first = databases[0].milliseconds(what)
            cells = [f"{each.milliseconds(what):.2f} ({each.milliseconds(what) / first:.2g})" for each in databases]
            out(f"| {what} | {' | '.join(cells)} |\n")
        early, late = await long_job(databases[0], 300)
        out(f"\nOne epoch of a job of 300: {early:.2f} ms at the beginning, {late:.2f} ms at the end.\n")
        per_s = 20 / (databases[0].milliseconds("ingest 20 step events") / 1000)
        out(f"Claims a second: {1000 / databases[0].milliseconds('claim'):.0f}; step events a second: {per_s:.0f}.\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the queue costs.")
    parser.add_argument("--folder", type=Path, default=None, help="folder of the databases (default: a temporary one)")
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        asyncio.run(measure(Path(folder), options.rounds))


if __name__ == "__main__":
    main()
