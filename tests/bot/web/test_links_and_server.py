"""Who opens a page, what each answer forbids a browser, and what is refused."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from pathlib import Path
from typing import Any

import aiohttp
import discord
import pytest
from aiohttp import web

from bot.access import Access
from bot.config import AccessSettings, WebSettings
from bot.db import Database
from bot.web import LinkKind, WebLinks, server
from bot.web.links import LinkEnded, NoSuchLink
from bot.web.site import RequestCounts
from bot.web.visitors import NotAMember, PagesNotReady, Visitors
from tests.bot.conftest import GUILD
from tests.bot.fakes import FakeClock
from tests.bot.web.conftest import ANA, BEN, STRANGER, Pages

WEB = WebSettings(port=1, public_url="https://pages.example/darkroom/")


def token_of(url: str) -> str:
    return url.rpartition("/")[2]


# -- links ------------------------------------------------------------------------------------------------------------


async def test_a_link_is_found_by_its_token_and_only_as_what_it_is(db: Database, clock: FakeClock) -> None:
    links = WebLinks(db, WEB, clock=clock)
    url = await links.create(LinkKind.JOB, 5, user_id=ANA, guild_id=GUILD)
    assert url is not None
    assert url.startswith("https://pages.example/darkroom/j/")
    link = await links.check(token_of(url), LinkKind.JOB)
    assert (link.kind, link.subject_id, link.user_id, link.guild_id) == (LinkKind.JOB, 5, ANA, GUILD)
    with pytest.raises(NoSuchLink):
        await links.check(token_of(url), LinkKind.DATASET)
    with pytest.raises(NoSuchLink):
        await links.check(token_of(url)[:-1] + "x", LinkKind.JOB)
    # Who reads the database has no link.
    rows = await db.all("SELECT * FROM web_link")
    assert all(token_of(url) not in str(tuple(row)) for row in rows)


async def test_a_link_ends_by_time_by_its_subject_and_by_its_member(db: Database, clock: FakeClock) -> None:
    links = WebLinks(db, WEB, clock=clock)
    urls = [
        token_of(str(await links.create(LinkKind.DATASET, 3, user_id=user, guild_id=GUILD))) for user in (ANA, ANA, BEN)
    ]
    assert await links.revoke(LinkKind.DATASET, 3, user_id=ANA) == 2
    for token in urls[:2]:
        with pytest.raises(LinkEnded) as ended:
            await links.check(token, LinkKind.DATASET)
        assert ended.value.is_revoked
    link = await links.check(urls[2], LinkKind.DATASET)
    clock.advance(6 * 86_400)
    await links.extend(link)
    clock.advance(6 * 86_400)
    await links.check(urls[2], LinkKind.DATASET)
    clock.advance(86_401)
    with pytest.raises(LinkEnded) as ended:
        await links.check(urls[2], LinkKind.DATASET)
    assert not ended.value.is_revoked
    # Its page can say why it does not open, for a month.
    await links.forget_ended()
    with pytest.raises(LinkEnded):
        await links.check(urls[2], LinkKind.DATASET)
    clock.advance(31 * 86_400)
    await links.forget_ended()
    with pytest.raises(NoSuchLink):
        await links.check(urls[2], LinkKind.DATASET)


async def test_without_pages_there_are_no_links(db: Database) -> None:
    links = WebLinks(db, WebSettings())
    assert await links.create(LinkKind.GALLERY, 0, user_id=ANA, guild_id=GUILD) is None
    assert await db.all("SELECT * FROM web_link") == []


# -- visitors ---------------------------------------------------------------------------------------------------------


class OneServer:
    """What `Visitors` asks a client for: one server, whose members can leave."""

    def __init__(self) -> None:
        self.asked = 0
        self.is_reachable = True
        self.members = {ANA: discord.Object(1)}
        self.unavailable = False

    def is_ready(self) -> bool:
        return self.is_reachable

    def get_guild(self, guild_id: int) -> Any:
        return self if guild_id == GUILD else None

    async def fetch_member(self, user_id: int) -> Any:
        self.asked += 1
        if user_id not in self.members:
            response = type("Response", (), {"status": 404, "reason": "Not Found"})()
            raise discord.NotFound(response, {"code": 10007, "message": "Unknown Member"})
        role = discord.Object(77)
        return type(
            "Member",
            (),
            {"roles": [role], "display_name": "Ana", "guild_permissions": discord.Permissions.none()},
        )()


async def test_a_visitor_is_the_member_with_the_roles_of_this_minute(db: Database, clock: FakeClock) -> None:
    discord_server, access = OneServer(), Access(db, AccessSettings())
    visitors = Visitors(lambda: discord_server, access, clock=clock)  # type: ignore[arg-type,return-value]
    visitor = await visitors.find(GUILD, ANA)
    assert (visitor.role_ids, visitor.can_manage) == (frozenset({77}), False)
    await visitors.find(GUILD, ANA)
    assert discord_server.asked == 1
    # A role that manages, as in Discord.
    await access.set_rules(GUILD, AccessSettings(manage=(77,)), by=1)
    clock.advance(61)
    assert (await visitors.find(GUILD, ANA)).can_manage
    # Discord is away: what was known is old, and enough for a while.
    discord_server.is_reachable = False
    clock.advance(600)
    assert (await visitors.find(GUILD, ANA)).can_manage
    clock.advance(3600)
    with pytest.raises(PagesNotReady):
        await visitors.find(GUILD, ANA)
    discord_server.is_reachable = True
    discord_server.members.clear()
    for _try in range(2):
        with pytest.raises(NotAMember):
            await visitors.find(GUILD, ANA)
    with pytest.raises(NotAMember):
        await visitors.find(GUILD + 1, ANA)


# -- the server -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(LinkKind))
async def test_a_stranger_opens_nothing(pages: Pages, kind: LinkKind) -> None:
    status, text, _headers = await pages.get(await pages.link(kind, 1, user_id=STRANGER))
    assert status == 403
    assert "no longer in the Discord server" in text


@pytest.mark.parametrize("path", ["/", "/u/", "/u/x", "/j/../../etc/passwd", "/static/../server.py", "/static/x.css"])
async def test_what_is_no_page_is_not_found_and_forbids_all_the_same(pages: Pages, path: str) -> None:
    status, text, headers = await pages.get(str(pages.server.make_url("/")).rstrip("/") + path)
    assert status == 404
    assert "Traceback" not in text
    assert "default-src 'none'" in headers["Content-Security-Policy"]


async def test_each_answer_has_the_headers(pages: Pages) -> None:
    url = await pages.link(LinkKind.GALLERY)
    for address in (url, f"{url}x", str(pages.server.make_url("/static/site.css"))):
        _status, _text, headers = await pages.get(address, headers={"Accept": "text/html"})
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Server" not in headers
        assert "Set-Cookie" not in headers


def test_the_templates_and_scripts_keep_to_the_policy() -> None:
    """No script or style within a page, no handler in an attribute, nothing from elsewhere."""
    for file in (Path(server.__file__).parent / "templates").iterdir():
        text = file.read_text()
        assert "<style" not in text, file.name
        assert " style=" not in text, file.name
        assert " on" + "click=" not in text, file.name
        inline = [tag for tag in re.findall(r"<script[^>]*>", text) if "src=" not in tag]
        assert all('type="application/json"' in tag for tag in inline), file.name
        assert "http://" not in text, file.name


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://pages.example", "Sec-Fetch-Site": "same-origin"}, 422),
        ({"Origin": "null", "Sec-Fetch-Site": "same-origin"}, 422),
        ({}, 422),
    ],
)
async def test_what_another_sites_page_sends_is_refused(pages: Pages, headers: dict[str, str], status: int) -> None:
    url = await pages.link(LinkKind.UPLOAD, 1)
    async with pages.browser.post(url, data={"do": "finish"}, headers=headers) as answer:
        assert answer.status == status


async def test_guesses_of_addresses_are_counted_by_the_computer_behind_the_proxy(pages: Pages) -> None:
    guess = str(pages.server.make_url("/j/")) + "x" * 43
    for _number in range(30):
        assert (await pages.get(guess, headers={"X-Forwarded-For": "1.1.1.1, 203.0.113.9"}))[0] == 404
    status, _text, headers = await pages.get(guess, headers={"X-Forwarded-For": "203.0.113.9"})
    assert status == 429
    assert int(headers["Retry-After"]) >= 1
    assert (await pages.get(guess, headers={"X-Forwarded-For": "203.0.113.10"}))[0] == 404


async def test_a_link_that_asks_too_much_has_to_wait_and_others_not(pages: Pages) -> None:
    urls = [await pages.link(LinkKind.GALLERY) for _number in range(2)]
    link = await pages.site.links.check(token_of(urls[0]), LinkKind.GALLERY)
    for _number in range(3000):
        async with pages.site.counts.admit(link):
            pass
    assert (await pages.get(urls[0]))[0] == 429
    assert (await pages.get(urls[1]))[0] == 200


def test_counts_are_forgotten() -> None:
    counts = RequestCounts()
    for number in range(5000):
        counts.count_miss(f"192.0.2.{number}")
    assert len(counts._uses) <= 2000


async def test_a_connection_that_never_asks_is_closed(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_WATCH_S", 0.05)
    monkeypatch.setattr(server, "_FIRST_REQUEST_S", 0.2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        settings = WebSettings(port=free.getsockname()[1], public_url="http://pages.example")
    application = server.make_application(pages.site, [])
    async with server.serve_pages(settings, application) as port:
        assert port is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /static/site.css HTTP/1.1\r\nX: ")
        await writer.drain()
        async with asyncio.timeout(60):
            assert await reader.read() == b""
        writer.close()
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/static/site.css") as answer:
                assert answer.status == 200
            await asyncio.sleep(0.6)
            # One that has asked stays open for its next request.
            async with session.get(f"http://127.0.0.1:{port}/static/site.css") as answer:
                assert answer.status == 200


async def test_a_port_in_use_costs_the_pages_and_not_the_bot(pages: Pages, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = WebSettings(port=taken.getsockname()[1], public_url="http://pages.example")
        async with server.serve_pages(settings, server.make_application(pages.site, [])) as port:
            assert port is None
    assert "no pages" in caplog.text


async def test_a_bug_is_a_page_without_details_and_a_log_without_addresses(
    pages: Pages, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_request: web.Request) -> web.Response:
        raise RuntimeError("secret detail")

    application = server.make_application(pages.site, [web.get("/u/{token}", broken)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    with caplog.at_level(logging.DEBUG):
        status, text, headers = await pages.get(f"http://127.0.0.1:{port}/u/token-of-ana")
    await runner.cleanup()
    assert status == 500
    assert "secret" not in text
    assert "Content-Security-Policy" in headers
    assert "RuntimeError" in caplog.text
    assert "token-of-ana" not in caplog.text


async def test_a_compressed_body_is_not_inflated(pages: Pages) -> None:
    """Of 100 KB could become 100 MB: nothing that members send is compressed on the way."""
    runner = web.AppRunner(server.make_application(pages.site, []), auto_decompress=False)
    await runner.setup()
    assert runner.server is not None
    assert runner.server._kwargs["auto_decompress"] is False
    await runner.cleanup()
