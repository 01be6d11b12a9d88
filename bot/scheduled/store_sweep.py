"""Takes from the object store what the retention took from this disk, and what no start would begin with.

What was deleted stands in the job's row (all files) and in the audit (checkpoints), written before anything goes. So
whatever a killed bot or a store out of reach left behind goes with a later round.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from enum import StrEnum

from bot.db import Database, Row
from bot.queue.domain.job import ENDS, State
from bot.queue.planning.retention import What
from bot.runners.stored import StoredJobs
from bot.scheduled.news import News

log = logging.getLogger(__name__)

_DAY_S = 86_400

#: A study and its runs are one family: kept together, and deleted together.
_ROWS = f"""
SELECT id, attempt, state, COALESCE(parent_id, id) AS family, files_deleted_at IS NOT NULL AS is_deleted,
    EXISTS (SELECT 1 FROM audit WHERE audit.job_id = COALESCE(parent_id, job.id)
        AND verb = 'delete {What.CHECKPOINTS}') AS has_no_checkpoints
FROM job WHERE spec IS NOT NULL
"""
_IS_HELD = """
SELECT 1 FROM job WHERE (id = ?1 OR parent_id = ?1) AND (pinned_at IS NOT NULL OR shared_at IS NOT NULL) LIMIT 1
"""


class _Due(StrEnum):
    EVERYTHING = "everything"
    CHECKPOINTS = "checkpoints"
    #: Checkpoints that no later attempt would begin with.
    STALE = "stale checkpoints"


class StoreSweep:
    """One round is `run`. Jobs that the database does not know are left alone: it may be a copy that was put back."""

    def __init__(
        self, db: Database, stored: StoredJobs, *, news: News | None = None, now: Callable[[], float] = time.time
    ) -> None:
        self._db = db
        self._stored = stored
        self._news = news
        self._now = now
        #: (job, attempt, what) that were looked at since this bot began.
        self._done: set[tuple[int, int, _Due]] = set()

    async def with_checkpoints(self) -> Collection[int]:
        """Families of jobs in the store whose checkpoints were not deleted yet; none where it cannot be reached."""
        try:
            present = await asyncio.to_thread(self._stored.ids)
        except OSError as error:
            await self._tell(error)
            return ()
        rows = await self._db.all(_ROWS)
        return {row["family"] for row in rows if row["id"] in present and not row["has_no_checkpoints"]}

    async def run(self) -> None:
        """Take away what is due; a store that cannot be reached is told of, and tried again by the next round."""
        try:
            present = await asyncio.to_thread(self._stored.ids)
            for row, due in _dues(await self._db.all(_ROWS), present):
                await self._take(row, due)
        except OSError as error:
            await self._tell(error)

    async def _take(self, row: Row, due: _Due) -> None:
        done = (row["id"], row["attempt"], due)
        # Asked here and not before the round, which may take long: somebody may pin it meanwhile.
        if done in self._done or await self._db.one(_IS_HELD, (row["family"],)):
            return
        take = {
            _Due.EVERYTHING: self._stored.delete,
            _Due.CHECKPOINTS: self._stored.delete_checkpoints,
            _Due.STALE: self._stored.delete_stale_checkpoints,
        }[due]
        if number := await asyncio.to_thread(take, row["id"]):
            log.info("#%d: %s (%d objects) taken from the store", row["id"], due, number)
        self._done.add(done)

    async def _tell(self, error: OSError) -> None:
        why = str(error) or type(error).__name__
        log.warning("objects of deleted jobs stay in the store, to be taken away later: %s", why)
        if self._news is not None:
            text = f"The object store cannot be used ({why}); objects of deleted jobs stay there until it can."
            await self._news.tell(text, key=f"store:{self._now() // _DAY_S:.0f}")


def _dues(rows: Sequence[Row], present: Collection[int]) -> Iterator[tuple[Row, _Due]]:
    """What may go of jobs in the store: nothing of families that are not at their end."""
    busy = {row["family"] for row in rows if State(row["state"]) not in ENDS}
    for row in rows:
        if row["id"] not in present or row["family"] in busy:
            continue
        if row["is_deleted"]:
            yield row, _Due.EVERYTHING
        else:
            yield row, _Due.CHECKPOINTS if row["has_no_checkpoints"] else _Due.STALE
