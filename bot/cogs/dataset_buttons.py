"""Presses on the buttons of dataset cards, reviews and drafts, including those that an earlier bot made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import discord
from discord.ext import commands

from bot.access import Ability
from bot.cogs.attachments import cancel_page_upload, show_upload_link
from bot.cogs.dataset_captions import open_rules, show_captions, write_captions
from bot.cogs.dataset_commands import download_hub_dataset, list_page, open_privacy
from bot.cogs.dataset_review import (
    ask_caption,
    decide,
    finish_review,
    review_content,
    show_each,
    show_question,
    turn_page,
)
from bot.cogs.drafts import cancel_draft, dataset_card, draft_card, queue_draft
from bot.cogs.interaction_gate import NUMBER, PAGES, REPORTS, UPLOADS, ButtonHandler
from bot.cogs.job_request import problems_of
from bot.cogs.lookups import dataset_here, own_dataset, own_draft
from bot.cogs.page_links import show_page
from bot.cogs.replies import Acknowledgement, replace, reply
from bot.cogs.request_edits import edit_of, open_basics, open_fix, open_page, open_request, show_settings
from bot.cogs.services import Services
from bot.datasets import Dataset
from bot.datasets.decisions import EVERY
from bot.errors import DarkroomError, DuplicateJob, NotFound
from bot.queue import Draft
from bot.ui.dataset_cards import report_file, report_reply, shared_page
from bot.ui.discord_text import escape
from bot.ui.job_replies import duplicate_notice, queued_already
from bot.ui.layout import text_message
from bot.ui.setting_fields import SettingsPage
from bot.web import LinkKind
from trainer.protocol.spec import SpecError
from trainer.protocol.text import _

#: A pattern of `ReviewQuestion.key`, and of an image of a question: `ReviewImage.key` before it.
_QUESTION = "[a-z_]{1,40}"
_IMAGE = f"[0-9a-f]{{1,40}}-{_QUESTION}"
#: An ID of Discord.
_INTERACTION = "[0-9]{1,20}"
_SETTINGS_PAGE = f"{NUMBER}-({'|'.join(SettingsPage)})"
_DECIDED = f"{_IMAGE}|({EVERY})?{_QUESTION}"


@dataclass(frozen=True, kw_only=True)
class DatasetPress:
    """A press on a button about a dataset; what it names is looked up in the server of the press only."""

    services: Services
    dataset_id: int

    async def dataset(self, interaction: discord.Interaction) -> Dataset:
        """Return the dataset."""
        return await dataset_here(self.services, interaction, self.dataset_id)

    async def draft(self, interaction: discord.Interaction, draft_id: str) -> Draft:
        """Return the member's own draft for this dataset."""
        return await own_draft(self.services, interaction, int(draft_id), dataset_id=self.dataset_id)


async def _show_list(interaction: discord.Interaction, press: DatasetPress, page: str) -> None:
    await replace(interaction, await list_page(press.services, interaction, int(page)))


async def _show_sheet(interaction: discord.Interaction, press: DatasetPress, arg: str) -> None:
    sheet, _separator, draft_id = arg.partition("d")
    if draft_id:
        draft = await press.draft(interaction, draft_id)
        await replace(interaction, await draft_card(press.services, interaction, draft, sheet=int(sheet)))
        return
    dataset = await press.dataset(interaction)
    await replace(interaction, await dataset_card(press.services, interaction, dataset, sheet=int(sheet)))


async def _show_review(interaction: discord.Interaction, press: DatasetPress) -> None:
    dataset = await press.dataset(interaction)
    await replace(interaction, await review_content(press.services, interaction, dataset))


async def _show_captions(interaction: discord.Interaction, press: DatasetPress) -> None:
    await show_captions(press.services, interaction, press.dataset_id)


async def _open_rules(interaction: discord.Interaction, press: DatasetPress) -> None:
    await open_rules(press.services, interaction, press.dataset_id)


async def _write_captions(interaction: discord.Interaction, press: DatasetPress) -> None:
    await write_captions(press.services, interaction, press.dataset_id)


