"""Who may switch the machine, which works for every server, and who may look after one server."""

from __future__ import annotations

import discord
from discord import app_commands

from bot.config import DiscordSettings
from bot.errors import NotAnOperator


def require_manager(interaction: discord.Interaction) -> None:
    """Nothing, if whoever acts may manage the server.

    Raises:
        MissingPermissions: they may not.
    """
    if not interaction.permissions.manage_guild:
        raise app_commands.MissingPermissions(["manage_guild"])


def require_operator(interaction: discord.Interaction, settings: DiscordSettings) -> None:
    """Nothing, if whoever acts may switch the machine: who is listed; where nobody is, who manages the only server.

    Raises:
        NotAnOperator: they are not listed, or nobody is and the bot does not work for this server alone.
        MissingPermissions: nobody is listed, and they may not manage the only server.
    """
    if settings.operator_ids:
        if interaction.user.id not in settings.operator_ids:
            raise NotAnOperator(user_id=interaction.user.id, operator_ids=settings.operator_ids)
        return
    served = set(settings.guild_ids) or {guild.id for guild in interaction.client.guilds}
    # An app that people may add to themselves is also used in servers that it is not in: one server is not enough, it
    # has to be this one.
    if served != {interaction.guild_id}:
        raise NotAnOperator(user_id=interaction.user.id)
    require_manager(interaction)


def is_operator(interaction: discord.Interaction, settings: DiscordSettings) -> bool:
    """As `require_operator`, where nobody is told."""
    try:
        require_operator(interaction, settings)
    except (NotAnOperator, app_commands.MissingPermissions):
        return False
    return True
