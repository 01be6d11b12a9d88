"""The HTTP API v10 of the loopback Discord: what a bot may do by it, checked and refused as Discord does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.wire.wire_payloads import (
    MAX_FILE_BYTES,
    MAX_REQUEST_BYTES,
    Refused,
    check_choices,
    check_commands,
    check_message,
    check_modal,
    check_thread,
)
from tests.wire.wire_state import (
    COMPONENTS_V2,
    DM,
    EPHEMERAL,
    JSON,
    LOADING,
    PERMISSIONS,
    TEXT,
    WireChannel,
    WireFile,
    WireMessage,
    WireUser,
    snowflake,
    texts_of,
    walk,
)

if TYPE_CHECKING:
    from tests.wire.wire_discord import WireDiscord, WireInteraction

API = "/api/v10"
_NONCE_S = 300.0
#: Discord's own numbers are not documented.
_MAX_THREADS = 1000
_KEPT_FLAGS = (1 << 2) | EPHEMERAL | (1 << 12) | COMPONENTS_V2
PONG, MESSAGE, DEFER_MESSAGE, DEFER_UPDATE, UPDATE, CHOICES, MODAL = 1, 4, 5, 6, 7, 8, 9

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def reply(data: Any = None, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Answer as Discord's API does: the content type is exactly `application/json`, through its proxy."""
    sent = {"Via": "1.1 google", **(headers or {})}
    if data is None:
        return web.Response(status=204, headers=sent)
    return web.Response(status=status, body=json.dumps(data).encode(), content_type="application/json", headers=sent)


