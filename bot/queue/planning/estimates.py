"""How long a job will take, from how long jobs like it took: measured, or not said at all."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from bot.db import Connection, Database, Row
from bot.queue.domain.job import State
from bot.queue.store.ingest import first
from trainer.protocol.events import EpochEnded, Started, parse_event
from trainer.protocol.report import Counts
from trainer.protocol.settings import SplitKind
from trainer.protocol.spec import Spec

#: Newest runs that an estimate looks at: enough for a median, few enough to follow a new GPU or driver.
MAX_RUNS = 20
#: Runs of different lengths that it takes to tell the start-up cost from the pace.
_MIN_FITTED = 5
#: Past estimates that it takes to say how wrong they usually are.
_MIN_ERRORS = 3

_END = "|"
#: Leading parts of a signature that have to be the same, from the most to the least alike: all; any batch size; any
#: resolution too. Runs of another base, task, method or number of GPUs say nothing.
_LEVELS = (6, 5, 4)

#: The newest runs of all signatures that begin alike. There may be 100,000 runs, but only a few signatures: it goes
#: from one to the next by the index, and takes the newest of each.
_ALIKE = f"""
WITH RECURSIVE kind (signature) AS (
    SELECT MIN(signature) FROM measure WHERE signature >= :begin AND signature < :end
    UNION ALL
    SELECT (SELECT MIN(signature) FROM measure WHERE signature > kind.signature AND signature < :end)
    FROM kind WHERE kind.signature IS NOT NULL)
SELECT measure.* FROM kind JOIN measure ON measure.job_id IN (
    SELECT job_id FROM measure AS newest WHERE newest.signature = kind.signature
    ORDER BY newest.ended_at DESC LIMIT {MAX_RUNS})
ORDER BY measure.ended_at DESC LIMIT {MAX_RUNS}
"""

_WRITE = """
INSERT INTO measure (job_id, signature, steps, seconds, estimate_s, ended_at)
VALUES (:job_id, :signature, :steps, :seconds, :estimate_s, :ended_at)
ON CONFLICT (job_id) DO NOTHING
"""

_TOOK = """
SELECT SUM(ended_at - started_at) AS seconds, (SELECT counts FROM dataset WHERE dataset.id = :dataset_id) AS counts
FROM attempt WHERE job_id = :id AND ended_at > started_at
"""

_SAID = "SELECT body FROM job_event WHERE job_id = ? AND type IN ('started', 'epoch_ended') ORDER BY seq"


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """What one job that came to its end took."""

    #: Planned pictures of the whole training, repeats counted.
    views: int
    #: Of all its starts together.
    seconds: float
    #: What was believed when it was queued; None: nothing, or it was not let run to its end.
    estimate_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a job is believed to take once it runs."""

    seconds: float
    #: Four of five jobs like it took between these; both are `seconds` while only one is known.
    low_s: float
    high_s: float
    #: How far past estimates were off, the median, as a share: 0.15 is "usually ±15 %"; None: too few to say.
    usual_error: float | None
    #: Past runs that it comes from.
    runs: int


def signature_of(spec: Spec, gpus: int) -> str:
    """What a job's pace hangs on, the most important first; each part ends in `|`."""
    resolution = spec.training.resolution or "own"
    parts = (spec.base.source, spec.task, spec.method.kind, gpus, resolution, spec.training.batch_size)
    return "".join(f"{str(part).replace(_END, '/')}{_END}" for part in parts)


def planned_steps(spec: Spec, counts: Counts) -> int:
    """Optimizer steps of a job on a dataset of these counts, by a rule of thumb.

    The trainer's own number (`Started.total_steps`) depends on the sizes of the pictures and on what fits into memory,
    and is known only once it runs. This one is computed for past and coming jobs alike, so its fault cancels.
    """
    pictures = _training_pictures(spec, counts) * spec.training.repeats
    # Class pictures and mixed-in datasets with a weight have their share of each epoch beside the dataset's own.
    others = sum(part.weight or 0.0 for part in spec.mix) + (spec.prior.weight if spec.prior.is_on else 0.0)
    views = pictures / max(0.05, 1 - others)
    return max(1, ceil(views / spec.training.batch_size)) * spec.training.epochs


