"""`/g/{token}`: the pictures that the members of a server show, to look at and to like."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from aiohttp import web

from bot.errors import NoSuchJob
from bot.queue.store.gallery_store import GalleryFilter, GalleryPost, GallerySort, NoSuchPost
from bot.web.links import LinkKind
from bot.web.rendering import render
from bot.web.served_files import ServedFile, send_file
from bot.web.site import Visit, page_of, whole_number
from trainer.protocol.text import _

PAGE_SIZE = 24


@dataclass(frozen=True, kw_only=True)
class ShownPost:
    """A picture of the gallery, as its page shows it."""

    post: GalleryPost
    #: Of its owner, as the server calls them.
    owner: str
    #: The member has liked it.
    is_liked: bool
    #: Its file is there.
    is_there: bool
    #: Of the training that drew it; empty: none of this bot's.
    trigger: str

    @property
    def words(self) -> str:
        """What the picture shows."""
        return self.post.picture.alt_text or "; ".join(image.prompt for image in self.post.picture.images)


@page_of(LinkKind.GALLERY)
async def gallery_page(visit: Visit) -> web.StreamResponse:
    """The newest or the most liked pictures of the server, of a base or with a tag."""
    query = visit.request.query
    gallery, guild_id = visit.site.jobs.gallery, visit.link.guild_id
    wanted = GalleryFilter(
        person=_number(query, "person"), base=query.get("base") or None, tag=query.get("tag") or None
    )
    sort = GallerySort.LIKED if query.get("sort") == GallerySort.LIKED else GallerySort.NEWEST
    total = await gallery.count(guild_id, wanted)
    pages = max(1, -(-total // PAGE_SIZE))
    page = min(_number(query, "page") or 1, pages)
    posts = await gallery.browse(guild_id, wanted, sort=sort, most=PAGE_SIZE, skip=(page - 1) * PAGE_SIZE)
    liked = await gallery.liked(visit.visitor.user_id, [post.id for post in posts])
    names = await visit.site.visitors.names(guild_id, {post.owner_id for post in posts})
    shown = [await _shown(visit, post, names.get(post.owner_id, ""), is_liked=post.id in liked) for post in posts]
    return render(
        visit.request,
        "gallery.html.j2",
        path=visit.path,
        link=lambda **changes: _address(visit, {**query, **{name: str(value) for name, value in changes.items()}}),
        posts=shown,
        total=total,
        page=page,
        pages=pages,
        wanted=wanted,
        person=names.get(wanted.person or 0, ""),
        sort=sort,
        bases=await gallery.bases(guild_id),
        tags=await gallery.tags(guild_id),
        expires_at=visit.link.expires_at,
    )


@page_of(LinkKind.GALLERY)
async def gallery_picture(visit: Visit) -> web.StreamResponse:
    """The file of a picture that is in the gallery now."""
    post = await _post(visit)
    file = await _file(visit, post)
    return await send_file(visit.request, file, is_download="download" in visit.request.query)


@page_of(LinkKind.GALLERY)
async def like_picture(visit: Visit) -> web.StreamResponse:
    """Like a picture, or take that back."""
    post = await _post(visit)
    form = await visit.request.post()
    await visit.site.jobs.gallery.vote(visit.link.guild_id, post.id, visit.visitor.user_id)
    kept = {name: value for name, value in form.items() if isinstance(value, str)}
    raise web.HTTPSeeOther(f"{_address(visit, kept)}#post-{post.id}")


def gallery_routes() -> list[web.RouteDef]:
    """The addresses of these pages."""
    return [
        web.get("/g/{token}", gallery_page),
        web.get("/g/{token}/pictures/{post}", gallery_picture),
        web.post("/g/{token}/pictures/{post}/like", like_picture),
    ]


def _number(query: Mapping[str, str], name: str) -> int | None:
    return whole_number(query.get(name, ""))


def _address(visit: Visit, query: Mapping[str, str]) -> str:
    kept = {name: query[name] for name in ("person", "base", "tag", "sort", "page") if query.get(name)}
    return f"{visit.path()}?{urlencode(kept)}" if kept else visit.path()


async def _post(visit: Visit) -> GalleryPost:
    number = _number(visit.request.match_info, "post")
    if number is None:
        raise NoSuchPost
    return await visit.site.jobs.gallery.get_in(visit.link.guild_id, number)


async def _file(visit: Visit, post: GalleryPost) -> ServedFile:
    """The file of a post, below one of the folders of pictures of its job."""
    job = await visit.site.jobs.get_in(visit.link.guild_id, post.job_id)
    top, _slash, rest = post.picture.path.partition("/")
    name = f"{job.name}-{post.id}.{rest.rpartition('.')[2]}"
    return ServedFile(folder=visit.site.jobs.job_dir(job) / top, path=rest or top, name=name)


async def _shown(visit: Visit, post: GalleryPost, owner: str, *, is_liked: bool) -> ShownPost:
    trigger = ""
    if post.model_job_id is not None:
        model = await visit.site.jobs.get_in(visit.link.guild_id, post.model_job_id)
        trigger = model.spec.training.trigger
    try:
        file = await _file(visit, post)
        is_there = await asyncio.to_thread(lambda: file.bytes) is not None
    except NoSuchJob:
        is_there = False
    return ShownPost(
        post=post, owner=owner or _("a former member"), is_liked=is_liked, is_there=is_there, trigger=trigger
    )