async def _show_previous(interaction: discord.Interaction, press: DatasetPress, image: str) -> None:
    await turn_page(press.services, interaction, await press.dataset(interaction), image, -1)


async def _show_next(interaction: discord.Interaction, press: DatasetPress, image: str) -> None:
    await turn_page(press.services, interaction, await press.dataset(interaction), image, 1)


async def _keep(interaction: discord.Interaction, press: DatasetPress, image: str) -> None:
    await decide(press.services, interaction, press.dataset_id, "keep", image)


async def _drop(interaction: discord.Interaction, press: DatasetPress, image: str) -> None:
    await decide(press.services, interaction, press.dataset_id, "drop", image)


async def _show_question(interaction: discord.Interaction, press: DatasetPress, question: str) -> None:
    await show_question(press.services, interaction, await press.dataset(interaction), question)


async def _show_each(interaction: discord.Interaction, press: DatasetPress, question: str) -> None:
    await show_each(press.services, interaction, await press.dataset(interaction), question)


async def _mark_right(interaction: discord.Interaction, press: DatasetPress, image: str) -> None:
    await decide(press.services, interaction, press.dataset_id, "right", image)


async def _ask_caption(interaction: discord.Interaction, press: DatasetPress, image: str) -> None:
    await ask_caption(press.services, interaction, press.dataset_id, image)


async def _finish(interaction: discord.Interaction, press: DatasetPress) -> None:
    await finish_review(press.services, interaction, await press.dataset(interaction))


async def _open_web_page(interaction: discord.Interaction, press: DatasetPress) -> None:
    dataset = await press.dataset(interaction)
    await show_page(press.services, interaction, LinkKind.DATASET, dataset.id)


async def _renew_upload(interaction: discord.Interaction, press: DatasetPress, upload_id: str) -> None:
    await show_upload_link(press.services, interaction, int(upload_id))


async def _download(interaction: discord.Interaction, press: DatasetPress, upload_id: str) -> None:
    await download_hub_dataset(press.services, interaction, int(upload_id))


async def _end_upload(interaction: discord.Interaction, press: DatasetPress, upload_id: str) -> None:
    await cancel_page_upload(press.services, interaction, int(upload_id))


async def _send_report(interaction: discord.Interaction, press: DatasetPress) -> None:
    dataset = await press.dataset(interaction)
    if (page := shared_page(dataset, interaction.filesize_limit)) is not None:
        await reply(interaction, report_reply(dataset, page))
        return
    async with press.services.datasets.packed_report(dataset) as packed:
        file = report_file(dataset, packed, interaction.filesize_limit)
        if file is None and press.services.links.are_on:
            await show_page(press.services, interaction, LinkKind.DATASET, dataset.id)
            return
        if file is None:
            raise NotFound(
                _(
                    "The report of {name} is larger than this server accepts; it is in {folder}.",
                    name=dataset.name,
                    folder=dataset.folder,
                )
            )
        await reply(interaction, report_reply(dataset, file))


async def _open_privacy(interaction: discord.Interaction, press: DatasetPress) -> None:
    await open_privacy(press.services, interaction, press.dataset_id)


async def _delete(interaction: discord.Interaction, press: DatasetPress) -> None:
    dataset = await own_dataset(press.services, interaction, press.dataset_id)
    await press.services.datasets.delete(dataset.id)
    deleted = _("**{name}** is deleted; its name is free again.", name=escape(dataset.name))
    await replace(interaction, text_message(deleted))


async def _spare(interaction: discord.Interaction, press: DatasetPress) -> None:
    dataset = await press.dataset(interaction)
    await replace(interaction, text_message(_("**{name}** is kept.", name=escape(dataset.name))))


async def _show_draft(interaction: discord.Interaction, press: DatasetPress, draft_id: str) -> None:
    """Show the card of a draft whose command could not be answered."""
    draft = await press.draft(interaction, draft_id)
    if draft.job_id is not None:
        await reply(interaction, text_message(queued_already(draft.job_id)))
        return
    await reply(interaction, await draft_card(press.services, interaction, draft))


