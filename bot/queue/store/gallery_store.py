"""The gallery of a server: pictures of jobs that their owners show, with the likes of members.

A post, its message in the gallery channel, and the mark that keeps the job's files change in one transaction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from bot.db import Connection, Row, as_stored
from bot.errors import Explained, NotAllowed, NotFound
from bot.queue.domain.job import Job
from bot.queue.store import job_sql
from bot.queue.store.transitions import Transitions, first, only
from trainer.protocol.frozen import Frozen
from trainer.protocol.text import N_

#: Tags of one post, and characters of one.
MAX_TAGS, MAX_TAG_CHARS = 5, 30
#: Choices that Discord shows at once.
_MAX_FACETS = 25


class ShownImage(Frozen):
    """One image of a picture: what it was drawn from."""

    prompt: str
    seed: int
    negative_prompt: str = ""
    #: Of the adapter; None: as it was trained.
    strength: float | None = None


class Picture(Frozen):
    """A file of a job that can be shown: one image, or a sheet of several."""

    #: Below the job's folder.
    path: str
    images: tuple[ShownImage, ...]
    alt_text: str = ""
    #: Whose weights drew it; 0: the base model's; None: not of an epoch.
    epoch: int | None = None


class GallerySort(StrEnum):
    """The order in which posts are browsed."""

    NEWEST = "newest"
    LIKED = "liked"


@dataclass(frozen=True, kw_only=True)
class GalleryFilter:
    """Which posts are browsed; None: any."""

    person: int | None = None
    base: str | None = None
    tag: str | None = None


EVERYTHING = GalleryFilter()


@dataclass(frozen=True, kw_only=True)
class GalleryPost:
    """A picture that a member shows to their server."""

    id: int
    guild_id: int
    job_id: int
    #: The owner of the job.
    owner_id: int
    #: The training whose weights drew it: its settings and files are offered; None: none of this bot's.
    model_job_id: int | None
    picture: Picture
    base: str
    tags: tuple[str, ...]
    likes: int
    created_at: datetime
    is_withdrawn: bool

    @classmethod
    def from_row(cls, row: Row) -> GalleryPost:
        values = as_stored(cls, row) | {
            "picture": Picture.model_validate_json(row["picture"]),
            "tags": tuple(json.loads(row["tags"])),
            "created_at": datetime.fromtimestamp(row["created_at"], UTC),
            "is_withdrawn": row["withdrawn_at"] is not None,
        }
        return cls(**values)


class NoSuchPost(Explained, NotFound):
    """A picture that was withdrawn, or never was in this server's gallery."""

    sentence = N_("This picture is no longer in the gallery. /gallery shows the others.")


class NotYourPicture(Explained, NotAllowed):
    """Another member's picture."""

    owner_id: int
    sentence = N_(
        "This is <@{owner_id}>'s picture. Only they or a manager of the server can change its tags or take it out of "
        "the gallery."
    )


def parse_tags(text: str) -> tuple[str, ...]:
    """Return the tags that a member typed with commas or spaces between them, in lower case; each once."""
    words = (word.strip("#.-_ ").casefold()[:MAX_TAG_CHARS] for word in text.replace(",", " ").split())
    return tuple(dict.fromkeys(filter(None, words)))[:MAX_TAGS]


