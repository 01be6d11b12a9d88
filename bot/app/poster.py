"""The sender's way into Discord: sends, edits and finds messages, and says which failures are worth another try."""

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
#: How far back `find` looks: a bot that comes back after a crash has posted little in between.
_LOOK_BACK = 100
#: Messages whose files are remembered; more than there are live cards.
_REMEMBERED = 256
_INVALID_FORM = 50035


class Poster:
    """`bot.outbox.Post` over a discord.py client, whichever is connected at the moment."""

    def __init__(self, client: Callable[[], discord.Client | None]) -> None:
        self._client = client
        #: Names of the files that a message carries: a card is edited every few seconds, its chart once an epoch.
        self._carried: dict[int, tuple[str, ...]] = {}

    async def send(self, channel_id: int, message: MessageContent, nonce: str) -> int:
        """See `Post.send`."""
        channel = self._channel(channel_id)
        with opened(message.files) as files:
            async with _explained():
                # discord.py sends `enforce_nonce` with each nonce: Discord then returns the message already made.
                sent = await channel.send(
                    view=message.layout,
                    files=files,
                    nonce=nonce,
                    silent=message.is_silent,
                    allowed_mentions=message.allowed_mentions,
                )
        self._remember(sent.id, message)
        return sent.id

    async def edit(self, channel_id: int, message_id: int, message: MessageContent) -> None:
        """See `Post.edit`."""
        target = self._channel(channel_id).get_partial_message(message_id)
        nobody = discord.AllowedMentions.none()
        with opened(message.files) as files:
            async with _explained():
                if self._carried.get(message_id) == _names(message) and await self._edit_words(target, message):
                    return
                # `attachments` and not `files`: the new pictures take the place of the old ones.
                await target.edit(view=message.layout, attachments=files, allowed_mentions=nobody)
        self._remember(message_id, message)

    async def _edit_words(self, target: discord.PartialMessage, message: MessageContent) -> bool:
        """Edit without sending the same files again; False if Discord no longer has them."""
        try:
            await target.edit(view=message.layout, allowed_mentions=discord.AllowedMentions.none())
        except discord.HTTPException as error:
            if error.code != _INVALID_FORM or not message.files:
                raise
            return False
        return True

    def _remember(self, message_id: int, message: MessageContent) -> None:
        self._carried.pop(message_id, None)
        self._carried[message_id] = _names(message)
        if len(self._carried) > _REMEMBERED:
            del self._carried[next(iter(self._carried))]

    async def find(self, channel_id: int, marker: str) -> int | None:
        """See `Post.find`."""
        channel = self._channel(channel_id)
        me = self._connected().user
        async with _explained():
            async for message in channel.history(limit=_LOOK_BACK):
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
async def _explained() -> AsyncIterator[None]:
    """What the sender should make of a failure."""
    try:
        yield
    except discord.RateLimited as error:
        raise SendLater("rate limit", after_s=error.retry_after) from error
    except discord.HTTPException as error:
        raise _verdict(error) from error
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise SendLater(f"Discord cannot be reached ({error or type(error).__name__})") from error


def _verdict(error: discord.HTTPException) -> Exception:
    reason = f"{error.status} {error.text or error.code}"
    if error.code in {_UNKNOWN_MESSAGE, _OLD_MESSAGE_EDITED_TOO_OFTEN}:
        return MessageGone(reason)
    # 401: the token was reset; the messages wait for the bot to be started with the new one.
    if error.status >= 500 or error.status in {401, 408, 429}:
        return SendLater(reason)
    return SendNever(reason)


def _texts(components: Any) -> Iterator[str]:
    for component in components:
        if text := getattr(component, "content", None):
            yield text
        yield from _texts(getattr(component, "children", ()))
