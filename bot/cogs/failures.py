"""The one place that turns an exception into a sentence for the person who caused it."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import discord
from discord import app_commands

from bot.cogs.replies import reply
from bot.errors import DarkroomError, NotAllowed
from bot.ui.dataset_forms import Form
from bot.ui.receipts import said
from bot.ui.text import listed, plain
from trainer.protocol.spec import SpecError

log = logging.getLogger(__name__)

#: No letters or digits that are read wrongly aloud.
_REF_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
_UNKNOWN_INTERACTION = 10062


async def tell(interaction: discord.Interaction, error: BaseException) -> bool:
    """Say to the person what went wrong; False if they could not be told.

    What nobody foresaw goes into the log under the reference that they get.
    """
    error = _cause(error)
    if isinstance(error, discord.NotFound) and error.code == _UNKNOWN_INTERACTION:
        log.warning("an interaction came too late to be answered (%s)", interaction.id)
        return False
    sentence = known_sentence(error)
    if sentence is None:
        reference = "".join(secrets.choice(_REF_LETTERS) for _ in range(4))
        log.error("ref %s: %s failed", reference, _what(interaction), exc_info=error)
        sentence = f"Something broke on my side. Nothing was lost. Ref {reference}."
    try:
        await reply(interaction, said(sentence))
    except discord.HTTPException:
        log.exception("a person could not be told: %s", sentence)
        return False
    return True


def told(
    handler: Callable[[discord.Interaction, Form], Awaitable[None]],
) -> Callable[[discord.Interaction, Form], Awaitable[None]]:
    """A form's handler whose failures are told, as those of commands are."""

    async def handled(interaction: discord.Interaction, form: Form) -> None:
        try:
            await handler(interaction, form)
        except Exception as error:  # noqa: BLE001 - the edge to Discord: every failure becomes a sentence.
            await tell(interaction, error)

    return handled


def known_sentence(error: BaseException) -> str | None:
    """The sentence of an error that was foreseen, None for a bug."""
    match error:
        case NotAllowed():
            # Made of numbers only, and it names the owner by a mention that calls nobody.
            return str(error)
        case DarkroomError() | SpecError():
            return plain(str(error), 1500)
        case app_commands.NoPrivateMessage():
            return "This works in a server only."
        case app_commands.MissingPermissions():
            return f"You lack the permission to do this: {listed(error.missing_permissions)}."
        case app_commands.CommandNotFound() | app_commands.CommandSignatureMismatch():
            return "This command has changed since Discord last looked. Reload Discord (Ctrl+R) and try again."
        case app_commands.TransformerError():
            return f"I can't read {plain(str(error.value), 100)} as what this option needs."
        case app_commands.CheckFailure():
            return "You may not use this here."
    return None


def _cause(error: BaseException) -> BaseException:
    if isinstance(error, app_commands.CommandInvokeError):
        return error.original
    wraps = isinstance(error, app_commands.TransformerError | app_commands.CheckFailure)
    if wraps and isinstance(error.__cause__, DarkroomError | SpecError):
        return error.__cause__
    return error


def _what(interaction: discord.Interaction) -> str:
    if interaction.command:
        return f"/{interaction.command.qualified_name}"
    data: dict[str, Any] = dict(interaction.data or {})
    return str(data.get("custom_id", "an interaction"))
