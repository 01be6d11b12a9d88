"""The outbox: notifications that are each sent once, and one live card for each job, which shows its newest state."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

from bot.clock import SYSTEM_CLOCK, Clock
from bot.db import Connection, Database, Row
from bot.outbox.notification import Notification, NotificationKind


def marker(nonce: str) -> str:
    """Return what a message carries in its footer (`job 42 · 3fa8c1d2`), so that it can be found again."""
    return nonce[:8]


def new_nonce() -> str:
    """Return 24 random characters; Discord accepts 25."""
    return secrets.token_hex(12)


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A notification that has not been sent."""

    id: int
    notification: Notification
    channel_id: int
    nonce: str
    #: A bot died while it sent this: the message may exist.
    may_be_there: bool
    tries: int
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
    is_dead: bool
    tries: int
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
        return not self.is_dead and self.shown_version < self.version

    @property
    def is_urgent(self) -> bool:
        return self.message_id is None or self.shown_version < self.urgent_version


class Outbox:
    """Accepts notifications in the transactions that cause them; all other methods serve the `Sender`."""

    def __init__(self, db: Database, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._db = db
        self._clock = clock
        #: Set when something to send was committed.
        self.filled = asyncio.Event()

    async def put(self, connection: Connection, notification: Notification, *, channel_id: int) -> None:
        """Send a notification once the caller's transaction commits; nothing changes if its key is known."""
        await connection.execute_fetchall(
            """INSERT INTO outbox (dedupe_key, job_id, channel_id, notification, nonce, created_at)
               VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (dedupe_key) DO NOTHING""",
            (
                notification.dedupe_key,
                notification.job_id,
                channel_id,
                notification.model_dump_json(exclude_defaults=True),
                new_nonce(),
                self._clock.time(),
            ),
        )
        self._db.after_commit(self.filled.set)

    async def touch_card(self, connection: Connection, job_id: int, *, channel_id: int, at_once: bool = False) -> None:
        """Mark a job's card as stale; `at_once`: its state changed, so the edit is not delayed."""
        await connection.execute_fetchall(
            """INSERT INTO card (job_id, channel_id, version, urgent_version, nonce) VALUES (?1, ?2, 1, 1, ?3)
               ON CONFLICT (job_id) DO UPDATE SET
                   version = version + 1,
                   urgent_version = CASE WHEN ?4 THEN version + 1 ELSE urgent_version END""",
            (job_id, channel_id, new_nonce(), int(at_once)),
        )
        self._db.after_commit(self.filled.set)

    async def depth(self) -> int:
        """Return how many messages wait to be sent, stale cards included."""
        row = await self._db.one(
            """SELECT (SELECT COUNT(*) FROM outbox WHERE state IN ('waiting', 'sending'))
                    + (SELECT COUNT(*) FROM card WHERE shown_version < version AND state != 'dead')"""
        )
        assert row is not None
        return int(row[0])

    async def channels(self) -> list[int]:
        """Return the channels with something to send."""
        rows = await self._db.all(
            """SELECT channel_id FROM outbox WHERE state IN ('waiting', 'sending')
               UNION SELECT channel_id FROM card WHERE shown_version < version AND state != 'dead'"""
        )
        return [row[0] for row in rows]

    async def next_pending(self, channel_id: int) -> Pending | None:
        """Return the oldest notification of a channel that has not been sent."""
        row = await self._db.one(
            "SELECT * FROM outbox WHERE channel_id = ? AND state IN ('waiting', 'sending') ORDER BY id LIMIT 1",
            (channel_id,),
        )
        return _pending(row) if row else None

    async def card(self, job_id: int) -> Card | None:
        """Return the card of a job; None if it has none."""
        row = await self._db.one("SELECT * FROM card WHERE job_id = ?", (job_id,))
        return _card(row) if row else None

    async def changed_cards(self, channel_id: int) -> list[Card]:
        """Return the stale cards of a channel."""
        rows = await self._db.all(
            "SELECT * FROM card WHERE channel_id = ? AND shown_version < version AND state != 'dead' ORDER BY job_id",
            (channel_id,),
        )
        return [_card(row) for row in rows]

    async def mark_pending(
        self,
        pending: Pending,
        state: str | None,
        *,
        message_id: int | None = None,
        reason: str | None = None,
        retry_at: float = 0,
        tries: int | None = None,
    ) -> None:
        """Record how far the sending has got; None keeps the state."""
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(
                """UPDATE outbox SET state = COALESCE(?, state), message_id = ?, reason = ?, retry_at = ?, tries = ?,
                       sent_at = CASE WHEN ?1 = 'sent' THEN ? END WHERE id = ?""",
                (
                    state,
                    message_id,
                    reason,
                    retry_at,
                    pending.tries if tries is None else tries,
                    self._clock.time(),
                    pending.id,
                ),
            )

    async def mark_card_sending(self, card: Card) -> None:
        """Record that the card's message is about to be sent, for the next bot if this one dies."""
        await self._update_card(card, "state = 'sending'")

    async def mark_card_shown(self, card: Card, message_id: int, *, is_new: bool, is_newest: bool = True) -> None:
        """Record that the message shows `card.version`; not `is_newest`: it is of an earlier try, and may be old."""
        created = ", sent_at = :now" if is_new else ""
        shown = "MAX(shown_version, :version)" if is_newest else "shown_version"
        await self._update_card(
            card,
            f"""state = 'sent', message_id = :message_id, shown_at = :now, tries = 0, retry_at = 0, reason = NULL,
                shown_version = {shown}{created}""",
            message_id=message_id,
        )

    async def forget_card_message(self, card: Card) -> Card:
        """Let the card get a new message (deleted, or too old to be edited); returns the card after that."""
        await self._update_card(card, "state = 'waiting', message_id = NULL, nonce = :nonce", nonce=new_nonce())
        found = await self.card(card.job_id)
        assert found is not None
        return found

    async def delay_card(self, card: Card, *, reason: str, retry_at: float) -> None:
        """Record a failure; try again at `retry_at`."""
        await self._update_card(
            card,
            "state = CASE WHEN message_id IS NULL THEN state ELSE 'sent' END, reason = :reason, "
            "retry_at = :retry_at, tries = tries + 1",
            reason=reason,
            retry_at=retry_at,
        )

    async def give_up_card(self, card: Card, *, reason: str) -> None:
        """Record a permanent failure."""
        await self._update_card(card, "state = 'dead', reason = :reason", reason=reason)

    async def _update_card(self, card: Card, changes: str, **values: float | str | None) -> None:
        parameters = {"now": self._clock.time(), "version": card.version, "job_id": card.job_id, **values}
        async with self._db.transaction() as connection:
            # The pieces of SQL are this module's own.
            await connection.execute_fetchall(f"UPDATE card SET {changes} WHERE job_id = :job_id", parameters)


def _pending(row: Row) -> Pending:
    return Pending(
        id=row["id"],
        notification=Notification.model_validate_json(row["notification"]),
        channel_id=row["channel_id"],
        nonce=row["nonce"],
        may_be_there=row["state"] == "sending",
        tries=row["tries"],
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
        is_dead=row["state"] == "dead",
        tries=row["tries"],
        retry_at=row["retry_at"],
        message_id=row["message_id"],
        sent_at=row["sent_at"] or 0.0,
        shown_at=row["shown_at"] or 0.0,
    )
