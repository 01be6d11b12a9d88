"""Choices that commands offer while a member types, and the job that a typed text means."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, TypeAlias, TypeVar

import discord
from discord import app_commands

from bot.access import manages
from bot.cogs.lookups import MAX_SEARCHED, openable, storable, viewer_of
from bot.cogs.replies import AnswerFailed, offer
from bot.cogs.services import Services
from bot.config import Config
from bot.queue import State
from bot.queue.domain.verbs import Verb, applicable_states, is_applicable, is_drawable
from bot.ui.dataset_cards import images_words
from bot.ui.job_card import job_choice
from bot.ui.model_pages import base_choice
from trainer.protocol.settings import TINY

log = logging.getLogger(__name__)

#: Discord's limits for choices.
_MAX_CHOICES = 25
_MAX_CHOICE_CHARS = 100

_Choices: TypeAlias = list[app_commands.Choice[str]]
_Cog = TypeVar("_Cog")
_Choose: TypeAlias = Callable[[_Cog, discord.Interaction, str], Coroutine[Any, Any, _Choices]]


def answered(choose: _Choose[_Cog]) -> _Choose[_Cog]:
    """Let an autocompletion answer itself: discord.py logs each one that comes too late with its traceback."""

    @wraps(choose)
    async def answering(cog: _Cog, interaction: discord.Interaction, typed: str) -> _Choices:
        choices = await choose(cog, interaction, typed)
        try:
            await offer(interaction, choices)
        except (AnswerFailed, discord.HTTPException) as error:
            log.info("choices of /%s not shown: %s", getattr(interaction.command, "qualified_name", ""), error)
            # Else discord.py would answer again, and fail again.
            interaction.response._response_type = discord.InteractionResponseType.autocomplete_result
        return choices

    return answering


async def job_choices(
    services: Services,
    interaction: discord.Interaction,
    typed: str,
    *,
    verb: Verb | None = None,
    states: frozenset[State] | None = None,
    can_draw: bool = False,
) -> list[app_commands.Choice[str]]:
    """Jobs whose number or name matches; only those in `states`, and those to which the member may apply `verb`."""
    assert interaction.guild_id is not None
    wanted = frozenset(State) if states is None else states
    is_own = verb is not None and not manages(interaction)
    jobs = await services.jobs.search(
        interaction.guild_id,
        storable(typed),
        limit=MAX_SEARCHED,
        states=wanted if verb is None else wanted & applicable_states(verb),
        owner_id=interaction.user.id if is_own else None,
    )
    if verb is not None:
        jobs = [job for job in jobs if is_applicable(verb, job)]
    if can_draw:
        jobs = [job for job in jobs if is_drawable(job)]
    shown = openable(interaction, jobs)[:_MAX_CHOICES]
    return [app_commands.Choice(name=job_choice(job), value=str(job.id)) for job in shown]


async def dataset_choices(
    services: Services, interaction: discord.Interaction, typed: str
) -> list[app_commands.Choice[str]]:
    """Datasets of this server that the member may see and whose name matches, newest first."""
    assert interaction.guild_id is not None
    found = await services.datasets.search(
        interaction.guild_id, storable(typed), limit=_MAX_CHOICES, viewer_id=viewer_of(interaction)
    )
    return [_choice(f"{each.name} · {images_words(each.counts.kept)}", each.name) for each in found]


def base_choices(config: Config, typed: str) -> list[app_commands.Choice[str]]:
    """Base models whose label matches, the toy model last and marked."""
    sources = config.models.sources
    labels = sorted((each for each in sources if typed.lower() in each.lower()), key=lambda each: sources[each] == TINY)
    return [_choice(base_choice(label, sources[label]), label[:_MAX_CHOICE_CHARS]) for label in labels[:_MAX_CHOICES]]


def _choice(name: str, value: str) -> app_commands.Choice[str]:
    return app_commands.Choice(name=name[:_MAX_CHOICE_CHARS], value=value)
