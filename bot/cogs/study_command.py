"""`/study`: cross-validation, and comparison of settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import discord
from discord import app_commands
from discord.ext import commands

from bot.cogs.autocomplete import answered, base_choices, dataset_choices, preset_choices
from bot.cogs.drafts import queue_at_once, store_draft
from bot.cogs.finetune_command import ClassPrompt, Epochs, Name, Rate, Seed, Trigger, require_permissions
from bot.cogs.interaction_gate import UPLOADS, handled
from bot.cogs.job_request import JobRequest, overrides
from bot.cogs.lookups import dataset_here
from bot.cogs.services import Services
from bot.errors import JobRefused
from trainer.protocol.presets import presets
from trainer.protocol.study import CompareRequest, KfoldRequest, StudyRequest, StudyRequestError, make_study_request
from trainer.protocol.text import _

if TYPE_CHECKING:
    Folds: TypeAlias = int
    Vary: TypeAlias = str
else:
    Folds = app_commands.Range[int, 2, 20]
    Vary = app_commands.Range[str, 3, 1000]

_OPTIONS = {
    "from_dataset": _("A dataset that was uploaded before"),
    "preset": _("Settings to start from"),
    "base": _("The model to start from"),
    "name": _("Name of the study: lower-case letters, digits, - . _"),
    "epochs": _("How often each image is seen, in each run"),
    "lr": _("Learning rate, such as 0.0001"),
    "trigger": _("A word that calls up what is learned"),
    "class_prompt": _("What your subject is one of (“a photo of a dog”), so that the model keeps the others"),
    "seed": _("The same seed and settings make the same runs"),
}


#: The setting that an option gives.
_SETTINGS = {
    "epochs": "training.epochs",
    "lr": "training.learning_rate",
    "trigger": "training.trigger",
    "class_prompt": "prior.class_prompt",
    "seed": "training.seed",
}


@app_commands.guild_only()
class StudyCommands(commands.GroupCog, group_name="study", group_description=_("Cross-validate, or compare settings.")):
    """`/study kfold` and `/study compare`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @app_commands.command(
        description=_("Train on all folds but one, for each fold: how sure is the result?"),
        extras=handled(rate=UPLOADS),
    )
    @app_commands.describe(**_OPTIONS, folds=_("Parts that the images are divided into, a run for each"))
    async def kfold(
        self,
        interaction: discord.Interaction,
        from_dataset: str,
        preset: str = next(iter(presets())),
        base: str | None = None,
        name: Name | None = None,
        epochs: Epochs | None = None,
        lr: Rate | None = None,
        trigger: Trigger | None = None,
        class_prompt: ClassPrompt | None = None,
        seed: Seed | None = None,
        folds: Folds = 5,
    ) -> None:
        request = _request(
            preset, base, name, epochs=epochs, lr=lr, trigger=trigger, class_prompt=class_prompt, seed=seed
        )
        await self._submit(interaction, from_dataset, request, KfoldRequest(folds=folds))

    @app_commands.command(
        description=_("A run for each combination of settings; the worse are ended early."),
        extras=handled(rate=UPLOADS),
    )
    @app_commands.describe(
        **_OPTIONS,
        vary=_("Settings and values: training.learning_rate=1e-4,3e-4; method.rank=8,32"),
        finish=_("Test and export the best too (yes, if you leave it out)"),
    )
    async def compare(
        self,
        interaction: discord.Interaction,
        from_dataset: str,
        vary: Vary,
        preset: str = next(iter(presets())),
        base: str | None = None,
        name: Name | None = None,
        epochs: Epochs | None = None,
        lr: Rate | None = None,
        trigger: Trigger | None = None,
        class_prompt: ClassPrompt | None = None,
        seed: Seed | None = None,
        finish: bool = True,
    ) -> None:
        study = compare_request(vary, finishes=finish)
        request = _request(
            preset, base, name, epochs=epochs, lr=lr, trigger=trigger, class_prompt=class_prompt, seed=seed
        )
        await self._submit(interaction, from_dataset, request, study)

    async def _submit(
        self, interaction: discord.Interaction, dataset_name: str, request: JobRequest, study: StudyRequest
    ) -> None:
        require_permissions(interaction)
        dataset = await dataset_here(self._services, interaction, dataset_name)
        request = request.model_copy(update={"study": study})
        draft = await store_draft(self._services, interaction, dataset, request)
        await queue_at_once(self._services, interaction, draft)

    @kfold.autocomplete("from_dataset")
    @compare.autocomplete("from_dataset")
    @answered
    async def choose_dataset(self, interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        return await dataset_choices(self._services, interaction, typed)

    @kfold.autocomplete("preset")
    @compare.autocomplete("preset")
    @answered
    async def choose_preset(self, interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        return preset_choices(typed)

    @kfold.autocomplete("base")
    @compare.autocomplete("base")
    @answered
    async def choose_base(self, interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        return base_choices(self._services.config, typed)


def _request(preset: str, base: str | None, name: str | None, **options: float | str | None) -> JobRequest:
    values = {_SETTINGS[each]: value.strip() if isinstance(value, str) else value for each, value in options.items()}
    return JobRequest(preset=preset, base=base, name=name, overrides=overrides(values))


def compare_request(vary: str, *, finishes: bool) -> CompareRequest:
    """Parse `training.learning_rate=1e-4,3e-4; method.rank=8,32`.

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
