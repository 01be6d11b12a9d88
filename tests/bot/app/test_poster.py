"""The poster against a Discord on the wire: nonces, what an edit carries, and what follows each answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import discord
import pytest
from aiohttp import web

from bot.app.poster import Poster, raise_refusals
from bot.health import ConnectionMonitor
from bot.outbox import (
    ChannelGone,
    ChannelHeld,
    DeliveryFailed,
    HoldReason,
    MessageGone,
    MessageRefused,
    MessageTooLarge,
    NoThread,
    RecipientUnreachable,
    SendLater,
)
from bot.ui.layout import FileToSend, MessageContent, image_gallery, layout, text_form
from tests.bot.fakes import serve

CHANNEL = 100


@dataclass(frozen=True, kw_only=True)
class Fault:
    """An answer that is no success."""

    status: int = 500
    code: int = 0
    #: Of a proxy, instead of JSON.
    html: str = ""
    retry_after: float | None = None
    is_global: bool = False
    via: str | None = "1.1 fake"
    is_hanging: bool = False
    is_cut: bool = False

    async def answer(self, request: web.Request) -> web.Response:
        if self.is_hanging:
            await asyncio.sleep(60)
        if self.is_cut:
            assert request.transport is not None
            request.transport.abort()
        headers = {} if self.via is None else {"Via": self.via}
        if self.html:
            return web.Response(text=self.html, status=self.status, headers={**headers, "Content-Type": "text/html"})
        data: dict[str, Any] = {"message": "no", "code": self.code}
        if self.retry_after is not None:
            data |= {"retry_after": self.retry_after, "global": self.is_global}
        headers["Content-Type"] = "application/json"
        return web.Response(body=json.dumps(data).encode(), status=self.status, headers=headers)


class Wire:
    """The part of Discord's HTTP API that sends, edits and lists messages; `enforce_nonce` as documented."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any], list[str]]] = []
        self.by_nonce: dict[str, int] = {}
        self.messages: list[dict[str, Any]] = []
        #: The next answers.
        self.failures: list[Fault] = []

    async def me(self, _: web.Request) -> web.Response:
        return answer({"id": "1", "username": "darkroom", "discriminator": "0", "avatar": None, "bot": True})

    async def handle(self, request: web.Request) -> web.Response:
        body, files = await read(request)
        self.requests.append((request.method, body, files))
        if self.failures:
            return await self.failures.pop(0).answer(request)
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
    for field in form.values():
        if isinstance(field, web.FileField):
            field.file.close()
    return json.loads(str(form["payload_json"])), [key for key in form if key.startswith("files[")]


