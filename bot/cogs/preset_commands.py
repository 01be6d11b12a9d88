"""`/preset`: settings of a job that went well, saved for the whole server; and which preset a name means here."""

from __future__ import annotations

from dataclasses import dataclass

import discord
from discord import app_commands

from bot.access import manages, server_of
from bot.cogs.autocomplete import Choices, answered, choose_job, job_choices
from bot.cogs.interaction_gate import PAGES, handled
from bot.cogs.job_request import JobRequest, slug
from bot.cogs.lookups import find_job, storable
from bot.cogs.replies import reply
from bot.cogs.services import ServiceGroupCog, Services
from bot.config import Config
from bot.errors import Explained, JobRefused, NotAllowed
from bot.queue import Job
from bot.queue.store.preset_store import NoSuchPreset, SavedPreset
from bot.ui.layout import text_message
from bot.ui.preset_pages import deleted_preset_text, preset_list, preset_page, saved_text
from bot.ui.setting_forms import preset_choice
from trainer.protocol.presets import Preset, preset_named, presets
from trainer.protocol.settings import MethodKind
from trainer.protocol.spec import Spec
from trainer.protocol.text import N_, _

PresetName = app_commands.Range[str, 1, 40]
Summary = app_commands.Range[str, 1, 100]


@dataclass(frozen=True, kw_only=True)
class ChosenPreset:
    """What a preset's name means in a server."""

    name: str
    #: None: it is built-in.
    saved: SavedPreset | None = None

    def request(self) -> JobRequest:
        """Return a request with this preset and nothing else."""
        return self.apply_to(JobRequest(preset=self.name))

    def apply_to(self, request: JobRequest) -> JobRequest:
        """Return the request with this preset; its base is taken unless the request names one."""
        saved = self.saved
        return request.model_copy(
            update={
                "preset": self.name,
                "saved_preset": None if saved is None else saved.preset,
                "base": request.base or (saved.base if saved is not None and saved.base else None),
            }
        )


async def chosen_preset(services: Services, interaction: discord.Interaction, name: str) -> ChosenPreset:
    """Return what a preset's name means here, or `#12`: the settings of that training; an unknown name is refused once
    its spec is made.

    Raises:
        NoSuchJob: The server has no training of that number.
    """
    if name in presets():
        return ChosenPreset(name=name)
    if name.startswith("#"):
        return settings_of(await find_job(services, interaction, name), services.config)
    saved = await services.presets.find(server_of(interaction), storable(name))
    return ChosenPreset(name=name, saved=saved)


def settings_of(job: Job, config: Config) -> ChosenPreset:
    """Return the settings of a training as a preset that is saved nowhere."""
    preset, base = preset_of(job, f"job-{job.id}", "", config)
    saved = SavedPreset(guild_id=job.guild_id, owner_id=job.owner_id, base=base, preset=preset)
    return ChosenPreset(name=preset.name, saved=saved)


def request_again(job: Job, config: Config) -> JobRequest:
    """Return the request that makes a training again, with what belongs to its images, but without mixed datasets."""
    spec = job.spec
    values = {
        "name": spec.name,
        "training.trigger": spec.training.trigger,
        "prior.class_prompt": spec.prior.class_prompt,
        "samples.prompts": list(spec.samples.prompts),
        "method.initial_word": spec.method.initial_word,
    }
    given = {name: value for name, value in values.items() if value}
    return settings_of(job, config).request().changed(given)


async def presets_here(services: Services, interaction: discord.Interaction) -> dict[str, Preset]:
    """Return the presets of the server, and then the built-in ones, by name."""
    saved = await services.presets.all(server_of(interaction))
    return {**{each.preset.name: each.preset for each in saved}, **presets()}


async def _preset_choices(services: Services, interaction: discord.Interaction, typed: str) -> Choices:
    """Presets whose name matches, with what each is for: those of the server first, then the most used ones."""
    if typed.startswith("#"):
        # The settings of a training.
        return [(name, f"#{value}") for name, value in await job_choices(services, interaction, typed)]
    known = await presets_here(services, interaction)
    return [(preset_choice(each), name) for name, each in known.items() if typed.lower() in name]


async def _saved_choices(services: Services, interaction: discord.Interaction, typed: str) -> Choices:
    saved = await services.presets.all(server_of(interaction))
    return [(preset_choice(each.preset), each.preset.name) for each in saved if typed.lower() in each.preset.name]


choose_preset, _choose_saved = answered(_preset_choices), answered(_saved_choices)


