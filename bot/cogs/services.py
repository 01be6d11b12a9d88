"""The services that commands and buttons use, made by the composition root, and questions that span several of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeAlias

import discord
from discord.ext import commands

from bot.access import Access, server_of
from bot.cogs.interaction_gate import InteractionGate
from bot.config import Config
from bot.datasets import DatasetStore, HubDatasets, PendingUploads, ResumableUploads
from bot.errors import NoSuchDataset
from bot.languages import Languages
from bot.outbox import Outbox
from bot.predictions import MemoryPredictions
from bot.publishing import Publisher
from bot.queue import Allowance, DraftStore, Job, JobStore, State
from bot.queue.planning.estimates import Estimates
from bot.queue.planning.forecast import Forecaster
from bot.queue.planning.retention import Deletion, Storage
from bot.queue.store.limits import Budget, RoleLimits, require_budget
from bot.queue.store.preset_store import PresetStore
from bot.studies import StudyService
from bot.ui.job_context import JobContext, StartForecast
from bot.ui.layout import MessageContent
from bot.ui.upload_posts import Unanswered
from bot.web import WebLinks

#: Of a server without boosts, and of one that is not in the cache.
_DEFAULT_FILE_LIMIT = 10 * 1024 * 1024

#: The bytes of an attachment, in chunks.
Download: TypeAlias = Callable[[discord.Attachment], AsyncIterator[bytes]]

#: By the upload's interaction; with the sentence that was to be its answer, if it failed.
FinishUpload: TypeAlias = Callable[[int, Unanswered, str], Awaitable[None]]


def always_open() -> str:
    """Return why no job may start now: never, where there are no training windows and no limit of the disk."""
    return ""


@dataclass(frozen=True, kw_only=True)
class Services:
    """The bot's services; they outlive the Discord client, which may be replaced at any time."""

    config: Config
    #: Admits interactions, and reports their errors.
    gate: InteractionGate
    languages: Languages
    access: Access
    jobs: JobStore
    #: Messages that are not delivered yet.
    outbox: Outbox
    datasets: DatasetStore
    #: Uploads whose owners have no answer yet.
    uploads: PendingUploads
    #: Files of uploads by page.
    resumable: ResumableUploads
    #: Datasets of the Hugging Face hub.
    hub_datasets: HubDatasets
    drafts: DraftStore
    #: Presets that members saved.
    presets: PresetStore
    limits: RoleLimits
    estimates: Estimates
    #: The memory that trainings need.
    predictions: MemoryPredictions
    forecaster: Forecaster
    studies: StudyService
    publisher: Publisher
    #: Disk usage of the jobs, and what is due to be deleted.
    storage: Storage
    #: Delete what a plan names (`RetentionRunner.delete`); False if it is needed again.
    delete_files: Callable[[Deletion], Awaitable[bool]]
    #: The bot's health as a message, for the managers of a server or for operators (None).
    health: Callable[[int | None], Awaitable[MessageContent]]
    #: How trainer processes are started.
    trainer_command: tuple[str, ...]
    download: Download
    #: Links to the web pages, for one person each; there may be none.
    links: WebLinks
    #: Finish an upload that cannot be answered, and answer it in its channel (`InterruptedUploads.finish`).
    finish_upload: FinishUpload
    #: Why nothing starts at this hour, as a sentence (`AdmissionControl.hold_reason`); empty if it may.
    why_closed: Callable[[], str] = always_open


class ServiceCog(commands.Cog):
    """A cog that uses the bot's services."""

    def __init__(self, services: Services) -> None:
        self._services = services


class ServiceGroupCog(ServiceCog, commands.GroupCog):
    """As `ServiceCog`, with its commands below a word of its own."""


def file_limit_of(client: discord.Client | None, guild_id: int) -> int:
    """Largest file that a server accepts, bytes."""
    guild = client.get_guild(guild_id) if client else None
    return guild.filesize_limit if guild else _DEFAULT_FILE_LIMIT


