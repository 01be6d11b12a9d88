"""A Discord on loopback for the unchanged `python -m bot run`: HTTP API v10, CDN and gateway. See README.md."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

from tests.wire.wire_faults import Faults
from tests.wire.wire_gateway import Gateway
from tests.wire.wire_http import WireApi
from tests.wire.wire_payloads import Refused
from tests.wire.wire_state import (
    DM,
    EPHEMERAL,
    JSON,
    PUBLIC_THREAD,
    TEXT,
    WireChannel,
    WireFile,
    WireGuild,
    WireMember,
    WireMessage,
    WireRole,
    WireUser,
    bits,
    make_guild,
    snowflake,
)

_ANSWER_S, _TOKEN_S = 3.0, 900.0


@dataclass
class WireInteraction:
    """What a person did, and all answers to it."""

    type: int
    user: WireUser
    channel: WireChannel
    data: JSON
    id: int = field(default_factory=snowflake)
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    #: Wall-clock time of the dispatch.
    at: float = field(default_factory=time.time)
    #: The message whose button was pressed.
    source: WireMessage | None = None
    #: Arrival and payload of the first answer; more than one is impossible.
    callbacks: list[tuple[float, JSON]] = field(default_factory=list)
    #: `@original`.
    message: WireMessage | None = None
    followups: list[WireMessage] = field(default_factory=list)
    has_expired: bool = False

    def is_late(self, at: float) -> bool:
        """True if there was no answer within 3 s."""
        return not self.callbacks and at - self.at > _ANSWER_S

    def expire(self) -> None:
        """End its 15 minutes now."""
        self.has_expired = True

    @property
    def is_expired(self) -> bool:
        return self.has_expired or time.time() - self.at > _TOKEN_S

    @property
    def callback_type(self) -> int | None:
        """4 message, 5 deferred, 6 deferred update, 7 update, 8 choices, 9 modal; None: no answer yet."""
        return self.callbacks[0][1]["type"] if self.callbacks else None

    @property
    def first_answer_s(self) -> float | None:
        """Seconds from the dispatch to the arrival of the first answer."""
        return self.callbacks[0][0] - self.at if self.callbacks else None

    @property
    def modal(self) -> JSON | None:
        return self.callbacks[0][1]["data"] if self.callback_type == 9 else None

    @property
    def choices(self) -> list[JSON]:
        assert self.callback_type == 8, "no autocomplete was answered"
        chosen: list[JSON] = self.callbacks[0][1]["data"]["choices"]
        return chosen

    @property
    def text(self) -> str:
        """The text of its answer and of its follow-ups, as they are now."""
        shown = [] if self.message is None or self.callback_type == 6 else [self.message]
        return "\n".join(message.text for message in (*shown, *self.followups))

    @property
    def is_settled(self) -> bool:
        """True if it is answered and shows no "thinking…"."""
        if not self.callbacks:
            return False
        if self.callback_type == 6:
            assert self.message is not None
            return bool(self.followups) or self.message.versions[-1][0] > self.at
        return self.message is None or not self.message.is_loading


class WireDiscord:
    """Everything of this Discord: `async with WireDiscord() as discord`."""

    def __init__(self) -> None:
        self.token = f"wire.{secrets.token_hex(8)}"
        self.bot = WireUser("darkroom", is_bot=True)
        self.application_id = self.bot.id
        self.users: dict[int, WireUser] = {self.bot.id: self.bot}
        self.guilds: dict[int, WireGuild] = {}
        self.channels: dict[int, WireChannel] = {}
        self.files: dict[str, WireFile] = {}
        self.interactions: list[WireInteraction] = []
        #: Scope (server, or None for all servers) → its commands; a person sees both.
        self.commands: dict[int | None, list[JSON]] = {}
        #: New commands, which count towards Discord's 200 a day.
        self.command_creates: Counter[int | None] = Counter()
        #: (time, scope, number of commands) of each PUT that was carried out.
        self.syncs: list[tuple[float, int | None, int]] = []
        #: [time, method, path without /api/v10, status (0: none)] of each request.
        self.requests: list[list[Any]] = []
        #: Requests to routes that this Discord does not have: add them to `wire_http`.
        self.unknown_requests: list[str] = []
        #: Nonces for which the message that existed was returned.
        self.repeated_nonces: list[str] = []
        self.faults = Faults()
        self.gateway = Gateway(lambda: self.token, self._ready)
        self.api = WireApi(self)
        self.url = ""
        self._port = 0
        self._runner: web.AppRunner | None = None
        self.guild = self.add_guild("lab")
        self.channel = self.add_channel("gpu")

    def __repr__(self) -> str:
        return f"WireDiscord({self.url}, {len(self.requests)} requests)"

    # -- its life ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen on a free port; after `stop` on the same one."""
        # Handlers of hanging requests are cancelled when their connection ends.
        self._runner = web.AppRunner(
            self.api.application(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Discord is away: connections are cut, new ones refused; what is stored stays."""
        await self.gateway.stop()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def gateway_url(self) -> str:
        return f"{self.url.replace('http', 'ws', 1)}/gateway"

    def _ready(self) -> tuple[JSON, list[JSON]]:
        guilds = [guild for guild in self.guilds.values() if guild.has_bot]
        ready = {
            "v": 10, "user": self.bot.to_json(), "resume_gateway_url": self.gateway_url,
            "guilds": [{"id": str(guild.id), "unavailable": True} for guild in guilds],
            "application": {"id": str(self.application_id), "flags": 0}, "private_channels": [], "user_settings": {},
        }  # fmt: skip
        return ready, [guild.to_json() for guild in guilds]

    # -- building ---------------------------------------------------------------------------------------------------

    def add_guild(self, name: str, *, has_bot: bool = True) -> WireGuild:
        """Add a server; `has_bot=False` until `invite`."""
        guild = make_guild(name, self.bot)
        guild.has_bot = has_bot
        self.guilds[guild.id] = guild
        return guild

    def add_channel(self, name: str, guild: WireGuild | None = None, *, type: int = TEXT) -> WireChannel:  # noqa: A002
        """Add a text channel, or a voice channel with its chat (before the bot connects: it is not told)."""
        return self._added(WireChannel(name, type=type, guild=guild or self.guild))

    def start_thread(self, channel: WireChannel, message: WireMessage, name: str) -> WireChannel:
        """Start a thread from a message of the bot's: it has the message's ID."""
        thread = WireChannel(name, id=message.id, type=PUBLIC_THREAD, guild=channel.guild, parent=channel)
        thread.owner_id = self.bot.id
        return self._added(thread)

    @property
    def threads(self) -> list[WireChannel]:
        """All threads that were not deleted."""
        return [channel for channel in self.channels.values() if channel.parent is not None]

    def add_thread(self, name: str, parent: WireChannel | None = None) -> WireChannel:
        """Add a public thread (before the bot connects: it is not told)."""
        parent = parent or self.channel
        return self._added(WireChannel(name, type=PUBLIC_THREAD, guild=parent.guild, parent=parent))

    def _added(self, channel: WireChannel) -> WireChannel:
        assert channel.guild is not None
        channel.guild.channels.append(channel)
        self.channels[channel.id] = channel
        return channel

    def add_member(self, name: str, guild: WireGuild | None = None, *, permissions: int = 0) -> WireMember:
        """Add a person to a server; `permissions=bits("manage_guild")` makes a manager."""
        guild = guild or self.guild
        user = next((user for user in self.users.values() if user.name == name), None) or WireUser(name)
        self.users[user.id] = user
        roles = []
        if permissions:
            roles = [WireRole(f"{name}'s", permissions)]
            guild.roles += roles
        member = WireMember(user, roles)
        guild.members[user.id] = member
        return member

    def dm_of(self, user: WireUser) -> WireChannel:
        """The direct messages of the bot with a person."""
        for channel in self.channels.values():
            if channel.recipient is user:
                return channel
        channel = WireChannel(f"dm-{user.name}", type=DM, recipient=user)
        self.channels[channel.id] = channel
        return channel

    def guild_of(self, guild_id: int) -> WireGuild:
        """The server, if the bot is there."""
        guild = self.guilds.get(guild_id)
        if guild is None or not guild.has_bot:
            raise Refused(403, 50001, "Missing Access")
        return guild

    # -- changes that the bot is told by the gateway (`is_told=False`: it is not) -----------------------------------

    async def deny(self, channel: WireChannel, *names: str, is_told: bool = True) -> None:
        """Take permissions from the bot in a channel (all but reading if none is named)."""
        denied = bits(*(names or ("send_messages", "send_messages_in_threads", "attach_files")))
        await self._overwrite(channel, denied, is_told)

    async def allow(self, channel: WireChannel, *, is_told: bool = True) -> None:
        """Undo `deny`."""
        await self._overwrite(channel, 0, is_told)

    async def _overwrite(self, channel: WireChannel, denied: int, is_told: bool) -> None:
        channel = channel.parent or channel
        assert channel.guild is not None
        channel.overwrites[channel.guild.bot.roles[0].id] = (0, denied)
        if is_told:
            await self.gateway.dispatch("CHANNEL_UPDATE", channel.to_json())

    async def set_role(self, permissions: int, guild: WireGuild | None = None, *, is_told: bool = True) -> None:
        """Give the bot's role other permissions in the whole server (`BOT_PERMISSIONS` are what it starts with)."""
        guild = guild or self.guild
        role = guild.bot.roles[0]
        role.permissions = permissions
        if is_told:
            await self.gateway.dispatch("GUILD_ROLE_UPDATE", {"guild_id": str(guild.id), "role": role.to_json()})

    async def set_thread(self, thread: WireChannel, *, archived: bool, locked: bool = False) -> None:
        """Archive, lock or open a thread."""
        thread.is_archived, thread.is_locked = archived, locked
        await self.gateway.dispatch("THREAD_UPDATE", thread.to_json())

    async def delete_channel(self, channel: WireChannel, *, is_told: bool = True) -> None:
        """Delete a channel: what is sent there is refused (10003)."""
        assert channel.guild is not None
        channel.guild.channels.remove(channel)
        del self.channels[channel.id]
        if is_told:
            await self.gateway.dispatch("THREAD_DELETE" if channel.parent else "CHANNEL_DELETE", channel.to_json())

    async def invite(self, guild: WireGuild) -> None:
        """Invite the bot to a server."""
        guild.has_bot = True
        # The server of an invitation says nothing of its availability; those of READY are "not unavailable".
        data = {key: value for key, value in guild.to_json().items() if key != "unavailable"}
        await self.gateway.dispatch("GUILD_CREATE", data)

    async def kick(self, guild: WireGuild) -> None:
        """Remove the bot from a server, and with it the server's own commands."""
        guild.has_bot = False
        self.commands.pop(guild.id, None)
        await self.gateway.dispatch("GUILD_DELETE", {"id": str(guild.id)})

    def reset_application(self) -> None:
        """Another application, with another token and no commands, on the same servers."""
        self.token = f"wire.{secrets.token_hex(8)}"
        self.bot.id = self.application_id = snowflake()
        self.users[self.bot.id] = self.bot
        self.commands.clear()
        self.gateway.forget_sessions()

    # -- what it shows ----------------------------------------------------------------------------------------------

    def listed(self, guild: WireGuild | None = None) -> list[str]:
        """The names of the commands that a member of a server sees; a name twice is a fault of the bot."""
        guild = guild or self.guild
        return sorted(each["name"] for scope in (None, guild.id) for each in self.commands.get(scope, []))

    def has(self, message: WireMessage) -> bool:
        """True unless the message was deleted."""
        channel = self.channels.get(message.channel_id)
        return channel is not None and any(each is message for each in channel.messages)

    def remove(self, message: WireMessage) -> None:
        """Delete a message."""
        channel = self.channels[message.channel_id]
        channel.messages.remove(message)
        channel.deleted.append(message)

    def calls(self, method: str, part: str) -> list[list[Any]]:
        """The requests of a method whose path contains `part`."""
        return [each for each in self.requests if each[1] == method and part in each[2]]

    async def until(self, condition: Callable[[], Any], seconds: float = 60, *, what: str = "") -> Any:
        """Wait until a condition holds, and return what it returned."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > end:
                raise AssertionError(f"timed out after {seconds} s{what and ': '}{what}\n{self.transcript()}")
            await asyncio.sleep(0.01)
        return found

    async def until_posted(self, part: str, channel: WireChannel | None = None, seconds: float = 60) -> WireMessage:
        """Wait for a public message that contains `part`; return the first one."""
        where = channel or self.channel
        await self.until(lambda: where.posts(part), seconds, what=part)
        return where.posts(part)[0]

    def transcript(self) -> str:
        """All channels, for a failed test."""
        lines = []
        for channel in self.channels.values():
            lines.append(f"#{channel.name}")
            for message in channel.messages:
                private = " (only one sees it)" if message.flags & EPHEMERAL else ""
                loading = " thinking…" if message.is_loading else ""
                lines.append(f"  [{message.author.name}{private}]{loading} {message.text} {message.file_names or ''}")
        return "\n".join(lines)
