"""`/finetune`: from a dropped file to a job in line."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, TypeAlias

import discord
from discord import app_commands
from discord.ext import commands

from bot.cogs.choices import base_choices, preset_choices
from bot.cogs.drafts import draft_card, queue_at_once, require_order
from bot.cogs.intake import choices_of, noted, take_in
from bot.cogs.replies import reply
from bot.cogs.services import Services
from bot.cogs.wishes import Wishes, make_spec
from bot.crashing import crash_point
from bot.datasets import Dataset, UploadKind
from bot.errors import DatasetRefused, JobRefused
from bot.queue.planning.delayed import parse_start
from bot.ui.permissions import missing_permissions
from bot.ui.text import listed
from trainer.protocol.presets import presets
from trainer.protocol.spec import allowed_range

_EPOCHS, _LR, _RANK, _SEED = (
    allowed_range(name) for name in ("training.epochs", "training.learning_rate", "method.rank", "training.seed")
)

# Discord checks these before it sends anything; `spec_from_preset` checks them again: a client may be old or forged.
if TYPE_CHECKING:
    Epochs: TypeAlias = int
    Rank: TypeAlias = int
    Seed: TypeAlias = int
    Rate: TypeAlias = float
    Name: TypeAlias = str
    Trigger: TypeAlias = str
    ClassPrompt: TypeAlias = str
    Prompts: TypeAlias = str
    Gpus: TypeAlias = int
    Start: TypeAlias = str
else:
    Epochs = app_commands.Range[int, int(_EPOCHS[0]), int(_EPOCHS[1])]
    Rank = app_commands.Range[int, int(_RANK[0]), int(_RANK[1])]
    Seed = app_commands.Range[int, int(_SEED[0]), int(_SEED[1])]
    Rate = app_commands.Range[float, _LR[0], _LR[1]]
    Name = app_commands.Range[str, 1, 40]
    Trigger = app_commands.Range[str, 1, 50]
    ClassPrompt = app_commands.Range[str, 1, 200]
    Prompts = app_commands.Range[str, 1, 2000]
    Gpus = app_commands.Range[int, 1, 8]
    Start = app_commands.Range[str, 1, 40]


class Finetune(commands.Cog):
    """The command that all this is for."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @app_commands.command(description="Fine-tune a model on your pictures.")
    @app_commands.guild_only()
    @app_commands.describe(
        dataset="Pictures as zip, tar or 7z (with captions as .txt beside them, if you have some)",
        from_dataset="… or a dataset that was handed in before",
        preset="Where the settings start from",
        base="The model to start from",
        name="What to call the result: small letters, digits, - . _",
        epochs="How often each picture is seen",
        lr="Learning rate, such as 0.0001",
        rank="Size of the LoRA: more learns more, and overfits sooner",
        prompts="Prompts of the sample pictures, | between them",
        trigger="A word that will call up what is taught",
        class_prompt="What your subject is one of (“a photo of a dog”), so that the model keeps the others",
        seed="The same seed and settings make the same LoRA",
        early_stop="Stop when the validation loss no longer falls",
        priority="What goes first in the line; high is for those who may manage the server",
        gpus="GPUs that train it together",
        start="Not before: 22:00, tomorrow 06:30, in 2 h, 2026-11-25 22:00",
        confirm="Show me the dataset's report before anything is queued (yes, if you leave it out)",
    )
    async def finetune(
        self,
        interaction: discord.Interaction,
        dataset: discord.Attachment | None = None,
        from_dataset: str | None = None,
        preset: str = next(iter(presets())),
        base: str | None = None,
        name: Name | None = None,
        epochs: Epochs | None = None,
        lr: Rate | None = None,
        rank: Rank | None = None,
        prompts: Prompts | None = None,
        trigger: Trigger | None = None,
        class_prompt: ClassPrompt | None = None,
        seed: Seed | None = None,
        early_stop: bool | None = None,
        priority: Literal["low", "normal", "high"] = "normal",
        gpus: Gpus = 1,
        start: Start | None = None,
        confirm: bool = True,
    ) -> None:
        await interaction.response.defer(ephemeral=True, thinking=True)
        require_permissions(interaction)
        wishes = Wishes(
            preset=preset, base=base, name=name, epochs=epochs, lr=lr, rank=rank, prompts=prompts, trigger=trigger,
            class_prompt=class_prompt, seed=seed, early_stop=early_stop, priority=priority, gpus=gpus,
            run_after=None if start is None else parse_start(start, time.time(), self._services.config.windows.zone),
        )  # fmt: skip
        # Before a byte is downloaded: most mistakes are in the settings.
        allowance = await require_order(self._services, interaction, wishes)
        make_spec(
            wishes,
            self._services.config,
            dataset_name="lora",
            folder="not known yet",
            max_epochs=allowance.max_epochs,
        )
        if dataset is None:
            await self._offer(interaction, await self._known(interaction, from_dataset), wishes, confirm=confirm)
            return
        if from_dataset is not None:
            raise DatasetRefused("Give either dataset:<file> or from_dataset:<name>, not both. Nothing was queued.")
        async with noted(
            self._services,
            interaction,
            [dataset],
            kind=UploadKind.FINETUNE,
            wishes=wishes.to_json(),
            is_at_once=not confirm,
        ):
            found = await take_in(self._services, interaction, [dataset])
            await self._offer(interaction, found, wishes, confirm=confirm)

    async def _offer(self, interaction: discord.Interaction, found: Dataset, wishes: Wishes, *, confirm: bool) -> None:
        """Show what it would train on and ask, or queue it."""
        # Kept even where it is queued at once: it carries the interaction's id, by which it is one job.
        draft = await self._services.drafts.keep(
            interaction_id=interaction.id,
            guild_id=found.guild_id,
            channel_id=interaction.channel_id or 0,
            owner_id=interaction.user.id,
            dataset_id=found.id,
            wishes=wishes.to_json(),
        )
        crash_point("upload_kept")
        if confirm:
            await reply(interaction, await draft_card(self._services, interaction, draft))
            return
        await queue_at_once(self._services, interaction, draft)

    async def _known(self, interaction: discord.Interaction, name: str | None) -> Dataset:
        assert interaction.guild_id is not None
        if name is None:
            raise DatasetRefused("Give me pictures: dataset:<zip file>, or from_dataset:<name>. Nothing was queued.")
        return await self._services.datasets.named(interaction.guild_id, name)

    @finetune.autocomplete("from_dataset")
    async def choose_dataset(self, interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        return await choices_of(self._services, interaction, typed)

    @finetune.autocomplete("preset")
    async def choose_preset(self, _: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        return preset_choices(typed)

    @finetune.autocomplete("base")
    async def choose_base(self, _: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        return base_choices(self._services.config, typed)


def require_permissions(interaction: discord.Interaction) -> None:
    """Nothing, if the bot may post here what a training causes.

    Raises:
        JobRefused: it may not; the sentence names what is missing.
    """
    if missing := missing_permissions(interaction.app_permissions):
        where = (
            f"#{interaction.channel.name}" if isinstance(interaction.channel, discord.TextChannel) else "this channel"
        )
        raise JobRefused(
            f"I can't post in {where}. Missing: {listed(missing)}. Ask a server admin; nothing was queued."
        )
