"""What the bot needs to be allowed in a channel, in Discord's own words."""

from __future__ import annotations

import discord

NEEDED = discord.Permissions(
    view_channel=True, send_messages=True, attach_files=True, embed_links=True, read_message_history=True
)


def missing_permissions(has: discord.Permissions) -> list[str]:
    """What the bot needs and lacks."""
    if has.administrator:
        return []
    return [name.replace("_", " ").title() for name, is_needed in NEEDED if is_needed and not getattr(has, name)]


def invite_url(application_id: int) -> str:
    """Where a server's owner invites the bot with all that it needs."""
    return discord.utils.oauth_url(application_id, permissions=NEEDED, scopes=("bot", "applications.commands"))
