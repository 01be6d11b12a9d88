"""Sends, edits and finds messages in Discord, and classifies failures: retry later, never, or send again."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import discord

from bot.cogs.replies import opened
from bot.outbox import MessageGone, SendLater, SendNever
from bot.ui.layout import MessageContent

log = logging.getLogger(__name__)

_UNKNOWN_MESSAGE = 10008
#: Too many edits of a message older than an hour: only a new message helps.
_OLD_MESSAGE_EDITED_TOO_OFTEN = 30046
#: Messages that `find` searches: after a crash the bot has posted little in between.
_SEARCHED_MESSAGES = 100
#: Messages whose file names are cached; more than there are live cards.
_MAX_CACHED = 256
_INVALID_FORM = 50035


class Poster:
    """`bot.outbox.Transport` over the current discord.py client."""

    def __init__(self, client: Callable[[], discord.Client | None]) -> None:
        self._client = client
        #: Names of a message's files: a card is edited every few seconds, its chart changes once an epoch.
        self._file_names: dict[int, tuple[str, ...]] = {}

    async def send(self, channel_id: int, message: MessageContent, nonce: str) -> int:
        """See `Transport.send`."""
        channel = self._channel(channel_id)
        with opened(message.files) as files:
            async with _translated_errors():
                # discord.py sends `enforce_nonce` with each nonce: Discord then returns an existing message.
                sent = await channel.send(
                    view=message.layout,
                    files=files,
                    nonce=nonce,
                    silent=message.is_silent,
                    allowed_mentions=message.allowed_mentions,
                )
        self._cache_names(sent.id, message)
        return sent.id

    async def edit(self, channel_id: int, message_id: int, message: MessageContent) -> None:
        """See `Transport.edit`."""
        target = self._channel(channel_id).get_partial_message(message_id)
        with opened(message.files) as files:
            async with _translated_errors():
                if self._file_names.get(message_id) == _names(message) and await self._edit_text(target, message):
                    return
                # `attachments` and not `files`: the new images replace the old ones.
                await target.edit(
                    view=message.layout, attachments=files, allowed_mentions=discord.AllowedMentions.none()
                )
        self._cache_names(message_id, message)

    async def _edit_text(self, target: discord.PartialMessage, message: MessageContent) -> bool:
        """Edit without sending the same files again; False if Discord no longer has them."""
        try:
            await target.edit(view=message.layout, allowed_mentions=discord.AllowedMentions.none())
        except discord.HTTPException as error:
            if error.code != _INVALID_FORM or not message.files:
                raise
            return False
        return True

    def _cache_names(self, message_id: int, message: MessageContent) -> None:
        self._file_names.pop(message_id, None)
        self._file_names[message_id] = _names(message)
        if len(self._file_names) > _MAX_CACHED:
            del self._file_names[next(iter(self._file_names))]

    async def find(self, channel_id: int, marker: str) -> int | None:
        """See `Transport.find`."""
        channel = self._channel(channel_id)
        me = self._connected().user
        async with _translated_errors():
            async for message in channel.history(limit=_SEARCHED_MESSAGES):
                is_mine = me is not None and message.author.id == me.id
                if is_mine and any(marker in text for text in _texts(message.components)):
                    return message.id
        return None

    def _connected(self) -> discord.Client:
        client = self._client()
        if client is None or not client.is_ready():
            raise SendLater("not connected to Discord", after_s=1.0)
        return client

    def _channel(self, channel_id: int) -> discord.PartialMessageable:
        return self._connected().get_partial_messageable(channel_id)


def _names(message: MessageContent) -> tuple[str, ...]:
    return tuple(file.name for file in message.files)


@asynccontextmanager
async def _translated_errors() -> AsyncIterator[None]:
    """Convert failures to the errors that the sender expects."""
    try:
        yield
    except discord.RateLimited as error:
        raise SendLater("rate limit", after_s=error.retry_after) from error
    except discord.HTTPException as error:
        raise _classify(error) from error
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise SendLater(f"Discord cannot be reached ({error or type(error).__name__})") from error


def _classify(error: discord.HTTPException) -> Exception:
    reason = f"{error.status} {error.text or error.code}"
    if error.code in {_UNKNOWN_MESSAGE, _OLD_MESSAGE_EDITED_TOO_OFTEN}:
        return MessageGone(reason)
    # 401: the token was reset; messages wait until the bot restarts with the new one.
    if error.status >= 500 or error.status in {401, 408, 429}:
        return SendLater(reason)
    return SendNever(reason)


def _texts(components: Any) -> Iterator[str]:
    for component in components:
        if text := getattr(component, "content", None):
            yield text
        yield from _texts(getattr(component, "children", ()))
