"""Requests that show their dataset and wait for "Go on": kept in the database, gone after a day."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from bot.db import Database, Row
from bot.errors import DraftEnded

#: Longer than a lunch, shorter than a dataset is remembered.
DRAFT_LIFE_S = 86_400.0


class DraftState(StrEnum):
    """Where a draft stands."""

    WAITING = "waiting"
    #: "Go on" was pressed: its job is queued, or about to be.
    GOING = "going"
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What somebody asked for, before they have said that it may be queued."""

    id: int
    #: Of the command; its job gets the same, so that it is one job however often it is pressed.
    interaction_id: int
    guild_id: int
    channel_id: int
    owner_id: int
    dataset_id: int
    #: What was asked for, as JSON; the command knows its form.
    wishes: str
    state: DraftState
    created_at: datetime


class DraftStore:
    """Drafts in the database."""

    def __init__(self, db: Database, *, now: Callable[[], float] = time.time) -> None:
        self._db = db
        self._now = now

    async def keep(
        self, *, interaction_id: int, guild_id: int, channel_id: int, owner_id: int, dataset_id: int, wishes: str
    ) -> Draft:
        """Write a draft down; the same interaction twice is one draft."""
        values = (interaction_id, guild_id, channel_id, owner_id, dataset_id, wishes, self._now())
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(
                """INSERT INTO draft (interaction_id, guild_id, channel_id, owner_id, dataset_id, wishes, created_at)
                   VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (interaction_id) DO NOTHING""",
                values,
            )
            rows = await connection.execute_fetchall("SELECT * FROM draft WHERE interaction_id = ?", (interaction_id,))
            return _draft(next(iter(rows)))

    async def get(self, draft_id: int) -> Draft:
        """The draft of that number.

        Raises:
            DraftEnded: it is older than a day, or was cancelled.
        """
        row = await self._db.one("SELECT * FROM draft WHERE id = ?", (draft_id,))
        if row is None or row["created_at"] < self._now() - DRAFT_LIFE_S:
            raise DraftEnded("This request is older than a day and no longer waits. Run /finetune again.")
        if row["state"] == DraftState.CANCELLED:
            raise DraftEnded("This request was cancelled; nothing was queued. Run /finetune again.")
        return _draft(row)

    async def waiting(self, owner_id: int, dataset_id: int) -> Draft | None:
        """The newest draft of somebody that waits for this dataset, None if there is none."""
        row = await self._db.one(
            """SELECT * FROM draft WHERE owner_id = ? AND dataset_id = ? AND state = 'waiting' AND created_at >= ?
               ORDER BY id DESC LIMIT 1""",
            (owner_id, dataset_id, self._now() - DRAFT_LIFE_S),
        )
        return None if row is None else _draft(row)

    async def go(self, draft_id: int) -> Draft:
        """Let a draft go; again and again until its job is there, but not once it is cancelled.

        Raises:
            DraftEnded: it is older than a day, or was cancelled.
        """
        await self.get(draft_id)
        await self._move_on(draft_id, DraftState.GOING)
        return await self.get(draft_id)

    async def stay(self, draft_id: int) -> None:
        """Let a draft wait again: its job was refused; one whose job is there is left alone."""
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(
                """UPDATE draft SET state = 'waiting' WHERE id = ? AND state = 'going'
                   AND NOT EXISTS (SELECT 1 FROM job WHERE job.interaction_id = draft.interaction_id)""",
                (draft_id,),
            )

    async def cancel(self, draft_id: int) -> bool:
        """Forget a draft that waits; False if it no longer did."""
        return await self._move_on(draft_id, DraftState.CANCELLED)

    async def sweep(self) -> int:
        """Delete what is older than a day; returns how many."""
        async with self._db.transaction() as connection:
            rows = await connection.execute_fetchall(
                "DELETE FROM draft WHERE created_at < ? RETURNING id", (self._now() - DRAFT_LIFE_S,)
            )
            return len(list(rows))

    async def _move_on(self, draft_id: int, state: DraftState) -> bool:
        """Change the state of a draft that waits; False if it does not."""
        async with self._db.transaction() as connection:
            rows = await connection.execute_fetchall(
                "UPDATE draft SET state = ? WHERE id = ? AND state = 'waiting' RETURNING id", (state, draft_id)
            )
            return bool(list(rows))


def _draft(row: Row) -> Draft:
    return Draft(
        id=row["id"],
        interaction_id=row["interaction_id"],
        guild_id=row["guild_id"],
        channel_id=row["channel_id"],
        owner_id=row["owner_id"],
        dataset_id=row["dataset_id"],
        wishes=row["wishes"],
        state=DraftState(row["state"]),
        created_at=datetime.fromtimestamp(row["created_at"], UTC),
    )
