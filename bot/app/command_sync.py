"""Keeps the commands that Discord lists equal to the bot's: for one application, in each scope, tried until they are.

Discord has a set of commands for all servers and one for each server, and shows both. The bot uses one kind of them
and keeps the other empty, or every command would be listed twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from json import dumps
from typing import Any, TypeAlias

import discord

from bot.clock import backoff_s
from bot.db import Database
from bot.db.database import read_setting, write_setting

log = logging.getLogger(__name__)

#: The ID of a server, or None: all servers.
Scope: TypeAlias = int | None

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 900.0


def scope_name(scope: Scope) -> str:
    """For logs and the command line."""
    return "all servers" if scope is None else f"server {scope}"


class CommandSync:
    """Keeps the commands of one application in sync: `check` and `run` beside its connection, or one scope on demand.

    An unchanged set costs one request at each start, which also notices that it was deleted or replaced. Only a
    changed one is written: new commands count against Discord's limit of 200 a day.
    """

    def __init__(
        self,
        http: discord.http.HTTPClient,
        application_id: int,
        commands: Iterable[dict[str, Any]],
        db: Database,
        *,
        guild_ids: Sequence[int],
    ) -> None:
        self._http = http
        self._application_id = application_id
        self._db = db
        self._wanted: tuple[Scope, ...] = tuple(guild_ids) or (None,)
        self.commands = sorted(commands, key=_key)
        self._open: set[Scope] = set()
        self._wake = asyncio.Event()
        #: Set once each scope was tried.
        self.first_pass_done = asyncio.Event()

    async def run(self) -> None:
        """Sync the scopes of `check`; what fails is tried again, with growing pauses, until nothing is left."""
        failures = 0
        while self._open:
            self._wake.clear()
            # Taken out before it is tried: a check that is asked for meanwhile is one more.
            scopes, self._open = self._open, set()
            failed = {scope for scope in scopes if not await self._is_settled(scope)}
            self._open |= failed
            self.first_pass_done.set()
            if failed and not self._wake.is_set():
                failures += 1
                with suppress(TimeoutError):
                    async with asyncio.timeout(backoff_s(failures, _FIRST_PAUSE_S, _LONGEST_PAUSE_S)):
                        await self._wake.wait()

    def check(self, scopes: Iterable[Scope]) -> None:
        """Let `run` sync these scopes, at once."""
        self._open.update(scopes)
        self._wake.set()

    async def scopes(self) -> list[Scope]:
        """Return the scopes that shall have the commands, and those that may have them and shall not."""
        begin = self._setting("")
        rows = await self._db.all("SELECT name FROM setting WHERE substr(name, 1, ?) = ?", (len(begin), begin))
        stored = [int(row["name"].removeprefix(begin)) or None for row in rows]
        return list(dict.fromkeys([*self._wanted, None, *stored]))

    async def is_current(self, scope: Scope) -> bool:
        """True if Discord has the current commands of a scope, or none where none shall be.

        Raises:
            discord.HTTPException: Discord refuses to tell.
        """
        stored = await read_setting(self._db, self._setting(scope))
        if scope in self._wanted and stored is None:
            return False
        listed = await self._request(scope, None)
        return stored == self._state(listed) if scope in self._wanted else not listed

    async def write(self, scope: Scope) -> None:
        """Replace the commands of a scope, and store what Discord made of them.

        Raises:
            discord.HTTPException: Discord refuses.
        """
        commands = self.commands if scope in self._wanted else []
        listed = await self._request(scope, commands)
        log.info("%d commands synced to %s", len(commands), scope_name(scope))
        if commands:
            await write_setting(self._db, self._setting(scope), self._state(listed))
        else:
            await self._forget(scope)

    async def _is_settled(self, scope: Scope) -> bool:
        try:
            if not await self.is_current(scope):
                await self.write(scope)
        except discord.Forbidden as error:
            # Not (or no longer) in that server.
            if scope not in self._wanted:
                await self._forget(scope)
                return True
            log.warning("commands not synced to %s: %s; is the bot invited there?", scope_name(scope), error)
        except (discord.DiscordException, OSError) as error:
            log.warning("commands not synced to %s: %s; trying again", scope_name(scope), error)
        except Exception:
            log.exception("commands not synced to %s; trying again", scope_name(scope))
        else:
            return True
        return False

    def _request(self, scope: Scope, commands: list[dict[str, Any]] | None) -> Awaitable[list[Any]]:
        """Read the commands of a scope, or replace them."""
        if scope is None:
            if commands is None:
                return self._http.get_global_commands(self._application_id)
            return self._http.bulk_upsert_global_commands(self._application_id, commands)
        if commands is None:
            return self._http.get_guild_commands(self._application_id, scope)
        return self._http.bulk_upsert_guild_commands(self._application_id, scope, commands)

    def _state(self, listed: list[dict[str, Any]]) -> str:
        """A digest of the bot's commands, and of Discord's versions of them."""
        versions = sorted((_key(each), str(each.get("id")), str(each.get("version"))) for each in listed)
        return sha256(dumps([self.commands, versions], sort_keys=True).encode()).hexdigest()

    def _setting(self, scope: Scope | str) -> str:
        return f"commands:{self._application_id}:{0 if scope is None else scope}"

    async def _forget(self, scope: Scope) -> None:
        async with self._db.transaction() as connection:
            await connection.execute_fetchall("DELETE FROM setting WHERE name = ?", (self._setting(scope),))


def _key(command: dict[str, Any]) -> tuple[int, str]:
    return int(command.get("type", 1)), str(command["name"])
