"""Staying connected to Discord until somebody says stop."""

from __future__ import annotations

import asyncio
import logging
import signal

import aiohttp
import discord

from bot.app.compose import App, compose
from bot.config import Config, read_token
from bot.errors import DarkroomError

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 60.0


class TokenRefused(DarkroomError):
    """Discord does not accept the token."""

    def __init__(self, *, token_env: str) -> None:
        self.token_env = token_env
        super().__init__(
            f"Discord refuses the token in {token_env}. Reset it in the developer portal and set the new one."
        )


async def run(config: Config) -> None:
    """Run the bot until SIGTERM or SIGINT; trainings go on without it.

    Raises:
        ConfigError: no token.
        TokenRefused: a wrong one.
        DataFolderError: the data folder cannot be used.
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
        log.info("stopping; trainings go on")
        for task in (stopped, connected):
            task.cancel()
        results = await asyncio.gather(connected, stopped, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]


async def stay_connected(app: App, token: str, token_env: str) -> None:
    """Connect, and connect anew with a new client whenever that ends; discord.py itself resumes short losses.

    Raises:
        TokenRefused: trying again would be of no use.
    """
    pause_s = 1.0
    while True:
        client = app.new_client()
        try:
            async with client:
                await client.start(token)
        except discord.LoginFailure as error:
            raise TokenRefused(token_env=token_env) from error
        except (discord.DiscordException, aiohttp.ClientError, OSError, TimeoutError, AttributeError) as error:
            # AttributeError: what discord.py raises when its first connection to the gateway fails (discord.py#10520).
            log.warning("no connection to Discord (%r); trying again in %.0f s", error, pause_s)
        if client.is_ready():
            pause_s = 1.0
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
