"""Sends the outbox: in order for each channel, a job's card before its other messages, edits of cards coalesced.

A notification is marked `sending` before and `sent` after. A bot that dies in between leaves `sending` behind: the next
one looks for the message, or sends it again with the same nonce, for which Discord returns the message that exists.

Each channel and each thread has a worker of its own, so that none waits for another. A job's thread starts from its
card, as soon as that exists: of an older message, Discord would tell the channel. Where there can be none, one message
of the channel shows the newest of what belongs in it (docs/adr/0015). What follows a failure depends on its type alone
(`bot.outbox.transport`): try later, keep the channel's messages until it takes them, tell the owner elsewhere, or send
a smaller form.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from bot.bot_failpoints import failpoint
from bot.clock import SYSTEM_CLOCK, Clock, backoff_s, jittered
from bot.config import CardSettings
from bot.db.errors import DatabaseUnwritable
from bot.outbox.cards import NO_THREAD, Card, Failure
from bot.outbox.notification import Notification, NotificationKind
from bot.outbox.outbox import RECHECK_EVERY_S, Destination, Outbox, Pending
from bot.outbox.transport import (
    ChannelGone,
    ChannelHeld,
    DeliveryFailed,
    HoldReason,
    MessageForm,
    MessageGone,
    RecipientUnreachable,
    SendLater,
    Transport,
    in_smaller_forms,
)
from bot.outbox.undeliverable import UndeliverableMessages

log = logging.getLogger(__name__)

#: Back-off between tries.
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 2.0, 60.0
#: Longest pause while Discord cannot be reached at all.
_MAX_OFFLINE_PAUSE_S = 10.0
#: Errors of the bot itself (not of Discord) after which a message is given up.
_MAX_ERRORS = 5
#: Age from which a card is edited seldom.
_OLD_S = 3300.0
#: Tries to write into a thread without the permission, a minute apart, before it is done without.
_MAX_THREAD_TRIES = 3

_Route: TypeAlias = tuple[Destination, bool]

#: `render(notification, form)` returns the message of a notification; it is passed to `Transport` unchanged.
Render: TypeAlias = Callable[[Notification, MessageForm], Awaitable[Any]]
#: Returns the name of a job's thread.
NameThread: TypeAlias = Callable[[int], Awaitable[str]]


async def _number(job_id: int) -> str:
    return f"#{job_id}"


class Sender:
    """A plain service: `run()` in a task of its own, or `step()` by hand."""

    def __init__(
        self,
        outbox: Outbox,
        transport: Transport,
        render: Render,
        *,
        name_thread: NameThread = _number,
        settings: CardSettings | None = None,
        log_channel_id: int = 0,
        poll_s: float = 1.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._outbox = outbox
        self._transport = transport
        self._render = render
        self._name_thread = name_thread
        self._settings = settings or CardSettings()
        self._poll_s = poll_s
        self._clock = clock
        self._undeliverable = UndeliverableMessages(outbox, log_channel_id=log_channel_id, clock=clock)
        self._busy: set[Destination] = set()
        #: When Discord takes requests again: new messages or edits (True) of a destination, and all requests (None).
        self._open_at: dict[_Route | None, float] = {}
        #: When a job's thread got its last message about an epoch.
        self._epoch_sent_at: dict[int, float] = {}
        #: Requests that did not reach Discord since one did.
        self._misses = 0

    async def run(self) -> None:
        """Send until cancelled; each new notification wakes it."""
        async with asyncio.TaskGroup() as workers:
            while True:
                self._outbox.filled.clear()
                try:
                    await self._start_workers(workers)
                except Exception:
                    log.exception("the outbox could not be read; trying again")
                try:
                    async with asyncio.timeout(self._poll_s):
                        await self._outbox.filled.wait()
                except TimeoutError:
                    continue

    async def step(self) -> None:
        """Send everything that is due."""
        async with asyncio.TaskGroup() as workers:
            await self._start_workers(workers)

    async def _start_workers(self, group: asyncio.TaskGroup) -> None:
        """Start a worker for each channel with something to send; not being connected counts as no try."""
        if not self._transport.is_ready() or not self._is_open(None):
            return
        for to in await self._outbox.destinations():
            if to not in self._busy:
                self._busy.add(to)
                group.create_task(self._work(to), name=f"outbox {to}")

    async def _work(self, to: Destination) -> None:
        """Send what is due in one channel."""
        try:
            while await self._send_next(to):
                pass
        except Exception:
            log.exception("messages of %s could not be sent; trying again", to)
        finally:
            self._busy.discard(to)

    async def _send_next(self, to: Destination) -> bool:
        """Send one message; False if nothing is due, or the channel has to wait."""
        if not self._is_open(None):
            return False
        pending = await self._outbox.next_pending(to)
        if pending is not None and pending.retry_at <= self._clock.time() and self._is_open((to, False)):
            card = await self._outbox.cards.of(to.thread_of or pending.notification.job_id)
            if to.thread_of:
                return card is not None and await self._send_to_thread(pending, card)
            if card is None or card.channel_id != to.channel_id or not card.is_awaited:
                return await self._send(pending, to.channel_id)
            if self._is_due(card):
                return await self._show(card)
        if to.thread_of or to.recipient_id:
            return False
        for card in await self._outbox.cards.changed(to.channel_id):
            if self._is_due(card):
                return await self._show(card)
        return False

    def _is_due(self, card: Card) -> bool:
        now = self._clock.time()
        is_old = now >= card.sent_at + _OLD_S
        is_ripe = now >= card.shown_at + (
            self._settings.old_edit_interval_s if is_old else self._settings.edit_interval_s
        )
        return self._is_open(_route_of(card)) and card.retry_at <= now and (card.is_urgent or is_ripe)

    def _is_open(self, route: _Route | None) -> bool:
        return self._open_at.get(route, 0.0) <= self._clock.time()

    # -- messages ---------------------------------------------------------------------------------------------------

    async def _send(self, pending: Pending, channel_id: int) -> bool:
        """Send one notification; False if the channel has to wait."""
        job_id, kind = pending.notification.job_id, pending.notification.kind
        tried_at = self._clock.time()
        try:
            message_id = await self._deliver(pending, channel_id)
        except SendLater as error:
            log.info("#%d: %s waits: %s", job_id, kind, error.reason)
            failure = self._failure_of(error, pending.tries, (pending.to, False))
            await self._outbox.delay(pending, failure)
            return False
        except DeliveryFailed as error:
            return await self._keep_or_give_up(pending, error, tried_at)
        except DatabaseUnwritable:
            raise
        except Exception as error:
            log.exception("#%d: %s could not be sent", job_id, kind)
            if pending.errors + 1 < _MAX_ERRORS:
                await self._outbox.delay(pending, self._failure_of(error, pending.errors))
                return False
            await self._undeliverable.give_up(pending, error)
        else:
            await self._outbox.mark_sent(pending, message_id)
            failpoint("post_recorded")
            await self._accepted(channel_id)
        return True

    async def _deliver(self, pending: Pending, channel_id: int) -> int:
        channel_id = channel_id or await self._transport.open_dm(pending.to.recipient_id)
        message_id = await self._make(
            pending.notification,
            channel_id,
            pending.nonce,
            may_be_there=pending.may_be_there,
            before=partial(self._mark_sending, pending),
        )
        failpoint("post_sent")
        return message_id

    async def _make(
        self,
        notification: Notification,
        channel_id: int,
        nonce: str,
        *,
        may_be_there: bool,
        before: Callable[[], Awaitable[None]],
    ) -> int:
        """Send a message exactly once, and return its ID."""
        if may_be_there:
            try:
                found = await self._transport.find(channel_id, nonce)
            except DeliveryFailed as error:
                # Whatever became of this request: the message of the earlier one may exist.
                error.may_exist = True
                raise
            if found is not None:
                return found

        async def send(form: MessageForm) -> int:
            message = await self._render(notification, form)
            await before()
            return await self._transport.send(channel_id, message, nonce)

        return await in_smaller_forms(send)

    async def _mark_sending(self, pending: Pending) -> None:
        await self._outbox.mark_sending(pending)
        failpoint("post_marked")

    # -- threads ----------------------------------------------------------------------------------------------------

    async def _send_to_thread(self, pending: Pending, card: Card) -> bool:
        """Send one notification to the thread of its job; False if it has to wait."""
        if card.is_awaited:
            return False
        if card.thread_id is None:
            try:
                card = await self._start_thread(card)
            except SendLater as error:
                failure = self._failure_of(error, pending.tries, (pending.to, False))
                # Nothing was sent yet.
                await self._outbox.delay(pending, replace(failure, may_exist=pending.may_be_there))
                return False
            if card.message_id is None:
                return False
        if card.thread_id == NO_THREAD or card.thread_id is None:
            await self._outbox.close_thread(card.job_id, channel_id=card.channel_id)
            return False
        due_at = self._epoch_sent_at.get(card.job_id, 0.0) + self._settings.epoch_interval_s
        if pending.notification.kind is NotificationKind.EPOCH and self._settings.epoch_interval_s:
            merged = await self._outbox.merge_epochs(pending, is_due=self._clock.time() >= due_at)
            if merged is None:
                return False
            pending = merged
        is_sent = await self._send(pending, card.thread_id)
        if is_sent and pending.notification.kind is NotificationKind.EPOCH:
            self._epoch_sent_at[card.job_id] = self._clock.time()
        return is_sent

    async def _start_thread(self, card: Card) -> Card:
        """Start the thread of a job from its card, or record that it gets none; returns the card after that."""
        if card.message_id is None:
            thread_id = NO_THREAD
        else:
            name = await self._name_thread(card.job_id)
            try:
                thread_id = await self._transport.start_thread(card.channel_id, card.message_id, name)
            except MessageGone:
                return await self._outbox.cards.forget_message(card)
            except SendLater:
                raise
            except DeliveryFailed as error:
                log.info("#%d gets no thread: %s", card.job_id, error.reason)
                thread_id = NO_THREAD
        failpoint("thread_started")
        await self._outbox.cards.set_thread(card, thread_id)
        return replace(card, thread_id=thread_id)

    async def _leave_thread(self, pending: Pending, error: DeliveryFailed) -> None:
        """Do without a thread that takes no messages: at once if a person closed it, later if it may be a role."""
        is_closed = not isinstance(error, ChannelHeld) or error.kind in {HoldReason.ARCHIVED, HoldReason.LOCKED}
        if is_closed or pending.tries + 1 >= _MAX_THREAD_TRIES:
            log.info("#%d does without its thread: %s", pending.to.thread_of, error.reason)
            await self._outbox.close_thread(pending.to.thread_of, channel_id=pending.to.channel_id)
            return
        retry_at = self._clock.time() + RECHECK_EVERY_S
        await self._outbox.delay(pending, Failure(reason=error.reason, retry_at=retry_at, may_exist=error.may_exist))

    # -- cards ------------------------------------------------------------------------------------------------------

    async def _show(self, card: Card) -> bool:
        """Send or edit a card; False if it has to wait."""
        tried_at = self._clock.time()
        try:
            await (self._remove(card) if card.is_removed else self._send_or_edit(card))
        except SendLater as error:
            failure = self._failure_of(error, card.tries, _route_of(card))
            await self._outbox.cards.delay(card, failure)
            return False
        except ChannelHeld as error:
            await self._outbox.cards.delay(card, _held(error))
            await self._undeliverable.hold(card.channel_id, error, tried_at)
            return False
        except DatabaseUnwritable:
            raise
        except DeliveryFailed as error:
            log.warning("#%d: no card: %s", card.job_id, error.reason)
            await self._outbox.cards.skip_version(card, self._failure_of(error, card.tries))
        except Exception as error:
            log.exception("#%d: the card could not be sent", card.job_id)
            failure = self._failure_of(error, card.errors)
            if card.errors + 1 < _MAX_ERRORS:
                await self._outbox.cards.delay(card, failure)
            else:
                await self._outbox.cards.skip_version(card, failure)
        else:
            await self._accepted(card.channel_id)
        return True

    async def _send_or_edit(self, card: Card) -> None:
        if (shown_id := card.message_id) is not None:
            gone: MessageGone | None = None
            try:
                await in_smaller_forms(partial(self._edit, card, shown_id))
            except MessageGone as error:
                gone = error
            # A picture that a moderator of the channel deleted stays so.
            if gone is None or card.kind in {NotificationKind.GALLERY, NotificationKind.UPLOAD}:
                await self._outbox.cards.mark_shown(card, shown_id, is_new=False)
                return
            log.info("#%d: sending a new card: %s", card.job_id, gone.reason)
            await self._delete(card.channel_id, shown_id)
            card = await self._outbox.cards.forget_message(card)
        message_id = await self._make(
            card.notification,
            card.channel_id,
            card.nonce,
            may_be_there=card.may_be_there,
            before=partial(self._mark_card_sending, card),
        )
        failpoint("card_sent")
        # What was found is of an earlier try, and shows an old state: it is edited next.
        await self._outbox.cards.mark_shown(card, message_id, is_new=True, is_newest=not card.may_be_there)
        failpoint("card_recorded")
        if card.kind is NotificationKind.CARD and card.thread_id is None:
            try:
                await self._start_thread(replace(card, message_id=message_id))
            except SendLater as error:
                # The first message for the thread tries again.
                log.info("#%d: no thread yet: %s", card.job_id, error.reason)

    async def _remove(self, card: Card) -> None:
        """Delete a message for good; it may be gone already, or never have been sent."""
        message_id = card.message_id
        if message_id is None and card.may_be_there:
            message_id = await self._transport.find(card.channel_id, card.nonce)
        if message_id is not None:
            with suppress(MessageGone, ChannelGone):
                await self._transport.delete(card.channel_id, message_id)
        await self._outbox.cards.mark_shown(card, message_id, is_new=False)

    async def _delete(self, channel_id: int, message_id: int) -> None:
        """Remove a card that a new one replaces; it may be gone, or another bot's."""
        try:
            await self._transport.delete(channel_id, message_id)
        except DeliveryFailed as error:
            log.info("the message %d stays: %s", message_id, error.reason)

    async def _edit(self, card: Card, message_id: int, form: MessageForm) -> None:
        message = await self._render(card.notification, form)
        await self._transport.edit(card.channel_id, message_id, message)
        failpoint("card_edited")

    async def _mark_card_sending(self, card: Card) -> None:
        await self._outbox.cards.mark_sending(card)
        failpoint("card_marked")

    # -- failures ---------------------------------------------------------------------------------------------------

    def _failure_of(self, error: Exception, tries: int, route: _Route | None = None) -> Failure:
        """Return what to record of a failed try; a rate limit closes its route for a while."""
        now = self._clock.time()
        pause_s = jittered(backoff_s(tries + 1, _FIRST_BACKOFF_S, _MAX_BACKOFF_S))
        if not isinstance(error, DeliveryFailed):
            # It may have been raised after the request was sent.
            return Failure(reason=repr(error), retry_at=now + pause_s, is_counted=False, is_error=True, may_exist=True)
        is_counted = True
        if isinstance(error, SendLater):
            is_counted = error.is_counted
            if error.after_s is not None:
                pause_s = error.after_s
                self._open_at[None if error.is_global else route] = now + pause_s
            elif not is_counted:
                self._misses += 1
                pause_s = jittered(backoff_s(self._misses, _FIRST_BACKOFF_S, _MAX_OFFLINE_PAUSE_S))
        return Failure(reason=error.reason, retry_at=now + pause_s, is_counted=is_counted, may_exist=error.may_exist)

    async def _accepted(self, channel_id: int) -> None:
        """Let a channel's messages go: it has accepted one."""
        self._misses = 0
        await self._undeliverable.release(channel_id)

    async def _keep_or_give_up(self, pending: Pending, error: DeliveryFailed, tried_at: float) -> bool:
        """Return False if the message waits for its channel."""
        if pending.to.thread_of and isinstance(error, ChannelHeld | ChannelGone):
            await self._leave_thread(pending, error)
            return False
        if pending.to.recipient_id and isinstance(error, ChannelHeld | ChannelGone | RecipientUnreachable):
            await self._undeliverable.send_elsewhere(pending, error.reason)
            return True
        if isinstance(error, ChannelHeld):
            await self._outbox.delay(pending, _held(error))
            await self._undeliverable.hold(pending.to.channel_id, error, tried_at)
            return False
        log.warning(
            "#%d: %s cannot be delivered: %s", pending.notification.job_id, pending.notification.kind, error.reason
        )
        await self._undeliverable.give_up(pending, error)
        return True


def _route_of(card: Card) -> _Route:
    return Destination(channel_id=card.channel_id), card.message_id is not None


def _held(error: ChannelHeld) -> Failure:
    """What to record of a message whose channel is held: the hold says when it is tried again."""
    return Failure(reason=error.reason, is_counted=False, may_exist=error.may_exist)
