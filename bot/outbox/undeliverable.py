"""What becomes of messages that their channel, or their receiver, does not take: kept, sent elsewhere, or given up."""

from __future__ import annotations

import logging

from bot.clock import Clock
from bot.db import Connection
from bot.outbox.notification import AWAITED, NotificationKind, Undelivered, UndeliveredReason
from bot.outbox.outbox import RECHECK_EVERY_S, Hold, Outbox, Pending
from bot.outbox.transport import ChannelGone, ChannelHeld, DeliveryFailed

log = logging.getLogger(__name__)


class UndeliverableMessages:
    """Keeps messages of a channel that takes none, and notifies the owners of those that do not arrive."""

    def __init__(self, outbox: Outbox, *, log_channel_id: int, clock: Clock) -> None:
        self._outbox = outbox
        #: Gets what a user does not take as a direct message; 0: none.
        self._log_channel_id = log_channel_id
        self._clock = clock

    async def hold(self, channel_id: int, error: ChannelHeld, tried_at: float) -> None:
        """Keep a channel's messages until it takes them, and notify their owners meanwhile."""
        known = await self._outbox.held(channel_id)
        if known is None:
            log.warning("channel %d takes no messages for now: %s", channel_id, error.reason)
        async with self._outbox.transaction() as connection:
            hold = await self._outbox.hold(connection, channel_id, error.kind, error.reason, tried_at=tried_at)
            for pending in await self._outbox.unsent(connection, channel_id):
                await self._notify_owner(connection, pending, UndeliveredReason.HELD, hold)

    async def release(self, channel_id: int) -> None:
        """Let a channel's messages go: it has accepted one."""
        if await self._outbox.held(channel_id) is not None:
            log.info("channel %d takes messages again", channel_id)
            await self._outbox.release(channel_id)

    async def give_up(self, pending: Pending, error: Exception) -> None:
        """Record that a message cannot be delivered, and notify its owner elsewhere."""
        is_gone = isinstance(error, ChannelGone)
        async with self._outbox.transaction() as connection:
            await self._outbox.end(
                connection, pending, error.reason if isinstance(error, DeliveryFailed) else repr(error)
            )
            reason = UndeliveredReason.GONE if is_gone else UndeliveredReason.FAILED
            await self._notify_owner(connection, pending, reason)

    async def _notify_owner(
        self, connection: Connection, pending: Pending, reason: UndeliveredReason, hold: Hold | None = None
    ) -> None:
        """Put a direct message to the owner into the outbox, once for a message, or once for all of a channel."""
        other, channel_id = pending.notification, pending.to.channel_id
        if not other.owner_id or other.kind is NotificationKind.UNDELIVERED:
            return
        is_awaited = other.kind in AWAITED
        # A role that is edited holds a channel for seconds only: not every message is worth a direct one.
        is_brief = hold is not None and self._clock.time() < hold.since + RECHECK_EVERY_S / 2
        if not is_awaited and (is_brief or reason is UndeliveredReason.FAILED):
            return
        of_all = f"{channel_id}:{0 if hold is None else hold.since:.0f}:{other.owner_id}"
        undelivered = Undelivered(
            reason=reason,
            hold=None if hold is None else hold.reason,
            channel_id=channel_id,
            kind=other.kind if is_awaited else None,
        )
        notification = other.as_undelivered(undelivered, key=other.dedupe_key if is_awaited else of_all)
        await self._outbox.put(connection, notification, recipient_id=other.owner_id)

    async def send_elsewhere(self, pending: Pending, reason: str) -> None:
        """Send a direct message that its receiver does not take to the job's thread or the log channel."""
        log.info("user %d takes no direct messages: %s", pending.to.recipient_id, reason)
        if pending.notification.is_direct:
            await self._outbox.return_to_thread(pending, reason=reason)
            return
        if self._log_channel_id:
            await self._outbox.redirect(pending, self._log_channel_id, reason=reason)
            return
        async with self._outbox.transaction() as connection:
            await self._outbox.end(connection, pending, reason)
