"""Answers to interactions: each is tried again while Discord may still take it, and is given once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from functools import partial
from typing import Any, TypeAlias

import aiohttp
import discord
from discord import app_commands

from bot.clock import backoff_s
from bot.languages import reads_plain_text
from bot.ui.dataset_forms import Form
from bot.ui.layout import FileToSend, MessageContent
from bot.ui.plain_text import plain_text
from bot.ui.upload_posts import Unanswered

log = logging.getLogger(__name__)

_UNKNOWN_MESSAGE, _UNKNOWN_WEBHOOK, _UNKNOWN_INTERACTION = 10008, 10015, 10062
_ALREADY_ACKNOWLEDGED, _INVALID_WEBHOOK_TOKEN = 40060, 50027

#: Discord takes a first answer for 3 s, and says so (10062) after that: its clock counts, not ours.
_FIRST_ANSWER_S, _FIRST_TRY_S = 4.0, 1.5
_FIRST_PAUSE_S = 0.2
#: Later answers are taken for 15 minutes. discord.py repeats a 5xx itself, for 25 s.
_LATER_TRIES, _LATER_TRY_S, _LATER_TRY_WITH_FILES_S = 4, 30.0, 120.0
_LATER_PAUSE_S, _MAX_LATER_PAUSE_S = 1.0, 10.0

_Request: TypeAlias = Callable[[], Awaitable[object]]


class Acknowledgement(Enum):
    """How an interaction is acknowledged before its handler acts."""

    #: Not at all: the handler's own answer is the first, a form or a message for the channel.
    NONE = auto()
    #: "… is thinking": the answer is a new message that only the member sees.
    THINKING = auto()
    #: The answer replaces the message whose button was pressed.
    UPDATE = auto()


class AnswerFailed(Exception):
    """Discord does not take the answer to an interaction; the handler itself may have done its work."""

    def __init__(self, why: Unanswered) -> None:
        self.why = why
        super().__init__(why.value)


# -- first answers ------------------------------------------------------------------------------------------------


async def acknowledge(interaction: discord.Interaction, how: Acknowledgement) -> None:
    """Acknowledge an interaction before anything is changed.

    Raises:
        AnswerFailed: Discord does not take it: the member sees nothing of this interaction.
    """
    if how is Acknowledgement.NONE:
        return
    is_thinking = how is Acknowledgement.THINKING
    await _answer_first(interaction, partial(interaction.response.defer, ephemeral=is_thinking, thinking=is_thinking))
    interaction.extras["is_thinking"] = is_thinking


async def open_form(interaction: discord.Interaction, form: Form) -> None:
    """Answer with a form."""
    # discord.py registers a form once Discord has confirmed it; it may come back although that was lost.
    interaction._state.store_view(form)
    try:
        await _answer_first(interaction, partial(interaction.response.send_modal, form))
    except BaseException:
        form.stop()
        raise


async def offer(interaction: discord.Interaction, choices: Sequence[app_commands.Choice[str]]) -> None:
    """Answer an autocompletion."""
    await _answer_first(interaction, partial(interaction.response.autocomplete, choices))


def is_acknowledged(interaction: discord.Interaction) -> bool:
    """Whether Discord has a first answer, also if its confirmation of that was lost."""
    return interaction.response.is_done() or "is_answered" in interaction.extras


async def _answer_first(interaction: discord.Interaction, request: _Request) -> None:
    clock = asyncio.get_running_loop().time
    ends_at, tries = clock() + _FIRST_ANSWER_S, 1
    while (failure := await _try_first(interaction, request, is_first=tries == 1)) is not None:
        pause = backoff_s(tries, _FIRST_PAUSE_S, 1.0)
        if clock() + pause > ends_at:
            raise AnswerFailed(Unanswered.UNREACHABLE) from failure
        await asyncio.sleep(pause)
        tries += 1
    interaction.extras["is_answered"] = True


async def _try_first(interaction: discord.Interaction, request: _Request, *, is_first: bool) -> Exception | None:
    """Return a failure that may pass, None if Discord has the answer."""
    try:
        async with asyncio.timeout(_FIRST_TRY_S):
            await request()
    except discord.HTTPException as error:
        if error.code == _UNKNOWN_INTERACTION:
            raise AnswerFailed(Unanswered.LATE) from error
        if error.code == _ALREADY_ACKNOWLEDGED:
            if is_first:
                raise AnswerFailed(Unanswered.REPEATED) from error
            # An earlier try did arrive; only Discord's confirmation of it was lost.
            return None
        if not _may_pass(error):
            raise
        return error
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return error
    except (TypeError, KeyError):
        # Of discord.py, about the body of Discord's confirmation.
        if not interaction.response.is_done():
            raise
    return None


# -- answers ------------------------------------------------------------------------------------------------------


async def reply(interaction: discord.Interaction, content: MessageContent) -> None:
    """Answer so that only the member who acted sees it.

    Raises:
        AnswerFailed: Discord does not take the answer.
    """
    content = plain_text(content) if reads_plain_text() else content

    async def first() -> None:
        with opened(content.files) as files:
            await interaction.response.send_message(
                view=content.layout, files=files, ephemeral=True, allowed_mentions=content.allowed_mentions
            )

    async def later() -> None:
        with opened(content.files) as files:
            await interaction.followup.send(
                view=content.layout, files=files, ephemeral=True, allowed_mentions=content.allowed_mentions
            )

    if not is_acknowledged(interaction):
        await _answer_first(interaction, first)
    elif interaction.extras.pop("is_thinking", False):
        # An edit and not a followup: done twice, it is still one message.
        try:
            await _replace(interaction, content)
        except discord.NotFound:
            # The member dismissed it.
            await _answer_later(interaction, later, content)
    else:
        await _answer_later(interaction, later, content)


async def replace(interaction: discord.Interaction, content: MessageContent) -> None:
    """Replace the message whose button was pressed.

    Raises:
        AnswerFailed: Discord does not take the answer.
    """
    # What others see too stays as it is for them.
    is_own = interaction.message is None or interaction.message.flags.ephemeral
    await _replace(interaction, plain_text(content) if is_own and reads_plain_text() else content)


async def renew(interaction: discord.Interaction, content: MessageContent, *, message: discord.Message) -> None:
    """Replace an answer that was given before (`original_response`), while Discord still takes that.

    Raises:
        AnswerFailed: Discord does not take it.
    """
    await _replace(interaction, plain_text(content) if message.flags.ephemeral and reads_plain_text() else content)


async def _replace(interaction: discord.Interaction, content: MessageContent) -> None:

    async def request() -> None:
        with opened(content.files) as files:
            # `attachments` and not `files`: the new files replace the old ones.
            await interaction.edit_original_response(
                view=content.layout, attachments=files, allowed_mentions=content.allowed_mentions
            )

    await _answer_later(interaction, request, content)


async def _answer_later(
    interaction: discord.Interaction, request: _Request, content: MessageContent | None = None
) -> None:
    limit_s = _LATER_TRY_WITH_FILES_S if content is not None and content.files else _LATER_TRY_S
    tries = 0
    while True:
        tries += 1
        asked_s = 0.0
        try:
            async with asyncio.timeout(limit_s):
                await request()
        except discord.HTTPException as error:
            if error.code in {_UNKNOWN_WEBHOOK, _INVALID_WEBHOOK_TOKEN} or error.status == 401:
                raise AnswerFailed(Unanswered.EXPIRED) from error
            if not _may_pass(error):
                raise
            failure: Exception = error
            asked_s = _retry_after_s(error)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            failure = error
        else:
            return
        if tries == _LATER_TRIES:
            raise AnswerFailed(Unanswered.UNREACHABLE) from failure
        log.info("interaction %s: the answer was not taken (%r), trying again", interaction.id, failure)
        await asyncio.sleep(max(asked_s, backoff_s(tries, _LATER_PAUSE_S, _MAX_LATER_PAUSE_S)))


def _may_pass(error: discord.HTTPException) -> bool:
    """Whether the same request may succeed later: Discord's own trouble, a rate limit, a proxy's page."""
    is_page = error.code == 0 and error.status not in {400, 413}
    return error.status >= 500 or error.status in {408, 429} or is_page


def _retry_after_s(error: discord.HTTPException) -> float:
    """The pause that a rate limit asks for, as far as it is worth waiting for."""
    headers = getattr(error.response, "headers", {})
    try:
        return min(float(headers.get("Retry-After", 0)), _MAX_LATER_PAUSE_S)
    except ValueError:
        return 0.0


@contextmanager
def opened(files: Sequence[FileToSend]) -> Iterator[list[discord.File]]:
    """Open files for one request and close them afterwards: discord.py does not close those of a first answer."""
    ready: list[discord.File] = []
    try:
        for file in files:
            # One by one: those that are open are closed even if the next one is missing.
            ready.append(discord.File(file.locate(), filename=file.name))  # noqa: PERF401
        yield ready
    finally:
        for each in ready:
            each.close()


def source_of(interaction: discord.Interaction) -> str:
    """The command or button, for the log."""
    if interaction.command:
        return f"/{interaction.command.qualified_name}"
    data: dict[str, Any] = dict(interaction.data or {})
    return repr(data.get("custom_id", "an interaction"))
