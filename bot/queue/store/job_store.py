"""The user's side of the queue: submit, query, stop, pause and resume jobs; each change is one guarded UPDATE."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from bot.bot_failpoints import failpoint
from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import LimitSettings, QueueSettings, SamplingSettings
from bot.db import Connection, Database, Row
from bot.db.audit import AuditEntry, read_entries
from bot.errors import DuplicateJob, JobFilesDeleted, NoSuchDataset, NoSuchJob
from bot.outbox import Notification, NotificationKind, Outbox
from bot.queue.domain.job import ACTIVE, EndReason, Job, NewJob, Priority, State, StopIntent
from bot.queue.domain.reducer import events_shown
from bot.queue.domain.verbs import require_room, require_sampling_room
from bot.queue.store import job_sql
from bot.queue.store.attempts import AttemptStore
from bot.queue.store.draft_store import require_waiting
from bot.queue.store.gallery_store import GalleryStore
from bot.queue.store.history import AttemptRecord, AuditReason, read_attempts
from bot.queue.store.limits import require_gpus
from bot.queue.store.queue_control import QueueControl
from bot.queue.store.sample_votes import SampleVotes
from bot.queue.store.slots import Slots
from bot.queue.store.study_store import StudyStore
from bot.queue.store.transitions import Transitions, first, only
from trainer.protocol.events import Event, parse_event
from trainer.protocol.run_options import JobKind
from trainer.protocol.spec import Spec
from trainer.protocol.study import StudyStep

log = logging.getLogger(__name__)

_STOPS = (
    job_sql.CANCEL_WAITING,
    job_sql.FINISH_WAITING,
    job_sql.PAUSE_QUEUED,
    job_sql.STOP_HARDER,
    job_sql.STOP_ACTIVE,
)

#: The event of a notification, and the earlier ones that its message may show.
_EVENTS_SHOWN = """
SELECT body FROM job_event
WHERE job_id = :job_id AND (seq = :seq OR (seq < :seq AND type IN ('epoch_ended', 'sampled', 'tested', 'exported')))
ORDER BY seq DESC LIMIT 50
"""


class JobStore:
    """Accepts jobs and changes them for users; `attempts` is the dispatcher's side of the same tables."""

    def __init__(
        self,
        db: Database,
        outbox: Outbox,
        *,
        data_dir: Path,
        limits: LimitSettings | None = None,
        queue: QueueSettings | None = None,
        sampling: SamplingSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._db = db
        self._transitions = Transitions(db, outbox, clock=clock)
        self.outbox = outbox
        self._jobs_dir = data_dir.absolute() / "jobs"
        self._limits = limits or LimitSettings()
        self._sampling = sampling or SamplingSettings()
        self._clock = clock
        self.attempts = AttemptStore(self._transitions, queue or QueueSettings(), self._sampling)
        self.studies = StudyStore(self._transitions, self._limits)
        self.gallery = GalleryStore(self._transitions)
        self.votes = SampleVotes(self._transitions)
        self.slots = Slots(db, clock=clock)
        self.control = QueueControl(self._transitions)
        #: Set when the dispatcher has something to do.
        self.changed = self._transitions.changed

    def job_dir(self, job: Job) -> Path:
        """Return the folder of a job: spec.json, events.jsonl, samples/, charts/, checkpoints/, output/."""
        return self._jobs_dir / job.folder

    def folder(self, name: str) -> Path:
        """Return a folder for the files of a job that is not queued yet (`NewJob.folder`)."""
        return self._jobs_dir / name

    # -- queries ---------------------------------------------------------------------------------------------------

    async def get(self, job_id: int) -> Job:
        """Return a job.

        Raises:
            NoSuchJob: There is none.
        """
        jobs = await self._jobs("id = ?", job_id)
        if not jobs:
            raise NoSuchJob(job_id=job_id)
        return jobs[0]

    async def get_in(self, guild_id: int, job_id: int) -> Job:
        """Return a job of a server.

        Raises:
            NoSuchJob: There is none in that server.
        """
        job = await self.get(job_id)
        if job.guild_id != guild_id:
            raise NoSuchJob(job_id=job_id)
        return job

    async def living(self, guild_id: int, *, most: int = 1000, skip: int = 0) -> list[Job]:
        """Return jobs of a server that have not ended: running and paused ones, then the queue in its order.

        Args:
            guild_id: The server.
            most: How many that run, are paused, and are queued, of each.
            skip: Leave out so many of the queue's first.
        """
        values = {"guild_id": guild_id, "most": most, "skip": skip}
        return [Job.from_row(row) for row in await self._db.all(job_sql.BOARD, values)]

    async def count_living(self, guild_id: int) -> dict[State, int]:
        """Return how many jobs of a server have not ended, by state."""
        return {
            State(row["state"]): row["jobs"] for row in await self._db.all(job_sql.COUNT_LIVING, {"guild_id": guild_id})
        }

    async def recent(self, guild_id: int, limit: int = 25) -> list[Job]:
        """Return the newest trainings of a server, newest first."""
        newest = "guild_id = ? AND parent_id IS NULL AND kind = 'train' ORDER BY id DESC LIMIT ?"
        return await self._jobs(newest, guild_id, limit)

    async def search(
        self,
        guild_id: int,
        text: str,
        limit: int = 25,
        *,
        states: Collection[State] = tuple(State),
        owner_id: int | None = None,
        kind: JobKind | None = None,
    ) -> list[Job]:
        """Return jobs of a server whose ID begins with `text` (`#` or not) or whose name contains it; living first.

        Args:
            guild_id: The server.
            text: What they match.
            limit: How many.
            states: Only in these states.
            owner_id: Only of this member.
            kind: Only of this kind.
        """
        values = {
            "guild_id": guild_id,
            "text": text.strip().removeprefix("#"),
            "limit": limit,
            "owner_id": owner_id,
            "kind": kind,
        }
        return [Job.from_row(row) for row in await self._db.all(job_sql.search(frozenset(states)), values)]

    async def queued_ids(self) -> list[int]:
        """Return the queued jobs of all servers, in the order in which they will start."""
        return [row["id"] for row in await self._db.all(job_sql.QUEUE)]

    async def queued(self) -> list[Job]:
        """Return the jobs of `queued_ids`."""
        return await self._jobs(f"state = 'queued' ORDER BY {job_sql.ORDER}")

    async def queue_position(self, job_id: int) -> int | None:
        """Return 1 for the job that starts next; None for one that is not queued."""
        return (await self.queue_positions([job_id])).get(job_id)

    async def queue_positions(self, job_ids: Sequence[int]) -> dict[int, int]:
        """Return `queue_position` of each of these jobs that is queued."""
        placeholders = ", ".join("?" * len(job_ids))
        rows = await self._db.all(f"{job_sql.POSITIONS} IN ({placeholders})", job_ids)
        return {row["id"]: row["position"] for row in rows}

    async def events(self, job_id: int) -> tuple[Event, ...]:
        """Return the stored events of a job, oldest first: all but `step_done`, `phase_progress` and `keep_alive`."""
        rows = await self._db.all("SELECT body FROM job_event WHERE job_id = ? ORDER BY seq", (job_id,))
        return tuple(parse_event(row[0]) for row in rows)

    async def events_of(self, notification: Notification) -> tuple[Event, ...]:
        """Return the events that the message of a notification shows, its own last."""
        if not notification.seq:
            return ()
        values = {"job_id": notification.job_id, "seq": notification.seq}
        rows = await self._db.all(_EVENTS_SHOWN, values)
        return events_shown(notification, [parse_event(row[0]) for row in reversed(rows)])

    async def end_reason_of(self, notification: Notification) -> EndReason | None:
        """Return why the attempt of a notification ended; None if there is nothing to add to its events."""
        row = await self._db.one(
            "SELECT end_reason FROM attempt WHERE job_id = ? AND attempt = ?",
            (notification.job_id, notification.attempt),
        )
        return None if row is None or row[0] is None else EndReason.model_validate_json(row[0])

    async def attempt_history(self, job_id: int) -> list[AttemptRecord]:
        """Return the attempts of a job, oldest first."""
        return await read_attempts(self._db, job_id)

    async def audit(self, *, guild_id: int, job_id: int | None = None, limit: int = 20) -> list[AuditEntry]:
        """Return the newest lines of a server's audit, or of one job in it, newest first."""
        return await read_entries(self._db, guild_id=guild_id, job_id=job_id, limit=limit)

    async def owner_runs(self, job_id: int) -> tuple[int, int | None]:
        """Return how many trainings of a job's owner run, and how many may while it is queued (None: any number)."""
        row = await self._db.one(job_sql.OWNER_RUNS, (job_id,))
        return (0, None) if row is None else (row["runs"], row["max_running"])

    async def study_step(self, job_id: int) -> StudyStep | None:
        """Return the newest step of a study; None before the first."""
        row = await self._db.one("SELECT study_step FROM job WHERE id = ?", (job_id,))
        return None if row is None or row[0] is None else StudyStep.model_validate_json(row[0])

    async def _jobs(self, condition: str, *parameters: int | str) -> list[Job]:
        return [Job.from_row(row) for row in await self._db.all(job_sql.JOBS + condition, parameters)]

    # -- submission ------------------------------------------------------------------------------------------------

    async def submit(self, new: NewJob, *, may_repeat: bool = False) -> Job:
        """Queue a job; once this returns it is queued, also after a power cut. The same interaction twice is one job.

        It is the job of the draft of that interaction, if there is one.

        Args:
            new: The job.
            may_repeat: Accept a duplicate ("Queue anyway").

        Raises:
            TooManyWaiting: Its owner has as many queued jobs as they may have.
            DuplicateJob: A job with its fingerprint is queued, runs, or has succeeded.
            DraftEnded: Its draft was cancelled.
            NotEnoughGpus: It needs more GPUs than there are.
            NoSuchDataset, JobFilesDeleted: Its dataset was deleted, or what it draws with or starts from.
        """
        async with self._db.transaction() as connection:
            row = await first(connection, "SELECT * FROM job WHERE interaction_id = ?", (new.interaction_id,))
            if row is None:
                await require_waiting(connection, new.interaction_id)
                if new.kind is JobKind.TRAIN:
                    await self._require_dataset(connection, new.dataset_id)
                await self._require_source(connection, new)
                await self._require_room(connection, new, new.max_waiting)
                if not may_repeat:
                    await self._require_unique(connection, new)
                slots = await only(connection, "SELECT COUNT(*) FROM slot WHERE is_enabled", ())
                require_gpus(new.gpus, slots[0])
                row = await self._insert(connection, new)
            failpoint("submit_open")
        failpoint("submit_committed")
        return await self.get(row["id"])

    async def _require_dataset(self, connection: Connection, dataset_id: int) -> None:
        # In the transaction of the job: a dataset that a job needs cannot be deleted, and no job gets a deleted one.
        dataset = "SELECT 1 FROM dataset WHERE id = ? AND deleted_at IS NULL"
        if await first(connection, dataset, (dataset_id,)) is None:
            raise NoSuchDataset(wanted=dataset_id)

    async def _require_source(self, connection: Connection, new: NewJob) -> None:
        # In the transaction of the new job: what it draws with, or starts from, is kept from here on.
        row = await first(connection, "SELECT files_deleted_at FROM job WHERE id = ?", (new.source_id,))
        if new.source_id is not None and (row is None or row["files_deleted_at"] is not None):
            raise JobFilesDeleted(job_id=new.source_id)

    async def _require_room(self, connection: Connection, job: NewJob | Job, max_waiting: int | None) -> None:
        values = {"owner_id": job.owner_id, "guild_id": job.guild_id, "kind": job.kind, "study_id": None}
        queued = await only(connection, job_sql.COUNT_QUEUED, values)
        if job.kind is JobKind.TRAIN:
            require_room(queued["jobs"], max_waiting or self._limits.max_jobs_per_user)
            return
        in_server = await only(connection, job_sql.COUNT_SAMPLINGS, values)
        require_sampling_room(queued["jobs"], in_server["jobs"], self._sampling)

    async def _require_unique(self, connection: Connection, new: NewJob) -> None:
        if new.fingerprint is None:
            return
        values = {"fingerprint": new.fingerprint, "guild_id": new.guild_id}
        same = await first(connection, job_sql.DUPLICATE, values)
        if same is not None:
            raise DuplicateJob(job_id=same["id"], state=same["state"])

    async def _insert(self, connection: Connection, new: NewJob) -> Row:
        row = await self._transitions.submit(connection, new, by=new.owner_id)
        await self._transitions.notify_queued(connection, row)
        log.info("#%d queued (%s, %s)", row["id"], new.name, new.spec.base.source)
        return row

    # -- changes ---------------------------------------------------------------------------------------------------

    async def request_stop(self, job_id: int, *, by: int | None, intent: StopIntent, why: str = "") -> Job:
        """Stop a queued job at once, a running one at a checkpoint; an ended job is unchanged.

        Raises:
            NoSuchJob: There is no such job.
        """
        values = {"id": job_id, "by": by, "intent": intent, "now": self._clock.time()}
        async with self._db.transaction() as connection:
            before = await first(connection, "SELECT * FROM job WHERE id = ?", (job_id,))
            for statement in _STOPS:
                row = await first(connection, statement, values)
                if row is not None:
                    assert before is not None
                    await self._record_stop(connection, before, row, intent, by=by, why=why)
                    break
            failpoint("stop_open")
        failpoint("stop_committed")
        return await self.get(job_id)

    async def _record_stop(
        self, connection: Connection, before: Row, row: Row, intent: StopIntent, *, by: int | None, why: str
    ) -> None:
        await self._transitions.record(connection, row, verb=intent, before=before["state"], by=by, why=why)
        await self._leave_queue(connection, before)
        if row["state"] == State.CANCELLED:
            await self._cancel_children(connection, row)
            await self._transitions.notify_end(connection, row, NotificationKind.CANCELLED)
        log.info("#%d: %s by %s, now %s", row["id"], intent, by, row["state"])

    async def _cancel_children(self, connection: Connection, study: Row) -> None:
        """Cancel the children of a study that was queued or paused; none of them holds a slot."""
        for child in await connection.execute_fetchall("SELECT * FROM job WHERE parent_id = ?", (study["id"],)):
            values = {"id": child["id"], "by": None, "intent": StopIntent.CANCEL, "now": self._clock.time()}
            row = await first(connection, job_sql.CANCEL_WAITING, values)
            if row is not None:
                why = AuditReason.STUDY_CANCELLED
                await self._transitions.record(connection, row, verb="cancel", before=child["state"], why=why)

    async def _leave_queue(self, connection: Connection, before: Row) -> None:
        if before["state"] == State.QUEUED and not before["is_front"] and before["gpus"]:
            values = {name: before[name] for name in ("owner_id", "kind", "priority", "turn")}
            await connection.execute_fetchall(job_sql.MOVE_UP, values)

    async def resume(self, job_id: int, *, by: int | None) -> Job:
        """Queue a paused job again, before those that never started; other jobs are unchanged.

        Raises:
            NoSuchJob: There is no such job.
        """
        return await self._change(job_sql.RESUME, {"id": job_id}, verb="resume", by=by)

    async def retry(self, job_id: int, *, by: int, max_waiting: int | None = None) -> Job:
        """Queue a failed or cancelled job again, from its checkpoint; other jobs are unchanged.

        Args:
            job_id: The job.
            by: The user.
            max_waiting: How many of its owner's jobs may be queued; None: the configured number.

        Raises:
            NoSuchJob: There is no such job.
            JobFilesDeleted: Its files are gone.
            TooManyWaiting: Its owner has as many queued jobs as they may have.
        """
        job = await self.get(job_id)
        if job.are_files_deleted:
            raise JobFilesDeleted(job_id=job_id)
        async with self._db.transaction() as connection:
            if job.state.is_end:
                await self._require_room(connection, job, max_waiting)
            row = await first(connection, job_sql.RETRY, {"id": job_id})
            if row is not None:
                await self._transitions.record(connection, row, verb="retry", before=job.state, by=by)
        failpoint("retry_committed")
        return await self.get(job_id)

    async def extend(
        self,
        job: Job,
        spec: Spec,
        *,
        fingerprint: str | None,
        estimate_s: float | None,
        by: int,
        max_waiting: int | None,
    ) -> Job:
        """Queue a finished job again, to go on from its checkpoint with more epochs; other jobs are unchanged.

        Args:
            job: As it was when its epochs were counted; one that changed meanwhile stays as it is.
            spec: Its settings with more epochs.
            fingerprint: Of `spec`.
            estimate_s: Expected seconds of the whole training.
            by: The user.
            max_waiting: How many of its owner's jobs may be queued; None: the configured number.

        Raises:
            TooManyWaiting: Its owner has as many queued jobs as they may have.
        """
        values = {
            "id": job.id,
            "before": job.spec_json,
            "spec": spec.model_dump_json(),
            "fingerprint": fingerprint,
            "estimate_s": estimate_s,
        }
        async with self._db.transaction() as connection:
            await self._require_room(connection, job, max_waiting)
            row = await first(connection, job_sql.EXTEND, values)
            if row is not None:
                why = str(spec.training.epochs)
                await self._transitions.record(connection, row, verb="extend", before=job.state, by=by, why=why)
        return await self.get(job.id)

    async def choose_epoch(self, job_id: int, epoch: int, *, by: int) -> Job:
        """Let an epoch of a finished training be its result: it is tested and exported; other jobs are unchanged.

        Raises:
            NoSuchJob: There is no such job.
        """
        values = {"id": job_id, "epoch": epoch}
        return await self._change(job_sql.CHOOSE_EPOCH, values, verb="choose epoch", by=by, why=str(epoch))

    async def bump(self, job_id: int, priority: Priority, *, by: int) -> Job:
        """Change the priority of a queued job; other jobs are unchanged.

        Raises:
            NoSuchJob: There is no such job.
        """
        values = {"id": job_id, "priority": priority}
        return await self._change(job_sql.BUMP, values, verb="bump", by=by, why=priority.name)

    async def pin(self, job_id: int, *, by: int, is_pinned: bool = True) -> Job:
        """Keep a job's files whatever the retention limits are, or no longer.

        Raises:
            NoSuchJob: There is no such job.
        """
        values = {"id": job_id, "is_pinned": is_pinned, "now": self._clock.time()}
        return await self._change(job_sql.PIN, values, verb="pin" if is_pinned else "unpin", by=by)

    async def write_note(self, job_id: int, text: str, *, by: int) -> Job:
        """Write a note on a job, in place of the one that is there; empty: remove it.

        Raises:
            NoSuchJob: There is no such job.
        """
        return await self._change(job_sql.NOTE, {"id": job_id, "note": text}, verb="note", by=by, why=text)

    async def requeue_all(self, *, by: int | None, why: str) -> int:
        """Stop every running training at a checkpoint, to wait at the front of the queue; returns how many."""
        rows = await self._db.all(f"SELECT id FROM job WHERE state IN {job_sql.listed(ACTIVE)} AND gpus > 0")
        for row in rows:
            await self.request_stop(row["id"], by=by, intent=StopIntent.REQUEUE, why=why)
        return len(rows)

    async def _change(self, statement: str, values: dict[str, Any], *, verb: str, by: int | None, why: str = "") -> Job:
        job_id: int = values["id"]
        async with self._db.transaction() as connection:
            before = await first(connection, "SELECT * FROM job WHERE id = ?", (job_id,))
            row = await first(connection, statement, values)
            if row is not None and before is not None:
                if row["priority"] != before["priority"]:
                    await self._leave_queue(connection, before)
                await self._transitions.record(connection, row, verb=verb, before=before["state"], by=by, why=why)
        return await self.get(job_id)
