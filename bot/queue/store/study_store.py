"""A study's side of the queue: its children are ordinary jobs that it creates, aims at an epoch, and ends."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from bot.config import LimitSettings
from bot.db import Connection, Row
from bot.outbox import NotificationKind
from bot.queue.domain.job import LIVING, ActiveJob, EndReason, EndReasonKind, Job, NewJob, State, StopIntent
from bot.queue.domain.rules import AttemptOutcome
from bot.queue.store import job_sql
from bot.queue.store.history import AuditReason
from bot.queue.store.transitions import Transitions, first, only
from trainer.protocol.spec import Spec

log = logging.getLogger(__name__)

_AIM = "UPDATE job SET until_epoch = :until_epoch WHERE id = :id AND until_epoch IS NOT :until_epoch"
_ROUND = "UPDATE job SET round = :round WHERE id = :id"
_CHILDREN = "SELECT * FROM job WHERE parent_id = ? ORDER BY id"
_STOPS = (job_sql.CANCEL_WAITING, job_sql.PAUSE_QUEUED, job_sql.STOP_HARDER, job_sql.STOP_ACTIVE)


@dataclass(frozen=True, kw_only=True)
class StudyGoal:
    """A child that a study needs, and how far it trains."""

    name: str
    #: Below the study's folder; holds its spec.json.
    folder: str
    spec: Spec
    #: It stops at the end of this epoch; None: it runs to its end.
    until_epoch: int | None


def is_of_earlier_round(child: Job, study: Job) -> bool:
    """True if a child ended before its study was retried: it gets another attempt."""
    return child.round < study.round


class StudyStore:
    """Changes studies and their children, each in one transaction that is fenced by the study's attempt."""

    def __init__(self, transitions: Transitions, limits: LimitSettings) -> None:
        self._transitions = transitions
        self._limits = limits
        self._db = transitions.db

    async def children(self, job_id: int) -> list[Job]:
        """Return the children of a study, in the order in which they were created."""
        rows = await self._db.all(f"{job_sql.JOBS} parent_id = ? ORDER BY id", (job_id,))
        return [Job.from_row(row) for row in rows]

    async def set_goals(self, job_id: int, attempt: int, goals: Sequence[StudyGoal], step: str) -> bool:
        """Store the study's newest step, and queue or aim the children it needs; False if it no longer runs.

        Children that are queued count as jobs of their owner, who may have so many: the others are created at a later
        step, which follows when one of these starts.
        """
        async with self._db.transaction() as connection:
            study = await self._active(connection, job_id, attempt)
            if study is None or study.state is State.STOPPING:
                return False
            if study.state is State.PREPARING:
                began = await only(connection, job_sql.BEGAN, {"id": job_id, "attempt": attempt})
                await self._transitions.record(connection, began, verb="begin", before=study.state)
            await self._store_step(connection, job_id, step)
            known = {row["child_name"]: row for row in await connection.execute_fetchall(_CHILDREN, (job_id,))}
            room = await self._room(connection, study)
            for goal in goals:
                if (row := known.get(goal.name)) is not None:
                    await self._aim(connection, study, row, goal.until_epoch)
                elif room > 0:
                    await self._create(connection, study, goal)
                    room -= 1
        return True

    async def _room(self, connection: Connection, study: ActiveJob) -> int:
        """How many children may be created now; one, however many jobs their owner has, if none of them is queued."""
        values = {"owner_id": study.owner_id, "guild_id": study.guild_id, "kind": study.kind, "study_id": study.id}
        queued = await only(connection, job_sql.COUNT_QUEUED, values)
        allowed = study.max_waiting or self._limits.max_jobs_per_user
        return max(allowed - int(queued["jobs"]), 0 if queued["children"] else 1)

    async def _active(self, connection: Connection, job_id: int, attempt: int) -> ActiveJob | None:
        row = await first(connection, job_sql.ACTIVE_JOB, (job_id, attempt))
        return None if row is None else ActiveJob.from_row(row)

    async def _store_step(self, connection: Connection, job_id: int, step: str) -> None:
        row = await only(connection, "UPDATE job SET study_step = ? WHERE id = ? RETURNING *", (step, job_id))
        await self._transitions.touch(connection, row)

    async def _create(self, connection: Connection, study: ActiveJob, goal: StudyGoal) -> None:
        child = NewJob(
            guild_id=study.guild_id,
            channel_id=study.channel_id,
            owner_id=study.owner_id,
            dataset_id=study.dataset_id,
            priority=study.priority,
            max_running=study.max_running,
            max_waiting=study.max_waiting,
            spec=goal.spec,
            parent_id=study.id,
            child_name=goal.name,
            folder=f"{study.folder}/{goal.folder}",
            until_epoch=goal.until_epoch,
        )
        row = await self._transitions.submit(connection, child, why=AuditReason.STUDY_CHILD)
        log.info("#%d queued (%s of #%d)", row["id"], goal.name, study.id)

    async def _aim(self, connection: Connection, study: ActiveJob, child: Row, until_epoch: int | None) -> None:
        """Let an existing child train to a new goal; after a Retry of its study also one that had ended."""
        await connection.execute_fetchall(_AIM, {"id": child["id"], "until_epoch": until_epoch})
        row, verb = await first(connection, job_sql.RESUME, {"id": child["id"]}), "resume"
        if row is None and child["round"] < study.round:
            row, verb = await first(connection, job_sql.RETRY, {"id": child["id"]}), "retry"
            await connection.execute_fetchall(_ROUND, {"id": child["id"], "round": study.round})
        if row is not None:
            await self._transitions.record(connection, row, verb=verb, before=child["state"])

    async def stop_children(self, job_id: int, intent: StopIntent, *, why: AuditReason) -> int:
        """Cancel or pause the children of a study that have not ended; returns how many still hold slots."""
        holding = 0
        for child in await self._db.all(_CHILDREN, (job_id,)):
            state = State(child["state"])
            if state not in LIVING or (intent is StopIntent.PAUSE and state is State.PAUSED):
                continue
            values = {"id": child["id"], "by": None, "intent": intent, "now": self._transitions.clock.time()}
            async with self._db.transaction() as connection:
                for statement in _STOPS:
                    row = await first(connection, statement, values)
                    if row is not None:
                        await self._transitions.record(connection, row, verb=intent, before=state, why=why)
                        break
            holding += state.is_active
        return holding

    async def end(self, job_id: int, attempt: int, state: State, *, message: str = "", step: str | None = None) -> bool:
        """End or pause a study of which no child holds a slot; False if it no longer runs.

        `message` is the trainer's verdict or error.
        """
        kinds = {
            State.FAILED: NotificationKind.FAILED,
            State.PAUSED: NotificationKind.PAUSED,
            State.CANCELLED: NotificationKind.CANCELLED,
        }
        outcome = AttemptOutcome(
            state=state,
            notification=kinds.get(state, NotificationKind.DONE),
            reason=EndReason(kind=EndReasonKind.STUDY, message=message) if message else None,
            is_uncounted=state is State.PAUSED,
        )
        async with self._db.transaction() as connection:
            study = await self._active(connection, job_id, attempt)
            if study is None:
                return False
            if step is not None:
                await self._store_step(connection, job_id, step)
            await self._transitions.settle(connection, study, outcome, None)
        return True
