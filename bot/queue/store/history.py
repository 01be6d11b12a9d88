"""What happened to jobs: the audit (who did what, when and why) and the list of a job's attempts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from bot.db import Connection, Database
from bot.queue.domain.job import EndReason

_WRITE = """
INSERT INTO audit (at, job_id, guild_id, actor_id, verb, before, after, why)
VALUES (:at, :job_id, :guild_id, :actor_id, :verb, :before, :after, :why)
"""


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
class AuditEntry:
    """One line of the audit; it is never changed."""

    at: datetime
    #: None: the queue, a limit, the machine.
    job_id: int | None
    #: None: the bot itself.
    actor_id: int | None
    verb: str
    before: str | None
    after: str | None
    #: A user's words, an `AuditReason`, or an `EndReasonKind`.
    why: str | None


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


async def write_entry(
    connection: Connection,
    *,
    at: float,
    verb: str,
    job_id: int | None = None,
    guild_id: int | None = None,
    by: int | None = None,
    before: str | None = None,
    after: str | None = None,
    why: str = "",
) -> None:
    """Add a line to the audit in the caller's transaction."""
    values = {
        "at": at,
        "job_id": job_id,
        "guild_id": guild_id,
        "actor_id": by,
        "verb": verb,
        "before": before,
        "after": after,
        "why": why or None,
    }
    await connection.execute_fetchall(_WRITE, values)


async def read_entries(
    db: Database, *, guild_id: int | None = None, job_id: int | None = None, limit: int = 50
) -> list[AuditEntry]:
    """Return the newest lines first: of a server (with those of no server), of a job, or all."""
    conditions, values = ["1"], list[int]()
    if guild_id is not None:
        conditions.append("(guild_id = ? OR guild_id IS NULL)")
        values.append(guild_id)
    if job_id is not None:
        conditions.append("job_id = ?")
        values.append(job_id)
    where = " AND ".join(conditions)
    rows = await db.all(f"SELECT * FROM audit WHERE {where} ORDER BY id DESC LIMIT ?", (*values, limit))
    return [
        AuditEntry(
            at=datetime.fromtimestamp(row["at"], UTC),
            job_id=row["job_id"],
            actor_id=row["actor_id"],
            verb=row["verb"],
            before=row["before"],
            after=row["after"],
            why=row["why"],
        )
        for row in rows
    ]


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
