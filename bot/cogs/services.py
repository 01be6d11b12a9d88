"""What commands and buttons may ask for: the bot's services, made by the composition root."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import discord

from bot.cogs.downloads import Download, streamed
from bot.config import Config
from bot.datasets import DatasetStore, Uploads
from bot.errors import NoSuchDataset
from bot.queue import DraftStore, Job, JobStore, State
from bot.queue.planning.estimates import Estimates
from bot.queue.planning.forecast import Forecaster
from bot.queue.planning.retention import Deletion
from bot.queue.planning.storage import Storage
from bot.queue.store.limits import RoleLimits
from bot.studies import Studies
from bot.ui.layout import MessageContent
from bot.ui.standing import Forecast, Standing

#: Of a server without boosts, and of one that is not in the cache.
_DEFAULT_FILE_LIMIT = 10 * 1024 * 1024


def always_open() -> str:
    """No training windows, and room on the disk."""
    return ""


@dataclass(frozen=True, kw_only=True)
class Services:
    """Beside the Discord client, and older than it: a client may come and go."""

    config: Config
    jobs: JobStore
    datasets: DatasetStore
    #: What is being received and examined, until its owner is answered.
    uploads: Uploads
    drafts: DraftStore
    limits: RoleLimits
    estimates: Estimates
    forecaster: Forecaster
    studies: Studies
    #: What the jobs take on the disk, and what is due to be deleted.
    storage: Storage
    #: Delete what a plan names (`Retention.free`); False if it is needed by now.
    free: Callable[[Deletion], Awaitable[bool]]
    #: How everything is, as a message.
    health: Callable[[], Awaitable[MessageContent]]
    #: Why nothing starts at this hour, in a sentence (`Gates.reason`); empty: it may.
    why_closed: Callable[[], str] = always_open
    download: Download = streamed


async def standing_of(job: Job, services: Services, client: discord.Client | None, marker: str = "") -> Standing:
    """What a message about a job needs beside the job, asked for now."""
    guild = client.get_guild(job.guild_id) if client else None
    standing = Standing(
        job_dir=services.jobs.job_dir(job),
        now=datetime.now(UTC),
        file_limit=guild.filesize_limit if guild else _DEFAULT_FILE_LIMIT,
        marker=marker,
    )
    if job.study is not None:
        children = await services.jobs.children(job.id)
        step = await services.jobs.study_step(job.id)
        standing = replace(standing, children=tuple(children), step=step)
    match job.state:
        case State.QUEUED:
            return await _in_line(job, services, standing)
        case State.PAUSED:
            return replace(standing, since=await _since(job, services))
        case _:
            return standing


async def forecast_of(services: Services, job: Job) -> Forecast:
    """When a job starts and how long it takes, as far as anybody knows."""
    found = await services.forecaster.of(job.id)
    if found is None:
        return Forecast()
    starts_at = None if found.starts_at is None else datetime.fromtimestamp(found.starts_at, UTC)
    return Forecast(starts_at=starts_at, seconds=found.seconds, usual_error=await _usual_error(services, job))


async def _usual_error(services: Services, job: Job) -> float | None:
    try:
        dataset = await services.datasets.get(job.dataset_id)
    except NoSuchDataset:
        # Deleted before somebody's Retry.
        return None
    estimate = await services.estimates.of(job.spec, dataset.counts, job.gpus)
    return None if estimate is None else estimate.usual_error


async def _in_line(job: Job, services: Services, standing: Standing) -> Standing:
    """Why it does not start yet, and when it is expected to."""
    slots = [slot for slot in await services.jobs.slots.all() if slot.is_enabled]
    runs, may_run = await services.jobs.owner_runs(job.id)
    return replace(
        standing,
        place=await services.jobs.place_in_line(job.id),
        halt=await services.jobs.switch.read(),
        why_closed=services.why_closed(),
        owner_runs=runs,
        owner_may_run=may_run,
        free_slots=sum(slot.job_id is None for slot in slots),
        slots=len(slots),
        forecast=await forecast_of(services, job),
    )


async def _since(job: Job, services: Services) -> datetime | None:
    """When it came into its state, as the audit has it."""
    entries = await services.jobs.audit(guild_id=job.guild_id, job_id=job.id)
    return next((entry.at for entry in entries if entry.after == job.state and entry.before != entry.after), None)
