"""The dispatcher's side of the queue: claiming, hearing and settling starts, each under its attempt as the fence."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from bot.config import QueueSettings
from bot.crashing import crash_point
from bot.db import Connection, Row
from bot.queue.domain.job import ACTIVE, StopIntent
from bot.queue.domain.rules import after_last_word, after_loss
from bot.queue.store import job_sql
from bot.queue.store.ingest import Said, first, run_of, write_down
from bot.queue.store.job_rows import Busy, busy_of
from bot.queue.store.queue_control import HALT_SETTING
from bot.queue.store.transitions import Moves
from bot.runners import Handle
from trainer.protocol.events import EpochEnded, Event, Started

log = logging.getLogger(__name__)


class Runs:
    """Starts of jobs, from the claim to the settlement."""

    def __init__(self, moves: Moves, settings: QueueSettings) -> None:
        self._moves = moves
        self._db = moves.db
        self._settings = settings
        #: Events written down since the bot started.
        self.events_heard = 0

    async def busy(self) -> list[Busy]:
        """Jobs that hold slots."""
        return [busy_of(row) for row in await self._db.all(job_sql.BUSY)]

    async def claim(self) -> Busy | None:
        """Take the first in line, if it may start and there are slots for it; None if not."""
        async with self._db.transaction() as connection:
            row = await self._next(connection)
            if row is None:
                return None
            await self._take_slots(connection, row)
            await self._moves.moved(connection, row, verb="claim", before="queued")
            crash_point("claim_open")
        crash_point("claim_committed")
        log.info("#%d claimed (attempt %d)", row["id"], row["attempt"])
        return next((busy for busy in await self.busy() if busy.job_id == row["id"]), None)

    async def _next(self, connection: Connection) -> Row | None:
        now = {"now": self._moves.now()}
        if await first(connection, "SELECT 1 FROM setting WHERE name = ?", (HALT_SETTING,)):
            return None
        ready = await first(connection, job_sql.FIRST_READY_STUDY, now)
        if ready is None:
            ready = await first(connection, job_sql.FIRST_READY, now)
            free = await first(connection, job_sql.FREE_SLOTS, ())
            assert free is not None
            if ready is None or free["free"] < ready["gpus"]:
                return None
        if ready["gpus"] and not ready["is_front"]:
            served = {name: ready[name] for name in ("priority", "owner_id", "turn")}
            await connection.execute_fetchall(job_sql.SERVE, served)
        return await first(connection, job_sql.CLAIM, {**now, "id": ready["id"]})

    async def _take_slots(self, connection: Connection, row: Row) -> None:
        values = {"id": row["id"], "attempt": row["attempt"], "gpus": row["gpus"]}
        taken = sorted(await connection.execute_fetchall(job_sql.TAKE_SLOTS, values), key=lambda slot: slot["position"])
        assert len(taken) == row["gpus"], f"#{row['id']} got {len(taken)} of {row['gpus']} slots"
        names = ", ".join(slot["name"] for slot in taken)
        more = {"guild_id": row["guild_id"], "owner_id": row["owner_id"], "slots": names, "now": self._moves.now()}
        await connection.execute_fetchall(job_sql.BEGIN_ATTEMPT, {**values, **more})

    async def started(self, job_id: int, attempt: int, handle: Handle) -> None:
        """Write down where a claimed job runs."""
        await self._update("handle = :value", job_id, attempt, handle)

    async def stop_sent(self, job_id: int, attempt: int) -> None:
        """Write down that the trainer was told to stop."""
        await self._update("stop_sent_at = :value", job_id, attempt, self._moves.now())

    async def to_be_killed(self, job_id: int, attempt: int, why: str) -> None:
        """Write down that the process is killed, and why, for what is told once it is gone."""
        async with self._db.transaction() as connection:
            values = {"id": job_id, "attempt": attempt, "why": why, "now": self._moves.now()}
            await connection.execute_fetchall(job_sql.KILLED_FOR, values)
            await connection.execute_fetchall(job_sql.TO_BE_KILLED, values)

    async def ingest(self, job_id: int, attempt: int, events: Sequence[Event], read_bytes: int) -> bool:
        """Write down what a trainer said and how far it was read, with every notice that follows, in one transaction.

        A last word at the end of `events` ends the run. Events that are known already, or come from an attempt that
        lost the job, are passed over. False, and nothing is changed, if that attempt no longer runs.
        """
        async with self._db.transaction() as connection:
            row = await first(connection, job_sql.ONE_BUSY, (job_id, attempt))
            if row is None:
                return False
            said = await write_down(connection, self._moves.outbox, row, events)
            row = await self._heard(connection, row, said, read_bytes)
            if said.last_word is not None:
                run = await run_of(connection, row, self._settings)
                await self._moves.settle(connection, row, after_last_word(run, said.last_word), said.last_word)
            elif events:
                await self._go_on(connection, row, events)
            crash_point("ingest_open")
        crash_point("ingest_committed")
        self.events_heard += len(events)
        return True

    async def _heard(self, connection: Connection, row: Row, said: Said, read_bytes: int) -> Row:
        step = None if said.step is None else said.step.model_dump_json()
        values = {"read_bytes": read_bytes, "last_seq": said.last_seq, "step": step, "now": self._moves.now()}
        heard = await first(connection, job_sql.HEARD, {"id": row["id"], **values})
        assert heard is not None
        return heard

    async def _go_on(self, connection: Connection, row: Row, events: Sequence[Event]) -> None:
        """What the events of a run that goes on mean for the job itself."""
        await self._moves.touch(connection, row)
        if row["state"] == "preparing" and any(isinstance(event, Started) for event in events):
            began = await first(connection, job_sql.BEGAN, {"id": row["id"], "attempt": row["attempt"]})
            if began is not None:
                row = began
                await self._moves.moved(connection, row, verb="begin", before="preparing")
        until = row["until_epoch"]
        if until is not None and any(isinstance(event, EpochEnded) and event.epoch >= until for event in events):
            # A study's child has come as far as it is asked to for now.
            values = {"id": row["id"], "by": None, "intent": StopIntent.PAUSE}
            stopping = await first(connection, job_sql.STOP_ACTIVE, values)
            if stopping is not None:
                why = f"epoch {until} is reached"
                await self._moves.moved(connection, stopping, verb="pause", before=row["state"], why=why)

    async def lost(self, job_id: int, attempt: int, why: str | None = None, *, is_cut_off: bool = False) -> bool:
        """The trainer is gone without a last word; False if that is no news.

        `why`: it could not even be started; `is_cut_off`: its machine went down under it.
        """
        async with self._db.transaction() as connection:
            row = await first(connection, job_sql.ONE_BUSY, (job_id, attempt))
            if row is None:
                return False
            run = await run_of(connection, row, self._settings)
            noted = await first(connection, job_sql.WHY_KILLED, (job_id, attempt))
            killed = None if noted is None else noted["why"]
            outcome = after_loss(run, why, is_cut_off=is_cut_off, killed=killed)
            await self._moves.settle(connection, row, outcome, None)
            crash_point("lost_open")
        crash_point("lost_committed")
        return True

    async def _update(self, change: str, job_id: int, attempt: int, value: str | float) -> None:
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(
                f"UPDATE job SET {change} WHERE id = :id AND attempt = :attempt AND state IN {job_sql.listed(ACTIVE)}",
                {"id": job_id, "attempt": attempt, "value": value},
            )
