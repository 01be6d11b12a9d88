"""Sends, edits and finds messages in Discord, and decides what follows each answer: `outcome_of` is the one table."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
import discord

from bot.cogs.replies import opened
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
from bot.ui.discord_text import missing_permissions, shorten
from bot.ui.layout import MessageContent
from trainer.protocol.text import _

log = logging.getLogger(__name__)

#: Messages that `find` searches: after a crash the bot has posted little in between.
_SEARCHED_MESSAGES = 100
#: Messages whose file names are cached; more than there are live cards.
_MAX_CACHED = 256
#: Time limit of a request, and for its files in addition: a line of one megabit a second.
_REQUEST_TIMEOUT_S, _SLOWEST_BYTES_PER_S = 30.0, 125_000
#: Characters of a refused message that are logged.
_MAX_LOGGED = 8_000
_UNAUTHORIZED = 401
#: No refusals of what was asked for: the token, a time-out, a rate limit.
_PASSING = frozenset({_UNAUTHORIZED, 408, 429})
_THREAD_EXISTS = 160004
#: Minutes without a message after which Discord hides a thread from the channel list; a message brings it back.
_ARCHIVE_AFTER_MIN: Final = 1440
_MAX_THREAD_NAME = 100


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An answer of Discord, or of a proxy before it, that is no success."""

    status: int
    #: Discord's own code; 0: none, as in the HTML of a proxy.
    code: int = 0
    text: str = ""
    #: It is Discord's own answer, in JSON, and no page of a proxy.
    is_discords: bool = True
    #: Of a rate limit; None: it does not say.
    retry_after_s: float | None = None
    is_global: bool = False

    def __str__(self) -> str:
        code = f" {self.code}" if self.code else ""
        return f"{self.status}{code} {' '.join(self.text.split())[:200]}".rstrip()


def outcome_of(refusal: Refusal) -> DeliveryFailed:
    """Return what follows an answer: the first line of `_OUTCOMES` that applies; for anything else, another try."""
    for status, code, outcome in _OUTCOMES:
        if status in {None, refusal.status} and code in {None, refusal.code}:
            return outcome(refusal)
    return SendLater(str(refusal), may_exist=refusal.status >= 500)


def _rate_limit(refusal: Refusal) -> DeliveryFailed:
    seconds = refusal.retry_after_s
    return SendLater(
        str(refusal), after_s=seconds, is_counted=seconds is None, is_global=refusal.is_global, may_exist=False
    )


def _outcome(kind: type[DeliveryFailed]) -> Callable[[Refusal], DeliveryFailed]:
    return lambda refusal: kind(str(refusal))


def _hold(kind: HoldReason) -> Callable[[Refusal], DeliveryFailed]:
    return lambda refusal: ChannelHeld(str(refusal), kind=kind)


#: What follows an answer by its status and Discord's code (None: any); nothing else decides it. A code is never 0, so
#: that the HTML of a proxy matches no line with one.
#: https://docs.discord.com/developers/topics/opcodes-and-status-codes
_OUTCOMES: tuple[tuple[int | None, int | None, Callable[[Refusal], DeliveryFailed]], ...] = (
    # Too many edits of a message older than an hour: a 429, but only a new message helps.
    (None, 30046, _outcome(MessageGone)),
    (429, None, _rate_limit),
    (413, None, _outcome(MessageTooLarge)),
    (None, 40005, _outcome(MessageTooLarge)),
    (400, 50035, _outcome(MessageRefused)),
    (403, 50001, _hold(HoldReason.NO_ACCESS)),
    (403, 50013, _hold(HoldReason.NO_PERMISSION)),
    (None, 50083, _hold(HoldReason.ARCHIVED)),
    (None, 160005, _hold(HoldReason.LOCKED)),
    (404, 10003, _outcome(ChannelGone)),
    (404, 10008, _outcome(MessageGone)),
    # Sent by another application, whose database this was.
    (403, 50005, _outcome(MessageGone)),
    # No direct messages: closed, no server in common, no such user.
    (403, 50007, _outcome(RecipientUnreachable)),
    (403, 50278, _outcome(RecipientUnreachable)),
    (404, 10013, _outcome(RecipientUnreachable)),
    (400, 50033, _outcome(RecipientUnreachable)),
)


