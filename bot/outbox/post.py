"""What the sender needs of Discord: send, edit, look up; and the three ways in which that can fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias

from bot.outbox.notice import Notice

#: Makes the message of a notice (for a card: from the job's newest state) with the marker in its footer.
#: `render(notice, marker)`; what it returns is handed to `Post` as it is.
Render: TypeAlias = Callable[[Notice, str], Awaitable[Any]]


class SendLater(Exception):
    """It did not work now (Discord is down, rate limit): try again, keeping the order of the channel."""

    def __init__(self, reason: str, *, after_s: float | None = None) -> None:
        self.reason = reason
        #: What Discord asked for; None: the sender's own back-off.
        self.after_s = after_s
        super().__init__(reason)


class SendNever(Exception):
    """It will not work (channel deleted, no permission, message refused): go on without it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class MessageGone(Exception):
    """Somebody deleted the message that was to be edited."""


class Post(Protocol):
    """Discord, as far as the sender is concerned; every method raises `SendLater` or `SendNever` when it fails."""

    async def send(self, channel_id: int, message: Any, nonce: str) -> int:
        """Post a message and return its id; the same nonce again within minutes returns the one already made."""
        ...

    async def edit(self, channel_id: int, message_id: int, message: Any) -> None:
        """Put `message` in the place of one of the bot's messages.

        Raises:
            MessageGone: it was deleted.
        """
        ...

    async def find(self, channel_id: int, marker: str) -> int | None:
        """The bot's own recent message with this marker in its text, None if there is none (or nobody can tell).

        Asked only about messages that were being sent when the bot died.
        """
        ...
