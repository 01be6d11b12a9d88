"""How people and servers are addressed: in the language that they chose, else Discord's; in plain text or not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import discord

from bot.db import Database
from bot.db.database import write_setting
from bot.db.errors import DatabaseUnwritable
from trainer.protocol.text import ENGLISH, LANGUAGES, catalog, speak

log = logging.getLogger(__name__)

#: Discord's names of the languages that have a catalog.
LOCALES = {discord.Locale.chinese: "zh_CN"}

_PERSON, _SERVER, _CHOSEN = "person", "server", "chosen "
_PLAIN, _YES, _NO = "language:plain:", "yes", "no"

#: Whether the person whose interaction is handled in this task reads plain text.
_reads_plain: ContextVar[bool] = ContextVar("reads_plain", default=False)


def reads_plain_text() -> bool:
    """Whether the person who is answered wants text without boxes, signs and pictures in place of words."""
    return _reads_plain.get()


class Languages:
    """Choices and last known locales, kept in the database and, since each interaction asks, in memory.

    A direct message and a post in a channel answer no interaction, so the locales of persons and servers are
    remembered from their last one. Discord tells the language of a community server only; of any other it says English.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._known: dict[str, str] = {}

    async def load(self) -> None:
        """Read what is stored; before the first use."""
        rows = await self._db.all("SELECT name, value FROM setting WHERE name LIKE 'language:%'")
        self._known = {str(row["name"]): str(row["value"]) for row in rows}

    def of_person(self, user_id: int) -> str:
        """The language of a direct message."""
        return self._of(_PERSON, user_id)

    def of_server(self, guild_id: int) -> str:
        """The language of posts in its channels."""
        return self._of(_SERVER, guild_id)

    def of(self, interaction: discord.Interaction) -> str:
        """Return the language of answers that only the acting member sees."""
        known = self._known.get(_name(_PERSON, interaction.user.id), "")
        if known.startswith(_CHOSEN):
            return self.of_person(interaction.user.id)
        return LOCALES.get(interaction.locale, ENGLISH)

    def address(self, interaction: discord.Interaction) -> None:
        """Write in this task for the acting member: in their language, and in plain text if they chose it."""
        speak(self.of(interaction))
        _reads_plain.set(self.is_plain(interaction.user.id))

    def is_plain(self, user_id: int) -> bool:
        """Whether a person is answered in plain text."""
        return self._known.get(f"{_PLAIN}{user_id}") == _YES

    async def choose_plain(self, user_id: int, *, is_plain: bool) -> None:
        """Answer a person in plain text from now on, or no more."""
        await self._store(f"{_PLAIN}{user_id}", _YES if is_plain else _NO)

    async def remember(self, interaction: discord.Interaction) -> None:
        """Store the locales that Discord sends for a member and the server, for messages that answer no interaction."""
        try:
            await self._note(_PERSON, interaction.user.id, interaction.locale)
            if interaction.guild_id is not None and interaction.guild_locale is not None:
                await self._note(_SERVER, interaction.guild_id, interaction.guild_locale)
        except DatabaseUnwritable as error:
            log.warning("the language of member %s could not be stored: %s", interaction.user.id, error)

    async def choose(self, language: str, *, person: int = 0, server: int = 0) -> None:
        """Store what a person chose for themselves, or a manager for the server; empty: as Discord says."""
        name = _name(_SERVER, server) if server else _name(_PERSON, person)
        await self._store(name, f"{_CHOSEN}{language}" if language else ENGLISH)

    def _of(self, whose: str, number: int) -> str:
        language = self._known.get(_name(whose, number), ENGLISH).removeprefix(_CHOSEN)
        return language if language in LANGUAGES else ENGLISH

    async def _note(self, whose: str, number: int, locale: discord.Locale) -> None:
        name, language = _name(whose, number), LOCALES.get(locale, ENGLISH)
        known = self._known.get(name, ENGLISH)
        if known != language and not known.startswith(_CHOSEN):
            await self._store(name, language)

    async def _store(self, name: str, value: str) -> None:
        self._known[name] = value
        await write_setting(self._db, name, value)


def _name(whose: str, number: int) -> str:
    return f"language:{whose}:{number}"


def localized(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return a command, option or choice with what Discord shows of it in every language; what people type stays."""
    # A choice and an entry of a menu have no description: their name is what is read.
    shown = "description" if "description" in part else "name"
    texts = {locale.value: catalog(language).gettext(part[shown]) for locale, language in LOCALES.items()}
    translations = {locale: text for locale, text in texts.items() if text != part[shown]}
    parts = {key: [localized(each) for each in part[key]] for key in ("options", "choices") if key in part}
    return {**part, **parts, **({f"{shown}_localizations": translations} if translations else {})}
