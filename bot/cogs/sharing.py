"""Shows pictures of jobs in the gallery on behalf of a member; `[Share]` of trainings and of samplings alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import discord

from bot.access import manages, server_of
from bot.cogs.lookups import require_own
from bot.cogs.replies import reply
from bot.cogs.services import Services, file_limit_of
from bot.errors import JobFilesDeleted
from bot.queue import Job
from bot.queue.domain.verbs import require_sharable
from bot.queue.store.gallery_store import GalleryPost, Picture, ShownImage
from bot.ui.discord_text import missing_permissions
from bot.ui.gallery_pages import PostContext, shared_reply
from bot.ui.job_card import best_of
from bot.ui.job_posts import samples_alt
from bot.ui.job_replies import no_samples
from trainer.protocol.events import Sampled


def require_may_share(interaction: discord.Interaction, job: Job) -> None:
    """Require that the member may show what a job drew to others.

    Raises:
        NotAllowed: It is another member's job, or of another member's private dataset.
    """
    require_own(interaction, job)
    require_sharable(job, user_id=interaction.user.id, can_manage=manages(interaction))


async def share_picture(
    services: Services,
    interaction: discord.Interaction,
    job: Job,
    picture: Picture,
    *,
    model: Job | None,
    base: str,
    tags: Sequence[str] = (),
) -> None:
    """Show a picture of a job in the gallery, and answer with where.

    Args:
        services: The bot's services.
        interaction: Of a member who may share.
        job: The training or sampling that drew it.
        picture: A file of the job.
        model: The training whose weights drew it; None: none of this bot's.
        base: Name of the base model.
        tags: As `parse_tags` returns them.

    Raises:
        NotAllowed: It is another member's job, or of another member's private dataset.
        JobFilesDeleted: The picture is gone.
    """
    require_may_share(interaction, job)
    if job.are_files_deleted:
        raise JobFilesDeleted(job_id=job.id)
    channel_id = gallery_channel(services, interaction)
    post = await services.jobs.gallery.post(
        job,
        picture,
        model_job_id=None if model is None else model.id,
        base=base,
        tags=tags,
        channel_id=channel_id,
        by=interaction.user.id,
    )
    card = await services.outbox.cards.of_post(post.id)
    channel_id = channel_id if card is None else card.channel_id
    await reply(interaction, shared_reply(post, channel_id, missing=_missing(interaction, channel_id)))


async def share_samples(
    services: Services, interaction: discord.Interaction, job: Job, tags: Sequence[str] = ()
) -> None:
    """Show what a training draws in the gallery: the samples of its best epoch, else the newest.

    Raises:
        NotAllowed, JobFilesDeleted: As `share_picture`.
    """
    require_may_share(interaction, job)
    drawn = [event for event in await services.jobs.events(job.id) if isinstance(event, Sampled)]
    best = best_of(job.progress.epochs)
    of_best = [event for event in drawn if best is not None and event.epoch == best.epoch]
    chosen = (of_best or drawn)[-1:]
    if not chosen:
        await reply(interaction, no_samples(job))
        return
    picture = picture_of(chosen[0])
    await share_picture(services, interaction, job, picture, model=job, base=Path(job.spec.base.source).name, tags=tags)


def picture_of(sampled: Sampled) -> Picture:
    """The samples of an epoch as one picture: their sheet, or the only one."""
    path = sampled.samples[0].path if len(sampled.samples) == 1 else sampled.sheet
    images = tuple(ShownImage(prompt=each.prompt, seed=each.seed) for each in sampled.samples)
    return Picture(path=path, images=images, alt_text=samples_alt(sampled), epoch=sampled.epoch)


def gallery_channel(services: Services, interaction: discord.Interaction) -> int:
    """The channel of the server's gallery; where the member is, if none was chosen or it was deleted."""
    chosen = services.access.rules_of(server_of(interaction)).gallery
    is_there = chosen and interaction.guild is not None and interaction.guild.get_channel(chosen) is not None
    return chosen if is_there else interaction.channel_id or 0


def _missing(interaction: discord.Interaction, channel_id: int) -> list[str]:
    """The permissions that the bot lacks in a channel, as far as the client knows."""
    channel = None if interaction.guild is None else interaction.guild.get_channel(channel_id)
    return [] if channel is None else missing_permissions(channel.permissions_for(channel.guild.me))


async def post_context(services: Services, post: GalleryPost, client: discord.Client | None) -> PostContext:
    """Collect what a message about a post needs in addition to it."""
    job = await services.jobs.get(post.job_id)
    model = job if post.model_job_id == job.id else None
    if model is None and post.model_job_id is not None:
        model = await services.jobs.get(post.model_job_id)
    return PostContext(
        post=post,
        job=job,
        job_dir=services.jobs.job_dir(job),
        model=model,
        file_limit=file_limit_of(client, post.guild_id),
    )
