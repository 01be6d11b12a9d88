"""The Discord client: registers commands and buttons, and passes on what its connection reports."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

import discord
from discord import app_commands
from discord.backoff import ExponentialBackoff
from discord.ext import commands

from bot.app.command_sync import CommandSync, Scope
from bot.app.poster import raise_refusals
from bot.clock import SYSTEM_CLOCK
from bot.cogs import (
    admin_commands,
    dataset_buttons,
    gallery_command,
    help_command,
    job_actions,
    notify_command,
    sample_command,
)
from bot.cogs.compare_command import CompareCommand
from bot.cogs.dataset_commands import DatasetCommands
from bot.cogs.finetune_command import FinetuneCommand
from bot.cogs.interaction_gate import ButtonHandler, InteractionGate
from bot.cogs.job_commands import JobCommands, QueueCommand
from bot.cogs.preset_commands import PresetCommands
from bot.cogs.replies import Acknowledgement
from bot.cogs.services import Services
from bot.cogs.study_command import StudyCommands
from bot.db import Database
from bot.health import ConnectionMonitor
from bot.languages import localized
from bot.outbox import Notification, NotificationKind, Outbox
from bot.ui.buttons import (
    AdminButton,
    DatasetButton,
    FormButton,
    GalleryButton,
    HelpButton,
    JobButton,
    NotifyButton,
    NotifyMenu,
    SampleMenu,
)
from bot.ui.discord_text import missing_permissions

log = logging.getLogger(__name__)

#: The commands are usually synced before the bot is online; a Discord that refuses them does not delay it.
_FIRST_SYNC_S = 5.0
#: In so many servers it looks for commands that another data folder left; each costs a request at each start.
_MAX_SEARCHED = 25


async def _reopen_form(services: Services, interaction: discord.Interaction, key: str) -> None:
    await services.gate.reopen_form(interaction, key)


_FORMS = {
    "reopen": ButtonHandler(run=_reopen_form, argument="[0-9]{1,19}", acknowledgement=Acknowledgement.NONE),
}
#: What a press on each kind of button or menu does, by verb; also on those that an earlier bot made.
HANDLERS: Mapping[type[discord.ui.DynamicItem[Any]], Mapping[str, ButtonHandler]] = {
    JobButton: job_actions.HANDLERS,
    DatasetButton: dataset_buttons.HANDLERS,
    GalleryButton: gallery_command.HANDLERS,
    AdminButton: admin_commands.HANDLERS,
    HelpButton: help_command.HANDLERS,
    NotifyButton: notify_command.HANDLERS,
    NotifyMenu: notify_command.HANDLERS,
    SampleMenu: sample_command.MENUS,
    FormButton: _FORMS,
}


class ReconnectBackoff(ExponentialBackoff[Literal[False]]):
    """Pauses between tries to connect; discord.py's own grow to 17 minutes, and stay long for 34 good ones."""

    def __init__(self) -> None:
        super().__init__()
        # At most 32 s; short again once the last pause and a minute of good connection are over.
        self._max = 5
        self._reset_time = 2**5 + 60


class Tree(app_commands.CommandTree["Darkroom"]):
    """The commands; they are admitted, and their errors are reported, in one place."""

    async def interaction_check(self, interaction: discord.Interaction[Darkroom], /) -> bool:
        return await self.client.gate.admits_command(interaction)

    async def on_error(self, interaction: discord.Interaction[Darkroom], error: app_commands.AppCommandError) -> None:
        await self.client.gate.report(interaction, error)


