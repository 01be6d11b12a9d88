"""The starts of a job, one after the other: when, where, and how each ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from bot.db import Database


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of a job."""

    number: int
    started_at: datetime
    #: None while it runs.
    ended_at: datetime | None
    #: Names of its slots: `GPU 0 · RTX 4090`.
    slots: tuple[str, ...]
    #: The state that followed; None while it runs.
    outcome: str | None
    why: str | None


async def read_attempts(db: Database, job_id: int) -> list[Attempt]:
    """The starts of a job, oldest first."""
    rows = await db.all("SELECT * FROM attempt WHERE job_id = ? ORDER BY attempt", (job_id,))
    return [
        Attempt(
            number=row["attempt"],
            started_at=datetime.fromtimestamp(row["started_at"], UTC),
            ended_at=None if row["ended_at"] is None else datetime.fromtimestamp(row["ended_at"], UTC),
            slots=tuple(row["slots"].split(", ")) if row["slots"] else (),
            outcome=row["outcome"],
            why=row["why"],
        )
        for row in rows
    ]