class WireApi:
    """The routes; everything they know is in the `WireDiscord`."""

    def __init__(self, discord: WireDiscord) -> None:
        self.discord = discord

    def application(self) -> web.Application:
        """Make the web server."""
        app = web.Application(middlewares=[self._edge], client_max_size=1 << 30)
        routes = app.router
        routes.add_get("/gateway", self.discord.gateway.handle)
        routes.add_get("/attachments/{channel}/{file}/{name}", self._file)
        for method, path, handler in (
            ("GET", "/users/@me", self._me),
            ("GET", "/users/{user}", self._user),
            ("GET", "/oauth2/applications/@me", self._application),
            ("GET", "/applications/@me", self._application),
            ("GET", "/gateway/bot", self._gateway_bot),
            ("GET", "/gateway", self._gateway_bot),
            ("GET", "/guilds/{guild}", self._guild),
            ("GET", "/guilds/{guild}/channels", self._guild_channels),
            ("GET", "/guilds/{guild}/members/{user}", self._member),
            ("GET", "/channels/{channel}", self._channel),
            ("POST", "/users/@me/channels", self._make_dm),
            ("GET", "/applications/{app}/commands", self._get_commands),
            ("PUT", "/applications/{app}/commands", self._put_commands),
            ("GET", "/applications/{app}/guilds/{guild}/commands", self._get_commands),
            ("PUT", "/applications/{app}/guilds/{guild}/commands", self._put_commands),
            ("POST", "/channels/{channel}/messages", self._send),
            ("GET", "/channels/{channel}/messages", self._history),
            ("GET", "/channels/{channel}/messages/{message}", self._get_message),
            ("PATCH", "/channels/{channel}/messages/{message}", self._edit),
            ("DELETE", "/channels/{channel}/messages/{message}", self._delete),
            ("POST", "/channels/{channel}/messages/{message}/threads", self._start_thread),
            ("POST", "/interactions/{id}/{token}/callback", self._callback),
            ("POST", "/webhooks/{app}/{token}", self._follow_up),
            ("GET", "/webhooks/{app}/{token}/messages/{message}", self._get_answer),
            ("PATCH", "/webhooks/{app}/{token}/messages/{message}", self._edit_answer),
            ("DELETE", "/webhooks/{app}/{token}/messages/{message}", self._delete_answer),
        ):
            routes.add_route(method, f"{API}{path}", handler)
        return app

    @web.middleware
    async def _edge(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        path = request.path.removeprefix(API)
        if path == "/gateway" and request.path == path:
            return await handler(request)
        record = [time.time(), request.method, path, 0]
        self.discord.requests.append(record)

        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                return await self._checked(request, handler)
            except Refused as error:
                return web.Response(
                    status=error.status, body=error.body.encode(), content_type="application/json",
                    headers={"Via": "1.1 google"},
                )  # fmt: skip
            except web.HTTPNotFound:
                self.discord.unknown_requests.append(f"{request.method} {path}")
                return reply({"message": "404: Not Found", "code": 0}, status=404)

        has_files = request.content_type.startswith("multipart/")
        fault = self.discord.faults.of(request.method, path, has_files=has_files)
        response = await (handle(request) if fault is None else fault.apply(request, handle))
        record[3] = response.status
        return response

    async def _checked(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/attachments/"):
            return await handler(request)
        needs_token = not request.path.startswith((f"{API}/webhooks/", f"{API}/interactions/"))
        if needs_token and request.headers.get("Authorization") != f"Bot {self.discord.token}":
            raise Refused(401, 0, "401: Unauthorized")
        if (request.content_length or 0) > MAX_REQUEST_BYTES:
            # The whole of it is read, as Discord's proxy does, or the sender would see a broken pipe.
            await request.read()
            raise Refused(413, 40005, "Request entity too large")
        return await handler(request)

    # -- who and where ----------------------------------------------------------------------------------------------

    async def _me(self, request: web.Request) -> web.Response:
        return reply(self.discord.bot.to_json() | {"verified": True, "mfa_enabled": False, "email": None, "flags": 0})

    async def _user(self, request: web.Request) -> web.Response:
        return reply(self._find_user(request.match_info["user"]).to_json())

    def _find_user(self, user_id: str) -> WireUser:
        user = self.discord.users.get(int(user_id))
        if user is None:
            raise Refused(404, 10013, "Unknown User")
        return user

    async def _application(self, request: web.Request) -> web.Response:
        return reply(
            {
                "id": str(self.discord.application_id), "name": self.discord.bot.name, "icon": None, "description": "",
                "bot_public": False, "bot_require_code_grant": False, "verify_key": "0" * 64, "flags": 0, "summary": "",
                "owner": WireUser("owner", id=1).to_json(), "team": None, "interactions_endpoint_url": None,
                "approximate_guild_count": len(self.discord.guilds), "integration_types_config": {"0": {}},
            }
        )  # fmt: skip

    async def _gateway_bot(self, request: web.Request) -> web.Response:
        limit = {"total": 1000, "remaining": 999, "reset_after": 0, "max_concurrency": 1}
        return reply({"url": self.discord.gateway_url, "shards": 1, "session_start_limit": limit})

    async def _guild(self, request: web.Request) -> web.Response:
        return reply(self.discord.guild_of(int(request.match_info["guild"])).to_json())

    async def _guild_channels(self, request: web.Request) -> web.Response:
        guild = self.discord.guild_of(int(request.match_info["guild"]))
        return reply([channel.to_json() for channel in guild.channels if channel.parent is None])

    async def _member(self, request: web.Request) -> web.Response:
        guild = self.discord.guild_of(int(request.match_info["guild"]))
        user_id = int(request.match_info["user"])
        member = guild.bot if user_id == self.discord.bot.id else guild.members.get(user_id)
        if member is None:
            raise Refused(404, 10007, "Unknown Member")
        return reply(member.to_json())

    async def _channel(self, request: web.Request) -> web.Response:
        return reply(self._require(request, "view_channel").to_json())

    async def _make_dm(self, request: web.Request) -> web.Response:
        user = self._find_user(str((await request.json())["recipient_id"]))
        if user.is_bot:
            raise Refused(400, 50007, "Cannot send messages to this user")
        return reply(self.discord.dm_of(user).to_json())

    # -- commands ---------------------------------------------------------------------------------------------------

    def _scope(self, request: web.Request) -> int | None:
        if int(request.match_info["app"]) != self.discord.application_id:
            raise Refused(403, 20012, "You are not authorized to perform this action on this application")
        guild = request.match_info.get("guild")
        return None if guild is None else self.discord.guild_of(int(guild)).id

    async def _get_commands(self, request: web.Request) -> web.Response:
        return reply(self.discord.commands.get(self._scope(request), []))

    async def _put_commands(self, request: web.Request) -> web.Response:
        scope, wanted = self._scope(request), await request.json()
        check_commands(wanted)
        known = {(each["type"], each["name"]): each for each in self.discord.commands.get(scope, [])}
        stored = []
        for command in wanted:
            key = (command.get("type", 1), command["name"])
            earlier = known.get(key)
            if earlier is None:
                self.discord.command_creates[scope] += 1
            stored.append(
                {
                    "id": earlier["id"] if earlier else str(snowflake()), "type": 1, "version": str(snowflake()),
                    "application_id": str(self.discord.application_id), "default_member_permissions": None,
                    "name_localizations": None, "description_localizations": None, "nsfw": False, "description": "",
                    **({} if scope is None else {"guild_id": str(scope)}),
                }
                | command
            )  # fmt: skip
        if self.discord.command_creates[scope] > 200:
            raise Refused(400, 30034, "Maximum number of daily application command creates has been reached (200)")
        self.discord.commands[scope] = stored
        self.discord.syncs.append((time.time(), scope, len(stored)))
        return reply(stored)

    # -- messages of the bot ----------------------------------------------------------------------------------------

    def _require(self, request: web.Request, *names: str) -> WireChannel:
        """The channel of the request, if the bot may do that there."""
        channel = self.discord.channels.get(int(request.match_info["channel"]))
        if channel is None:
            raise Refused(404, 10003, "Unknown Channel")
        if channel.type == DM:
            return channel
        assert channel.guild is not None
        if not channel.guild.has_bot:
            raise Refused(403, 50001, "Missing Access")
        has = channel.guild.permissions_of(channel.guild.bot, channel)
        if not has & PERMISSIONS["view_channel"]:
            raise Refused(403, 50001, "Missing Access")
        if not all(has & PERMISSIONS[name] for name in names):
            raise Refused(403, 50013, "Missing Permissions")
        return channel

    async def _send(self, request: web.Request) -> web.Response:
        payload, files = await read_payload(request)
        channel = self._require(request)
        is_thread = channel.parent is not None
        self._require(
            request, "send_messages_in_threads" if is_thread else "send_messages", *(["attach_files"] if files else [])
        )
        if channel.is_locked:
            raise Refused(403, 160005, "Thread is locked")
        if channel.recipient is not None and not channel.recipient.accepts_dms:
            raise Refused(403, 50007, "Cannot send messages to this user")
        check_message(payload, file_names=[file.name for file in files], is_edit=False)
        nonce = payload.get("nonce")
        if payload.get("enforce_nonce") and nonce is not None:
            for message in reversed(channel.messages):
                if str(message.nonce) == str(nonce) and time.time() - message.arrived_at < _NONCE_S:
                    self.discord.repeated_nonces.append(str(nonce))
                    return reply(message.to_json(self.discord.url))
        # A message in an archived thread that is not locked opens it again.
        channel.is_archived = False
        message = self.post(channel, self.discord.bot, payload, files)
        message.nonce = nonce
        # Only this answer repeats the nonce.
        return reply(message.to_json(self.discord.url) | {"nonce": nonce})

    async def _history(self, request: web.Request) -> web.Response:
        channel = self._require(request, "read_message_history")
        query = request.query
        found = [message for message in channel.messages if not message.is_ephemeral]
        if "before" in query:
            found = [message for message in found if message.id < int(query["before"])]
        if "after" in query:
            found = [message for message in found if message.id > int(query["after"])][: int(query.get("limit", 50))]
        limit = int(query.get("limit", 50))
        if not 1 <= limit <= 100:
            raise Refused(400, 50035, "Invalid Form Body", errors={})
        return reply([message.to_json(self.discord.url) for message in found[::-1][:limit]])

    def _message_of(self, channel: WireChannel, message_id: str) -> WireMessage:
        for message in channel.messages:
            if message.id == int(message_id) and not message.is_ephemeral:
                return message
        raise Refused(404, 10008, "Unknown Message")

    async def _get_message(self, request: web.Request) -> web.Response:
        channel = self._require(request, "read_message_history")
        return reply(self._message_of(channel, request.match_info["message"]).to_json(self.discord.url))

    async def _edit(self, request: web.Request) -> web.Response:
        payload, files = await read_payload(request)
        channel = self._require(request)
        message = self._message_of(channel, request.match_info["message"])
        if message.author.id != self.discord.bot.id:
            raise Refused(403, 50005, "Cannot edit a message authored by another user")
        if channel.is_archived or channel.is_locked:
            raise Refused(400, 50083, "Thread is archived")
        if files:
            self._require(request, "attach_files")
        self.change(message, payload, files)
        return reply(message.to_json(self.discord.url))

    async def _start_thread(self, request: web.Request) -> web.Response:
        payload = await request.json()
        channel = self._require(request, "create_public_threads")
        if channel.type != TEXT:
            raise Refused(400, 50024, "Cannot execute action on this channel type")
        message = self._message_of(channel, request.match_info["message"])
        check_thread(payload)
        assert channel.guild is not None
        if message.id in self.discord.channels:
            raise Refused(400, 160004, "A thread has already been created for this message")
        if sum(each.parent is not None and not each.is_archived for each in channel.guild.channels) >= _MAX_THREADS:
            raise Refused(400, 160006, "Maximum number of active threads reached")
        thread = self.discord.start_thread(channel, message, payload["name"])
        await self.discord.gateway.dispatch("THREAD_CREATE", thread.to_json() | {"newly_created": True})
        return reply(thread.to_json())

    async def _delete(self, request: web.Request) -> web.Response:
        channel = self._require(request)
        message = self._message_of(channel, request.match_info["message"])
        if message.author.id != self.discord.bot.id:
            raise Refused(403, 50013, "Missing Permissions")
        self.discord.remove(message)
        return reply()

    # -- answers to interactions ------------------------------------------------------------------------------------

    def _interaction(self, token: str) -> WireInteraction:
        for interaction in self.discord.interactions:
            if interaction.token == token:
                return interaction
        raise Refused(404, 10015, "Unknown Webhook")

    async def _callback(self, request: web.Request) -> web.Response:
        payload, files = await read_payload(request)
        arrived_at = time.time()
        interaction = next(
            (each for each in self.discord.interactions if str(each.id) == request.match_info["id"]), None
        )
        if interaction is None or interaction.token != request.match_info["token"] or interaction.is_late(arrived_at):
            raise Refused(404, 10062, "Unknown interaction")
        if interaction.callbacks:
            raise Refused(400, 40060, "Interaction has already been acknowledged.")
        message = self._carry_out(interaction, payload["type"], payload.get("data") or {}, files)
        interaction.callbacks.append((arrived_at, payload))
        if request.query.get("with_response") not in {"1", "true"}:
            return reply()
        made: JSON = {"id": str(interaction.id), "type": interaction.type}
        resource: JSON = {"type": payload["type"]}
        if message is not None:
            made |= {
                "response_message_id": str(message.id), "response_message_loading": message.is_loading,
                "response_message_ephemeral": message.is_ephemeral,
            }  # fmt: skip
            if payload["type"] in {MESSAGE, UPDATE}:
                resource["message"] = message.to_json(self.discord.url)
        return reply({"interaction": made, "resource": resource})

    def _carry_out(
        self, interaction: WireInteraction, kind: int, data: JSON, files: list[WireFile]
    ) -> WireMessage | None:
        names = [file.name for file in files]
        if kind == CHOICES and interaction.type == 4:
            check_choices(data.get("choices") or [])
        elif interaction.type == 4:
            raise Refused(400, 50035, "Invalid Form Body", errors={})
        elif kind == MODAL:
            check_modal(data)
        elif kind == MESSAGE:
            check_message(data, file_names=names, is_edit=False)
            interaction.message = self.post(interaction.channel, self.discord.bot, data, files, interaction)
        elif kind == DEFER_MESSAGE:
            flags = int(data.get("flags") or 0) & EPHEMERAL | LOADING
            interaction.message = self.post(interaction.channel, self.discord.bot, {"flags": flags}, [], interaction)
        elif kind in {DEFER_UPDATE, UPDATE} and interaction.source is not None:
            interaction.message = interaction.source
            if kind == UPDATE:
                self.change(interaction.source, data, files)
        else:
            raise Refused(400, 50035, "Invalid Form Body", errors={"type": {"_errors": []}})
        return interaction.message

    async def _follow_up(self, request: web.Request) -> web.Response:
        payload, files = await read_payload(request)
        interaction = self._living(request)
        original = interaction.message
        if original is not None and original.is_loading:
            # The first follow-up after a deferral becomes the answer; it is as private as the deferral was.
            self.change(original, payload, files)
            message = original
        else:
            check_message(payload, file_names=[file.name for file in files], is_edit=False)
            message = self.post(interaction.channel, self.discord.bot, payload, files, interaction)
            interaction.followups.append(message)
        return reply(message.to_json(self.discord.url))

    def _living(self, request: web.Request) -> WireInteraction:
        interaction = self._interaction(request.match_info["token"])
        if interaction.is_expired:
            raise Refused(401, 50027, "Invalid Webhook Token")
        if not interaction.callbacks:
            raise Refused(404, 10015, "Unknown Webhook")
        return interaction

    def _answer(self, request: web.Request) -> WireMessage:
        interaction = self._living(request)
        wanted = request.match_info["message"]
        candidates = [interaction.message] if wanted == "@original" else [interaction.message, *interaction.followups]
        for message in candidates:
            if message is not None and wanted in {"@original", str(message.id)} and self.discord.has(message):
                return message
        raise Refused(404, 10008, "Unknown Message")

    async def _get_answer(self, request: web.Request) -> web.Response:
        return reply(self._answer(request).to_json(self.discord.url))

    async def _edit_answer(self, request: web.Request) -> web.Response:
        payload, files = await read_payload(request)
        message = self._answer(request)
        self.change(message, payload, files)
        return reply(message.to_json(self.discord.url))

    async def _delete_answer(self, request: web.Request) -> web.Response:
        self.discord.remove(self._answer(request))
        return reply()

    # -- the effect of a payload ------------------------------------------------------------------------------------

    def post(
        self,
        channel: WireChannel,
        author: WireUser,
        payload: JSON,
        files: list[WireFile],
        interaction: WireInteraction | None = None,
    ) -> WireMessage:
        """Make a message."""
        flags = int(payload.get("flags") or 0) & (_KEPT_FLAGS | LOADING)
        message = WireMessage(channel_id=channel.id, author=author, flags=flags)
        if interaction is not None:
            message.webhook_id = self.discord.application_id
        self._fill(message, payload, files)
        message.mentions = mentioned(payload, message.text, is_webhook=interaction is not None)
        channel.messages.append(message)
        return message

    def change(self, message: WireMessage, payload: JSON, files: list[WireFile]) -> None:
        """Edit a message: what the payload leaves out stays, and new files are added to those that stay."""
        kept = message.files
        if payload.get("attachments") is not None:
            ids = {str(each["id"]) for each in payload["attachments"]}
            kept = [file for file in message.files if str(file.id) in ids]
        flags = message.flags | int(payload.get("flags") or 0) & COMPONENTS_V2
        merged = {"components": message.components, "content": message.content} | payload | {"flags": flags}
        is_v2 = bool(flags & COMPONENTS_V2)
        if is_v2 and "content" not in payload:
            merged["content"] = ""
        check_message(
            merged,
            file_names=[file.name for file in files],
            kept_names=tuple(file.name for file in kept),
            is_edit=True,
        )
        message.flags = flags & ~LOADING
        message.files = kept
        message.edited_at = time.time()
        self._fill(message, payload, files)

    def _fill(self, message: WireMessage, payload: JSON, files: list[WireFile]) -> None:
        for file in files:
            if len(file.content) > MAX_FILE_BYTES:
                raise Refused(413, 40005, "Request entity too large")
            file.channel_id = message.channel_id
            self.discord.files[file.path] = file
        message.files = [*message.files, *files]
        if "content" in payload:
            message.content = payload["content"] or ""
        if "embeds" in payload:
            message.embeds = payload["embeds"] or []
        if "components" in payload:
            message.components = self._resolved(message, payload["components"] or [])
        message.versions.append((time.time(), message.text))

    def _resolved(self, message: WireMessage, components: list[JSON]) -> list[JSON]:
        """Components as Discord returns them: numbered, and with the addresses of attachments."""
        made: list[JSON] = json.loads(json.dumps(components))
        files = {f"attachment://{file.name}": file.to_json(self.discord.url) for file in message.files}
        for number, each in enumerate(walk(made), 1):
            each.setdefault("id", number)
            media = [each.get("media"), each.get("file"), *(item["media"] for item in each.get("items", []))]
            for item in filter(None, media):
                if (file := files.get(item["url"])) is not None:
                    item |= {key: file[key] for key in ("url", "proxy_url", "content_type")}
                    item |= {"attachment_id": file["id"], "width": None, "height": None, "loading_state": 2}
                    if each["type"] == 13:
                        each |= {"name": file["filename"], "size": file["size"]}
        return made

    async def _file(self, request: web.Request) -> web.Response:
        file = self.discord.files.get(request.path)
        if file is None or "hm" not in request.query:
            return web.Response(status=404, text="This content is no longer available.")
        return web.Response(body=file.content, content_type=file.content_type)


async def read_payload(request: web.Request) -> tuple[JSON, list[WireFile]]:
    """Read JSON, or a form of `payload_json` and `files[n]`."""
    try:
        if not (request.content_type or "").startswith("multipart/"):
            return (json.loads(await request.text() or "{}"), [])
        payload: JSON = {}
        files: list[WireFile] = []
        form = await request.multipart()
        while (part := await form.next()) is not None:
            content = bytes(await part.read(decode=False))  # type: ignore[union-attr]
            name = getattr(part, "name", "") or ""
            if name == "payload_json":
                payload = json.loads(content)
            elif name.startswith("files["):
                files.append(WireFile(getattr(part, "filename", "") or "file", content))
    except (ValueError, asyncio.IncompleteReadError) as error:
        raise Refused(400, 50109, "The request body contains invalid JSON.") from error
    _rename(payload, files)
    return payload.get("data", payload) if "type" not in payload else payload, files


def _rename(payload: JSON, files: list[WireFile]) -> None:
    """`attachments` of the payload may give the n-th file another name."""
    listed = (payload.get("data") or payload).get("attachments") or []
    for each in listed:
        with suppress(ValueError, IndexError):
            if each.get("filename") and int(each["id"]) < len(files):
                files[int(each["id"])].name = each["filename"]


def mentioned(payload: JSON, text: str, *, is_webhook: bool) -> list[int]:
    """The users whom a new message notifies, by `allowed_mentions`; without it all, in an answer users only."""
    text = "\n".join([payload.get("content") or "", *texts_of(payload.get("components") or [])]) or text
    named = [int(part.partition(">")[0]) for part in text.replace("<@!", "<@").split("<@")[1:]
             if part.partition(">")[0].isdigit()]  # fmt: skip
    allowed = payload.get("allowed_mentions")
    if allowed is None or "users" in allowed.get("parse", []):
        return sorted(set(named))
    return sorted({user for user in named if str(user) in map(str, allowed.get("users", []))})
