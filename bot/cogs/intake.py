"""From attachments to a dataset, and from what somebody types to a dataset that is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import discord
from discord import app_commands

from bot.cogs.failures import tell
from bot.cogs.members import allowance_of_member
from bot.cogs.services import Services
from bot.crashing import crash_point
from bot.datasets import Dataset, PendingUpload, Received, Upload, UploadKind, title_of
from bot.errors import DatasetTooLarge


@asynccontextmanager
async def noted(
    services: Services,
    interaction: discord.Interaction,
    attachments: Sequence[discord.Attachment],
    *,
    kind: UploadKind,
    wishes: str = "{}",
    is_at_once: bool = False,
    dataset_id: int | None = None,
) -> AsyncIterator[None]:
    """Attachments are taken in and their owner is answered within; what fails there is told, and goes no further.

    It is written down before and forgotten after it: a bot that ends in between, in peace or not, leaves it to the
    next one (`bot.scheduled.uploads`).
    """
    assert interaction.guild_id is not None
    await services.uploads.note(
        PendingUpload(
            interaction_id=interaction.id,
            guild_id=interaction.guild_id,
            channel_id=interaction.channel_id or 0,
            owner_id=interaction.user.id,
            kind=kind,
            wishes=wishes,
            is_at_once=is_at_once,
            dataset_id=dataset_id,
            title=title_of([each.filename for each in attachments]),
        )
    )
    crash_point("upload_noted")
    is_answered = True
    try:
        yield
    except Exception as error:  # noqa: BLE001 - an edge to Discord: forgotten only once the person knows.
        is_answered = await tell(interaction, error)
    crash_point("upload_answered")
    if is_answered:
        await services.uploads.forget(interaction.id)


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
    dataset = await services.datasets.prepare(received, guild_id=interaction.guild_id, owner_id=interaction.user.id)
    crash_point("upload_examined")
    return dataset


async def receive(
    services: Services, interaction: discord.Interaction, attachments: Sequence[discord.Attachment]
) -> Received:
    """The bytes of attachments, not opened yet, as many as whoever acts may hand in; what is `noted` has them.

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
    received = await services.datasets.receive_all(uploads, max_bytes=max_bytes)
    await services.uploads.received(interaction.id, received)
    crash_point("upload_received")
    return received


async def choices_of(
    services: Services, interaction: discord.Interaction, typed: str
) -> list[app_commands.Choice[str]]:
    """This server's datasets that somebody may mean, the newest first."""
    assert interaction.guild_id is not None
    found = await services.datasets.search(interaction.guild_id, typed)
    return [
        app_commands.Choice(name=f"{each.name} · {each.counts.kept} images"[:100], value=each.name) for each in found
    ]
