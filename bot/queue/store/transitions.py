"""What every move of a job brings with it, in the caller's transaction: card, notices, audit, a word to the queue."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from bot.db import Connection, Database, Row
from bot.outbox import Notice, NoticeKind, Outbox
from bot.queue.domain.job import State
from bot.queue.domain.rules import Outcome
from bot.queue.planning.estimates import write_measure
from bot.queue.store import job_sql
from bot.queue.store.audit import write_entry
from bot.queue.store.ingest import events_of, first
from bot.queue.store.notifications import end_events, end_key
from trainer.protocol.events import LastWord

log = logging.getLogger(__name__)


class Moves:
    """The one place where a changed row becomes messages and a line of the audit."""

    def __init__(self, db: Database, outbox: Outbox, *, now: Callable[[], float] = time.time) -> None:
        self.db = db
        self.outbox = outbox
        self.now = now
        #: Set when there is something for the dispatcher to do.
        self.changed = asyncio.Event()

    async def moved(
        self, connection: Connection, row: Row, *, verb: str, before: str | None, by: int | None = None, why: str = ""
    ) -> None:
        """Tell what a move changes: the card (of a child: its study's), the line behind it, the audit, the queue."""
        await self.audit(connection, row, verb=verb, before=before, by=by, why=why)
        await self.touch(connection, row, at_once=True)
        # Whoever waits may have another place in line now.
        for other in await connection.execute_fetchall(job_sql.NEXT_WAITING, (row["id"],)):
            await self.outbox.touch_card(connection, other["id"], channel_id=other["channel_id"])
        self.db.after_commit(self.changed.set)

    async def touch(self, connection: Connection, row: Row, *, at_once: bool = False) -> None:
        """The card that shows this job no longer shows the truth."""
        if row["spec"] is not None:
            job_id = row["parent_id"] or row["id"]
            await self.outbox.touch_card(connection, job_id, channel_id=row["channel_id"], at_once=at_once)

    async def audit(
        self, connection: Connection, row: Row, *, verb: str, before: str | None, by: int | None = None, why: str = ""
    ) -> None:
        """Write down who moved a job from where to where, and why."""
        await write_entry(
            connection,
            at=self.now(),
            verb=verb,
            job_id=row["id"],
            guild_id=row["guild_id"],
            by=by,
            before=before,
            after=row["state"],
            why=why,
        )

    async def settle(self, connection: Connection, row: Row, outcome: Outcome, word: LastWord | None) -> None:
        """End a start: move the job along, free its slots, and tell it."""
        now = self.now()
        settled = await first(
            connection,
            job_sql.SETTLE[outcome.state],
            {
                "id": row["id"],
                "attempt": row["attempt"],
                "run_after": now + outcome.pause_s if outcome.pause_s else 0.0,
                "finish": None if outcome.finish is None else int(outcome.finish),
                "micro_batch": outcome.micro_batch,
                "excused": int(outcome.is_excused),
                "last_word": None if word is None else word.model_dump_json(),
                "reason": outcome.detail or None,
                "now": now,
            },
        )
        assert settled is not None, f"no move from {row['state']} to {outcome.state}"
        await self.leave_slots(connection, row, outcome.state, outcome.detail)
        if outcome.state in {State.SUCCEEDED, State.STOPPED}:
            try:
                await write_measure(connection, settled, now)
            except ValueError:
                # A row that an estimate cannot read is no reason for a job not to end.
                log.exception("#%d: what it took is not kept for estimates", row["id"])
        log.info("#%d %s → %s %s", row["id"], row["state"], outcome.state, outcome.detail)
        await self.moved(connection, settled, verb="settle", before=row["state"], why=outcome.detail)
        if outcome.notice is not None:
            await self.tell_end(connection, settled, outcome.notice, word, outcome.detail)

    async def leave_slots(self, connection: Connection, row: Row, outcome: State, why: str) -> None:
        """Free the slots of a start that is over, and end its line in the history."""
        values = {"id": row["id"], "attempt": row["attempt"], "now": self.now(), "outcome": outcome, "why": why or None}
        await connection.execute_fetchall(job_sql.FREE_SLOTS_OF, {"id": row["id"]})
        await connection.execute_fetchall(job_sql.END_ATTEMPT, values)

    async def tell_end(
        self, connection: Connection, row: Row, kind: NoticeKind, word: LastWord | None, detail: str
    ) -> None:
        """Put the notice about a start's end into the outbox; a child's end is for its study to tell."""
        if row["parent_id"] is not None:
            return
        job_id, attempt = row["id"], row["attempt"]
        events = end_events(kind, word, await events_of(connection, job_id))
        notice = Notice(kind=kind, job_id=job_id, attempt=attempt, events=events, detail=detail)
        key = end_key(job_id, kind, attempt, row["round"])
        await self.outbox.put(connection, notice, channel_id=row["channel_id"], dedupe_key=key)