def preset_of(job: Job, name: str, summary: str, config: Config) -> tuple[Preset, str]:
    """Return the settings of a job as a preset, and the label of its base; empty: the preset brings its own.

    What belongs to the job's images stays behind: trigger word, class prompt, sample prompts and other datasets.
    """
    spec = job.spec
    settings = spec.model_dump(mode="json", exclude_defaults=True)
    for left_out in ("version", "dataset", "name", "preset", "mix", "split"):
        settings.pop(left_out, None)
    for group, names in _OF_IMAGES.items():
        for each in names:
            settings.get(group, {}).pop(each, None)
    models, own = config.models, spec.base.model_dump(include={"source", "vae"}, exclude_none=True)
    label = next((label for label in models.sources if models.base_of(label) == own), "")
    if label:
        for each in own:
            settings.get("base", {}).pop(each, None)
    settings = {group: value for group, value in settings.items() if value != {}}
    return Preset(name=name, summary=summary, needs=_needs(spec), settings=settings), label


#: Settings that belong to a job's images or files.
_OF_IMAGES = {
    "training": ("trigger",),
    "prior": ("class_prompt",),
    "samples": ("prompts",),
    "method": ("start_from", "start_sha256", "initial_word"),
}


def _needs(spec: Spec) -> tuple[str, ...]:
    if spec.prior.is_on:
        return ("training.trigger", "prior.class_prompt")
    return ("training.trigger",) if spec.method.kind is MethodKind.TEXTUAL_INVERSION else ()


@app_commands.guild_only()
class PresetCommands(ServiceGroupCog, group_name="preset", group_description=N_("Settings to start from.")):
    """`/preset save`, `list`, `show` and `delete`."""

    @app_commands.command(description=N_("Save the settings of a training for the whole server."))
    @app_commands.describe(
        job=N_("Number or name of the training"),
        name=N_("Name of the preset: lower-case letters, digits, - . _"),
        summary=N_("What it is good for, in one sentence"),
    )
    @app_commands.rename(job="id")
    @app_commands.autocomplete(job=choose_job)
    async def save(
        self, interaction: discord.Interaction, job: str, name: PresetName, summary: Summary | None = None
    ) -> None:
        found = await find_job(self._services, interaction, job)
        title = slug(name)
        if title in presets() or not title[:1].isalnum():
            raise JobRefused(
                _("“{name}” cannot be the name of a preset of yours. Choose another one; nothing was saved.", name=name)
            )
        words = summary or _("The settings of #{job} {name}.", job=found.id, name=found.name)
        preset, base = preset_of(found, title, words, self._services.config)
        saved = SavedPreset(guild_id=server_of(interaction), owner_id=interaction.user.id, base=base, preset=preset)
        await self._services.presets.save(saved)
        await reply(interaction, text_message(saved_text(saved)))

    @app_commands.command(name="list", description=N_("All presets, and what each is for."), extras=handled(rate=PAGES))
    async def show_all(self, interaction: discord.Interaction) -> None:
        await reply(interaction, preset_list(await self._services.presets.all(server_of(interaction))))

    @app_commands.command(description=N_("All settings of one preset."), extras=handled(rate=PAGES))
    @app_commands.describe(name=N_("Name of the preset"))
    @app_commands.autocomplete(name=choose_preset)
    async def show(self, interaction: discord.Interaction, name: str) -> None:
        chosen = await chosen_preset(self._services, interaction, name)
        preset = preset_named(name) if chosen.saved is None else chosen.saved.preset
        await reply(interaction, preset_page(preset, chosen.saved))

    @app_commands.command(description=N_("Delete a preset of yours."))
    @app_commands.describe(name=N_("Name of the preset"))
    @app_commands.autocomplete(name=_choose_saved)
    async def delete(self, interaction: discord.Interaction, name: str) -> None:
        saved = await self._services.presets.find(server_of(interaction), storable(name))
        if saved is None:
            raise NoSuchPreset(name=name[:60])
        if interaction.user.id != saved.owner_id and not manages(interaction):
            raise NotYourPreset(name=saved.preset.name, owner_id=saved.owner_id)
        await self._services.presets.delete(server_of(interaction), saved.preset.name)
        await reply(interaction, text_message(deleted_preset_text(saved.preset.name)))


class NotYourPreset(Explained, NotAllowed):
    """Another member's preset."""

    name: str
    owner_id: int
    sentence = N_("Only <@{owner_id}> or a manager of the server can delete the preset {name}.")
