"""The simulated Discord of the demo: one server, one channel, two people, and a clock that keeps the time of day."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import discord
import simcord
from simcord.backend.errors import SetupError

#: An actor's verb waits until the bot is idle, and `/finetune` waits for the dataset's examination.
_SETTLE_TIMEOUT_S = 600


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Handles on what is simulated (simcord has no types for them)."""

    env: Any
    channel: Any
    #: The teammate who follows the script, and the person who looks at the page.
    ana: Any
    ben: Any

    def messages(self) -> list[Any]:
        """What stands in the channel, oldest first, with what only Ana sees."""
        return list(self.channel.history(viewer=self.ana))

    def version(self) -> int:
        """Rises whenever anything happens in the simulation."""
        return len(self.env.backend.transcript)

    async def keep_time(self) -> None:
        """Bring the simulated clock to the time of day, unless somebody is acting right now."""
        behind_s = (datetime.now(UTC) - self.env.now()).total_seconds()
        if behind_s > 0:
            try:
                await self.env.advance_time(behind_s)
            except SetupError:
                return


@asynccontextmanager
async def set_stage(client: discord.Client) -> AsyncIterator[Stage]:
    """Attach the bot to a simulated Discord for as long as the demo runs."""
    env = simcord.Env(client, settle_timeout=_SETTLE_TIMEOUT_S)
    # Before it starts: nothing waits for this clock yet, so that it may leap from simcord's own epoch.
    env.backend.advance_clock(max(0.0, (datetime.now(UTC) - env.now()).total_seconds()))
    env.backend.bot_user.name = "Darkroom"
    await env.start()
    try:
        guild = env.create_guild("Darkroom demo")
        channel = guild.create_text_channel("lab", topic="Drop a zip of pictures and run /finetune.")
        leads = guild.create_role("Lab lead", permissions=discord.Permissions(manage_guild=True))
        ana = guild.add_member(env.create_user("ana", global_name="Ana"))
        # May stop other people's trainings, so that every button works for who looks at the page.
        ben = guild.add_member(env.create_user("ben", global_name="Ben"), roles=[leads])
        yield Stage(env=env, channel=channel, ana=ana, ben=ben)
    finally:
        await env.shutdown()
