"""The outbox: notifications that are each sent once; `cards` has the messages that are edited.

What is not for the channel itself waits for the thread of its job; a job that has none shows it in one message
(`Cards.show_latest`).

A message that fails keeps its row and its reason. It waits for its next try, for its channel (`Hold`), or, once it is
dead, for `/admin resend`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import takewhile

from bot.clock import SYSTEM_CLOCK, Clock
from bot.db import Connection, Database, Row, as_stored
from bot.outbox.audience import EVENT_OF, Addressee, Audience, NotifyPlace
from bot.outbox.cards import DELAYED, NO_THREAD, Cards, Failure, failure_values, new_nonce
from bot.outbox.notification import IN_CHANNEL, Notification, NotificationKind
from bot.outbox.transport import HoldReason

#: A held channel is looked at again after this long.
RECHECK_EVERY_S = 60.0
#: So long after the roles or channels of a server changed: changes come in bursts.
_RECHECK_SOON_S = 1.0
#: Only sent if it mentions a person.
_ON_DEMAND = frozenset({NotificationKind.QUEUED, NotificationKind.STARTED, NotificationKind.DRAWN})
#: Without a thread, the card alone shows these.
_ON_CARD = _ON_DEMAND | {NotificationKind.PAUSED, NotificationKind.CANCELLED, NotificationKind.STAGE}
#: Failures after which a message lets the next ones of its channel pass.
_MAX_BLOCKING_TRIES = 8


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where messages go, in order: a channel, a job's thread in it, or a user's direct messages (`channel_id` 0)."""

    channel_id: int
    recipient_id: int = 0
    #: The job whose thread it is; 0: the channel itself.
    thread_of: int = 0


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A channel that takes no messages for now."""

    channel_id: int
    reason: HoldReason
    #: Discord's words.
    detail: str
    since: float


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A notification that has not been sent."""

    id: int
    notification: Notification
    to: Destination
    nonce: str
    #: A bot died while it sent this, or the answer was lost: the message may exist.
    may_be_there: bool
    tries: int
    errors: int
    retry_at: float


