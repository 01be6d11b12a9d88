"""Choices that commands offer while a member types, and the job that a typed text means."""

from __future__ import annotations

import discord
from discord import app_commands

from bot.cogs.services import Services
from bot.config import Config
from bot.errors import NotFound
from bot.queue import Job, State, may_control
from bot.queue.domain.verbs import Verb, is_applicable
from bot.ui.dataset_cards import images_words
from bot.ui.job_card import job_choice
from trainer.protocol.presets import presets
from trainer.protocol.text import _

#: Discord's limits for choices.
_MAX_CHOICES = 25
_MAX_CHOICE_CHARS = 100
#: Jobs that are searched for those to which a verb applies.
_MAX_SEARCHED = 200


async def find_job(services: Services, interaction: discord.Interaction, typed: str) -> Job:
    """Return the job that a number (`42`, `#42`) or a name means.

    Raises:
        NotFound: This server has no such job.
    """
    assert interaction.guild_id is not None
    number = typed.strip().removeprefix("#")
    if number.isascii() and number.isdigit() and len(number) < 19:
        return await services.jobs.get_in(interaction.guild_id, int(number))
    found = await services.jobs.search(interaction.guild_id, typed, limit=1)
    if not found:
        raise NotFound(_('There is no job "{name}" here. /job list shows the jobs of this server.', name=typed[:60]))
    return found[0]


async def job_choices(
    services: Services,
    interaction: discord.Interaction,
    typed: str,
    *,
    verb: Verb | None = None,
    states: frozenset[State] | None = None,
) -> list[app_commands.Choice[str]]:
    """Jobs whose number or name matches; only those in `states`, and those to which the member may apply `verb`."""
    assert interaction.guild_id is not None
    is_filtered = verb is not None or states is not None
    limit = _MAX_SEARCHED if is_filtered else _MAX_CHOICES
    jobs = await services.jobs.search(interaction.guild_id, typed, limit=limit)
    if verb is not None:
        user_id, can_manage = interaction.user.id, interaction.permissions.manage_guild
        jobs = [
            job for job in jobs if is_applicable(verb, job) and may_control(job, user_id=user_id, can_manage=can_manage)
        ]
    if states is not None:
        jobs = [job for job in jobs if job.state in states]
    return [app_commands.Choice(name=job_choice(job), value=str(job.id)) for job in jobs[:_MAX_CHOICES]]


async def dataset_choices(
    services: Services, interaction: discord.Interaction, typed: str
) -> list[app_commands.Choice[str]]:
    """Datasets of this server whose name matches, newest first."""
    assert interaction.guild_id is not None
    found = await services.datasets.search(interaction.guild_id, typed, limit=_MAX_CHOICES)
    return [_choice(f"{each.name} · {images_words(each.counts.kept)}", each.name) for each in found]


def preset_choices(typed: str) -> list[app_commands.Choice[str]]:
    """Presets whose name matches, with what each is for."""
    found = [each for each in presets().values() if typed.lower() in each.name]
    return [_choice(f"{each.name} · {each.summary}", each.name) for each in found[:_MAX_CHOICES]]


def base_choices(config: Config, typed: str) -> list[app_commands.Choice[str]]:
    """Base models whose label matches."""
    labels = [label for label in config.models.sources if typed.lower() in label.lower()]
    return [_choice(label, label[:_MAX_CHOICE_CHARS]) for label in labels[:_MAX_CHOICES]]


def _choice(name: str, value: str) -> app_commands.Choice[str]:
    return app_commands.Choice(name=name[:_MAX_CHOICE_CHARS], value=value)
