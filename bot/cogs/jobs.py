"""`/job` and `/queue`: looking at jobs, and what people may do with their own."""

from __future__ import annotations

from datetime import UTC, datetime

import discord
from discord import app_commands
from discord.ext import commands

from bot.cogs.acting import act
from bot.cogs.finding import found_job, job_choices
from bot.cogs.replies import reply
from bot.cogs.services import Services, standing_of
from bot.queue.domain.verbs import Verb
from bot.ui.audit import history
from bot.ui.board import Scene, board, job_list
from bot.ui.notices import card_of

_WHICH = {"job": "Number or name of the job"}


@app_commands.guild_only()
class Jobs(commands.GroupCog, group_name="job", group_description="Look at trainings, or say what becomes of yours."):
    """Whatever concerns one job that is there."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @app_commands.command(description="Where a training stands.")
    @app_commands.describe(**_WHICH)
    @app_commands.rename(job="id")
    async def status(self, interaction: discord.Interaction, job: str) -> None:
        found = await found_job(self._services, interaction, job)
        await reply(interaction, card_of(found, await standing_of(found, self._services, interaction.client)))

    @app_commands.command(name="list", description="The newest trainings of this server.")
    async def list_jobs(self, interaction: discord.Interaction) -> None:
        assert interaction.guild_id is not None
        jobs = await self._services.jobs.recent(interaction.guild_id, 15)
        await reply(interaction, job_list("Newest trainings", jobs, datetime.now(UTC)))

    @app_commands.command(description="Each start of a training, and who changed what.")
    @app_commands.describe(**_WHICH)
    @app_commands.rename(job="id")
    async def history(self, interaction: discord.Interaction, job: str) -> None:
        found = await found_job(self._services, interaction, job)
        attempts = await self._services.jobs.attempts(found.id)
        entries = await self._services.jobs.audit(guild_id=found.guild_id, job_id=found.id)
        await reply(interaction, history(found, attempts, entries))

    @app_commands.command(description="Stop a training of yours; its checkpoint is kept.")
    @app_commands.describe(**_WHICH)
    @app_commands.rename(job="id")
    async def cancel(self, interaction: discord.Interaction, job: str) -> None:
        await self._act(interaction, job, Verb.CANCEL)

    @app_commands.command(description="Free the GPU of a training of yours; it goes on from there when you say so.")
    @app_commands.describe(**_WHICH)
    @app_commands.rename(job="id")
    async def pause(self, interaction: discord.Interaction, job: str) -> None:
        await self._act(interaction, job, Verb.PAUSE)

    @app_commands.command(description="Let a paused training of yours go on, before those that never started.")
    @app_commands.describe(**_WHICH)
    @app_commands.rename(job="id")
    async def resume(self, interaction: discord.Interaction, job: str) -> None:
        await self._act(interaction, job, Verb.RESUME)

    @app_commands.command(description="Try a failed or cancelled training of yours again, from its checkpoint.")
    @app_commands.describe(**_WHICH)
    @app_commands.rename(job="id")
    async def retry(self, interaction: discord.Interaction, job: str) -> None:
        await self._act(interaction, job, Verb.RETRY)

    @app_commands.command(description="Keep the files of a training of yours when room is made.")
    @app_commands.describe(**_WHICH)
    @app_commands.rename(job="id")
    async def pin(self, interaction: discord.Interaction, job: str) -> None:
        await self._act(interaction, job, Verb.PIN)

    @app_commands.command(description="No longer keep them.")
    @app_commands.describe(**_WHICH)
    @app_commands.rename(job="id")
    async def unpin(self, interaction: discord.Interaction, job: str) -> None:
        await self._act(interaction, job, Verb.UNPIN)

    @app_commands.command(description="Show everybody here the newest samples of a training of yours.")
    @app_commands.describe(**_WHICH)
    @app_commands.rename(job="id")
    async def share(self, interaction: discord.Interaction, job: str) -> None:
        await self._act(interaction, job, Verb.SHARE)

    @app_commands.command(description="No longer share it; its files may go when room is made.")
    @app_commands.describe(**_WHICH)
    @app_commands.rename(job="id")
    async def unshare(self, interaction: discord.Interaction, job: str) -> None:
        await self._act(interaction, job, Verb.UNSHARE)

    async def _act(self, interaction: discord.Interaction, typed: str, verb: Verb) -> None:
        await act(self._services, interaction, await found_job(self._services, interaction, typed), verb)

    @status.autocomplete("job")
    @history.autocomplete("job")
    async def choose_any(self, interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        return await job_choices(self._services, interaction, typed)

    @cancel.autocomplete("job")
    @pause.autocomplete("job")
    @resume.autocomplete("job")
    @retry.autocomplete("job")
    @pin.autocomplete("job")
    @unpin.autocomplete("job")
    @share.autocomplete("job")
    @unshare.autocomplete("job")
    async def choose_for_verb(self, interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        assert interaction.command is not None
        return await job_choices(self._services, interaction, typed, verb=Verb(interaction.command.name))


class Queue(commands.Cog):
    """The line, for everybody."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @app_commands.command(description="What is training, who waits for what, and what holds it up.")
    @app_commands.guild_only()
    async def queue(self, interaction: discord.Interaction) -> None:
        assert interaction.guild_id is not None
        jobs = self._services.jobs
        scene = Scene(
            now=datetime.now(UTC),
            jobs=await jobs.active(interaction.guild_id),
            places={job_id: place for place, job_id in enumerate(await jobs.line(), start=1)},
            forecasts=await self._services.forecaster.all(),
            slots=await jobs.slots.all(with_unused=True),
            halt=await jobs.switch.read(),
            why_closed=self._services.why_closed(),
        )
        await reply(interaction, board(scene))
