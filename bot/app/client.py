"""The Discord client: registers commands and buttons, and syncs the commands with Discord when they change."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from json import dumps
from typing import Any

import discord
from discord import app_commands
from discord.ext import commands

from bot.cogs.admin_commands import AdminCommands
from bot.cogs.dataset_buttons import DatasetButtons
from bot.cogs.dataset_commands import DatasetCommands
from bot.cogs.finetune_command import FinetuneCommand
from bot.cogs.job_actions import JobButtons
from bot.cogs.job_commands import JobCommands, QueueCommand
from bot.cogs.replies import reply_error
from bot.cogs.services import Services
from bot.cogs.study_command import StudyCommands
from bot.db import Database
from bot.db.database import read_setting, write_setting
from bot.health import ConnectionMonitor
from bot.ui.buttons import AdminButton, DatasetButton, JobButton

log = logging.getLogger(__name__)


class Tree(app_commands.CommandTree["Darkroom"]):
    """The commands; their errors are reported in one place."""

    async def on_error(self, interaction: discord.Interaction[Darkroom], error: app_commands.AppCommandError) -> None:
        await reply_error(interaction, error)


class Darkroom(commands.Bot):
    """One connection to Discord; it holds nothing that must outlive the connection."""

    def __init__(self, services: Services, db: Database, connection: ConnectionMonitor) -> None:
        super().__init__(
            command_prefix=commands.when_mentioned,
            help_command=None,
            tree_cls=Tree,
            # Servers and their channels; nothing privileged.
            intents=discord.Intents(guilds=True),
            # A message mentions only whom it names explicitly.
            allowed_mentions=discord.AllowedMentions.none(),
            # Messages are never read from a cache.
            max_messages=None,
            activity=discord.CustomActivity(name="/finetune"),
            http_trace=connection.http_trace(),
        )
        self._connection_monitor = connection
        self._services = services
        self._db = db

    async def setup_hook(self) -> None:
        await self.add_commands()
        await sync_changed(self.tree, self._db, self._services.config.discord.guild_ids)

    async def add_commands(self) -> None:
        """Add all commands and buttons; needs no connection."""
        for cog in (
            FinetuneCommand(self._services),
            DatasetCommands(self._services, self.tree),
            DatasetButtons(self._services),
            JobCommands(self._services),
            QueueCommand(self._services),
            JobButtons(self._services),
            StudyCommands(self._services),
            AdminCommands(self._services),
        ):
            await self.add_cog(cog)
        self.add_dynamic_items(JobButton, DatasetButton, AdminButton)

    async def on_connect(self) -> None:
        self._connection_monitor.connected()

    async def on_resumed(self) -> None:
        self._connection_monitor.resumed()

    async def on_disconnect(self) -> None:
        self._connection_monitor.disconnected()

    async def on_ready(self) -> None:
        log.info("connected as %s, in %d servers", self.user, len(self.guilds))


# -- syncing the commands: each sync counts against Discord's limit of 200 new commands a day ----------------------


@dataclass(frozen=True, kw_only=True)
class CommandScope:
    """A set of commands for one server, or for all (`guild_id` None)."""

    guild_id: int | None
    commands: tuple[dict[str, Any], ...]
    is_changed: bool
    digest: str

    @property
    def name(self) -> str:
        """For logs and the command line."""
        return "all servers" if self.guild_id is None else f"server {self.guild_id}"


async def plan_sync(tree: app_commands.CommandTree[Any], db: Database, guild_ids: Sequence[int]) -> list[CommandScope]:
    """Return the scopes, and whether Discord has their current commands."""
    commands = tuple(sorted((c.to_dict(tree) for c in tree.get_commands()), key=lambda c: (c["type"], c["name"])))
    digest = sha256(dumps(commands, sort_keys=True).encode()).hexdigest()
    scopes = []
    for guild_id in guild_ids or (None,):
        known = await read_setting(db, _setting(guild_id))
        scopes.append(CommandScope(guild_id=guild_id, commands=commands, is_changed=known != digest, digest=digest))
    return scopes


async def sync_changed(
    tree: app_commands.CommandTree[Any], db: Database, guild_ids: Sequence[int]
) -> list[CommandScope]:
    """Sync the changed scopes and return those synced; a server that refuses is logged, and the others continue."""
    synced = []
    for scope in await plan_sync(tree, db, guild_ids):
        if not scope.is_changed:
            continue
        try:
            await _sync(tree, scope)
        except discord.HTTPException as error:
            log.error("commands not synced to %s: %s", scope.name, error)  # noqa: TRY400 - the cause is in it.
            continue
        await write_setting(db, _setting(scope.guild_id), scope.digest)
        log.info("%d commands synced to %s", len(scope.commands), scope.name)
        synced.append(scope)
    return synced


async def _sync(tree: app_commands.CommandTree[Any], scope: CommandScope) -> None:
    """Replace the whole set of commands."""
    if scope.guild_id is None:
        await tree.sync()
        return
    guild = discord.Object(scope.guild_id)
    tree.copy_global_to(guild=guild)
    await tree.sync(guild=guild)


def _setting(guild_id: int | None) -> str:
    return f"commands:{guild_id or 'all'}"
