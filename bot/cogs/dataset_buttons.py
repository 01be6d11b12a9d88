"""Presses on the buttons of dataset cards, reviews and drafts, including those that an earlier bot made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import discord

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
    show_next,
    show_previous,
    show_question,
)
from bot.cogs.drafts import cancel_draft, dataset_card, draft_card, queue_draft
from bot.cogs.interaction_gate import NUMBER, PAGES, REPORTS, UPLOADS, ButtonHandler
from bot.cogs.job_request import problems_of
from bot.cogs.lookups import dataset_here, of_dataset, of_draft, own_dataset, own_draft
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


def _of_upload(run: Callable[[Services, discord.Interaction, int], Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Make the handler of a button about an upload that has no dataset yet: `run(services, interaction, upload_id)`."""

    async def handle(services: Services, interaction: discord.Interaction, _dataset_id: int, upload_id: str) -> None:
        await run(services, interaction, int(upload_id))

    return handle


def _of_request(run: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Make the handler of a button that edits the member's own draft: `run(interaction, edit)`.

    If the button names a page of settings, it is `run(interaction, edit, page)`.
    """

    async def handle(services: Services, interaction: discord.Interaction, dataset_id: int, arg: str) -> None:
        draft_id, _separator, page = arg.partition("-")
        edit = await edit_of(services, interaction, dataset_id, int(draft_id))
        await run(interaction, edit, *([SettingsPage(page)] if page else []))

    return handle


async def _show_list(services: Services, interaction: discord.Interaction, _dataset_id: int, page: str) -> None:
    await replace(interaction, await list_page(services, interaction, int(page)))


async def _show_sheet(services: Services, interaction: discord.Interaction, dataset_id: int, arg: str) -> None:
    sheet, _separator, draft_id = arg.partition("d")
    if draft_id:
        draft = await own_draft(services, interaction, int(draft_id), dataset_id=dataset_id)
        await replace(interaction, await draft_card(services, interaction, draft, sheet=int(sheet)))
        return
    dataset = await dataset_here(services, interaction, dataset_id)
    await replace(interaction, await dataset_card(services, interaction, dataset, sheet=int(sheet)))


@of_dataset
async def _show_review(services: Services, interaction: discord.Interaction, dataset: Dataset) -> None:
    await replace(interaction, await review_content(services, interaction, dataset))


@of_dataset
async def _open_web_page(services: Services, interaction: discord.Interaction, dataset: Dataset) -> None:
    await show_page(services, interaction, LinkKind.DATASET, dataset.id)


@of_dataset
async def _send_report(services: Services, interaction: discord.Interaction, dataset: Dataset) -> None:
    if (page := shared_page(dataset, interaction.filesize_limit)) is not None:
        await reply(interaction, report_reply(dataset, page))
        return
    async with services.datasets.packed_report(dataset) as packed:
        file = report_file(dataset, packed, interaction.filesize_limit)
        if file is None and services.links.are_on:
            await show_page(services, interaction, LinkKind.DATASET, dataset.id)
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


async def _delete(services: Services, interaction: discord.Interaction, dataset_id: int) -> None:
    dataset = await own_dataset(services, interaction, dataset_id)
    await services.datasets.delete(dataset.id)
    deleted = _("**{name}** is deleted; its name is free again.", name=escape(dataset.name))
    await replace(interaction, text_message(deleted))


@of_dataset
async def _spare(_services: Services, interaction: discord.Interaction, dataset: Dataset) -> None:
    await replace(interaction, text_message(_("**{name}** is kept.", name=escape(dataset.name))))


@of_draft
async def _show_draft(services: Services, interaction: discord.Interaction, draft: Draft) -> None:
    """Show the card of a draft whose command could not be answered."""
    if draft.job_id is not None:
        await reply(interaction, text_message(queued_already(draft.job_id)))
        return
    await reply(interaction, await draft_card(services, interaction, draft))


async def _queue(services: Services, interaction: discord.Interaction, draft: Draft, *, may_repeat: bool) -> None:
    try:
        receipt = await queue_draft(services, interaction, draft, may_repeat=may_repeat)
    except DuplicateJob as error:
        await reply(interaction, duplicate_notice(error, draft))
        return
    except (DarkroomError, SpecError) as error:
        if not problems_of(error):
            raise
        # A limit or a base has changed since the card was shown.
        receipt = await draft_card(services, interaction, draft)
    await replace(interaction, receipt)


@of_draft
async def _cancel(services: Services, interaction: discord.Interaction, draft: Draft) -> None:
    await replace(interaction, await cancel_draft(services, draft))


@of_draft
async def _back(services: Services, interaction: discord.Interaction, draft: Draft) -> None:
    await replace(interaction, await draft_card(services, interaction, draft))


_FORM = Acknowledgement.NONE
_shown = partial(ButtonHandler, acknowledgement=Acknowledgement.UPDATE, rate=PAGES, ability=Ability.DATASETS)
_changed = partial(ButtonHandler, acknowledgement=Acknowledgement.UPDATE, ability=Ability.DATASETS)
_answered = partial(ButtonHandler, ability=Ability.DATASETS)
_edited = partial(ButtonHandler, argument=NUMBER, acknowledgement=_FORM, rate=PAGES, ability=Ability.TRAIN)
_queued = partial(ButtonHandler, argument=NUMBER, acknowledgement=Acknowledgement.UPDATE, ability=Ability.TRAIN)

HANDLERS: Mapping[str, ButtonHandler] = {
    "list": _shown(run=_show_list, argument=NUMBER),
    "sheet": _shown(run=_show_sheet, argument=f"{NUMBER}(d{NUMBER})?"),
    "review": _shown(run=_show_review),
    "prev": _shown(run=show_previous, argument=_IMAGE),
    "next": _shown(run=show_next, argument=_IMAGE),
    "question": _shown(run=show_question, argument=_QUESTION),
    "each": _shown(run=show_each, argument=_QUESTION),
    "keep": _changed(run=partial(decide, verb="keep"), argument=_DECIDED),
    "drop": _changed(run=partial(decide, verb="drop"), argument=_DECIDED),
    "right": _changed(run=partial(decide, verb="right"), argument=_DECIDED),
    "captions": _answered(run=show_captions, rate=PAGES),
    "rules": _answered(run=open_rules, acknowledgement=_FORM, rate=PAGES),
    "write": _answered(run=write_captions, rate=UPLOADS),
    "caption": _answered(run=ask_caption, argument=_IMAGE, acknowledgement=_FORM),
    "done": _changed(run=finish_review),
    "report": _answered(run=_send_report, rate=REPORTS),
    "upload_link": _answered(run=_of_upload(show_upload_link), argument=_INTERACTION, rate=PAGES),
    # `tracked_upload` acknowledges it, once it has stored the upload.
    "hub_download": _answered(
        run=_of_upload(download_hub_dataset),
        argument=_INTERACTION,
        acknowledgement=Acknowledgement.NONE,
        rate=UPLOADS,
    ),
    "upload_end": ButtonHandler(run=_of_upload(cancel_page_upload), argument=_INTERACTION),
    "web": _answered(run=_open_web_page, rate=PAGES),
    "privacy": _answered(run=open_privacy, acknowledgement=_FORM, rate=PAGES),
    "delete": _changed(run=_delete),
    "spare": _changed(run=_spare),
    "request": ButtonHandler(run=_show_draft, argument=NUMBER, ability=Ability.TRAIN),
    "go": _queued(run=of_draft(partial(_queue, may_repeat=False))),
    "again": _queued(run=of_draft(partial(_queue, may_repeat=True))),
    "cancel": ButtonHandler(run=_cancel, argument=NUMBER, acknowledgement=Acknowledgement.UPDATE),
    "train": ButtonHandler(run=open_request, acknowledgement=_FORM, rate=PAGES, ability=Ability.TRAIN),
    "edit": _edited(run=_of_request(open_basics)),
    "fix": _edited(run=_of_request(open_fix)),
    "advanced": _queued(run=_of_request(show_settings), rate=PAGES),
    "page": _edited(run=_of_request(open_page), argument=_SETTINGS_PAGE),
    "back": _queued(run=_back, rate=PAGES),
}
