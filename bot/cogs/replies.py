"""Answers to interactions, and the one place that turns an exception into a sentence for the person who caused it."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import discord
from discord import app_commands

from bot.errors import DarkroomError, NotAllowed
from bot.ui.dataset_forms import Form, FormCallback
from bot.ui.discord_text import escape
from bot.ui.layout import FileToSend, MessageContent, text_message
from trainer.protocol.spec import SpecError
from trainer.protocol.text import _, listed

log = logging.getLogger(__name__)

#: Letters and digits that cannot be confused when read aloud.
_REFERENCE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
_UNKNOWN_INTERACTION = 10062
_MAX_SENTENCE_CHARS = 1500


async def reply(interaction: discord.Interaction, content: MessageContent) -> None:
    """Answer so that only the member who acted sees it."""
    # After defer(thinking=True) the first followup replaces "… is thinking".
    answer = interaction.followup.send if interaction.response.is_done() else interaction.response.send_message
    with opened(content.files) as files:
        await answer(view=content.layout, files=files, ephemeral=True, allowed_mentions=content.allowed_mentions)


async def announce(interaction: discord.Interaction, content: MessageContent) -> None:
    """Answer with a message that the whole channel sees."""
    with opened(content.files) as files:
        await interaction.response.send_message(
            view=content.layout, files=files, silent=content.is_silent, allowed_mentions=content.allowed_mentions
        )


async def replace(interaction: discord.Interaction, content: MessageContent) -> None:
    """Replace the message whose button was pressed, also after a defer."""
    is_done = interaction.response.is_done()
    edit = interaction.edit_original_response if is_done else interaction.response.edit_message
    with opened(content.files) as files:
        # `attachments` and not `files`: the new files replace the old ones.
        await edit(view=content.layout, attachments=files, allowed_mentions=discord.AllowedMentions.none())


@contextmanager
def opened(files: Sequence[FileToSend]) -> Iterator[list[discord.File]]:
    """Open files for one request and close them afterwards: discord.py does not close those of a first answer."""
    ready: list[discord.File] = []
    try:
        for file in files:
            # One by one: those that are open are closed even if the next one is missing.
            ready.append(discord.File(file.path, filename=file.name))  # noqa: PERF401
        yield ready
    finally:
        for each in ready:
            each.close()


# -- errors -------------------------------------------------------------------------------------------------------


async def reply_error(interaction: discord.Interaction, error: BaseException) -> bool:
    """Answer with the error's sentence; return False if that failed.

    An unexpected error is logged under the reference that the member is shown.
    """
    error = _cause(error)
    if isinstance(error, discord.NotFound) and error.code == _UNKNOWN_INTERACTION:
        log.warning("an interaction came too late to be answered (%s)", interaction.id)
        return False
    sentence = error_sentence(error)
    if sentence is None:
        reference = "".join(secrets.choice(_REFERENCE_LETTERS) for _letter in range(4))
        log.error("ref %s: %s failed", reference, _source(interaction), exc_info=error)
        sentence = _("Something broke on my side. Nothing was lost. Ref {reference}.", reference=reference)
    try:
        await reply(interaction, text_message(sentence))
    except discord.HTTPException:
        log.exception("an error could not be reported: %s", sentence)
        return False
    return True


def reporting_errors(handler: FormCallback) -> FormCallback:
    """Wrap a form's callback so that its errors are reported like those of commands."""

    async def handled(interaction: discord.Interaction, form: Form) -> None:
        try:
            await handler(interaction, form)
        except Exception as error:  # noqa: BLE001 - the edge to Discord: every failure becomes a sentence.
            await reply_error(interaction, error)

    return handled


def error_sentence(error: BaseException) -> str | None:
    """Return the sentence of an expected error, None for a bug."""
    match error:
        case NotAllowed():
            # It contains no untrusted text but an escaped name, and a mention that notifies no one.
            return str(error)
        case DarkroomError() | SpecError():
            return escape(str(error), _MAX_SENTENCE_CHARS)
        case app_commands.NoPrivateMessage():
            return _("This works in a server only.")
        case app_commands.MissingPermissions():
            return _("You lack the permission to do this: {names}.", names=listed(error.missing_permissions))
        case app_commands.CommandNotFound() | app_commands.CommandSignatureMismatch():
            return _("This command has changed since Discord loaded it. Reload Discord (Ctrl+R) and try again.")
        case app_commands.TransformerError():
            return _("{value} is not a valid value for this option.", value=escape(str(error.value), 100))
        case app_commands.CheckFailure():
            return _("You may not use this here.")
    return None


def _cause(error: BaseException) -> BaseException:
    if isinstance(error, app_commands.CommandInvokeError):
        return error.original
    wraps = isinstance(error, app_commands.TransformerError | app_commands.CheckFailure)
    if wraps and isinstance(error.__cause__, DarkroomError | SpecError):
        return error.__cause__
    return error


def _source(interaction: discord.Interaction) -> str:
    """The command or button, for the log."""
    if interaction.command:
        return f"/{interaction.command.qualified_name}"
    data: dict[str, Any] = dict(interaction.data or {})
    return str(data.get("custom_id", "an interaction"))
