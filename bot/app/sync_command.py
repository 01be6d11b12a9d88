"""`python -m bot sync`: tell Discord the commands now, or look at what would be told."""

from __future__ import annotations

import sys
from typing import TextIO

import discord

from bot.app.assembling import assemble
from bot.app.client import Darkroom
from bot.app.connection import TokenRefused
from bot.app.sync import look, sync_changed
from bot.config import Config, read_token
from bot.db import DATABASE_FILE, open_db
from bot.health import Counters
from bot.outbox import Outbox
from bot.ui.layout import MessageContent


async def _nobody_asks() -> MessageContent:
    raise AssertionError("commands are only told here, never run")


async def sync_command(config: Config, *, is_dry: bool, out: TextIO = sys.stdout) -> int:
    """Exit status 0 if Discord knows (or, dry, already knew) the commands; 1 if not.

    Raises:
        ConfigError: no token.
        TokenRefused: a wrong one.
    """
    data_dir = config.storage.data_dir
    async with open_db(data_dir / DATABASE_FILE) as db:
        # No lock on the data folder: a running bot need not stop for this, and the database knows two writers.
        services = assemble(
            config,
            db,
            Outbox(db),
            data_dir=data_dir,
            command=config.trainer.command,
            environment={},
            health=_nobody_asks,
        )
        async with Darkroom(services, db, Counters()) as client:
            await client.add_commands()
            scopes = await look(client.tree, db, config.discord.guild_ids)
            for scope in scopes:
                out.write(f"{scope.words}: {'changed' if scope.is_changed else 'as Discord knows them'}\n")
            for command in scopes[0].commands:
                options = " ".join(option["name"] for option in command.get("options", []))
                is_menu = command.get("type", 1) != discord.AppCommandType.chat_input.value
                out.write(f"  {'menu: ' if is_menu else '/'}{command['name']} {options}\n")
            changed = [scope for scope in scopes if scope.is_changed]
            if is_dry or not changed:
                return 1 if changed else 0
            try:
                await client.login(read_token(config))
            except discord.LoginFailure as error:
                raise TokenRefused(token_env=config.discord.token_env) from error
            told = await sync_changed(client.tree, db, config.discord.guild_ids)
            out.write(f"told {len(told)} of {len(changed)}\n")
            return 0 if len(told) == len(changed) else 1
