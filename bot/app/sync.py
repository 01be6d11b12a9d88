"""Telling Discord the commands, only when they changed: each sync counts against a daily limit (200 new ones a day)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import discord
from discord import app_commands

from bot.db import Database
from bot.db.setting import read_setting, write_setting

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Where a set of commands is told: one server, or all of them (`guild_id` None)."""

    guild_id: int | None
    commands: tuple[dict[str, Any], ...]
    is_changed: bool
    digest: str

    @property
    def words(self) -> str:
        return "all servers" if self.guild_id is None else f"server {self.guild_id}"


async def look(tree: app_commands.CommandTree[Any], db: Database, guild_ids: Sequence[int]) -> list[Scope]:
    """What would be told where, and whether it is news."""
    commands = tuple(sorted((c.to_dict(tree) for c in tree.get_commands()), key=lambda c: (c["type"], c["name"])))
    digest = hashlib.sha256(json.dumps(commands, sort_keys=True).encode()).hexdigest()
    scopes = []
    for guild_id in guild_ids or (None,):
        known = await read_setting(db, _setting(guild_id))
        scopes.append(Scope(guild_id=guild_id, commands=commands, is_changed=known != digest, digest=digest))
    return scopes


async def sync_changed(tree: app_commands.CommandTree[Any], db: Database, guild_ids: Sequence[int]) -> list[Scope]:
    """Tell Discord what is news to it; a server that refuses is logged, the others go on. Returns what was told."""
    told = []
    for scope in await look(tree, db, guild_ids):
        if not scope.is_changed:
            continue
        try:
            await sync(tree, scope)
        except discord.HTTPException as error:
            log.error("commands could not be told to %s: %s", scope.words, error)  # noqa: TRY400 - the cause is in it.
            continue
        await write_setting(db, _setting(scope.guild_id), scope.digest)
        log.info("%d commands told to %s", len(scope.commands), scope.words)
        told.append(scope)
    return told


async def sync(tree: app_commands.CommandTree[Any], scope: Scope) -> None:
    """Put the whole set of commands into its place."""
    if scope.guild_id is None:
        await tree.sync()
        return
    guild = discord.Object(scope.guild_id)
    tree.copy_global_to(guild=guild)
    await tree.sync(guild=guild)


def _setting(guild_id: int | None) -> str:
    return f"commands:{guild_id or 'all'}"
