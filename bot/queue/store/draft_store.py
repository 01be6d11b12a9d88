"""Drafts: requests that wait for [Start training]. The job of one has its interaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import LimitSettings
from bot.db import Connection, Database, Row, as_stored
from bot.errors import DraftEnded, TooManyDrafts
from bot.queue.store.transitions import first, only

#: Drafts expire after a day, before the dataset's own retention.
DRAFT_LIFE_S = 86_400.0

#: With the job that it became; NULL while it waits.
_DRAFTS = "SELECT draft.*, job.id AS job_id FROM draft LEFT JOIN job USING (interaction_id) WHERE "

_INSERT = """
INSERT INTO draft (interaction_id, guild_id, channel_id, owner_id, dataset_id, request, created_at)
VALUES (:interaction_id, :guild_id, :channel_id, :owner_id, :dataset_id, :request, :now)
ON CONFLICT (interaction_id) DO NOTHING
RETURNING id
"""

_WAITS = "cancelled_at IS NULL AND NOT EXISTS (SELECT 1 FROM job WHERE job.interaction_id = draft.interaction_id)"

_CANCEL = f"UPDATE draft SET cancelled_at = ? WHERE id = ? AND {_WAITS} RETURNING id"

_CHANGE = f"UPDATE draft SET request = ? WHERE id = ? AND {_WAITS} RETURNING id"

_IN_SERVER = f"{_DRAFTS}draft.id = ? AND draft.guild_id = ? AND draft.dataset_id = ?"

_COUNT = f"SELECT COUNT(*) FROM draft WHERE owner_id = ? AND id != ? AND created_at >= ? AND {_WAITS}"

_NEWEST = f"""
SELECT id FROM draft WHERE owner_id = ? AND dataset_id = ? AND created_at >= ? AND {_WAITS} ORDER BY id DESC LIMIT 1
"""

_SWEEP = """
DELETE FROM draft WHERE created_at < ?
    AND NOT EXISTS (SELECT 1 FROM job WHERE job.interaction_id = draft.interaction_id)
RETURNING id
"""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A request that its owner has not confirmed."""

    id: int
    #: Of the command; the same one twice is one job.
    interaction_id: int
    guild_id: int
    channel_id: int
    owner_id: int
    dataset_id: int
    #: The request as JSON; the command knows its form.
    request: str
    #: The job that it became; None while it waits.
    job_id: int | None
    created_at: datetime

    @classmethod
    def from_row(cls, row: Row) -> Draft:
        return cls(**as_stored(cls, row) | {"created_at": datetime.fromtimestamp(row["created_at"], UTC)})


class DraftStore:
    """Drafts in the database. `JobStore.submit` makes one a job."""

    def __init__(
        self, db: Database, *, max_waiting: int = LimitSettings().max_drafts_per_user, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._db = db
        self._max_waiting = max_waiting
        self._clock = clock

    async def add(
        self, *, interaction_id: int, guild_id: int, channel_id: int, owner_id: int, dataset_id: int, request: str
    ) -> Draft:
        """Store a draft; the same interaction twice is one draft.

        Raises:
            TooManyDrafts: Its owner has as many as one may have.
        """
        values = {
            "interaction_id": interaction_id,
            "guild_id": guild_id,
            "channel_id": channel_id,
            "owner_id": owner_id,
            "dataset_id": dataset_id,
            "request": request,
            "now": self._clock.time(),
        }
        async with self._db.transaction() as connection:
            inserted = await first(connection, _INSERT, values)
            if inserted is not None:
                counted = await first(connection, _COUNT, (owner_id, inserted["id"], self._oldest()))
                if counted is not None and counted[0] >= self._max_waiting:
                    raise TooManyDrafts(waiting=counted[0], allowed=self._max_waiting)
            row = await only(connection, f"{_DRAFTS}interaction_id = ?", (interaction_id,))
            return Draft.from_row(row)

    async def get(self, draft_id: int) -> Draft:
        """Return a draft, also if its job is queued already.

        Raises:
            DraftEnded: It is older than a day, or was cancelled.
        """
        return self._known(await self._db.one(f"{_DRAFTS}draft.id = ?", (draft_id,)))

    async def get_in(self, guild_id: int, draft_id: int, *, dataset_id: int) -> Draft:
        """Return a draft of a server for a dataset, also if its job is queued already.

        Raises:
            DraftEnded: There is no such draft, it is older than a day, or it was cancelled.
        """
        return self._known(await self._db.one(_IN_SERVER, (draft_id, guild_id, dataset_id)))

    def _known(self, row: Row | None) -> Draft:
        if row is None or (row["job_id"] is None and row["created_at"] < self._oldest()):
            raise DraftEnded(is_expired=True)
        if row["cancelled_at"] is not None:
            raise DraftEnded(is_expired=False)
        return Draft.from_row(row)

    def _oldest(self) -> float:
        """When the oldest draft that has not expired was made."""
        return self._clock.time() - DRAFT_LIFE_S

    async def change(self, draft_id: int, request: str) -> Draft:
        """Replace the request of a draft.

        Raises:
            DraftEnded: It no longer waits.
        """
        async with self._db.transaction() as connection:
            if await first(connection, _CHANGE, (request, draft_id)) is None:
                raise DraftEnded(is_expired=False)
        return await self.get(draft_id)

    async def waiting(self, owner_id: int, dataset_id: int) -> Draft | None:
        """Return a member's newest draft with this dataset that still waits; None if there is none."""
        row = await self._db.one(_NEWEST, (owner_id, dataset_id, self._oldest()))
        return None if row is None else await self.get(row["id"])

    async def cancel(self, draft_id: int) -> bool:
        """Cancel a draft; False if it no longer waits."""
        async with self._db.transaction() as connection:
            return await first(connection, _CANCEL, (self._clock.time(), draft_id)) is not None

    async def sweep(self) -> int:
        """Delete expired drafts that never became a job; returns how many."""
        async with self._db.transaction() as connection:
            return len(list(await connection.execute_fetchall(_SWEEP, (self._oldest(),))))


async def require_waiting(connection: Connection, interaction_id: int | None) -> None:
    """Raise if the draft of an interaction was cancelled, in the transaction that makes it a job.

    Raises:
        DraftEnded: It was.
    """
    cancelled = "SELECT 1 FROM draft WHERE interaction_id = ? AND cancelled_at IS NOT NULL"
    if await first(connection, cancelled, (interaction_id,)) is not None:
        raise DraftEnded(is_expired=False)
