"""When the jobs that wait will start: the line played through, by the rules by which it is claimed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from zoneinfo import ZoneInfo

from bot.config import AtClose
from bot.db import Database, Row
from bot.queue.domain.admission import Gate
from bot.queue.domain.job import ACTIVE, State
from bot.queue.domain.rules import MAX_RETRY_PAUSE_S
from bot.queue.planning.estimates import Estimates
from bot.queue.planning.windows import Windows, gate_at, next_closing, next_opening
from bot.queue.store.job_sql import FREE_SLOTS, ORDER, listed
from bot.queue.store.queue_control import MainSwitch
from trainer.protocol.events import StepDone, parse_event
from trainer.protocol.report import Counts
from trainer.protocol.spec import Spec

#: Jobs at the front of the line for which a start is worked out; who stands behind them waits for days anyway.
MAX_LINE = 200
ALWAYS_OPEN = Windows(windows=(), zone=ZoneInfo("UTC"))

_NEEDED = """estimate_s, until_epoch, spec, (SELECT counts FROM dataset WHERE dataset.id = dataset_id) AS counts,
    (SELECT SUM(ended_at - started_at) FROM attempt WHERE attempt.job_id = job.id) AS spent_s"""

#: The same rows in the same order as a claim.
_LINE = f"""
SELECT id, owner_id, gpus, run_after, attempt, max_running, {_NEEDED}
FROM job INDEXED BY job_line WHERE state = 'queued' ORDER BY {ORDER} LIMIT {MAX_LINE}
"""

_ACTIVE = f"""
SELECT id, owner_id, gpus, state, step, {_NEEDED},
    COALESCE((SELECT started_at FROM attempt WHERE attempt.job_id = job.id AND attempt.attempt = job.attempt),
        started_at) AS claimed_at
FROM job WHERE state IN {listed(ACTIVE)} AND gpus > 0
"""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A job in line."""

    job_id: int
    owner_id: int
    #: 0: a study, which starts at once.
    gpus: int
    #: What it takes once it runs; None: nobody knows.
    seconds: float | None
    #: It does not start before this, seconds since the epoch.
    run_after: float = 0.0
    #: How many of its owner's jobs may run at once; None: any number.
    max_running: int | None = None


@dataclass(frozen=True, kw_only=True)
class Held:
    """Slots that a job holds."""

    owner_id: int
    gpus: int
    #: Seconds since the epoch; `inf`: nobody knows.
    until: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What can be said about a job's future; None where it hangs on something that nobody knows."""

    job_id: int
    #: Seconds since the epoch; None for a job that runs already, too.
    starts_at: float | None
    ends_at: float | None
    #: What it takes from its start on, or from now on where it runs.
    seconds: float | None


def start_times(
    line: Sequence[Waiting], held: Iterable[Held], *, free: int, now: float, windows: Windows = ALWAYS_OPEN
) -> dict[int, float | None]:
    """When each waiting job starts, in that order, if all take as long as they are believed to and nobody else comes.

    A job whose length is unknown may hold its slots for ever, and so may those that run and say nothing: whoever can
    start only after them gets None, as does everybody behind.
    """
    play = _Play(list(line), list(held), free=free, now=now, windows=windows)
    play.run()
    return {**play.starts, **{job.job_id: None for job in play.line}}


class _Play:
    """The line, the slots and a clock that is put forward to whatever happens next."""

    def __init__(self, line: list[Waiting], held: list[Held], *, free: int, now: float, windows: Windows) -> None:
        self.line, self.held, self.free, self.now, self.windows = line, held, free, now, windows
        self.starts: dict[int, float] = {}

    def run(self) -> None:
        while self.line:
            self._release()
            if self._is_open() and (job := self._next()) is not None:
                self._start(job)
                continue
            later = min(self._moments(), default=inf)
            if not isfinite(later):
                return
            self.now = later

    def _is_open(self) -> bool:
        return gate_at(self.windows, self.now) is Gate.OPEN

    def _release(self) -> None:
        self.free += sum(each.gpus for each in self.held if each.until <= self.now)
        self.held = [each for each in self.held if each.until > self.now]

    def _next(self) -> Waiting | None:
        """As `Runs.claim`: the first study that may start, else the first job that may, if there is room for it."""
        ready = [job for job in self.line if self._is_ready(job)]
        study = next((job for job in ready if job.gpus == 0), None)
        if study is not None or not ready:
            return study
        return ready[0] if ready[0].gpus <= self.free else None

    def _is_ready(self, job: Waiting) -> bool:
        if job.run_after > self.now:
            return False
        return job.max_running is None or job.max_running > sum(each.owner_id == job.owner_id for each in self.held)

    def _start(self, job: Waiting) -> None:
        self.starts[job.job_id] = self.now
        self.line.remove(job)
        if job.gpus:
            until = inf if job.seconds is None else after_work(self.windows, self.now, job.seconds)
            self.free -= job.gpus
            self.held.append(Held(owner_id=job.owner_id, gpus=job.gpus, until=until))

    def _moments(self) -> Iterable[float]:
        """What comes next that may let a job start."""
        if not self._is_open():
            opening = next_opening(self.windows, self.now)
            yield inf if opening is None else opening
            return
        yield from (each.until for each in self.held)
        yield from (job.run_after for job in self.line if job.run_after > self.now)


