"""The entry points that connect to Discord: run the bot, and sync its commands."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator, Sequence

import aiohttp
import discord

from bot.app.client import CommandScope, Darkroom, plan_sync, sync_changed
from bot.app.compose import App, Parts, compose, make_services
from bot.clock import backoff_s
from bot.config import Config, read_token
from bot.db import DATABASE_FILE, open_db
from bot.errors import TokenRefused
from trainer.protocol.text import _

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0


async def run(config: Config) -> None:
    """Run the bot until SIGTERM or SIGINT; trainings continue without it.

    Raises:
        ConfigError: There is no token.
        TokenRefused: The token is wrong.
        DataFolderError: The data folder cannot be used.
    """
    token = read_token(config)
    async with compose(config) as app:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        connected = asyncio.create_task(stay_connected(app, token, config.discord.token_env), name="connection")
        stopped = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({connected, stopped}, return_when=asyncio.FIRST_COMPLETED)
        log.info("stopping; trainings continue")
        for task in (stopped, connected):
            task.cancel()
        results = await asyncio.gather(connected, stopped, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]


async def stay_connected(app: App, token: str, token_env: str) -> None:
    """Connect, and reconnect with a new client when the connection ends; discord.py resumes after short losses.

    Raises:
        TokenRefused: Another try is useless.
    """
    failures = 0
    while True:
        client = app.new_client()
        failures += 1
        pause_s = backoff_s(failures, _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        try:
            async with client:
                await client.start(token)
        except discord.LoginFailure as error:
            raise TokenRefused(token_env=token_env) from error
        except (discord.DiscordException, aiohttp.ClientError, OSError, TimeoutError, AttributeError) as error:
            # discord.py raises AttributeError if its first connection to the gateway fails (discord.py#10520).
            log.warning("no connection to Discord (%r); trying again in %.0f s", error, pause_s)
        if client.is_ready():
            failures, pause_s = 0, _FIRST_PAUSE_S
        await asyncio.sleep(pause_s)


async def sync_commands(config: Config, *, is_dry: bool) -> tuple[str, bool]:
    """Sync the commands now, or only plan it; return a report, and whether Discord has the current commands.

    Raises:
        ConfigError: There is no token.
        TokenRefused: The token is wrong.
    """
    # No lock on the data folder: a running bot need not stop for this, and the database allows two writers.
    async with open_db(config.storage.data_dir / DATABASE_FILE) as db:
        parts = Parts.of(config, db)
        async with Darkroom(make_services(parts), db, parts.connection) as client:
            await client.add_commands()
            scopes = await plan_sync(client.tree, db, config.discord.guild_ids)
            lines = list(_plan_lines(scopes))
            changed = sum(scope.is_changed for scope in scopes)
            if is_dry or not changed:
                return "\n".join(lines), not changed
            try:
                await client.login(read_token(config))
            except discord.LoginFailure as error:
                raise TokenRefused(token_env=config.discord.token_env) from error
            synced = len(await sync_changed(client.tree, db, config.discord.guild_ids))
            lines.append(_("synced {synced} of {changed}", synced=synced, changed=changed))
            return "\n".join(lines), synced == changed


def _plan_lines(scopes: Sequence[CommandScope]) -> Iterator[str]:
    for scope in scopes:
        yield f"{scope.name}: {_('changed') if scope.is_changed else _('up to date')}"
    for command in scopes[0].commands:
        options = " ".join(option["name"] for option in command.get("options", []))
        is_menu = command.get("type", 1) != discord.AppCommandType.chat_input.value
        yield f"  {'menu: ' if is_menu else '/'}{command['name']} {options}".rstrip()
