"""Presses on the buttons of dataset cards, reviews and drafts, including those that an earlier bot made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import discord
from discord.ext import commands

from bot.cogs.dataset_commands import list_page
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
from bot.cogs.interaction_gate import NUMBER, PAGES, REPORTS, ButtonHandler
from bot.cogs.lookups import dataset_here, own_dataset, own_draft
from bot.cogs.replies import Acknowledgement, replace, reply
from bot.cogs.services import Services
from bot.datasets import Dataset
from bot.datasets.decisions import EVERY
from bot.errors import DuplicateJob, NotFound
from bot.queue import Draft, State
from bot.ui.dataset_cards import report_file, report_reply
from bot.ui.discord_text import escape
from bot.ui.job_replies import duplicate_notice, queued_already
from bot.ui.layout import text_message
from trainer.protocol.text import _

#: A pattern of `ReviewQuestion.key`, and of an image of a question: `ReviewImage.key` before it.
_QUESTION = "[a-z_]{1,40}"
_IMAGE = f"[0-9a-f]{{1,40}}-{_QUESTION}"
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


async def _send_report(interaction: discord.Interaction, press: DatasetPress) -> None:
    dataset = await press.dataset(interaction)
    async with press.services.datasets.packed_report(dataset) as packed:
        file = report_file(dataset, packed, interaction.filesize_limit)
        if file is None:
            raise NotFound(
                _(
                    "The report of {name} is larger than this server accepts; it is in {folder}.",
                    name=dataset.name,
                    folder=dataset.folder,
                )
            )
        await reply(interaction, report_reply(dataset, file))


async def _delete(interaction: discord.Interaction, press: DatasetPress) -> None:
    dataset = await own_dataset(press.services, interaction, press.dataset_id, "delete")
    await press.services.datasets.delete(dataset.id)
    deleted = _("⬛ **{name}** is deleted; its name is free.", name=escape(dataset.name))
    await replace(interaction, text_message(deleted))


async def _spare(interaction: discord.Interaction, press: DatasetPress) -> None:
    dataset = await press.dataset(interaction)
    await replace(interaction, text_message(_("**{name}** is kept.", name=escape(dataset.name))))


async def _show_draft(interaction: discord.Interaction, press: DatasetPress, draft_id: str) -> None:
    """Show the card of a draft whose command could not be answered."""
    draft = await press.draft(interaction, draft_id)
    if draft.state is not State.DRAFT:
        await reply(interaction, text_message(queued_already(draft.id)))
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
    await replace(interaction, receipt)


async def _cancel(interaction: discord.Interaction, press: DatasetPress, draft_id: str) -> None:
    draft = await press.draft(interaction, draft_id)
    await replace(interaction, await cancel_draft(press.services, draft))


_UPDATE, _FORM = Acknowledgement.UPDATE, Acknowledgement.NONE

HANDLERS: Mapping[str, ButtonHandler] = {
    "list": ButtonHandler(run=_show_list, argument=NUMBER, acknowledgement=_UPDATE, rate=PAGES),
    "sheet": ButtonHandler(run=_show_sheet, argument=f"{NUMBER}(d{NUMBER})?", acknowledgement=_UPDATE, rate=PAGES),
    "review": ButtonHandler(run=_show_review, acknowledgement=_UPDATE, rate=PAGES),
    "prev": ButtonHandler(run=_show_previous, argument=_IMAGE, acknowledgement=_UPDATE, rate=PAGES),
    "next": ButtonHandler(run=_show_next, argument=_IMAGE, acknowledgement=_UPDATE, rate=PAGES),
    "question": ButtonHandler(run=_show_question, argument=_QUESTION, acknowledgement=_UPDATE, rate=PAGES),
    "each": ButtonHandler(run=_show_each, argument=_QUESTION, acknowledgement=_UPDATE, rate=PAGES),
    "keep": ButtonHandler(run=_keep, argument=_DECIDED, acknowledgement=_UPDATE),
    "drop": ButtonHandler(run=_drop, argument=_DECIDED, acknowledgement=_UPDATE),
    "right": ButtonHandler(run=_mark_right, argument=_DECIDED, acknowledgement=_UPDATE),
    "caption": ButtonHandler(run=_ask_caption, argument=_IMAGE, acknowledgement=_FORM),
    "done": ButtonHandler(run=_finish, acknowledgement=_UPDATE),
    "report": ButtonHandler(run=_send_report, rate=REPORTS),
    "delete": ButtonHandler(run=_delete, acknowledgement=_UPDATE),
    "spare": ButtonHandler(run=_spare, acknowledgement=_UPDATE),
    "request": ButtonHandler(run=_show_draft, argument=NUMBER),
    "go": ButtonHandler(run=_go_on, argument=NUMBER, acknowledgement=_UPDATE),
    "again": ButtonHandler(run=_go_on_again, argument=NUMBER, acknowledgement=_UPDATE),
    "cancel": ButtonHandler(run=_cancel, argument=NUMBER, acknowledgement=_UPDATE),
}


class DatasetButtons(commands.Cog):
    """Each press is authorized and answered with the current state."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @commands.Cog.listener()
    async def on_dataset_button(self, interaction: discord.Interaction, dataset_id: int, verb: str, arg: str) -> None:
        press = DatasetPress(services=self._services, dataset_id=dataset_id)
        await self._services.gate.press(interaction, HANDLERS, verb, arg, press)
