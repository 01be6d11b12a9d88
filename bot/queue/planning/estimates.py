"""Estimates how long a job takes: the median pace of comparable past runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bot.db import Database, Row
from bot.queue.store.measures import (
    SEPARATOR,
    planned_steps,
    sampling_signature_of,
    sampling_steps,
    signature_of,
)
from trainer.protocol.report import Counts
from trainer.protocol.sampling import SamplingSpec
from trainer.protocol.spec import Spec

#: Newest runs that an estimate uses: enough for a median, few enough to follow a new GPU or driver.
MAX_RUNS = 20
#: Past estimates needed to say how wrong they usually are.
_MIN_ERRORS = 3
#: Leading parts of a signature that must be equal, from the most to the least comparable: all, any batch size, any
#: resolution too. Runs of another base, task, method or number of GPUs are not comparable.
_LEVELS = (6, 5, 4)

_COMPARABLE = f"""
SELECT * FROM measure WHERE signature >= :begin AND signature < :end ORDER BY ended_at DESC LIMIT {MAX_RUNS}
"""


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """What one finished job took."""

    #: Planned images of the whole training, repeats counted.
    views: int
    #: Of all its attempts together.
    seconds: float
    #: The estimate when it was queued; None if there was none, or if it was ended early.
    estimate_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The expected duration of a job once it runs."""

    seconds: float
    #: Four of five comparable jobs took between these.
    low_s: float
    high_s: float
    #: The median error of past estimates: 0.15 is "usually ±15 %"; None if there are too few.
    usual_error: float | None
    #: Past runs behind it.
    runs: int


def estimate_from(views: int, runs: Sequence[PastRun]) -> Estimate | None:
    """Estimate a training of `views` images from comparable runs; None if there are none."""
    if not runs:
        return None
    paces = [run.seconds / run.views for run in runs]
    tenths = statistics.quantiles(paces, n=10, method="inclusive") if len(paces) > 1 else paces
    seconds = statistics.median(paces) * views
    errors = [abs(run.seconds / run.estimate_s - 1) for run in runs if run.estimate_s]
    return Estimate(
        seconds=seconds,
        low_s=min(seconds, tenths[0] * views),
        high_s=max(seconds, tenths[-1] * views),
        usual_error=statistics.median(errors) if len(errors) >= _MIN_ERRORS else None,
        runs=len(runs),
    )


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What an estimate needs of a job."""

    signature: str
    #: Planned images of the whole training, repeats counted.
    views: int
    epochs: int


def workload_of(spec: Spec, counts: Counts, gpus: int) -> Workload:
    """Return the workload of a job on a dataset with these counts."""
    views = planned_steps(spec, counts) * spec.training.batch_size
    return Workload(signature=signature_of(spec, gpus), views=views, epochs=spec.training.epochs)


class Estimates:
    """Estimates from the past runs in the database."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def of(self, spec: Spec, counts: Counts, gpus: int = 1) -> Estimate | None:
        """Estimate a job from the newest of the most comparable runs; None if there are none."""
        workload = workload_of(spec, counts, gpus)
        return estimate_from(workload.views, await self._comparable(workload.signature))

    async def of_sampling(self, spec: SamplingSpec, gpus: int = 1) -> Estimate | None:
        """As `of`, for a sampling."""
        return estimate_from(sampling_steps(spec), await self._comparable(sampling_signature_of(spec, gpus)))

    async def pace(self, signature: str) -> float | None:
        """Return the seconds that a planned image of such a job takes; None if there are no comparable runs."""
        runs = await self._comparable(signature)
        return statistics.median(run.seconds / run.views for run in runs) if runs else None

    async def _comparable(self, signature: str) -> list[PastRun]:
        for level in _LEVELS:
            begin = SEPARATOR.join(signature.split(SEPARATOR)[:level]) + SEPARATOR
            # "}" comes right after "|".
            rows = await self._db.all(_COMPARABLE, {"begin": begin, "end": begin.removesuffix(SEPARATOR) + "}"})
            if rows:
                return [_past_run(row) for row in rows]
        return []


def _past_run(row: Row) -> PastRun:
    batch_size = int(row["signature"].split(SEPARATOR)[-2])
    return PastRun(views=row["steps"] * batch_size, seconds=row["seconds"], estimate_s=row["estimate_s"])
