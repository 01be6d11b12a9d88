"""`/job` and `/queue`: look at jobs, and act on one's own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

import discord
from discord import app_commands
from discord.ext import commands

from bot.cogs.autocomplete import answered, job_choices
from bot.cogs.finetune_command import Epochs
from bot.cogs.interaction_gate import PAGES, REPORTS, handled
from bot.cogs.job_actions import (
    ask_how_to_stop,
    board,
    hand_over_files,
    perform,
    show_history,
    show_log,
    write_note,
)
from bot.cogs.lookups import as_seen, find_job, storable
from bot.cogs.next_steps import extend
from bot.cogs.replies import reply
from bot.cogs.services import Services, context_of
from bot.cogs.sharing import share_samples
from bot.queue.domain.verbs import Verb
from bot.queue.store.gallery_store import parse_tags
from bot.ui.job_posts import card_message
from bot.ui.queue_pages import job_list
from trainer.protocol.text import N_, _

if TYPE_CHECKING:
    Note: TypeAlias = str
    Tags: TypeAlias = str
else:
    Tags = app_commands.Range[str, 0, 200]
    Note = app_commands.Range[str, 0, 300]

_LISTED_JOBS = 15
_OPTIONS = {"job": N_("Number or name of the job")}


@app_commands.guild_only()
class JobCommands(
    commands.GroupCog, group_name="job", group_description=N_("Look at trainings, or act on one of yours.")
):
    """The `/job` commands."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @app_commands.command(description=N_("The state of a training."), extras=handled(rate=PAGES))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def status(self, interaction: discord.Interaction, job: str) -> None:
        found = await find_job(self._services, interaction, job)
        await reply(interaction, card_message(found, await context_of(self._services, found, interaction.client)))

    @app_commands.command(
        name="list", description=N_("The newest trainings of this server."), extras=handled(rate=PAGES)
    )
    async def list_jobs(self, interaction: discord.Interaction) -> None:
        assert interaction.guild_id is not None
        jobs = await self._services.jobs.recent(interaction.guild_id, _LISTED_JOBS)
        await reply(interaction, job_list(_("Newest trainings"), as_seen(interaction, jobs), datetime.now(UTC)))

    @app_commands.command(description=N_("Every attempt of a training, and who did what."), extras=handled(rate=PAGES))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def history(self, interaction: discord.Interaction, job: str) -> None:
        found = await find_job(self._services, interaction, job)
        await show_history(self._services, interaction, found)

    @app_commands.command(description=N_("The end of a training's log."), extras=handled(rate=PAGES))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def logs(self, interaction: discord.Interaction, job: str) -> None:
        await show_log(self._services, interaction, await find_job(self._services, interaction, job))

    @app_commands.command(description=N_("Write a note on a training of yours; everyone sees it on its card."))
    @app_commands.describe(**_OPTIONS, text=N_("The note; leave it out to remove the one that is there"))
    @app_commands.rename(job="id")
    async def note(self, interaction: discord.Interaction, job: str, text: Note = "") -> None:
        await write_note(self._services, interaction, await find_job(self._services, interaction, job), text)

    @app_commands.command(description=N_("The files of a finished training."), extras=handled(rate=REPORTS))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def files(self, interaction: discord.Interaction, job: str) -> None:
        found = await find_job(self._services, interaction, job)
        await hand_over_files(self._services, interaction, found)

    @app_commands.command(description=N_("Stop a training of yours early and keep its best epoch, or pause it."))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def stop(self, interaction: discord.Interaction, job: str) -> None:
        found = await find_job(self._services, interaction, job)
        await ask_how_to_stop(self._services, interaction, found)

    @app_commands.command(description=N_("Stop a training of yours; its checkpoint is kept."))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def cancel(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.CANCEL)

    @app_commands.command(description=N_("Free the GPU of a training of yours; /job resume continues it."))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def pause(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.PAUSE)

    @app_commands.command(description=N_("Continue a paused training of yours, before those that never started."))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def resume(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.RESUME)

    @app_commands.command(description=N_("Try a failed or cancelled training of yours again, from its checkpoint."))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def retry(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.RETRY)

    @app_commands.command(description=N_("Give a finished training of yours more epochs; it continues where it ended."))
    @app_commands.describe(**_OPTIONS, epochs=N_("How many more epochs"))
    @app_commands.rename(job="id")
    async def extend(self, interaction: discord.Interaction, job: str, epochs: Epochs) -> None:
        await extend(self._services, interaction, await find_job(self._services, interaction, job), epochs)

    @app_commands.command(description=N_("Protect the files of a training of yours from cleanup."))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def pin(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.PIN)

    @app_commands.command(description=N_("Stop protecting the files of a training of yours."))
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def unpin(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.UNPIN)

    @app_commands.command(description=N_("Show what a training of yours draws to everyone here, in the gallery."))
    @app_commands.describe(
        **_OPTIONS, tags=N_("Words by which others find it, with spaces between them: fox watercolor")
    )
    @app_commands.rename(job="id")
    async def share(self, interaction: discord.Interaction, job: str, tags: Tags = "") -> None:
        found = await find_job(self._services, interaction, job)
        await share_samples(self._services, interaction, found, parse_tags(storable(tags)))

    @app_commands.command(
        description=N_("Take its pictures out of the gallery; its files may then be deleted to free disk space.")
    )
    @app_commands.describe(**_OPTIONS)
    @app_commands.rename(job="id")
    async def unshare(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.UNSHARE)

    async def _perform(self, interaction: discord.Interaction, typed: str, verb: Verb) -> None:
        await perform(self._services, interaction, await find_job(self._services, interaction, typed), verb)

    @status.autocomplete("job")
    @history.autocomplete("job")
    @files.autocomplete("job")
    @logs.autocomplete("job")
    @note.autocomplete("job")
    @answered
    async def choose_any(self, interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        return await job_choices(self._services, interaction, typed)

    @stop.autocomplete("job")
    @answered
    async def choose_to_stop(self, interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        # What can be cancelled can be stopped in one way or another.
        return await job_choices(self._services, interaction, typed, verb=Verb.CANCEL)

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
        description=N_("Running, waiting and paused trainings, and what holds them up."), extras=handled(rate=PAGES)
    )
    @app_commands.guild_only()
    async def queue(self, interaction: discord.Interaction) -> None:
        await reply(interaction, await board(self._services, interaction))
