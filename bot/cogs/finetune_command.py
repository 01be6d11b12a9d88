"""`/finetune`: from an attachment, or a dataset that is there, to a queued job."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, TypeAlias

import discord
from discord import app_commands
from discord.ext import commands

from bot.bot_failpoints import failpoint
from bot.cogs.attachments import ingest_attachments, tracked_upload
from bot.cogs.autocomplete import answered, base_choices, dataset_choices, preset_choices
from bot.cogs.drafts import draft_card, queue_at_once, require_allowed, store_draft
from bot.cogs.interaction_gate import UPLOADS, handled
from bot.cogs.job_request import JobRequest, QueueOptions, make_draft, overrides, split_prompts
from bot.cogs.lookups import dataset_here
from bot.cogs.replies import Acknowledgement, acknowledge, reply
from bot.cogs.services import Services
from bot.datasets import Dataset, UploadKind
from bot.errors import DatasetRefused, JobRefused
from bot.queue import Priority
from bot.queue.planning.delayed import parse_start
from bot.ui.discord_text import missing_permissions
from trainer.protocol.presets import presets
from trainer.protocol.spec import allowed_range
from trainer.protocol.text import _, listed

_EPOCHS, _LR, _RANK, _SEED = (
    allowed_range(name) for name in ("training.epochs", "training.learning_rate", "method.rank", "training.seed")
)

# Discord checks these before it sends anything; `make_draft` checks them again: a client may be old or forged.
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


class FinetuneCommand(commands.Cog):
    """`/finetune`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    # A new option is added to the signature, with its description, and to `JobRequest(…)` below.
    # `tracked_upload` acknowledges it, once it has stored the upload.
    @app_commands.command(
        description=_("Fine-tune a model on your images."), extras=handled(Acknowledgement.NONE, rate=UPLOADS)
    )
    @app_commands.guild_only()
    @app_commands.describe(
        dataset=_("Images as zip, tar or 7z (with captions as .txt beside them, if you have some)"),
        from_dataset=_("… or a dataset that was uploaded before"),
        preset=_("Settings to start from"),
        base=_("The model to start from"),
        name=_("Name of the result: lower-case letters, digits, - . _"),
        epochs=_("How often each image is seen"),
        lr=_("Learning rate, such as 0.0001"),
        rank=_("Size of the LoRA: more learns more, and overfits sooner"),
        prompts=_("Prompts of the samples, | between them"),
        trigger=_("A word that calls up what is learned"),
        class_prompt=_("What your subject is one of (“a photo of a dog”), so that the model keeps the others"),
        seed=_("The same seed and settings make the same LoRA"),
        early_stop=_("Stop when the validation loss no longer falls"),
        priority=_("What goes first in line; high is for managers of the server"),
        gpus=_("GPUs that train it together"),
        start=_("Not before: 22:00, tomorrow 06:30, in 2 h, 2026-11-25 22:00"),
        confirm=_("Show the dataset's report before anything is queued (yes, if you leave it out)"),
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
        zone = self._services.config.windows.zone
        request = JobRequest(
            preset=preset,
            base=base,
            name=name,
            overrides=overrides(
                {
                    "training.epochs": epochs,
                    "training.learning_rate": lr,
                    "training.trigger": trigger and trigger.strip(),
                    "training.seed": seed,
                    "method.rank": rank,
                    "samples.prompts": split_prompts(prompts) if prompts else None,
                    "prior.class_prompt": class_prompt and class_prompt.strip(),
                    "early_stopping.enabled": early_stop,
                }
            ),
            queue=QueueOptions(
                priority=Priority[priority.upper()],
                gpus=gpus,
                run_after=None if start is None else parse_start(start, time.time(), zone),
            ),
        )
        await self._start(interaction, request, dataset, from_dataset, confirm=confirm)

    async def _start(
        self,
        interaction: discord.Interaction,
        request: JobRequest,
        attachment: discord.Attachment | None,
        dataset_name: str | None,
        *,
        confirm: bool,
    ) -> None:
        # Before a byte is downloaded: most mistakes are in the settings.
        require_permissions(interaction)
        allowance = await require_allowed(self._services, interaction, request)
        make_draft(request, self._services.config, max_epochs=allowance.max_epochs)
        if attachment is None:
            await acknowledge(interaction, Acknowledgement.THINKING)
            if dataset_name is None:
                raise DatasetRefused(
                    _("Give me images: dataset:<zip file>, or from_dataset:<name>. Nothing was queued.")
                )
            dataset = await dataset_here(self._services, interaction, dataset_name)
            await self._offer(interaction, dataset, request, confirm=confirm)
            return
        if dataset_name is not None:
            raise DatasetRefused(_("Give either dataset:<file> or from_dataset:<name>, not both. Nothing was queued."))
        async with tracked_upload(
            self._services,
            interaction,
            [attachment],
            kind=UploadKind.FINETUNE,
            request=request.model_dump_json(),
            is_at_once=not confirm,
        ):
            dataset = await ingest_attachments(self._services, interaction, [attachment])
            await self._offer(interaction, dataset, request, confirm=confirm)

    async def _offer(
        self, interaction: discord.Interaction, dataset: Dataset, request: JobRequest, *, confirm: bool
    ) -> None:
        """Store the draft; show its card, or queue it at once."""
        draft = await store_draft(self._services, interaction, dataset, request)
        failpoint("upload_drafted")
        if confirm:
            await reply(interaction, await draft_card(self._services, interaction, draft))
        else:
            await queue_at_once(self._services, interaction, draft)

    @finetune.autocomplete("from_dataset")
    @answered
    async def choose_dataset(self, interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        return await dataset_choices(self._services, interaction, typed)

    @finetune.autocomplete("preset")
    @answered
    async def choose_preset(self, interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        return preset_choices(typed)

    @finetune.autocomplete("base")
    @answered
    async def choose_base(self, interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        return base_choices(self._services.config, typed)


def require_permissions(interaction: discord.Interaction) -> None:
    """Raise unless the bot may post in this channel.

    Raises:
        JobRefused: It may not; the sentence names the missing permissions.
    """
    missing = missing_permissions(interaction.app_permissions)
    if not missing:
        return
    channel = interaction.channel
    name = f"#{channel.name}" if isinstance(channel, discord.TextChannel) else _("this channel")
    raise JobRefused(
        _(
            "I can't post in {channel}. Missing: {permissions}. Ask a server admin; nothing was queued.",
            channel=name,
            permissions=listed(missing),
        )
    )
