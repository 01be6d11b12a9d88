"""Uploads models to the Hugging Face hub: each by `python -m trainer publish`, one after the other, over restarts too.

A request is a row until the model is on the hub or the hub has refused it. An upload that a restart cuts off is made
again, and the trainer sends only what the hub does not have yet.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import ValidationError

from bot.clock import SYSTEM_CLOCK, Clock, backoff_s
from bot.config import HubSettings
from bot.db import Database, Row, as_stored
from bot.db.audit import write_entry
from bot.errors import DarkroomError
from bot.outbox import Notification, NotificationKind
from bot.queue import Job, JobStore
from bot.runners.child_process import run_and_capture
from trainer.protocol.events import EXIT_REFUSED
from trainer.protocol.frozen import Frozen
from trainer.protocol.hub import Published, repository_of
from trainer.protocol.text import _

log = logging.getLogger(__name__)

#: A slow line needs hours for a full fine-tune.
_TIMEOUT_S = 6 * 3600.0
#: Failed tries after which it is given up, with these pauses: about an hour.
MAX_TRIES = 8
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 30.0, 900.0
_POLL_S = 30.0


class PublicationOutcome(StrEnum):
    """What became of an upload."""

    DONE = "done"
    #: The hub, or the trainer, says no; `reason` is its sentence.
    REFUSED = "refused"
    #: It failed again and again.
    GIVEN_UP = "given_up"


class Publication(Frozen):
    """The end of an upload, as the notification about it holds it."""

    outcome: PublicationOutcome
    repository: str
    published: Published | None = None
    reason: str = ""


class AlreadyPublishing(DarkroomError):
    """The model is being uploaded."""

    def __init__(self, *, job_id: int, repository: str) -> None:
        self.job_id, self.repository = job_id, repository
        text = _("#{job} is being uploaded to {repository} already.", job=job_id, repository=repository)
        super().__init__(f"{text} {_('I will tell you in its thread when it is done.')}")


@dataclass(frozen=True, kw_only=True)
class _UploadRequest:
    job_id: int
    user_id: int
    repository: str
    tries: int
    created_at: float

    @classmethod
    def from_row(cls, row: Row) -> _UploadRequest:
        return cls(**as_stored(cls, row))


class Publisher:
    """A plain service: `run()` in a task of its own, or `step()` by hand."""

    def __init__(
        self,
        db: Database,
        jobs: JobStore,
        *,
        settings: HubSettings,
        command: Sequence[str],
        env: Mapping[str, str],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._db = db
        self._jobs = jobs
        self._settings = settings
        self._command = tuple(command)
        self._env = dict(env)
        self._clock = clock
        self._requested = asyncio.Event()

    def repository(self, job: Job) -> str:
        """Return where a job's model would be on the hub."""
        return repository_of(self._settings.namespace, job.name, job.id)

    async def request(self, job: Job, *, by: int) -> str:
        """Have a job's model uploaded; returns where to.

        Raises:
            AlreadyPublishing: It is being uploaded.
        """
        repository = self.repository(job)
        values = (job.id, by, repository, self._clock.time())
        async with self._db.transaction() as connection:
            rows = await connection.execute_fetchall(
                """INSERT INTO publication (job_id, user_id, repository, created_at) VALUES (?, ?, ?, ?)
                   ON CONFLICT (job_id) DO NOTHING RETURNING job_id""",
                values,
            )
            if not list(rows):
                raise AlreadyPublishing(job_id=job.id, repository=repository)
            await write_entry(
                connection,
                at=self._clock.time(),
                verb="publish",
                job_id=job.id,
                guild_id=job.guild_id,
                by=by,
                why=repository,
            )
            self._db.after_commit(self._requested.set)
        return repository

    async def run(self) -> None:
        """Upload until cancelled; each request wakes it."""
        while True:
            self._requested.clear()
            try:
                await self.step()
            except Exception:
                log.exception("models could not be uploaded; trying again")
            try:
                async with asyncio.timeout(_POLL_S):
                    await self._requested.wait()
            except TimeoutError:
                continue

    async def step(self) -> None:
        """Upload all that is due."""
        due = "SELECT * FROM publication WHERE retry_at <= ? ORDER BY created_at, job_id LIMIT 1"
        while (row := await self._db.one(due, (self._clock.time(),))) is not None:
            await self._upload(_UploadRequest.from_row(row))

    async def _upload(self, request: _UploadRequest) -> None:
        job = await self._jobs.get(request.job_id)
        publication = await self._try(job, request)
        if publication is not None:
            await self._end(job, request, publication)
            return
        pause_s = backoff_s(request.tries + 1, _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(
                "UPDATE publication SET tries = tries + 1, retry_at = ? WHERE job_id = ?",
                (self._clock.time() + pause_s, request.job_id),
            )

    async def _try(self, job: Job, request: _UploadRequest) -> Publication | None:
        """Run the trainer once; None: another try may help, and there is one left."""
        arguments = ("publish", str(self._jobs.job_dir(job)), "--repository", request.repository)
        try:
            answer = await run_and_capture([*self._command, *arguments], self._child_env(), timeout_s=_TIMEOUT_S)
            if answer.status == 0:
                published = Published.model_validate_json(answer.last_line)
                return Publication(outcome=PublicationOutcome.DONE, repository=request.repository, published=published)
            reason = answer.last_error_line
            if answer.status == EXIT_REFUSED:
                return Publication(outcome=PublicationOutcome.REFUSED, repository=request.repository, reason=reason)
        except (OSError, ValidationError) as error:
            reason = type(error).__name__
        log.warning("#%d: not uploaded to %s: %s", job.id, request.repository, reason)
        if request.tries + 1 < MAX_TRIES:
            return None
        return Publication(outcome=PublicationOutcome.GIVEN_UP, repository=request.repository, reason=reason)

    def _child_env(self) -> dict[str, str]:
        token = os.environ.get(self._settings.token_env, "")
        return {**self._env, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}

    async def _end(self, job: Job, request: _UploadRequest, publication: Publication) -> None:
        notification = Notification(
            kind=NotificationKind.PUBLISHED,
            job_id=job.id,
            dedupe_key=f"job:{job.id}:published:{request.created_at!r}",
            detail=publication.model_dump_json(exclude_defaults=True),
            guild_id=job.guild_id,
            owner_id=request.user_id,
            mentions=(request.user_id,),
        )
        async with self._db.transaction() as connection:
            await connection.execute_fetchall("DELETE FROM publication WHERE job_id = ?", (job.id,))
            await self._jobs.outbox.put(connection, notification, channel_id=job.channel_id, thread_of=job.id)
        log.info("#%d: upload to %s: %s", job.id, request.repository, publication.outcome)
