"""What the sender needs of Discord: the requests that it makes, and what may become of each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class MessageForm(StrEnum):
    """How much of a message is sent; each form is smaller than the one before."""

    FULL = "full"
    #: Without files of more than a megabyte.
    SMALL_FILES = "small_files"
    NO_FILES = "no_files"
    #: Its texts only.
    TEXT = "text"

    @property
    def smaller(self) -> MessageForm | None:
        """The next smaller form; None: there is none."""
        forms = list(MessageForm)
        after = forms.index(self) + 1
        return forms[after] if after < len(forms) else None


class HoldReason(StrEnum):
    """Why a channel takes no messages for now."""

    #: The bot does not see the channel.
    NO_ACCESS = "no_access"
    #: It may not write or attach files there.
    NO_PERMISSION = "no_permission"
    #: The thread is archived.
    ARCHIVED = "archived"
    #: The thread is locked.
    LOCKED = "locked"


class DeliveryFailed(Exception):
    """A request had no success; `reason` is Discord's answer, for the log and `/admin health`."""

    #: The message may exist all the same: only the answer was lost.
    may_exist = False

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class SendLater(DeliveryFailed):
    """A failure that passes (no connection, Discord is down, a rate limit): try again without end."""

    def __init__(
        self,
        reason: str,
        *,
        after_s: float | None = None,
        is_counted: bool = True,
        is_global: bool = False,
        may_exist: bool = True,
    ) -> None:
        super().__init__(reason)
        #: The delay that Discord asks for; None: the sender's own back-off.
        self.after_s = after_s
        #: False: it lengthens no back-off (not connected, a rate limit).
        self.is_counted = is_counted
        #: Every channel has to wait.
        self.is_global = is_global
        self.may_exist = may_exist


class ChannelHeld(DeliveryFailed):
    """The channel takes no messages until its permissions change: keep them, and try again."""

    def __init__(self, reason: str, *, kind: HoldReason) -> None:
        super().__init__(reason)
        self.kind = kind


class ChannelGone(DeliveryFailed):
    """The channel was deleted."""


class RecipientUnreachable(DeliveryFailed):
    """The user takes no direct messages of the bot."""


class NoThread(DeliveryFailed):
    """Discord starts no thread there: the kind of the channel, a permission, too many threads."""


class MessageGone(DeliveryFailed):
    """The message to edit was deleted, is another bot's, or may not be edited any more: send a new one."""


class MessageTooLarge(DeliveryFailed):
    """Its files are too large: send it with fewer."""


class MessageRefused(DeliveryFailed):
    """Discord refuses the form of the message: send its texts."""


class Transport(Protocol):
    """The requests to Discord that the sender makes; each raises a `DeliveryFailed` if it fails."""

    def is_ready(self) -> bool:
        """True while there is a connection; without one nothing is tried."""
        ...

    async def open_dm(self, user_id: int) -> int:
        """Return the channel of the direct messages to a user."""
        ...

    async def send(self, channel_id: int, message: Any, nonce: str) -> int:
        """Send a message and return its ID; the same nonce within minutes returns the message that exists."""
        ...

    async def edit(self, channel_id: int, message_id: int, message: Any) -> None:
        """Replace the content of one of the bot's messages.

        Raises:
            MessageGone: It needs a new message.
        """
        ...

    async def delete(self, channel_id: int, message_id: int) -> None:
        """Delete one of the bot's messages; one that is gone already is fine."""
        ...

    async def find(self, channel_id: int, nonce: str) -> int | None:
        """Return the bot's own recent message that was sent with this nonce; None if not found.

        Called only for messages that may exist: the bot died while it sent them, or the answer was lost.
        """
        ...

    async def start_thread(self, channel_id: int, message_id: int, name: str) -> int:
        """Start a public thread from a message, and return its ID: that of the message, also if it exists already.

        Raises:
            NoThread: There can be none.
            MessageGone: The message was deleted.
        """
        ...


async def in_smaller_forms(request: Callable[[MessageForm], Awaitable[T]]) -> T:
    """Make a request with the whole message, and again with a smaller form of it each time it is refused."""
    form = MessageForm.FULL
    while True:
        try:
            return await request(form)
        except (MessageTooLarge, MessageRefused) as error:
            smaller = form.smaller if isinstance(error, MessageTooLarge) else MessageForm.TEXT
            if smaller is None or smaller is form:
                raise
            form = smaller