def _training_pictures(spec: Spec, counts: Counts) -> float:
    match spec.split.kind:
        case SplitKind.REPORT:
            return counts.train
        case SplitKind.FOLD:
            return (counts.train + counts.validation) * (1 - 1 / spec.split.folds)
        case SplitKind.ALL:
            return counts.train + counts.validation


def estimate_from(views: int, runs: Sequence[PastRun]) -> Estimate | None:
    """What a training of so many pictures takes, from runs like it; None if there are none."""
    if not runs:
        return None
    startup_s, pace_s = _fit(runs)
    seconds = startup_s + pace_s * views
    ratios = [run.seconds / (startup_s + pace_s * run.views) for run in runs]
    # With straight lines between the values (Hyndman & Fan 1996, type 7).
    tenths = statistics.quantiles(ratios, n=10, method="inclusive") if len(ratios) > 1 else ratios
    low, high = tenths[0], tenths[-1]
    errors = [abs(run.seconds / run.estimate_s - 1) for run in runs if run.estimate_s]
    return Estimate(
        seconds=seconds,
        low_s=seconds * min(1.0, low),
        high_s=seconds * max(1.0, high),
        usual_error=statistics.median(errors) if len(errors) >= _MIN_ERRORS else None,
        runs=len(runs),
    )


def _fit(runs: Sequence[PastRun]) -> tuple[float, float]:
    """(seconds before the first picture, seconds a picture).

    The line of Theil (1950) and Sen (1968): the median of the slopes between all pairs; a third of the runs may be far
    off. Where there are too few lengths for it, or it makes no sense, the median pace, without a start-up cost.
    """
    slopes = [
        (late.seconds - early.seconds) / (late.views - early.views)
        for early, late in itertools.combinations(runs, 2)
        if early.views != late.views
    ]
    if len(runs) >= _MIN_FITTED and len({run.views for run in runs}) >= 3:
        pace_s = statistics.median(slopes)
        startup_s = statistics.median(run.seconds - pace_s * run.views for run in runs)
        if pace_s > 0 and startup_s >= 0:
            return startup_s, pace_s
    return 0.0, statistics.median(run.seconds / run.views for run in runs)


class Estimates:
    """Past runs in the database."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def of(self, spec: Spec, counts: Counts, gpus: int = 1) -> Estimate | None:
        """What a job will take, from the newest runs that are most like it; None: there were none like it."""
        views = planned_steps(spec, counts) * spec.training.batch_size
        signature = signature_of(spec, gpus)
        for level in _LEVELS:
            begin = _END.join(signature.split(_END)[:level]) + _END
            # "}" comes right after "|".
            rows = await self._db.all(_ALIKE, {"begin": begin, "end": begin.removesuffix(_END) + "}"})
            if rows:
                return estimate_from(views, [_past_run(row) for row in rows])
        return None


def _past_run(row: Row) -> PastRun:
    batch_size = int(row["signature"].split(_END)[-2])
    return PastRun(views=row["steps"] * batch_size, seconds=row["seconds"], estimate_s=row["estimate_s"])


async def write_measure(connection: Connection, row: Row, now: float) -> None:
    """Write down what a job took that has just succeeded, or was ended early by a person; its starts have ended.

    Nothing is written of one that holds no GPU (a study), or never began to train.
    """
    took = await first(connection, _TOOK, {"id": row["id"], "dataset_id": row["dataset_id"]})
    said = [parse_event(event["body"]) for event in await connection.execute_fetchall(_SAID, (row["id"],))]
    plan = next((event for event in reversed(said) if isinstance(event, Started)), None)
    if took is None or not took["seconds"] or plan is None or not row["gpus"]:
        return
    spec = Spec.model_validate_json(row["spec"])
    steps = float(planned_steps(spec, Counts.model_validate_json(took["counts"])))
    is_whole = row["state"] == State.SUCCEEDED
    if not is_whole:
        trained = max((event.step for event in said if isinstance(event, EpochEnded)), default=0)
        steps *= trained / max(1, plan.total_steps)
    values = {
        "job_id": row["id"],
        "signature": signature_of(spec, row["gpus"]),
        "steps": max(1, round(steps)),
        "seconds": took["seconds"],
        "estimate_s": row["estimate_s"] if is_whole else None,
        "ended_at": now,
    }
    await connection.execute_fetchall(_WRITE, values)