class GalleryStore:
    """The tables `gallery_post` and `gallery_vote`."""

    def __init__(self, transitions: Transitions) -> None:
        self._transitions = transitions
        self._db = transitions.db

    # -- changes ----------------------------------------------------------------------------------------------------

    async def post(
        self,
        job: Job,
        picture: Picture,
        *,
        model_job_id: int | None,
        base: str,
        tags: Sequence[str] = (),
        channel_id: int,
        by: int,
    ) -> GalleryPost:
        """Show a picture of a job to its server; one that is shown already stays as it is, in its channel.

        The files of both jobs are kept as long as one of their pictures is shown.

        Args:
            job: The training or sampling that drew it.
            picture: A file of the job.
            model_job_id: The training whose weights drew it; None: none of this bot's.
            base: Name of the base model, to browse by.
            tags: As `parse_tags` returns them.
            channel_id: Where its message is posted.
            by: The member who shares it.
        """
        now = self._transitions.clock.time()
        values = {
            "guild_id": job.guild_id,
            "job_id": job.id,
            "owner_id": job.owner_id,
            "model_job_id": model_job_id,
            "path": picture.path,
            "picture": picture.model_dump_json(exclude_defaults=True),
            "base": base,
            "tags": json.dumps(list(tags)),
            "now": now,
        }
        async with self._db.transaction() as connection:
            row = await first(connection, _POST, values)
            if row is not None:
                cards = self._transitions.outbox.cards
                await cards.show_post(connection, job.id, row["id"], channel_id=channel_id)
                for job_id in {job.id, model_job_id} - {None}:
                    await self._mark_job(connection, job_id, is_shared=True, by=by)
            else:
                row = await only(connection, _SHOWN + " AND job_id = :job_id AND path = :path", values)
        return GalleryPost.from_row(row)

    async def vote(self, guild_id: int, post_id: int, user_id: int) -> GalleryPost:
        """Like a post, or take the like back; returns the post after that.

        Raises:
            NoSuchPost: It is not in this server's gallery.
        """
        values = {"id": post_id, "guild_id": guild_id, "user_id": user_id, "now": self._transitions.clock.time()}
        async with self._db.transaction() as connection:
            await _require_shown(connection, values)
            if await first(connection, _UNLIKE, values) is None:
                await connection.execute_fetchall(_LIKE, values)
            row = await only(connection, _COUNT_LIKES, values)
            await self._transitions.outbox.cards.touch_post(connection, post_id)
        return GalleryPost.from_row(row)

    async def tag(self, guild_id: int, post_id: int, tags: Sequence[str]) -> GalleryPost:
        """Replace the tags of a post, as `parse_tags` returns them.

        Raises:
            NoSuchPost: It is not in this server's gallery.
        """
        values = {"id": post_id, "guild_id": guild_id, "tags": json.dumps(list(tags))}
        async with self._db.transaction() as connection:
            await _require_shown(connection, values)
            row = await only(connection, "UPDATE gallery_post SET tags = :tags WHERE id = :id RETURNING *", values)
            await self._transitions.outbox.cards.touch_post(connection, post_id)
        return GalleryPost.from_row(row)

    async def withdraw(self, guild_id: int, post_id: int, *, by: int, can_manage: bool) -> GalleryPost:
        """Take a picture out of the gallery: its message is deleted, and its job's files may be.

        Raises:
            NoSuchPost: It is not in this server's gallery.
            NotYourPicture: It is another member's.
        """
        values = {"id": post_id, "guild_id": guild_id}
        async with self._db.transaction() as connection:
            post = await _require_shown(connection, values)
            if by != post.owner_id and not can_manage:
                raise NotYourPicture(owner_id=post.owner_id)
            await self._withdraw(connection, post, by=by)
        return post

    async def withdraw_all(self, job: Job, *, by: int) -> list[GalleryPost]:
        """Take all pictures of a job, or that its weights drew, out of the gallery; returns them."""
        async with self._db.transaction() as connection:
            rows = await connection.execute_fetchall(_OF_JOB, {"job_id": job.id})
            posts = [GalleryPost.from_row(row) for row in rows]
            for post in posts:
                await self._withdraw(connection, post, by=by)
        return posts

    async def _withdraw(self, connection: Connection, post: GalleryPost, *, by: int) -> None:
        await connection.execute_fetchall(
            "UPDATE gallery_post SET withdrawn_at = ? WHERE id = ?", (self._transitions.clock.time(), post.id)
        )
        await self._transitions.outbox.cards.touch_post(connection, post.id, is_removed=True)
        for job_id in {post.job_id, post.model_job_id} - {None}:
            if await first(connection, _OF_JOB, {"job_id": job_id}) is None:
                await self._mark_job(connection, job_id, is_shared=False, by=by)

    async def _mark_job(self, connection: Connection, job_id: int | None, *, is_shared: bool, by: int) -> None:
        values = {"id": job_id, "is_shared": is_shared, "now": self._transitions.clock.time()}
        row = await only(connection, job_sql.SHARE, values)
        verb = "share" if is_shared else "unshare"
        await self._transitions.record(connection, row, verb=verb, before=row["state"], by=by)

    # -- queries ----------------------------------------------------------------------------------------------------

    async def get(self, post_id: int) -> GalleryPost | None:
        """Return a post, also one that was withdrawn; None if there is none."""
        row = await self._db.one("SELECT * FROM gallery_post WHERE id = ?", (post_id,))
        return None if row is None else GalleryPost.from_row(row)

    async def get_in(self, guild_id: int, post_id: int) -> GalleryPost:
        """Return a post of a server's gallery.

        Raises:
            NoSuchPost: It is not in it.
        """
        row = await self._db.one(_IN_GUILD, {"id": post_id, "guild_id": guild_id})
        if row is None:
            raise NoSuchPost
        return GalleryPost.from_row(row)

    async def browse(
        self,
        guild_id: int,
        wanted: GalleryFilter = EVERYTHING,
        *,
        sort: GallerySort = GallerySort.NEWEST,
        most: int = 25,
        skip: int = 0,
    ) -> list[GalleryPost]:
        """Return posts of a server's gallery.

        Args:
            guild_id: The server.
            wanted: Which of them.
            sort: Their order.
            most: How many.
            skip: Leave out so many of the first.
        """
        order = "likes DESC, id DESC" if sort is GallerySort.LIKED else "id DESC"
        values = {**_filter_values(guild_id, wanted), "most": most, "skip": skip}
        rows = await self._db.all(f"{_BROWSE} ORDER BY {order} LIMIT :most OFFSET :skip", values)
        return [GalleryPost.from_row(row) for row in rows]

    async def count(self, guild_id: int, wanted: GalleryFilter = EVERYTHING) -> int:
        """Return how many posts `browse` finds."""
        row = await self._db.one(f"SELECT COUNT(*) FROM ({_BROWSE})", _filter_values(guild_id, wanted))
        assert row is not None
        return int(row[0])

    async def liked(self, user_id: int, post_ids: Sequence[int]) -> set[int]:
        """Return which of these posts a member likes."""
        rows = await self._db.all(_LIKED, {"user_id": user_id, "posts": json.dumps(list(post_ids))})
        return {row[0] for row in rows}

    async def bases(self, guild_id: int, typed: str = "") -> list[str]:
        """Return the base models of a server's pictures, the most frequent first."""
        return await self._facets(_BASES, guild_id, typed)

    async def tags(self, guild_id: int, typed: str = "") -> list[str]:
        """Return the tags of a server's pictures, the most frequent first."""
        return await self._facets(_TAGS, guild_id, typed)

    async def _facets(self, statement: str, guild_id: int, typed: str) -> list[str]:
        rows = await self._db.all(statement, {"guild_id": guild_id, "typed": typed.strip(), "most": _MAX_FACETS})
        return [row[0] for row in rows]


