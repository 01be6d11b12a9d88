"""Whoever acts, as the limits see them, and what they may ask for."""

from __future__ import annotations

import discord

from bot.cogs.services import Services
from bot.queue import Allowance
from bot.queue.store.limits import require_budget


async def allowance_of_member(services: Services, interaction: discord.Interaction) -> Allowance:
    """What whoever acts may ask for, by the roles that they have at this moment."""
    assert interaction.guild_id is not None
    role_ids = {role.id for role in getattr(interaction.user, "roles", ())}
    return await services.limits.allowance(interaction.guild_id, role_ids)


async def require_hours(
    services: Services, allowance: Allowance, needed_h: float | None, *, guild_id: int, owner_id: int
) -> None:
    """Nothing, if this week's GPU hours of a job's owner leave room for it; None: nobody knows what it needs.

    Raises:
        OverBudget: they do not.
    """
    zone = services.config.windows.zone
    require_budget(await services.limits.budget(guild_id, owner_id, allowance.gpu_hours_per_week, zone=zone), needed_h)
