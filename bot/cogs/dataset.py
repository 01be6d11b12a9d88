"""`/dataset`: handing in, looking, changing, deleting; and the message menu that takes attachments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import discord
from discord import app_commands
from discord.ext import commands

from bot.cogs.dataset_review import review_content
from bot.cogs.drafts import dataset_card
from bot.cogs.failures import told
from bot.cogs.intake import choices_of, noted, receive
from bot.cogs.replies import reply
from bot.cogs.services import Services
from bot.crashing import crash_point
from bot.datasets import Dataset, ImportWishes, UploadKind, import_files, require_change
from bot.datasets.decisions import read_rules, with_rules, written_rules
from bot.errors import DatasetRefused
from bot.ui.dataset_forms import Form, UploadForm, rules_form
from bot.ui.datasets import LIST_PAGE, dataset_list, delete_question
from bot.ui.layout import MessageContent
from bot.ui.text import counted

#: What the message menu takes, by ending; what is inside is for the trainer to find out.
_PICTURES = frozenset({"png", "jpg", "jpeg", "webp", "avif", "heic", "heif", "gif", "bmp", "tif", "tiff"})
_ARCHIVES = frozenset({"zip", "tar", "gz", "tgz", "bz2", "tbz2", "xz", "txz", "zst", "7z"})
_CAPTIONS = frozenset({"txt", "caption", "json", "jsonl", "csv"})


@app_commands.guild_only()
class Datasets(commands.GroupCog, group_name="dataset", group_description="Hand in pictures and look after them."):
    """Whatever concerns one dataset."""

    def __init__(self, services: Services, tree: app_commands.CommandTree[Any]) -> None:
        self._services = services
        self._tree = tree
        menu = app_commands.ContextMenu(name="Use attachments as dataset", callback=self.use_attachments)
        self._menu = app_commands.guild_only(menu)

    async def cog_load(self) -> None:
        # discord.py has no decorator for menus in cogs.
        self._tree.add_command(self._menu)

    @app_commands.command(description="Hand in pictures: up to ten files, archives too.")
    async def upload(self, interaction: discord.Interaction) -> None:
        has_captioner = bool(self._services.config.captions.model)
        await interaction.response.send_modal(UploadForm(told(self._uploaded), has_captioner=has_captioner))

    @app_commands.command(description="Add files to a dataset; its pictures keep their side of the split.")
    @app_commands.describe(dataset="The dataset", file="Pictures, an archive, or captions", file2="One more …")
    @app_commands.describe(file3="… and more", file4="… and more", file5="… and more")
    async def add(
        self,
        interaction: discord.Interaction,
        dataset: str,
        file: discord.Attachment,
        file2: discord.Attachment | None = None,
        file3: discord.Attachment | None = None,
        file4: discord.Attachment | None = None,
        file5: discord.Attachment | None = None,
    ) -> None:
        await interaction.response.defer(ephemeral=True, thinking=True)
        found = await self._own(interaction, dataset, "add to")
        files = [each for each in (file, file2, file3, file4, file5) if each is not None]
        async with noted(self._services, interaction, files, kind=UploadKind.ADD, dataset_id=found.id):
            received = await receive(self._services, interaction, files)
            grown = await self._services.datasets.add(found.id, received, upload_id=interaction.id)
            crash_point("upload_examined")
            more = grown.counts.kept - found.counts.kept
            note = f"{counted(more, 'picture')} more to train on; those that were there keep their side of the split."
            await reply(interaction, await dataset_card(self._services, interaction, grown, note=note))

    @app_commands.command(name="list", description="The datasets of this server, the newest first.")
    async def list_datasets(self, interaction: discord.Interaction) -> None:
        await reply(interaction, await list_page(self._services, interaction, 0))

    @app_commands.command(description="What is in a dataset, and what was found.")
    @app_commands.describe(dataset="The dataset")
    async def inspect(self, interaction: discord.Interaction, dataset: str) -> None:
        await interaction.response.defer(ephemeral=True, thinking=True)
        await reply(
            interaction, await dataset_card(self._services, interaction, await self._named(interaction, dataset))
        )

    @app_commands.command(description="Look at what was found, picture by picture, and decide.")
    @app_commands.describe(dataset="The dataset")
    async def review(self, interaction: discord.Interaction, dataset: str) -> None:
        await interaction.response.defer(ephemeral=True, thinking=True)
        found = await self._named(interaction, dataset)
        await reply(interaction, await review_content(self._services, interaction, found))

    @app_commands.command(description="Rules for all captions: trigger, prefix, suffix, words to take out or replace.")
    @app_commands.describe(dataset="The dataset")
    async def captions(self, interaction: discord.Interaction, dataset: str) -> None:
        found = await self._own(interaction, dataset, "change")

        async def submitted(interaction: discord.Interaction, form: Form) -> None:
            await interaction.response.defer(ephemeral=True, thinking=True)
            rules = read_rules(form.texts)
            changed = await self._services.datasets.edit(found.id, lambda edits: with_rules(edits, **rules))
            await reply(interaction, await dataset_card(self._services, interaction, changed))

        form = rules_form(told(submitted), name=found.name, known=written_rules(found.edits.rules))
        await interaction.response.send_modal(form)

    @app_commands.command(description="Delete a dataset of yours; trainings that used it are left alone.")
    @app_commands.describe(dataset="The dataset")
    async def delete(self, interaction: discord.Interaction, dataset: str) -> None:
        await reply(interaction, delete_question(await self._own(interaction, dataset, "delete")))

    @add.autocomplete("dataset")
    @inspect.autocomplete("dataset")
    @review.autocomplete("dataset")
    @captions.autocomplete("dataset")
    @delete.autocomplete("dataset")
    async def choose_dataset(self, interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        return await choices_of(self._services, interaction, typed)

    async def use_attachments(self, interaction: discord.Interaction, message: discord.Message) -> None:
        """Make a dataset of a message's pictures and archives."""
        await interaction.response.defer(ephemeral=True, thinking=True)
        files = [each for each in message.attachments if _ending(each) in _PICTURES | _ARCHIVES | _CAPTIONS]
        if all(_ending(each) in _CAPTIONS for each in files):
            raise DatasetRefused("This message has no pictures and no archives attached. Nothing was taken.")
        await self._show_taken(interaction, files, ImportWishes())

    async def _uploaded(self, interaction: discord.Interaction, form: Form) -> None:
        assert isinstance(form, UploadForm)
        await interaction.response.defer(ephemeral=True, thinking=True)
        asked = form.texts
        wishes = ImportWishes(
            name=asked["name"].strip() or None,
            trigger=asked["trigger"].strip(),
            wants_captions=form.wants_captions,
            can_manage=interaction.permissions.manage_guild,
        )
        await self._show_taken(interaction, form.attachments, wishes)

    async def _show_taken(
        self, interaction: discord.Interaction, files: Sequence[discord.Attachment], wishes: ImportWishes
    ) -> None:
        assert interaction.guild_id is not None
        async with noted(self._services, interaction, files, kind=UploadKind.IMPORT, wishes=wishes.to_json()):
            received = await receive(self._services, interaction, files)
            known = await self._services.datasets.known(interaction.guild_id, received)
            dataset = await import_files(
                self._services.datasets,
                received,
                wishes,
                guild_id=interaction.guild_id,
                owner_id=interaction.user.id,
                captions=self._services.config.captions,
            )
            crash_point("upload_examined")
            note = f"These files were here already, as {known.name}." if known else ""
            await reply(interaction, await dataset_card(self._services, interaction, dataset, note=note))

    async def _named(self, interaction: discord.Interaction, name: str) -> Dataset:
        assert interaction.guild_id is not None
        return await self._services.datasets.named(interaction.guild_id, name)

    async def _own(self, interaction: discord.Interaction, name: str, verb: str) -> Dataset:
        dataset = await self._named(interaction, name)
        self._require_change(interaction, dataset, verb)
        return dataset

    @staticmethod
    def _require_change(interaction: discord.Interaction, dataset: Dataset, verb: str) -> None:
        can_manage = interaction.permissions.manage_guild
        require_change(dataset, user_id=interaction.user.id, can_manage=can_manage, verb=verb)


async def list_page(services: Services, interaction: discord.Interaction, page: int) -> MessageContent:
    """One page of the list of datasets."""
    assert interaction.guild_id is not None
    store = services.datasets
    count = await store.count(interaction.guild_id)
    page = min(page, max(0, (count - 1) // LIST_PAGE))
    found = await store.search(interaction.guild_id, limit=LIST_PAGE, offset=page * LIST_PAGE)
    return dataset_list([(each, await store.source_bytes(each)) for each in found], page=page, count=count)


def _ending(attachment: discord.Attachment) -> str:
    return attachment.filename.rpartition(".")[2].lower()
