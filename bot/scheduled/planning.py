"""Every chore of the bot and when it comes."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from bot.config import Config
from bot.datasets import DatasetStore
from bot.db import Database
from bot.outbox import Outbox
from bot.queue import DraftStore, JobStore
from bot.queue.planning.storage import Storage
from bot.runners.stored import StoredJobs, open_store
from bot.scheduled.backup import NightlyBackup
from bot.scheduled.boot import Boot
from bot.scheduled.chores import Chore, Chores
from bot.scheduled.digest import Digest
from bot.scheduled.disk import DiskWatch
from bot.scheduled.gates import Gates
from bot.scheduled.gpus import GpuWatch
from bot.scheduled.news import News
from bot.scheduled.retention import Retention
from bot.scheduled.silence import SilenceWatch
from bot.scheduled.store_sweep import StoreSweep
from bot.scheduled.sweeping import empty_wal, sweep_drafts, sweep_leftovers
from bot.scheduled.waking import Waking
from trainer.protocol.devices import Devices


def plan_chores(
    config: Config,
    *,
    db: Database,
    outbox: Outbox,
    datasets: DatasetStore,
    drafts: DraftStore,
    jobs: JobStore,
    gates: Gates,
    ask: Callable[[], Awaitable[Devices]],
    data_dir: Path,
    now: Callable[[], float] = time.time,
) -> Chores:
    """The chores; `ask` is how the GPUs are asked for their health (`ask_devices`)."""
    news = News(db, outbox, channel_id=config.discord.log_channel)
    storage = Storage(db, data_dir=data_dir, settings=config.retention, now=now)
    objects = open_store(config.ray, data_dir)
    store = None if objects is None else StoreSweep(db, StoredJobs(objects), news=news, now=now)
    retention = Retention(db, data_dir=data_dir, settings=config.retention, news=news, store=store, now=now)
    silence = SilenceWatch(db, jobs, news, settings=config.queue, now=now)
    boot = Boot(db, news, now=now)
    digest = Digest(db, news, storage, gates.windows, now=now)
    chores = [
        *_each_minute(db, jobs, gates, news, silence, boot, now),
        Chore(name="drafts", run=lambda: sweep_drafts(drafts), when={"minute": "7"}),
        Chore(name="wal", run=lambda: empty_wal(db), when={"minute": "13"}),
        Chore(name="leftovers", run=lambda: sweep_leftovers(datasets), when={"hour": "*/6", "minute": "23"}),
        Chore(name="trash", run=retention.sweep, when={"hour": "*/6", "minute": "29"}, at_start=True),
        Chore(name="retention", run=retention.run, when={"hour": "*/6", "minute": "37"}),
        Chore(name="digest", run=digest.look, when={"minute": "0"}, at_start=True),
        *_store(config, store),
        *_backup(config, db, news, data_dir, now),
        *_gpus(config, db, jobs, news, ask, now),
    ]
    return Chores(chores, timezone=config.windows.timezone, boot=boot)


def _each_minute(
    db: Database,
    jobs: JobStore,
    gates: Gates,
    news: News,
    silence: SilenceWatch,
    boot: Boot,
    now: Callable[[], float],
) -> list[Chore]:
    return [
        # At the full minute: there windows have their edges.
        Chore(name="waking", run=Waking(db, jobs.changed, gates, now=now).look, when={"second": "0"}, at_start=True),
        Chore(name="disk", run=DiskWatch(db, news, gates.disk, now=now).look, when={"second": "5"}, at_start=True),
        Chore(name="silence", run=silence.look, when={"second": "10"}),
        Chore(name="seen", run=boot.seen, when={"second": "20"}),
    ]


def _store(config: Config, store: StoreSweep | None) -> list[Chore]:
    if store is None or config.retention.dry_run:
        return []
    return [Chore(name="store", run=store.run, when={"minute": "41"})]


def _backup(config: Config, db: Database, news: News, data_dir: Path, now: Callable[[], float]) -> list[Chore]:
    at = config.backup.clock
    if at is None:
        return []
    folder = Path(config.backup.folder) if config.backup.folder else data_dir / "backups"
    backup = NightlyBackup(db, news, settings=config.backup, windows=config.windows, folder=folder, now=now)
    # Each hour, at that minute: one that failed, or that the machine slept through, is made up for.
    return [Chore(name="backup", run=backup.look, when={"minute": str(at.minute)}, at_start=True)]


def _gpus(
    config: Config,
    db: Database,
    jobs: JobStore,
    news: News,
    ask: Callable[[], Awaitable[Devices]],
    now: Callable[[], float],
) -> list[Chore]:
    minutes = config.health.gpu_check_minutes
    if not minutes:
        return []
    watch = GpuWatch(db, jobs.slots, news, ask, settings=config.health, now=now)
    when = {"minute": f"*/{minutes}"} if minutes < 60 else {"hour": f"*/{max(1, minutes // 60)}", "minute": "0"}
    return [Chore(name="gpus", run=watch.look, when=when | {"second": "30"})]
