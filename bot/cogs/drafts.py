"""A draft: its card with the question whether to go on, and how it becomes a job."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import discord

from bot.cogs.job_request import JobRequest, make_draft
from bot.cogs.replies import reply
from bot.cogs.services import Services, allowance_of_member, context_of, require_hours
from bot.datasets import Dataset
from bot.errors import DarkroomError, DuplicateJob, NoSuchDataset
from bot.queue import Allowance, Draft, Job, NewJob, State
from bot.queue.domain.job import fingerprint
from bot.queue.planning.estimates import Estimate
from bot.queue.store.limits import require_gpus, require_priority
from bot.ui.dataset_cards import ReportView, report_card
from bot.ui.job_replies import duplicate_notice, queued_already, receipt
from bot.ui.layout import MessageContent, text_message
from trainer.exchange.base_files import training_resolution
from trainer.protocol.bucket_shapes import ResolutionFit
from trainer.protocol.report import DatasetReport
from trainer.protocol.spec import Spec, SpecError
from trainer.protocol.text import _


async def store_draft(
    services: Services, interaction: discord.Interaction, dataset: Dataset, request: JobRequest
) -> Draft:
    """Store a request for a dataset. The draft carries the interaction's id, so that one command makes one job."""
    return await services.drafts.keep(
        interaction_id=interaction.id,
        guild_id=dataset.guild_id,
        channel_id=interaction.channel_id or 0,
        owner_id=interaction.user.id,
        dataset_id=dataset.id,
        request=request.model_dump_json(),
    )


async def dataset_card(
    services: Services,
    interaction: discord.Interaction,
    dataset: Dataset,
    *,
    sheet: int = 0,
    draft: Draft | None = None,
    note: str = "",
) -> MessageContent:
    """Make the report card of a dataset, with the draft that waits for it if there is one."""
    report = await services.datasets.report(dataset)
    spec, study, estimate, fit = None, None, None, None
    if draft is not None:
        request = JobRequest.model_validate_json(draft.request)
        allowance = await allowance_of_member(services, interaction)
        spec = _spec(services, allowance, request, dataset)
        study = request.study
        fit = await _fit(services, report, spec)
        estimate = await _estimate(services, request, spec, dataset)
    view = ReportView(
        dataset=dataset,
        report=report,
        file_limit=interaction.filesize_limit,
        sheet=sheet,
        note=note,
        draft_id=None if draft is None else draft.id,
        spec=spec,
        study=study,
        fit=fit,
        estimate=estimate,
    )
    return report_card(view)


async def draft_card(
    services: Services, interaction: discord.Interaction, draft: Draft, *, sheet: int = 0
) -> MessageContent:
    """Make the card of a draft: what it would train on, and the question whether to go on.

    Raises:
        NoSuchDataset: The dataset was deleted.
    """
    dataset = await services.datasets.get_in(draft.guild_id, draft.dataset_id)
    return await dataset_card(services, interaction, dataset, sheet=sheet, draft=draft)


async def queue_draft(
    services: Services, interaction: discord.Interaction, draft: Draft, *, may_repeat: bool = False
) -> MessageContent:
    """Queue the job of a draft, with all decisions about its dataset applied, and return the receipt. Idempotent.

    Args:
        services: The bot's services.
        interaction: Of the draft's owner.
        draft: The member's own draft.
        may_repeat: Accept it although a job with the same data and settings waits, runs, or has succeeded.

    Raises:
        DraftEnded: It has expired or was cancelled.
        DuplicateJob: There is such a job, and it may not be repeated; the draft keeps waiting.
        DarkroomError, SpecError: It cannot be queued; the draft keeps waiting.
    """
    if draft.state is not State.DRAFT:
        job = await services.jobs.get(draft.id)
    else:
        job = await _submit(services, interaction, draft, may_repeat=may_repeat)
    try:
        dataset = await services.datasets.get(job.dataset_id)
    except NoSuchDataset:
        # Deleted since the job has ended.
        return text_message(queued_already(job.id))
    report = await services.datasets.report(dataset)
    fit = await _fit(services, report, job.spec)
    return receipt(job, await context_of(services, job, None), report, fit)


