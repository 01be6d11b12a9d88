"""Drafts: requests that wait for [Start training]. A draft is a row of `job` that is not queued yet."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import LimitSettings
from bot.db import Database, Row
from bot.errors import DraftEnded, TooManyDrafts
from bot.queue.domain.job import State
from bot.queue.store import job_sql
from bot.queue.store.history import write_entry
from bot.queue.store.transitions import first

#: Drafts expire after a day, before the dataset's own retention.
DRAFT_LIFE_S = 86_400.0

_INSERT = """
INSERT INTO job (interaction_id, guild_id, channel_id, owner_id, dataset_id, name, request, state, created_at)
SELECT :interaction_id, :guild_id, :channel_id, :owner_id, id, name, :request, 'draft', :now
FROM dataset WHERE id = :dataset_id
ON CONFLICT (interaction_id) DO NOTHING
RETURNING *
"""

_CANCEL = f"""
UPDATE job SET state = 'cancelled', stop_intent = 'cancel', stopped_by = :by, ended_at = :now
WHERE id = :id AND state = 'draft' AND state IN {job_sql.states_before(State.CANCELLED)}
RETURNING *
"""

_CHANGE = "UPDATE job SET request = ? WHERE id = ? AND state = 'draft' RETURNING *"

_IN_SERVER = "SELECT * FROM job WHERE id = ? AND request IS NOT NULL AND guild_id = ? AND dataset_id = ?"

_COUNT = "SELECT COUNT(*) FROM job WHERE owner_id = ? AND state = 'draft' AND id != ? AND created_at >= ?"

_WAITING = """
SELECT * FROM job WHERE owner_id = ? AND dataset_id = ? AND state = 'draft' AND created_at >= ?
ORDER BY id DESC LIMIT 1
"""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A request that its owner has not confirmed."""

    #: The ID that its job will have.
    id: int
    #: Of the command; the same one twice is one job.
    interaction_id: int
    guild_id: int
    channel_id: int
    owner_id: int
    dataset_id: int
    #: The request as JSON; the command knows its form.
    request: str
    #: No longer a draft once its job is queued.
    state: State
    created_at: datetime

    @classmethod
    def from_row(cls, row: Row) -> Draft:
        return cls(
            id=row["id"],
            interaction_id=row["interaction_id"],
            guild_id=row["guild_id"],
            channel_id=row["channel_id"],
            owner_id=row["owner_id"],
            dataset_id=row["dataset_id"],
            request=row["request"],
            state=State(row["state"]),
            created_at=datetime.fromtimestamp(row["created_at"], UTC),
        )


class DraftStore:
    """Drafts in the database. `JobStore.submit` makes one a job; `JobStore.request_stop` also cancels one."""

    def __init__(
        self, db: Database, *, max_waiting: int = LimitSettings().max_drafts_per_user, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._db = db
        self._max_waiting = max_waiting
        self._clock = clock

    async def keep(
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
            row = await first(connection, _INSERT, values)
            if row is None:
                row = await first(connection, "SELECT * FROM job WHERE interaction_id = ?", (interaction_id,))
                assert row is not None
                return Draft.from_row(row)
            since = self._clock.time() - DRAFT_LIFE_S
            waiting = await first(connection, _COUNT, (owner_id, row["id"], since))
            if waiting is not None and waiting[0] >= self._max_waiting:
                raise TooManyDrafts(waiting=waiting[0], allowed=self._max_waiting)
            await write_entry(
                connection,
                at=self._clock.time(),
                verb="draft",
                job_id=row["id"],
                guild_id=guild_id,
                by=owner_id,
                after=State.DRAFT,
            )
            return Draft.from_row(row)

    async def get(self, draft_id: int) -> Draft:
        """Return a draft, also if its job is queued already.

        Raises:
            DraftEnded: It is older than a day, or was cancelled.
        """
        return self._waiting(await self._db.one("SELECT * FROM job WHERE id = ? AND request IS NOT NULL", (draft_id,)))

    async def get_in(self, guild_id: int, draft_id: int, *, dataset_id: int) -> Draft:
        """Return a draft of a server for a dataset, also if its job is queued already.

        Raises:
            DraftEnded: There is no such draft, it is older than a day, or it was cancelled.
        """
        return self._waiting(await self._db.one(_IN_SERVER, (draft_id, guild_id, dataset_id)))

    def _waiting(self, row: Row | None) -> Draft:
        is_queued = row is not None and row["spec"] is not None
        if row is None or (not is_queued and row["created_at"] < self._clock.time() - DRAFT_LIFE_S):
            raise DraftEnded(is_expired=True)
        if row["state"] == State.CANCELLED and not is_queued:
            raise DraftEnded(is_expired=False)
        return Draft.from_row(row)

    async def change(self, draft_id: int, request: str) -> Draft:
        """Replace the request of a draft.

        Raises:
            DraftEnded: It no longer waits.
        """
        async with self._db.transaction() as connection:
            row = await first(connection, _CHANGE, (request, draft_id))
        if row is None:
            raise DraftEnded(is_expired=False)
        return self._waiting(row)

    async def waiting(self, owner_id: int, dataset_id: int) -> Draft | None:
        """Return a member's newest draft with this dataset that still waits; None if there is none."""
        row = await self._db.one(_WAITING, (owner_id, dataset_id, self._clock.time() - DRAFT_LIFE_S))
        return None if row is None else Draft.from_row(row)

    async def cancel(self, draft_id: int, *, by: int) -> bool:
        """Cancel a draft; False if it no longer waits."""
        async with self._db.transaction() as connection:
            row = await first(connection, _CANCEL, {"id": draft_id, "by": by, "now": self._clock.time()})
            if row is None:
                return False
            await write_entry(
                connection,
                at=self._clock.time(),
                verb="cancel",
                job_id=draft_id,
                guild_id=row["guild_id"],
                by=by,
                before=State.DRAFT,
                after=State.CANCELLED,
            )
            return True

    async def sweep(self) -> int:
        """Delete expired drafts that never became a job; returns how many."""
        async with self._db.transaction() as connection:
            rows = await connection.execute_fetchall(
                "DELETE FROM job WHERE spec IS NULL AND created_at < ? RETURNING id",
                (self._clock.time() - DRAFT_LIFE_S,),
            )
            return len(list(rows))
