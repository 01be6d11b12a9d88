"""`/notify`: which news a person gets, and where; and [🔔] on a job's card."""

from __future__ import annotations

from collections.abc import Mapping

import discord
from discord import app_commands

from bot.cogs.interaction_gate import PAGES, ButtonHandler, handled
from bot.cogs.lookups import of_job
from bot.cogs.replies import Acknowledgement, open_form, replace, reply
from bot.cogs.services import ServiceCog, Services
from bot.outbox.audience import NotifyEvent, NotifyPlace
from bot.queue import Job
from bot.ui.dataset_forms import Form
from bot.ui.layout import text_message
from bot.ui.notify_pages import (
    direct_refused,
    direct_test,
    notify_page,
    parse_quiet_hours,
    plain_words,
    quiet_form,
    watch_reply,
)
from trainer.protocol.text import LANGUAGES, N_


async def _show(services: Services, interaction: discord.Interaction, note: str = "") -> None:
    """Show a person's choices in place of the page that they changed."""
    await replace(interaction, notify_page(await services.outbox.audience.preferences(interaction.user.id), note))


async def _choose(services: Services, interaction: discord.Interaction, choice: str) -> None:
    event, place = choice.split("-")
    audience = services.outbox.audience
    before = await audience.preferences(interaction.user.id)
    note = ""
    if place == NotifyPlace.DIRECT and NotifyPlace.DIRECT not in before.places.values():
        # The first direct message is now, while the person looks, and not in the middle of a training.
        try:
            await interaction.user.send(direct_test())
        except discord.Forbidden:
            note = direct_refused()
    await audience.choose(interaction.user.id, NotifyEvent(event), NotifyPlace(place))
    await _show(services, interaction, note)


async def _ask_quiet(services: Services, interaction: discord.Interaction) -> None:
    async def submitted(answered: discord.Interaction, form: Form) -> None:
        quiet = parse_quiet_hours(form.texts)
        await services.outbox.audience.set_quiet(answered.user.id, quiet)
        await _show(services, answered)

    quiet = (await services.outbox.audience.preferences(interaction.user.id)).quiet
    zone = services.config.windows.timezone
    await open_form(interaction, quiet_form(services.gate.form(submitted), quiet, zone=zone))


@of_job
async def watch(services: Services, interaction: discord.Interaction, job: Job) -> None:
    """[🔔]: notify a person of a job from now on, or no more."""
    audience, user_id = services.outbox.audience, interaction.user.id
    is_watching = not await audience.is_watching(job.id, user_id, owner_id=job.owner_id)
    await audience.watch(job.id, user_id, is_watching=is_watching)
    preferences = await audience.preferences(user_id)
    await reply(interaction, text_message(watch_reply(job, preferences, is_watching=is_watching)))


#: Discord takes no empty value.
_OF_DISCORD = "discord"

_CHOICE = f"({'|'.join(NotifyEvent)})-({'|'.join(NotifyPlace)})"

HANDLERS: Mapping[str, ButtonHandler] = {
    "at": ButtonHandler(run=_choose, argument=_CHOICE, acknowledgement=Acknowledgement.UPDATE, rate=PAGES),
    "quiet": ButtonHandler(run=_ask_quiet, acknowledgement=Acknowledgement.NONE, rate=PAGES),
}


class NotifyCommand(ServiceCog):
    """`/notify` and the menus of its page."""

    @app_commands.command(
        description=N_("Choose what I tell you about, where, and when I stay quiet."), extras=handled(rate=PAGES)
    )
    @app_commands.describe(
        language=N_("The language that I speak with you"),
        plain=N_("Plain text for screen readers: no boxes or symbols, pictures described in words"),
    )
    @app_commands.choices(
        language=[
            app_commands.Choice(name=N_("The same as in Discord"), value=_OF_DISCORD),
            *(app_commands.Choice(name=name, value=code) for code, name in LANGUAGES.items()),
        ]
    )
    @app_commands.guild_only()
    async def notify(
        self, interaction: discord.Interaction, language: str | None = None, plain: bool | None = None
    ) -> None:
        languages = self._services.languages
        if language is not None:
            await languages.choose("" if language == _OF_DISCORD else language, person=interaction.user.id)
        if plain is not None:
            await languages.choose_plain(interaction.user.id, is_plain=plain)
        languages.address(interaction)
        note = "" if plain is None else plain_words(is_plain=plain)
        preferences = await self._services.outbox.audience.preferences(interaction.user.id)
        await reply(interaction, notify_page(preferences, note))
