"""Runs tasks by the clock (APScheduler 3), and plans all tasks of the bot; each can also be called without it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from apscheduler.job import Job as PlannedJob
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger

from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import Config
from bot.datasets import DatasetStore, ResumableUploads
from bot.db import Database
from bot.outbox import Outbox
from bot.queue import DraftStore, JobStore
from bot.queue.planning.retention import Storage
from bot.scheduled.admission_control import AdmissionControl, WakeupScheduler
from bot.scheduled.alerts import AdminNotifier, DiskAlerts, HangAlerts
from bot.scheduled.calendar_tasks import DigestSender, NightlyBackup
from bot.scheduled.cleanup import RetentionRunner, sweep_datasets, sweep_drafts, sweep_uploads
from bot.scheduled.gpu_health import GpuMonitor
from bot.scheduled.restart_report import RestartReport
from bot.web import WebLinks
from trainer.protocol.devices import Devices

log = logging.getLogger(__name__)

#: Between two comparisons of the clock with the plan.
_REPLAN_S = 30.0
#: Longest wait for the dispatcher's first pass, which comes after a query of the GPUs.
_FIRST_PASS_S = 120.0


@dataclass(frozen=True, kw_only=True)
class ScheduledTask:
    """A function and when it is called, as fields of a cron line: `{"minute": "*/10"}`."""

    name: str
    run: Callable[[], Awaitable[object]]
    when: dict[str, str]
    #: Also called as soon as the bot runs.
    at_start: bool = False


class Scheduler:
    """Calls each task at its times: `run()` in an asyncio task of its own.

    Every task checks itself whether anything is due. A missed call is made up for: once, after a night of suspend.
    """

    def __init__(
        self,
        tasks: Sequence[ScheduledTask],
        *,
        timezone: str = "UTC",
        restart: RestartReport | None = None,
        replan_s: float = _REPLAN_S,
    ) -> None:
        self._tasks = tasks
        #: Set once the dispatcher has checked every attempt that ran at the start.
        self.first_pass_done = asyncio.Event()
        self._restart = restart
        self._replan_s = replan_s
        defaults = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        self._scheduler = AsyncIOScheduler(timezone=timezone, job_defaults=defaults)
        for task in tasks:
            trigger = CronTrigger(timezone=timezone, **task.when)
            self._scheduler.add_job(_run_planned, trigger, args=[task.name, task.run], id=task.name, name=task.name)

    async def record_start(self) -> None:
        """Record the state at the start, before the dispatcher changes it."""
        if self._restart is not None:
            await self._restart.record()

    async def run(self) -> None:
        """Run until cancelled; a task that runs then is cancelled too."""
        self._scheduler.start()
        try:
            for task in self._tasks:
                if task.at_start:
                    await _run_safely(task.name, task.run)
            await self._report_restart()
            while True:
                self.replan()
                await asyncio.sleep(self._replan_s)
        finally:
            self._scheduler.shutdown(wait=False)
            if self._restart is not None:
                # A clean shutdown: the bot ran until now, not until the last full minute.
                await _run_safely("shutdown", self._restart.mark_alive)

    def planned(self) -> list[PlannedJob]:
        """The planned calls."""
        return list(self._scheduler.get_jobs())

    def replan(self) -> None:
        """Reschedule tasks whose next call is too late because the clock went back."""
        for job in self.planned():
            planned = job.trigger.get_next_fire_time(None, datetime.now(job.trigger.timezone))
            if job.next_run_time is not None and planned is not None and planned < job.next_run_time:
                log.warning("the clock was set back: %s is rescheduled to %s", job.name, planned)
                job.modify(next_run_time=planned)

    async def _report_restart(self) -> None:
        if self._restart is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_PASS_S):
                await self.first_pass_done.wait()
        await _run_safely("restart report", self._restart.send)


async def _run_planned(name: str, run: Callable[[], Awaitable[object]]) -> None:
    """Run a task for APScheduler, which would log as a failure that a shutdown cancels it."""
    with suppress(asyncio.CancelledError):
        await _run_safely(name, run)


async def _run_safely(name: str, run: Callable[[], Awaitable[object]]) -> None:
    """Log a failure, so that one task cannot stop the others."""
    try:
        await run()
    except Exception:
        log.exception("the task %r failed; it runs again at its next time", name)


def plan_tasks(
    config: Config,
    *,
    db: Database,
    outbox: Outbox,
    datasets: DatasetStore,
    uploads: ResumableUploads,
    links: WebLinks,
    drafts: DraftStore,
    jobs: JobStore,
    admission: AdmissionControl,
    query_gpus: Callable[[], Awaitable[Devices]],
    data_dir: Path,
    clock: Clock = SYSTEM_CLOCK,
) -> Scheduler:
    """Plan all tasks of the bot."""
    notifier = AdminNotifier(db, outbox, channel_id=config.discord.log_channel)
    storage = Storage(db, data_dir=data_dir, settings=config.retention, clock=clock)
    retention = RetentionRunner(db, data_dir=data_dir, settings=config.retention, notifier=notifier, clock=clock)
    restart = RestartReport(db, notifier, clock=clock)
    wakeup = WakeupScheduler(db, jobs.changed, admission, clock=clock)
    disk = DiskAlerts(db, notifier, admission.disk, clock=clock)
    hangs = HangAlerts(db, jobs, notifier, settings=config.queue, clock=clock)
    digest = DigestSender(db, notifier, storage, admission.windows, clock=clock)
    tasks = [
        # At the full minute, where windows have their edges.
        ScheduledTask(name="wakeup", run=wakeup.check, when={"second": "0"}, at_start=True),
        ScheduledTask(name="disk", run=disk.check, when={"second": "5"}, at_start=True),
        ScheduledTask(name="hangs", run=hangs.check, when={"second": "10"}),
        ScheduledTask(name="alive", run=restart.mark_alive, when={"second": "20"}),
        ScheduledTask(name="drafts", run=lambda: sweep_drafts(drafts), when={"minute": "7"}),
        # Readers that never pause can make the write-ahead log grow.
        ScheduledTask(name="wal", run=db.checkpoint, when={"minute": "13"}),
        ScheduledTask(name="datasets", run=lambda: sweep_datasets(datasets), when={"hour": "*/6", "minute": "23"}),
        ScheduledTask(name="uploads", run=lambda: sweep_uploads(uploads, links), when={"minute": "31"}),
        ScheduledTask(name="trash", run=retention.empty_trash, when={"hour": "*/6", "minute": "29"}, at_start=True),
        ScheduledTask(name="retention", run=retention.run, when={"hour": "*/6", "minute": "37"}),
        ScheduledTask(name="digest", run=digest.check, when={"minute": "0"}, at_start=True),
    ]
    if (backup_at := config.backup.clock) is not None:
        folder = config.backup_folder
        backup = NightlyBackup(
            db, notifier, settings=config.backup, zone=config.windows.zone, folder=folder, clock=clock
        )
        # Each hour, at that minute: a backup that failed, or that the machine slept through, is made up for.
        when = {"minute": str(backup_at.minute)}
        tasks.append(ScheduledTask(name="backup", run=backup.check, when=when, at_start=True))
    if minutes := config.health.gpu_check_minutes:
        gpus = GpuMonitor(db, jobs.slots, notifier, query_gpus, settings=config.health, clock=clock)
        when = {"minute": f"*/{minutes}"} if minutes < 60 else {"hour": f"*/{minutes // 60}", "minute": "0"}
        tasks.append(ScheduledTask(name="gpus", run=gpus.check, when=when | {"second": "30"}))
    return Scheduler(tasks, timezone=config.windows.timezone, restart=restart)
