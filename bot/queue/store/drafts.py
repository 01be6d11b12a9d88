"""Requests that show their dataset and wait for "Go on": jobs that are not queued yet, gone after a day."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from bot.db import Database, Row
from bot.errors import DraftEnded
from bot.queue.domain.job import State
from bot.queue.store import job_sql
from bot.queue.store.audit import write_entry

#: Longer than a lunch, shorter than a dataset is remembered.
DRAFT_LIFE_S = 86_400.0

_KEEP = """
INSERT INTO job (interaction_id, guild_id, channel_id, owner_id, dataset_id, name, wishes, state, created_at)
SELECT :interaction_id, :guild_id, :channel_id, :owner_id, id, name, :wishes, 'draft', :now
FROM dataset WHERE id = :dataset_id
ON CONFLICT (interaction_id) DO NOTHING
RETURNING *
"""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What somebody asked for, before they have said that it may be queued."""

    #: The number that its job will have.
    id: int
    #: Of the command; the same one twice is one job.
    interaction_id: int
    guild_id: int
    channel_id: int
    owner_id: int
    dataset_id: int
    #: What was asked for, as JSON; the command knows its form.
    wishes: str
    #: No longer a draft once its job is queued.
    state: State
    created_at: datetime


class DraftStore:
    """Drafts in the database. `JobStore.submit` makes one a job; `JobStore.request_stop` would cancel it too."""

    def __init__(self, db: Database, *, now: Callable[[], float] = time.time) -> None:
        self._db = db
        self._now = now

    async def keep(
        self, *, interaction_id: int, guild_id: int, channel_id: int, owner_id: int, dataset_id: int, wishes: str
    ) -> Draft:
        """Write a draft down; the same interaction twice is one draft."""
        values = {
            "interaction_id": interaction_id,
            "guild_id": guild_id,
            "channel_id": channel_id,
            "owner_id": owner_id,
            "dataset_id": dataset_id,
            "wishes": wishes,
            "now": self._now(),
        }
        async with self._db.transaction() as connection:
            made = list(await connection.execute_fetchall(_KEEP, values))
            if made:
                await write_entry(
                    connection,
                    at=self._now(),
                    verb="draft",
                    job_id=made[0]["id"],
                    guild_id=guild_id,
                    by=owner_id,
                    after=State.DRAFT,
                )
            rows = await connection.execute_fetchall("SELECT * FROM job WHERE interaction_id = ?", (interaction_id,))
            return _draft(next(iter(rows)))

    async def get(self, draft_id: int) -> Draft:
        """The draft of that number, also when its job is queued already.

        Raises:
            DraftEnded: it is older than a day, or was cancelled.
        """
        row = await self._db.one("SELECT * FROM job WHERE id = ? AND wishes IS NOT NULL", (draft_id,))
        is_queued = row is not None and row["spec"] is not None
        if row is None or (not is_queued and row["created_at"] < self._now() - DRAFT_LIFE_S):
            raise DraftEnded("This request is older than a day and no longer waits. Run the command again.")
        if row["state"] == State.CANCELLED and not is_queued:
            raise DraftEnded("This request was cancelled; nothing was queued. Run the command again.")
        return _draft(row)

    async def waiting(self, owner_id: int, dataset_id: int) -> Draft | None:
        """The newest draft of somebody that waits for this dataset, None if there is none."""
        row = await self._db.one(
            """SELECT * FROM job WHERE owner_id = ? AND dataset_id = ? AND state = 'draft' AND created_at >= ?
               ORDER BY id DESC LIMIT 1""",
            (owner_id, dataset_id, self._now() - DRAFT_LIFE_S),
        )
        return None if row is None else _draft(row)

    async def cancel(self, draft_id: int, *, by: int) -> bool:
        """Forget a draft that waits; False if it no longer did."""
        async with self._db.transaction() as connection:
            rows = list(
                await connection.execute_fetchall(
                    f"""UPDATE job SET state = 'cancelled', stop_intent = 'cancel', stopped_by = :by, ended_at = :now
                        WHERE id = :id AND state = 'draft' AND state IN {job_sql.states_before(State.CANCELLED)}
                        RETURNING *""",
                    {"id": draft_id, "by": by, "now": self._now()},
                )
            )
            if rows:
                await write_entry(
                    connection,
                    at=self._now(),
                    verb="cancel",
                    job_id=draft_id,
                    guild_id=rows[0]["guild_id"],
                    by=by,
                    before=State.DRAFT,
                    after=State.CANCELLED,
                )
            return bool(rows)

    async def sweep(self) -> int:
        """Delete what is older than a day and never became a job; returns how many."""
        async with self._db.transaction() as connection:
            rows = await connection.execute_fetchall(
                "DELETE FROM job WHERE spec IS NULL AND created_at < ? RETURNING id", (self._now() - DRAFT_LIFE_S,)
            )
            return len(list(rows))


def _draft(row: Row) -> Draft:
    return Draft(
        id=row["id"],
        interaction_id=row["interaction_id"],
        guild_id=row["guild_id"],
        channel_id=row["channel_id"],
        owner_id=row["owner_id"],
        dataset_id=row["dataset_id"],
        wishes=row["wishes"],
        state=State(row["state"]),
        created_at=datetime.fromtimestamp(row["created_at"], UTC),
    )