def thread_outcome_of(refusal: Refusal) -> DeliveryFailed:
    """Return what follows an answer to a thread that was to be started: a refusal by Discord itself is final."""
    if refusal.code == _THREAD_EXISTS:
        return ThreadExists(str(refusal))
    outcome = outcome_of(refusal)
    is_passing = refusal.status >= 500 or refusal.status in _PASSING or not refusal.code
    if isinstance(outcome, MessageGone) or (isinstance(outcome, SendLater) and is_passing):
        return outcome
    return NoThread(str(refusal))


class ThreadExists(DeliveryFailed):
    """The message has a thread already: that of an earlier try."""


class Poster:
    """`bot.outbox.Transport` over the current discord.py client.

    Args:
        client: Returns the newest client.
        on_token_refused: Called when Discord refuses the token; the message waits for a bot with another one.
        timeout_s: Time limit of a request; files have more.
    """

    def __init__(
        self,
        client: Callable[[], discord.Client | None],
        *,
        on_token_refused: Callable[[], None] = lambda: None,
        timeout_s: float = _REQUEST_TIMEOUT_S,
    ) -> None:
        self._client = client
        self._on_token_refused = on_token_refused
        self._timeout_s = timeout_s
        #: Names of a message's files: a card is edited every few seconds, its chart changes once an epoch.
        self._file_names: dict[int, tuple[str, ...]] = {}

    def is_ready(self) -> bool:
        """See `Transport.is_ready`."""
        client = self._client()
        return client is not None and client.is_ready()

    async def open_dm(self, user_id: int) -> int:
        """See `Transport.open_dm`."""
        client = self._connected()
        async with self._request():
            channel = await client.http.start_private_message(user_id)
            return int(channel["id"])

    async def send(self, channel_id: int, message: MessageContent, nonce: str) -> int:
        """See `Transport.send`."""
        channel = self._channel(channel_id)
        # Of the message only the IDs of its components come back as they were sent, and no user sees them.
        message.layout.children[0].id = component_id(nonce)
        with opened(message.files) as files:
            async with self._request(channel_id, message, files, reference=reference(nonce)):
                # discord.py sends `enforce_nonce` with each nonce: Discord then returns an existing message.
                if message.text:
                    sent = await channel.send(
                        f"{message.text}\n{_reference_line(nonce)}",
                        nonce=nonce,
                        silent=message.is_silent,
                        allowed_mentions=message.allowed_mentions,
                    )
                else:
                    sent = await channel.send(
                        view=message.layout,
                        files=files,
                        nonce=nonce,
                        silent=message.is_silent,
                        allowed_mentions=message.allowed_mentions,
                    )
        self._cache_names(sent.id, message)
        return sent.id

    async def edit(self, channel_id: int, message_id: int, message: MessageContent) -> None:
        """See `Transport.edit`."""
        if self._file_names.get(message_id) == _names(message):
            try:
                await self._edit(channel_id, message_id, message)
            except MessageRefused:
                if not message.files:
                    raise
                # Discord no longer has the files.
            else:
                return
        with opened(message.files) as files:
            await self._edit(channel_id, message_id, message, files)
        self._cache_names(message_id, message)

    async def _edit(
        self, channel_id: int, message_id: int, message: MessageContent, files: Sequence[discord.File] | None = None
    ) -> None:
        """Edit a message; with `files` None it keeps those that it has."""
        target = self._channel(channel_id).get_partial_message(message_id)
        # `attachments` and not `files`: the new images replace the old ones.
        attachments = discord.utils.MISSING if files is None else files
        async with self._request(channel_id, message, files or (), reference=str(message_id)):
            await target.edit(
                view=message.layout, attachments=attachments, allowed_mentions=discord.AllowedMentions.none()
            )

    def _cache_names(self, message_id: int, message: MessageContent) -> None:
        self._file_names.pop(message_id, None)
        self._file_names[message_id] = _names(message)
        if len(self._file_names) > _MAX_CACHED:
            del self._file_names[next(iter(self._file_names))]

    async def delete(self, channel_id: int, message_id: int) -> None:
        """See `Transport.delete`."""
        async with self._request(channel_id):
            await self._connected().http.delete_message(channel_id, message_id)

    async def find(self, channel_id: int, nonce: str) -> int | None:
        """See `Transport.find`."""
        channel = self._channel(channel_id)
        me = self._connected().user
        try:
            async with self._request(channel_id):
                async for message in channel.history(limit=_SEARCHED_MESSAGES):
                    if me is not None and message.author.id == me.id and _has_nonce(message, nonce):
                        return message.id
        except ChannelHeld as error:
            # It may be allowed to write and not to read: then the nonce alone prevents a second message.
            log.info("channel %d cannot be searched: %s", channel_id, error.reason)
        return None

    async def start_thread(self, channel_id: int, message_id: int, name: str) -> int:
        """See `Transport.start_thread`."""
        http = self._connected().http
        try:
            async with self._request(channel_id, outcome=thread_outcome_of):
                thread = await http.start_thread_with_message(
                    channel_id,
                    message_id,
                    name=shorten(name, _MAX_THREAD_NAME),
                    auto_archive_duration=_ARCHIVE_AFTER_MIN,
                )
                return int(thread["id"])
        except ThreadExists:
            # A thread has the ID of the message that it starts from.
            return message_id

    def _connected(self) -> discord.Client:
        client = self._client()
        if client is None or not client.is_ready():
            raise SendLater("not connected to Discord", is_counted=False, may_exist=False)
        return client

    def _channel(self, channel_id: int) -> discord.PartialMessageable:
        return self._connected().get_partial_messageable(channel_id)

    @asynccontextmanager
    async def _request(
        self,
        channel_id: int = 0,
        message: MessageContent | None = None,
        files: Sequence[discord.File] = (),
        *,
        reference: str = "",
        outcome: Callable[[Refusal], DeliveryFailed] = outcome_of,
    ) -> AsyncIterator[None]:
        """Limit the time of a request, and convert its failures to what follows from them."""
        size = sum(os.fstat(file.fp.fileno()).st_size for file in files)
        token = _raises_refusals.set(True)
        try:
            async with asyncio.timeout(self._timeout_s + size / _SLOWEST_BYTES_PER_S):
                yield
        except TimeoutError as error:
            raise SendLater(f"no answer within {self._timeout_s:.0f} s") from error
        except (RefusedByDiscord, discord.HTTPException) as error:
            refusal = _refusal_of(error)
            failure = self._with_permissions(outcome(refusal), channel_id)
            if refusal.status == _UNAUTHORIZED and refusal.is_discords:
                self._on_token_refused()
            if isinstance(failure, MessageRefused) and message is not None:
                log.error("ref %s: Discord refuses a message: %s: %s", reference, failure.reason, _wire(message))  # noqa: TRY400
            raise failure from error
        except discord.RateLimited as error:
            raise SendLater("rate limit", after_s=error.retry_after, is_counted=False, may_exist=False) from error
        except aiohttp.ClientConnectorError as error:
            raise SendLater(f"Discord cannot be reached ({error})", is_counted=False, may_exist=False) from error
        except (aiohttp.ClientError, OSError) as error:
            raise SendLater(f"the connection broke ({error or type(error).__name__})") from error
        except Exception as error:
            # discord.py could not read the answer (HTML with the status 200, a field that is missing).
            log.exception("an answer of Discord could not be read")
            raise SendLater(f"an answer that cannot be read ({error!r})") from error
        finally:
            _raises_refusals.reset(token)

    def _with_permissions(self, failure: DeliveryFailed, channel_id: int) -> DeliveryFailed:
        """Add to the reason of a held channel which permissions are missing."""
        if isinstance(failure, ChannelHeld) and (lacking := self._lacking(channel_id)):
            return ChannelHeld(f"{failure.reason} ({', '.join(lacking)})", kind=failure.kind)
        return failure

    def _lacking(self, channel_id: int) -> list[str]:
        """The permissions that the bot lacks in a channel, as far as the client knows."""
        channel = self._connected().get_channel(channel_id)
        if not isinstance(channel, discord.abc.GuildChannel | discord.Thread):
            return []
        return missing_permissions(channel.permissions_for(channel.guild.me))