async def _go_on(interaction: discord.Interaction, press: DatasetPress, draft_id: str) -> None:
    await _queue(interaction, press, draft_id, may_repeat=False)


async def _go_on_again(interaction: discord.Interaction, press: DatasetPress, draft_id: str) -> None:
    await _queue(interaction, press, draft_id, may_repeat=True)


async def _queue(interaction: discord.Interaction, press: DatasetPress, draft_id: str, *, may_repeat: bool) -> None:
    draft = await press.draft(interaction, draft_id)
    try:
        receipt = await queue_draft(press.services, interaction, draft, may_repeat=may_repeat)
    except DuplicateJob as error:
        await reply(interaction, duplicate_notice(error, draft))
        return
    except (DarkroomError, SpecError) as error:
        if not problems_of(error):
            raise
        # A limit or a base has changed since the card was shown.
        receipt = await draft_card(press.services, interaction, draft)
    await replace(interaction, receipt)


async def _cancel(interaction: discord.Interaction, press: DatasetPress, draft_id: str) -> None:
    draft = await press.draft(interaction, draft_id)
    await replace(interaction, await cancel_draft(press.services, draft))


async def _edit(interaction: discord.Interaction, press: DatasetPress, draft_id: str) -> None:
    await open_basics(interaction, await edit_of(press.services, interaction, press.dataset_id, int(draft_id)))


async def _fix(interaction: discord.Interaction, press: DatasetPress, draft_id: str) -> None:
    await open_fix(interaction, await edit_of(press.services, interaction, press.dataset_id, int(draft_id)))


async def _show_settings(interaction: discord.Interaction, press: DatasetPress, draft_id: str) -> None:
    await show_settings(interaction, await edit_of(press.services, interaction, press.dataset_id, int(draft_id)))


async def _open_page(interaction: discord.Interaction, press: DatasetPress, arg: str) -> None:
    draft_id, _separator, page = arg.partition("-")
    edit = await edit_of(press.services, interaction, press.dataset_id, int(draft_id))
    await open_page(interaction, edit, SettingsPage(page))


async def _back(interaction: discord.Interaction, press: DatasetPress, draft_id: str) -> None:
    await replace(interaction, await draft_card(press.services, interaction, await press.draft(interaction, draft_id)))


async def _train(interaction: discord.Interaction, press: DatasetPress) -> None:
    await open_request(interaction, press.services, press.dataset_id)


_UPDATE, _FORM = Acknowledgement.UPDATE, Acknowledgement.NONE
#: `tracked_upload` acknowledges these, once it has stored the upload.
_TRACKED = Acknowledgement.NONE

