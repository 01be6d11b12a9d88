"""Answers to an interaction, whatever has been answered before, and the files that messages carry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import discord

from bot.ui.layout import FileToSend, MessageContent


async def reply(interaction: discord.Interaction, content: MessageContent) -> None:
    """Show `content` to the person who acted, and to nobody else."""
    # After defer(thinking=True) the first followup takes the place of "… is thinking".
    answer = interaction.followup.send if interaction.response.is_done() else interaction.response.send_message
    with opened(content.files) as files:
        await answer(view=content.layout, files=files, ephemeral=True, allowed_mentions=content.allowed_mentions)


async def announce(interaction: discord.Interaction, content: MessageContent) -> None:
    """Answer with a message that the whole channel sees."""
    with opened(content.files) as files:
        await interaction.response.send_message(
            view=content.layout, files=files, silent=content.is_silent, allowed_mentions=content.allowed_mentions
        )


async def replace(interaction: discord.Interaction, content: MessageContent) -> None:
    """Show `content` in the place of the message whose button was pressed, also after a defer."""
    is_done = interaction.response.is_done()
    edit = interaction.edit_original_response if is_done else interaction.response.edit_message
    with opened(content.files) as files:
        # `attachments` and not `files`: the new pictures take the place of the old ones.
        await edit(view=content.layout, attachments=files, allowed_mentions=discord.AllowedMentions.none())


@contextmanager
def opened(files: Sequence[FileToSend]) -> Iterator[list[discord.File]]:
    """Files for one request, closed after it: discord.py does not close those of an interaction's first answer."""
    ready: list[discord.File] = []
    try:
        for file in files:
            # One by one: those that are open are closed even if the next is not there.
            ready.append(discord.File(file.path, filename=file.name))  # noqa: PERF401
        yield ready
    finally:
        for each in ready:
            each.close()