async def queue_at_once(services: Services, interaction: discord.Interaction, draft: Draft) -> None:
    """Queue a draft without a confirmation and answer; only a duplicate waits for "Queue anyway".

    Raises:
        DarkroomError, SpecError: It cannot be queued; the draft is cancelled.
    """
    try:
        await reply(interaction, await queue_draft(services, interaction, draft))
    except DuplicateJob as error:
        await reply(interaction, duplicate_notice(error, draft))
    except (DarkroomError, SpecError):
        # It must not wait for a confirmation that the member was never asked for.
        await services.drafts.cancel(draft.id, by=interaction.user.id)
        raise


async def _submit(services: Services, interaction: discord.Interaction, draft: Draft, *, may_repeat: bool) -> Job:
    """Queue the job of a draft, within the member's current allowance."""
    request = JobRequest.model_validate_json(draft.request)
    allowance = await require_allowed(services, interaction, request)
    dataset = await services.datasets.apply(draft.dataset_id)
    spec = _spec(services, allowance, request, dataset)
    seconds = await _needed_s(services, request, spec, dataset, max_epochs=allowance.max_epochs)
    await require_hours(
        services,
        allowance,
        None if seconds is None else max(1, request.gpus) * seconds / 3600,
        guild_id=draft.guild_id,
        owner_id=draft.owner_id,
        is_study=request.study is not None,
    )
    new = NewJob(
        interaction_id=draft.interaction_id,
        guild_id=draft.guild_id,
        channel_id=draft.channel_id,
        owner_id=draft.owner_id,
        dataset_id=dataset.id,
        spec=spec,
        priority=request.queue.priority,
        gpus=request.gpus,
        run_after=datetime.fromtimestamp(request.queue.run_after, UTC) if request.queue.run_after else None,
        max_running=allowance.max_running,
        max_waiting=allowance.max_waiting,
        fingerprint=fingerprint(spec, dataset.digest, study=request.study),
        estimate_s=seconds,
        study=None if request.study is None else request.study.model_dump_json(),
    )
    return await services.jobs.submit(new, may_repeat=may_repeat)


async def _needed_s(
    services: Services, request: JobRequest, spec: Spec, dataset: Dataset, *, max_epochs: int
) -> float | None:
    """Return how long a job is expected to train, all runs of a study together; None if unknown.

    Raises:
        JobRefused: The study cannot be run, or one of its runs is not what the member may train.
    """
    if request.study is None:
        runs = [spec]
    else:
        runs = await services.studies.plan(spec, request.study, max_epochs=max_epochs)
    # At least one GPU for each run; a study itself holds none.
    estimates = [await services.estimates.of(run, dataset.counts, max(1, request.gpus)) for run in runs]
    found = [estimate.seconds for estimate in estimates if estimate is not None]
    return sum(found) if len(found) == len(runs) else None


def _spec(services: Services, allowance: Allowance, request: JobRequest, dataset: Dataset) -> Spec:
    draft = make_draft(request, services.config, max_epochs=allowance.max_epochs)
    return draft.with_dataset(str(dataset.folder), name=None if request.name else dataset.name)


async def _fit(services: Services, report: DatasetReport, spec: Spec) -> ResolutionFit | None:
    """What the resolution of a training means for the images; None if its base is not here to tell."""

    def read() -> ResolutionFit | None:
        resolution = training_resolution(spec, services.config.trainer_environment())
        return None if resolution is None else report.fit(resolution)

    return await asyncio.to_thread(read)


async def _estimate(services: Services, request: JobRequest, spec: Spec, dataset: Dataset) -> Estimate | None:
    """How long a training takes, for the draft's card; None for a study, whose runs are not planned yet."""
    if request.study is not None:
        return None
    return await services.estimates.of(spec, dataset.counts, request.gpus)


async def require_allowed(services: Services, interaction: discord.Interaction, request: JobRequest) -> Allowance:
    """Return the member's allowance, or raise if the request's priority or GPUs exceed it.

    Raises:
        JobRefused: It asks for more GPUs than there are, or for a priority that the member may not use.
    """
    require_priority(request.queue.priority, can_manage=interaction.permissions.manage_guild)
    require_gpus(request.queue.gpus, sum(slot.is_enabled for slot in await services.jobs.slots.all()))
    return await allowance_of_member(services, interaction)


async def cancel_draft(services: Services, draft: Draft) -> MessageContent:
    """Cancel a waiting draft."""
    if await services.drafts.cancel(draft.id, by=draft.owner_id):
        return text_message(_("⬛ Cancelled; nothing was queued. The dataset is kept."))
    return text_message(_("This request was queued already. /job list shows it."))
