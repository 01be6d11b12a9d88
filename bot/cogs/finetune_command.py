"""`/finetune`: from an attachment, or a dataset that is there, to a queued job."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Literal

import discord
from discord import app_commands

from bot.cogs.attachments import ingest_attachments, tracked_upload, upload_of
from bot.cogs.autocomplete import choose_base, choose_dataset
from bot.cogs.drafts import offer, require_allowed
from bot.cogs.interaction_gate import UPLOADS, handled
from bot.cogs.job_request import (
    MAX_TOML_BYTES,
    JobRequest,
    QueueOptions,
    options_as_settings,
    request_of_toml,
    split_prompts,
)
from bot.cogs.lookups import dataset_here
from bot.cogs.preset_commands import choose_preset, chosen_preset
from bot.cogs.replies import Acknowledgement, acknowledge
from bot.cogs.services import ServiceCog
from bot.datasets import UploadKind, title_of
from bot.errors import DatasetRefused, JobRefused
from bot.queue import Priority
from bot.queue.planning.delayed import parse_start
from bot.ui.discord_text import missing_permissions
from trainer.protocol.presets import DEFAULT_PRESET
from trainer.protocol.setting_problems import SHORT_NAMES
from trainer.protocol.spec import allowed_range
from trainer.protocol.text import N_, _, listed

_EPOCHS, _LR, _RANK, _SEED = (allowed_range(SHORT_NAMES[name]) for name in ("epochs", "lr", "rank", "seed"))
#: Discord waits 3 s for an answer, and the settings are read before the first one.
_SETTINGS_S = 2.0

# Discord checks these before it sends anything; `make_draft` checks them again: a client may be old or forged.
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


class FinetuneCommand(ServiceCog):
    """`/finetune`."""

    # Every other setting is in the forms of the draft's card, and in a `.toml` file.
    # `tracked_upload` acknowledges it, once it has stored the upload.
    @app_commands.command(
        description=N_("Teach a model your images: a character, an object or a style."),
        extras=handled(Acknowledgement.NONE, rate=UPLOADS),
    )
    @app_commands.guild_only()
    @app_commands.describe(
        dataset=N_("Your images as zip, tar or 7z (with captions as .txt beside them, if you have some)"),
        from_dataset=N_("… or an existing dataset"),
        private=N_("Only you, managers and people you name see these images"),
        preset=N_("What you want to teach (default: lora), or #12: as in training 12"),
        base=N_("The model to start from"),
        name=N_("Name of the result: lower-case letters, digits, - . _"),
        trigger=N_("The word you will use in prompts to call it up, such as zkz"),
        prompts=N_("What to draw after every epoch to see it learn; put | between prompts"),
        epochs=N_("How many times training goes through your images"),
        settings=N_("Every other setting, as a .toml file; the lines of /preset show work"),
        start=N_("Not before: 22:00, tomorrow 06:30, in 2 h, 2026-11-25 22:00"),
        priority=N_("Place in the queue; high needs Manage Server"),
        gpus=N_("GPUs that train it together"),
        confirm=N_("Show the dataset and ask before anything is queued (default: yes)"),
    )
    @app_commands.autocomplete(from_dataset=choose_dataset, preset=choose_preset, base=choose_base)
    async def finetune(
        self,
        interaction: discord.Interaction,
        dataset: discord.Attachment | None = None,
        from_dataset: str | None = None,
        private: bool = False,
        preset: str | None = None,
        base: str | None = None,
        name: Name | None = None,
        trigger: Trigger | None = None,
        prompts: Prompts | None = None,
        epochs: Epochs | None = None,
        settings: discord.Attachment | None = None,
        start: Start | None = None,
        priority: Literal["low", "normal", "high"] = "normal",
        gpus: Gpus = 1,
        confirm: bool = True,
    ) -> None:
        zone = self._services.config.windows.zone
        values = await self._read(settings)
        # An option counts more than the same setting in the file.
        given = {"base": base, "name": name, "trigger": trigger, "epochs": epochs}
        values |= options_as_settings(given)
        if prompts:
            values["samples.prompts"] = split_prompts(prompts)
        chosen = await chosen_preset(self._services, interaction, preset or str(values.pop("preset", DEFAULT_PRESET)))
        values.pop("preset", None)
        request = chosen.apply_to(JobRequest(preset=chosen.name, base=values.pop("base", None))).changed(values)
        queue = QueueOptions(
            priority=Priority[priority.upper()],
            gpus=gpus,
            run_after=None if start is None else parse_start(start, time.time(), zone),
        )
        request = request.model_copy(update={"queue": queue})
        await self._start(interaction, request, dataset, from_dataset, is_private=private, confirm=confirm)

    async def _read(self, settings: discord.Attachment | None) -> dict[str, Any]:
        """Return the settings of a `.toml` file, by their dotted names.

        Raises:
            JobRefused: It is no such file, or Discord does not give it.
        """
        if settings is None:
            return {}
        if not settings.filename.lower().endswith(".toml") or settings.size > MAX_TOML_BYTES:
            raise JobRefused(
                _(
                    "`settings` takes a .toml file of at most 64 KiB, and {file} is not one. Nothing was queued.",
                    file=settings.filename,
                )
            )
        try:
            async with asyncio.timeout(_SETTINGS_S):
                content = b"".join([chunk async for chunk in self._services.download(settings)])
        except TimeoutError:
            raise JobRefused(
                _("Discord did not give me {file} in time. Nothing was queued; try again.", file=settings.filename)
            ) from None
        return request_of_toml(content[:MAX_TOML_BYTES])

    async def _start(
        self,
        interaction: discord.Interaction,
        request: JobRequest,
        attachment: discord.Attachment | None,
        dataset_name: str | None,
        *,
        is_private: bool,
        confirm: bool,
    ) -> None:
        # Wrong settings are asked for in a form, once the images are there: they need not be uploaded again.
        require_permissions(interaction)
        await require_allowed(self._services, interaction, request)
        if attachment is None:
            await acknowledge(interaction, Acknowledgement.THINKING)
            if dataset_name is None:
                raise DatasetRefused(
                    _("Give me images: dataset:<zip file>, or from_dataset:<name>. Nothing was queued.")
                )
            if is_private:
                raise DatasetRefused(
                    _("`private` is for images that you attach. For a dataset that is here, use `/dataset privacy`.")
                )
            dataset = await dataset_here(self._services, interaction, dataset_name)
            await offer(self._services, interaction, dataset, request, confirm=confirm)
            return
        if dataset_name is not None:
            raise DatasetRefused(_("Give either dataset:<file> or from_dataset:<name>, not both. Nothing was queued."))
        upload = upload_of(
            interaction,
            UploadKind.FINETUNE,
            title_of([attachment.filename]),
            request=request.model_dump_json(),
            is_at_once=not confirm,
            is_private=is_private,
        )
        async with tracked_upload(self._services, interaction, upload):
            dataset = await ingest_attachments(self._services, interaction, [attachment], is_private=is_private)
            await offer(self._services, interaction, dataset, request, confirm=confirm)


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