def after_work(windows: Windows, start: float, seconds: float) -> float:
    """When so many seconds of training are done: where windows close on what runs, it goes on in the next one."""
    if windows.at_close is AtClose.FINISH or not windows.windows:
        return start + seconds
    moment, left = start, seconds
    while True:
        if gate_at(windows, moment) is not Gate.OPEN:
            opening = next_opening(windows, moment)
            if opening is None:
                return inf
            moment = opening
        closing = next_closing(windows, moment)
        if closing is None or moment + left <= closing:
            return moment + left
        moment, left = closing, left - (closing - moment)


class Forecaster:
    """Plays the line of the database through; a few indexed queries, whatever the number of jobs that ended."""

    def __init__(
        self,
        db: Database,
        switch: MainSwitch,
        estimates: Estimates,
        *,
        now: Callable[[], float] = time.time,
        windows: Windows = ALWAYS_OPEN,
        keep_s: float = 0.0,
    ) -> None:
        self._db = db
        self._switch = switch
        self._estimates = estimates
        self._now = now
        #: When trainings may start.
        self.windows = windows
        #: One play of the line is good for so long: a move redraws many cards, and each asks for its own job.
        self._keep_s = keep_s
        self._played: tuple[float, dict[int, Forecast]] = (-inf, {})

    async def all(self) -> dict[int, Forecast]:
        """Every job that holds a GPU, and the first of the line; nobody starts while the queue is switched off."""
        now = self._now()
        active, waiting = await self._db.all(_ACTIVE), await self._db.all(_LINE)
        left = {row["id"]: await self._left_s(row, now) for row in active}
        line = [await self._waiting(row, now) for row in waiting]
        held = [_held(row, left[row["id"]], now, self.windows) for row in active]
        free = await self._db.one(FREE_SLOTS)
        assert free is not None
        is_halted = await self._switch.read() is not None
        coming = {job.job_id: job for job in line}
        starts: dict[int, float | None] = dict.fromkeys(coming)
        if not is_halted:
            starts = start_times(line, held, free=free["free"], now=now, windows=self.windows)
        running = {row["id"]: _running(row["id"], left[row["id"]], now, self.windows) for row in active}
        return running | {job_id: self._coming(coming[job_id], at) for job_id, at in starts.items()}

    async def of(self, job_id: int) -> Forecast | None:
        """One job's; None if it neither waits near the front of the line nor holds a GPU."""
        played_at, known = self._played
        if time.monotonic() >= played_at + self._keep_s or job_id not in known:
            known = await self.all()
            self._played = (time.monotonic(), known)
        return known.get(job_id)

    def _coming(self, job: Waiting, starts_at: float | None) -> Forecast:
        is_known = starts_at is not None and job.seconds is not None
        ends_at = after_work(self.windows, starts_at or 0.0, job.seconds or 0.0) if is_known else None
        return Forecast(job_id=job.job_id, starts_at=starts_at, ends_at=ends_at, seconds=job.seconds)

    async def _waiting(self, row: Row, now: float) -> Waiting:
        # As `sql.READY`: a pause that is longer than any is one by a clock that was set back since.
        is_over = row["attempt"] > 0 and row["run_after"] > now + MAX_RETRY_PAUSE_S
        return Waiting(
            job_id=row["id"],
            owner_id=row["owner_id"],
            gpus=row["gpus"],
            seconds=await self._needed_s(row, row["spent_s"] or 0.0) if row["gpus"] else None,
            run_after=0.0 if is_over else row["run_after"],
            max_running=row["max_running"],
        )

    async def _left_s(self, row: Row, now: float) -> float | None:
        """What a job that holds GPUs needs yet: as its trainer says, else as was believed when it was queued."""
        if row["state"] == State.STOPPING:
            return 0.0
        step = None if row["step"] is None else parse_event(row["step"])
        # The newest step is kept over starts: one of an earlier start says nothing of this one.
        if isinstance(step, StepDone) and step.time >= row["claimed_at"] and step.eta_s is not None:
            return max(0.0, step.time + step.eta_s - now)
        return await self._needed_s(row, (row["spent_s"] or 0.0) + max(0.0, now - row["claimed_at"]))

    async def _needed_s(self, row: Row, spent_s: float) -> float | None:
        seconds: float | None = row["estimate_s"]
        if seconds is None:
            spec = Spec.model_validate_json(row["spec"])
            found = await self._estimates.of(spec, Counts.model_validate_json(row["counts"]), row["gpus"])
            if found is None:
                return None
            # A study's child may be let run for a part of its epochs only.
            seconds = found.seconds * min(1.0, (row["until_epoch"] or inf) / spec.training.epochs)
        return max(0.0, seconds - spent_s)


def _held(row: Row, left_s: float | None, now: float, windows: Windows) -> Held:
    until = inf if left_s is None else after_work(windows, now, left_s)
    return Held(owner_id=row["owner_id"], gpus=row["gpus"], until=until)


def _running(job_id: int, left_s: float | None, now: float, windows: Windows) -> Forecast:
    ends_at = None if left_s is None else after_work(windows, now, left_s)
    return Forecast(job_id=job_id, starts_at=None, ends_at=ends_at, seconds=left_s)
