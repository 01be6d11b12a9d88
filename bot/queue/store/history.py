"""The attempts of a job, and why the queue itself changed one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from bot.db import Database
from bot.queue.domain.job import EndReason


class AuditReason(StrEnum):
    """Why the queue itself did something; users give their reasons in their own words."""

    QUEUE_DRAINED = "queue_drained"
    WINDOW_CLOSED = "window_closed"
    #: A child of a study reached the epoch that it was asked to train to.
    EPOCH_REACHED = "epoch_reached"
    STUDY_CHILD = "study_child"
    STUDY_CANCELLED = "study_cancelled"
    STUDY_ENDED = "study_ended"
    STUDY_STOPPING = "study_stopping"


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """One attempt of a job."""

    number: int
    started_at: datetime
    #: None while it runs.
    ended_at: datetime | None
    #: Names of its slots: `GPU 0 · RTX 4090`.
    slots: tuple[str, ...]
    #: The job's next state; None while it runs.
    outcome: str | None
    reason: EndReason | None


async def read_attempts(db: Database, job_id: int) -> list[AttemptRecord]:
    """Return the attempts of a job, oldest first."""
    rows = await db.all("SELECT * FROM attempt WHERE job_id = ? ORDER BY attempt", (job_id,))
    return [
        AttemptRecord(
            number=row["attempt"],
            started_at=datetime.fromtimestamp(row["started_at"], UTC),
            ended_at=None if row["ended_at"] is None else datetime.fromtimestamp(row["ended_at"], UTC),
            slots=tuple(row["slots"].split(", ")) if row["slots"] else (),
            outcome=row["outcome"],
            reason=None if row["end_reason"] is None else EndReason.model_validate_json(row["end_reason"]),
        )
        for row in rows
    ]
