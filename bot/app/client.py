"""The Discord client: commands and buttons, and nothing that must outlive a lost connection."""

from __future__ import annotations

import logging

import discord
from discord import app_commands
from discord.ext import commands

from bot.app.sync import sync_changed
from bot.cogs import failures
from bot.cogs.admin import Admin
from bot.cogs.buttons import Buttons
from bot.cogs.dataset import Datasets
from bot.cogs.dataset_buttons import DatasetButtons
from bot.cogs.finetune import Finetune
from bot.cogs.jobs import Jobs, Queue
from bot.cogs.services import Services
from bot.cogs.study import Studies
from bot.db import Database
from bot.health import Counters
from bot.ui.admin import AdminButton
from bot.ui.dataset_buttons import DatasetButton
from bot.ui.layout import JobButton

log = logging.getLogger(__name__)


class Tree(app_commands.CommandTree["Darkroom"]):
    """The commands; whatever they raise is told in one place."""

    async def on_error(self, interaction: discord.Interaction[Darkroom], error: app_commands.AppCommandError) -> None:
        await failures.tell(interaction, error)


class Darkroom(commands.Bot):
    """One connection to Discord; a new one can take its place at any time."""

    def __init__(self, services: Services, db: Database, counters: Counters) -> None:
        super().__init__(
            command_prefix=commands.when_mentioned,
            help_command=None,
            tree_cls=Tree,
            # Servers and their channels; nothing privileged.
            intents=discord.Intents(guilds=True),
            # Nobody is called unless a message says whom.
            allowed_mentions=discord.AllowedMentions.none(),
            # Messages are never read back from a cache.
            max_messages=None,
            activity=discord.CustomActivity(name="/finetune"),
            http_trace=counters.http_trace(),
        )
        self._counters = counters
        self._services = services
        self._db = db

    async def setup_hook(self) -> None:
        await self.add_commands()
        await sync_changed(self.tree, self._db, self._services.config.discord.guild_ids)

    async def add_commands(self) -> None:
        """Everything that people can use; also for those who want to look at it without a connection."""
        for cog in (
            Finetune(self._services),
            Datasets(self._services, self.tree),
            DatasetButtons(self._services),
            Jobs(self._services),
            Queue(self._services),
            Buttons(self._services),
            Studies(self._services),
            Admin(self._services),
        ):
            await self.add_cog(cog)
        self.add_dynamic_items(JobButton, DatasetButton, AdminButton)

    async def on_connect(self) -> None:
        self._counters.connected()

    async def on_resumed(self) -> None:
        self._counters.resumed()

    async def on_disconnect(self) -> None:
        self._counters.disconnected()

    async def on_ready(self) -> None:
        log.info("connected as %s, in %d servers", self.user, len(self.guilds))