def message_of(message_id: int, body: dict[str, Any]) -> dict[str, Any]:
    author = {"id": "1", "username": "darkroom", "discriminator": "0", "avatar": None, "bot": True}
    empty: dict[str, Any] = {key: [] for key in ("mentions", "mention_roles", "attachments", "embeds")}
    return {
        **empty,
        "id": str(message_id),
        "channel_id": str(CHANNEL),
        "author": author,
        "content": body.get("content") or "",
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
    client = discord.Client(
        intents=discord.Intents(guilds=True),
        max_ratelimit_timeout=30,
        http_trace=raise_refusals(ConnectionMonitor().http_trace()),
    )
    monkeypatch.setattr(client, "is_ready", lambda: True)
    async with client:
        # `login` would also ask for the application.
        me = await client.http.static_login("token")
        client._connection.user = discord.ClientUser(state=client._connection, data=me)
        yield Poster(lambda: client, timeout_s=2)


@pytest.fixture
def content(tmp_path: Path) -> MessageContent:
    (tmp_path / "a.png").write_bytes(b"image")
    file = FileToSend(folder=tmp_path, path="a.png", name="loss-e1.png")
    return MessageContent(layout=layout("Hello", image_gallery(file, "loss")), files=(file,), mentions=(7,))


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
    other = FileToSend(folder=tmp_path, path="a.png", name="loss-e2.png")
    await poster.edit(CHANNEL, message_id, MessageContent(layout=layout(image_gallery(other, "loss")), files=(other,)))
    edits = [(files, "attachments" in body) for method, body, files in wire.requests if method == "PATCH"]
    assert edits == [([], False), (["files[0]"], True)]


async def test_an_image_that_discord_lost_is_sent_again(wire: Wire, poster: Poster, content: MessageContent) -> None:
    message_id = await poster.send(CHANNEL, content, "n")
    wire.failures = [Fault(status=400, code=50035)]
    await poster.edit(CHANNEL, message_id, content)
    assert wire.requests[-1][2] == ["files[0]"]


@pytest.mark.parametrize("is_text", [False, True])
async def test_a_message_is_found_by_its_nonce(
    wire: Wire, poster: Poster, content: MessageContent, is_text: bool
) -> None:
    content = text_form(content) if is_text else content
    await poster.send(CHANNEL, content, "0" * 24)
    message_id = await poster.send(CHANNEL, content, "3fa8c1d2" + "0" * 16)
    await poster.send(CHANNEL, content, "1" * 24)
    assert await poster.find(CHANNEL, "3fa8c1d2" + "0" * 16) == message_id
    assert await poster.find(CHANNEL, "f" * 24) is None


async def test_a_layout_shows_nothing_of_its_nonce(wire: Wire, poster: Poster, content: MessageContent) -> None:
    await poster.send(CHANNEL, content, "3fa8c1d2" + "0" * 16)
    components = wire.requests[0][1]["components"]
    texts = [each["content"] for each in components if "content" in each]
    assert texts == ["Hello"]
    # Discord takes 32 bits, and makes an ID of its own of 0.
    assert 0 < components[0]["id"] < 2**31
    assert not [each for each in components[1:] if "id" in each]


# -- the table: what follows an answer ----------------------------------------------------------------------------

_HTML = "<html><title>Attention Required! | Cloudflare</title></html>"
_LATER = [
    Fault(status=500),
    Fault(status=502, html=_HTML),
    Fault(status=503),
    Fault(status=504, html=_HTML),
    Fault(status=520, html=_HTML),
    Fault(status=403, html=_HTML),
    Fault(status=404, html=_HTML),
    Fault(status=400, html=_HTML),
    Fault(status=401, html=_HTML),
    Fault(status=403),
    Fault(status=404),
    Fault(status=400),
    Fault(status=408),
    Fault(status=403, code=20009),
    Fault(status=400, code=200000),
    Fault(status=418, code=1),
    Fault(status=200, html=_HTML),
    Fault(is_hanging=True),
    Fault(is_cut=True),
]


@pytest.mark.parametrize("fault", _LATER, ids=str)
async def test_whatever_may_pass_or_is_unknown_is_tried_later(
    wire: Wire, poster: Poster, content: MessageContent, fault: Fault
) -> None:
    wire.failures = [fault]
    with pytest.raises(SendLater) as raised:
        await poster.send(CHANNEL, content, "n")
    assert raised.value.after_s is None
    assert raised.value.is_counted
    # discord.py would repeat some of these up to five times, with pauses.
    assert len(wire.requests) == 1
    is_unknown = fault.status >= 500 or fault.status < 400 or fault.is_hanging or fault.is_cut
    assert raised.value.may_exist is is_unknown


@pytest.mark.parametrize(
    ("fault", "after_s", "is_global"),
    [
        (Fault(status=429, retry_after=0.2), 0.2, False),
        (Fault(status=429, retry_after=20.0), 20.0, False),
        (Fault(status=429, retry_after=3600.0), 3600.0, False),
        (Fault(status=429, retry_after=20.0, via=None), 20.0, False),
        (Fault(status=429, retry_after=5.0, is_global=True), 5.0, True),
        (Fault(status=429, html=_HTML, via=None), None, False),
    ],
)
async def test_a_rate_limit_is_not_slept_out(
    wire: Wire, poster: Poster, content: MessageContent, fault: Fault, after_s: float | None, is_global: bool
) -> None:
    wire.failures = [fault]
    async with asyncio.timeout(60):  # far less than the longest wait
        with pytest.raises(SendLater) as raised:
            await poster.send(CHANNEL, content, "n")
    assert (raised.value.after_s, raised.value.is_global) == (after_s, is_global)
    assert raised.value.is_counted is (after_s is None)
    assert not raised.value.may_exist
    # The client is not blocked by it.
    await poster.send(CHANNEL, content, "n")


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(status=403, code=50001), ChannelHeld),
        (Fault(status=403, code=50013), ChannelHeld),
        (Fault(status=400, code=50083), ChannelHeld),
        (Fault(status=403, code=160005), ChannelHeld),
        (Fault(status=404, code=10003), ChannelGone),
        (Fault(status=413, html=_HTML), MessageTooLarge),
        (Fault(status=413, code=40005), MessageTooLarge),
        (Fault(status=400, code=40005), MessageTooLarge),
        (Fault(status=400, code=50035), MessageRefused),
        (Fault(status=403, code=50007), RecipientUnreachable),
        (Fault(status=404, code=10008), MessageGone),
        (Fault(status=403, code=50005), MessageGone),
        (Fault(status=429, code=30046, retry_after=3.0), MessageGone),
        (Fault(status=400, code=30046), MessageGone),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_edit", [False, True])
