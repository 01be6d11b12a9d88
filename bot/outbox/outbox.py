"""The outbox: notifications that are each sent once, and one live card for each job, which shows its newest state.

A message that fails keeps its row and its reason. It waits for its next try, for its channel (`Hold`), or, once it is
dead, for `/admin resend`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bot.clock import SYSTEM_CLOCK, Clock
from bot.db import Connection, Database, Row
from bot.outbox.notification import Notification, NotificationKind
from bot.outbox.transport import HoldReason

#: A held channel is looked at again after this long.
LOOK_EVERY_S = 60.0
#: So long after the roles or channels of a server changed: changes come in bursts.
_LOOK_SOON_S = 1.0
#: Failures after which a message lets the next ones of its channel pass.
_MAX_BLOCKING_TRIES = 8


def marker(nonce: str) -> str:
    """Return what a message carries in its footer (`job 42 · 3fa8c1d2`), so that it can be found again."""
    return nonce[:8]


def new_nonce() -> str:
    """Return 24 random characters; Discord accepts 25."""
    return secrets.token_hex(12)


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where messages go, in order: a channel, or the direct messages to a user (`channel_id` 0)."""

    channel_id: int
    recipient_id: int = 0


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


@dataclass(frozen=True, kw_only=True)
class Card:
    """The live card of a job, and how much of the job its message shows."""

    job_id: int
    channel_id: int
    version: int
    shown_version: int
    urgent_version: int
    nonce: str
    may_be_there: bool
    tries: int
    errors: int
    retry_at: float
    message_id: int | None
    #: When the message was created, and when it was last sent or edited; seconds since the epoch.
    sent_at: float
    shown_at: float

    @property
    def notification(self) -> Notification:
        return Notification(kind=NotificationKind.CARD, job_id=self.job_id)

    @property
    def is_changed(self) -> bool:
        return self.shown_version < self.version

    @property
    def is_awaited(self) -> bool:
        """True until it was sent or refused for the first time: the job's other messages come after it."""
        return self.message_id is None and self.shown_version == 0

    @property
    def is_urgent(self) -> bool:
        return self.message_id is None or self.shown_version < self.urgent_version


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What is recorded of a failed try."""

    reason: str
    #: When it is tried again.
    retry_at: float = 0.0
    #: It lengthens the back-off.
    is_counted: bool = True
    #: The bot itself broke.
    is_error: bool = False
    #: The message may exist: it is looked for before it is sent again.
    may_exist: bool = False


class Outbox:
    """Accepts notifications in the transactions that cause them; all other methods serve the `Sender`."""

    def __init__(self, db: Database, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._db = db
        self._clock = clock
        #: Set when there may be something to send.
        self.filled = asyncio.Event()
        #: When roles or channels last changed.
        self._changed_at = 0.0

    async def put(
        self,
        connection: Connection,
        notification: Notification,
        *,
        channel_id: int = 0,
        recipient_id: int = 0,
    ) -> None:
        """Send a notification once the caller's transaction commits; nothing changes if its key is known.

        Args:
            connection: The open transaction.
            notification: What is sent.
            channel_id: Where to.
            recipient_id: The user who gets it as a direct message, instead of a channel.
        """
        await connection.execute_fetchall(
            """INSERT INTO outbox
                   (dedupe_key, job_id, channel_id, recipient_id, guild_id, notification, nonce, created_at)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (dedupe_key) DO NOTHING""",
            (
                notification.dedupe_key,
                notification.job_id,
                channel_id,
                recipient_id,
                notification.guild_id,
                notification.model_dump_json(exclude_defaults=True),
                new_nonce(),
                self._clock.time(),
            ),
        )
        self._db.after_commit(self.filled.set)

    async def touch_card(self, connection: Connection, job_id: int, *, channel_id: int, at_once: bool = False) -> None:
        """Mark a job's card as stale; `at_once`: its state changed, so the edit is not delayed."""
        await self.touch_cards(connection, [(job_id, channel_id)], at_once=at_once)

    async def touch_cards(
        self, connection: Connection, cards: Iterable[tuple[int, int]], *, at_once: bool = False
    ) -> None:
        """As `touch_card`, for jobs and their channels; all of them cost little more than one."""
        await connection.executemany(
            """INSERT INTO card (job_id, channel_id, version, urgent_version, nonce) VALUES (?1, ?2, 1, 1, ?3)
               ON CONFLICT (job_id) DO UPDATE SET
                   version = version + 1,
                   urgent_version = CASE WHEN ?4 THEN version + 1 ELSE urgent_version END""",
            [(job_id, channel_id, new_nonce(), int(at_once)) for job_id, channel_id in cards],
        )
        self._db.after_commit(self.filled.set)

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
            """SELECT DISTINCT channel_id, recipient_id FROM (
                   SELECT channel_id, recipient_id, MAX(id) AS newest_id FROM outbox
                   WHERE state IN ('waiting', 'sending') GROUP BY channel_id, recipient_id
                   UNION ALL SELECT DISTINCT channel_id, 0, 0 FROM card WHERE shown_version < version)
               LEFT JOIN channel_hold USING (channel_id)
               WHERE look_at IS NULL OR look_at <= ? OR newest_id > seen_id""",
            (self._clock.time(),),
        )
        return [Destination(channel_id=row["channel_id"], recipient_id=row["recipient_id"]) for row in rows]

    async def next_pending(self, to: Destination) -> Pending | None:
        """Return the oldest unsent notification; one that keeps failing lets others pass until its next try."""
        row = await self._db.one(
            """SELECT * FROM outbox WHERE channel_id = ? AND recipient_id = ? AND state IN ('waiting', 'sending')
                   AND (tries < ? OR retry_at <= ?) ORDER BY id LIMIT 1""",
            (to.channel_id, to.recipient_id, _MAX_BLOCKING_TRIES, self._clock.time()),
        )
        return _pending(row) if row else None

    async def unsent(self, connection: Connection, channel_id: int) -> list[Pending]:
        """Return all unsent notifications of a channel, in the caller's transaction."""
        rows = await connection.execute_fetchall(
            """SELECT * FROM outbox WHERE channel_id = ? AND recipient_id = 0 AND state IN ('waiting', 'sending')
               ORDER BY id""",
            (channel_id,),
        )
        return [_pending(row) for row in rows]

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
        await self._update(f"UPDATE outbox SET {_DELAYED} WHERE id = :id", id=pending.id, **_values(failure))

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
        await self._update(
            """UPDATE outbox SET recipient_id = 0, channel_id = :channel_id, state = 'waiting', tries = 0, errors = 0,
                   retry_at = 0, reason = :reason WHERE id = :id""",
            id=pending.id,
            channel_id=channel_id,
            reason=reason,
        )
        self.filled.set()

    async def resend(self, guild_id: int, *, job_id: int | None = None, channel_id: int | None = None) -> int:
        """Send what a server lacks again, now; returns how many messages.

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
                       errors = 0, retry_at = 0, channel_id =
                           CASE WHEN recipient_id = 0 AND :channel_id IS NOT NULL THEN :channel_id ELSE channel_id END
                   WHERE guild_id = :guild_id AND state != 'sent' AND (:job_id IS NULL OR job_id = :job_id)
                   RETURNING id""",
                values,
            )
            await connection.execute_fetchall(
                """UPDATE card SET version = version + 1, urgent_version = version + 1, retry_at = 0
                   WHERE reason IS NOT NULL AND (:job_id IS NULL OR job_id = :job_id)
                       AND job_id IN (SELECT id FROM job WHERE guild_id = :guild_id)""",
                values,
            )
            await connection.execute_fetchall("UPDATE channel_hold SET look_at = :now", values)
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
        """Let a channel's messages wait, in the caller's transaction; called again with each look that fails.

        What changed after the try began (`tried_at`) may not be in its answer: then the next look is soon.
        """
        now = self._clock.time()
        look_at = now + (_LOOK_SOON_S if self._changed_at > tried_at else LOOK_EVERY_S)
        rows = await connection.execute_fetchall(
            """INSERT INTO channel_hold (channel_id, reason, detail, since, look_at, seen_id)
               VALUES (?1, ?2, ?3, ?4, ?5, (SELECT COALESCE(MAX(id), 0) FROM outbox)) ON CONFLICT (channel_id) DO UPDATE
               SET reason = excluded.reason, detail = excluded.detail, look_at = excluded.look_at,
                   seen_id = excluded.seen_id RETURNING *""",
            (channel_id, reason, detail, now, look_at),
        )
        return _hold(next(iter(rows)))

    async def release(self, channel_id: int) -> None:
        """Let a channel's messages go: one was accepted, or the channel is gone."""
        await self._update("DELETE FROM channel_hold WHERE channel_id = :channel_id", channel_id=channel_id)

    async def look_again(self) -> None:
        """Look at the held channels soon: roles or channels have changed."""
        self._changed_at = self._clock.time()
        if await self._db.one("SELECT 1 FROM channel_hold") is not None:
            soon = self._changed_at + _LOOK_SOON_S
            await self._update("UPDATE channel_hold SET look_at = MIN(look_at, :soon)", soon=soon)

    # -- cards ------------------------------------------------------------------------------------------------------

    async def card(self, job_id: int) -> Card | None:
        """Return the card of a job; None if it has none."""
        row = await self._db.one("SELECT * FROM card WHERE job_id = ?", (job_id,))
        return _card(row) if row else None

    async def changed_cards(self, channel_id: int) -> list[Card]:
        """Return the stale cards of a channel."""
        rows = await self._db.all(
            "SELECT * FROM card WHERE channel_id = ? AND shown_version < version ORDER BY job_id", (channel_id,)
        )
        return [_card(row) for row in rows]

    async def mark_card_sending(self, card: Card) -> None:
        """Record that the card's message is about to be sent, for the next bot if this one dies."""
        await self._update_card(card, "state = 'sending'")

    async def mark_card_shown(self, card: Card, message_id: int, *, is_new: bool, is_newest: bool = True) -> None:
        """Record that the message shows `card.version`; not `is_newest`: it is of an earlier try, and may be old."""
        created = ", sent_at = :now" if is_new else ""
        shown = "MAX(shown_version, :version)" if is_newest else "shown_version"
        await self._update_card(
            card,
            f"""state = 'sent', message_id = :message_id, shown_at = :now, tries = 0, errors = 0, retry_at = 0,
                reason = NULL, shown_version = {shown}{created}""",
            message_id=message_id,
        )

    async def forget_card_message(self, card: Card) -> Card:
        """Let the card get a new message (deleted, or too old to be edited); returns the card after that."""
        await self._update_card(card, "state = 'waiting', message_id = NULL, nonce = :nonce", nonce=new_nonce())
        found = await self.card(card.job_id)
        assert found is not None
        return found

    async def delay_card(self, card: Card, failure: Failure) -> None:
        """Record a failed try, and when the next one is."""
        await self._update_card(card, _DELAYED_CARD, **_values(failure))

    async def skip_card_version(self, card: Card, failure: Failure) -> None:
        """Leave this version of the card out: it is refused; the next change is tried again."""
        await self._update_card(
            card, f"{_DELAYED_CARD}, shown_version = MAX(shown_version, :version)", **_values(failure)
        )

    async def _update_card(self, card: Card, changes: str, **values: float | str | None) -> None:
        # The pieces of SQL are this module's own.
        await self._update(
            f"UPDATE card SET {changes} WHERE job_id = :job_id", version=card.version, job_id=card.job_id, **values
        )

    async def _update(self, statement: str, **values: float | str | None) -> None:
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(statement, {"now": self._clock.time(), **values})


