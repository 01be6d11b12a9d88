"""The dispatcher's side of the queue: claims, ingested events and ends of attempts, fenced by the attempt number."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from bot.bot_failpoints import failpoint
from bot.config import QueueSettings, SamplingSettings
from bot.db import Connection, Row
from bot.queue.domain.job import ACTIVE, ActiveJob, EndReason, EndReasonKind, State, StopIntent
from bot.queue.domain.reducer import IngestResult, ingest_events
from bot.queue.domain.rules import after_loss, after_terminal_event
from bot.queue.store import job_sql
from bot.queue.store.history import AuditReason
from bot.queue.store.queue_control import PAUSE_SETTING
from bot.queue.store.transitions import Transitions, first, only
from bot.runners import Handle
from trainer.protocol.events import (
    BaseValidated,
    EpochEnded,
    Event,
    ImageDrawn,
    PhaseBegan,
    SamplingStarted,
    Started,
)
from trainer.protocol.run_options import JobKind

log = logging.getLogger(__name__)

#: Events that change `Progress`, beside those that come every second.
_ABOUT_PROGRESS = (Started, SamplingStarted, PhaseBegan, BaseValidated, EpochEnded, ImageDrawn)
#: Samplings that go before a training that waits; then it is its turn.
_MAX_SAMPLINGS_IN_A_ROW = 5


class AttemptStore:
    """Attempts of jobs, from the claim to the settled end."""

    def __init__(self, transitions: Transitions, settings: QueueSettings, sampling: SamplingSettings) -> None:
        self._transitions = transitions
        self._db = transitions.db
        self._settings = settings
        self._sampling = sampling
        #: Events ingested since the bot started.
        self.events_ingested = 0

    async def active(self) -> list[ActiveJob]:
        """Return the jobs that hold slots, and the studies that run."""
        return [ActiveJob.from_row(row) for row in await self._db.all(job_sql.ACTIVE_JOBS)]

    async def active_job(self, job_id: int, attempt: int) -> ActiveJob | None:
        """Return an active job; None if that attempt no longer runs."""
        row = await self._db.one(job_sql.ACTIVE_JOB, (job_id, attempt))
        return None if row is None else ActiveJob.from_row(row)

    async def claim(self) -> ActiveJob | None:
        """Claim the first job in the queue with its slots; None if it may not start or too few slots are free."""
        async with self._db.transaction() as connection:
            row = await self._claim_next(connection)
            if row is None:
                return None
            await self._take_slots(connection, row)
            await self._transitions.record(connection, row, verb="claim", before="queued")
            failpoint("claim_open")
        failpoint("claim_committed")
        log.info("#%d claimed (attempt %d)", row["id"], row["attempt"])
        return await self.active_job(row["id"], row["attempt"])

    async def _claim_next(self, connection: Connection) -> Row | None:
        now = {"now": self._transitions.clock.time()}
        if await first(connection, "SELECT 1 FROM setting WHERE name = ?", (PAUSE_SETTING,)):
            return None
        ready = await first(connection, job_sql.FIRST_READY_STUDY, now)
        if ready is None:
            ready = await self._first_ready(connection, now)
            if ready is None:
                return None
            free = await only(connection, job_sql.FREE_SLOTS, ())
            if free["free"] < ready["gpus"] and not await self._may_run_beside(connection, ready):
                return None
        if ready["gpus"] and not ready["is_front"]:
            served = {name: ready[name] for name in ("kind", "priority", "owner_id", "turn")}
            await connection.execute_fetchall(job_sql.SERVE, served)
        return await first(connection, job_sql.CLAIM, {**now, "id": ready["id"]})

    async def _first_ready(self, connection: Connection, now: dict[str, float]) -> Row | None:
        """Return the first job that may start: a sampling before trainings, but not any number of them in a row."""
        sampling = await first(connection, job_sql.FIRST_READY, {**now, "kind": JobKind.SAMPLE})
        if sampling is None:
            return await first(connection, job_sql.FIRST_READY, {**now, "kind": JobKind.TRAIN})
        claims = await only(connection, job_sql.SAMPLINGS_IN_A_ROW, {"most": _MAX_SAMPLINGS_IN_A_ROW})
        training = None
        if claims["samplings"] >= _MAX_SAMPLINGS_IN_A_ROW:
            training = await first(connection, job_sql.FIRST_READY, {**now, "kind": JobKind.TRAIN})
        return training or sampling

    async def _may_run_beside(self, connection: Connection, ready: Row) -> bool:
        """True for a sampling that may share the GPU of a training; one that failed there waits for a slot of its own.

        One at a time: none of them knows what the others will need.
        """
        if not self._sampling.beside_training or ready["kind"] != JobKind.SAMPLE or ready["attempt"]:
            return False
        return await first(connection, job_sql.RUNNING_SAMPLING, ()) is None

    async def _take_slots(self, connection: Connection, row: Row) -> None:
        values = {"id": row["id"], "attempt": row["attempt"], "gpus": row["gpus"]}
        taken = sorted(await connection.execute_fetchall(job_sql.TAKE_SLOTS, values), key=lambda slot: slot["position"])
        is_beside = row["kind"] == JobKind.SAMPLE and not taken
        assert is_beside or len(taken) == row["gpus"], f"#{row['id']} got {len(taken)} of {row['gpus']} slots"
        more = {
            "guild_id": row["guild_id"],
            "owner_id": row["owner_id"],
            "slots": ", ".join(slot["name"] for slot in taken),
            "now": self._transitions.clock.time(),
        }
        await connection.execute_fetchall(job_sql.BEGIN_ATTEMPT, {**values, **more})

    async def set_handle(self, job_id: int, attempt: int, handle: Handle) -> None:
        """Store by which handle the runner finds the process again."""
        await self._update("handle = :value", job_id, attempt, handle)

    async def mark_stop_sent(self, job_id: int, attempt: int) -> None:
        """Record that the trainer was asked to stop."""
        await self._update("stop_sent_at = :value", job_id, attempt, self._transitions.clock.time())

    async def mark_killed(self, job_id: int, attempt: int, reason: EndReason) -> None:
        """Record that the process is about to be killed, and why; `lost` reads the reason."""
        values = {"id": job_id, "attempt": attempt, "now": self._transitions.clock.time()}
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(
                job_sql.SET_KILL_REASON, {**values, "reason": reason.model_dump_json(exclude_defaults=True)}
            )
            await connection.execute_fetchall(job_sql.MARK_STOP_SENT, values)

    async def ingest(self, job_id: int, attempt: int, events: Sequence[Event], read_bytes: int) -> bool:
        """Ingest events, with their notifications and how far the file was read, in one transaction.

        A terminal event at the end of `events` ends the attempt. Events that are known, or of a superseded attempt,
        are ignored. Returns False, and changes nothing, if that attempt no longer runs.
        """
        async with self._db.transaction() as connection:
            row = await first(connection, job_sql.ACTIVE_JOB, (job_id, attempt))
            if row is None:
                return False
            job = ActiveJob.from_row(row)
            result = ingest_events(job, events)
            await self._store(connection, result, read_bytes)
            if result.terminal_event is not None:
                # The state in the database; goals that the batch reached do not matter any more.
                ended = result.job.changed(state=job.state, stop_intent=job.stop_intent, stopped_by=job.stopped_by)
                outcome = after_terminal_event(ended, result.terminal_event, self._settings)
                await self._transitions.settle(connection, ended, outcome, result.terminal_event)
            elif events:
                await self._transitions.outbox.cards.touch(connection, job.card_id, channel_id=job.channel_id)
                await self._record_changes(connection, job, result.job)
            failpoint("ingest_open")
        failpoint("ingest_committed")
        self.events_ingested += len(events)
        return True

    async def _store(self, connection: Connection, result: IngestResult, read_bytes: int) -> None:
        job = result.job
        for event in result.stored:
            await connection.execute_fetchall(
                "INSERT INTO job_event (job_id, seq, attempt, type, body) VALUES (?, ?, ?, ?, ?)",
                (job.id, event.seq, job.attempt, event.type, event.model_dump_json()),
            )
        for notification in result.notifications:
            await self._transitions.outbox.put_news(connection, notification, channel_id=job.channel_id)
        step, progress = job.progress.step, None
        if result.counted or any(isinstance(event, _ABOUT_PROGRESS) for event in result.stored):
            progress = job.progress.model_dump_json(exclude={"step"}, exclude_defaults=True, exclude_none=True)
        values = {
            "id": job.id,
            "read_bytes": read_bytes,
            "last_seq": job.last_seq,
            "step": None if step is None else step.model_dump_json(),
            "progress": progress,
            "now": self._transitions.clock.time(),
        }
        await connection.execute_fetchall(job_sql.INGESTED, values)

    async def _record_changes(self, connection: Connection, before: ActiveJob, after: ActiveJob) -> None:
        """Make the transitions that `apply` made: the training began, or a child reached its goal."""
        state = before.state
        if state is State.PREPARING and after.state is not state:
            began = await only(connection, job_sql.BEGAN, {"id": after.id, "attempt": after.attempt})
            await self._transitions.record(connection, began, verb="begin", before=state)
            state = State.RUNNING
        if after.state is State.STOPPING and state is State.RUNNING:
            values = {"id": after.id, "by": None, "intent": StopIntent.PAUSE}
            stopping = await only(connection, job_sql.STOP_ACTIVE, values)
            reason = AuditReason.EPOCH_REACHED
            await self._transitions.record(connection, stopping, verb="pause", before=state, why=reason)

    async def lost(
        self, job_id: int, attempt: int, *, is_node_lost: bool = False, launch_error: str | None = None
    ) -> bool:
        """Settle an attempt whose process has exited without a terminal event; False if that is known.

        Args:
            job_id: The job.
            attempt: Its attempt.
            is_node_lost: The machine went down under it.
            launch_error: No process could be started; the error's sentence.
        """
        async with self._db.transaction() as connection:
            row = await first(connection, job_sql.ACTIVE_JOB, (job_id, attempt))
            if row is None:
                return False
            cause = EndReason(kind=EndReasonKind.PROCESS_DIED)
            if is_node_lost:
                cause = EndReason(kind=EndReasonKind.NODE_LOST)
            elif launch_error is not None:
                cause = EndReason(kind=EndReasonKind.LAUNCH_FAILED, message=launch_error)
            elif (killed := await first(connection, job_sql.KILL_REASON, (job_id, attempt))) is not None:
                cause = EndReason.model_validate_json(killed["end_reason"])
            job = ActiveJob.from_row(row)
            await self._transitions.settle(connection, job, after_loss(job, cause, self._settings), None)
            failpoint("lost_open")
        failpoint("lost_committed")
        return True

    async def _update(self, change: str, job_id: int, attempt: int, value: str | float) -> None:
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(
                f"UPDATE job SET {change} WHERE id = :id AND attempt = :attempt AND state IN {job_sql.listed(ACTIVE)}",
                {"id": job_id, "attempt": attempt, "value": value},
            )
