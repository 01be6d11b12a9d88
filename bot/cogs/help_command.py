"""`/help` and the buttons of its pages."""

from __future__ import annotations

from collections.abc import Mapping

import discord
from discord import app_commands

from bot.cogs.interaction_gate import PAGES, ButtonHandler, handled
from bot.cogs.replies import Acknowledgement, acknowledge, replace, reply
from bot.cogs.services import ServiceCog, Services
from bot.ui.help_pages import HelpPage, help_page
from trainer.protocol.text import N_


async def _show(services: Services, interaction: discord.Interaction, page: str) -> None:
    """Turn the page that a member has, or give one to the member who presses a button of the welcome message."""
    content = help_page(HelpPage(page), has_pages=services.links.are_on)
    if interaction.message is not None and interaction.message.flags.ephemeral:
        await acknowledge(interaction, Acknowledgement.UPDATE)
        await replace(interaction, content)
    else:
        await reply(interaction, content)


HANDLERS: Mapping[str, ButtonHandler] = {
    "page": ButtonHandler(run=_show, argument="|".join(HelpPage), acknowledgement=Acknowledgement.NONE, rate=PAGES)
}


class HelpCommand(ServiceCog):
    """`/help`."""

    @app_commands.command(
        name="help", description=N_("What I can do, by what you want to do."), extras=handled(rate=PAGES)
    )
    @app_commands.guild_only()
    async def show_help(self, interaction: discord.Interaction) -> None:
        await reply(interaction, help_page(HelpPage.START, has_pages=self._services.links.are_on))
