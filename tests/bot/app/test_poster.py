"""The poster against a Discord on the wire: nonces, what an edit carries, and which failures are retried."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import discord
import pytest
from aiohttp import web

from bot.app.poster import Poster
from bot.outbox import MessageGone, SendLater, SendNever
from bot.ui.layout import FileToSend, MessageContent, image_gallery, layout
from tests.bot.fakes import serve

CHANNEL = 100


class Wire:
    """The part of Discord's HTTP API that sends, edits and lists messages; `enforce_nonce` as documented."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any], list[str]]] = []
        self.by_nonce: dict[str, int] = {}
        self.messages: list[dict[str, Any]] = []
        #: (status, code) of the next answers.
        self.failures: list[tuple[int, int]] = []

    async def me(self, _: web.Request) -> web.Response:
        return answer({"id": "1", "username": "darkroom", "discriminator": "0", "avatar": None, "bot": True})

    async def handle(self, request: web.Request) -> web.Response:
        body, files = await read(request)
        self.requests.append((request.method, body, files))
        if self.failures:
            status, code = self.failures.pop(0)
            return answer({"message": "no", "code": code, "retry_after": 99.0}, status)
        if request.method == "GET":
            return answer(list(reversed(self.messages)))
        nonce = body.get("nonce")
        if nonce and body.get("enforce_nonce") and nonce in self.by_nonce:
            return answer(next(m for m in self.messages if m["id"] == str(self.by_nonce[nonce])))
        message = message_of(1000 + len(self.messages), body)
        if request.method == "POST":
            self.messages.append(message)
            self.by_nonce[str(nonce)] = int(message["id"])
        return answer(message)


def answer(data: Any, status: int = 200) -> web.Response:
    # discord.py reads JSON only if the type is exactly this, and takes a 429 without Via for a ban by Cloudflare.
    headers = {"Content-Type": "application/json", "Via": "1.1 fake"}
    return web.Response(body=json.dumps(data).encode(), status=status, headers=headers)


async def read(request: web.Request) -> tuple[dict[str, Any], list[str]]:
    if request.content_type != "multipart/form-data":
        return (await request.json() if request.can_read_body else {}), []
    form = await request.post()
    return json.loads(str(form["payload_json"])), [key for key in form if key.startswith("files[")]


def message_of(message_id: int, body: dict[str, Any]) -> dict[str, Any]:
    author = {"id": "1", "username": "darkroom", "discriminator": "0", "avatar": None, "bot": True}
    empty: dict[str, Any] = {key: [] for key in ("mentions", "mention_roles", "attachments", "embeds")}
    return {
        **empty,
        "id": str(message_id),
        "channel_id": str(CHANNEL),
        "author": author,
        "content": "",
        "timestamp": "2026-03-01T00:00:00+00:00",
        "edited_timestamp": None,
        "tts": False,
        "mention_everyone": False,
        "pinned": False,
        "type": 0,
        "flags": body.get("flags", 0),
        "components": body.get("components", []),
    }


@pytest.fixture
async def wire(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Wire]:
    fake = Wire()
    async with serve(web.get("/users/@me", fake.me), web.route("*", "/channels/{rest:.*}", fake.handle)) as url:
        monkeypatch.setattr(discord.http.Route, "BASE", url)
        yield fake


@pytest.fixture
async def poster(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Poster]:
    client = discord.Client(intents=discord.Intents(guilds=True), max_ratelimit_timeout=30)
    monkeypatch.setattr(client, "is_ready", lambda: True)
    async with client:
        # `login` would also ask for the application.
        me = await client.http.static_login("token")
        client._connection.user = discord.ClientUser(state=client._connection, data=me)
        yield Poster(lambda: client)


@pytest.fixture
def content(tmp_path: Path) -> MessageContent:
    (tmp_path / "a.png").write_bytes(b"image")
    file = FileToSend(path=tmp_path / "a.png", name="loss-e1.png")
    return MessageContent(layout=layout("Hello", image_gallery(file, "loss"), "-# 3fa8c1d2"), files=(file,), mentions=7)


async def test_the_same_nonce_makes_one_message(wire: Wire, poster: Poster, content: MessageContent) -> None:
    first = await poster.send(CHANNEL, content, "3fa8c1d2")
    assert await poster.send(CHANNEL, content, "3fa8c1d2") == first
    assert await poster.send(CHANNEL, content, "other") != first
    _, body, files = wire.requests[0]
    assert (body["nonce"], body["enforce_nonce"]) == ("3fa8c1d2", True)
    assert body["allowed_mentions"] == {"parse": [], "users": ["7"]} or body["allowed_mentions"]["users"] == [7]
    assert files == ["files[0]"]


async def test_an_edit_sends_an_image_only_when_it_has_changed(
    wire: Wire, poster: Poster, content: MessageContent, tmp_path: Path
) -> None:
    message_id = await poster.send(CHANNEL, content, "n")
    await poster.edit(CHANNEL, message_id, content)
    other = FileToSend(path=tmp_path / "a.png", name="loss-e2.png")
    await poster.edit(CHANNEL, message_id, MessageContent(layout=layout(image_gallery(other, "loss")), files=(other,)))
    edits = [(files, "attachments" in body) for method, body, files in wire.requests if method == "PATCH"]
    assert edits == [([], False), (["files[0]"], True)]


async def test_an_image_that_discord_lost_is_sent_again(wire: Wire, poster: Poster, content: MessageContent) -> None:
    message_id = await poster.send(CHANNEL, content, "n")
    wire.failures = [(400, 50035)]
    await poster.edit(CHANNEL, message_id, content)
    assert wire.requests[-1][2] == ["files[0]"]


async def test_a_message_is_found_by_its_marker(wire: Wire, poster: Poster, content: MessageContent) -> None:
    message_id = await poster.send(CHANNEL, content, "n")
    assert await poster.find(CHANNEL, "3fa8c1d2") == message_id
    assert await poster.find(CHANNEL, "ffffffff") is None


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, 50001, SendNever),
        (404, 10003, SendNever),
        (400, 50035, SendNever),
        (401, 0, SendLater),
        (503, 0, SendLater),
        (429, 0, SendLater),
    ],
)
async def test_each_failure_is_retried_or_not(
    wire: Wire, poster: Poster, content: MessageContent, status: int, code: int, expected: type[Exception]
) -> None:
    wire.failures = [(status, code)]
    with pytest.raises(expected):
        await poster.send(CHANNEL, content, "n")


@pytest.mark.parametrize(("status", "code"), [(404, 10008), (400, 30046)])
async def test_a_message_that_cannot_be_edited_is_sent_again(
    wire: Wire, poster: Poster, content: MessageContent, status: int, code: int
) -> None:
    wire.failures = [(status, code)]
    with pytest.raises(MessageGone):
        await poster.edit(CHANNEL, 1, content)


async def test_without_a_connection_messages_are_sent_later(content: MessageContent) -> None:
    with pytest.raises(SendLater):
        await Poster(lambda: None).send(CHANNEL, content, "n")
