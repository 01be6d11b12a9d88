"""Links to pages: who may open which page until when. Only the hash of a link's token is stored."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import WebSettings
from bot.db import Database, Row, as_stored
from bot.db.audit import write_entry
from bot.errors import Explained, NotFound
from trainer.protocol.text import N_, _

_TOKEN_BYTES = 32
_DAY_S = 86_400
#: An ended link is known for so long, so that its page can say why it does not open.
_REMEMBERED_S = 30 * _DAY_S

_INSERT = """
INSERT INTO web_link (token_sha256, kind, subject_id, guild_id, user_id, created_at, expires_at)
VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_REVOKE = """
UPDATE web_link SET revoked_at = :now
WHERE kind = :kind AND subject_id = :subject_id AND (:user_id IS NULL OR user_id = :user_id) AND revoked_at IS NULL
"""
#: Of a server: all, or those of one person or to one subject.
_REVOKE_IN = """
UPDATE web_link SET revoked_at = :now
WHERE guild_id = :guild_id AND (:user_id IS NULL OR user_id = :user_id)
    AND (:kind IS NULL OR (kind = :kind AND subject_id = :subject_id)) AND revoked_at IS NULL AND expires_at > :now
RETURNING id
"""
_EXTEND = "UPDATE web_link SET expires_at = MAX(expires_at, ?) WHERE id = ? AND revoked_at IS NULL"


class LinkKind(StrEnum):
    """What a link opens."""

    #: The page that takes the files of an upload; the subject is the interaction that asked for it.
    UPLOAD = "upload"
    #: The results of a job.
    JOB = "job"
    #: The report of a dataset, and decisions about it.
    DATASET = "dataset"
    #: The gallery of a server; it has no subject.
    GALLERY = "gallery"


#: The first part of a page's path, before the token.
PATHS = {LinkKind.UPLOAD: "u", LinkKind.JOB: "j", LinkKind.DATASET: "d", LinkKind.GALLERY: "g"}


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link that was made for one person in one server."""

    id: int
    kind: LinkKind
    #: The job, the dataset, or the interaction of the upload; 0: none.
    subject_id: int
    guild_id: int
    user_id: int
    expires_at: datetime
    is_revoked: bool

    @classmethod
    def from_row(cls, row: Row) -> Link:
        values = as_stored(cls, row) | {
            "kind": LinkKind(row["kind"]),
            "expires_at": datetime.fromtimestamp(row["expires_at"], UTC),
            "is_revoked": row["revoked_at"] is not None,
        }
        return cls(**values)


class NoSuchLink(Explained, NotFound):
    """A page's address that was never given out, or was for another page."""

    sentence = N_("This address opens nothing. Copy the whole link from Discord, or ask for a new one there.")


class LinkEnded(NotFound):
    """A page's address that no longer opens."""

    def __init__(self, *, is_revoked: bool, guild_id: int, job_id: int | None = None) -> None:
        self.is_revoked = is_revoked
        #: Where in Discord there is a button for a new one.
        self.guild_id, self.job_id = guild_id, job_id
        if is_revoked:
            text = _("This link was ended and no longer opens anything. Ask for a new one in Discord.")
        else:
            text = _("This link has expired. Ask for a new one in Discord; nothing was lost.")
        super().__init__(text)


class WebLinks:
    """The table of links."""

    def __init__(self, db: Database, settings: WebSettings, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._db = db
        self._settings = settings
        self._clock = clock

    @property
    def are_on(self) -> bool:
        """Whether there are pages; else `create` makes no link."""
        return self._settings.is_on

    async def create(self, kind: LinkKind, subject_id: int, *, user_id: int, guild_id: int) -> str | None:
        """Make a link for a member and return its address, which is for them alone; None: there are no pages.

        The token is in the address only: to show a link again, make another.
        """
        if not self.are_on:
            return None
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        now = self._clock.time()
        values = (_hashed(token), kind, subject_id, guild_id, user_id, now, now + self._lifetime_s)
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(_INSERT, values)
        return f"{self._settings.public_url.rstrip('/')}/{PATHS[kind]}/{token}"

    async def check(self, token: str, kind: LinkKind) -> Link:
        """Return the link of a token.

        Raises:
            NoSuchLink: There is none of this kind.
            LinkEnded: It has expired, or was revoked.
        """
        row = await self._db.one("SELECT * FROM web_link WHERE token_sha256 = ?", (_hashed(token),))
        link = None if row is None else Link.from_row(row)
        if link is None or link.kind is not kind:
            raise NoSuchLink
        if link.is_revoked or link.expires_at.timestamp() <= self._clock.time():
            job_id = link.subject_id if kind is LinkKind.JOB else None
            raise LinkEnded(is_revoked=link.is_revoked, guild_id=link.guild_id, job_id=job_id)
        return link

    async def extend(self, link: Link) -> None:
        """Let a link that is in use end later: as if it was made now."""
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(_EXTEND, (self._clock.time() + self._lifetime_s, link.id))

    async def revoke(self, kind: LinkKind, subject_id: int, *, user_id: int | None = None) -> int:
        """End all links to a subject, or those of one person; return how many ended."""
        values = {"now": self._clock.time(), "kind": kind, "subject_id": subject_id, "user_id": user_id}
        async with self._db.transaction() as connection:
            return len(list(await connection.execute_fetchall(f"{_REVOKE} RETURNING id", values)))

    async def revoke_in(
        self, guild_id: int, *, by: int, user_id: int | None = None, subject: tuple[LinkKind, int] | None = None
    ) -> int:
        """End the links of a server, or only those of one person or to one subject; return how many ended."""
        kind, subject_id = subject or (None, None)
        values = {"guild_id": guild_id, "user_id": user_id, "kind": kind, "subject_id": subject_id}
        async with self._db.transaction() as connection:
            now = self._clock.time()
            ended = len(list(await connection.execute_fetchall(_REVOKE_IN, {**values, "now": now})))
            job_id = subject_id if kind is LinkKind.JOB else None
            await write_entry(
                connection, at=now, verb="end links", guild_id=guild_id, by=by, job_id=job_id, after=str(ended)
            )
        return ended

    async def forget_ended(self) -> None:
        """Delete the links that ended long ago."""
        before = self._clock.time() - _REMEMBERED_S
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(
                "DELETE FROM web_link WHERE expires_at < ?1 OR revoked_at < ?1", (before,)
            )

    @property
    def _lifetime_s(self) -> float:
        return self._settings.link_days * _DAY_S


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
