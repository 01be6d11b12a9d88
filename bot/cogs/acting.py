"""Doing with a job what somebody asks for, by command or button: authorised each time, twice is once."""

from __future__ import annotations

import discord

from bot.cogs.members import allowance_of_member, require_hours
from bot.cogs.replies import announce, reply
from bot.cogs.services import Services, standing_of
from bot.queue import Job, StopIntent, require_control
from bot.queue.domain.verbs import Verb, makes_sense
from bot.ui.answers import answer, no_samples, shared_post
from bot.ui.receipts import said
from trainer.protocol.events import Sampled

_STOPS = {
    Verb.CANCEL: StopIntent.CANCEL,
    Verb.KEEP_BEST: StopIntent.KEEP_BEST,
    Verb.PAUSE: StopIntent.PAUSE,
}


async def act(services: Services, interaction: discord.Interaction, job: Job, verb: Verb) -> None:
    """Do `verb` with a job on behalf of whoever acts, and tell them how it stands now.

    Raises:
        NotAllowed: it is somebody else's job.
        JobRefused: it cannot be queued again, or its owner has no room or no GPU hours left for it.
        NoSuchJob: it is gone.
    """
    user_id = interaction.user.id
    require_control(job, user_id=user_id, can_manage=interaction.permissions.manage_guild, verb=verb.words)
    if verb is Verb.SHARE and not job.is_shared:
        await _share(services, interaction, job)
        return
    if verb is Verb.RETRY:
        after = await _retried(services, interaction, job)
    else:
        after = await _done(services, job, verb, user_id)
    place = await services.jobs.place_in_line(job.id)
    await reply(interaction, said(answer(verb, job, after, place)))


async def _retried(services: Services, interaction: discord.Interaction, job: Job) -> Job:
    # Of whoever acts: a manager may retry for somebody whose own line is full.
    allowance = await allowance_of_member(services, interaction)
    # Whatever else it is, there is a better answer than that the week's hours are used.
    if makes_sense(Verb.RETRY, job):
        needed_h = await services.limits.needed_h(job.id)
        await require_hours(services, allowance, needed_h, guild_id=job.guild_id, owner_id=job.owner_id)
    return await services.jobs.retry(job.id, by=interaction.user.id, max_waiting=allowance.max_waiting)


async def _done(services: Services, job: Job, verb: Verb, user_id: int) -> Job:
    jobs = services.jobs
    match verb:
        case Verb.CANCEL | Verb.KEEP_BEST | Verb.PAUSE:
            return await jobs.request_stop(job.id, by=user_id, intent=_STOPS[verb])
        case Verb.RESUME:
            return await jobs.resume(job.id, by=user_id)
        case Verb.PIN | Verb.UNPIN if job.is_pinned is not (verb is Verb.PIN):
            return await jobs.pin(job.id, by=user_id, is_pinned=verb is Verb.PIN)
        case Verb.UNSHARE if job.is_shared:
            return await jobs.share(job.id, by=user_id, is_shared=False)
        case _:
            return job


async def _share(services: Services, interaction: discord.Interaction, job: Job) -> None:
    standing = await standing_of(job, services, interaction.client)
    content = shared_post(job, standing, await samples_of(services, job))
    if content is None:
        await reply(interaction, no_samples(job))
        return
    # Marked first: the files must not be deleted from under a picture that people see.
    await services.jobs.share(job.id, by=interaction.user.id)
    try:
        await announce(interaction, content)
    except discord.HTTPException:
        await services.jobs.share(job.id, by=interaction.user.id, is_shared=False)
        raise


async def unshare_here(services: Services, interaction: discord.Interaction, job: Job) -> None:
    """[Unshare] below a shared picture: the mark and the picture go.

    Raises:
        NotAllowed: it is somebody else's job.
    """
    can_manage = interaction.permissions.manage_guild
    require_control(job, user_id=interaction.user.id, can_manage=can_manage, verb=Verb.UNSHARE)
    if job.is_shared:
        await services.jobs.share(job.id, by=interaction.user.id, is_shared=False)
    await interaction.response.defer()
    await interaction.delete_original_response()


async def samples_of(services: Services, job: Job) -> Sampled | None:
    """The newest sample pictures of a job."""
    events = await services.jobs.events(job.id)
    return next((event for event in reversed(events) if isinstance(event, Sampled)), None)
