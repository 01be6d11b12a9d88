"""Forecasts when waiting jobs start: a simulation of the queue, by the rules by which jobs are claimed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heappop, heappush
from math import inf, isfinite

from bot.clock import SYSTEM_CLOCK, Clock
from bot.db import Database, Row
from bot.queue.domain.job import ACTIVE, State
from bot.queue.domain.rules import MAX_RETRY_PAUSE_S
from bot.queue.planning.estimates import Estimates, Workload, workload_of
from bot.queue.planning.windows import ALWAYS_OPEN, OpenHours, Windows
from bot.queue.store.job_sql import FREE_SLOTS, ORDER, listed
from bot.queue.store.queue_control import QueueControl
from trainer.protocol.events import StepDone, parse_event
from trainer.protocol.report import Counts
from trainer.protocol.run_options import JobKind
from trainer.protocol.spec import Spec

#: Jobs at the front of the queue that get a forecast; those behind them wait for days anyway.
MAX_FORECAST = 200

#: Of a sampling, where none like it was drawn before, seconds.
_ASSUMED_SAMPLING_S = 120.0

_FACTS = """kind, estimate_s, until_epoch, spec, (SELECT counts FROM dataset WHERE dataset.id = dataset_id) AS counts,
    (SELECT SUM(ended_at - started_at) FROM attempt WHERE attempt.job_id = job.id) AS spent_s"""

#: The same rows in the same order as a claim.
_WAITING = f"""
SELECT id, owner_id, gpus, run_after, attempt, max_running, {_FACTS}
FROM job INDEXED BY job_queue WHERE state = 'queued' ORDER BY {ORDER} LIMIT {MAX_FORECAST}
"""

_IS_AT_FRONT = f"""
SELECT 1 FROM (SELECT id FROM job INDEXED BY job_queue WHERE state = 'queued' ORDER BY {ORDER} LIMIT {MAX_FORECAST})
WHERE id = ?
"""

_RUNNING = f"""
SELECT id, owner_id, gpus, state, step, {_FACTS},
    (SELECT COUNT(*) FROM slot WHERE slot.job_id = job.id) AS held,
    COALESCE((SELECT started_at FROM attempt WHERE attempt.job_id = job.id AND attempt.attempt = job.attempt),
        started_at) AS claimed_at
FROM job WHERE state IN {listed(ACTIVE)} AND gpus > 0
"""


@dataclass(frozen=True, kw_only=True)
class WaitingJob:
    """What the simulation needs of a waiting job."""

    job_id: int
    kind: JobKind = JobKind.TRAIN
    owner_id: int
    #: 0 for a study, which starts at once.
    gpus: int
    #: Expected duration once it runs; None if unknown.
    seconds: float | None
    #: It does not start before this, seconds since the epoch.
    run_after: float = 0.0
    #: How many jobs of its owner and kind may run at once; None: any number.
    max_running: int | None = None


@dataclass(frozen=True, kw_only=True)
class Occupied:
    """Slots that a running job holds."""

    owner_id: int
    kind: JobKind = JobKind.TRAIN
    #: 0: a sampling beside a training.
    gpus: int
    #: Seconds since the epoch; `inf` if unknown.
    until: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A job's expected future; None where it depends on something unknown. Moments are seconds since the epoch."""

    job_id: int
    #: None also for a job that runs already.
    starts_at: float | None
    ends_at: float | None
    #: Duration from its start, or from now if it runs.
    seconds: float | None


def start_times(
    line: Sequence[WaitingJob], occupied: Iterable[Occupied], *, free: int, now: float, hours: OpenHours
) -> dict[int, float | None]:
    """Return when each waiting job starts, in order of start, if estimates hold and no other job is queued.

    A job of unknown duration may hold its slots forever: jobs that can start only after it get None, and so does every
    job behind them.
    """
    ends = [(each.until, (each.owner_id, each.kind), each.gpus) for each in occupied]
    heapify(ends)
    running = Counter(who for _, who, _ in ends)
    waiting = {job.job_id: job for job in line}
    studies = {job_id: job for job_id, job in waiting.items() if job.gpus == 0}
    starts: dict[int, float | None] = {}
    while waiting and isfinite(now):
        while ends and ends[0][0] <= now:
            _, who, gpus = heappop(ends)
            free += gpus
            running[who] -= 1
        is_open, until = hours.span(now)
        if not is_open:
            now = until
            continue
        job = _first_ready(studies, running, now)
        if job is None and free > 0:
            job = _first_ready(waiting, running, now)
        if job is None or job.gpus > free:
            delayed = [each.run_after for each in waiting.values() if each.run_after > now]
            now = min([*delayed, *(ends[0][:1] if ends else ())], default=inf)
            continue
        starts[job.job_id] = now
        del waiting[job.job_id]
        studies.pop(job.job_id, None)
        if job.gpus:
            free -= job.gpus
            running[job.owner_id, job.kind] += 1
            ends_at = inf if job.seconds is None else hours.finish(now, job.seconds)
            heappush(ends, (ends_at, (job.owner_id, job.kind), job.gpus))
    return starts | dict.fromkeys(waiting)


def _first_ready(
    line: Mapping[int, WaitingJob], running: Counter[tuple[int, JobKind]], now: float
) -> WaitingJob | None:
    """As `AttemptStore.claim`: studies never wait for a slot, and no job overtakes one that needs more of them."""
    for job in line.values():
        runs = running[job.owner_id, job.kind]
        if job.run_after <= now and (job.max_running is None or runs < job.max_running):
            return job
    return None