# -- refusals -----------------------------------------------------------------------------------------------------

#: True in a task while it makes a request of the poster.
_raises_refusals: ContextVar[bool] = ContextVar("raises_refusals", default=False)


class RefusedByDiscord(Exception):
    """Raised out of discord.py's request, which would repeat it up to five times and sleep meanwhile."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(str(refusal))


def raise_refusals(trace: aiohttp.TraceConfig) -> aiohttp.TraceConfig:
    """Let a trace for `discord.Client(http_trace=…)` raise each refusal of a poster's request; returns the trace.

    Otherwise a 429 or a 500 in a channel is repeated by discord.py for up to half a minute before anything else can
    decide about it.
    """
    trace.on_request_end.append(_raise_refusal)
    return trace


async def _raise_refusal(
    _session: aiohttp.ClientSession, _context: SimpleNamespace, end: aiohttp.TraceRequestEndParams
) -> None:
    response = end.response
    if response.status >= 400 and _raises_refusals.get():
        raise RefusedByDiscord(_read_refusal(response.status, response.headers, await response.text(errors="replace")))


def _read_refusal(status: int, headers: Any, body: str) -> Refusal:
    try:
        data = json.loads(body)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        seconds = _seconds(headers.get("Retry-After"))
        return Refusal(status=status, text=body, is_discords=False, retry_after_s=seconds)
    code = data.get("code", 0)
    return Refusal(
        status=status,
        code=code if isinstance(code, int) else 0,
        text=f"{data.get('message', '')} {json.dumps(data['errors']) if data.get('errors') else ''}",
        retry_after_s=_seconds(data.get("retry_after", headers.get("Retry-After"))),
        is_global=data.get("global") is True,
    )


def _seconds(value: Any) -> float | None:
    try:
        return max(0.0, float(value))
    except (TypeError, ValueError):
        return None


def _refusal_of(error: RefusedByDiscord | discord.HTTPException) -> Refusal:
    if isinstance(error, RefusedByDiscord):
        return error.refusal
    return Refusal(status=error.status, code=error.code, text=error.text)


def _names(message: MessageContent) -> tuple[str, ...]:
    return tuple(file.name for file in message.files)


def _wire(message: MessageContent) -> str:
    """The message as it was sent, for the log."""
    components = message.layout.to_components()  # type: ignore[no-untyped-call]
    sent = {"content": message.text} if message.text else {"components": components, "files": _names(message)}
    return json.dumps(sent, ensure_ascii=False)[:_MAX_LOGGED]


# -- how a message is found again ---------------------------------------------------------------------------------


def reference(nonce: str) -> str:
    """Return the name of a message in the log, and at the end of one that Discord takes as plain text only."""
    return nonce[:8]


def component_id(nonce: str) -> int:
    """Return the ID of the first component of a message: 31 bits, not 0 (0 stands for none)."""
    return int(hashlib.sha256(nonce.encode()).hexdigest()[:8], 16) % (2**31 - 1) + 1


def _reference_line(nonce: str) -> str:
    return _("-# Reference {reference}", reference=reference(nonce))


def _has_nonce(message: discord.Message, nonce: str) -> bool:
    if message.components:
        return getattr(message.components[0], "id", None) == component_id(nonce)
    return message.content.endswith(reference(nonce))
