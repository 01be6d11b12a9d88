"""Sends the outbox: in order for each channel, a job's card before its other messages, edits of cards coalesced.

A notification is marked `sending` before and `sent` after. A bot that dies in between leaves `sending` behind: the next
one looks for the message, or sends it again with the same nonce, for which Discord returns the message that exists.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol, TypeAlias

from bot.bot_failpoints import failpoint
from bot.clock import SYSTEM_CLOCK, Clock, backoff_s
from bot.config import CardSettings
from bot.errors import DatabaseUnwritable
from bot.outbox.notification import Notification
from bot.outbox.outbox import Card, Outbox, Pending, marker

log = logging.getLogger(__name__)


#: Back-off between tries.
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 2.0, 300.0
#: Unexpected errors (not `SendLater`) after which a message is skipped, so that it does not block its channel.
_MAX_ERRORS = 5

#: `render(notification, marker)` returns the message of a notification, with the marker in its footer; it is passed to
#: `Transport` unchanged.
Render: TypeAlias = Callable[[Notification, str], Awaitable[Any]]


class SendLater(Exception):
    """A temporary failure (Discord is down, rate limit): try again, and keep the order of the channel."""

    def __init__(self, reason: str, *, after_s: float | None = None) -> None:
        self.reason = reason
        #: The delay that Discord asks for; None: the sender's own back-off.
        self.after_s = after_s
        super().__init__(reason)


class SendNever(Exception):
    """A permanent failure (channel deleted, no permission, message refused): skip the message."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class MessageGone(Exception):
    """The message to edit was deleted."""


class Transport(Protocol):
    """What the sender needs of Discord; each method raises `SendLater` or `SendNever` if it fails."""

    async def send(self, channel_id: int, message: Any, nonce: str) -> int:
        """Send a message and return its ID; the same nonce within minutes returns the message that exists."""
        ...

    async def edit(self, channel_id: int, message_id: int, message: Any) -> None:
        """Replace the content of one of the bot's messages.

        Raises:
            MessageGone: It was deleted.
        """
        ...

    async def find(self, channel_id: int, marker: str) -> int | None:
        """Return the bot's own recent message with this marker in its text; None if not found.

        Called only for messages that were being sent when a bot died.
        """
        ...


