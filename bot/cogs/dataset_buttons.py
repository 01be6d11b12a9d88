"""Presses on the buttons of dataset cards, reviews and drafts, including those that an earlier bot made."""

from __future__ import annotations

import logging

import discord
from discord.ext import commands

from bot.cogs.dataset_commands import list_page
from bot.cogs.dataset_review import (
    ask_caption,
    decide,
    finish_review,
    require_change_by,
    review_content,
    turn_page,
)
from bot.cogs.drafts import cancel_draft, dataset_card, draft_card, queue_draft, require_own
from bot.cogs.replies import replace, reply, reply_error
from bot.cogs.services import Services
from bot.errors import DuplicateJob, NotFound
from bot.queue import State
from bot.ui.dataset_cards import report_file, report_reply
from bot.ui.discord_text import escape
from bot.ui.job_replies import duplicate_notice
from bot.ui.layout import text_message
from trainer.protocol.text import _

log = logging.getLogger(__name__)


class DatasetButtons(commands.Cog):
    """Each press is authorized and answered with the current state."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @commands.Cog.listener()
    async def on_dataset_button(self, interaction: discord.Interaction, dataset_id: int, verb: str, arg: str) -> None:
        try:
            match verb:
                case "list":
                    await replace(interaction, await list_page(self._services, interaction, int(arg)))
                case "request":
                    await self._show_draft(interaction, int(arg))
                case "go" | "again" | "cancel":
                    await self._settle_draft(interaction, verb, int(arg))
                case _:
                    await self._press(interaction, dataset_id, verb, arg)
        except Exception as error:  # noqa: BLE001 - the edge to Discord: every failure becomes a sentence.
            await reply_error(interaction, error)

    async def _press(self, interaction: discord.Interaction, dataset_id: int, verb: str, arg: str) -> None:
        assert interaction.guild_id is not None
        dataset = await self._services.datasets.get_in(interaction.guild_id, dataset_id)
        match verb:
            case "sheet":
                await self._show_sheet(interaction, dataset_id, arg)
            case "review":
                await replace(interaction, await review_content(self._services, interaction, dataset))
            case "prev" | "next":
                await turn_page(self._services, interaction, dataset, arg, -1 if verb == "prev" else 1)
            case "keep" | "drop" | "right":
                await decide(self._services, interaction, dataset, verb, arg)
            case "caption":
                await ask_caption(self._services, interaction, dataset, arg)
            case "done":
                await finish_review(self._services, interaction, dataset)
            case "report":
                await self._send_report(interaction, dataset_id)
            case "delete":
                require_change_by(interaction, dataset, "delete")
                await self._services.datasets.delete(dataset_id)
                deleted = _("⬛ **{name}** is deleted; its name is free.", name=escape(dataset.name))
                await replace(interaction, text_message(deleted))
            case "spare":
                await replace(interaction, text_message(_("**{name}** is kept.", name=escape(dataset.name))))
            case _:
                log.warning("dataset %d: a button with the unknown verb %r was pressed", dataset_id, verb)
                text = _("This button belongs to another version of me. /dataset inspect shows the dataset.")
                await reply(interaction, text_message(text))

    async def _show_draft(self, interaction: discord.Interaction, draft_id: int) -> None:
        """Show the card of a draft whose upload a restart interrupted."""
        draft = await self._services.drafts.get(draft_id)
        require_own(draft, interaction.user.id)
        if draft.state is not State.DRAFT:
            text = _("This request is job #{job} already. /job status shows it.", job=draft.id)
            await reply(interaction, text_message(text))
            return
        await interaction.response.defer(ephemeral=True, thinking=True)
        await reply(interaction, await draft_card(self._services, interaction, draft))

    async def _settle_draft(self, interaction: discord.Interaction, verb: str, draft_id: int) -> None:
        draft = await self._services.drafts.get(draft_id)
        require_own(draft, interaction.user.id)
        if verb == "cancel":
            await replace(interaction, await cancel_draft(self._services, draft))
            return
        await interaction.response.defer()
        try:
            receipt = await queue_draft(self._services, interaction, draft_id, may_repeat=verb == "again")
        except DuplicateJob as error:
            await reply(interaction, duplicate_notice(error, draft))
            return
        await replace(interaction, receipt)

    async def _show_sheet(self, interaction: discord.Interaction, dataset_id: int, arg: str) -> None:
        sheet, _separator, draft_id = arg.partition("d")
        if draft_id:
            draft = await self._services.drafts.get(int(draft_id))
            await replace(interaction, await draft_card(self._services, interaction, draft, sheet=int(sheet)))
            return
        dataset = await self._services.datasets.get(dataset_id)
        await replace(interaction, await dataset_card(self._services, interaction, dataset, sheet=int(sheet)))

    async def _send_report(self, interaction: discord.Interaction, dataset_id: int) -> None:
        dataset = await self._services.datasets.get(dataset_id)
        await interaction.response.defer(ephemeral=True, thinking=True)
        async with self._services.datasets.packed_report(dataset) as packed:
            file = report_file(dataset, packed, interaction.filesize_limit)
            if file is None:
                raise NotFound(
                    _(
                        "The report of {name} is larger than this server accepts; it is in {folder}.",
                        name=dataset.name,
                        folder=dataset.folder,
                    )
                )
            await reply(interaction, report_reply(dataset, file))
