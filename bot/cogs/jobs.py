"""`/job` and `/queue`: looking at jobs, and stopping one's own."""

from __future__ import annotations

from datetime import UTC, datetime

import discord
from discord import app_commands
from discord.ext import commands

from bot.cogs.replies import reply
from bot.cogs.services import Services, standing_of
from bot.errors import NotFound
from bot.queue import Job, State, StopIntent, require_control
from bot.ui.board import board, job_list
from bot.ui.card import card
from bot.ui.receipts import job_choice, said, stop_reply


@app_commands.guild_only()
class Jobs(commands.GroupCog, group_name="job", group_description="Look at trainings, or stop yours."):
    """Whatever concerns one job that is there."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @app_commands.command(description="Where a training stands.")
    @app_commands.describe(job="Number or name of the job")
    @app_commands.rename(job="id")
    async def status(self, interaction: discord.Interaction, job: str) -> None:
        found = await find_job(self._services, interaction, job)
        standing = await standing_of(found, self._services, interaction.client)
        await reply(interaction, card(found, standing))

    @app_commands.command(description="Stop a training of yours; its checkpoint is kept.")
    @app_commands.describe(job="Number or name of the job")
    @app_commands.rename(job="id")
    async def cancel(self, interaction: discord.Interaction, job: str) -> None:
        found = await find_job(self._services, interaction, job)
        await stop(self._services, interaction, found, StopIntent.CANCEL)

    @app_commands.command(name="list", description="The newest trainings of this server.")
    async def list_jobs(self, interaction: discord.Interaction) -> None:
        assert interaction.guild_id is not None
        await reply(
            interaction, job_list("Newest trainings", await self._services.jobs.recent(interaction.guild_id, 15))
        )

    @status.autocomplete("job")
    @cancel.autocomplete("job")
    async def choose_job(self, interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        assert interaction.guild_id is not None
        jobs = await self._services.jobs.search(interaction.guild_id, typed)
        return [app_commands.Choice(name=job_choice(job), value=str(job.id)) for job in jobs]


class Queue(commands.Cog):
    """The line, for everybody."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @app_commands.command(description="What is training, and who waits for what.")
    @app_commands.guild_only()
    async def queue(self, interaction: discord.Interaction) -> None:
        assert interaction.guild_id is not None
        active = await self._services.jobs.active(interaction.guild_id)
        running = [job for job in active if job.state is not State.QUEUED]
        waiting = [job for job in active if job.state is State.QUEUED]
        await reply(interaction, board(running, waiting, datetime.now(UTC)))


async def find_job(services: Services, interaction: discord.Interaction, typed: str) -> Job:
    """The job that somebody means by a number (`42`, `#42`) or a name.

    Raises:
        NotFound: there is none in this server.
    """
    assert interaction.guild_id is not None
    number = typed.strip().removeprefix("#")
    if number.isascii() and number.isdigit() and len(number) < 19:
        return await services.jobs.get_in(interaction.guild_id, int(number))
    found = await services.jobs.search(interaction.guild_id, typed, limit=1)
    if not found:
        raise NotFound(f"There is no job {typed[:60]!r} here. /job list shows those that there are.")
    return found[0]


async def stop(services: Services, interaction: discord.Interaction, job: Job, intent: StopIntent) -> None:
    """Stop a job on behalf of whoever acts, and tell them how it stands now; a second press changes nothing.

    Raises:
        NotAllowed: it is somebody else's job.
        NoSuchJob: it is gone.
    """
    verb = "cancel" if intent is StopIntent.CANCEL else "stop"
    can_manage = interaction.permissions.manage_guild
    require_control(job, user_id=interaction.user.id, can_manage=can_manage, verb=verb)
    after = await services.jobs.request_stop(job.id, by=interaction.user.id, intent=intent)
    await reply(interaction, said(stop_reply(job, after)))
