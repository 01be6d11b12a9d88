"""Runs the queue: starts what may start, hears what runs, and settles what ended; it remembers nothing itself.

All that it knows stands in the database and in the job folders, so a bot that was killed anywhere goes on from there.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Awaitable, Callable

from bot.config import QueueSettings
from bot.crashing import crash_point
from bot.errors import DatabaseUnwritable, LaunchFailed, RunnerUnreachable
from bot.queue.domain.admission import Gate
from bot.queue.domain.job import State
from bot.queue.liveness import Pulse
from bot.queue.store.job_rows import Busy
from bot.queue.store.job_store import JobStore
from bot.queue.store.queue_control import HaltKind
from bot.runners import EventLines, Handle, Launch, Runner, Status
from trainer.protocol.events import Failed, Finished, Stopped

log = logging.getLogger(__name__)

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


async def _no_studies(busy: Busy) -> None:
    log.warning("#%d is a study, and nothing here runs studies", busy.job_id)


class Dispatcher:
    """A plain service: `run()` in a task of its own, or `step()` by hand.

    `gate` says whether trainings may start now (training windows); `advance` brings a study on.
    """

    def __init__(
        self,
        store: JobStore,
        runner: Runner,
        *,
        settings: QueueSettings | None = None,
        gate: Callable[[], Gate] = lambda: Gate.OPEN,
        advance: Callable[[Busy], Awaitable[None]] = _no_studies,
        now: Callable[[], float] = time.time,
        pulse: Pulse | None = None,
    ) -> None:
        self._store = store
        self._runs = store.runs
        self._runner = runner
        self._settings = settings or QueueSettings()
        self._gate = gate
        self._advance = advance
        self._now = now
        self._pulse = pulse or Pulse()
        self._stepping = asyncio.Lock()

    async def run(self) -> None:
        """Work until cancelled; woken by every change of a state. Trainings go on without it."""
        while True:
            self._store.changed.clear()
            await self.step_safely()
            try:
                async with asyncio.timeout(self._settings.poll_s):
                    await self._store.changed.wait()
            except TimeoutError:
                continue

    async def step_safely(self) -> None:
        """As `step`; what goes wrong is logged, for the next one to try again."""
        try:
            await self.step()
        except Exception:
            log.exception("the queue could not be worked on; trying again")

    async def step(self) -> None:
        """Look after every running job once, then start what there is room for."""
        async with self._stepping:
            all_busy = await self._runs.busy()
            self._pulse.forget_others({(busy.job_id, busy.attempt) for busy in all_busy})
            for busy in all_busy:
                await self._attend_safely(busy)
            if await self._is_open():
                while claimed := await self._runs.claim():
                    await self._attend_safely(claimed)

    async def _is_open(self) -> bool:
        """Whether anything may start; what must not run any more is told to stop at its checkpoint."""
        halt = await self._store.switch.read()
        if halt is not None and halt.kind is HaltKind.DRAIN:
            await self._store.requeue_all(by=halt.by, why=halt.why or "the machine is drained")
        gate = self._gate()
        if gate is Gate.EMPTY:
            await self._store.requeue_all(by=None, why="the training window has closed")
        return halt is None and gate is Gate.OPEN

    async def _attend_safely(self, busy: Busy) -> None:
        try:
            await self._attend(busy)
        except (RunnerUnreachable, DatabaseUnwritable) as error:
            log.warning("#%d: %s", busy.job_id, error)
        except Exception:
            log.exception("#%d could not be looked after; trying again", busy.job_id)

    async def _attend(self, busy: Busy) -> None:
        if busy.is_study:
            await self._advance(busy)
            return
        if busy.handle is None:
            await self._launch(busy)
            return
        # In this order: what a process that is gone has said is whole, and nothing of it is missed.
        status = await self._runner.poll(busy.handle)
        job_dir = self._store.job_dir(busy)
        said = await self._runner.events(busy.handle, job_dir, busy.read_bytes)
        crash_point("events_read")
        if status in {Status.GONE, Status.CUT_OFF}:
            await self._bury(busy, busy.handle, said, status)
            return
        word = said.lines[-1].event if said.lines else None
        if isinstance(word, Finished | Stopped | Failed) and word.attempt in {0, busy.attempt}:
            # It counts once the process has left: only then are the GPU and the folder's lock free.
            said = EventLines(lines=said.lines[:-1], end=said.lines[-1].start)
            await self._hurry(busy.handle, since=word.time)
        elif busy.state is State.STOPPING:
            await self._stop(busy, busy.handle)
        elif status is Status.RUNNING:
            await self._wake_the_dead(busy, busy.handle, said)
        await self._ingest(busy, said)

    async def _bury(self, busy: Busy, handle: Handle, said: EventLines, status: Status) -> None:
        """Its process is gone: read all that it said, and settle."""
        read = busy.read_bytes
        while said.end > read:
            await self._runs.ingest(busy.job_id, busy.attempt, [line.event for line in said.lines], said.end)
            read = said.end
            said = await self._runner.events(handle, self._store.job_dir(busy), read)
        # No news if there was a last word.
        await self._runs.lost(busy.job_id, busy.attempt, is_cut_off=status is Status.CUT_OFF)

    async def _launch(self, busy: Busy) -> None:
        job = await self._store.get(busy.job_id)
        job_dir = self._store.job_dir(busy)
        launch = Launch(
            job_id=job.id,
            attempt=busy.attempt,
            job_dir=job_dir,
            finish=busy.is_finishing,
            gpus=busy.gpus if busy.devices else 0,
            devices=busy.devices,
            micro_batch=busy.micro_batch,
        )
        try:
            if not (job_dir / "spec.json").exists():
                await asyncio.to_thread(job.spec.write, job_dir)
            crash_point("spec_written")
            handle = await self._runner.launch(launch)
            crash_point("launched")
        except (LaunchFailed, OSError) as error:
            log.warning("#%d could not be started: %s", job.id, error)
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                # No fault of the job's: it keeps its slot, and is started once there is room.
                return
            why = (
                str(error)
                if isinstance(error, LaunchFailed)
                else f"The folder of #{job.id} could not be written ({error.strerror})."
            )
            await self._runs.lost(job.id, busy.attempt, why)
            return
        await self._runs.started(job.id, busy.attempt, handle)
        crash_point("handle_stored")

    async def _ingest(self, busy: Busy, said: EventLines) -> None:
        if said.end > busy.read_bytes:
            await self._runs.ingest(busy.job_id, busy.attempt, [line.event for line in said.lines], said.end)

    async def _stop(self, busy: Busy, handle: Handle) -> None:
        if busy.stop_sent_at is None:
            # First the signal: a bot that dies in between sends it twice, rather than never.
            await self._runner.stop(handle)
            crash_point("stop_signalled")
            await self._runs.stop_sent(busy.job_id, busy.attempt)
            crash_point("stop_noted")
        else:
            await self._hurry(handle, since=busy.stop_sent_at)

    async def _hurry(self, handle: Handle, *, since: float) -> None:
        # abs: a clock that was set back must not give a process for ever. One that was set forward ends it early, and
        # the job goes on from its checkpoint.
        if abs(self._now() - since) > self._settings.stop_grace_s:
            await self._runner.kill(handle)

    async def _wake_the_dead(self, busy: Busy, handle: Handle, said: EventLines) -> None:
        """Kill a process that lives and does not get on (stopped, or stuck in a driver): its job goes on in another."""
        if busy.stop_sent_at is not None:
            # It was to be killed before, and is still there.
            await self._runner.kill(handle)
            return
        beat = await self._runner.last_beat(handle, self._store.job_dir(busy))
        why = self._pulse.why_kill(busy, self._settings, beat=beat, end=said.end)
        if why is None:
            return
        log.warning("#%d is killed, to go on: %s", busy.job_id, why)
        # Written down first: a bot that ends in between leaves the kill, and its reason, to the next one.
        await self._runs.to_be_killed(busy.job_id, busy.attempt, why)
        await self._runner.kill(handle)