class Outbox:
    """Accepts notifications in the transactions that cause them; all other methods serve the `Sender`."""

    def __init__(self, db: Database, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._db = db
        self._clock = clock
        #: Set when there may be something to send.
        self.filled = asyncio.Event()
        self.cards = Cards(db, self.filled, clock=clock)
        self.audience = Audience(db)
        #: When roles or channels last changed.
        self._changed_at = 0.0

    async def put(
        self,
        connection: Connection,
        notification: Notification,
        *,
        channel_id: int = 0,
        recipient_id: int = 0,
        thread_of: int = 0,
    ) -> None:
        """Send a notification once the caller's transaction commits; nothing changes if its key is known.

        Args:
            connection: The open transaction.
            notification: What is sent.
            channel_id: Where to.
            recipient_id: The user who gets it as a direct message, instead of a channel.
            thread_of: The job in whose thread in the channel it belongs; 0: in the channel itself.
        """
        await connection.execute_fetchall(
            """INSERT INTO outbox
                   (dedupe_key, job_id, channel_id, recipient_id, thread_of, guild_id, notification, nonce, created_at)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (dedupe_key) DO NOTHING""",
            (
                notification.dedupe_key,
                notification.job_id,
                channel_id,
                recipient_id,
                thread_of,
                notification.guild_id,
                _json(notification),
                new_nonce(),
                self._clock.time(),
            ),
        )
        self._db.after_commit(self.filled.set)

    async def put_news(
        self, connection: Connection, notification: Notification, *, channel_id: int, by: int | None = None
    ) -> None:
        """As `put`, for news of a job: in its channel or its thread, with those who want to know, and to them directly.

        Args:
            connection: The open transaction.
            notification: The news.
            channel_id: The job's channel.
            by: Who did it: they know already.
        """
        people = await self._addressees(connection, notification, by)
        mentioned = [each for each in people if each.place is NotifyPlace.MENTION]
        if mentioned or notification.kind not in _ON_DEMAND:
            told = notification.model_copy(
                update={
                    "mentions": tuple(each.user_id for each in mentioned),
                    "is_quiet": any(each.is_quiet for each in mentioned),
                }
            )
            thread_of = 0 if notification.kind in IN_CHANNEL else notification.job_id
            await self.put(connection, told, channel_id=channel_id, thread_of=thread_of)
        for each in people:
            if each.place is NotifyPlace.DIRECT:
                direct = notification.model_copy(
                    update={
                        "dedupe_key": f"{notification.dedupe_key}:to:{each.user_id}",
                        "mentions": (each.user_id,),
                        "is_quiet": each.is_quiet,
                        "is_direct": True,
                    }
                )
                await self.put(connection, direct, recipient_id=each.user_id)

    async def _addressees(self, connection: Connection, notification: Notification, by: int | None) -> list[Addressee]:
        event = EVENT_OF.get(notification.kind)
        if event is None:
            return []
        people = await self.audience.of(
            connection,
            event,
            job_id=notification.job_id,
            owner_id=notification.owner_id,
            at=self._clock.time(),
        )
        return [each for each in people if each.user_id != by]

    async def depth(self) -> int:
        """Return how many messages wait to be sent, stale cards included."""
        row = await self._db.one(
            """SELECT (SELECT COUNT(*) FROM outbox WHERE state IN ('waiting', 'sending'))
                    + (SELECT COUNT(*) FROM card WHERE shown_version < version)"""
        )
        assert row is not None
        return int(row[0])

    async def destinations(self) -> list[Destination]:
        """Return where something may be sent now: a held channel only when it is due, or has a new message."""
        rows = await self._db.all(
            """SELECT DISTINCT channel_id, recipient_id, thread_of FROM (
                   SELECT channel_id, recipient_id, thread_of, MAX(id) AS newest_id FROM outbox
                   WHERE state IN ('waiting', 'sending') GROUP BY channel_id, recipient_id, thread_of
                   UNION ALL SELECT DISTINCT channel_id, 0, 0, 0 FROM card WHERE shown_version < version)
               LEFT JOIN channel_hold USING (channel_id)
               WHERE thread_of > 0 OR recheck_at IS NULL OR recheck_at <= ? OR newest_id > seen_id""",
            (self._clock.time(),),
        )
        return [_destination(row) for row in rows]

    async def next_pending(self, to: Destination) -> Pending | None:
        """Return the oldest unsent notification; one that keeps failing lets others pass until its next try."""
        row = await self._db.one(
            """SELECT * FROM outbox WHERE channel_id = ? AND recipient_id = ? AND thread_of = ?
                   AND state IN ('waiting', 'sending') AND (tries < ? OR retry_at <= ?) ORDER BY id LIMIT 1""",
            (to.channel_id, to.recipient_id, to.thread_of, _MAX_BLOCKING_TRIES, self._clock.time()),
        )
        return _pending(row) if row else None

    async def unsent(self, connection: Connection, channel_id: int) -> list[Pending]:
        """Return all unsent notifications of a channel, those of threads excluded, in the caller's transaction."""
        return await _unsent(connection, Destination(channel_id=channel_id))

    async def merge_epochs(self, pending: Pending, *, is_due: bool) -> Pending | None:
        """Merge the notifications of epochs that wait in a row into one message; `pending` is the first.

        Returns that message; None if it is not due and nothing else waits behind it. What may have been sent already,
        or is no epoch, stays as it is.
        """
        async with self._db.transaction() as connection:
            waiting = await _unsent(connection, pending.to)
            epochs = list(takewhile(_may_merge, waiting))
            if epochs and len(epochs) == len(waiting) and not is_due:
                return None
            if len(epochs) < 2:
                return pending
            *earlier, last = epochs
            number = sum(each.notification.epochs for each in epochs)
            merged = last.notification.model_copy(update={"epochs": number})
            await connection.executemany(
                "UPDATE outbox SET state = 'merged' WHERE id = ?", [(each.id,) for each in earlier]
            )
            await connection.execute_fetchall(
                "UPDATE outbox SET notification = ? WHERE id = ?", (_json(merged), last.id)
            )
        return replace(last, notification=merged)

    async def mark_sending(self, pending: Pending) -> None:
        """Record that the message is about to be sent, for the next bot if this one dies."""
        await self._update("UPDATE outbox SET state = 'sending' WHERE id = :id", id=pending.id)

    async def mark_sent(self, pending: Pending, message_id: int) -> None:
        """Record that the message exists."""
        await self._update(
            "UPDATE outbox SET state = 'sent', message_id = :message_id, reason = NULL, sent_at = :now WHERE id = :id",
            id=pending.id,
            message_id=message_id,
        )

    async def delay(self, pending: Pending, failure: Failure) -> None:
        """Record a failed try, and when the next one is."""
        await self._update(f"UPDATE outbox SET {DELAYED} WHERE id = :id", id=pending.id, **failure_values(failure))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Open a transaction for `end`, `hold`, `unsent` and `put` together."""
        async with self._db.transaction() as connection:
            yield connection

    async def end(self, connection: Connection, pending: Pending, reason: str) -> None:
        """Record that a message cannot be delivered, in the caller's transaction."""
        await connection.execute_fetchall(
            "UPDATE outbox SET state = 'dead', reason = ? WHERE id = ?", (reason, pending.id)
        )

    async def redirect(self, pending: Pending, channel_id: int, *, reason: str) -> None:
        """Send a direct message to a channel instead: its receiver does not take it."""
        await self._redirect(pending, pending.notification, channel_id, reason=reason)

    async def return_to_thread(self, pending: Pending, *, reason: str) -> None:
        """Send direct news of a job to its thread instead: its receiver does not take it."""
        job_id = pending.notification.job_id
        card = await self.cards.of(job_id)
        assert card is not None
        returned = pending.notification.model_copy(update={"is_returned": True})
        await self._redirect(pending, returned, card.channel_id, thread_of=job_id, reason=reason)

    async def _redirect(
        self, pending: Pending, notification: Notification, channel_id: int, *, thread_of: int = 0, reason: str
    ) -> None:
        await self._update(
            """UPDATE outbox SET recipient_id = 0, channel_id = :channel_id, thread_of = :thread_of,
                   notification = :notification, state = 'waiting', tries = 0, errors = 0, retry_at = 0,
                   reason = :reason WHERE id = :id""",
            id=pending.id,
            channel_id=channel_id,
            thread_of=thread_of,
            notification=_json(notification),
            reason=reason,
        )
        self.filled.set()

    async def close_thread(self, job_id: int, *, channel_id: int) -> None:
        """Record that a job has no thread: all that waits for it is shown in one message of the channel instead.

        What calls a person by name is not: an edited message notifies no one.
        """
        to = Destination(channel_id=channel_id, thread_of=job_id)
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(
                "UPDATE card SET thread_id = ? WHERE job_id = ? AND kind = 'card'", (NO_THREAD, job_id)
            )
            waiting = await _unsent(connection, to)
            calls = [each for each in waiting if each.notification.is_returned]
            shown = [each for each in waiting if not each.notification.is_returned]
            await connection.executemany("UPDATE outbox SET thread_of = 0 WHERE id = ?", [(each.id,) for each in calls])
            await connection.executemany(
                "UPDATE outbox SET state = 'merged' WHERE id = ?", [(each.id,) for each in shown]
            )
            news = [each.notification for each in shown if each.notification.kind not in _ON_CARD]
            if news:
                await self.cards.show_latest(connection, job_id, news, channel_id=channel_id)

    async def resend(self, guild_id: int, *, job_id: int | None = None, channel_id: int | None = None) -> int:
        """Send the undelivered messages of a server again, now; returns how many.

        Args:
            guild_id: The server.
            job_id: Only messages about this job.
            channel_id: Send them here instead of where they belong.
        """
        values = {"guild_id": guild_id, "job_id": job_id, "channel_id": channel_id, "now": self._clock.time()}
        async with self._db.transaction() as connection:
            # A dead one may exist, and is looked for.
            rows = await connection.execute_fetchall(
                """UPDATE outbox SET state = CASE state WHEN 'dead' THEN 'sending' ELSE state END, tries = 0,
                       errors = 0, retry_at = 0,
                       channel_id =
                           CASE WHEN recipient_id = 0 AND :channel_id IS NOT NULL THEN :channel_id ELSE channel_id END,
                       thread_of = CASE WHEN :channel_id IS NOT NULL THEN 0 ELSE thread_of END
                   WHERE guild_id = :guild_id AND state IN ('waiting', 'sending', 'dead')
                       AND (:job_id IS NULL OR job_id = :job_id)
                   RETURNING id""",
                values,
            )
            await connection.execute_fetchall(
                """UPDATE card SET version = version + 1, urgent_version = version + 1, retry_at = 0
                   WHERE reason IS NOT NULL AND (:job_id IS NULL OR job_id = :job_id)
                       AND job_id IN (SELECT id FROM job WHERE guild_id = :guild_id)""",
                values,
            )
            await connection.execute_fetchall("UPDATE channel_hold SET recheck_at = :now", values)
            self._db.after_commit(self.filled.set)
        return len(list(rows))

    # -- held channels ----------------------------------------------------------------------------------------------

    async def held(self, channel_id: int) -> Hold | None:
        """Return why a channel takes no messages; None if it does."""
        row = await self._db.one("SELECT * FROM channel_hold WHERE channel_id = ?", (channel_id,))
        return _hold(row) if row else None

    async def hold(
        self, connection: Connection, channel_id: int, reason: HoldReason, detail: str, *, tried_at: float
    ) -> Hold:
        """Hold a channel's messages back, in the caller's transaction; called again each time that Discord refuses one.

        If the channel's permissions changed after the refused try began (`tried_at`), the next try is soon: the
        refusal may be older than the change.
        """
        now = self._clock.time()
        recheck_at = now + (_RECHECK_SOON_S if self._changed_at > tried_at else RECHECK_EVERY_S)
        rows = await connection.execute_fetchall(
            """INSERT INTO channel_hold (channel_id, reason, detail, since, recheck_at, seen_id)
               VALUES (?1, ?2, ?3, ?4, ?5, (SELECT COALESCE(MAX(id), 0) FROM outbox)) ON CONFLICT (channel_id) DO UPDATE
               SET reason = excluded.reason, detail = excluded.detail, recheck_at = excluded.recheck_at,
                   seen_id = excluded.seen_id RETURNING *""",
            (channel_id, reason, detail, now, recheck_at),
        )
        return _hold(next(iter(rows)))

    async def release(self, channel_id: int) -> None:
        """Send a channel's messages again: one was accepted, or the channel is gone."""
        await self._update("DELETE FROM channel_hold WHERE channel_id = :channel_id", channel_id=channel_id)

    async def recheck_held(self) -> None:
        """Look at the held channels and threads soon: roles or channels have changed."""
        self._changed_at = self._clock.time()
        soon = self._changed_at + _RECHECK_SOON_S
        if await self._db.one("SELECT 1 FROM channel_hold") is not None:
            await self._update("UPDATE channel_hold SET recheck_at = MIN(recheck_at, :soon)", soon=soon)
        if await self._db.one(f"SELECT 1 FROM outbox WHERE {_WAITS_FOR_THREAD}", {"soon": soon}) is not None:
            await self._update(f"UPDATE outbox SET retry_at = :soon WHERE {_WAITS_FOR_THREAD}", soon=soon)

    async def _update(self, statement: str, **values: float | str | None) -> None:
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(statement, {"now": self._clock.time(), **values})


#: Messages of threads that are tried again later than soon.
_WAITS_FOR_THREAD = "state IN ('waiting', 'sending') AND thread_of > 0 AND retry_at > :soon"


async def _unsent(connection: Connection, to: Destination) -> list[Pending]:
    rows = await connection.execute_fetchall(
        """SELECT * FROM outbox WHERE channel_id = ? AND recipient_id = ? AND thread_of = ?
               AND state IN ('waiting', 'sending') ORDER BY id""",
        (to.channel_id, to.recipient_id, to.thread_of),
    )
    return [_pending(row) for row in rows]


def _may_merge(pending: Pending) -> bool:
    return pending.notification.kind is NotificationKind.EPOCH and not pending.may_be_there


def _json(notification: Notification) -> str:
    return notification.model_dump_json(exclude_defaults=True)


def _destination(row: Row) -> Destination:
    return Destination(**as_stored(Destination, row))


def _hold(row: Row) -> Hold:
    return Hold(**as_stored(Hold, row) | {"reason": HoldReason(row["reason"])})


def _pending(row: Row) -> Pending:
    values = as_stored(Pending, row) | {
        "notification": Notification.model_validate_json(row["notification"]),
        "to": _destination(row),
        "may_be_there": row["state"] == "sending",
    }
    return Pending(**values)
