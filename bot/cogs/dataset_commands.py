"""`/dataset`: upload, look at, change and delete datasets; and the message menu that uses attachments."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Literal

import discord
from discord import app_commands

from bot.access import manages, server_of
from bot.bot_failpoints import failpoint
from bot.cogs.attachments import (
    copy_server_folder,
    download_attachments,
    offer_page,
    prepare_received,
    progress_shown,
    tracked_upload,
    upload_of,
)
from bot.cogs.autocomplete import Choices, answered, choose_dataset
from bot.cogs.dataset_captions import open_rules
from bot.cogs.dataset_review import review_content
from bot.cogs.drafts import dataset_card
from bot.cogs.interaction_gate import PAGES, UPLOADS, handled
from bot.cogs.lookups import dataset_here, own_dataset, viewer_of
from bot.cogs.replies import Acknowledgement, acknowledge, open_form, reply
from bot.cogs.services import ServiceGroupCog, Services
from bot.datasets import ImportRequest, Received, UploadKind, hub_name, title_of
from bot.errors import DatasetRefused, UploadClosed
from bot.ui.dataset_cards import LIST_PAGE, dataset_list, delete_question, privacy_words
from bot.ui.dataset_forms import Form, PrivacyForm, UploadForm
from bot.ui.layout import MessageContent, text_message
from bot.ui.upload_posts import hub_question
from trainer.protocol.edits import Layout
from trainer.protocol.text import N_, _, ngettext

#: File types that the message menu uses; the trainer finds out what they really are.
_IMAGES = frozenset({"png", "jpg", "jpeg", "webp", "avif", "heic", "heif", "gif", "bmp", "tif", "tiff"})
_ARCHIVES = frozenset({"zip", "tar", "gz", "tgz", "bz2", "tbz2", "xz", "txz", "zst", "7z"})
_CAPTIONS = frozenset({"txt", "caption", "json", "jsonl", "csv"})

_OPTIONS = {"dataset": N_("The dataset")}

#: `tracked_upload` acknowledges these, once it has stored the upload.
_TRACKED = handled(Acknowledgement.NONE, rate=UPLOADS)
#: The form is the answer.
_FORM = handled(Acknowledgement.NONE)


async def _folder_choices(services: Services, interaction: discord.Interaction, typed: str) -> Choices:
    folders = services.config.datasets.folders if manages(interaction) else {}
    return [(each, each) for each in folders if typed.lower() in each.lower()]


_choose_folder = answered(_folder_choices)


@app_commands.guild_only()
class DatasetCommands(
    ServiceGroupCog, group_name="dataset", group_description=N_("Upload images and manage datasets.")
):
    """The `/dataset` commands."""

    def __init__(self, services: Services, tree: app_commands.CommandTree[Any]) -> None:
        super().__init__(services)
        self._tree = tree
        menu = app_commands.ContextMenu(
            name=N_("Use attachments as dataset"), callback=self.use_attachments, extras=_TRACKED
        )
        self._menu = app_commands.guild_only(menu)
        if services.links.are_on:
            self.upload.description = N_(
                "Upload images: up to ten files; choose none for a page that takes folders and large files."
            )

    async def cog_load(self) -> None:
        # discord.py has no decorator for menus in cogs.
        self._tree.add_command(self._menu)

    @app_commands.command(description=N_("Upload images: up to ten files, archives too."), extras=_FORM)
    @app_commands.describe(
        folders=N_("plain: train on every image, whatever its folder is called"),
        private=N_("Only you, managers and people you name see it"),
        from_server=N_("A folder on the bot's machine, for managers"),
        from_hub=N_("A dataset on Hugging Face, as owner/name, for managers"),
    )
    @app_commands.autocomplete(from_server=_choose_folder)
    async def upload(
        self,
        interaction: discord.Interaction,
        folders: Literal["auto", "plain"] = "auto",
        private: bool = False,
        from_server: str = "",
        from_hub: app_commands.Range[str, 0, 200] = "",
    ) -> None:
        services = self._services
        request = ImportRequest(layout=Layout(folders), can_manage=manages(interaction))
        if from_server:
            receive = partial(copy_server_folder, services, interaction, from_server)
            await import_dataset(services, interaction, receive, request, title=from_server, is_private=private)
            return
        if from_hub:
            await offer_hub_dataset(services, interaction, from_hub, request, is_private=private)
            return
        has_captioner = bool(services.config.captions.model)
        uploaded = partial(self._uploaded, layout=Layout(folders), is_private=private)
        submitted = services.gate.form(uploaded, UPLOADS, is_tracked=True)
        await open_form(interaction, UploadForm(submitted, has_captioner=has_captioner, has_page=services.links.are_on))

    @app_commands.command(
        description=N_("Add images to a dataset; those already in it stay where they are."), extras=_TRACKED
    )
    @app_commands.describe(
        **_OPTIONS,
        file=N_("Images, an archive, or captions"),
        file2=N_("One more …"),
        file3=N_("… and more"),
        file4=N_("… and more"),
        file5=N_("… and more"),
    )
    @app_commands.autocomplete(dataset=choose_dataset)
    async def add(
        self,
        interaction: discord.Interaction,
        dataset: str,
        file: discord.Attachment | None = None,
        file2: discord.Attachment | None = None,
        file3: discord.Attachment | None = None,
        file4: discord.Attachment | None = None,
        file5: discord.Attachment | None = None,
    ) -> None:
        found = await own_dataset(self._services, interaction, dataset)
        files = [each for each in (file, file2, file3, file4, file5) if each is not None]
        if not files:
            if not self._services.links.are_on:
                raise DatasetRefused(_("Attach the files that you want to add. Nothing was changed."))
            await offer_page(self._services, interaction, upload_of(interaction, UploadKind.ADD, dataset_id=found.id))
            return
        upload = upload_of(interaction, UploadKind.ADD, _title(files), dataset_id=found.id)
        async with tracked_upload(self._services, interaction, upload):
            received = await download_attachments(self._services, interaction, files)
            async with progress_shown(interaction, received.title):
                grown = await self._services.datasets.add(found.id, received, upload_id=interaction.id)
            failpoint("upload_prepared")
            note = ngettext(
                "{n} more image to train on. The others stay in the split they were in.",
                "{n} more images to train on. The others stay in the split they were in.",
                grown.counts.kept - found.counts.kept,
            )
            await reply(interaction, await dataset_card(self._services, interaction, grown, note=note))

    @app_commands.command(
        name="list", description=N_("The datasets of this server, newest first."), extras=handled(rate=PAGES)
    )
    async def list_datasets(self, interaction: discord.Interaction) -> None:
        await reply(interaction, await list_page(self._services, interaction, 0))

    @app_commands.command(description=N_("Show a dataset and what was found in it."), extras=handled(rate=PAGES))
    @app_commands.describe(**_OPTIONS)
    @app_commands.autocomplete(dataset=choose_dataset)
    async def inspect(self, interaction: discord.Interaction, dataset: str) -> None:
        found = await dataset_here(self._services, interaction, dataset)
        await reply(interaction, await dataset_card(self._services, interaction, found))

    @app_commands.command(
        description=N_("Review the flagged images one by one, or all of a kind at once."), extras=handled(rate=PAGES)
    )
    @app_commands.describe(**_OPTIONS)
    @app_commands.autocomplete(dataset=choose_dataset)
    async def review(self, interaction: discord.Interaction, dataset: str) -> None:
        found = await dataset_here(self._services, interaction, dataset)
        await reply(interaction, await review_content(self._services, interaction, found))

    @app_commands.command(
        description=N_("Edit all captions at once: trigger, prefix, suffix, remove, replace."), extras=_FORM
    )
    @app_commands.describe(**_OPTIONS)
    @app_commands.autocomplete(dataset=choose_dataset)
    async def captions(self, interaction: discord.Interaction, dataset: str) -> None:
        await open_rules(self._services, interaction, dataset)

    @app_commands.command(description=N_("Choose who sees a dataset of yours and may train with it."), extras=_FORM)
    @app_commands.describe(**_OPTIONS)
    @app_commands.autocomplete(dataset=choose_dataset)
    async def privacy(self, interaction: discord.Interaction, dataset: str) -> None:
        await open_privacy(self._services, interaction, dataset)

    @app_commands.command(description=N_("Delete a dataset of yours; trainings that used it are not affected."))
    @app_commands.describe(**_OPTIONS)
    @app_commands.autocomplete(dataset=choose_dataset)
    async def delete(self, interaction: discord.Interaction, dataset: str) -> None:
        await reply(interaction, delete_question(await own_dataset(self._services, interaction, dataset)))

    async def use_attachments(self, interaction: discord.Interaction, message: discord.Message) -> None:
        """Make a dataset of a message's images and archives."""
        files = [each for each in message.attachments if _ending(each) in _IMAGES | _ARCHIVES | _CAPTIONS]
        if all(_ending(each) in _CAPTIONS for each in files):
            raise DatasetRefused(_("This message has no images and no archives attached. Nothing was kept."))
        await self._import(interaction, files, ImportRequest())

    async def _uploaded(
        self, interaction: discord.Interaction, form: Form, *, layout: Layout, is_private: bool
    ) -> None:
        assert isinstance(form, UploadForm)
        texts = form.texts
        request = ImportRequest(
            name=texts["name"].strip() or None,
            trigger=texts["trigger"].strip(),
            caption_column=texts["caption_column"].strip(),
            layout=layout,
            wants_captions=form.wants_captions,
            can_manage=manages(interaction),
        )
        if form.attachments:
            await self._import(interaction, form.attachments, request, is_private=is_private)
            return
        upload = upload_of(interaction, UploadKind.IMPORT, request=request.model_dump_json(), is_private=is_private)
        await offer_page(self._services, interaction, upload)

    async def _import(
        self,
        interaction: discord.Interaction,
        files: Sequence[discord.Attachment],
        request: ImportRequest,
        *,
        is_private: bool = False,
    ) -> None:
        receive = partial(download_attachments, self._services, interaction, files)
        title = _title(files)
        await import_dataset(self._services, interaction, receive, request, title=title, is_private=is_private)


