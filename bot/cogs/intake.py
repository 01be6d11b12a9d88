"""From attachments to a dataset, and from what somebody types to a dataset that is there."""

from __future__ import annotations

from collections.abc import Sequence

import discord
from discord import app_commands

from bot.cogs.members import allowance_of_member
from bot.cogs.services import Services
from bot.datasets import Dataset, Received, Upload
from bot.errors import DatasetTooLarge


async def take_in(
    services: Services,
    interaction: discord.Interaction,
    attachments: Sequence[discord.Attachment],
) -> Dataset:
    """The dataset of some attachments, of whoever acts; content that this server knows is that dataset.

    Raises:
        DatasetRefused: it is too large, cannot be trained on, or could not be examined.
    """
    assert interaction.guild_id is not None
    received = await receive(services, interaction, attachments)
    return await services.datasets.prepare(received, guild_id=interaction.guild_id, owner_id=interaction.user.id)


async def receive(
    services: Services, interaction: discord.Interaction, attachments: Sequence[discord.Attachment]
) -> Received:
    """The bytes of attachments, not opened yet, as many as whoever acts may hand in.

    Raises:
        DatasetRefused: they are too large, empty, or Discord did not give them.
    """
    max_bytes = (await allowance_of_member(services, interaction)).max_dataset_bytes
    # By what Discord says, before a byte is downloaded; what comes is counted again.
    left = max_bytes
    for attachment in attachments:
        left -= attachment.size
        if left < 0:
            raise DatasetTooLarge(file_name=attachment.filename, max_bytes=max_bytes)
    uploads = [Upload(name=each.filename, chunks=services.download(each)) for each in attachments]
    return await services.datasets.receive_all(uploads, max_bytes=max_bytes)


async def choices_of(
    services: Services, interaction: discord.Interaction, typed: str
) -> list[app_commands.Choice[str]]:
    """This server's datasets that somebody may mean, the newest first."""
    assert interaction.guild_id is not None
    found = await services.datasets.search(interaction.guild_id, typed)
    return [
        app_commands.Choice(name=f"{each.name} · {each.counts.kept} images"[:100], value=each.name) for each in found
    ]
