"""`/job` and `/queue`: look at jobs, and act on one's own."""

from __future__ import annotations

from datetime import UTC, datetime

import discord
from discord import app_commands
from discord.ext import commands

from bot.cogs.autocomplete import answered, job_choices
from bot.cogs.finetune_command import Epochs
from bot.cogs.interaction_gate import PAGES, REPORTS, handled
from bot.cogs.job_actions import extend, hand_over_files, perform
from bot.cogs.lookups import find_job
from bot.cogs.replies import Acknowledgement, reply
from bot.cogs.services import Services, context_of
from bot.queue.domain.verbs import Verb
from bot.ui.job_posts import card_message
from bot.ui.queue_pages import MAX_LISTED, BoardSnapshot, history_page, job_list, queue_board
from trainer.protocol.text import _

_LISTED_JOBS = 15
_OPTIONS = {"job": _("Number or name of the job")}


@app_commands.guild_only()
class JobCommands(
    commands.GroupCog, group_name="job", group_description=_("Look at trainings, or act on one of yours.")
):
    """The `/job` commands."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @app_commands.command(description=_("The state of a training."), extras=handled(rate=PAGES))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def status(self, interaction: discord.Interaction, job: str) -> None:
        found = await find_job(self._services, interaction, job)
        await reply(interaction, card_message(found, await context_of(self._services, found, interaction.client)))

    @app_commands.command(
        name="list", description=_("The newest trainings of this server."), extras=handled(rate=PAGES)
    )
    async def list_jobs(self, interaction: discord.Interaction) -> None:
        assert interaction.guild_id is not None
        jobs = await self._services.jobs.recent(interaction.guild_id, _LISTED_JOBS)
        await reply(interaction, job_list(_("Newest trainings"), jobs, datetime.now(UTC)))

    @app_commands.command(description=_("Each start of a training, and who changed what."), extras=handled(rate=PAGES))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def history(self, interaction: discord.Interaction, job: str) -> None:
        found = await find_job(self._services, interaction, job)
        attempts = await self._services.jobs.attempt_history(found.id)
        entries = await self._services.jobs.audit(guild_id=found.guild_id, job_id=found.id)
        await reply(interaction, history_page(found, attempts, entries))

    @app_commands.command(description=_("The files of a finished training."), extras=handled(rate=REPORTS))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def files(self, interaction: discord.Interaction, job: str) -> None:
        found = await find_job(self._services, interaction, job)
        await hand_over_files(self._services, interaction, found)

    @app_commands.command(description=_("Stop a training of yours; its checkpoint is kept."))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def cancel(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.CANCEL)

    @app_commands.command(description=_("Free the GPU of a training of yours; /job resume continues it."))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def pause(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.PAUSE)

    @app_commands.command(description=_("Continue a paused training of yours, before those that never started."))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def resume(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.RESUME)

    @app_commands.command(description=_("Try a failed or cancelled training of yours again, from its checkpoint."))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def retry(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.RETRY)

    @app_commands.command(description=_("Give a finished training of yours more epochs; it continues where it ended."))
    @app_commands.describe(**_OPTIONS, epochs=_("How many more epochs"))
    @app_commands.rename(job="id")
    async def extend(self, interaction: discord.Interaction, job: str, epochs: Epochs) -> None:
        await extend(self._services, interaction, await find_job(self._services, interaction, job), epochs)

    @app_commands.command(description=_("Keep the files of a training of yours when room is made."))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def pin(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.PIN)

    @app_commands.command(description=_("Stop keeping the files of a training of yours."))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def unpin(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.UNPIN)

    @app_commands.command(
        description=_("Show the newest samples of a training of yours to everyone here."),
        # The shared image is itself the first answer.
        extras=handled(Acknowledgement.NONE),
    )
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def share(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.SHARE)

    @app_commands.command(description=_("Stop sharing; the files may be deleted when room is made."))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def unshare(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.UNSHARE)

    async def _perform(self, interaction: discord.Interaction, typed: str, verb: Verb) -> None:
        await perform(self._services, interaction, await find_job(self._services, interaction, typed), verb)

    @status.autocomplete("job")
    @history.autocomplete("job")
    @files.autocomplete("job")
    @answered
    async def choose_any(self, interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        return await job_choices(self._services, interaction, typed)

    @cancel.autocomplete("job")
    @pause.autocomplete("job")
    @resume.autocomplete("job")
    @retry.autocomplete("job")
    @extend.autocomplete("job")
    @pin.autocomplete("job")
    @unpin.autocomplete("job")
    @share.autocomplete("job")
    @unshare.autocomplete("job")
    @answered
    async def choose_for_verb(self, interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        assert interaction.command is not None
        return await job_choices(self._services, interaction, typed, verb=Verb(interaction.command.name))


class QueueCommand(commands.Cog):
    """`/queue`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @app_commands.command(
        description=_("Running, waiting and paused trainings, and what holds them up."), extras=handled(rate=PAGES)
    )
    @app_commands.guild_only()
    async def queue(self, interaction: discord.Interaction) -> None:
        assert interaction.guild_id is not None
        jobs = self._services.jobs
        shown = await jobs.living(interaction.guild_id, most=MAX_LISTED)
        snapshot = BoardSnapshot(
            now=datetime.now(UTC),
            jobs=shown,
            counts=await jobs.count_living(interaction.guild_id),
            positions=await jobs.queue_positions([job.id for job in shown]),
            forecasts=await self._services.forecaster.all(),
            slots=await jobs.slots.all(with_unused=True),
            queue_pause=await jobs.control.read(),
            why_closed=self._services.why_closed(),
        )
        await reply(interaction, queue_board(snapshot))