async def import_dataset(
    services: Services,
    interaction: discord.Interaction,
    receive: Callable[[], Awaitable[Received]],
    request: ImportRequest,
    *,
    title: str,
    is_private: bool = False,
) -> None:
    """Make a dataset of what `receive` brings, and show its card.

    Args:
        services: The bot's services.
        interaction: Not acknowledged yet.
        receive: Brings the files, once the upload is stored.
        request: What was asked for.
        title: Names the files in messages.
        is_private: Only its owner, managers and people whom they name see it.
    """
    upload = upload_of(interaction, UploadKind.IMPORT, title, request=request.model_dump_json(), is_private=is_private)
    async with tracked_upload(services, interaction, upload):
        received = await receive()
        known = await services.datasets.with_content(server_of(interaction), received)
        dataset = await prepare_received(services, interaction, received, request, is_private=is_private)
        note = _("These files were uploaded before, as {name}.", name=known.name) if known else ""
        await reply(interaction, await dataset_card(services, interaction, dataset, note=note))


async def offer_hub_dataset(
    services: Services, interaction: discord.Interaction, typed: str, request: ImportRequest, *, is_private: bool
) -> None:
    """Acknowledge an interaction, and ask whether to download a dataset of the Hugging Face hub, with what it is.

    Raises:
        DatasetRefused: The member may not, or the dataset cannot be taken.
        AnswerFailed: The interaction came too late or twice; nothing was done.
    """
    _require_hub(services, interaction)
    await acknowledge(interaction, Acknowledgement.THINKING)
    await services.datasets.require_share(interaction.user.id, datasets=1, more_bytes=1)
    facts = await services.hub_datasets.look_up(hub_name(typed))
    question = upload_of(
        interaction,
        UploadKind.IMPORT,
        facts.name,
        request=request.model_copy(update={"hub": facts}).model_dump_json(),
        is_private=is_private,
        is_by_page=True,
        is_open=True,
    )
    await services.uploads.add(question)
    await reply(interaction, hub_question(question.interaction_id, facts))


