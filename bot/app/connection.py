"""The entry points that connect to Discord: run the bot, and sync its commands."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp
import discord

from bot.app.client import Darkroom
from bot.app.command_sync import CommandSync, Scope, scope_name
from bot.app.compose import App, Parts, compose, make_services
from bot.clock import backoff_s
from bot.config import Config
from bot.config_file import read_token
from bot.db import DATABASE_FILE, open_db
from bot.errors import DiscordUnreachable, TokenRefused
from trainer.protocol.text import _

log = logging.getLogger(__name__)

#: Between two sessions. The longest: Discord resets the token of a bot that begins more than 1,000 sessions a day.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 120.0
#: A connection that lasted this long was a good one: the next pause is the first again.
_GOOD_S = 60.0


async def run(config: Config) -> None:
    """Run the bot until SIGTERM or SIGINT; trainings continue without it.

    Raises:
        ConfigError: There is no token.
        TokenRefused: The token is wrong.
        DataFolderError: The data folder cannot be used.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    token = read_token(config)
    async with compose(config) as app:
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
    """Connect, and reconnect with a new client whenever the connection ends; discord.py resumes after short losses.

    Raises:
        TokenRefused: Another try is useless.
    """
    failures = 0
    while True:
        client = app.new_client()
        reason = "it was closed"
        try:
            async with client, _closed_by(app.token_refused, client):
                await client.start(token)
        except discord.LoginFailure as error:
            if _is_by_discord(error):
                raise TokenRefused(token_env=token_env) from error
            reason = str(error)
        except (discord.DiscordException, aiohttp.ClientError, OSError, TimeoutError, AttributeError) as error:
            # discord.py raises AttributeError if its first connection to the gateway fails (discord.py#10520).
            reason = repr(error)
        except Exception:
            log.exception("the connection to Discord ended with an unexpected error")
            reason = "see above"
        failures = 1 if client.connected_for_s >= _GOOD_S else failures + 1
        pause_s = backoff_s(failures, _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        log.warning("no connection to Discord (%s); trying again in %.0f s", reason, pause_s)
        await asyncio.sleep(pause_s)


@asynccontextmanager
async def _closed_by(refused: asyncio.Event, client: Darkroom) -> AsyncIterator[None]:
    """Close the client once a request is refused for its token: the next login shows whether the token itself is."""

    async def close() -> None:
        await refused.wait()
        refused.clear()
        log.warning("Discord refused a request for the bot's token; logging in again")
        await client.close()

    closing = asyncio.create_task(close(), name="token watch")
    try:
        yield
    finally:
        # A close that has begun is finished: cancelling it would cancel whatever waits for it.
        if not client.is_closed():
            closing.cancel()


def _is_by_discord(error: discord.LoginFailure) -> bool:
    """True if Discord answered, and not a proxy before it, whose page proves nothing about the token."""
    refusal = error.__cause__
    if not isinstance(refusal, discord.HTTPException):
        return True
    return "html" not in refusal.response.headers.get("Content-Type", "")


# -- python -m bot sync --------------------------------------------------------------------------------------------


async def sync_commands(config: Config, *, is_dry: bool, is_forced: bool = False) -> tuple[str, bool]:
    """Sync the commands now, or only compare; return a report, and whether Discord has the current commands.

    Args:
        config: All settings.
        is_dry: Change nothing.
        is_forced: Write all commands, also those that Discord has already.

    Raises:
        ConfigError: There is no token.
        TokenRefused: The token is wrong.
        DiscordUnreachable: Discord cannot be asked.
    """
    token = read_token(config)
    # No lock on the data folder: a running bot need not stop for this, and the database allows two writers.
    async with open_db(config.storage.data_dir / DATABASE_FILE) as db:
        parts = Parts.of(config, db)
        services, _uploads = make_services(parts)
        async with Darkroom(services, db, parts.connection, parts.outbox) as client:
            await client.add_commands()
            try:
                await client.http.static_login(token)
                application = await client.http.application_info()
                sync = await client.command_sync(int(application["id"]))
                lines = {scope: await _sync_scope(sync, scope, is_dry, is_forced) for scope in await sync.scopes()}
            except discord.LoginFailure as error:
                raise TokenRefused(token_env=config.discord.token_env) from error
            except (discord.DiscordException, aiohttp.ClientError, OSError, TimeoutError) as error:
                raise DiscordUnreachable(why=str(error) or type(error).__name__) from error
    shown = [f"{scope_name(scope)}: {line}" for scope, (line, _is_synced) in lines.items()]
    return "\n".join([*shown, *_listed(sync)]), all(is_synced for _line, is_synced in lines.values())


async def _sync_scope(sync: CommandSync, scope: Scope, is_dry: bool, is_forced: bool) -> tuple[str, bool]:
    """Return what is the matter with a scope, and whether Discord has the current commands now."""
    try:
        if await sync.is_current(scope) and not is_forced:
            return _("up to date"), True
        if is_dry:
            return _("changed"), False
        await sync.write(scope)
    except discord.HTTPException as error:
        return _("Discord refuses: {error}", error=error), False
    return _("synced"), True


def _listed(sync: CommandSync) -> Sequence[str]:
    lines = []
    for command in sync.commands:
        options = " ".join(option["name"] for option in command.get("options", []))
        is_menu = command.get("type", 1) != discord.AppCommandType.chat_input.value
        lines.append(f"  {'menu: ' if is_menu else '/'}{command['name']} {options}".rstrip())
    return lines
