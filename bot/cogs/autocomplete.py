"""Choices that commands offer while a member types, and the job that a typed text means."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias

import discord
from discord import app_commands

from bot.access import manages, server_of
from bot.cogs.lookups import MAX_SEARCHED, openable, storable, viewer_of
from bot.cogs.replies import AnswerFailed, offer
from bot.cogs.services import Services
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

#: What is shown, and what it stands for.
Choices: TypeAlias = list[tuple[str, str]]
_Choose: TypeAlias = Callable[[Services, discord.Interaction, str], Awaitable[Choices]]
Autocompletion: TypeAlias = Callable[[discord.Interaction, str], Coroutine[Any, Any, list[app_commands.Choice[str]]]]


def answered(choose: _Choose) -> Autocompletion:
    """Make an autocompletion that answers itself: discord.py logs each one that comes too late with its traceback."""

    async def answering(interaction: discord.Interaction[Any], typed: str) -> list[app_commands.Choice[str]]:
        found = (await choose(interaction.client.services, interaction, typed))[:_MAX_CHOICES]
        choices = [
            app_commands.Choice(name=name[:_MAX_CHOICE_CHARS], value=value[:_MAX_CHOICE_CHARS]) for name, value in found
        ]
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
) -> Choices:
    """Jobs whose number or name matches; only those in `states`, and those to which the member may apply `verb`."""
    wanted = frozenset(State) if states is None else states
    is_own = verb is not None and not manages(interaction)
    jobs = await services.jobs.search(
        server_of(interaction),
        storable(typed),
        limit=MAX_SEARCHED,
        states=wanted if verb is None else wanted & applicable_states(verb),
        owner_id=interaction.user.id if is_own else None,
    )
    if verb is not None:
        jobs = [job for job in jobs if is_applicable(verb, job)]
    if can_draw:
        jobs = [job for job in jobs if is_drawable(job)]
    return [(job_choice(job), str(job.id)) for job in openable(interaction, jobs)]


async def dataset_choices(services: Services, interaction: discord.Interaction, typed: str) -> Choices:
    """Datasets of this server that the member may see and whose name matches, newest first."""
    found = await services.datasets.search(
        server_of(interaction), storable(typed), limit=_MAX_CHOICES, viewer_id=viewer_of(interaction)
    )
    return [(f"{each.name} · {images_words(each.counts.kept)}", each.name) for each in found]


async def _base_choices(services: Services, _interaction: discord.Interaction, typed: str) -> Choices:
    """Base models whose label matches, the toy model last and marked."""
    sources = services.config.models.sources
    labels = sorted((each for each in sources if typed.lower() in each.lower()), key=lambda each: sources[each] == TINY)
    return [(base_choice(label, sources[label]), label) for label in labels]


choose_job, choose_dataset, choose_base = answered(job_choices), answered(dataset_choices), answered(_base_choices)
