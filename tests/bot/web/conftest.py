"""The pages on a real server, over a real database, for members whom a test names."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import BaseTestServer, TestServer

from bot.access import Access
from bot.config import Config, LimitSettings, WebSettings
from bot.datasets import DatasetStore, PendingUploads, ResumableUploads
from bot.db import Database
from bot.languages import Languages
from bot.outbox import Outbox
from bot.queue import Job, JobStore
from bot.queue.store.limits import RoleLimits
from bot.web import LinkKind, WebLinks
from bot.web.pages import page_routes
from bot.web.server import make_application
from bot.web.site import Site
from bot.web.visitors import NotAMember, Visitor, Visitors
from tests.bot.cogs.conftest import forked_trainer
from tests.bot.conftest import GUILD, Submit, claim, submitter
from tests.bot.fakes import FakeClock
from trainer.protocol.events import Event

#: A member with a dataset and jobs, another one, one who manages the server, and one of no server of the bot.
ANA, BEN, LEAD, STRANGER = 1, 2, 3, 4


class KnownVisitors(Visitors):
    """Members of one server, without a Discord to ask."""

    def __init__(self, access: Access) -> None:
        super().__init__(lambda: None, access)
        self.members = {
            ANA: self.member(ANA, "Ana"),
            BEN: self.member(BEN, "Ben"),
            LEAD: self.member(LEAD, "Lea", can_manage=True),
        }

    @staticmethod
    def member(user_id: int, name: str, *, can_manage: bool = False) -> Visitor:
        return Visitor(user_id=user_id, guild_id=GUILD, name=name, role_ids=frozenset(), can_manage=can_manage)

    async def find(self, guild_id: int, user_id: int) -> Visitor:
        if guild_id != GUILD or user_id not in self.members:
            raise NotAMember
        return self.members[user_id]


@dataclass
class Pages:
    """The running pages, and a browser without a window."""

    site: Site
    server: BaseTestServer
    browser: aiohttp.ClientSession
    clock: FakeClock
    submit: Submit
    #: Uploads that were closed, by their interaction.
    closed: list[int] = field(default_factory=list)
    language: dict[str, str] = field(default_factory=dict)

    async def link(self, kind: LinkKind, subject_id: int = 0, user_id: int = ANA, guild_id: int = GUILD) -> str:
        """Make a link, and return its address on this server."""
        url = await self.site.links.create(kind, subject_id, user_id=user_id, guild_id=guild_id)
        assert url is not None
        return url.replace(self.site.config.web.public_url, str(self.server.make_url("/")).rstrip("/"))

    async def get(self, url: str, **more: Any) -> tuple[int, str, Any]:
        """Status, text and headers of a page."""
        async with self.browser.get(url, allow_redirects=False, **more) as answer:
            return answer.status, await answer.text(errors="replace"), answer.headers

    async def job(self, events: Sequence[Event], files: dict[str, bytes] | None = None, **how: Any) -> Job:
        """A job that has sent these events, with these files in its folder."""
        job = await self.submit(**how)
        claimed = await claim(self.site.jobs, 8)
        assert claimed is not None
        for number, event in enumerate(events, start=1):
            numbered = event.model_copy(update={"seq": number})
            await self.site.jobs.attempts.ingest(job.id, claimed.attempt, [numbered], number)
        write_files(self.site.jobs.job_dir(job), files or {})
        return await self.site.jobs.get(job.id)


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def small_png(red: int = 200, side: int = 8) -> bytes:
    """A picture of one color that a browser can show."""
    rows = b"".join(b"\x00" + bytes([red, 90, 60]) * side for _row in range(side))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@asynccontextmanager
async def running_pages(
    db: Database, store: JobStore, outbox: Outbox, clock: FakeClock, data_dir: Path, port: int | None = None
) -> AsyncIterator[Pages]:
    """Serve the pages; with a port, under the address that a browser has them at, else behind a proxy."""
    url = "http://pages.example" if port is None else f"http://127.0.0.1:{port}"
    config = Config(web=WebSettings(port=1, public_url=url))
    access = Access(db, config.access)
    uploads, closed = PendingUploads(db), list[int]()
    datasets = DatasetStore(
        db,
        data_dir=data_dir,
        limits=LimitSettings(max_dataset_files=200),
        command=forked_trainer(),
        env=dict(os.environ),
    )
    site = Site(
        config=config,
        links=WebLinks(db, config.web, clock=clock),
        visitors=KnownVisitors(access),
        languages=Languages(db),
        access=access,
        jobs=store,
        datasets=datasets,
        uploads=uploads,
        resumable=ResumableUploads(db, outbox, uploads, datasets, data_dir=data_dir, settings=config.web, clock=clock),
        finish_upload=closed.append,
        limits=RoleLimits(db),
        outbox=outbox,
    )
    async with (
        TestServer(make_application(site, page_routes()), port=port) as server,
        aiohttp.ClientSession() as browser,
    ):
        yield Pages(site=site, server=server, browser=browser, clock=clock, submit=submitter(store), closed=closed)


@pytest.fixture
async def pages(
    db: Database, store: JobStore, outbox: Outbox, clock: FakeClock, tmp_path: Path
) -> AsyncIterator[Pages]:
    async with running_pages(db, store, outbox, clock, tmp_path / "data") as running:
        yield running