async def _require_shown(connection: Connection, values: Mapping[str, Any]) -> GalleryPost:
    row = await first(connection, _IN_GUILD, values)
    if row is None:
        raise NoSuchPost
    return GalleryPost.from_row(row)


def _filter_values(guild_id: int, wanted: GalleryFilter) -> dict[str, int | str | None]:
    return {"guild_id": guild_id, "person": wanted.person, "base": wanted.base, "tag": wanted.tag}


_POST = """
INSERT INTO gallery_post (guild_id, job_id, owner_id, model_job_id, path, picture, base, tags, created_at)
VALUES (:guild_id, :job_id, :owner_id, :model_job_id, :path, :picture, :base, :tags, :now)
ON CONFLICT (job_id, path) WHERE withdrawn_at IS NULL DO NOTHING RETURNING *
"""
_SHOWN = "SELECT * FROM gallery_post WHERE withdrawn_at IS NULL"
_OF_JOB = _SHOWN + " AND (job_id = :job_id OR model_job_id = :job_id)"
_IN_GUILD = _SHOWN + " AND id = :id AND guild_id = :guild_id"
_BROWSE = (
    _SHOWN
    + """ AND guild_id = :guild_id AND (:person IS NULL OR owner_id = :person) AND (:base IS NULL OR base = :base)
    AND (:tag IS NULL OR EXISTS (SELECT 1 FROM json_each(tags) WHERE value = :tag))"""
)
_LIKE = "INSERT INTO gallery_vote (post_id, user_id, at) VALUES (:id, :user_id, :now)"
_UNLIKE = "DELETE FROM gallery_vote WHERE post_id = :id AND user_id = :user_id RETURNING post_id"
_LIKED = """
SELECT post_id FROM gallery_vote WHERE user_id = :user_id AND post_id IN (SELECT value FROM json_each(:posts))
"""
_COUNT_LIKES = """
UPDATE gallery_post SET likes = (SELECT COUNT(*) FROM gallery_vote WHERE post_id = :id) WHERE id = :id RETURNING *
"""
_BASES = """
SELECT base FROM gallery_post WHERE withdrawn_at IS NULL AND guild_id = :guild_id AND instr(base, :typed)
GROUP BY base ORDER BY COUNT(*) DESC, base LIMIT :most
"""
_TAGS = """
SELECT value FROM gallery_post, json_each(tags)
WHERE withdrawn_at IS NULL AND guild_id = :guild_id AND instr(value, :typed)
GROUP BY value ORDER BY COUNT(*) DESC, value LIMIT :most
"""
