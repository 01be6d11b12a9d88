"""The simulated Discord of the demo: one server, one channel, two members, and a clock that follows the real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import discord
import simcord
from simcord.backend.errors import SetupError
from simcord.preview import _media

#: A simulated action waits until the bot is idle, and `/finetune` waits until the dataset is prepared.
_SETTLE_TIMEOUT_S = 600
_IMAGES_S = 600


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What is simulated (simcord has no types for it)."""

    env: Any
    channel: Any
    #: The teammate who follows the script, and the person who looks at the page.
    ana: Any
    ben: Any

    def messages(self) -> list[Any]:
        """The messages of the channel and of its threads, oldest first, with those that only Ana sees."""
        channels = (self.channel, *self.channel.threads)
        shown = [message for channel in channels for message in channel.history(viewer=self.ana)]
        # simcord notifies the channel of each thread, Discord only of one that starts from an older message.
        shown = [message for message in shown if message.type is not discord.MessageType.thread_created]
        return sorted(shown, key=lambda message: message.id)

    def version(self) -> int:
        """Rises whenever anything happens in the simulation."""
        return len(self.env.backend.transcript)

    async def advance_clock(self) -> None:
        """Set the simulated clock to the real time, unless a user is acting right now."""
        behind_s = (datetime.now(UTC) - self.env.now()).total_seconds()
        if behind_s > 0:
            try:
                await self.env.advance_time(behind_s)
            except SetupError:
                return


@asynccontextmanager
async def simulate(client: discord.Client) -> AsyncIterator[Simulation]:
    """Attach the bot to a simulated Discord while the body runs."""
    env = simcord.Env(client, settle_timeout=_SETTLE_TIMEOUT_S)
    # Before the start: nothing waits for this clock yet, so it may jump from simcord's own epoch.
    env.backend.advance_clock(max(0.0, (datetime.now(UTC) - env.now()).total_seconds()))
    env.backend.bot_user.name = "Darkroom"
    await env.start()
    try:
        guild = env.create_guild("Darkroom demo")
        channel = guild.create_text_channel("lab", topic="Drop a zip of images and run /finetune.")
        leads = guild.create_role("Lab lead", permissions=discord.Permissions(manage_guild=True))
        ana = guild.add_member(env.create_user("ana", global_name="Ana"))
        # May stop the trainings of others, so that every button works for the person at the page.
        ben = guild.add_member(env.create_user("ben", global_name="Ben"), roles=[leads])
        yield Simulation(env=env, channel=channel, ana=ana, ben=ben)
    finally:
        await env.shutdown()


def accept_late_presses(env: Any, preview: Any) -> None:
    """Let a person press buttons on a page that changes every second.

    simcord refuses an action that was chosen on an older revision of the page, or while the simulation is busy. Both
    are right for tests; in a live demo each edit of a card makes a revision, and presses would be lost. It also allows
    30 s to check all images of a page, one process each, which is too little beside a training on every core.

    This changes internals of simcord 3.2, which has no settings for it; with another simcord it does nothing, and a
    lost press must be repeated.
    """
    if hasattr(_media, "WORKER_DEADLINE_SECONDS"):
        _media.WORKER_DEADLINE_SECONDS = _IMAGES_S
    act = getattr(preview, "_action", None)
    page_of = getattr(preview, "_get_page", None)
    if act is None or page_of is None or not hasattr(env, "_operation_task"):
        return

    async def act_when_idle(context_id: Any, body: Any) -> Any:
        while env._operation_task is not None:  # noqa: ASYNC110 - simcord sets no event.
            await asyncio.sleep(0.01)
        if isinstance(body, dict) and "published_revision" in body:
            body["published_revision"] = page_of(context_id).revision
        return await act(context_id, body)

    preview._action = act_when_idle
