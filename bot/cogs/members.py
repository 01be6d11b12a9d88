"""Whoever acts, as the limits see them."""

from __future__ import annotations

import discord

from bot.cogs.services import Services
from bot.queue import Allowance


async def allowance_of_member(services: Services, interaction: discord.Interaction) -> Allowance:
    """What whoever acts may ask for, by the roles that they have at this moment."""
    assert interaction.guild_id is not None
    role_ids = {role.id for role in getattr(interaction.user, "roles", ())}
    return await services.limits.allowance(interaction.guild_id, role_ids)
