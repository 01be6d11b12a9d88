"""What follows a training: more epochs, the same again with other settings, its settings on other images, an upload."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import discord

from bot.access import Ability
from bot.cogs.drafts import receipt_of
from bot.cogs.interaction_gate import PAGES, ButtonHandler
from bot.cogs.lookups import dataset_here, job_here, of_job, require_own
from bot.cogs.replies import Acknowledgement, open_form, reply
from bot.cogs.request_edits import open_settings_of, run_again
from bot.cogs.services import Services, allowance_of_member, require_hours
from bot.cogs.sharing import require_may_share
from bot.errors import CheckpointsDeleted, JobFilesDeleted, StaleButton, TooManyEpochs
from bot.queue import Job, NewJob, State
from bot.queue.domain.job import fingerprint
from bot.queue.domain.verbs import Verb, is_applicable
from bot.queue.planning.retention import has_checkpoint
from bot.ui.dataset_forms import Form
from bot.ui.job_replies import epochs_form, epochs_of, verb_reply
from bot.ui.layout import text_message
from bot.ui.publication_pages import publish_question, publishing_text
from bot.ui.remedies import (
    MORE_EPOCHS,
    PUBLISH,
    PUBLISH_NOW,
    RETRY_PIXELS,
    RETRY_RATE,
    RUN_AGAIN,
    TRAIN_WINNER,
    TRY_SETTINGS,
    smaller_side,
)
from trainer.protocol.spec import Spec, at_resolution, extended, with_rates_divided


async def extend(services: Services, interaction: discord.Interaction, job: Job, epochs: int) -> None:
    """Give a finished job more epochs on behalf of a member, and answer with the result.

    Raises:
        NotAllowed: It is another member's job.
        JobRefused: Its files are gone, or the member has no room, no epochs or no GPU hours left for it.
        NoSuchDataset: Its dataset was deleted.
        SpecError: A training cannot have so many epochs.
    """
    require_own(interaction, job)
    if job.are_files_deleted:
        raise JobFilesDeleted(job_id=job.id)
    if not is_applicable(Verb.EXTEND, job):
        await reply(interaction, text_message(verb_reply(Verb.EXTEND, job, job)))
        return
    if not await asyncio.to_thread(has_checkpoint, services.jobs.job_dir(job)):
        raise CheckpointsDeleted(job_id=job.id)
    after = await _extend(services, interaction, job, epochs)
    position = await services.jobs.queue_position(job.id)
    await reply(interaction, text_message(verb_reply(Verb.EXTEND, job, after, position)))


async def _extend(services: Services, interaction: discord.Interaction, job: Job, epochs: int) -> Job:
    allowance = await allowance_of_member(services, interaction)
    spec = extended(job.spec, trained=job.progress.kept_epoch, epochs=epochs)
    if spec.training.epochs > allowance.max_epochs:
        raise TooManyEpochs(epochs=spec.training.epochs, allowed=allowance.max_epochs)
    dataset = await services.datasets.get(job.dataset_id)
    estimate = await services.estimates.of(spec, dataset.counts, job.gpus)
    seconds = None if estimate is None else estimate.seconds
    needed_h = None if seconds is None else job.gpus * seconds * epochs / spec.training.epochs / 3600
    await require_hours(services, allowance, needed_h, guild_id=job.guild_id, owner_id=job.owner_id)
    return await services.jobs.extend(
        job,
        spec,
        fingerprint=None if spec.mix else fingerprint(spec, dataset.digest),
        estimate_s=seconds,
        by=interaction.user.id,
        max_waiting=allowance.max_waiting,
    )


@of_job
async def _continue(services: Services, interaction: discord.Interaction, job: Job) -> None:
    """[Continue] after an early stop: train the epochs that were planned and not trained."""
    left = job.spec.training.epochs - job.progress.kept_epoch
    await extend(services, interaction, job, left if left > 0 else max(1, job.spec.early_stopping.patience))


async def retry_with(services: Services, interaction: discord.Interaction, job: Job, spec: Spec) -> None:
    """Queue a training again with other settings, as a new job, and answer with its receipt.

    Raises:
        NotAllowed: It is another member's job.
        JobRefused: The member has no room or no GPU hours left, or such a job exists.
        NoSuchDataset: Its dataset was deleted.
    """
    require_own(interaction, job)
    allowance = await allowance_of_member(services, interaction)
    if spec.training.epochs > allowance.max_epochs:
        raise TooManyEpochs(epochs=spec.training.epochs, allowed=allowance.max_epochs)
    dataset = await dataset_here(services, interaction, job.dataset_id)
    estimate = await services.estimates.of(spec, dataset.counts, job.gpus)
    seconds = None if estimate is None else estimate.seconds
    needed_h = None if seconds is None else job.gpus * seconds / 3600
    await require_hours(services, allowance, needed_h, guild_id=job.guild_id, owner_id=interaction.user.id)
    new = NewJob(
        interaction_id=interaction.id,
        guild_id=job.guild_id,
        channel_id=job.channel_id,
        owner_id=interaction.user.id,
        dataset_id=job.dataset_id,
        spec=spec,
        gpus=job.gpus,
        max_running=allowance.max_running,
        max_waiting=allowance.max_waiting,
        # Of a mix the digests are not at hand; only a duplicate would be found by it.
        fingerprint=None if spec.mix else fingerprint(spec, dataset.digest),
        estimate_s=seconds,
    )
    queued = await services.jobs.submit(new)
    report = await services.datasets.report(dataset)
    await reply(interaction, await receipt_of(services, interaction, queued, report))


@of_job
async def _ask_epochs(services: Services, interaction: discord.Interaction, job: Job) -> None:
    require_own(interaction, job)

    async def submitted(interaction: discord.Interaction, form: Form) -> None:
        found = await job_here(services, interaction, job.id)
        await extend(services, interaction, found, epochs_of(form, found))

    await open_form(interaction, epochs_form(services.gate.form(submitted, is_answer_new=True), job))


@of_job
async def _train_winner(services: Services, interaction: discord.Interaction, study: Job) -> None:
    step = await services.jobs.study_step(study.id)
    runs = {run.child_name: run for run in await services.jobs.studies.children(study.id)}
    winner = runs.get(step.table[0].name) if step is not None and step.table else None
    if winner is None:
        raise StaleButton
    # The runs of a study draw no samples and are not tested.
    spec = winner.spec.model_copy(
        update={"name": study.name, "samples": study.spec.samples, "validation": study.spec.validation}
    )
    await run_again(services, interaction, winner.changed(spec_json=spec.model_dump_json()))


@of_job
async def _ask_publish(services: Services, interaction: discord.Interaction, job: Job) -> None:
    _require_result(services, interaction, job)
    await reply(interaction, publish_question(job, services.publisher.repository(job)))


@of_job
async def _publish_now(services: Services, interaction: discord.Interaction, job: Job) -> None:
    _require_result(services, interaction, job)
    repository = await services.publisher.request(job, by=interaction.user.id)
    await reply(interaction, text_message(publishing_text(job, repository)))


def _require_result(services: Services, interaction: discord.Interaction, job: Job) -> None:
    """Require a finished job that the member may upload.

    Raises:
        NotAllowed: It is another member's.
        JobFilesDeleted: There is nothing to upload any more.
        StaleButton: It has no result, or nothing can be uploaded here.
    """
    require_may_share(interaction, job)
    if job.are_files_deleted:
        raise JobFilesDeleted(job_id=job.id)
    if job.state not in {State.SUCCEEDED, State.STOPPED} or not services.config.hub.is_on:
        raise StaleButton


@of_job
async def _retry_rate(services: Services, interaction: discord.Interaction, job: Job) -> None:
    await retry_with(services, interaction, job, with_rates_divided(job.spec, 3))


@of_job
async def _retry_pixels(services: Services, interaction: discord.Interaction, job: Job) -> None:
    side = smaller_side(job)
    if side is None:
        raise StaleButton
    await retry_with(services, interaction, job, at_resolution(job.spec, side))


#: The buttons of what follows, by their verbs.
NEXT_STEPS: Mapping[str, ButtonHandler] = {
    RUN_AGAIN: ButtonHandler(run=of_job(run_again), ability=Ability.TRAIN),
    TRY_SETTINGS: ButtonHandler(
        run=of_job(open_settings_of), acknowledgement=Acknowledgement.NONE, rate=PAGES, ability=Ability.TRAIN
    ),
    TRAIN_WINNER: ButtonHandler(run=_train_winner, ability=Ability.TRAIN),
    PUBLISH: ButtonHandler(run=_ask_publish, rate=PAGES, ability=Ability.SHARE),
    PUBLISH_NOW: ButtonHandler(run=_publish_now, ability=Ability.SHARE),
    MORE_EPOCHS: ButtonHandler(
        run=_ask_epochs, acknowledgement=Acknowledgement.NONE, rate=PAGES, ability=Ability.TRAIN
    ),
    RETRY_RATE: ButtonHandler(run=_retry_rate, ability=Ability.TRAIN),
    RETRY_PIXELS: ButtonHandler(run=_retry_pixels, ability=Ability.TRAIN),
    "continue": ButtonHandler(run=_continue, ability=Ability.TRAIN),
}