class Sender:
    """A plain service: `run()` in a task of its own, or `step()` by hand."""

    def __init__(
        self,
        outbox: Outbox,
        transport: Transport,
        render: Render,
        *,
        settings: CardSettings | None = None,
        poll_s: float = 1.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._outbox = outbox
        self._transport = transport
        self._render = render
        self._settings = settings or CardSettings()
        self._poll_s = poll_s
        self._clock = clock
        self._stepping = asyncio.Lock()

    async def run(self) -> None:
        """Send until cancelled; each new notification wakes it."""
        while True:
            self._outbox.filled.clear()
            try:
                await self.step()
            except Exception:
                log.exception("the outbox could not be sent; trying again")
            try:
                async with asyncio.timeout(self._poll_s):
                    await self._outbox.filled.wait()
            except TimeoutError:
                continue

    async def step(self) -> None:
        """Send everything that is due; channels do not wait for each other."""
        async with self._stepping, asyncio.TaskGroup() as group:
            for channel_id in await self._outbox.channels():
                group.create_task(self._send_channel(channel_id))

    async def _send_channel(self, channel_id: int) -> None:
        while pending := await self._outbox.next_pending(channel_id):
            if pending.retry_at > self._clock.time():
                break
            card = await self._outbox.card(pending.notification.job_id)
            if card and card.message_id is None and card.is_changed and not await self._show(card):
                break
            if not await self._send(pending):
                break
        for card in await self._outbox.changed_cards(channel_id):
            if self._is_due(card):
                await self._show(card)

    def _is_due(self, card: Card) -> bool:
        is_ripe = self._clock.time() >= card.shown_at + self._settings.edit_interval_s
        return card.retry_at <= self._clock.time() and (card.is_urgent or is_ripe)

    async def _send(self, pending: Pending) -> bool:
        """Send one notification; False if the channel has to wait."""
        try:
            message_id = await self._make(
                pending.notification,
                pending.channel_id,
                pending.nonce,
                was_sending=pending.may_be_there,
                before=partial(self._mark_pending, pending),
            )
            failpoint("post_sent")
        except SendNever as error:
            log.warning("#%d: %s not sent: %s", pending.notification.job_id, pending.notification.kind, error.reason)
            await self._outbox.mark_pending(pending, "dead", reason=error.reason)
            return True
        except SendLater as error:
            await self._wait(pending, error.reason, error.after_s)
            return False
        except DatabaseUnwritable:
            raise
        except Exception as error:
            log.exception("#%d: %s could not be sent", pending.notification.job_id, pending.notification.kind)
            if pending.tries + 1 >= _MAX_ERRORS:
                await self._outbox.mark_pending(pending, "dead", reason=repr(error))
                return True
            await self._wait(pending, repr(error), None)
            return False
        await self._outbox.mark_pending(pending, "sent", message_id=message_id)
        failpoint("post_recorded")
        return True

    async def _show(self, card: Card) -> bool:
        """Send or edit a card; False if it has to wait."""
        if card.retry_at > self._clock.time():
            return False
        if card.message_id is not None and self._clock.time() >= card.sent_at + self._settings.roll_after_s:
            log.info("#%d: the card is too old to be edited; sending a new one", card.job_id)
            card = await self._outbox.forget_card_message(card)
        try:
            await self._send_or_edit(card)
        except SendNever as error:
            log.warning("#%d: no card: %s", card.job_id, error.reason)
            await self._outbox.give_up_card(card, reason=error.reason)
        except SendLater as error:
            await self._outbox.delay_card(card, reason=error.reason, retry_at=self._retry_at(card.tries, error.after_s))
            return False
        except DatabaseUnwritable:
            raise
        except Exception as error:
            log.exception("#%d: the card could not be sent", card.job_id)
            if card.tries + 1 >= _MAX_ERRORS:
                await self._outbox.give_up_card(card, reason=repr(error))
                return True
            await self._outbox.delay_card(card, reason=repr(error), retry_at=self._retry_at(card.tries, None))
            return False
        return True

    async def _send_or_edit(self, card: Card) -> None:
        if card.message_id is not None:
            try:
                await self._edit(card, card.message_id)
            except MessageGone:
                log.info("#%d: the card was deleted; sending a new one", card.job_id)
                card = await self._outbox.forget_card_message(card)
            else:
                return
        message_id = await self._make(
            card.notification,
            card.channel_id,
            card.nonce,
            was_sending=card.may_be_there,
            before=partial(self._mark_card, card),
        )
        failpoint("card_sent")
        # After a failure it may be the message of the earlier try, which shows an old state: it is edited next.
        is_newest = not card.may_be_there and card.tries == 0
        await self._outbox.mark_card_shown(card, message_id, is_new=True, is_newest=is_newest)
        failpoint("card_recorded")

    async def _edit(self, card: Card, message_id: int) -> None:
        message = await self._render(card.notification, marker(card.nonce))
        await self._transport.edit(card.channel_id, message_id, message)
        failpoint("card_edited")
        await self._outbox.mark_card_shown(card, message_id, is_new=False)

    async def _make(
        self,
        notification: Notification,
        channel_id: int,
        nonce: str,
        *,
        was_sending: bool,
        before: Callable[[], Awaitable[None]],
    ) -> int:
        """Send a message exactly once, and return its ID."""
        if was_sending:
            found = await self._transport.find(channel_id, marker(nonce))
            if found is not None:
                return found
        message = await self._render(notification, marker(nonce))
        await before()
        return await self._transport.send(channel_id, message, nonce)

    async def _mark_pending(self, pending: Pending) -> None:
        await self._outbox.mark_pending(pending, "sending")
        failpoint("post_marked")

    async def _mark_card(self, card: Card) -> None:
        await self._outbox.mark_card_sending(card)
        failpoint("card_marked")

    async def _wait(self, pending: Pending, reason: str, after_s: float | None) -> None:
        retry_at = self._retry_at(pending.tries, after_s)
        log.info("#%d: %s waits: %s", pending.notification.job_id, pending.notification.kind, reason)
        # The state is kept: a message that was being sent may exist, and is looked for first.
        await self._outbox.mark_pending(pending, None, reason=reason, retry_at=retry_at, tries=pending.tries + 1)

    def _retry_at(self, tries: int, after_s: float | None) -> float:
        delay_s = backoff_s(tries + 1, _FIRST_BACKOFF_S, _MAX_BACKOFF_S) if after_s is None else after_s
        return self._clock.time() + delay_s