HANDLERS: Mapping[str, ButtonHandler] = {
    "list": ButtonHandler(
        run=_show_list, argument=NUMBER, acknowledgement=_UPDATE, rate=PAGES, ability=Ability.DATASETS
    ),
    "sheet": ButtonHandler(
        run=_show_sheet, argument=f"{NUMBER}(d{NUMBER})?", acknowledgement=_UPDATE, rate=PAGES, ability=Ability.DATASETS
    ),
    "review": ButtonHandler(run=_show_review, acknowledgement=_UPDATE, rate=PAGES, ability=Ability.DATASETS),
    "prev": ButtonHandler(
        run=_show_previous, argument=_IMAGE, acknowledgement=_UPDATE, rate=PAGES, ability=Ability.DATASETS
    ),
    "next": ButtonHandler(
        run=_show_next, argument=_IMAGE, acknowledgement=_UPDATE, rate=PAGES, ability=Ability.DATASETS
    ),
    "question": ButtonHandler(
        run=_show_question, argument=_QUESTION, acknowledgement=_UPDATE, rate=PAGES, ability=Ability.DATASETS
    ),
    "each": ButtonHandler(
        run=_show_each, argument=_QUESTION, acknowledgement=_UPDATE, rate=PAGES, ability=Ability.DATASETS
    ),
    "keep": ButtonHandler(run=_keep, argument=_DECIDED, acknowledgement=_UPDATE, ability=Ability.DATASETS),
    "drop": ButtonHandler(run=_drop, argument=_DECIDED, acknowledgement=_UPDATE, ability=Ability.DATASETS),
    "right": ButtonHandler(run=_mark_right, argument=_DECIDED, acknowledgement=_UPDATE, ability=Ability.DATASETS),
    "captions": ButtonHandler(run=_show_captions, rate=PAGES, ability=Ability.DATASETS),
    "rules": ButtonHandler(run=_open_rules, acknowledgement=_FORM, rate=PAGES, ability=Ability.DATASETS),
    "write": ButtonHandler(run=_write_captions, rate=UPLOADS, ability=Ability.DATASETS),
    "caption": ButtonHandler(run=_ask_caption, argument=_IMAGE, acknowledgement=_FORM, ability=Ability.DATASETS),
    "done": ButtonHandler(run=_finish, acknowledgement=_UPDATE, ability=Ability.DATASETS),
    "report": ButtonHandler(run=_send_report, rate=REPORTS, ability=Ability.DATASETS),
    "upload_link": ButtonHandler(run=_renew_upload, argument=_INTERACTION, rate=PAGES, ability=Ability.DATASETS),
    "hub_download": ButtonHandler(
        run=_download, argument=_INTERACTION, acknowledgement=_TRACKED, rate=UPLOADS, ability=Ability.DATASETS
    ),
    "upload_end": ButtonHandler(run=_end_upload, argument=_INTERACTION),
    "web": ButtonHandler(run=_open_web_page, rate=PAGES, ability=Ability.DATASETS),
    "privacy": ButtonHandler(run=_open_privacy, acknowledgement=_FORM, rate=PAGES, ability=Ability.DATASETS),
    "delete": ButtonHandler(run=_delete, acknowledgement=_UPDATE, ability=Ability.DATASETS),
    "spare": ButtonHandler(run=_spare, acknowledgement=_UPDATE, ability=Ability.DATASETS),
    "request": ButtonHandler(run=_show_draft, argument=NUMBER, ability=Ability.TRAIN),
    "go": ButtonHandler(run=_go_on, argument=NUMBER, acknowledgement=_UPDATE, ability=Ability.TRAIN),
    "again": ButtonHandler(run=_go_on_again, argument=NUMBER, acknowledgement=_UPDATE, ability=Ability.TRAIN),
    "cancel": ButtonHandler(run=_cancel, argument=NUMBER, acknowledgement=_UPDATE),
    "train": ButtonHandler(run=_train, acknowledgement=_FORM, rate=PAGES, ability=Ability.TRAIN),
    "edit": ButtonHandler(run=_edit, argument=NUMBER, acknowledgement=_FORM, rate=PAGES, ability=Ability.TRAIN),
    "fix": ButtonHandler(run=_fix, argument=NUMBER, acknowledgement=_FORM, rate=PAGES, ability=Ability.TRAIN),
    "advanced": ButtonHandler(
        run=_show_settings, argument=NUMBER, acknowledgement=_UPDATE, rate=PAGES, ability=Ability.TRAIN
    ),
    "page": ButtonHandler(
        run=_open_page, argument=_SETTINGS_PAGE, acknowledgement=_FORM, rate=PAGES, ability=Ability.TRAIN
    ),
    "back": ButtonHandler(run=_back, argument=NUMBER, acknowledgement=_UPDATE, rate=PAGES, ability=Ability.TRAIN),
}


class DatasetButtons(commands.Cog):
    """Each press is authorized and answered with the current state."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @commands.Cog.listener()
    async def on_dataset_button(self, interaction: discord.Interaction, dataset_id: int, verb: str, arg: str) -> None:
        press = DatasetPress(services=self._services, dataset_id=dataset_id)
        await self._services.gate.press(interaction, HANDLERS, verb, arg, press)
