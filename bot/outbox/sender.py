"""Sends what the outbox holds: posts in order for each channel, the card before the posts of its job, edits coalesced.

A post is marked `sending` before and `sent` after. A bot that dies in between leaves `sending` behind; the next one
looks for the message, and else sends it with the same nonce, for which Discord returns the message already made.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from bot.config import CardSettings
from bot.crashing import crash_point
from bot.errors import DatabaseUnwritable
from bot.outbox.notice import Notice
from bot.outbox.post import MessageGone, Post, Render, SendLater, SendNever
from bot.outbox.store import Card, Outbox, Posting, marker

log = logging.getLogger(__name__)

_Mark: TypeAlias = Callable[[], Awaitable[None]]

#: Back-off after the n-th failure: 2, 4, 8 … s, at most this.
_LONGEST_PAUSE_S = 300.0
#: After so many surprises (not `SendLater`) a post is given up, so that one bad post does not block its channel.
_MAX_SURPRISES = 5


class Sender:
    """A plain service: `run()` in a task of its own, or `step()` by hand."""

    def __init__(
        self,
        outbox: Outbox,
        post: Post,
        render: Render,
        *,
        settings: CardSettings | None = None,
        poll_s: float = 1.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._outbox = outbox
        self._post = post
        self._render = render
        self._settings = settings or CardSettings()
        self._poll_s = poll_s
        self._now = now
        self._stepping = asyncio.Lock()

    async def run(self) -> None:
        """Send until cancelled; woken by what is put into the outbox."""
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
        """Send all that is due; channels do not wait for each other."""
        async with self._stepping, asyncio.TaskGroup() as group:
            for channel_id in await self._outbox.channels():
                group.create_task(self._send_channel(channel_id))

    async def _send_channel(self, channel_id: int) -> None:
        while posting := await self._outbox.next_posting(channel_id):
            if posting.retry_at > self._now():
                break
            card = await self._outbox.card(posting.notice.job_id)
            if card and card.message_id is None and card.is_changed and not await self._show(card):
                break
            if not await self._send(posting):
                break
        for card in await self._outbox.changed_cards(channel_id):
            if self._is_due(card):
                await self._show(card)

    def _is_due(self, card: Card) -> bool:
        is_ripe = self._now() >= card.shown_at + self._settings.edit_interval_s
        return card.retry_at <= self._now() and (card.is_urgent or is_ripe)

    async def _send(self, posting: Posting) -> bool:
        """Send one post; False if the channel has to wait."""
        try:
            message_id = await self._make(
                posting.notice,
                posting.channel_id,
                posting.nonce,
                was_sending=posting.may_be_there,
                before=self._before(posting),
            )
            crash_point("post_sent")
        except SendNever as error:
            log.warning("#%d: %s not told: %s", posting.notice.job_id, posting.notice.kind, error.reason)
            await self._outbox.mark_posting(posting, "dead", reason=error.reason)
            return True
        except SendLater as error:
            await self._wait(posting, error.reason, error.after_s)
            return False
        except DatabaseUnwritable:
            # No fault of the post's, and no reason to give it up.
            raise
        except Exception as error:
            log.exception("#%d: %s could not be made", posting.notice.job_id, posting.notice.kind)
            if posting.tries + 1 >= _MAX_SURPRISES:
                await self._outbox.mark_posting(posting, "dead", reason=repr(error))
                return True
            await self._wait(posting, repr(error), None)
            return False
        await self._outbox.mark_posting(posting, "sent", message_id=message_id)
        crash_point("post_noted")
        return True

    async def _show(self, card: Card) -> bool:
        """Send or edit a card; False if it has to wait."""
        if card.retry_at > self._now():
            return False
        if card.message_id is not None and self._now() >= card.sent_at + self._settings.roll_after_s:
            log.info("#%d: the card is too old to be edited; a new one follows", card.job_id)
            card = await self._outbox.forget_card_message(card)
        try:
            await self._send_or_edit(card)
        except SendNever as error:
            log.warning("#%d: no card: %s", card.job_id, error.reason)
            await self._outbox.bury_card(card, reason=error.reason)
        except SendLater as error:
            await self._outbox.delay_card(card, reason=error.reason, retry_at=self._retry_at(card.tries, error.after_s))
            return False
        except DatabaseUnwritable:
            raise
        except Exception as error:
            log.exception("#%d: the card could not be made", card.job_id)
            if card.tries + 1 >= _MAX_SURPRISES:
                await self._outbox.bury_card(card, reason=repr(error))
                return True
            await self._outbox.delay_card(card, reason=repr(error), retry_at=self._retry_at(card.tries, None))
            return False
        return True

    async def _send_or_edit(self, card: Card) -> None:
        if card.message_id is not None:
            try:
                await self._edit(card, card.message_id)
            except MessageGone:
                log.info("#%d: somebody deleted the card; a new one follows", card.job_id)
                card = await self._outbox.forget_card_message(card)
            else:
                return
        message_id = await self._make(
            card.notice,
            card.channel_id,
            card.nonce,
            was_sending=card.may_be_there,
            before=lambda: self._mark_card(card),
        )
        crash_point("card_sent")
        # After a failure it may be the message of the earlier try, with the state of that time: it is edited next.
        is_newest = not card.may_be_there and card.tries == 0
        await self._outbox.mark_card_shown(card, message_id, is_new=True, is_newest=is_newest)
        crash_point("card_noted")

    async def _edit(self, card: Card, message_id: int) -> None:
        message = await self._render(card.notice, marker(card.nonce))
        await self._post.edit(card.channel_id, message_id, message)
        crash_point("card_edited")
        await self._outbox.mark_card_shown(card, message_id, is_new=False)

    async def _make(self, notice: Notice, channel_id: int, nonce: str, *, was_sending: bool, before: _Mark) -> int:
        """Make a message once, and return its id."""
        if was_sending:
            found = await self._post.find(channel_id, marker(nonce))
            if found is not None:
                return found
        message = await self._render(notice, marker(nonce))
        await before()
        return await self._post.send(channel_id, message, nonce)

    def _before(self, posting: Posting) -> _Mark:
        return lambda: self._mark_post(posting)

    async def _mark_post(self, posting: Posting) -> None:
        await self._outbox.mark_posting(posting, "sending")
        crash_point("post_marked")

    async def _mark_card(self, card: Card) -> None:
        await self._outbox.mark_card_sending(card)
        crash_point("card_marked")

    async def _wait(self, posting: Posting, reason: str, after_s: float | None) -> None:
        retry_at = self._retry_at(posting.tries, after_s)
        log.info("#%d: %s waits: %s", posting.notice.job_id, posting.notice.kind, reason)
        # Its state stays: one that was being sent may be there, and is looked for before it is sent again.
        await self._outbox.mark_posting(posting, None, reason=reason, retry_at=retry_at, tries=posting.tries + 1)

    def _retry_at(self, tries: int, after_s: float | None) -> float:
        return self._now() + (min(2.0 ** (tries + 1), _LONGEST_PAUSE_S) if after_s is None else after_s)
