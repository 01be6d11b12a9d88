"""`/finetune`: from a dropped file to a job in line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import discord
from discord import app_commands
from discord.ext import commands

from bot.cogs.replies import reply
from bot.cogs.services import Services
from bot.config import Config
from bot.datasets import Dataset
from bot.errors import DatasetRefused, DatasetTooLarge, JobRefused
from bot.queue import NewJob
from bot.ui.permissions import missing_permissions
from bot.ui.receipts import receipt
from bot.ui.text import listed
from trainer.protocol.presets import presets, spec_from_preset
from trainer.protocol.spec import Spec, allowed_range

_EPOCHS, _LR, _RANK, _SEED = (
    allowed_range(name) for name in ("training.epochs", "training.learning_rate", "adapter.rank", "training.seed")
)

# Discord checks these before it sends anything; `spec_from_preset` checks them again: a client may be old or forged.
if TYPE_CHECKING:
    Epochs: TypeAlias = int
    Rank: TypeAlias = int
    Seed: TypeAlias = int
    Rate: TypeAlias = float
    Name: TypeAlias = str
    Trigger: TypeAlias = str
    Prompts: TypeAlias = str
else:
    Epochs = app_commands.Range[int, int(_EPOCHS[0]), int(_EPOCHS[1])]
    Rank = app_commands.Range[int, int(_RANK[0]), int(_RANK[1])]
    Seed = app_commands.Range[int, int(_SEED[0]), int(_SEED[1])]
    Rate = app_commands.Range[float, _LR[0], _LR[1]]
    Name = app_commands.Range[str, 1, 40]
    Trigger = app_commands.Range[str, 1, 50]
    Prompts = app_commands.Range[str, 1, 2000]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What somebody asked for, as they typed it; None where they left it to the preset."""

    preset: str
    base: str | None
    name: str | None
    epochs: int | None
    lr: float | None
    rank: int | None
    prompts: str | None
    trigger: str | None
    seed: int | None
    early_stop: bool | None

    def changes(self) -> dict[str, Any]:
        """The settings to lay over the preset."""
        training = {
            "epochs": self.epochs,
            "learning_rate": self.lr,
            "trigger": self.trigger and self.trigger.strip(),
            "seed": self.seed,
        }
        groups: dict[str, dict[str, Any]] = {
            "training": training,
            "adapter": {"rank": self.rank},
            "samples": {"prompts": split_prompts(self.prompts) if self.prompts else None},
            "early_stopping": {"enabled": self.early_stop},
        }
        return {
            group: {key: value for key, value in settings.items() if value is not None}
            for group, settings in groups.items()
        }


class Finetune(commands.Cog):
    """The command that all this is for."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @app_commands.command(description="Fine-tune a LoRA on your pictures.")
    @app_commands.guild_only()
    @app_commands.describe(
        dataset="A zip of pictures (with captions as .txt beside them, if you have some)",
        from_dataset="… or a dataset that was handed in before",
        preset="Where the settings start from",
        base="The model to start from",
        name="What to call the result: small letters, digits, - . _",
        epochs="How often each picture is seen",
        lr="Learning rate, such as 0.0001",
        rank="Size of the LoRA: more learns more, and overfits sooner",
        prompts="Prompts of the sample pictures, | between them",
        trigger="A word that will call up what is taught",
        seed="The same seed and settings make the same LoRA",
        early_stop="Stop when the validation loss no longer falls",
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
        seed: Seed | None = None,
        early_stop: bool | None = None,
    ) -> None:
        await interaction.response.defer(ephemeral=True, thinking=True)
        require_permissions(interaction)
        wishes = Wishes(
            preset=preset, base=base, name=name, epochs=epochs, lr=lr, rank=rank, prompts=prompts, trigger=trigger,
            seed=seed, early_stop=early_stop,
        )  # fmt: skip
        # Before a byte is downloaded: most mistakes are in the settings.
        make_spec(wishes, self._services.config, dataset_name="lora", folder="not known yet")
        found = await self._dataset(interaction, dataset, from_dataset)
        spec = make_spec(wishes, self._services.config, dataset_name=found.name, folder=str(found.folder))
        job = await self._services.jobs.submit(
            NewJob(
                interaction_id=interaction.id,
                guild_id=found.guild_id,
                channel_id=interaction.channel_id or 0,
                owner_id=interaction.user.id,
                dataset_id=found.id,
                spec=spec,
            )
        )
        place = await self._services.jobs.place_in_line(job.id)
        await reply(interaction, receipt(job, place, await self._services.datasets.report(found)))

    async def _dataset(
        self, interaction: discord.Interaction, attachment: discord.Attachment | None, known: str | None
    ) -> Dataset:
        assert interaction.guild_id is not None
        if attachment is not None and known is not None:
            raise DatasetRefused("Give either dataset:<file> or from_dataset:<name>, not both. Nothing was queued.")
        if known is not None:
            return await self._services.datasets.named(interaction.guild_id, known)
        if attachment is None:
            raise DatasetRefused("Give me pictures: dataset:<zip file>, or from_dataset:<name>. Nothing was queued.")
        limit = self._services.config.limits.max_dataset_bytes
        if attachment.size > limit:
            raise DatasetTooLarge(file_name=attachment.filename, max_bytes=limit)
        received = await self._services.datasets.receive(attachment.filename, self._services.download(attachment))
        return await self._services.datasets.prepare(
            received, guild_id=interaction.guild_id, owner_id=interaction.user.id
        )

    @finetune.autocomplete("from_dataset")
    async def choose_dataset(self, interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        assert interaction.guild_id is not None
        found = await self._services.datasets.search(interaction.guild_id, typed)
        return [
            app_commands.Choice(name=f"{each.name} · {each.counts.kept} images"[:100], value=each.name)
            for each in found
        ]

    @finetune.autocomplete("preset")
    async def choose_preset(self, _: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        found = [each for each in presets().values() if typed.lower() in each.name]
        return [app_commands.Choice(name=f"{each.name} · {each.summary}"[:100], value=each.name) for each in found[:25]]

    @finetune.autocomplete("base")
    async def choose_base(self, _: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        labels = [label for label in self._services.config.models.sources if typed.lower() in label.lower()]
        return [app_commands.Choice(name=label[:100], value=label[:100]) for label in labels[:25]]


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


def make_spec(wishes: Wishes, config: Config, *, dataset_name: str, folder: str) -> Spec:
    """The complete spec of what somebody asked for.

    Raises:
        JobRefused: an unknown base, or more epochs than this bot allows.
        SpecError: an unknown preset, or a value out of its range.
    """
    label = wishes.base or config.models.default
    if label not in config.models.sources:
        raise JobRefused(f"There is no base model {label!r} here. Models: {', '.join(config.models.sources)}.")
    source = config.models.sources[label]
    name = slug(wishes.name) if wishes.name else dataset_name
    spec = spec_from_preset(wishes.preset, dataset=folder, base=source, name=name, changes=wishes.changes())
    if spec.training.epochs > config.limits.max_epochs:
        raise JobRefused(
            f"{spec.training.epochs} epochs are more than the {config.limits.max_epochs} that one job may ask for here."
        )
    return spec


def split_prompts(text: str) -> list[str]:
    """`a fox | a fox in snow` as two prompts."""
    return [prompt for part in text.split("|") if (prompt := part.strip())]


def slug(name: str) -> str:
    """A name as a file may have it: `My Fox!` is `my-fox`; left to be refused where nothing remains."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:40] or name
