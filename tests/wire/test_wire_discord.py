"""The loopback Discord itself: what it refuses, what it repeats, and what its faults do."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.wire.wire_discord import WireDiscord
from tests.wire.wire_faults import cut, hang, lose_answer, rate_limit, refuse, refuse_html, slow
from tests.wire.wire_people import Person
from tests.wire.wire_state import COMPONENTS_V2, JSON, bits


class Client:
    """A bot of three lines: bare HTTP and a bare websocket."""

    def __init__(self, discord: WireDiscord, session: aiohttp.ClientSession) -> None:
        self.discord, self.session = discord, session

    async def call(self, method: str, path: str, payload: Any = None, *, token: str = "") -> tuple[int, Any]:
        headers = {"Authorization": f"Bot {token or self.discord.token}"}
        url = f"{self.discord.url}/api/v10{path}"
        async with self.session.request(method, url, json=payload, headers=headers) as response:
            is_json = response.headers.get("Content-Type") == "application/json"
            return response.status, await (response.json() if is_json else response.text())

    async def post(self, payload: JSON) -> tuple[int, Any]:
        return await self.call("POST", f"/channels/{self.discord.channel.id}/messages", payload)

    async def upload(self, payload: JSON, *files: tuple[str, bytes]) -> tuple[int, Any]:
        form = aiohttp.FormData(quote_fields=False)
        form.add_field("payload_json", json.dumps(payload))
        for number, (name, content) in enumerate(files):
            form.add_field(f"files[{number}]", io.BytesIO(content), filename=name)
        headers = {"Authorization": f"Bot {self.discord.token}"}
        url = f"{self.discord.url}/api/v10/channels/{self.discord.channel.id}/messages"
        async with self.session.post(url, data=form, headers=headers) as response:
            return response.status, await response.json()

    async def connect(self) -> aiohttp.ClientWebSocketResponse:
        return await self.session.ws_connect(f"{self.discord.url}/gateway?v=10&encoding=json")

    async def identify(self, socket: aiohttp.ClientWebSocketResponse) -> JSON:
        assert (await socket.receive_json())["op"] == 10
        await socket.send_json({"op": 2, "d": {"token": self.discord.token, "intents": 1}})
        ready: JSON = await socket.receive_json()
        assert (ready["t"], (await socket.receive_json())["t"]) == ("READY", "GUILD_CREATE")
        return ready


@pytest.fixture
async def client(discord: WireDiscord) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as session:
        yield Client(discord, session)


def v2(*components: JSON) -> JSON:
    return {"flags": COMPONENTS_V2, "components": list(components)}


TEXT = {"type": 10, "content": "hello"}
BUTTON = {"type": 2, "style": 1, "label": "Go", "custom_id": "go"}


async def test_a_nonce_makes_one_message(discord: WireDiscord, client: Client) -> None:
    first = await client.post({"content": "a", "nonce": "n", "enforce_nonce": True})
    again = await client.post({"content": "a", "nonce": "n", "enforce_nonce": True})
    assert first[1]["id"] == again[1]["id"]
    await client.post({"content": "a", "nonce": "n"})
    assert len(discord.channel.messages) == 2
    assert discord.repeated_nonces == ["n"]


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        ({"content": "x" * 2001}, "content"),
        ({"content": "x", "nonce": "x" * 26}, "nonce"),
        ({"embeds": [{"title": "x" * 257}]}, "embeds.0.title"),
        ({"embeds": [{"description": "x" * 3001}] * 2}, "embeds"),
        (v2(*[TEXT] * 41), "components"),
        (v2({"type": 10, "content": "x" * 4001}), "components.0.content"),
        (v2(*[{"type": 10, "content": "x" * 900}] * 5), "components"),
        (v2({"type": 1, "components": [BUTTON | {"custom_id": "x" * 101}]}), "components.0.components.0.custom_id"),
        (v2({"type": 1, "components": [BUTTON | {"label": "x" * 81}]}), "components.0.components.0.label"),
        (v2({"type": 1, "components": [BUTTON, BUTTON]}), "components"),
        (v2({"type": 12, "items": [{"media": {"url": "attachment://no.png"}}]}), "components.0.items.0.media.url"),
        (v2({"type": 17, "components": []}), "components.0.components"),
    ],
)
async def test_what_is_over_a_limit_is_refused_where_it_is(client: Client, payload: JSON, path: str) -> None:
    status, data = await client.post(payload)
    assert (status, data["code"]) == (400, 50035)
    place = data["errors"]
    for key in path.split("."):
        place = place[key]
    assert place["_errors"][0]["message"]


async def test_a_layout_that_is_too_large_to_store_is_an_error_of_discord(client: Client) -> None:
    heavy = v2(*[{"type": 10, "content": "🦊" * 390}] * 10)
    assert (await client.post(heavy))[0] == 500
    assert (await client.post({}))[1]["code"] == 50006


async def test_files_have_limits_and_addresses(discord: WireDiscord, client: Client) -> None:
    shown = v2({"type": 12, "items": [{"media": {"url": "attachment://a.png"}}]})
    status, message = await client.upload(shown, ("a.png", b"123"))
    assert status == 200
    async with client.session.get(message["components"][0]["items"][0]["media"]["url"]) as response:
        assert await response.read() == b"123"
    assert (await client.upload({"content": "x"}, ("a.bin", b"x" * (10 * 1024**2 + 1))))[1]["code"] == 40005
    assert (await client.upload({"content": "x"}, *[("a", b"1")] * 11))[1]["code"] == 50035


async def test_permissions_and_places_that_are_gone(discord: WireDiscord, client: Client) -> None:
    assert (await client.call("GET", "/users/@me", token="wrong"))[0] == 401
    await discord.deny(discord.channel)
    assert (await client.post({"content": "x"}))[1]["code"] == 50013
    await discord.deny(discord.channel, "view_channel")
    assert (await client.post({"content": "x"}))[1]["code"] == 50001
    await discord.allow(discord.channel)
    _, message = await client.post({"content": "x"})
    path = f"/channels/{discord.channel.id}/messages/{message['id']}"
    assert (await client.call("PATCH", path, {"content": "y"}))[1]["content"] == "y"
    assert (await client.call("DELETE", path))[0] == 204
    assert (await client.call("PATCH", path, {"content": "z"}))[1]["code"] == 10008
    await discord.delete_channel(discord.channel)
    assert (await client.post({"content": "x"}))[1]["code"] == 10003


async def test_an_archived_thread_opens_for_a_message_unless_it_is_locked(discord: WireDiscord, client: Client) -> None:
    thread = discord.add_thread("job")
    path = f"/channels/{thread.id}/messages"
    _, message = await client.call("POST", path, {"content": "x"})
    await discord.set_thread(thread, archived=True)
    assert (await client.call("PATCH", f"{path}/{message['id']}", {"content": "y"}))[1]["code"] == 50083
    assert (await client.call("POST", path, {"content": "x"}))[0] == 200
    assert not thread.is_archived
    await discord.set_thread(thread, archived=True, locked=True)
    assert (await client.call("POST", path, {"content": "x"}))[1]["code"] == 160005


async def test_direct_messages_may_be_closed(discord: WireDiscord, client: Client, ana: Person) -> None:
    _, channel = await client.call("POST", "/users/@me/channels", {"recipient_id": str(ana.id)})
    path = f"/channels/{channel['id']}/messages"
    assert (await client.call("POST", path, {"content": "hello"}))[0] == 200
    assert discord.dm_of(ana.user).texts == ["hello"]
    ana.user.accepts_dms = False
    assert (await client.call("POST", path, {"content": "hello"}))[1]["code"] == 50007


async def test_an_interaction_is_answered_once_and_in_time(discord: WireDiscord, client: Client, ana: Person) -> None:
    command = {"type": 1, "name": "hi", "description": "Say hi."}
    status, _stored = await client.call("PUT", f"/applications/{discord.application_id}/commands", [command])
    assert status == 200
    assert discord.command_creates[None] == 1
    asked = await ana.slash("hi")
    callback = f"/interactions/{asked.id}/{asked.token}/callback"
    status, made = await client.call("POST", f"{callback}?with_response=1", {"type": 5, "data": {"flags": 64}})
    assert made["interaction"]["response_message_loading"]
    assert (await client.call("POST", callback, {"type": 5}))[1]["code"] == 40060
    assert not asked.is_settled
    webhook = f"/webhooks/{discord.application_id}/{asked.token}"
    await client.call("POST", webhook, {"content": "first"})
    await client.call("POST", webhook, {"content": "second", "flags": 64})
    assert asked.is_settled
    assert asked.text == "first\nsecond"
    assert discord.channel.texts == []
    asked.expire()
    assert (await client.call("POST", webhook, {"content": "third"}))[1]["code"] == 50027
    late = await ana.slash("hi")
    late.at -= 4
    callback = f"/interactions/{late.id}/{late.token}/callback"
    assert (await client.call("POST", callback, {"type": 5}))[1]["code"] == 10062


async def test_faults_are_met_and_end(discord: WireDiscord, client: Client) -> None:
    posts = "/channels/*/messages"
    for fault, status in ((refuse(500), 500), (refuse_html(403), 403), (rate_limit(9), 429), (slow(0.01), 200)):
        with discord.faults.on("POST", posts, fault) as rule:
            assert (await client.post({"content": "x"}))[0] == status
            assert len(rule.hits) == 1
    before = len(discord.channel.messages)
    for fault, made in ((cut(), 0), (lose_answer(), 1)):
        with discord.faults.on("POST", posts, fault, channel=discord.channel.id), pytest.raises(aiohttp.ClientError):
            await client.post({"content": "x"})
        assert len(discord.channel.messages) == before + made
    with discord.faults.on("POST", posts, hang()), pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await client.post({"content": "x"})
    with discord.faults.on("POST", posts, refuse(500), times=1):
        assert [(await client.post({"content": "x"}))[0] for _ in range(2)] == [500, 200]


async def test_a_session_is_resumed_with_what_it_missed(discord: WireDiscord, client: Client) -> None:
    socket = await client.connect()
    ready = await client.identify(socket)
    discord.gateway.cut()
    await discord.until(lambda: not discord.gateway.is_connected)
    await discord.gateway.dispatch("A", {})
    again = await client.connect()
    assert (await again.receive_json())["op"] == 10
    resume = {"token": discord.token, "session_id": ready["d"]["session_id"], "seq": 2}
    await again.send_json({"op": 6, "d": resume})
    assert [(await again.receive_json())["t"] for _ in range(2)] == ["A", "RESUMED"]
    await again.send_json({"op": 1, "d": 3})
    assert (await again.receive_json())["op"] == 11
    discord.gateway.forget_sessions()
    third = await client.connect()
    await third.receive_json()
    await third.send_json({"op": 6, "d": resume})
    assert await third.receive_json() == {"op": 9, "d": False}
    await third.send_json({"op": 2, "d": {"token": "wrong"}})
    assert (await third.receive()).data == 4004


async def test_a_manager_has_what_the_role_gives(discord: WireDiscord) -> None:
    boss = discord.add_member("boss", permissions=bits("manage_guild"))
    assert discord.guild.permissions_of(boss, discord.channel) & bits("manage_guild")
    assert not discord.guild.permissions_of(discord.add_member("ana"), discord.channel) & bits("manage_guild")
