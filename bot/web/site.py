"""What the pages share: their services, the visit of a link, and how often it may ask."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import urlsplit

from aiohttp import web
from discord.app_commands import Cooldown

from bot.access import Ability, Access
from bot.config import Config
from bot.datasets import DatasetStore, PendingUpload, PendingUploads, ResumableUploads, UploadKind
from bot.errors import TooOften
from bot.languages import Languages
from bot.outbox import Outbox
from bot.queue import JobStore
from bot.queue.store.limits import RoleLimits
from bot.web.links import PATHS, Link, LinkKind, NoSuchLink, WebLinks
from bot.web.visitors import Visitor, Visitors
from trainer.protocol.text import ENGLISH, speak

log = logging.getLogger(__name__)

#: Requests of one link: those that run at the same time, and that run or wait; and how many in a period. A page may
#: have a thousand pictures, and a small file takes two requests to arrive.
_AT_ONCE, _WAITING = 24, 250
_USES, _PER_S = 3000, 60.0
#: Addresses that opened nothing, by the computer that asked for them.
_MISSES, _MISSES_PER_S = 30, 60.0
#: Links and computers whose requests are counted.
_COUNTED = 2000


class RequestCounts:
    """How often each link is used, and how often each computer asks for what is not there."""

    def __init__(self) -> None:
        self._uses: OrderedDict[object, Cooldown] = OrderedDict()
        #: Requests of each link that run or wait, and the limit of those that run.
        self._asking = Counter[int]()
        self._running: dict[int, asyncio.Semaphore] = {}

    @asynccontextmanager
    async def admit(self, link: Link) -> AsyncIterator[None]:
        """Count a request of a link, and let only so many of them run at once.

        A browser asks for all pictures of a page at the same time over HTTP/2: some wait.

        Raises:
            TooOften: It sends too many.
        """
        self._count(link.id, _USES, _PER_S)
        if self._asking[link.id] >= _WAITING:
            raise TooOften(uses=_WAITING, per_s=1, wait_s=1)
        self._asking[link.id] += 1
        try:
            async with self._running.setdefault(link.id, asyncio.Semaphore(_AT_ONCE)):
                yield
        finally:
            self._asking[link.id] -= 1
            if self._asking[link.id] <= 0:
                del self._asking[link.id], self._running[link.id]

    def count_miss(self, address: str) -> None:
        """Count an address that opened nothing.

        Raises:
            TooOften: The computer tries too many.
        """
        self._count(address, _MISSES, _MISSES_PER_S)

    def _count(self, key: object, uses: int, per_s: float) -> None:
        bucket = self._uses.setdefault(key, Cooldown(uses, per_s))
        self._uses.move_to_end(key)
        if len(self._uses) > _COUNTED:
            self._uses.popitem(last=False)
        if (wait_s := bucket.update_rate_limit()) is not None:
            raise TooOften(uses=uses, per_s=per_s, wait_s=wait_s)


@dataclass(frozen=True, kw_only=True)
class Site:
    """The services that pages use."""

    config: Config
    links: WebLinks
    visitors: Visitors
    languages: Languages
    access: Access
    jobs: JobStore
    datasets: DatasetStore
    uploads: PendingUploads
    resumable: ResumableUploads
    #: Let an upload be prepared whose files are all there.
    finish_upload: Callable[[int], None]
    limits: RoleLimits
    outbox: Outbox
    counts: RequestCounts = field(default_factory=RequestCounts)

    async def max_upload_bytes(self, visitor: Visitor) -> int:
        """What one dataset of a member may have that comes by the page: as configured, or as their roles say."""
        by_role = await self.limits.dataset_bytes_of_roles(visitor.guild_id, visitor.role_ids)
        configured = self.config.web.max_upload_bytes
        return configured if by_role is None else min(configured, by_role)

    @property
    def base_path(self) -> str:
        """The path of the public address: a proxy may serve the pages below one."""
        return urlsplit(self.config.web.public_url).path.rstrip("/")

    @property
    def origin(self) -> str:
        """Where browsers see the pages: `https://darkroom.example.org`."""
        parts = urlsplit(self.config.web.public_url)
        return f"{parts.scheme}://{parts.netloc}"


SITE = web.AppKey("site", Site)
#: In a request: the server of its link.
GUILD = web.RequestKey("guild", int)


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A request by a link: who asks, and for what."""

    site: Site
    request: web.Request
    link: Link
    visitor: Visitor

    def path(self, *parts: str) -> str:
        """An address below the link: `visit.path("files")`; without parts, of the page itself."""
        token = self.request.match_info["token"]
        return "/".join((self.site.base_path, PATHS[self.link.kind], token, *parts))


Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
Page: TypeAlias = Callable[[Visit], Awaitable[web.StreamResponse]]


def page_of(kind: LinkKind) -> Callable[[Page], Handler]:
    """Make a handler of aiohttp of one that answers the visit of a link: `/u/{token}/…`.

    The link is checked and counted, the member is looked up, and the page speaks their language.
    """

    def with_page(page: Page) -> Handler:
        @functools.wraps(page)
        async def handle(request: web.Request) -> web.StreamResponse:
            site = request.app[SITE]
            speak(accepted_language(request))
            try:
                link = await site.links.check(request.match_info["token"], kind)
            except NoSuchLink:
                site.counts.count_miss(remote_address(request))
                raise
            request[GUILD] = link.guild_id
            async with site.counts.admit(link):
                speak(site.languages.of_person(link.user_id))
                visitor = await site.visitors.find(link.guild_id, link.user_id)
                return await page(Visit(site=site, request=request, link=link, visitor=visitor))

        return handle

    return with_page


async def upload_of(visit: Visit) -> PendingUpload | None:
    """Return the upload of a link; None once it has been answered or cancelled.

    Raises:
        RoleNeeded: Its member may no longer do what they uploaded for.
    """
    upload = await visit.site.uploads.find(visit.link.subject_id)
    if upload is not None:
        ability = Ability.TRAIN if upload.kind is UploadKind.FINETUNE else Ability.DATASETS
        visit.site.visitors.require(visit.visitor, ability)
    return upload


def accepted_language(request: web.Request) -> str:
    """The language that a browser asks for, for pages that know no member."""
    return "zh_CN" if request.headers.get("Accept-Language", "").lower().startswith("zh") else ENGLISH


def whole_number(text: str) -> int | None:
    """The positive number that a form or an address holds; None if that is none, or longer than any of ours."""
    return int(text) or None if text.isascii() and text.isdigit() and len(text) < 19 else None


def remote_address(request: web.Request) -> str:
    """The computer that asks: behind a proxy of this machine or network, the one that the proxy names."""
    peer = request.remote or ""
    try:
        is_near = ipaddress.ip_address(peer).is_private
    except ValueError:
        return peer
    forwarded = request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()
    return forwarded if is_near and forwarded else peer
