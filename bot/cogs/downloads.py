"""Getting an attachment's bytes at once: its address expires within a day."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

import aiohttp
import discord

from bot.errors import DatasetRefused

#: Bytes of an attachment, in pieces.
Download: TypeAlias = Callable[[discord.Attachment], AsyncIterator[bytes]]

_CHUNK_BYTES = 256 * 1024
#: Between two pieces; the whole may take as long as it is large.
_SILENCE_S = 30


async def streamed(attachment: discord.Attachment) -> AsyncIterator[bytes]:
    """The bytes as they come, never the whole file in memory.

    Raises:
        DatasetRefused: Discord did not give it.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            session.get(attachment.url) as response,
        ):
            response.raise_for_status()
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                yield chunk
    except (aiohttp.ClientError, TimeoutError) as error:
        raise _not_given(attachment, error) from error


async def read_whole(attachment: discord.Attachment) -> AsyncIterator[bytes]:
    """The bytes through discord.py's own client: for a simulated Discord, which has no address to stream from.

    Raises:
        DatasetRefused: Discord did not give it.
    """
    try:
        yield await attachment.read()
    except discord.HTTPException as error:
        raise _not_given(attachment, error) from error


def _not_given(attachment: discord.Attachment, error: Exception) -> DatasetRefused:
    why = str(error) or type(error).__name__
    return DatasetRefused(f"Discord did not give me {attachment.filename} ({why}). Nothing was queued; try again.")
