"""The outbox's tables: posts that each go out once, and one card for each job, which shows only the newest state."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from bot.db import Connection, Database, Row
from bot.outbox.notice import Notice, NoticeKind


def marker(nonce: str) -> str:
    """What a message carries in its footer (`job 42 · 3fa8c1d2`), so that it can be found again."""
    return nonce[:8]


def new_nonce() -> str:
    """24 characters; Discord takes 25."""
    return secrets.token_hex(12)


@dataclass(frozen=True, kw_only=True)
class Posting:
    """A post that has not gone out."""

    id: int
    notice: Notice
    channel_id: int
    nonce: str
    #: It was being sent when the last bot died: it may be in the channel.
    may_be_there: bool
    tries: int
    retry_at: float


@dataclass(frozen=True, kw_only=True)
class Card:
    """The live card of a job and what is shown of it."""

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
    #: When the message was made, and when it was last sent or edited.
    sent_at: float
    shown_at: float

    @property
    def notice(self) -> Notice:
        return Notice(kind=NoticeKind.CARD, job_id=self.job_id, attempt=0)

    @property
    def is_changed(self) -> bool:
        return not self.is_dead and self.shown_version < self.version

    @property
    def is_urgent(self) -> bool:
        return self.message_id is None or self.shown_version < self.urgent_version


class Outbox:
    """The way in, for whoever changes a state; `unsent` and the rest is the sender's."""

    def __init__(self, db: Database, *, now: Callable[[], float] = time.time) -> None:
        self._db = db
        self._now = now
        #: Set when something to send was committed.
        self.filled = asyncio.Event()

    async def put(self, connection: Connection, notice: Notice, *, channel_id: int, dedupe_key: str) -> None:
        """Send `notice` once the caller's transaction is committed; a key that was there before changes nothing."""
        await connection.execute_fetchall(
            """INSERT INTO outbox (dedupe_key, job_id, channel_id, notice, nonce, created_at)
               VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (dedupe_key) DO NOTHING""",
            (dedupe_key, notice.job_id, channel_id, notice.model_dump_json(), new_nonce(), self._now()),
        )
        self._db.after_commit(self.filled.set)

    async def touch_card(self, connection: Connection, job_id: int, *, channel_id: int, at_once: bool = False) -> None:
        """The job's card no longer shows the truth; `at_once` for a change of state."""
        await connection.execute_fetchall(
            """INSERT INTO card (job_id, channel_id, version, urgent_version, nonce) VALUES (?1, ?2, 1, 1, ?3)
               ON CONFLICT (job_id) DO UPDATE SET
                   version = version + 1,
                   urgent_version = CASE WHEN ?4 THEN version + 1 ELSE urgent_version END""",
            (job_id, channel_id, new_nonce(), int(at_once)),
        )
        self._db.after_commit(self.filled.set)

    async def card_message(self, job_id: int) -> tuple[int, int] | None:
        """(channel id, message id) of the job's card, None while it is not posted."""
        row = await self._db.one("SELECT channel_id, message_id FROM card WHERE job_id = ?", (job_id,))
        return (row["channel_id"], row["message_id"]) if row and row["message_id"] is not None else None

    async def depth(self) -> int:
        """Messages that wait to be sent, changed cards included."""
        row = await self._db.one(
            """SELECT (SELECT COUNT(*) FROM outbox WHERE state IN ('waiting', 'sending'))
                    + (SELECT COUNT(*) FROM card WHERE shown_version < version AND state != 'dead')"""
        )
        assert row is not None
        return int(row[0])

    async def channels(self) -> list[int]:
        """Channels that something is to be sent to."""
        rows = await self._db.all(
            """SELECT channel_id FROM outbox WHERE state IN ('waiting', 'sending')
               UNION SELECT channel_id FROM card WHERE shown_version < version AND state != 'dead'"""
        )
        return [row[0] for row in rows]

    async def next_posting(self, channel_id: int) -> Posting | None:
        """The oldest post of a channel that has not gone out."""
        row = await self._db.one(
            "SELECT * FROM outbox WHERE channel_id = ? AND state IN ('waiting', 'sending') ORDER BY id LIMIT 1",
            (channel_id,),
        )
        return _posting(row) if row else None

    async def card(self, job_id: int) -> Card | None:
        """The card of a job, None if it has none."""
        row = await self._db.one("SELECT * FROM card WHERE job_id = ?", (job_id,))
        return _card(row) if row else None

    async def changed_cards(self, channel_id: int) -> list[Card]:
        """Cards of a channel that show less than the newest state."""
        rows = await self._db.all(
            "SELECT * FROM card WHERE channel_id = ? AND shown_version < version AND state != 'dead' ORDER BY job_id",
            (channel_id,),
        )
        return [_card(row) for row in rows]

    async def mark_posting(
        self,
        posting: Posting,
        state: str | None,
        *,
        message_id: int | None = None,
        reason: str | None = None,
        retry_at: float = 0,
        tries: int | None = None,
    ) -> None:
        """Write down how far a post has come; None leaves its state as it is."""
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(
                """UPDATE outbox SET state = COALESCE(?, state), message_id = ?, reason = ?, retry_at = ?, tries = ?,
                       sent_at = CASE WHEN ?1 = 'sent' THEN ? END WHERE id = ?""",
                (
                    state,
                    message_id,
                    reason,
                    retry_at,
                    posting.tries if tries is None else tries,
                    self._now(),
                    posting.id,
                ),
            )

    async def mark_card_sending(self, card: Card) -> None:
        """The card's message is about to be made; a bot that dies now leaves this behind."""
        await self._update_card(card, "state = 'sending'")

    async def mark_card_shown(self, card: Card, message_id: int, *, is_new: bool, is_newest: bool = True) -> None:
        """The message shows `card.version`; not `is_newest`: it may show less, being made before a failure."""
        made = ", sent_at = :now" if is_new else ""
        shown = "MAX(shown_version, :version)" if is_newest else "shown_version"
        await self._update_card(
            card,
            f"""state = 'sent', message_id = :message_id, shown_at = :now, tries = 0, retry_at = 0, reason = NULL,
                shown_version = {shown}{made}""",
            message_id=message_id,
        )

    async def forget_card_message(self, card: Card) -> Card:
        """The card needs a new message (deleted, or too old to be edited); returns it as it is now."""
        await self._update_card(card, "state = 'waiting', message_id = NULL, nonce = :nonce", nonce=new_nonce())
        found = await self.card(card.job_id)
        assert found is not None
        return found

    async def delay_card(self, card: Card, *, reason: str, retry_at: float) -> None:
        """It did not work now."""
        await self._update_card(
            card,
            "state = CASE WHEN message_id IS NULL THEN state ELSE 'sent' END, reason = :reason, "
            "retry_at = :retry_at, tries = tries + 1",
            reason=reason,
            retry_at=retry_at,
        )

    async def bury_card(self, card: Card, *, reason: str) -> None:
        """It will never work."""
        await self._update_card(card, "state = 'dead', reason = :reason", reason=reason)

    async def _update_card(self, card: Card, changes: str, **values: float | str | None) -> None:
        parameters = {"now": self._now(), "version": card.version, "job_id": card.job_id, **values}
        async with self._db.transaction() as connection:
            # The pieces of SQL are this module's own.
            await connection.execute_fetchall(f"UPDATE card SET {changes} WHERE job_id = :job_id", parameters)


def _posting(row: Row) -> Posting:
    return Posting(
        id=row["id"],
        notice=Notice.model_validate_json(row["notice"]),
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
