"""Everything that commands and buttons may ask for, made over one open database."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from bot.cogs.downloads import Download, streamed
from bot.cogs.services import Services, always_open
from bot.config import Config
from bot.datasets import DatasetStore, Uploads
from bot.db import Database
from bot.outbox import Outbox
from bot.queue import DraftStore, JobStore
from bot.queue.planning.estimates import Estimates
from bot.queue.planning.forecast import Forecaster
from bot.queue.planning.storage import Storage
from bot.queue.planning.windows import windows_of
from bot.queue.store.limits import RoleLimits
from bot.scheduled.retention import Retention
from bot.studies import Studies
from bot.ui.layout import MessageContent


def assemble(
    config: Config,
    db: Database,
    outbox: Outbox,
    *,
    data_dir: Path,
    command: Sequence[str],
    environment: Mapping[str, str],
    health: Callable[[], Awaitable[MessageContent]],
    why_closed: Callable[[], str] = always_open,
    download: Download = streamed,
) -> Services:
    """The services; nothing runs yet."""
    jobs = JobStore(db, outbox, data_dir=data_dir, limits=config.limits, queue=config.queue)
    estimates = Estimates(db)
    windows = windows_of(config.windows)
    return Services(
        config=config,
        jobs=jobs,
        datasets=DatasetStore(
            db,
            data_dir=data_dir,
            limits=config.limits,
            prepare=config.prepare,
            command=command,
            env=environment,
            cpu_slots=config.queue.cpu_slots,
        ),
        uploads=Uploads(db),
        drafts=DraftStore(db),
        limits=RoleLimits(db, defaults=config.limits),
        estimates=estimates,
        forecaster=Forecaster(db, jobs.switch, estimates, now=time.time, windows=windows, keep_s=3.0),
        studies=Studies(jobs, command=command, env=environment),
        storage=Storage(db, data_dir=data_dir, settings=config.retention),
        free=Retention(db, data_dir=data_dir, settings=config.retention).free,
        health=health,
        why_closed=why_closed,
        download=download,
    )