async def download_hub_dataset(services: Services, interaction: discord.Interaction, question_id: int) -> None:
    """Download the dataset of a question that `offer_hub_dataset` asked, and import it.

    Raises:
        DatasetRefused: The member may not.
        UploadClosed: It is no question of theirs, or it was answered.
    """
    _require_hub(services, interaction)
    question = await services.uploads.find(question_id)
    if question is None or not question.is_open or question.owner_id != interaction.user.id:
        raise UploadClosed
    request = ImportRequest.model_validate_json(question.request)
    facts = request.hub
    if facts is None:
        raise UploadClosed

    async def receive() -> Received:
        async with progress_shown(interaction, question.title):
            received = await services.hub_datasets.download(facts, owner_id=question.owner_id)
        await services.uploads.mark_received(interaction.id, received)
        failpoint("upload_received")
        # Only now: a download that failed can be tried again.
        await services.uploads.remove(question_id)
        return received

    await import_dataset(services, interaction, receive, request, title=question.title, is_private=question.is_private)


def _require_hub(services: Services, interaction: discord.Interaction) -> None:
    if not manages(interaction):
        raise DatasetRefused(_("Only managers of this server may let me download datasets from Hugging Face."))
    if not services.config.datasets.hub:
        raise DatasetRefused(
            _(
                "Downloads from Hugging Face are switched off. The operators of the bot can allow them: `hub = true` "
                "in `[datasets]`."
            )
        )


async def list_page(services: Services, interaction: discord.Interaction, page: int) -> MessageContent:
    """Make one page of the list of datasets."""
    store, viewer_id = services.datasets, viewer_of(interaction)
    count = await store.count(server_of(interaction), viewer_id=viewer_id)
    page = min(page, max(0, (count - 1) // LIST_PAGE))
    found = await store.search(server_of(interaction), limit=LIST_PAGE, offset=page * LIST_PAGE, viewer_id=viewer_id)
    return dataset_list(found, page=page, count=count)


async def open_privacy(services: Services, interaction: discord.Interaction, which: int | str) -> None:
    """Answer with the form that says who sees a dataset.

    Raises:
        NoSuchDataset, NotYourDataset: The member may not change it.
    """
    found = await own_dataset(services, interaction, which)

    async def submitted(interaction: discord.Interaction, form: Form) -> None:
        assert isinstance(form, PrivacyForm)
        # Again: it may have another owner's rules by now, and the member other roles.
        dataset = await own_dataset(services, interaction, found.id)
        guests = [each for each in form.guests if each != dataset.owner_id]
        dataset = await services.datasets.set_privacy(
            dataset.id, by=interaction.user.id, is_private=form.is_private, guests=guests
        )
        await reply(interaction, text_message(privacy_words(dataset)))

    form = PrivacyForm(
        services.gate.form(submitted, is_answer_new=True),
        name=found.name,
        is_private=found.is_private,
        guests=found.guests,
    )
    await open_form(interaction, form)


def _title(files: Sequence[discord.Attachment]) -> str:
    return title_of([each.filename for each in files])


def _ending(attachment: discord.Attachment) -> str:
    return attachment.filename.rpartition(".")[2].lower()