async def context_of(services: Services, job: Job, client: discord.Client | None) -> JobContext:
    """Collect what a message about a job needs in addition to the job."""
    context = JobContext(
        job_dir=services.jobs.job_dir(job),
        now=datetime.now(UTC),
        file_limit=file_limit_of(client, job.guild_id),
        has_pages=services.links.are_on,
        has_hub=services.config.hub.is_on,
    )
    if job.study is not None:
        children = await services.jobs.studies.children(job.id)
        step = await services.jobs.study_step(job.id)
        context = replace(context, children=tuple(children), step=step)
    if job.is_sampling and job.state is State.SUCCEEDED:
        context = replace(context, votes=await services.jobs.votes.counts(job.id))
    match job.state:
        case State.QUEUED:
            return await _with_position(services, job, context)
        case State.PAUSED:
            return replace(context, since=await _since(services, job))
        case _:
            return context


async def _with_position(services: Services, job: Job, context: JobContext) -> JobContext:
    """Add why a queued job does not start yet, and when it is expected to."""
    slots = [slot for slot in await services.jobs.slots.all() if slot.is_enabled]
    runs, may_run = await services.jobs.owner_runs(job.id)
    return replace(
        context,
        position=await services.jobs.queue_position(job.id),
        queue_pause=await services.jobs.control.read(),
        why_closed=services.why_closed(),
        owner_runs=runs,
        owner_may_run=may_run,
        free_slots=sum(slot.job_id is None for slot in slots),
        slots=len(slots),
        forecast=await _forecast(services, job),
    )


async def _forecast(services: Services, job: Job) -> StartForecast:
    found = await services.forecaster.of(job.id)
    if found is None:
        # It has started meanwhile, or is far back in the line.
        return StartForecast(seconds=job.estimate_s, usual_error=await _usual_error(services, job))
    starts_at = None if found.starts_at is None else datetime.fromtimestamp(found.starts_at, UTC)
    return StartForecast(starts_at=starts_at, seconds=found.seconds, usual_error=await _usual_error(services, job))


async def _usual_error(services: Services, job: Job) -> float | None:
    if job.is_sampling:
        return None
    try:
        dataset = await services.datasets.get(job.dataset_id)
    except NoSuchDataset:
        # Deleted, and the job was retried afterwards.
        return None
    estimate = await services.estimates.of(job.spec, dataset.counts, job.gpus)
    return None if estimate is None else estimate.usual_error


async def _since(services: Services, job: Job) -> datetime | None:
    """When the job came into its state, according to the audit."""
    entries = await services.jobs.audit(guild_id=job.guild_id, job_id=job.id)
    return next((entry.at for entry in entries if entry.after == job.state and entry.before != entry.after), None)


async def allowance_of_member(services: Services, interaction: discord.Interaction) -> Allowance:
    """Return what the member who acts may ask for, by their current roles."""
    role_ids = {role.id for role in getattr(interaction.user, "roles", ())}
    return await services.limits.allowance(server_of(interaction), role_ids)


async def require_hours(
    services: Services,
    allowance: Allowance,
    needed_h: float | None,
    *,
    guild_id: int,
    owner_id: int,
    is_study: bool = False,
) -> None:
    """Raise unless the owner's GPU hours of this week leave room for a job; `needed_h` is None if unknown.

    Raises:
        OverBudget: They do not.
        UnknownHours: It is a study, and nothing tells how many it needs.
    """
    require_budget(await _budget(services, allowance, guild_id, owner_id), needed_h, is_study=is_study)


async def hours_left(services: Services, allowance: Allowance, *, guild_id: int, owner_id: int) -> float | None:
    """Return the GPU hours that a member has left this week; None: any number."""
    return (await _budget(services, allowance, guild_id, owner_id)).left_h


async def _budget(services: Services, allowance: Allowance, guild_id: int, owner_id: int) -> Budget:
    zone = services.config.windows.zone
    return await services.limits.budget(guild_id, owner_id, allowance.gpu_hours_per_week, zone=zone)
