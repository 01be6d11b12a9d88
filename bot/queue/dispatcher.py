"""Runs the queue: starts what may start, hears what runs, and settles what ended; it remembers nothing itself.

All that it knows stands in the database and in the job folders, so a bot that was killed anywhere goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from bot.config import QueueSettings
from bot.errors import LaunchFailed
from bot.queue.job import State
from bot.queue.rows import Busy
from bot.queue.store import JobStore
from bot.runners import EventLines, Handle, Launch, Runner, Status
from trainer.protocol.events import Failed, Finished, Stopped

log = logging.getLogger(__name__)


class Dispatcher:
    """A plain service: `run()` in a task of its own, or `step()` by hand."""

    def __init__(
        self,
        store: JobStore,
        runner: Runner,
        *,
        settings: QueueSettings | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._runner = runner
        self._settings = settings or QueueSettings()
        self._now = now
        self._stepping = asyncio.Lock()

    async def run(self) -> None:
        """Work until cancelled; woken by every change of a state. Trainings go on without it."""
        while True:
            self._store.changed.clear()
            try:
                await self.step()
            except Exception:
                log.exception("the queue could not be worked on; trying again")
            try:
                async with asyncio.timeout(self._settings.poll_s):
                    await self._store.changed.wait()
            except TimeoutError:
                continue

    async def step(self) -> None:
        """Look after every running job once, then start what there is room for."""
        async with self._stepping:
            for busy in await self._store.busy():
                await self._attend_safely(busy)
            while claimed := await self._store.claim(self._settings.slots):
                await self._attend_safely(claimed)

    async def _attend_safely(self, busy: Busy) -> None:
        try:
            await self._attend(busy)
        except Exception:
            log.exception("#%d could not be looked after; trying again", busy.job_id)

    async def _attend(self, busy: Busy) -> None:
        if busy.handle is None:
            await self._launch(busy)
            return
        # In this order: what a process that is gone has said is whole, and nothing of it is missed.
        status = await self._runner.poll(busy.handle)
        said = await self._runner.events(self._store.job_dir(busy.job_id), busy.read_bytes)
        if status is Status.GONE:
            await self._ingest(busy, said)
            # No news if there was a last word.
            await self._store.lost(busy.job_id, busy.attempt)
            return
        word = said.lines[-1].event if said.lines else None
        if isinstance(word, Finished | Stopped | Failed):
            # It counts once the process has left: only then are the GPU and the folder's lock free.
            said = EventLines(lines=said.lines[:-1], end=said.lines[-1].start)
            await self._hurry(busy.handle, since=word.time)
        elif busy.state is State.STOPPING:
            await self._stop(busy, busy.handle)
        await self._ingest(busy, said)

    async def _launch(self, busy: Busy) -> None:
        job = await self._store.get(busy.job_id)
        job_dir = self._store.job_dir(job.id)
        launch = Launch(job_id=job.id, attempt=busy.attempt, job_dir=job_dir, finish=busy.is_finishing)
        try:
            if not (job_dir / "spec.json").exists():
                await asyncio.to_thread(job.spec.write, job_dir)
            handle = await self._runner.launch(launch)
        except (LaunchFailed, OSError) as error:
            log.warning("#%d could not be started: %s", job.id, error)
            why = (
                str(error)
                if isinstance(error, LaunchFailed)
                else f"The folder of #{job.id} could not be written ({error.strerror})."
            )
            await self._store.lost(job.id, busy.attempt, why)
            return
        await self._store.started(job.id, busy.attempt, handle)

    async def _ingest(self, busy: Busy, said: EventLines) -> None:
        if said.end > busy.read_bytes:
            await self._store.ingest(busy.job_id, busy.attempt, [line.event for line in said.lines], said.end)

    async def _stop(self, busy: Busy, handle: Handle) -> None:
        if busy.stop_sent_at is None:
            # First the signal: a bot that dies in between sends it twice, rather than never.
            await self._runner.stop(handle)
            await self._store.stop_sent(busy.job_id, busy.attempt)
        else:
            await self._hurry(handle, since=busy.stop_sent_at)

    async def _hurry(self, handle: Handle, *, since: float) -> None:
        if self._now() > since + self._settings.stop_grace_s:
            await self._runner.kill(handle)