#: What a failed try changes in a row of either table.
_DELAYED = """state = CASE WHEN :may_exist THEN state ELSE 'waiting' END, reason = :reason, retry_at = :retry_at,
    tries = tries + :counted, errors = errors + :errors"""
_DELAYED_CARD = _DELAYED.replace("state = CASE", "state = CASE WHEN message_id IS NOT NULL THEN 'sent'")


def _values(failure: Failure) -> dict[str, float | str | None]:
    return {
        "reason": failure.reason,
        "retry_at": failure.retry_at,
        "may_exist": failure.may_exist,
        "counted": int(failure.is_counted),
        "errors": int(failure.is_error),
    }


def _hold(row: Row) -> Hold:
    return Hold(
        channel_id=row["channel_id"], reason=HoldReason(row["reason"]), detail=row["detail"], since=row["since"]
    )


def _pending(row: Row) -> Pending:
    return Pending(
        id=row["id"],
        notification=Notification.model_validate_json(row["notification"]),
        to=Destination(channel_id=row["channel_id"], recipient_id=row["recipient_id"]),
        nonce=row["nonce"],
        may_be_there=row["state"] == "sending",
        tries=row["tries"],
        errors=row["errors"],
        retry_at=row["retry_at"],
    )


def _card(row: Row) -> Card:
    return Card(
        job_id=row["job_id"],
        channel_id=row["channel_id"],
        version=row["version"],
        shown_version=row["shown_version"],
        urgent_version=row["urgent_version"],
        nonce=row["nonce"],
        may_be_there=row["state"] == "sending",
        tries=row["tries"],
        errors=row["errors"],
        retry_at=row["retry_at"],
        message_id=row["message_id"],
        sent_at=row["sent_at"] or 0.0,
        shown_at=row["shown_at"] or 0.0,
    )
