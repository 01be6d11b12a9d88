"""Presses on the buttons of cards and posts, also of those that an earlier bot made."""

from __future__ import annotations

import logging

import discord
from discord.ext import commands

from bot.cogs import failures
from bot.cogs.acting import act, samples_of, unshare_here
from bot.cogs.replies import opened, reply
from bot.cogs.services import Services, standing_of
from bot.queue import Job
from bot.queue.domain.verbs import Verb
from bot.ui.notices import card_of
from bot.ui.receipts import said, samples_reply
from bot.ui.standing import Standing

log = logging.getLogger(__name__)


class Buttons(commands.Cog):
    """Each press is authorised anew and answered with how the job stands now."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @commands.Cog.listener()
    async def on_job_button(self, interaction: discord.Interaction, job_id: int, verb: str) -> None:
        try:
            assert interaction.guild_id is not None
            job = await self._services.jobs.get_in(interaction.guild_id, job_id)
            await self._press(interaction, job, verb)
        except Exception as error:  # noqa: BLE001 - the edge to Discord: every failure becomes a sentence.
            await failures.tell(interaction, error)

    async def _press(self, interaction: discord.Interaction, job: Job, verb: str) -> None:
        match verb:
            case "open":
                await reply(interaction, card_of(job, await self._standing(interaction, job)))
            case "refresh":
                await self._refresh(interaction, job)
            case "samples":
                await self._samples(interaction, job)
            case Verb.UNSHARE:
                await unshare_here(self._services, interaction, job)
            case _ if verb in set(Verb):
                await act(self._services, interaction, job, Verb(verb))
            case _:
                log.warning("#%d: a button with the unknown verb %r was pressed", job.id, verb)
                await reply(interaction, said("This button is from another version of me. /job status shows the job."))

    async def _refresh(self, interaction: discord.Interaction, job: Job) -> None:
        content = card_of(job, await self._standing(interaction, job))
        with opened(content.files) as files:
            await interaction.response.edit_message(
                view=content.layout, attachments=files, allowed_mentions=discord.AllowedMentions.none()
            )

    async def _samples(self, interaction: discord.Interaction, job: Job) -> None:
        newest = await samples_of(self._services, job)
        await reply(interaction, samples_reply(job, await self._standing(interaction, job), newest))

    async def _standing(self, interaction: discord.Interaction, job: Job) -> Standing:
        return await standing_of(job, self._services, interaction.client)
