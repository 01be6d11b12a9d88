"""The dispatcher: starts queued jobs, ingests the events of running ones, and settles those that ended.

It keeps no state of its own. The database and the job folders have everything, so a bot that was killed at any point
continues from there.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from bot.bot_failpoints import failpoint
from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import QueueSettings
from bot.db.errors import DatabaseUnwritable
from bot.errors import JobFolderUnwritable, LaunchFailed, RunnerUnreachable
from bot.queue.domain.job import ActiveJob, Job, State
from bot.queue.liveness import LivenessMonitor
from bot.queue.store.history import AuditReason
from bot.queue.store.job_store import JobStore
from bot.queue.store.queue_control import Admission, PauseKind
from bot.runners import Handle, Runner, RunStatus
from trainer.exchange.attempt import read_heartbeat
from trainer.exchange.event_file import EventBatch, read_events
from trainer.exchange.job_dir import copy_start, read_spec, write_spec
from trainer.protocol.events import TerminalEvent
from trainer.protocol.run_options import RunOptions
from trainer.protocol.spec import SpecError
from trainer.protocol.text import ENGLISH

log = logging.getLogger(__name__)

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


async def _no_studies(job: ActiveJob) -> None:
    log.warning("#%d is a study, and studies are not run here", job.id)


class Dispatcher:
    """A plain service: `run()` in a task of its own, or `step()` by hand.

    Args:
        store: The jobs.
        runner: Starts and stops trainings.
        settings: Poll interval, grace times, limits.
        admission: Whether jobs may start now (training windows, disk space).
        advance: Advances a running study; it must not wait for the trainer.
        language_of: The language of a server, for what its trainings write.
        sampling_stay_s: How long a process waits for the next sampling with its base model loaded.
        clock: Wall-clock time for grace times.
        monitor: Detects hung processes.
    """

    def __init__(
        self,
        store: JobStore,
        runner: Runner,
        *,
        settings: QueueSettings | None = None,
        admission: Callable[[], Admission] = lambda: Admission.ALLOW,
        advance: Callable[[ActiveJob], Awaitable[None]] = _no_studies,
        language_of: Callable[[int], str] = lambda _guild_id: ENGLISH,
        sampling_stay_s: float = 0.0,
        clock: Clock = SYSTEM_CLOCK,
        monitor: LivenessMonitor | None = None,
    ) -> None:
        self._store = store
        self._attempts = store.attempts
        self._runner = runner
        self._settings = settings or QueueSettings()
        self._admission = admission
        self._advance = advance
        self._language_of = language_of
        self._sampling_stay_s = sampling_stay_s
        self._clock = clock
        self._monitor = monitor or LivenessMonitor(clock=clock)
        self._stepping = asyncio.Lock()

    async def run(self) -> None:
        """Work until cancelled; each state change wakes it. Trainings continue without it."""
        while True:
            self._store.changed.clear()
            await self.step_safely()
            try:
                async with asyncio.timeout(self._settings.poll_s):
                    await self._store.changed.wait()
            except TimeoutError:
                continue

    async def step_safely(self) -> None:
        """As `step`; errors are logged, and the next step tries again."""
        try:
            await self.step()
        except Exception:
            log.exception("the queue could not be processed; trying again")

    async def step(self) -> None:
        """Reconcile every running job once, then start queued jobs while slots are free."""
        async with self._stepping:
            active = await self._attempts.active()
            self._monitor.retain({(job.id, job.attempt) for job in active})
            for job in active:
                await self._reconcile_safely(job)
            if await self._may_start():
                while claimed := await self._attempts.claim():
                    await self._reconcile_safely(claimed)

    async def _may_start(self) -> bool:
        """Return whether jobs may start; on a drain, stop the running ones at a checkpoint."""
        pause = await self._store.control.read()
        if pause is not None and pause.kind is PauseKind.DRAIN:
            await self._store.requeue_all(by=pause.by, why=pause.why or AuditReason.QUEUE_DRAINED)
        admission = self._admission()
        if admission is Admission.DRAIN:
            await self._store.requeue_all(by=None, why=AuditReason.WINDOW_CLOSED)
        return pause is None and admission is Admission.ALLOW

    async def _reconcile_safely(self, job: ActiveJob) -> None:
        try:
            await self._reconcile(job)
        except (RunnerUnreachable, DatabaseUnwritable) as error:
            log.warning("#%d: %s", job.id, error)
        except Exception:
            log.exception("#%d could not be reconciled; trying again", job.id)

    async def _reconcile(self, job: ActiveJob) -> None:
        if job.is_study:
            await self._advance(job)
            return
        if job.handle is None:
            await self._launch(job)
            return
        # Poll before reading: once the process has exited, its event file is complete.
        status = await self._runner.poll(job.handle)
        batch = await asyncio.to_thread(read_events, self._store.job_dir(job), job.read_bytes)
        failpoint("events_read")
        if status in {RunStatus.EXITED, RunStatus.NODE_LOST}:
            await self._finalize_exited(job, batch, status)
            return
        last = batch.lines[-1].event if batch.lines else None
        if isinstance(last, TerminalEvent) and last.attempt in {0, job.attempt}:
            # Hold the terminal event back until exit: the GPU and the folder's lock are still held.
            batch = EventBatch(lines=batch.lines[:-1], end=batch.lines[-1].start)
            await self._kill_after_grace(job.handle, since=last.time)
        elif job.state is State.STOPPING:
            await self._stop(job, job.handle)
        elif status is RunStatus.RUNNING:
            await self._kill_if_hung(job, job.handle, batch)
        await self._ingest(job, batch)

    async def _finalize_exited(self, job: ActiveJob, batch: EventBatch, status: RunStatus) -> None:
        """Ingest the exited process's remaining events, then settle the attempt."""
        read_bytes = job.read_bytes
        while batch.end > read_bytes:
            await self._attempts.ingest(job.id, job.attempt, [line.event for line in batch.lines], batch.end)
            read_bytes = batch.end
            batch = await asyncio.to_thread(read_events, self._store.job_dir(job), read_bytes)
        # No effect if a terminal event was ingested.
        await self._attempts.lost(job.id, job.attempt, is_node_lost=status is RunStatus.NODE_LOST)

    async def _launch(self, job: ActiveJob) -> None:
        job_dir = self._store.job_dir(job)
        options = RunOptions(
            kind=job.kind,
            job_id=job.id,
            attempt=job.attempt,
            job_dir=job_dir,
            finish=job.is_finishing,
            epoch=job.chosen_epoch if job.is_finishing else None,
            gpus=job.gpus if job.devices else 0,
            devices=job.devices,
            micro_batch=job.micro_batch,
            language=self._language_of(job.guild_id),
            stay_s=self._sampling_stay_s if job.is_sampling else 0.0,
        )
        try:
            await asyncio.to_thread(_ensure_spec, job_dir, job)
            failpoint("spec_written")
            handle = await self._runner.launch(options)
            failpoint("launched")
        except OSError as error:
            log.warning("#%d could not be started: %s", job.id, error)
            # A full disk is not the job's fault: it keeps its slot, and starts once there is room.
            if error.errno not in _NO_SPACE:
                refused = JobFolderUnwritable(job_id=job.id, why=error.strerror or str(error))
                await self._attempts.lost(job.id, job.attempt, launch_error=str(refused))
        except LaunchFailed as error:
            log.warning("#%d could not be started: %s", job.id, error)
            await self._attempts.lost(job.id, job.attempt, launch_error=str(error))
        else:
            await self._attempts.set_handle(job.id, job.attempt, handle)
            failpoint("handle_stored")

    async def _ingest(self, job: ActiveJob, batch: EventBatch) -> None:
        if batch.end > job.read_bytes:
            await self._attempts.ingest(job.id, job.attempt, [line.event for line in batch.lines], batch.end)

    async def _stop(self, job: ActiveJob, handle: Handle) -> None:
        if job.stop_sent_at is None:
            # The signal first: a bot that dies in between sends it twice, rather than never.
            await self._runner.stop(handle)
            failpoint("stop_signalled")
            await self._attempts.mark_stop_sent(job.id, job.attempt)
            failpoint("stop_recorded")
        else:
            await self._kill_after_grace(handle, since=job.stop_sent_at)

    async def _kill_after_grace(self, handle: Handle, *, since: float) -> None:
        # abs(): a clock that was set back must not extend the grace forever. One that was set forward ends it early,
        # and the job continues from its checkpoint.
        if abs(self._clock.time() - since) > self._settings.stop_grace_s:
            await self._runner.kill(handle)

    async def _kill_if_hung(self, job: ActiveJob, handle: Handle, batch: EventBatch) -> None:
        """Kill a hung process (stopped, or stuck in a driver); the job is requeued."""
        if job.stop_sent_at is not None:
            # An earlier kill had no effect yet.
            await self._runner.kill(handle)
            return
        heartbeat = await asyncio.to_thread(read_heartbeat, self._store.job_dir(job))
        reason = self._monitor.hang_of(job, self._settings, heartbeat=heartbeat, end=batch.end)
        if reason is None:
            return
        log.warning("#%d is killed: %s for %.0f s", job.id, reason.kind, reason.stalled_for_s)
        # Recorded first: a bot that dies in between leaves the kill, and its reason, to the next one.
        await self._attempts.mark_killed(job.id, job.attempt, reason)
        await self._runner.kill(handle)


def _ensure_spec(job_dir: Path, job: Job) -> None:
    """Write the job's spec unless the folder holds it: an earlier attempt wrote it, and it was not extended since."""
    if job.is_sampling:
        # It never changes.
        write_spec(job_dir, job.sampling)
        return
    copy_start(job_dir, job.spec)
    try:
        if read_spec(job_dir) == job.spec:
            return
    except SpecError:
        pass
    write_spec(job_dir, job.spec)
