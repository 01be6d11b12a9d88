"""Jobs in the database: every move is one guarded UPDATE, in one transaction with the messages that it causes."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bot.config import LimitSettings, QueueSettings
from bot.db import Connection, Database, Row
from bot.errors import NoSuchJob
from bot.outbox import Notice, NoticeKind, Outbox
from bot.queue import sql
from bot.queue.job import Job, NewJob, StopIntent
from bot.queue.rows import Busy, busy_of, job_of
from bot.queue.rules import Outcome, after_last_word, after_loss, require_room
from bot.queue.telling import end_events, end_key
from bot.queue.writing import events_of, first, run_of, write_down
from bot.runners import Handle
from trainer.protocol.events import Event, LastWord, parse_event

log = logging.getLogger(__name__)


class JobStore:
    """Takes jobs in, hands them out, and writes down what becomes of them."""

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
        self._outbox = outbox
        self._jobs_dir = data_dir.absolute() / "jobs"
        self._limits = limits or LimitSettings()
        self._queue = queue or QueueSettings()
        self._now = now
        #: Set when there is something for the dispatcher to do.
        self.changed = asyncio.Event()

    def job_dir(self, job_id: int) -> Path:
        """The folder of a job: spec.json, events.jsonl, samples/, charts/, checkpoints/, output/."""
        return self._jobs_dir / str(job_id)

    # -- asking --------------------------------------------------------------------------------------------------

    async def get(self, job_id: int) -> Job:
        """The job of that number.

        Raises:
            NoSuchJob: there is none.
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
        """Jobs of a server that have not ended: those that run, then the line in its order."""
        jobs = await self._jobs(
            "WHERE job.guild_id = ? AND state IN ('running', 'stopping', 'queued') ORDER BY job.id", (guild_id,)
        )
        places = {job_id: place for place, job_id in enumerate(await self.line(), start=1)}
        return sorted(jobs, key=lambda job: (places.get(job.id, 0), job.id))

    async def recent(self, guild_id: int, limit: int = 25) -> list[Job]:
        """The newest jobs of a server, ended or not, newest first."""
        return await self._jobs("WHERE job.guild_id = ? ORDER BY job.id DESC LIMIT ?", (guild_id, limit))

    async def search(self, guild_id: int, text: str, limit: int = 25) -> list[Job]:
        """Jobs of a server whose number begins with `text` (`#` or not) or whose name holds it; living ones first."""
        return await self._jobs(
            """WHERE job.guild_id = ?1 AND (instr(CAST(job.id AS TEXT), ?2) = 1 OR instr(job.name, lower(?2)) > 0)
               ORDER BY state IN ('running', 'stopping', 'queued') DESC, job.id DESC LIMIT ?3""",
            (guild_id, text.strip().removeprefix("#"), limit),
        )

    async def line(self) -> list[int]:
        """The jobs that wait, of all servers, in the order in which they will start."""
        return [row[0] for row in await self._db.all(sql.WHOLE_LINE)]

    async def place_in_line(self, job_id: int) -> int | None:
        """1 for the job that starts next; None for one that does not wait."""
        row = await self._db.one(sql.PLACE, (job_id,))
        return None if row is None else int(row[0])

    async def events(self, job_id: int) -> tuple[Event, ...]:
        """Everything that a job's trainer said, `step_done` left out, oldest first."""
        rows = await self._db.all("SELECT body FROM job_event WHERE job_id = ? ORDER BY seq", (job_id,))
        return tuple(parse_event(row[0]) for row in rows)

    async def busy(self) -> list[Busy]:
        """Running and stopping jobs."""
        return [busy_of(row) for row in await self._db.all(sql.BUSY)]

    # -- people --------------------------------------------------------------------------------------------------

    async def submit(self, new: NewJob) -> Job:
        """Queue a job; once this returns it is queued, also after a power cut. The same interaction twice is one job.

        Raises:
            TooManyWaiting: its owner has as many jobs in line as they may have.
        """
        async with self._db.transaction() as connection:
            row = await first(connection, "SELECT id FROM job WHERE interaction_id = ?", (new.interaction_id,))
            if row is None:
                require_room(await self._waiting(connection, new), self._limits.max_jobs_per_user)
                row = await first(connection, sql.SUBMIT, {**_columns(new), "now": self._now()})
                assert row is not None
                await self._moved(connection, row)
                log.info("#%d queued (%s, %s)", row["id"], new.spec.name, new.spec.base.source)
        return await self.get(row["id"])

    async def request_stop(self, job_id: int, *, by: int, intent: StopIntent) -> Job:
        """Stop a job: one in line at once, a running one by way of its checkpoint; ended ones stay as they are.

        Raises:
            NoSuchJob: there is none of that number.
        """
        parameters = {"id": job_id, "by": by, "intent": intent, "now": self._now()}
        async with self._db.transaction() as connection:
            for statement in (sql.CANCEL_QUEUED, sql.FINISH_QUEUED, sql.STOP_HARDER, sql.STOP_RUNNING):
                row = await first(connection, statement, parameters)
                if row is None:
                    continue
                await self._moved(connection, row)
                if row["state"] == "cancelled":
                    await self._tell_end(connection, row, NoticeKind.CANCELLED, None, "")
                log.info("#%d: %s asked for by %d, now %s", job_id, intent, by, row["state"])
                break
        return await self.get(job_id)

    # -- the dispatcher ------------------------------------------------------------------------------------------

    async def claim(self, slots: int) -> Busy | None:
        """Take the first in line, if fewer than `slots` are running."""
        async with self._db.transaction() as connection:
            row = await first(connection, sql.CLAIM, {"now": self._now(), "slots": slots})
            if row is None:
                return None
            await self._moved(connection, row)
        log.info("#%d claimed (attempt %d)", row["id"], row["attempt"])
        return busy_of(row)

    async def started(self, job_id: int, attempt: int, handle: Handle) -> None:
        """Write down where a claimed job runs."""
        await self._update_busy("handle = :value", job_id, attempt, handle)

    async def stop_sent(self, job_id: int, attempt: int) -> None:
        """Write down that the trainer was told to stop."""
        await self._update_busy("stop_sent_at = :value", job_id, attempt, self._now())

    async def ingest(self, job_id: int, attempt: int, events: Sequence[Event], read_bytes: int) -> bool:
        """Write down what a trainer said and how far it was read, with every notice that follows, in one transaction.

        A last word at the end of `events` ends the run. Events that are known already are passed over.
        False, and nothing is changed, if that attempt no longer runs.
        """
        async with self._db.transaction() as connection:
            row = await first(connection, sql.ONE_BUSY, (job_id, attempt))
            if row is None:
                return False
            said = await write_down(connection, self._outbox, row, events)
            step = None if said.step is None else said.step.model_dump_json()
            row = await first(
                connection,
                sql.HEARD,
                {"id": job_id, "read_bytes": read_bytes, "last_seq": said.last_seq, "step": step, "now": self._now()},
            )
            assert row is not None
            if said.last_word is not None:
                run = await run_of(connection, row, self._queue.max_attempts)
                await self._settle(connection, row, after_last_word(run, said.last_word), said.last_word)
            elif events:
                await self._outbox.touch_card(connection, job_id, channel_id=row["channel_id"])
        return True

    async def lost(self, job_id: int, attempt: int, why: str | None = None) -> bool:
        """The trainer is gone without a last word (`why`: it could not even be started); False if that is no news."""
        async with self._db.transaction() as connection:
            row = await first(connection, sql.ONE_BUSY, (job_id, attempt))
            if row is None:
                return False
            run = await run_of(connection, row, self._queue.max_attempts)
            await self._settle(connection, row, after_loss(run, why), None)
        return True

    # -- within ------------------------------------------------------------------------------------------------

    async def _settle(self, connection: Connection, row: Row, outcome: Outcome, word: LastWord | None) -> None:
        """End a run: move the job along, and tell it."""
        settled = await first(
            connection,
            sql.SETTLE[outcome.state],
            {
                "id": row["id"],
                "attempt": row["attempt"],
                "finish": None if outcome.finish is None else int(outcome.finish),
                "excused": int(outcome.is_excused),
                "last_word": None if word is None else word.model_dump_json(),
                "reason": outcome.detail or None,
                "now": self._now(),
            },
        )
        assert settled is not None, f"no move from {row['state']} to {outcome.state}"
        log.info("#%d %s → %s %s", row["id"], row["state"], outcome.state, outcome.detail)
        await self._moved(connection, settled)
        if outcome.notice is not None:
            await self._tell_end(connection, row, outcome.notice, word, outcome.detail)

    async def _tell_end(
        self, connection: Connection, row: Row, kind: NoticeKind, word: LastWord | None, detail: str
    ) -> None:
        job_id, attempt = row["id"], row["attempt"]
        events = end_events(kind, word, await events_of(connection, job_id))
        notice = Notice(kind=kind, job_id=job_id, attempt=attempt, events=events, detail=detail)
        key = end_key(job_id, kind, attempt)
        await self._outbox.put(connection, notice, channel_id=row["channel_id"], dedupe_key=key)

    async def _moved(self, connection: Connection, row: Row) -> None:
        await self._outbox.touch_card(connection, row["id"], channel_id=row["channel_id"], at_once=True)
        # Whoever waits may have another place in line now.
        for other in await connection.execute_fetchall(sql.OTHERS_WAITING, (row["id"],)):
            await self._outbox.touch_card(connection, other["id"], channel_id=other["channel_id"])
        self._db.after_commit(self.changed.set)

    async def _waiting(self, connection: Connection, new: NewJob) -> int:
        row = await first(connection, sql.WAITING, (new.owner_id, new.guild_id))
        assert row is not None
        return int(row[0])

    async def _update_busy(self, change: str, job_id: int, attempt: int, value: str | float) -> None:
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(
                f"UPDATE job SET {change} WHERE id = :id AND attempt = :attempt AND state IN ('running', 'stopping')",
                {"id": job_id, "attempt": attempt, "value": value},
            )

    async def _jobs(self, where: str, parameters: Sequence[int | str]) -> list[Job]:
        rows = await self._db.all(sql.JOBS + where, parameters)
        said: dict[int, list[Event]] = {row["id"]: [] for row in rows}
        for event in await self._db.all(sql.PROGRESS, (json.dumps(list(said)),)):
            said[event["job_id"]].append(parse_event(event["body"]))
        return [job_of(row, said[row["id"]]) for row in rows]


def _columns(new: NewJob) -> dict[str, int | str]:
    return {
        "interaction_id": new.interaction_id,
        "guild_id": new.guild_id,
        "channel_id": new.channel_id,
        "owner_id": new.owner_id,
        "dataset_id": new.dataset_id,
        "name": new.spec.name,
        "spec": new.spec.model_dump_json(),
    }
