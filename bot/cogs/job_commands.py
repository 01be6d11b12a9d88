"""`/job` and `/queue`: look at jobs, and act on one's own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import discord
from discord import app_commands

from bot.access import server_of
from bot.cogs.autocomplete import Autocompletion, Choices, answered, choose_job, job_choices
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
from bot.cogs.services import ServiceCog, ServiceGroupCog, Services, context_of
from bot.cogs.sharing import share_samples
from bot.queue.domain.verbs import Verb
from bot.queue.store.gallery_store import parse_tags
from bot.ui.job_posts import card_message
from bot.ui.queue_pages import job_list
from trainer.protocol.text import N_, _

Tags = app_commands.Range[str, 0, 200]
Note = app_commands.Range[str, 0, 300]

_LISTED_JOBS = 15
_T = TypeVar("_T")


def _about(choose: Autocompletion) -> Callable[[_T], _T]:
    """Let a command take a job, as the option `id`."""

    def take(command: _T) -> _T:
        command = app_commands.autocomplete(job=choose)(command)
        return app_commands.rename(job="id")(app_commands.describe(job=N_("Number or name of the job"))(command))

    return take


async def _verb_choices(services: Services, interaction: discord.Interaction, typed: str) -> Choices:
    assert interaction.command is not None
    return await job_choices(services, interaction, typed, verb=Verb(interaction.command.name))


_choose_for_verb = answered(_verb_choices)
# What can be cancelled can be stopped in one way or another.
_choose_to_stop = answered(partial(job_choices, verb=Verb.CANCEL))


@app_commands.guild_only()
class JobCommands(
    ServiceGroupCog, group_name="job", group_description=N_("Look at trainings, or act on one of yours.")
):
    """The `/job` commands."""

    @app_commands.command(description=N_("The state of a training."), extras=handled(rate=PAGES))
    @_about(choose_job)
    async def status(self, interaction: discord.Interaction, job: str) -> None:
        found = await find_job(self._services, interaction, job)
        await reply(interaction, card_message(found, await context_of(self._services, found, interaction.client)))

    @app_commands.command(
        name="list", description=N_("The newest trainings of this server."), extras=handled(rate=PAGES)
    )
    async def list_jobs(self, interaction: discord.Interaction) -> None:
        jobs = await self._services.jobs.recent(server_of(interaction), _LISTED_JOBS)
        await reply(interaction, job_list(_("Newest trainings"), as_seen(interaction, jobs), datetime.now(UTC)))

    @app_commands.command(description=N_("Every attempt of a training, and who did what."), extras=handled(rate=PAGES))
    @_about(choose_job)
    async def history(self, interaction: discord.Interaction, job: str) -> None:
        found = await find_job(self._services, interaction, job)
        await show_history(self._services, interaction, found)

    @app_commands.command(description=N_("The end of a training's log."), extras=handled(rate=PAGES))
    @_about(choose_job)
    async def logs(self, interaction: discord.Interaction, job: str) -> None:
        await show_log(self._services, interaction, await find_job(self._services, interaction, job))

    @app_commands.command(description=N_("Write a note on a training of yours; everyone sees it on its card."))
    @_about(choose_job)
    @app_commands.describe(text=N_("The note; leave it out to remove the one that is there"))
    async def note(self, interaction: discord.Interaction, job: str, text: Note = "") -> None:
        await write_note(self._services, interaction, await find_job(self._services, interaction, job), text)

    @app_commands.command(description=N_("The files of a finished training."), extras=handled(rate=REPORTS))
    @_about(choose_job)
    async def files(self, interaction: discord.Interaction, job: str) -> None:
        found = await find_job(self._services, interaction, job)
        await hand_over_files(self._services, interaction, found)

    @app_commands.command(description=N_("Stop a training of yours early and keep its best epoch, or pause it."))
    @_about(_choose_to_stop)
    async def stop(self, interaction: discord.Interaction, job: str) -> None:
        found = await find_job(self._services, interaction, job)
        await ask_how_to_stop(self._services, interaction, found)

    @app_commands.command(description=N_("Stop a training of yours; its checkpoint is kept."))
    @_about(_choose_for_verb)
    async def cancel(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.CANCEL)

    @app_commands.command(description=N_("Free the GPU of a training of yours; /job resume continues it."))
    @_about(_choose_for_verb)
    async def pause(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.PAUSE)

    @app_commands.command(description=N_("Continue a paused training of yours, before those that never started."))
    @_about(_choose_for_verb)
    async def resume(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.RESUME)

    @app_commands.command(description=N_("Try a failed or cancelled training of yours again, from its checkpoint."))
    @_about(_choose_for_verb)
    async def retry(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.RETRY)

    @app_commands.command(description=N_("Give a finished training of yours more epochs; it continues where it ended."))
    @_about(_choose_for_verb)
    @app_commands.describe(epochs=N_("How many more epochs"))
    async def extend(self, interaction: discord.Interaction, job: str, epochs: Epochs) -> None:
        await extend(self._services, interaction, await find_job(self._services, interaction, job), epochs)

    @app_commands.command(description=N_("Protect the files of a training of yours from cleanup."))
    @_about(_choose_for_verb)
    async def pin(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.PIN)

    @app_commands.command(description=N_("Stop protecting the files of a training of yours."))
    @_about(_choose_for_verb)
    async def unpin(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.UNPIN)

    @app_commands.command(description=N_("Show what a training of yours draws to everyone here, in the gallery."))
    @_about(_choose_for_verb)
    @app_commands.describe(tags=N_("Words by which others find it, with spaces between them: fox watercolor"))
    async def share(self, interaction: discord.Interaction, job: str, tags: Tags = "") -> None:
        found = await find_job(self._services, interaction, job)
        await share_samples(self._services, interaction, found, parse_tags(storable(tags)))

    @app_commands.command(
        description=N_("Take its pictures out of the gallery; its files may then be deleted to free disk space.")
    )
    @_about(_choose_for_verb)
    async def unshare(self, interaction: discord.Interaction, job: str) -> None:
        await self._perform(interaction, job, Verb.UNSHARE)

    async def _perform(self, interaction: discord.Interaction, typed: str, verb: Verb) -> None:
        await perform(self._services, interaction, await find_job(self._services, interaction, typed), verb)


class QueueCommand(ServiceCog):
    """`/queue`."""

    @app_commands.command(
        description=N_("Running, waiting and paused trainings, and what holds them up."), extras=handled(rate=PAGES)
    )
    @app_commands.guild_only()
    async def queue(self, interaction: discord.Interaction) -> None:
        await reply(interaction, await board(self._services, interaction))
