"""Who gets the news of a job, and where: each person's choices, their quiet hours, and the jobs they watch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from zoneinfo import ZoneInfo

from bot.db import Connection, Database, Row
from bot.outbox.notification import NotificationKind


class NotifyEvent(StrEnum):
    """News that a person may choose."""

    QUEUED = "queued"
    STARTED = "started"
    EPOCH = "epoch"
    EARLY_STOP = "early_stop"
    DONE = "done"
    #: Also: cancelled by another person.
    FAILED = "failed"


class NotifyPlace(StrEnum):
    """Where a person gets news."""

    #: In the message itself: in the job's thread, of its end in the channel.
    MENTION = "mention"
    DIRECT = "direct"
    NONE = "none"


EVENT_OF: Mapping[NotificationKind, NotifyEvent] = {
    NotificationKind.QUEUED: NotifyEvent.QUEUED,
    NotificationKind.STARTED: NotifyEvent.STARTED,
    NotificationKind.EPOCH: NotifyEvent.EPOCH,
    NotificationKind.EARLY_STOP: NotifyEvent.EARLY_STOP,
    NotificationKind.DONE: NotifyEvent.DONE,
    NotificationKind.DRAWN: NotifyEvent.DONE,
    NotificationKind.FAILED: NotifyEvent.FAILED,
    NotificationKind.CANCELLED: NotifyEvent.FAILED,
}
#: Of who has not chosen. A direct message is never sent unasked.
_DEFAULTS = {NotifyEvent.DONE: NotifyPlace.MENTION, NotifyEvent.FAILED: NotifyPlace.MENTION}


@dataclass(frozen=True, kw_only=True)
class QuietHours:
    """Hours of each day, in minutes since midnight; they may span midnight."""

    begins: int
    ends: int
    zone: str

    def include(self, at: float) -> bool:
        """Return whether a moment, in seconds since the epoch, lies in these hours."""
        local = datetime.fromtimestamp(at, UTC).astimezone(ZoneInfo(self.zone))
        minute = 60 * local.hour + local.minute
        if self.begins <= self.ends:
            return self.begins <= minute < self.ends
        return minute >= self.begins or minute < self.ends


@dataclass(frozen=True, kw_only=True)
class Preferences:
    """What a person chose."""

    places: Mapping[NotifyEvent, NotifyPlace]
    quiet: QuietHours | None = None


@dataclass(frozen=True, kw_only=True)
class Addressee:
    """A person who gets the news of one event."""

    user_id: int
    place: NotifyPlace
    #: It makes no sound now.
    is_quiet: bool


class Audience:
    """The tables `notify_choice`, `quiet_hours` and `watcher`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def preferences(self, user_id: int) -> Preferences:
        """Return what a person chose, and the defaults of the rest."""
        chosen = {
            NotifyEvent(row["event"]): NotifyPlace(row["place"])
            for row in await self._db.all("SELECT event, place FROM notify_choice WHERE user_id = ?", (user_id,))
        }
        row = await self._db.one("SELECT * FROM quiet_hours WHERE user_id = ?", (user_id,))
        places = {event: chosen.get(event, _DEFAULTS.get(event, NotifyPlace.NONE)) for event in NotifyEvent}
        return Preferences(places=places, quiet=None if row is None else _quiet(row))

    async def choose(self, user_id: int, event: NotifyEvent, place: NotifyPlace) -> None:
        """Set where a person is notified of an event."""
        await self._change(
            """INSERT INTO notify_choice (user_id, event, place) VALUES (?, ?, ?)
               ON CONFLICT (user_id, event) DO UPDATE SET place = excluded.place""",
            (user_id, event, place),
        )

    async def set_quiet(self, user_id: int, quiet: QuietHours | None) -> None:
        """Set a person's quiet hours; None: they have none."""
        if quiet is None:
            await self._change("DELETE FROM quiet_hours WHERE user_id = ?", (user_id,))
        else:
            await self._change(
                "INSERT OR REPLACE INTO quiet_hours (user_id, begins, ends, zone) VALUES (?, ?, ?, ?)",
                (user_id, quiet.begins, quiet.ends, quiet.zone),
            )

    async def is_watching(self, job_id: int, user_id: int, *, owner_id: int) -> bool:
        """Whether a person is notified of a job; its owner is, unless they chose not to be."""
        row = await self._db.one("SELECT is_watching FROM watcher WHERE job_id = ? AND user_id = ?", (job_id, user_id))
        return user_id == owner_id if row is None else bool(row[0])

    async def watch(self, job_id: int, user_id: int, *, is_watching: bool) -> None:
        """Notify a person of a job from now on, or no more."""
        await self._change(
            """INSERT INTO watcher (job_id, user_id, is_watching) VALUES (?, ?, ?)
               ON CONFLICT (job_id, user_id) DO UPDATE SET is_watching = excluded.is_watching""",
            (job_id, user_id, int(is_watching)),
        )

    async def of(
        self, connection: Connection, event: NotifyEvent, *, job_id: int, owner_id: int, at: float
    ) -> list[Addressee]:
        """Return whom an event of a job reaches, in the caller's transaction: its owner and those who watch it."""
        rows = await connection.execute_fetchall(_ADDRESSEES, {"event": event, "job_id": job_id, "owner_id": owner_id})
        default = _DEFAULTS.get(event, NotifyPlace.NONE)
        found = [
            Addressee(
                user_id=row["user_id"],
                place=NotifyPlace(row["place"] or default),
                is_quiet=row["zone"] is not None and _quiet(row).include(at),
            )
            for row in rows
        ]
        return [each for each in found if each.place is not NotifyPlace.NONE]

    async def _change(self, statement: str, values: tuple[int | str, ...]) -> None:
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(statement, values)


_ADDRESSEES = """
WITH people AS (
    SELECT :owner_id AS user_id UNION SELECT user_id FROM watcher WHERE job_id = :job_id AND is_watching
    EXCEPT SELECT user_id FROM watcher WHERE job_id = :job_id AND NOT is_watching)
SELECT people.user_id, place, begins, ends, zone FROM people
LEFT JOIN notify_choice ON notify_choice.user_id = people.user_id AND notify_choice.event = :event
LEFT JOIN quiet_hours ON quiet_hours.user_id = people.user_id
ORDER BY people.user_id
"""


def _quiet(row: Row) -> QuietHours:
    return QuietHours(begins=row["begins"], ends=row["ends"], zone=row["zone"])
