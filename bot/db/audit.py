"""The audit: who did what, when and why."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from bot.db.database import Connection, Database, as_stored

_WRITE = """
INSERT INTO audit (at, job_id, guild_id, actor_id, verb, before, after, why)
VALUES (:at, :job_id, :guild_id, :actor_id, :verb, :before, :after, :why)
"""


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
    return [AuditEntry(**as_stored(AuditEntry, row) | {"at": datetime.fromtimestamp(row["at"], UTC)}) for row in rows]
