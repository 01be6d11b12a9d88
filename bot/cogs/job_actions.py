"""What members do with a job, by command or button: each use is authorized, and asking twice changes nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace as replace_fields
from functools import partial

import discord
from discord.ext import commands

from bot.cogs.interaction_gate import PAGES, REPORTS, ButtonHandler
from bot.cogs.lookups import job_here
from bot.cogs.replies import Acknowledgement, AnswerFailed, announce, remove_message, replace, reply
from bot.cogs.services import Services, allowance_of_member, context_of, require_hours
from bot.errors import CheckpointsDeleted, JobFilesDeleted, TooManyEpochs
from bot.queue import Job, StopIntent, require_control
from bot.queue.domain.job import fingerprint
from bot.queue.domain.verbs import Verb, is_applicable
from bot.queue.planning.retention import has_checkpoint
from bot.ui.job_posts import card_message, files_reply
from bot.ui.job_replies import no_samples, samples_reply, shared_post, verb_reply
from bot.ui.layout import text_message
from trainer.protocol.events import Sampled
from trainer.protocol.spec import extended

_STOP_INTENTS = {
    Verb.CANCEL: StopIntent.CANCEL,
    Verb.KEEP_BEST: StopIntent.KEEP_BEST,
    Verb.PAUSE: StopIntent.PAUSE,
}
#: Status and Discord's code of a request that is too large.
_TOO_LARGE, _ENTITY_TOO_LARGE = 413, 40005


async def perform(services: Services, interaction: discord.Interaction, job: Job, verb: Verb) -> None:
    """Apply `verb` to a job on behalf of a member, and answer with the result.

    Raises:
        NotAllowed: It is another member's job.
        JobRefused: It cannot be queued again, or the member has no room or no GPU hours left.
        NoSuchJob: It was deleted.
    """
    user_id = interaction.user.id
    require_control(job, user_id=user_id, can_manage=interaction.permissions.manage_guild, verb=verb.words)
    if verb is Verb.SHARE and not job.is_shared:
        await _share(services, interaction, job)
        return
    if verb is Verb.RETRY:
        after = await _retry(services, interaction, job)
    else:
        after = await _change(services, job, verb, user_id)
    position = await services.jobs.queue_position(job.id)
    await reply(interaction, text_message(verb_reply(verb, job, after, position)))


async def extend(services: Services, interaction: discord.Interaction, job: Job, epochs: int) -> None:
    """Give a finished job more epochs on behalf of a member, and answer with the result.

    Raises:
        NotAllowed: It is another member's job.
        JobRefused: Its files are gone, or the member has no room, no epochs or no GPU hours left for it.
        NoSuchDataset: Its dataset was deleted.
        SpecError: A training cannot have so many epochs.
    """
    can_manage = interaction.permissions.manage_guild
    require_control(job, user_id=interaction.user.id, can_manage=can_manage, verb=Verb.EXTEND.words)
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
        fingerprint=fingerprint(spec, dataset.digest),
        estimate_s=seconds,
        by=interaction.user.id,
        max_waiting=allowance.max_waiting,
    )


async def _retry(services: Services, interaction: discord.Interaction, job: Job) -> Job:
    # Of the member who acts: a manager may retry for a member whose own line is full.
    allowance = await allowance_of_member(services, interaction)
    # For any other job the answer is its state, not that the week's hours are used up.
    if is_applicable(Verb.RETRY, job):
        needed_h = await services.limits.needed_h(job.id)
        await require_hours(
            services,
            allowance,
            needed_h,
            guild_id=job.guild_id,
            owner_id=job.owner_id,
            is_study=job.study is not None,
        )
    return await services.jobs.retry(job.id, by=interaction.user.id, max_waiting=allowance.max_waiting)


async def _change(services: Services, job: Job, verb: Verb, user_id: int) -> Job:
    jobs = services.jobs
    match verb:
        case Verb.CANCEL | Verb.KEEP_BEST | Verb.PAUSE:
            return await jobs.request_stop(job.id, by=user_id, intent=_STOP_INTENTS[verb])
        case Verb.RESUME:
            return await jobs.resume(job.id, by=user_id)
        case Verb.PIN | Verb.UNPIN if job.is_pinned is not (verb is Verb.PIN):
            return await jobs.pin(job.id, by=user_id, is_pinned=verb is Verb.PIN)
        case Verb.UNSHARE if job.is_shared:
            return await jobs.share(job.id, by=user_id, is_shared=False)
        case _:
            return job


async def _share(services: Services, interaction: discord.Interaction, job: Job) -> None:
    context = await context_of(services, job, interaction.client)
    content = shared_post(job, context, await _newest_samples(services, job))
    if content is None:
        await reply(interaction, no_samples(job))
        return
    # Marked first: retention must not delete the files of images that people see.
    await services.jobs.share(job.id, by=interaction.user.id)
    try:
        await announce(interaction, content)
    except (AnswerFailed, discord.HTTPException):
        await services.jobs.share(job.id, by=interaction.user.id, is_shared=False)
        raise


async def _unshare_message(services: Services, interaction: discord.Interaction, job: Job) -> None:
    """[Unshare] below a shared image: remove the mark and the message.

    Raises:
        NotAllowed: It is another member's job.
    """
    can_manage = interaction.permissions.manage_guild
    require_control(job, user_id=interaction.user.id, can_manage=can_manage, verb=Verb.UNSHARE)
    if job.is_shared:
        await services.jobs.share(job.id, by=interaction.user.id, is_shared=False)
    await remove_message(interaction)


async def hand_over_files(services: Services, interaction: discord.Interaction, job: Job) -> None:
    """Answer with the files of a finished job.

    Raises:
        JobFilesDeleted: There are none any more.
    """
    if job.are_files_deleted:
        raise JobFilesDeleted(job_id=job.id)
    events = await services.jobs.events(job.id)
    context = await context_of(services, job, interaction.client)
    context = replace_fields(context, file_limit=interaction.filesize_limit)
    for content in files_reply(job, context, events):
        try:
            await reply(interaction, content)
        except discord.HTTPException as error:
            if error.status != _TOO_LARGE and error.code != _ENTITY_TOO_LARGE:
                raise
            # Whatever the limit was said to be: where they lie.
            for places in files_reply(job, replace_fields(context, file_limit=-1), events):
                await reply(interaction, places)
            return


async def _newest_samples(services: Services, job: Job) -> Sampled | None:
    events = await services.jobs.events(job.id)
    return next((event for event in reversed(events) if isinstance(event, Sampled)), None)


async def _open(interaction: discord.Interaction, services: Services, job_id: int) -> None:
    job = await job_here(services, interaction, job_id)
    await reply(interaction, card_message(job, await context_of(services, job, interaction.client)))


async def _refresh(interaction: discord.Interaction, services: Services, job_id: int) -> None:
    job = await job_here(services, interaction, job_id)
    await replace(interaction, card_message(job, await context_of(services, job, interaction.client)))


async def _show_samples(interaction: discord.Interaction, services: Services, job_id: int) -> None:
    job = await job_here(services, interaction, job_id)
    context = await context_of(services, job, interaction.client)
    await reply(interaction, samples_reply(job, context, await _newest_samples(services, job)))


async def _files(interaction: discord.Interaction, services: Services, job_id: int) -> None:
    await hand_over_files(services, interaction, await job_here(services, interaction, job_id))


async def _unshare(interaction: discord.Interaction, services: Services, job_id: int) -> None:
    await _unshare_message(services, interaction, await job_here(services, interaction, job_id))


async def _perform(verb: Verb, interaction: discord.Interaction, services: Services, job_id: int) -> None:
    await perform(services, interaction, await job_here(services, interaction, job_id), verb)


def _verb_handler(verb: Verb) -> ButtonHandler:
    # A shared image is itself the first answer.
    how = Acknowledgement.NONE if verb is Verb.SHARE else Acknowledgement.THINKING
    return ButtonHandler(run=partial(_perform, verb), acknowledgement=how)


HANDLERS: Mapping[str, ButtonHandler] = {
    # An extension needs a number, which a button cannot ask for.
    **{verb: _verb_handler(verb) for verb in Verb if verb is not Verb.EXTEND},
    "open": ButtonHandler(run=_open, rate=PAGES),
    "refresh": ButtonHandler(run=_refresh, acknowledgement=Acknowledgement.UPDATE, rate=PAGES),
    "samples": ButtonHandler(run=_show_samples, rate=PAGES),
    "files": ButtonHandler(run=_files, rate=REPORTS),
    Verb.UNSHARE: ButtonHandler(run=_unshare, acknowledgement=Acknowledgement.UPDATE),
}


class JobButtons(commands.Cog):
    """Presses on the buttons of job cards and posts, including those that an earlier bot made."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @commands.Cog.listener()
    async def on_job_button(self, interaction: discord.Interaction, job_id: int, verb: str) -> None:
        await self._services.gate.press(interaction, HANDLERS, verb, "", self._services, job_id)
