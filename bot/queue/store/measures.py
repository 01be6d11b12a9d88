"""Records how long finished jobs took, and which jobs are comparable."""

from __future__ import annotations

from math import ceil

from bot.db import Connection
from bot.queue.domain.job import ActiveJob, State
from trainer.protocol.report import Counts
from trainer.protocol.run_options import JobKind
from trainer.protocol.sampling import SamplingSpec
from trainer.protocol.settings import SplitKind
from trainer.protocol.spec import Spec

#: Ends each part of a signature.
SEPARATOR = "|"

_WRITE = """
INSERT INTO measure (job_id, signature, steps, seconds, estimate_s, ended_at)
VALUES (:job_id, :signature, :steps, :seconds, :estimate_s, :ended_at)
ON CONFLICT (job_id) DO NOTHING
"""

_DURATION = """
SELECT SUM(ended_at - started_at) AS seconds, (SELECT counts FROM dataset WHERE dataset.id = :dataset_id) AS counts
FROM attempt WHERE job_id = :id AND ended_at > started_at
"""


def signature_of(spec: Spec, gpus: int) -> str:
    """Return what determines a job's speed, the most important first; each part ends in `|`."""
    resolution = spec.training.resolution or "own"
    parts = (spec.base.source, spec.task, spec.method.kind, gpus, resolution, spec.training.batch_size)
    return "".join(f"{str(part).replace(SEPARATOR, '/')}{SEPARATOR}" for part in parts)


def sampling_signature_of(spec: SamplingSpec, gpus: int) -> str:
    """As `signature_of`, of a sampling."""
    size = f"{spec.width}x{spec.height}" if spec.width else "own"
    parts = (spec.base.source, JobKind.SAMPLE, "images", gpus, size, 1)
    return "".join(f"{str(part).replace(SEPARATOR, '/')}{SEPARATOR}" for part in parts)


def sampling_steps(spec: SamplingSpec) -> int:
    """Denoising steps of all images of a sampling."""
    return spec.images * spec.steps


def planned_steps(spec: Spec, counts: Counts) -> int:
    """Approximate the optimizer steps of a job on a dataset with these counts.

    The trainer's own number (`Started.total_steps`) depends on image sizes and on memory, and is known only once it
    runs. This one is computed in the same way for past and future jobs, so its error cancels out.
    """
    images = _training_images(spec, counts)
    # Class images and weighted datasets of a mix take their share of each epoch.
    others = sum(part.weight or 0.0 for part in spec.mix) + (spec.prior.weight if spec.prior.is_on else 0.0)
    views = images / max(0.05, 1 - others)
    views *= spec.training.repeats_of(views)
    steps = max(1, ceil(views / spec.training.batch_size)) * spec.training.epochs
    return steps if spec.training.max_steps is None else min(steps, spec.training.max_steps)


def _training_images(spec: Spec, counts: Counts) -> float:
    match spec.split.kind:
        case SplitKind.REPORT:
            return counts.train
        case SplitKind.FOLD:
            return (counts.train + counts.validation) * (1 - 1 / spec.split.folds)
        case SplitKind.ALL:
            return counts.train + counts.validation


async def write_measure(connection: Connection, job: ActiveJob, now: float) -> None:
    """Record what a job took that has just succeeded or was ended early; its attempts have ended.

    Nothing is recorded for a job without a GPU (a study), or one that never began to train.
    """
    values = {"id": job.id, "dataset_id": job.dataset_id}
    took = next(iter(await connection.execute_fetchall(_DURATION, values)))
    progress, is_whole = job.progress, job.state is State.SUCCEEDED
    if not took["seconds"] or not job.gpus:
        return
    if job.is_sampling:
        signature, steps, is_whole = sampling_signature_of(job.sampling, job.gpus), sampling_steps(job.sampling), True
    elif progress.total_steps:
        signature = signature_of(job.spec, job.gpus)
        steps = planned_steps(job.spec, Counts.model_validate_json(took["counts"]))
        if not is_whole:
            trained = max((epoch.step for epoch in progress.epochs), default=0)
            steps = max(1, round(steps * trained / progress.total_steps))
    else:
        return
    measure = {
        "job_id": job.id,
        "signature": signature,
        "steps": steps,
        "seconds": took["seconds"],
        "estimate_s": job.estimate_s if is_whole else None,
        "ended_at": now,
    }
    await connection.execute_fetchall(_WRITE, measure)