async def test_each_refusal_has_its_consequence(
    wire: Wire, poster: Poster, content: MessageContent, fault: Fault, expected: type[DeliveryFailed], is_edit: bool
) -> None:
    wire.failures = [fault]
    with pytest.raises(expected) as raised:
        await (poster.edit(CHANNEL, 1, content) if is_edit else poster.send(CHANNEL, content, "n"))
    assert type(raised.value) is expected
    assert len(wire.requests) == 1


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        # A kind of channel without threads, a missing permission, the channel, too many threads, a form, a proxy …
        (Fault(status=400, code=50024), NoThread),
        (Fault(status=400, code=50068), NoThread),
        (Fault(status=403, code=50013), NoThread),
        (Fault(status=404, code=10003), NoThread),
        (Fault(status=400, code=160006), NoThread),
        (Fault(status=400, code=50035), NoThread),
        (Fault(status=404, code=10008), MessageGone),
        (Fault(status=403, html=_HTML), SendLater),
        (Fault(status=500), SendLater),
        (Fault(status=401), SendLater),
        (Fault(status=429, retry_after=20.0), SendLater),
        (Fault(is_hanging=True), SendLater),
    ],
    ids=str,
)
async def test_each_refusal_of_a_thread_has_its_consequence(
    wire: Wire, poster: Poster, fault: Fault, expected: type[DeliveryFailed]
) -> None:
    wire.failures = [fault]
    with pytest.raises(expected) as raised:
        await poster.start_thread(CHANNEL, 1000, "#1 fox")
    assert type(raised.value) is expected


async def test_a_thread_that_an_earlier_try_started_is_the_one_of_its_message(wire: Wire, poster: Poster) -> None:
    wire.failures = [Fault(status=400, code=160004)]
    assert await poster.start_thread(CHANNEL, 1000, "#1 fox") == 1000


async def test_the_name_of_a_thread_is_within_discords_limit(wire: Wire, poster: Poster) -> None:
    await poster.start_thread(CHANNEL, 1000, f"#1 {'很长的名字' * 40}")
    assert 1 <= len(wire.requests[0][1]["name"]) <= 100


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, 50001, HoldReason.NO_ACCESS),
        (403, 50013, HoldReason.NO_PERMISSION),
        (400, 50083, HoldReason.ARCHIVED),
        (400, 160005, HoldReason.LOCKED),
    ],
)
async def test_a_held_channel_says_why(
    wire: Wire, poster: Poster, content: MessageContent, status: int, code: int, kind: HoldReason
) -> None:
    wire.failures = [Fault(status=status, code=code)]
    with pytest.raises(ChannelHeld) as raised:
        await poster.send(CHANNEL, content, "n")
    assert raised.value.kind is kind


async def test_a_refused_token_is_reported_and_the_message_kept(
    wire: Wire, poster: Poster, content: MessageContent
) -> None:
    refused: list[bool] = []
    client = poster._client
    poster = Poster(client, on_token_refused=lambda: refused.append(True))
    wire.failures = [Fault(status=401, html=_HTML), Fault(status=401)]
    for expected in ([], [True]):
        with pytest.raises(SendLater):
            await poster.send(CHANNEL, content, "n")
        assert refused == expected


async def test_a_refused_message_is_logged_with_its_payload_and_a_reference(
    wire: Wire, poster: Poster, content: MessageContent, caplog: pytest.LogCaptureFixture
) -> None:
    wire.failures = [Fault(status=400, code=50035)]
    with pytest.raises(MessageRefused):
        await poster.send(CHANNEL, content, "3fa8c1d2aaaa")
    assert "ref 3fa8c1d2" in caplog.text
    assert "Hello" in caplog.text


async def test_a_message_in_text_form_has_neither_layout_nor_files_but_a_reference(
    wire: Wire, poster: Poster, content: MessageContent
) -> None:
    await poster.send(CHANNEL, text_form(content, "See /job status."), "3fa8c1d2" + "0" * 16)
    _, body, files = wire.requests[0]
    assert body["content"] == "Hello\nSee /job status.\n-# Reference 3fa8c1d2"
    assert not body.get("components")
    assert not files


async def test_a_channel_that_may_not_be_read_is_not_held_for_that(
    wire: Wire, poster: Poster, content: MessageContent
) -> None:
    wire.failures = [Fault(status=403, code=50013)]
    assert await poster.find(CHANNEL, "3fa8c1d2") is None


async def test_without_a_network_the_request_counts_as_no_try(
    poster: Poster, content: MessageContent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discord.http.Route, "BASE", "http://127.0.0.1:9/api")
    with pytest.raises(SendLater) as raised:
        await poster.send(CHANNEL, content, "n")
    assert (raised.value.is_counted, raised.value.may_exist) == (False, False)


async def test_without_a_connection_messages_are_sent_later(content: MessageContent) -> None:
    poster = Poster(lambda: None)
    assert not poster.is_ready()
    with pytest.raises(SendLater) as raised:
        await poster.send(CHANNEL, content, "n")
    assert not raised.value.is_counted
