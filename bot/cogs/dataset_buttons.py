"""Presses on the buttons of dataset cards, reviews and requests, also of those that an earlier bot made."""

from __future__ import annotations

import logging

import discord
from discord.ext import commands

from bot.cogs import drafts, failures
from bot.cogs.dataset import list_page
from bot.cogs.dataset_review import ask_caption, decide, finish, review_content, turn
from bot.cogs.drafts import dataset_card, draft_card, require_own
from bot.cogs.replies import replace, reply
from bot.cogs.services import Services
from bot.datasets import require_change
from bot.errors import DuplicateJob, NotFound
from bot.queue import State
from bot.ui.datasets import report_file, report_reply
from bot.ui.duplicates import duplicate_notice
from bot.ui.receipts import said
from bot.ui.text import plain

log = logging.getLogger(__name__)


class DatasetButtons(commands.Cog):
    """Each press is authorised anew and answered with how things stand now."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @commands.Cog.listener()
    async def on_dataset_button(self, interaction: discord.Interaction, dataset_id: int, verb: str, arg: str) -> None:
        try:
            match verb:
                case "list":
                    await replace(interaction, await list_page(self._services, interaction, int(arg)))
                case "request":
                    await self._show_request(interaction, int(arg))
                case "go" | "again" | "cancel":
                    await self._request(interaction, verb, int(arg))
                case _:
                    await self._press(interaction, dataset_id, verb, arg)
        except Exception as error:  # noqa: BLE001 - the edge to Discord: every failure becomes a sentence.
            await failures.tell(interaction, error)

    async def _press(self, interaction: discord.Interaction, dataset_id: int, verb: str, arg: str) -> None:
        assert interaction.guild_id is not None
        dataset = await self._services.datasets.get_in(interaction.guild_id, dataset_id)
        match verb:
            case "sheet":
                await self._sheet(interaction, dataset_id, arg)
            case "review":
                await replace(interaction, await review_content(self._services, interaction, dataset))
            case "prev" | "next":
                await turn(self._services, interaction, dataset, arg, -1 if verb == "prev" else 1)
            case "keep" | "drop" | "right":
                await decide(self._services, interaction, dataset, verb, arg)
            case "caption":
                await ask_caption(self._services, interaction, dataset, arg)
            case "done":
                await finish(self._services, interaction, dataset)
            case "report":
                await self._report(interaction, dataset_id)
            case "delete":
                await self._delete(interaction, dataset_id)
            case "spare":
                await replace(interaction, said(f"**{plain(dataset.name)}** is kept."))
            case _:
                log.warning("dataset %d: a button with the unknown verb %r was pressed", dataset_id, verb)
                await reply(interaction, said("This button is from another version of me. /dataset inspect shows it."))

    async def _show_request(self, interaction: discord.Interaction, draft_id: int) -> None:
        """The card that its owner would have got, had the bot that took their files in not ended."""
        draft = await self._services.drafts.get(draft_id)
        require_own(draft, interaction.user.id)
        if draft.state is not State.DRAFT:
            await reply(interaction, said(f"This request is #{draft.id} by now. /job status shows it."))
            return
        await interaction.response.defer(ephemeral=True, thinking=True)
        await reply(interaction, await draft_card(self._services, interaction, draft))

    async def _request(self, interaction: discord.Interaction, verb: str, draft_id: int) -> None:
        draft = await self._services.drafts.get(draft_id)
        require_own(draft, interaction.user.id)
        if verb == "cancel":
            await replace(interaction, await drafts.cancel(self._services, draft))
            return
        await interaction.response.defer()
        try:
            receipt = await drafts.queue(self._services, interaction, draft_id, may_repeat=verb == "again")
        except DuplicateJob as error:
            await reply(interaction, duplicate_notice(error, draft))
            return
        await replace(interaction, receipt)

    async def _sheet(self, interaction: discord.Interaction, dataset_id: int, arg: str) -> None:
        sheet, _, draft_id = arg.partition("d")
        if draft_id:
            draft = await self._services.drafts.get(int(draft_id))
            await replace(interaction, await draft_card(self._services, interaction, draft, sheet=int(sheet)))
            return
        dataset = await self._services.datasets.get(dataset_id)
        await replace(interaction, await dataset_card(self._services, interaction, dataset, sheet=int(sheet)))

    async def _report(self, interaction: discord.Interaction, dataset_id: int) -> None:
        dataset = await self._services.datasets.get(dataset_id)
        await interaction.response.defer(ephemeral=True, thinking=True)
        async with self._services.datasets.packed_report(dataset) as packed:
            file = report_file(dataset, packed, interaction.filesize_limit)
            if file is None:
                raise NotFound(
                    f"The report of {dataset.name} is larger than this server takes; it lies in {dataset.folder}."
                )
            await reply(interaction, report_reply(dataset, file))

    async def _delete(self, interaction: discord.Interaction, dataset_id: int) -> None:
        dataset = await self._services.datasets.get(dataset_id)
        can_manage = interaction.permissions.manage_guild
        require_change(dataset, user_id=interaction.user.id, can_manage=can_manage, verb="delete")
        await self._services.datasets.delete(dataset_id)
        await replace(interaction, said(f"⬛ **{plain(dataset.name)}** is deleted; its name is free."))