class Darkroom(commands.Bot):
    """One connection to Discord; it holds nothing that must outlive the connection."""

    def __init__(self, services: Services, db: Database, connection: ConnectionMonitor, outbox: Outbox) -> None:
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
            # discord.py waits out no rate limit that is longer; it allows no shorter one.
            max_ratelimit_timeout=30.0,
            http_trace=raise_refusals(connection.http_trace()),
        )
        self._connection_monitor = connection
        #: They outlive this client.
        self.services = services
        self._db = db
        self._outbox = outbox
        self._sync: CommandSync | None = None
        self._syncing: asyncio.Task[None] | None = None
        #: Monotonic time at which it was ready for the first time.
        self._ready_since: float | None = None
        for event, parse in self._connection.parsers.items():
            # Without READY there is no session: what is wrong with it ends the connection.
            if event != "READY":
                self._connection.parsers[event] = partial(_skip_unreadable, event, parse)

    @property
    def connected_for_s(self) -> float:
        """Seconds since it was ready for the first time; 0 if it never was."""
        return 0.0 if self._ready_since is None else SYSTEM_CLOCK.monotonic() - self._ready_since

    @property
    def gate(self) -> InteractionGate:
        """Admits interactions."""
        return self.services.gate

    async def setup_hook(self) -> None:
        await self.add_commands()
        assert self.application_id is not None
        self._sync = await self.command_sync(self.application_id)
        self._check_commands(await self._sync.scopes())
        try:
            async with asyncio.timeout(_FIRST_SYNC_S):
                await self._sync.first_pass_done.wait()
        except TimeoutError:
            log.info("going online before the commands are synced")

    async def connect(self, *, reconnect: bool = True) -> None:
        setattr(discord.client, "ExponentialBackoff", ReconnectBackoff)  # noqa: B010 - discord.py has no option for it
        await super().connect(reconnect=reconnect)

    def _check_commands(self, scopes: Iterable[Scope]) -> None:
        assert self._sync is not None
        self._sync.check(scopes)
        if self._syncing is None or self._syncing.done():
            self._syncing = asyncio.create_task(self._sync.run(), name="command sync")

    async def close(self) -> None:
        if self._syncing is not None:
            self._syncing.cancel()
        if (waiting := self._connection._ready_task) is not None:
            # Else discord.py reports that it became ready after it was closed, by a traceback.
            waiting.cancel()
        await super().close()

    async def command_sync(self, application_id: int) -> CommandSync:
        """Return what syncs the commands of this client, in every language; it must be logged in."""
        # discord.py's own way asks for every text in each of Discord's 34 languages.
        commands = [localized(each.to_dict(self.tree)) for each in self.tree.get_commands()]
        guild_ids = self.services.config.discord.guild_ids
        return CommandSync(self.http, application_id, commands, self._db, guild_ids=guild_ids)

    async def add_commands(self) -> None:
        """Add all commands and buttons; needs no connection."""
        for cog in (
            FinetuneCommand(self.services),
            DatasetCommands(self.services, self.tree),
            JobCommands(self.services),
            QueueCommand(self.services),
            notify_command.NotifyCommand(self.services),
            StudyCommands(self.services),
            admin_commands.AdminCommands(self.services),
            PresetCommands(self.services),
            sample_command.SampleCommand(self.services),
            CompareCommand(self.services),
            gallery_command.GalleryCommand(self.services),
            help_command.HelpCommand(self.services),
        ):
            await self.add_cog(cog)
        self.add_dynamic_items(*HANDLERS)

    async def on_press(
        self, interaction: discord.Interaction, control: type[Any], verb: str, arg: str, *about: int
    ) -> None:
        await self.gate.press(self.services, interaction, HANDLERS[control], verb, arg, *about)

    async def on_interaction(self, interaction: discord.Interaction) -> None:
        await self.gate.give_back_form(interaction)

    async def on_connect(self) -> None:
        self._connection_monitor.connected()

    async def on_resumed(self) -> None:
        self._connection_monitor.resumed()

    async def on_disconnect(self) -> None:
        self._connection_monitor.disconnected()

    async def on_ready(self) -> None:
        log.info("connected as %s, in %d servers", self.user, len(self.guilds))
        if self._ready_since is None:
            self._ready_since = SYSTEM_CLOCK.monotonic()
        if len(self.guilds) <= _MAX_SEARCHED:
            self._check_commands([guild.id for guild in self.guilds])
        # What has changed meanwhile is not reported.
        await self._outbox.recheck_held()

    async def on_guild_join(self, guild: discord.Guild) -> None:
        self._check_commands([guild.id])
        await self._welcome(guild)
        await self._outbox.recheck_held()

    async def _welcome(self, guild: discord.Guild) -> None:
        """Introduce the bot to a server that has invited it, in the first channel that it may write in."""
        channels = filter(None, [guild.system_channel, *guild.text_channels])
        found = next((each for each in channels if not missing_permissions(each.permissions_for(guild.me))), None)
        if found is None:
            return
        # Once for each time that it joins; discord.py reports a join again after a reconnection.
        joined_at = guild.me.joined_at
        key = f"welcome:{guild.id}:{int(joined_at.timestamp()) if joined_at else 0}"
        notification = Notification(kind=NotificationKind.WELCOME, dedupe_key=key, guild_id=guild.id)
        async with self._db.transaction() as connection:
            await self._outbox.put(connection, notification, channel_id=found.id)

    async def on_guild_available(self, guild: discord.Guild) -> None:
        # At each start of each server.
        if guild.id in self.services.config.discord.guild_ids:
            self._check_commands([guild.id])

    # -- a channel that refused messages may take them now ----------------------------------------------------------

    async def on_guild_role_update(self, _before: discord.Role, _after: discord.Role) -> None:
        await self._outbox.recheck_held()

    async def on_guild_channel_update(
        self, _before: discord.abc.GuildChannel, _after: discord.abc.GuildChannel
    ) -> None:
        await self._outbox.recheck_held()

    async def on_member_update(self, _before: discord.Member, after: discord.Member) -> None:
        # Without a privileged intent only the bot itself is reported.
        if after.id == after.guild.me.id:
            await self._outbox.recheck_held()

    async def on_raw_thread_update(self, _update: discord.RawThreadUpdateEvent) -> None:
        # Raw: a thread that was archived is not in the cache.
        await self._outbox.recheck_held()


def _skip_unreadable(event: str, parse: Callable[[Any], None], data: Any) -> None:
    """Let discord.py parse an event; one that it cannot read costs this event, and not the connection."""
    try:
        parse(data)
    except Exception:
        log.exception("a %s event was skipped: discord.py cannot read it", event)
