"""A draft: its card with the question whether to go on, and how it becomes a job."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial

import discord

from bot.access import manages
from bot.bot_failpoints import failpoint
from bot.cogs.attachments import progress_shown
from bot.cogs.interaction_gate import sentence_of
from bot.cogs.job_request import JobRequest, UnknownMixedDataset, make_draft, problems_of
from bot.cogs.lookups import dataset_here, job_here
from bot.cogs.replies import AnswerFailed, renew, reply
from bot.cogs.services import Services, allowance_of_member, context_of, hours_left, require_hours
from bot.datasets import Dataset, may_change
from bot.datasets.dataset import may_mix
from bot.errors import DarkroomError, DraftEnded, DuplicateJob, JobRefused, NoSuchDataset
from bot.queue import Allowance, Draft, Job, NewJob
from bot.queue.domain.job import fingerprint
from bot.queue.planning.estimates import Estimate
from bot.queue.store.limits import require_gpus, require_priority
from bot.ui.dataset_cards import ReportView, report_card
from bot.ui.job_replies import duplicate_notice, queued_already, receipt
from bot.ui.layout import MessageContent, text_message
from bot.ui.setting_forms import problem_card
from bot.ui.training_plan import StudyPlan
from trainer.exchange.base_files import training_resolution
from trainer.protocol.bucket_shapes import ResolutionFit
from trainer.protocol.events import ExportFormat
from trainer.protocol.exported_files import newest_files
from trainer.protocol.report import DatasetReport
from trainer.protocol.setting_problems import SettingProblem
from trainer.protocol.settings import TaskKind
from trainer.protocol.spec import Spec, SpecError
from trainer.protocol.text import _, listed, ngettext

log = logging.getLogger(__name__)


async def store_draft(
    services: Services, interaction: discord.Interaction, dataset: Dataset, request: JobRequest
) -> Draft:
    """Store a request for a dataset. The draft carries the interaction's id, so that one command makes one job."""
    return await services.drafts.add(
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
    spec, study, estimate, fit, study_plan, memory = None, None, None, None, None, None
    if draft is not None:
        request = JobRequest.model_validate_json(draft.request)
        allowance = await allowance_of_member(services, interaction)
        spec = await _spec(services, interaction, allowance, request, dataset)
        study = request.study
        fit = await _fit(services, report, spec)
        estimate = await _estimate(services, request, spec, dataset)
        memory = await _memory(services, interaction, spec, partial(_again, services, interaction, draft.id, sheet))
        if study is not None:
            runs = await services.studies.plan(spec, study, max_epochs=allowance.max_epochs)
            study_plan = StudyPlan(
                runs=len(runs),
                seconds=await _all_s(services, request, runs, dataset),
                gpus=max(1, request.gpus),
                left_h=await hours_left(services, allowance, guild_id=draft.guild_id, owner_id=draft.owner_id),
            )
    view = ReportView(
        dataset=dataset,
        report=report,
        file_limit=interaction.filesize_limit,
        sheet=sheet,
        note=note,
        draft_id=None if draft is None else draft.id,
        spec=spec,
        study=study,
        study_plan=study_plan,
        fit=fit,
        estimate=estimate,
        memory=memory,
        may_change=may_change(dataset, user_id=interaction.user.id, can_manage=manages(interaction)),
        is_own=dataset.owner_id == interaction.user.id,
        has_pages=services.links.are_on,
    )
    return report_card(view)


async def draft_card(
    services: Services, interaction: discord.Interaction, draft: Draft, *, sheet: int = 0
) -> MessageContent:
    """Make the card of a draft: what it would train on, and the question whether to go on; or what has to change first.

    Raises:
        NoSuchDataset: The dataset was deleted.
    """
    dataset = await dataset_here(services, interaction, draft.dataset_id)
    try:
        return await dataset_card(services, interaction, dataset, sheet=sheet, draft=draft)
    except (DarkroomError, SpecError) as error:
        problems = problems_of(error)
        if not problems:
            raise
        name = JobRequest.model_validate_json(draft.request).name or dataset.name
        return problem_card(dataset.id, draft.id, name=name, sentence=sentence_of(error), problems=problems)


async def _again(services: Services, interaction: discord.Interaction, draft_id: int, sheet: int) -> MessageContent:
    """Make the card of a draft once more.

    Raises:
        DraftEnded: It no longer waits.
    """
    draft = await services.drafts.get(draft_id)
    if draft.job_id is not None:
        raise DraftEnded(is_expired=False)
    return await draft_card(services, interaction, draft, sheet=sheet)


async def _memory(
    services: Services,
    interaction: discord.Interaction,
    spec: Spec,
    again: Callable[[], Awaitable[MessageContent]],
) -> int | None:
    """Return the memory that a training needs, if it is known; else the answer is made `again` once it is."""

    async def renew_answer() -> None:
        if interaction.is_expired():
            return
        try:
            message = await interaction.original_response()
            if services.gate.is_newest(interaction, message):
                await renew(interaction, await again(), message=message)
        except (DarkroomError, SpecError, AnswerFailed, discord.NotFound) as error:
            log.info("interaction %s: the answer stays without the memory (%r)", interaction.id, error)

    return await services.predictions.of(spec, renew_answer)


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
    if draft.job_id is not None:
        job = await services.jobs.get(draft.job_id)
    else:
        asked = await dataset_here(services, interaction, draft.dataset_id)
        # Decisions that are not applied yet are applied now.
        async with progress_shown(interaction, asked.name, partial(draft_card, services, interaction, draft)):
            job = await _submit(services, interaction, draft, may_repeat=may_repeat)
    try:
        dataset = await services.datasets.get(job.dataset_id)
    except NoSuchDataset:
        # Deleted since the job has ended.
        return text_message(queued_already(job.id))
    return await receipt_of(services, interaction, job, await services.datasets.report(dataset))


async def receipt_of(
    services: Services, interaction: discord.Interaction, job: Job, report: DatasetReport
) -> MessageContent:
    """Make the receipt of a job that was just queued."""
    fit = await _fit(services, report, job.spec)
    context = await context_of(services, job, interaction.client)

    async def content() -> MessageContent:
        return receipt(job, context, report, fit, await _memory(services, interaction, job.spec, content))

    return await content()


async def offer(
    services: Services, interaction: discord.Interaction, dataset: Dataset, request: JobRequest, *, confirm: bool
) -> None:
    """Store the draft of a command; show its card, or queue it at once."""
    draft = await store_draft(services, interaction, dataset, request)
    failpoint("upload_drafted")
    if confirm:
        await ask_to_start(services, interaction, draft)
    else:
        await queue_at_once(services, interaction, draft)


async def ask_to_start(services: Services, interaction: discord.Interaction, draft: Draft) -> None:
    """Answer with the card of a new draft.

    Raises:
        DarkroomError, SpecError: It can never be queued; the draft is cancelled.
    """
    try:
        content = await draft_card(services, interaction, draft)
    except (DarkroomError, SpecError):
        await services.drafts.cancel(draft.id)
        raise
    await reply(interaction, content)


async def queue_at_once(services: Services, interaction: discord.Interaction, draft: Draft) -> None:
    """Queue a draft without a confirmation and answer; a duplicate waits for "Queue anyway", wrong settings for a form.

    Raises:
        DarkroomError, SpecError: It cannot be queued; the draft is cancelled.
    """
    try:
        await reply(interaction, await queue_draft(services, interaction, draft))
    except DuplicateJob as error:
        await reply(interaction, duplicate_notice(error, draft))
    except (DarkroomError, SpecError) as error:
        if problems_of(error):
            await reply(interaction, await draft_card(services, interaction, draft))
            return
        # It must not wait for a confirmation that the member was never asked for.
        await services.drafts.cancel(draft.id)
        raise


async def _submit(services: Services, interaction: discord.Interaction, draft: Draft, *, may_repeat: bool) -> Job:
    """Queue the job of a draft, within the member's current allowance."""
    request = JobRequest.model_validate_json(draft.request)
    allowance = await require_allowed(services, interaction, request)
    dataset = await services.datasets.apply(draft.dataset_id)
    mixed = [await services.datasets.apply(each.id) for each in await _mixed(services, interaction, request, dataset)]
    spec = await _spec(services, interaction, allowance, request, dataset)
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
        source_id=request.start_job,
        spec=spec,
        priority=request.queue.priority,
        gpus=request.gpus,
        run_after=datetime.fromtimestamp(request.queue.run_after, UTC) if request.queue.run_after else None,
        max_running=allowance.max_running,
        max_waiting=allowance.max_waiting,
        fingerprint=fingerprint(spec, dataset.digest, [each.digest for each in mixed], study=request.study),
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
    runs = [spec]
    if request.study is not None:
        runs = await services.studies.plan(spec, request.study, max_epochs=max_epochs)
    return await _all_s(services, request, runs, dataset)


async def _all_s(services: Services, request: JobRequest, runs: Sequence[Spec], dataset: Dataset) -> float | None:
    """How long some trainings are expected to take together; None if that is not known of each."""
    # At least one GPU for each run; a study itself holds none.
    estimates = [await services.estimates.of(run, dataset.counts, max(1, request.gpus)) for run in runs]
    found = [estimate.seconds for estimate in estimates if estimate is not None]
    return sum(found) if len(found) == len(runs) else None


async def _spec(
    services: Services, interaction: discord.Interaction, allowance: Allowance, request: JobRequest, dataset: Dataset
) -> Spec:
    """Make the spec of a request.

    Raises:
        DarkroomError, SpecError: It cannot be trained; `problems_of` names the settings that a form can put right.
    """
    draft = make_draft(request, services.config, max_epochs=allowance.max_epochs)
    mixed = await _mixed(services, interaction, request, dataset)
    parts = [part.model_copy(update={"dataset": str(each.folder)}) for part, each in zip(draft.mix, mixed, strict=True)]
    draft = draft.model_copy(update={"mix": tuple(parts)})
    if draft.task is TaskKind.CLASSIFICATION:
        _require_classes(await services.datasets.report(dataset))
    try:
        spec = draft.with_dataset(str(dataset.folder), name=None if request.name else dataset.name)
    except SpecError as error:
        # Members know datasets by their names, and need not know where they lie.
        sentence = str(error)
        for each in (dataset, *mixed):
            sentence = sentence.replace(str(each.folder), each.name)
        raise SpecError(sentence, problems=error.problems) from error
    return await _with_start(services, interaction, request, spec)


async def _with_start(services: Services, interaction: discord.Interaction, request: JobRequest, spec: Spec) -> Spec:
    """Let a training start from the result of an earlier one, if the request asks for that.

    Raises:
        JobRefused: The earlier one has no file that can be started from.
        SpecError: It was trained on another base, or by another method.
    """
    if request.start_job is None:
        return spec
    job = await job_here(services, interaction, request.start_job)
    files = newest_files(await services.jobs.events(job.id))
    start = next((each for each in files if each.format is ExportFormat.KOHYA and each.epoch is None), None)
    if start is None or job.are_files_deleted:
        raise JobRefused(
            _(
                "#{job} has no file to start from. Choose another training, or the base model. Nothing was queued.",
                job=job.id,
            )
        )
    if different := _differing(job.spec, spec):
        raise SpecError(
            _(
                "A training that starts from #{job} must have the same base model and method; yours differs in "
                "{settings}. Nothing was queued.",
                job=job.id,
                settings=listed(different),
            ),
            problems=[SettingProblem(name=each) for each in different],
        )
    path = services.jobs.job_dir(job) / start.path
    # From the file of a PiSSA, an ordinary LoRA goes on.
    method = spec.method.exported.model_copy(update={"start_from": str(path), "start_sha256": start.sha256})
    return spec.model_copy(update={"method": method})


def _differing(before: Spec, after: Spec) -> list[str]:
    """The settings that have to be the same, and are not, for one training's weights to fit another."""
    free = {"dropout", "start_from", "start_sha256"}
    ours, theirs = (spec.method.model_dump(exclude=free) for spec in (before, after))
    names = [f"method.{name}" for name in ours if ours[name] != theirs[name]]
    return names if before.base.source == after.base.source else ["base", *names]


def _require_classes(report: DatasetReport) -> None:
    """Raise unless a classifier could learn from these images: each has a class, and there are several.

    Raises:
        SpecError: They have no classes.
    """
    kept = [image for image in report.images if image.status == "kept"]
    classes = {image.class_name for image in kept if image.class_name}
    if len(classes) < 2:
        raise SpecError(
            _(
                "This preset sorts images into classes, and these images have none. Put the images of each class into "
                "a folder of its own and upload them again, or take another preset. Nothing was queued."
            ),
            problems=[SettingProblem(name="preset")],
        )
    unnamed = sum(not image.class_name for image in kept)
    if unnamed:
        raise SpecError(
            ngettext(
                "{n} image is in no class. Put it into the folder of a class, or drop it. Nothing was queued.",
                "{n} images are in no class. Put them into the folders of classes, or drop them. Nothing was queued.",
                unnamed,
            ),
            problems=[SettingProblem(name="preset")],
        )


async def _mixed(
    services: Services, interaction: discord.Interaction, request: JobRequest, dataset: Dataset
) -> list[Dataset]:
    """Return the datasets that a request mixes in, of the same server.

    Raises:
        UnknownMixedDataset: There is none of that name, it is there twice, or people would see it who may not.
    """
    found: list[Dataset] = []
    mix = request.overrides.get("mix")
    for part in mix if isinstance(mix, list) else ():
        name = str(part.get("dataset", "")) if isinstance(part, dict) else str(part)
        try:
            mixed = await dataset_here(services, interaction, name)
        except NoSuchDataset as error:
            raise UnknownMixedDataset(name=name) from error
        if mixed.id in {dataset.id, *(each.id for each in found)}:
            raise UnknownMixedDataset(name=name, is_twice=True)
        if not may_mix(mixed, dataset):
            raise UnknownMixedDataset(name=name, is_private=True)
        found.append(mixed)
    return found


async def _fit(services: Services, report: DatasetReport, spec: Spec) -> ResolutionFit | None:
    """What the resolution of a training means for the images; None if its base is not on this machine."""

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
    require_priority(request.queue.priority, can_manage=manages(interaction))
    require_gpus(request.queue.gpus, sum(slot.is_enabled for slot in await services.jobs.slots.all()))
    return await allowance_of_member(services, interaction)


async def cancel_draft(services: Services, draft: Draft) -> MessageContent:
    """Cancel a waiting draft."""
    if await services.drafts.cancel(draft.id):
        return text_message(_("⬛ Cancelled; nothing was queued. The dataset is kept."))
    return text_message(_("This request was queued already. /job list shows it."))
