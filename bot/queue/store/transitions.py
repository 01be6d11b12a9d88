"""What every transition of a job causes, in the caller's transaction: card, notification, audit, freed slots."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from bot.clock import SYSTEM_CLOCK, Clock
from bot.db import Connection, Database, Row
from bot.db.audit import write_entry
from bot.outbox import Notification, NotificationKind, Outbox
from bot.queue.domain.job import ActiveJob, NewJob, State
from bot.queue.domain.reducer import end_notification
from bot.queue.domain.rules import AttemptOutcome
from bot.queue.store import job_sql
from bot.queue.store.measures import write_measure
from trainer.protocol.events import TerminalEvent
from trainer.protocol.run_options import JobKind

log = logging.getLogger(__name__)


async def first(connection: Connection, statement: str, parameters: Iterable[Any] | Mapping[str, Any]) -> Row | None:
    """Return the first row that a statement returns, or None."""
    rows = await connection.execute_fetchall(statement, parameters)
    return next(iter(rows), None)


async def only(connection: Connection, statement: str, parameters: Iterable[Any] | Mapping[str, Any] = ()) -> Row:
    """Return the first row of a statement that always returns one."""
    row = await first(connection, statement, parameters)
    assert row is not None, statement
    return row


class Transitions:
    """The one place where a changed row becomes messages and a line of the audit."""

    def __init__(self, db: Database, outbox: Outbox, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.db = db
        self.outbox = outbox
        self.clock = clock
        #: Set when the dispatcher has something to do.
        self.changed = asyncio.Event()

    async def submit(self, connection: Connection, new: NewJob, *, by: int | None = None, why: str = "") -> Row:
        """Queue a job, behind those of its owner."""
        order = {"owner_id": new.owner_id, "kind": new.kind, "priority": new.priority}
        values = {
            **{field.name: getattr(new, field.name) for field in fields(new)},
            "kind": new.kind,
            "name": new.name,
            "spec": new.spec.model_dump_json(),
            "dataset_id": new.dataset_id or None,
            "folder": new.folder or None,
            "run_after": 0.0 if new.run_after is None else new.run_after.timestamp(),
            "turn": (await only(connection, job_sql.NEXT_TURN, order))[0],
            "now": self.clock.time(),
        }
        row = await only(connection, job_sql.SUBMIT, values)
        await self.record(connection, row, verb="submit", before=None, by=by, why=why)
        return row

    async def record(
        self, connection: Connection, row: Row, *, verb: str, before: str | None, by: int | None = None, why: str = ""
    ) -> None:
        """Write the audit, mark the cards that the transition changes as stale, and wake the dispatcher."""
        await write_entry(
            connection,
            at=self.clock.time(),
            verb=verb,
            job_id=row["id"],
            guild_id=row["guild_id"],
            by=by,
            before=before,
            after=row["state"],
            why=why,
        )
        await self.touch(connection, row, at_once=True)
        # Queued jobs may have another position now.
        others = await connection.execute_fetchall(job_sql.NEXT_QUEUED, (row["id"],))
        await self.outbox.cards.touch_all(connection, [(other["id"], other["channel_id"]) for other in others])
        self.db.after_commit(self.changed.set)

    async def touch(self, connection: Connection, row: Row, *, at_once: bool = False) -> None:
        """Mark the job's card as stale; a child of a study is on its study's card."""
        job_id = row["parent_id"] or row["id"]
        await self.outbox.cards.touch(
            connection,
            job_id,
            channel_id=row["channel_id"],
            at_once=at_once,
            # The card of a sampling is in the thread of its training, or stands for itself.
            is_threaded=row["kind"] == JobKind.TRAIN,
        )

    async def notify_queued(self, connection: Connection, row: Row) -> None:
        """Notify watchers that a training is queued; the person who asked for a sampling knows."""
        if row["kind"] == JobKind.SAMPLE:
            return
        notification = Notification(
            kind=NotificationKind.QUEUED,
            job_id=row["id"],
            dedupe_key=f"job:{row['id']}:queued",
            guild_id=row["guild_id"],
            owner_id=row["owner_id"],
        )
        await self.outbox.put_news(connection, notification, channel_id=row["channel_id"])

    async def settle(
        self, connection: Connection, job: ActiveJob, outcome: AttemptOutcome, event: TerminalEvent | None
    ) -> None:
        """End an attempt: change the job's state, free its slots, and notify its owner."""
        now = self.clock.time()
        reason = outcome.reason.model_dump_json(exclude_defaults=True) if outcome.reason else None
        row = await first(
            connection,
            job_sql.SETTLE[outcome.state],
            {
                "id": job.id,
                "attempt": job.attempt,
                "run_after": now + outcome.pause_s if outcome.pause_s else 0.0,
                "finish": None if outcome.finish is None else int(outcome.finish),
                "micro_batch": outcome.micro_batch,
                "uncounted": int(outcome.is_uncounted),
                "terminal_event": None if event is None else event.model_dump_json(),
                "reason": reason,
                "now": now,
            },
        )
        assert row is not None, f"no transition from {job.state} to {outcome.state}"
        await connection.execute_fetchall(job_sql.FREE_SLOTS_OF, {"id": job.id})
        await connection.execute_fetchall(
            job_sql.END_ATTEMPT,
            {"id": job.id, "attempt": job.attempt, "now": now, "outcome": outcome.state, "reason": reason},
        )
        if outcome.state in {State.SUCCEEDED, State.STOPPED}:
            try:
                await write_measure(connection, job.changed(state=outcome.state), now)
            except ValueError:
                # Spec or counts cannot be read; the job ends all the same.
                log.exception("#%d: its duration is not kept for estimates", job.id)
        why = "" if outcome.reason is None else str(outcome.reason.kind)
        log.info("#%d %s → %s %s", job.id, job.state, outcome.state, why)
        await self.record(connection, row, verb="settle", before=job.state, why=why)
        if outcome.notification is not None:
            await self.notify_end(connection, row, outcome.notification, event)

    async def notify_end(
        self, connection: Connection, row: Row, kind: NotificationKind, event: TerminalEvent | None = None
    ) -> None:
        """Notify the owner of an end; that of a child is reported by its study, a loss of a sampling by its card."""
        is_on_card = row["kind"] == JobKind.SAMPLE and kind in {NotificationKind.LOST, NotificationKind.PAUSED}
        if row["parent_id"] is None and not is_on_card:
            notification = end_notification(
                kind,
                event,
                job_id=row["id"],
                guild_id=row["guild_id"],
                owner_id=row["owner_id"],
                attempt=row["attempt"],
                round_=row["round"],
            )
            by = row["stopped_by"] if kind is NotificationKind.CANCELLED else None
            await self.outbox.put_news(connection, notification, channel_id=row["channel_id"], by=by)
