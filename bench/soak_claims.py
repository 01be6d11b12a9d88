"""Many processes claim jobs of one queue at the same time; each job must be claimed once."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
import time
from collections import Counter
from pathlib import Path

from bench.soak_checks import Finding
from bot.db import DATABASE_FILE, open_db
from bot.outbox import Outbox
from bot.queue import JobStore, Slot
from trainer.protocol.events import Finished
from trainer.protocol.spec import make_spec

PROCESSES, CLAIMS_EACH = 8, 1000
#: Image counts of a dataset, as the trainer writes them.
COUNTS = '{"images":90,"kept":90,"dropped":0,"refused":0,"train":70,"validation":10,"test":10,"captioned":90}'

_QUEUED = """
WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < :jobs)
INSERT INTO job (interaction_id, guild_id, channel_id, owner_id, dataset_id, name, spec, state, turn, created_at)
SELECT n, 10, 100, n % 50, 1, 'fox', :spec, 'queued', 1 + n / 50, n FROM number
"""


def claim_all(data_dir: Path) -> list[Finding]:
    """Queue the jobs, start all processes, and return the findings."""
    jobs = PROCESSES * CLAIMS_EACH
    asyncio.run(_queue(data_dir, jobs))
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        # chunksize 1: one task per process.
        results = pool.map(_claim, [data_dir] * PROCESSES, chunksize=1)
    seconds = max(end for _, end, _ in results) - min(begin for begin, _, _ in results)
    claimed = Counter(job_id for _, _, ids in results for job_id in ids)
    db = sqlite3.connect(data_dir / DATABASE_FILE)
    ended = db.execute("SELECT COUNT(*) FROM job WHERE state = 'succeeded' AND attempt = 1").fetchone()[0]
    db.close()
    return [
        Finding(what="queued jobs", figure=f"{jobs:,}"),
        Finding(what="claimed", figure=f"{len(claimed):,}", holds=len(claimed) == jobs),
        Finding(
            what="claimed twice", figure=str(claimed.total() - len(claimed)), holds=claimed.total() == len(claimed)
        ),
        Finding(what="ended after one start", figure=f"{ended:,}", holds=ended == jobs),
        Finding(what="claims of each process", figure=", ".join(str(len(ids)) for _, _, ids in results)),
        Finding(what="seconds", figure=f"{seconds:.1f} ({jobs / seconds:.0f} claims with their ends a second)"),
    ]


async def _queue(data_dir: Path, jobs: int) -> None:
    spec = make_spec({"name": "fox", "dataset": "/nowhere"}).model_dump_json()
    async with open_db(data_dir / DATABASE_FILE) as db:
        async with db.transaction() as connection:
            await connection.execute_fetchall(
                """INSERT INTO dataset (id, guild_id, owner_id, name, sha256, digest, counts, summary, created_at)
                   VALUES (1, 10, 1, 'foxes', 'a', 'd', ?, '', 0)""",
                (COUNTS,),
            )
            await connection.execute_fetchall(_QUEUED, {"jobs": jobs, "spec": spec})
        # One slot per process, so that none waits for a slot.
        slots = [Slot(id=f"gpu:{number}", device=str(number), name=f"GPU {number}") for number in range(PROCESSES)]
        await JobStore(db, Outbox(db), data_dir=data_dir).slots.set(slots)


def _claim(data_dir: Path) -> tuple[float, float, list[int]]:
    return asyncio.run(_claim_until_empty(data_dir))


async def _claim_until_empty(data_dir: Path) -> tuple[float, float, list[int]]:
    """Return start and end time, and the ids of the claimed jobs."""
    ids: list[int] = []
    async with open_db(data_dir / DATABASE_FILE) as db:
        attempts = JobStore(db, Outbox(db), data_dir=data_dir).attempts
        begin = time.time()
        while len(ids) < CLAIMS_EACH and (job := await attempts.claim()) is not None:
            ids.append(job.id)
            await attempts.ingest(job.id, job.attempt, [_finished(job.attempt)], 1)
        return begin, time.time(), ids


def _finished(attempt: int) -> Finished:
    return Finished(
        seq=1, time=0.0, attempt=attempt, epochs=3, best_epoch=3, stopped_early=False, base_loss=0.2, best_loss=0.1,
        best_ratio=0.5, seconds=1.0, comparison="c.png", comparison_alt="",
    )  # fmt: skip
