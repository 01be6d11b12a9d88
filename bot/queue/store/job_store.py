"""Jobs in the database, for people: asking, queueing, stopping, pausing, going on; every move is one guarded UPDATE."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from bot.config import LimitSettings, QueueSettings
from bot.crashing import crash_point
from bot.db import Connection, Database, Row
from bot.errors import DraftEnded, DuplicateJob, JobRefused, NoSuchJob
from bot.outbox import NoticeKind, Outbox
from bot.queue.domain.job import ACTIVE, LIVING, Job, NewJob, Priority, State, StopIntent
from bot.queue.domain.rules import require_room
from bot.queue.store import job_sql
from bot.queue.store.attempts import Attempt, read_attempts
from bot.queue.store.audit import Entry, read_entries
from bot.queue.store.children import StudyStore
from bot.queue.store.ingest import first
from bot.queue.store.job_rows import job_of
from bot.queue.store.limits import require_gpus
from bot.queue.store.queue_control import MainSwitch
from bot.queue.store.runs import Runs
from bot.queue.store.slots import Slots
from bot.queue.store.transitions import Moves
from trainer.protocol.events import Event, parse_event
from trainer.protocol.study import StudyStep

log = logging.getLogger(__name__)


class HasFolder(Protocol):
    """A job, or what the dispatcher knows of one."""

    @property
    def folder(self) -> str: ...


class JobStore:
    """Takes jobs in and does with them what people say; `runs` is the dispatcher's side of the same tables."""

    def __init__(
        self,
        db: Database,
        outbox: Outbox,
        *,
        data_dir: Path,
        limits: LimitSettings | None = None,
        queue: QueueSettings | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._db = db
        self._moves = Moves(db, outbox, now=now)
        self._jobs_dir = data_dir.absolute() / "jobs"
        self._limits = limits or LimitSettings()
        self._now = now
        self.runs = Runs(self._moves, queue or QueueSettings())
        self.studies = StudyStore(self._moves)
        self.slots = Slots(db)
        self.switch = MainSwitch(self._moves)
        #: Set when there is something for the dispatcher to do.
        self.changed = self._moves.changed

    def job_dir(self, job: HasFolder) -> Path:
        """The folder of a job: spec.json, events.jsonl, samples/, charts/, checkpoints/, output/."""
        return self._jobs_dir / job.folder

    # -- asking --------------------------------------------------------------------------------------------------

    async def get(self, job_id: int) -> Job:
        """The job of that number.

        Raises:
            NoSuchJob: there is none, or it is a draft.
        """
        jobs = await self._jobs("WHERE job.id = ?", (job_id,))
        if not jobs:
            raise NoSuchJob(job_id=job_id)
        return jobs[0]

    async def get_in(self, guild_id: int, job_id: int) -> Job:
        """The job of that number, of that server.

        Raises:
            NoSuchJob: there is none there.
        """
        job = await self.get(job_id)
        if job.guild_id != guild_id:
            raise NoSuchJob(job_id=job_id)
        return job

    async def active(self, guild_id: int) -> list[Job]:
        """Jobs of a server that have not ended: those that run or are paused, then the line in its order."""
        # `+`: by the index of states. That of servers would look through every job that ever ended there.
        jobs = await self._jobs(
            f"WHERE +job.guild_id = ? AND parent_id IS NULL AND state IN {job_sql.listed(LIVING)} ORDER BY job.id",
            (guild_id,),
        )
        places = {job_id: place for place, job_id in enumerate(await self.line(), start=1)}
        return sorted(jobs, key=lambda job: (places.get(job.id, 0), job.id))

    async def recent(self, guild_id: int, limit: int = 25) -> list[Job]:
        """The newest jobs of a server, ended or not, newest first."""
        return await self._jobs(
            "WHERE job.guild_id = ? AND parent_id IS NULL ORDER BY job.id DESC LIMIT ?", (guild_id, limit)
        )

    async def children(self, job_id: int) -> list[Job]:
        """The jobs of a study, in the order in which they were made."""
        return await self._jobs("WHERE parent_id = ? ORDER BY job.id", (job_id,))

    async def search(self, guild_id: int, text: str, limit: int = 25) -> list[Job]:
        """Jobs of a server whose number begins with `text` (`#` or not) or whose name holds it; living ones first."""
        return await self._jobs(
            f"""WHERE job.guild_id = ?1 AND parent_id IS NULL
                   AND (instr(CAST(job.id AS TEXT), ?2) = 1 OR instr(job.name, lower(?2)) > 0)
               ORDER BY state IN {job_sql.listed(LIVING)} DESC, job.id DESC LIMIT ?3""",
            (guild_id, text.strip().removeprefix("#"), limit),
        )

    async def line(self) -> list[int]:
        """The jobs that wait, of all servers, in the order in which they will start."""
        return [row["id"] for row in await self._db.all(job_sql.WHOLE_LINE)]

    async def waiting(self) -> list[Job]:
        """As `line`, the jobs themselves."""
        jobs = {job.id: job for job in await self._jobs("WHERE state = 'queued'", ())}
        return [jobs[job_id] for job_id in await self.line() if job_id in jobs]

    async def place_in_line(self, job_id: int) -> int | None:
        """1 for the job that starts next; None for one that does not wait."""
        row = await self._db.one(job_sql.PLACE, {"id": job_id})
        return None if row is None else int(row["place"])

    async def events(self, job_id: int) -> tuple[Event, ...]:
        """Everything that a job's trainer said, `step_done` and `working` left out, oldest first."""
        rows = await self._db.all("SELECT body FROM job_event WHERE job_id = ? ORDER BY seq", (job_id,))
        return tuple(parse_event(row[0]) for row in rows)

    async def attempts(self, job_id: int) -> list[Attempt]:
        """The starts of a job, oldest first."""
        return await read_attempts(self._db, job_id)

    async def audit(self, *, guild_id: int, job_id: int | None = None, limit: int = 20) -> list[Entry]:
        """The newest lines of a server's audit, or of one job in it, newest first."""
        return await read_entries(self._db, guild_id=guild_id, job_id=job_id, limit=limit)

    async def owner_runs(self, job_id: int) -> tuple[int, int | None]:
        """How many of a job's owner's trainings run, and how many may while this job waits; None: any number."""
        row = await self._db.one(job_sql.OWNER_RUNS, (job_id,))
        return (0, None) if row is None else (row["runs"], row["max_running"])

    async def study_step(self, job_id: int) -> StudyStep | None:
        """What the trainer made of a study last; None before it was asked."""
        row = await self._db.one("SELECT study_step FROM job WHERE id = ?", (job_id,))
        return None if row is None or row[0] is None else StudyStep.model_validate_json(row[0])

    # -- people --------------------------------------------------------------------------------------------------

    async def submit(self, new: NewJob) -> Job:
        """Queue a job; once this returns it is queued, also after a power cut. The same interaction twice is one job.

        A draft of that interaction becomes the job.

        Raises:
            TooManyWaiting: its owner has as many jobs in line as they may have.
            DuplicateJob: the same data and settings wait, run, or have succeeded, and it may not repeat them.
            DraftEnded: its draft was cancelled.
            JobRefused: it needs more GPUs than there are.
        """
        async with self._db.transaction() as connection:
            row = await first(connection, "SELECT * FROM job WHERE interaction_id = ?", (new.interaction_id,))
            if row is None or row["state"] == State.DRAFT:
                await self._require_acceptable(connection, new)
                row = await self._insert(connection, new, is_draft=row is not None)
            elif row["spec"] is None:
                raise DraftEnded("This request was cancelled; nothing was queued. Run the command again.")
            crash_point("submit_open")
        crash_point("submit_committed")
        return await self.get(row["id"])

    async def _require_acceptable(self, connection: Connection, new: NewJob) -> None:
        waiting = await first(connection, job_sql.WAITING, (new.owner_id, new.guild_id))
        assert waiting is not None
        require_room(int(waiting[0]), new.max_waiting or self._limits.max_jobs_per_user)
        if new.fingerprint is not None and not new.may_repeat:
            same = await first(
                connection, job_sql.DUPLICATE, {"fingerprint": new.fingerprint, "guild_id": new.guild_id}
            )
            if same is not None:
                raise DuplicateJob(job_id=same["id"], state=same["state"])
        slots = await first(connection, "SELECT COUNT(*) FROM slot WHERE is_enabled", ())
        assert slots is not None
        require_gpus(new.gpus, slots[0])

    async def _insert(self, connection: Connection, new: NewJob, *, is_draft: bool) -> Row:
        turn = await first(connection, job_sql.NEXT_TURN, {"owner_id": new.owner_id, "priority": new.priority})
        assert turn is not None
        columns = {**_columns(new), "turn": turn[0], "now": self._now()}
        row = await first(connection, job_sql.SUBMIT_DRAFT if is_draft else job_sql.SUBMIT, columns)
        assert row is not None
        before = State.DRAFT if is_draft else None
        await self._moves.moved(connection, row, verb="submit", before=before, by=new.owner_id)
        log.info("#%d queued (%s, %s)", row["id"], new.spec.name, new.spec.base.source)
        return row

    async def request_stop(self, job_id: int, *, by: int | None, intent: StopIntent, why: str = "") -> Job:
        """Stop a job: one that waits at once, a running one by way of its checkpoint; ended ones stay as they are.

        Raises:
            NoSuchJob: there is none of that number.
        """
        values = {"id": job_id, "by": by, "intent": intent, "now": self._now()}
        statements = (
            job_sql.CANCEL_WAITING,
            job_sql.FINISH_WAITING,
            job_sql.PAUSE_QUEUED,
            job_sql.STOP_HARDER,
            job_sql.STOP_ACTIVE,
        )
        async with self._db.transaction() as connection:
            before = await first(connection, "SELECT * FROM job WHERE id = ?", (job_id,))
            for statement in statements:
                row = await first(connection, statement, values)
                if row is not None:
                    assert before is not None
                    await self._told_to_stop(connection, before, row, intent, by=by, why=why)
                    break
            crash_point("stop_open")
        crash_point("stop_committed")
        return await self.get(job_id)

    async def _told_to_stop(
        self, connection: Connection, before: Row, row: Row, intent: StopIntent, *, by: int | None, why: str
    ) -> None:
        await self._moves.moved(connection, row, verb=intent, before=before["state"], by=by, why=why)
        await self._leave_line(connection, before)
        if row["state"] == State.CANCELLED:
            await self._cancel_below(connection, row)
            if before["state"] != State.DRAFT:
                await self._moves.tell_end(connection, row, NoticeKind.CANCELLED, None, "")
        log.info("#%d: %s asked for by %s, now %s", row["id"], intent, by, row["state"])

    async def _cancel_below(self, connection: Connection, study: Row) -> None:
        """The children of a study that was cancelled while it waited; none of them holds a slot."""
        for child in await connection.execute_fetchall("SELECT * FROM job WHERE parent_id = ?", (study["id"],)):
            values = {"id": child["id"], "by": None, "intent": StopIntent.CANCEL, "now": self._now()}
            row = await first(connection, job_sql.CANCEL_WAITING, values)
            if row is not None:
                why = f"#{study['id']} is cancelled"
                await self._moves.moved(connection, row, verb="cancel", before=child["state"], why=why)

    async def _leave_line(self, connection: Connection, before: Row) -> None:
        if before["state"] == State.QUEUED and not before["is_front"] and before["gpus"]:
            values = {name: before[name] for name in ("owner_id", "priority", "turn")}
            await connection.execute_fetchall(job_sql.MOVE_UP, values)

    async def resume(self, job_id: int, *, by: int | None) -> Job:
        """Let a paused job go on, before those that never started; others stay as they are.

        Raises:
            NoSuchJob: there is none of that number.
        """
        return await self._change(job_sql.RESUME, {"id": job_id}, verb="resume", by=by)

    async def retry(self, job_id: int, *, by: int, max_waiting: int | None = None) -> Job:
        """Queue a failed or cancelled job once more, from its checkpoint; others stay as they are.

        `max_waiting`: how many of its owner's jobs may wait; None: the configured number.

        Raises:
            NoSuchJob: there is none of that number.
            JobRefused: its files are gone, or its owner has as many jobs in line as they may have.
        """
        job = await self.get(job_id)
        if job.are_files_deleted:
            raise JobRefused(f"The files of #{job_id} were deleted to make room. Run /finetune with from_dataset.")
        async with self._db.transaction() as connection:
            waiting = await first(connection, job_sql.WAITING, (job.owner_id, job.guild_id))
            assert waiting is not None
            if job.state.is_end:
                require_room(int(waiting[0]), max_waiting or self._limits.max_jobs_per_user)
            row = await first(connection, job_sql.RETRY, {"id": job_id})
            if row is not None:
                await self._moves.moved(connection, row, verb="retry", before=job.state, by=by)
        crash_point("retry_committed")
        return await self.get(job_id)

    async def bump(self, job_id: int, priority: Priority, *, by: int) -> Job:
        """Give a waiting job another priority; others stay as they are.

        Raises:
            NoSuchJob: there is none of that number.
        """
        return await self._change(
            job_sql.BUMP, {"id": job_id, "priority": priority}, verb="bump", by=by, why=priority.name
        )

    async def pin(self, job_id: int, *, by: int, is_pinned: bool = True) -> Job:
        """Keep the files of a job whatever the limits say, or no longer.

        Raises:
            NoSuchJob: there is none of that number.
        """
        verb = "pin" if is_pinned else "unpin"
        return await self._change(
            job_sql.PIN, {"id": job_id, "is_pinned": is_pinned, "now": self._now()}, verb=verb, by=by
        )

    async def share(self, job_id: int, *, by: int, is_shared: bool = True) -> Job:
        """Note that a job's samples were shared with the team, or no longer are; shared ones are kept.

        Raises:
            NoSuchJob: there is none of that number.
        """
        verb = "share" if is_shared else "unshare"
        values = {"id": job_id, "is_shared": is_shared, "now": self._now()}
        return await self._change(job_sql.SHARE, values, verb=verb, by=by)

    async def requeue_all(self, *, by: int | None, why: str) -> int:
        """Stop everything that runs at its checkpoint, to wait at the front of the line; how many that are."""
        rows = await self._db.all(f"SELECT id FROM job WHERE state IN {job_sql.listed(ACTIVE)} AND gpus > 0")
        for row in rows:
            await self.request_stop(row["id"], by=by, intent=StopIntent.REQUEUE, why=why)
        return len(rows)

    # -- within ------------------------------------------------------------------------------------------------

    async def _change(self, statement: str, values: dict[str, Any], *, verb: str, by: int | None, why: str = "") -> Job:
        job_id: int = values["id"]
        async with self._db.transaction() as connection:
            before = await first(connection, "SELECT * FROM job WHERE id = ?", (job_id,))
            row = await first(connection, statement, values)
            if row is not None and before is not None:
                if row["priority"] != before["priority"]:
                    await self._leave_line(connection, before)
                await self._moves.moved(connection, row, verb=verb, before=before["state"], by=by, why=why)
        return await self.get(job_id)

    async def _jobs(self, where: str, parameters: Sequence[int | str]) -> list[Job]:
        rows = await self._db.all(job_sql.JOBS + where, parameters)
        said: dict[int, list[Event]] = {row["id"]: [] for row in rows}
        for event in await self._db.all(job_sql.PROGRESS, (json.dumps(list(said)),)):
            said[event["job_id"]].append(parse_event(event["body"]))
        return [job_of(row, said[row["id"]]) for row in rows]


def _columns(new: NewJob) -> dict[str, Any]:
    return {
        "interaction_id": new.interaction_id,
        "guild_id": new.guild_id,
        "channel_id": new.channel_id,
        "owner_id": new.owner_id,
        "dataset_id": new.dataset_id,
        "name": new.spec.name,
        "spec": new.spec.model_dump_json(),
        "priority": new.priority,
        "gpus": new.gpus,
        "run_after": new.run_after,
        "max_running": new.max_running,
        "fingerprint": new.fingerprint,
        "estimate_s": new.estimate_s,
        "study": new.study,
        "parent_id": None,
        "child_name": None,
        "folder": None,
        "until_epoch": None,
        "is_finishing": 0,
    }
