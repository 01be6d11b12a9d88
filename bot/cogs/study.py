"""`/study`: one question to many trainings, a fold or a setting each, under one card."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import discord
from discord import app_commands
from discord.ext import commands

from bot.cogs.choices import base_choices, preset_choices
from bot.cogs.drafts import queue_at_once
from bot.cogs.finetune import Epochs, Name, Rate, Seed, require_permissions
from bot.cogs.intake import choices_of
from bot.cogs.services import Services
from bot.cogs.wishes import Wishes
from bot.errors import JobRefused
from trainer.protocol.presets import presets
from trainer.protocol.study import CompareOrder, KfoldOrder, StudyOrder, StudyOrderError, make_study_order

if TYPE_CHECKING:
    Folds: TypeAlias = int
    Vary: TypeAlias = str
else:
    Folds = app_commands.Range[int, 2, 20]
    Vary = app_commands.Range[str, 3, 1000]

_ABOUT = {
    "from_dataset": "A dataset that was handed in before",
    "preset": "Where the settings start from",
    "base": "The model to start from",
    "name": "What to call the study: small letters, digits, - . _",
    "epochs": "How often each picture is seen, in each run",
    "lr": "Learning rate, such as 0.0001",
    "seed": "The same seed and settings make the same runs",
}


@app_commands.guild_only()
class Studies(commands.GroupCog, group_name="study", group_description="Cross-validate, or compare settings."):
    """Orders studies; `bot.studies` brings them on."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @app_commands.command(description="Train on all folds but one, for each fold: how sure is the result?")
    @app_commands.describe(**_ABOUT, folds="Parts that the pictures are divided into, a run for each")
    async def kfold(
        self,
        interaction: discord.Interaction,
        from_dataset: str,
        preset: str = next(iter(presets())),
        base: str | None = None,
        name: Name | None = None,
        epochs: Epochs | None = None,
        lr: Rate | None = None,
        seed: Seed | None = None,
        folds: Folds = 5,
    ) -> None:
        order = KfoldOrder(folds=folds)
        wishes = _wishes(order, preset=preset, base=base, name=name, epochs=epochs, lr=lr, seed=seed)
        await self._submit(interaction, from_dataset, wishes)

    @app_commands.command(description="A run for each combination of settings; the worse are ended early.")
    @app_commands.describe(
        **_ABOUT,
        vary="Settings and values: training.learning_rate=1e-4,3e-4; method.rank=8,32",
        finish="Test and export the best too (yes, if you leave it out)",
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
        seed: Seed | None = None,
        finish: bool = True,
    ) -> None:
        order = compare_order(vary, finishes=finish)
        wishes = _wishes(order, preset=preset, base=base, name=name, epochs=epochs, lr=lr, seed=seed)
        await self._submit(interaction, from_dataset, wishes)

    async def _submit(self, interaction: discord.Interaction, from_dataset: str, wishes: Wishes) -> None:
        await interaction.response.defer(ephemeral=True, thinking=True)
        require_permissions(interaction)
        assert interaction.guild_id is not None
        dataset = await self._services.datasets.named(interaction.guild_id, from_dataset)
        draft = await self._services.drafts.keep(
            interaction_id=interaction.id,
            guild_id=interaction.guild_id,
            channel_id=interaction.channel_id or 0,
            owner_id=interaction.user.id,
            dataset_id=dataset.id,
            wishes=wishes.to_json(),
        )
        await queue_at_once(self._services, interaction, draft)

    @kfold.autocomplete("from_dataset")
    @compare.autocomplete("from_dataset")
    async def choose_dataset(self, interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        return await choices_of(self._services, interaction, typed)

    @kfold.autocomplete("preset")
    @compare.autocomplete("preset")
    async def choose_preset(self, _: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        return preset_choices(typed)

    @kfold.autocomplete("base")
    @compare.autocomplete("base")
    async def choose_base(self, _: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        return base_choices(self._services.config, typed)


def compare_order(vary: str, *, finishes: bool) -> CompareOrder:
    """The order of `training.learning_rate=1e-4,3e-4; method.rank=8,32`.

    Raises:
        JobRefused: it names no settings, or too many.
    """
    settings = [setting for part in vary.split(";") if (setting := part.strip())]
    try:
        order = make_study_order({"kind": "compare", "vary": settings, "finishes": finishes})
    except StudyOrderError as error:
        raise JobRefused(f"{error} Nothing was queued.") from error
    assert isinstance(order, CompareOrder)
    return order


def _wishes(
    order: StudyOrder,
    *,
    preset: str,
    base: str | None,
    name: str | None,
    epochs: int | None,
    lr: float | None,
    seed: int | None,
) -> Wishes:
    return Wishes(
        preset=preset, base=base, name=name, epochs=epochs, lr=lr, rank=None, prompts=None, trigger=None,
        class_prompt=None, seed=seed, early_stop=None, study=order.model_dump_json(),
    )  # fmt: skip
