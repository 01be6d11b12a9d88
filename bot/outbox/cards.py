"""The messages of a job that are edited: its live card, from which its thread starts; where it has no thread, one
message with the newest of what would be there; and its pictures in the gallery. That of an upload
by page is of no job. Only the newest state of each is sent.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bot.clock import Clock
from bot.db import Connection, Database, Row, as_stored
from bot.outbox.notification import Notification, NotificationKind

#: A job has a thread only as long as its card says so: it cannot have one, or lost it.
NO_THREAD = 0
#: What else the message of a job without a thread shows, beside the newest samples.
_MAX_OTHER_PARTS = 2
_WITH_SAMPLES = frozenset({NotificationKind.BASE, NotificationKind.EPOCH})


def new_nonce() -> str:
    """Return 24 random characters; Discord accepts 25."""
    return secrets.token_hex(12)


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


@dataclass(frozen=True, kw_only=True)
class Card:
    """A message of a job that is edited, and how much of the job it shows."""

    job_id: int
    #: `CARD`, `LATEST` with its parts, or `GALLERY` with its post.
    kind: NotificationKind
    parts: tuple[Notification, ...]
    post_id: int
    #: The message is to be deleted.
    is_removed: bool
    channel_id: int
    #: Of a card: the job's thread; None: it has none yet; `NO_THREAD`: it gets none.
    thread_id: int | None
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
        return Notification(kind=self.kind, job_id=self.job_id, parts=self.parts, post_id=self.post_id)

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


def newest_parts(notifications: Iterable[Notification]) -> tuple[Notification, ...]:
    """Return what the message of a job without a thread shows of all that would be in the thread, oldest first."""
    samples: list[Notification] = []
    others: list[Notification] = []
    for notification in notifications:
        part = notification.model_copy(update={"epochs": 1, "mentions": ()})
        (samples if part.kind in _WITH_SAMPLES else others).append(part)
    kept = (*samples[-1:], *others[-_MAX_OTHER_PARTS:])
    return tuple(sorted(kept, key=lambda part: part.seq))


class Cards:
    """The table `card`."""

    def __init__(self, db: Database, filled: asyncio.Event, *, clock: Clock) -> None:
        self._db = db
        self._filled = filled
        self._clock = clock

    async def touch(
        self,
        connection: Connection,
        job_id: int,
        *,
        channel_id: int,
        at_once: bool = False,
        is_threaded: bool = True,
    ) -> None:
        """Mark a job's card as stale; `at_once`: its state changed, so the edit is not delayed.

        A new card gets a thread, if `is_threaded`.
        """
        await self.touch_all(connection, [(job_id, channel_id)], at_once=at_once, is_threaded=is_threaded)

    async def touch_all(
        self,
        connection: Connection,
        cards: Iterable[tuple[int, int]],
        *,
        at_once: bool = False,
        is_threaded: bool = True,
    ) -> None:
        """As `touch`, for jobs and their channels; all of them cost little more than one."""
        await connection.executemany(
            """INSERT INTO card (job_id, channel_id, version, urgent_version, nonce, thread_id)
               VALUES (?1, ?2, 1, 1, ?3, ?5)
               ON CONFLICT (job_id, kind, post_id) DO UPDATE SET
                   version = version + 1,
                   urgent_version = CASE WHEN ?4 THEN version + 1 ELSE urgent_version END""",
            [
                (job_id, channel_id, new_nonce(), int(at_once), None if is_threaded else NO_THREAD)
                for job_id, channel_id in cards
            ],
        )
        self._db.after_commit(self._filled.set)

    async def show_latest(
        self, connection: Connection, job_id: int, news: Sequence[Notification], *, channel_id: int
    ) -> None:
        """Show the newest notifications of a job that has no thread in one message of its channel, in the caller's
        transaction."""
        rows = await connection.execute_fetchall(
            "SELECT parts FROM card WHERE job_id = ? AND kind = 'latest'", (job_id,)
        )
        shown = [part for row in rows for part in _parts(row["parts"])]
        parts = [part.model_dump(mode="json", exclude_defaults=True) for part in newest_parts([*shown, *news])]
        await connection.execute_fetchall(
            """INSERT INTO card (job_id, kind, channel_id, parts, version, urgent_version, nonce)
               VALUES (?1, 'latest', ?2, ?3, 1, 1, ?4)
               ON CONFLICT (job_id, kind, post_id) DO UPDATE SET version = version + 1, parts = ?3""",
            (job_id, channel_id, json.dumps(parts), new_nonce()),
        )
        self._db.after_commit(self._filled.set)

    async def show_post(self, connection: Connection, job_id: int, post_id: int, *, channel_id: int) -> None:
        """Post a picture of a job to the gallery's channel, once the caller's transaction commits."""
        await connection.execute_fetchall(
            """INSERT INTO card (job_id, kind, post_id, channel_id, version, urgent_version, nonce)
               VALUES (?, 'gallery', ?, ?, 1, 1, ?)""",
            (job_id, post_id, channel_id, new_nonce()),
        )
        self._db.after_commit(self._filled.set)

    async def touch_post(self, connection: Connection, post_id: int, *, is_removed: bool = False) -> None:
        """Let the message of a picture be edited or deleted at once, in the caller's transaction."""
        await connection.execute_fetchall(
            """UPDATE card SET version = version + 1, urgent_version = version + 1,
                   is_removed = MAX(is_removed, ?1)
               WHERE kind = 'gallery' AND post_id = ?2""",
            (int(is_removed), post_id),
        )
        self._db.after_commit(self._filled.set)

    async def show_upload(self, connection: Connection, interaction_id: int, *, channel_id: int) -> None:
        """Show how much of an upload has arrived, once the caller's transaction commits."""
        await connection.execute_fetchall(
            """INSERT INTO card (job_id, kind, post_id, channel_id, version, urgent_version, nonce)
               VALUES (0, 'upload', ?, ?, 1, 1, ?)
               ON CONFLICT (job_id, kind, post_id) DO UPDATE SET version = version + 1""",
            (interaction_id, channel_id, new_nonce()),
        )
        self._db.after_commit(self._filled.set)

    async def remove_upload(self, connection: Connection, interaction_id: int) -> None:
        """Let the message of an upload be deleted, in the caller's transaction: it has been answered."""
        await connection.execute_fetchall(
            """UPDATE card SET version = version + 1, urgent_version = version + 1, is_removed = 1
               WHERE kind = 'upload' AND post_id = ?""",
            (interaction_id,),
        )
        self._db.after_commit(self._filled.set)

    async def of(self, job_id: int, kind: NotificationKind = NotificationKind.CARD, *, post_id: int = 0) -> Card | None:
        """Return the card of a job, or another of its messages; None if it has none."""
        row = await self._db.one(
            "SELECT * FROM card WHERE job_id = ? AND kind = ? AND post_id = ?", (job_id, kind, post_id)
        )
        return _card(row) if row else None

    async def of_post(self, post_id: int) -> Card | None:
        """Return the message of a picture."""
        row = await self._db.one("SELECT * FROM card WHERE kind = 'gallery' AND post_id = ?", (post_id,))
        return _card(row) if row else None

    async def changed(self, channel_id: int) -> list[Card]:
        """Return the stale messages of a channel."""
        rows = await self._db.all(
            "SELECT * FROM card WHERE channel_id = ? AND shown_version < version ORDER BY kind, job_id, post_id",
            (channel_id,),
        )
        return [_card(row) for row in rows]

    async def mark_sending(self, card: Card) -> None:
        """Record that the message is about to be sent, for the next bot if this one dies."""
        await self._update(card, "state = 'sending'")

    async def mark_shown(self, card: Card, message_id: int | None, *, is_new: bool, is_newest: bool = True) -> None:
        """Record that the message shows `card.version`; not `is_newest`: it is of an earlier try, and may be old."""
        created = ", sent_at = :now" if is_new else ""
        shown = "MAX(shown_version, :version)" if is_newest else "shown_version"
        await self._update(
            card,
            f"""state = 'sent', message_id = :message_id, shown_at = :now, tries = 0, errors = 0, retry_at = 0,
                reason = NULL, shown_version = {shown}{created}""",
            message_id=message_id,
        )

    async def forget_message(self, card: Card) -> Card:
        """Let the card get a new message (deleted, or edited too often); returns the card after that."""
        await self._update(
            card,
            "state = 'waiting', message_id = NULL, nonce = :nonce, version = MAX(version, shown_version + 1)",
            nonce=new_nonce(),
        )
        self._filled.set()
        found = await self.of(card.job_id, card.kind, post_id=card.post_id)
        assert found is not None
        return found

    async def set_thread(self, card: Card, thread_id: int) -> None:
        """Record the thread of a job, or `NO_THREAD`; the card may link to it."""
        await self._update(card, "thread_id = :thread_id", thread_id=thread_id)

    async def delay(self, card: Card, failure: Failure) -> None:
        """Record a failed try, and when the next one is."""
        await self._update(card, DELAYED_CARD, **failure_values(failure))

    async def skip_version(self, card: Card, failure: Failure) -> None:
        """Leave this version of the card out: it is refused; the next change is tried again."""
        await self._update(
            card, f"{DELAYED_CARD}, shown_version = MAX(shown_version, :version)", **failure_values(failure)
        )

    async def _update(self, card: Card, changes: str, **values: float | str | None) -> None:
        named = {
            "now": self._clock.time(),
            "version": card.version,
            "job_id": card.job_id,
            "kind": card.kind,
            "post_id": card.post_id,
            **values,
        }
        async with self._db.transaction() as connection:
            # The pieces of SQL are this package's own.
            await connection.execute_fetchall(
                f"UPDATE card SET {changes} WHERE job_id = :job_id AND kind = :kind AND post_id = :post_id", named
            )


#: What a failed try changes in a row of either table.
DELAYED = """state = CASE WHEN :may_exist THEN state ELSE 'waiting' END, reason = :reason, retry_at = :retry_at,
    tries = tries + :counted, errors = errors + :errors"""
DELAYED_CARD = DELAYED.replace("state = CASE", "state = CASE WHEN message_id IS NOT NULL THEN 'sent'")


def failure_values(failure: Failure) -> dict[str, float | str | None]:
    """Return the parameters of `DELAYED`."""
    return {
        "reason": failure.reason,
        "retry_at": failure.retry_at,
        "may_exist": failure.may_exist,
        "counted": int(failure.is_counted),
        "errors": int(failure.is_error),
    }


def _parts(text: str | None) -> tuple[Notification, ...]:
    return tuple(Notification.model_validate(part) for part in json.loads(text or "[]"))


def _card(row: Row) -> Card:
    values = as_stored(Card, row) | {
        "kind": NotificationKind(row["kind"]),
        "parts": _parts(row["parts"]),
        "is_removed": bool(row["is_removed"]),
        "may_be_there": row["state"] == "sending",
        "sent_at": row["sent_at"] or 0.0,
        "shown_at": row["shown_at"] or 0.0,
    }
    return Card(**values)