class Forecaster:
    """Simulates the queue in the database: a few indexed queries, however many jobs have ended."""

    def __init__(
        self,
        db: Database,
        control: QueueControl,
        estimates: Estimates,
        *,
        windows: Windows = ALWAYS_OPEN,
        cache_s: float = 0.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._db = db
        self._control = control
        self._estimates = estimates
        self._windows = windows
        #: One transition redraws many cards, and each asks for its own job: a simulation is reused for so long.
        self._cache_s = cache_s
        self._cached: tuple[float, dict[int, Forecast]] = (-inf, {})
        self._clock = clock

    async def all(self) -> dict[int, Forecast]:
        """Forecast every job that holds a GPU, and the front of the queue; nothing starts while it is paused.

        As of a moment ago, if it was asked for then.
        """
        simulated_at, known = self._cached
        if self._clock.monotonic() >= simulated_at + self._cache_s:
            known = await self._simulate()
            self._cached = (self._clock.monotonic(), known)
        return known

    async def of(self, job_id: int) -> Forecast | None:
        """Forecast one job; None if it neither holds a GPU nor waits near the front."""
        known = await self.all()
        if job_id not in known and await self._db.one(_IS_AT_FRONT, (job_id,)) is not None:
            # It was queued, or came to the front, since then.
            self._cached = (-inf, {})
            known = await self.all()
        return known.get(job_id)

    async def _simulate(self) -> dict[int, Forecast]:
        now = self._clock.time()
        hours = OpenHours(self._windows, now)
        active, waiting = await self._db.all(_RUNNING), await self._db.all(_WAITING)
        paces: dict[str, float | None] = {}
        left = {row["id"]: await self._left_s(row, now, paces) for row in active}
        ends = {job_id: None if left_s is None else hours.finish(now, left_s) for job_id, left_s in left.items()}
        line: dict[int, WaitingJob] = {}
        for row in waiting:
            line[row["id"]] = await self._waiting_job(row, now, paces)
            if len(line) % 10 == 0:
                # To parse the settings of all of them, once, takes 25 ms; others have their turn meanwhile.
                await asyncio.sleep(0)
        starts: dict[int, float | None] = dict.fromkeys(line)
        if await self._control.read() is None:
            occupied = [
                Occupied(
                    owner_id=row["owner_id"],
                    kind=JobKind(row["kind"]),
                    gpus=row["held"],
                    until=_or_inf(ends[row["id"]]),
                )
                for row in active
            ]
            free = await self._db.one(FREE_SLOTS)
            assert free is not None
            starts = start_times(list(line.values()), occupied, free=free["free"], now=now, hours=hours)
        running = {
            job_id: Forecast(job_id=job_id, starts_at=None, ends_at=ends[job_id], seconds=left[job_id])
            for job_id in left
        }
        return running | {job_id: _forecast(line[job_id], at, hours) for job_id, at in starts.items()}

    async def _waiting_job(self, row: Row, now: float, paces: dict[str, float | None]) -> WaitingJob:
        # As `job_sql.READY`: a back-off longer than the longest one was set before the clock went back.
        is_over = row["attempt"] > 0 and row["run_after"] > now + MAX_RETRY_PAUSE_S
        return WaitingJob(
            job_id=row["id"],
            kind=JobKind(row["kind"]),
            owner_id=row["owner_id"],
            gpus=row["gpus"],
            seconds=await self._needed_s(row, row["spent_s"] or 0.0, paces) if row["gpus"] else None,
            run_after=0.0 if is_over else row["run_after"],
            max_running=row["max_running"],
        )

    async def _left_s(self, row: Row, now: float, paces: dict[str, float | None]) -> float | None:
        """What a running job still needs: its trainer's own estimate, else ours from when it was queued."""
        if row["state"] == State.STOPPING:
            return 0.0
        step = None if row["step"] is None else parse_event(row["step"])
        # The newest step is kept over attempts: one of an earlier attempt does not count.
        if isinstance(step, StepDone) and step.time >= row["claimed_at"] and step.eta_s is not None:
            return max(0.0, step.time + step.eta_s - now)
        return await self._needed_s(row, (row["spent_s"] or 0.0) + max(0.0, now - row["claimed_at"]), paces)

    async def _needed_s(self, row: Row, spent_s: float, paces: dict[str, float | None]) -> float | None:
        """What a job needs; `paces` has those that were read in this simulation, by signature."""
        seconds: float | None = row["estimate_s"]
        if seconds is None and row["kind"] == JobKind.SAMPLE:
            seconds = _ASSUMED_SAMPLING_S
        if seconds is None:
            workload = _parse_workload(row["spec"], row["counts"], row["gpus"])
            if workload.signature not in paces:
                paces[workload.signature] = await self._estimates.pace(workload.signature)
            pace = paces[workload.signature]
            if pace is None:
                return None
            # A child of a study may run only a part of its epochs.
            seconds = pace * workload.views * min(1.0, (row["until_epoch"] or inf) / workload.epochs)
        return max(0.0, seconds - spent_s)


#: Each simulation asks again for the same jobs, and parsing their settings takes longer than all the rest.
@lru_cache(maxsize=4 * MAX_FORECAST)
def _parse_workload(spec: str, counts: str, gpus: int) -> Workload:
    return workload_of(Spec.model_validate_json(spec), Counts.model_validate_json(counts), gpus)


def _forecast(job: WaitingJob, starts_at: float | None, hours: OpenHours) -> Forecast:
    is_known = starts_at is not None and job.seconds is not None
    ends_at = hours.finish(starts_at or 0.0, job.seconds or 0.0) if is_known else None
    return Forecast(job_id=job.job_id, starts_at=starts_at, ends_at=ends_at, seconds=job.seconds)


def _or_inf(moment: float | None) -> float:
    return inf if moment is None else moment
