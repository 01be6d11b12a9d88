"""`/study`: cross-validation, and comparison of settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import discord
from discord import app_commands

from bot.cogs.autocomplete import choose_base, choose_dataset
from bot.cogs.drafts import offer
from bot.cogs.finetune_command import ClassPrompt, Epochs, Name, Rank, Rate, Seed, Trigger, require_permissions
from bot.cogs.interaction_gate import UPLOADS, handled
from bot.cogs.job_request import JobRequest, options_as_settings
from bot.cogs.lookups import dataset_here
from bot.cogs.preset_commands import choose_preset, chosen_preset
from bot.cogs.services import ServiceGroupCog
from bot.errors import JobRefused
from trainer.protocol.presets import DEFAULT_PRESET
from trainer.protocol.study import CompareRequest, KfoldRequest, StudyRequest, StudyRequestError, make_study_request
from trainer.protocol.text import N_, _

Folds = app_commands.Range[int, 2, 20]
Vary = app_commands.Range[str, 3, 1000]

_OPTIONS = {
    "from_dataset": N_("An existing dataset"),
    "preset": N_("What you want to teach (default: lora)"),
    "base": N_("The model to start from"),
    "name": N_("Name of the study: lower-case letters, digits, - . _"),
    "epochs": N_("How many times each run goes through your images"),
    "lr": N_("Learning rate, such as 0.0001"),
    "rank": N_("Size of the LoRA: larger learns more detail, and copies your images sooner"),
    "trigger": N_("The word you will use in prompts to call it up, such as zkz"),
    "class_prompt": N_("What your subject is, such as “a photo of a dog”"),
    "seed": N_("The same seed and settings give the same runs"),
    "confirm": N_("Show how many runs it makes and ask before anything is queued (default: yes)"),
}


@app_commands.guild_only()
class StudyCommands(
    ServiceGroupCog, group_name="study", group_description=N_("Test how sure a result is, or compare settings.")
):
    """`/study kfold` and `/study compare`."""

    @app_commands.command(
        description=N_("How far can you trust the result? Trains once for each part of your images."),
        extras=handled(rate=UPLOADS),
    )
    @app_commands.describe(**_OPTIONS, folds=N_("Parts that your images are divided into; each makes one run"))
    @app_commands.autocomplete(from_dataset=choose_dataset, preset=choose_preset, base=choose_base)
    async def kfold(
        self,
        interaction: discord.Interaction,
        from_dataset: str,
        preset: str = DEFAULT_PRESET,
        base: str | None = None,
        name: Name | None = None,
        epochs: Epochs | None = None,
        lr: Rate | None = None,
        rank: Rank | None = None,
        trigger: Trigger | None = None,
        class_prompt: ClassPrompt | None = None,
        seed: Seed | None = None,
        folds: Folds = 5,
        confirm: bool = True,
    ) -> None:
        options = {"epochs": epochs, "lr": lr, "rank": rank, "trigger": trigger, "seed": seed}
        values = {"base": base, "name": name, **options, "class_prompt": class_prompt}
        await self._submit(interaction, from_dataset, preset, values, KfoldRequest(folds=folds), confirm=confirm)

    @app_commands.command(
        description=N_("Try every combination of settings; weak ones are stopped early."),
        extras=handled(rate=UPLOADS),
    )
    @app_commands.describe(
        **_OPTIONS,
        vary=N_("Settings and values to try: lr=1e-4,3e-4; rank=8,32"),
        finish=N_("Also test and export the winner (default: yes)"),
    )
    @app_commands.autocomplete(from_dataset=choose_dataset, preset=choose_preset, base=choose_base)
    async def compare(
        self,
        interaction: discord.Interaction,
        from_dataset: str,
        vary: Vary,
        preset: str = DEFAULT_PRESET,
        base: str | None = None,
        name: Name | None = None,
        epochs: Epochs | None = None,
        lr: Rate | None = None,
        rank: Rank | None = None,
        trigger: Trigger | None = None,
        class_prompt: ClassPrompt | None = None,
        seed: Seed | None = None,
        finish: bool = True,
        confirm: bool = True,
    ) -> None:
        options = {"epochs": epochs, "lr": lr, "rank": rank, "trigger": trigger, "seed": seed}
        values = {"base": base, "name": name, **options, "class_prompt": class_prompt}
        study = compare_request(vary, finishes=finish)
        await self._submit(interaction, from_dataset, preset, values, study, confirm=confirm)

    async def _submit(
        self,
        interaction: discord.Interaction,
        dataset_name: str,
        preset: str,
        values: Mapping[str, Any],
        study: StudyRequest,
        *,
        confirm: bool,
    ) -> None:
        require_permissions(interaction)
        dataset = await dataset_here(self._services, interaction, dataset_name)
        chosen = await chosen_preset(self._services, interaction, preset)
        given = options_as_settings(values)
        request = chosen.apply_to(JobRequest(preset=chosen.name, base=given.pop("base", None))).changed(given)
        request = request.model_copy(update={"study": study})
        await offer(self._services, interaction, dataset, request, confirm=confirm)


def compare_request(vary: str, *, finishes: bool) -> CompareRequest:
    """Parse `lr=1e-4,3e-4; rank=8,32`.

    Raises:
        JobRefused: It names no settings, or too many.
    """
    settings = [setting for part in vary.split(";") if (setting := part.strip())]
    try:
        request = make_study_request({"kind": "compare", "vary": settings, "finishes": finishes})
    except StudyRequestError as error:
        raise JobRefused(_("{problem} Nothing was queued.", problem=error)) from error
    assert isinstance(request, CompareRequest)
    return request
