"""A review: which picture is shown, and what a press writes down about it."""

from __future__ import annotations

from collections.abc import Sequence

import discord

from bot.cogs.drafts import dataset_card, draft_card
from bot.cogs.failures import told
from bot.cogs.replies import replace, reply
from bot.cogs.services import Services
from bot.datasets import Dataset, require_change
from bot.datasets.decisions import (
    ToReview,
    caption_now,
    is_settled,
    to_review,
    with_caption,
    with_decision,
    with_reviewed,
)
from bot.errors import NotFound
from bot.ui.dataset_forms import Form, caption_form
from bot.ui.layout import MessageContent
from bot.ui.receipts import said
from bot.ui.review import decided_words, nothing_to_review, review_page
from trainer.protocol.edits import Edits


async def review_content(services: Services, interaction: discord.Interaction, dataset: Dataset) -> MessageContent:
    """The first picture that nobody has decided about; the first of all if everything is decided."""
    pictures = to_review(await services.datasets.report(dataset))
    if not pictures:
        return said(nothing_to_review(dataset))
    open_ones = [place for place, each in enumerate(pictures) if not is_settled(each, dataset.edits)]
    return review_page(dataset, pictures, next(iter(open_ones), 0), file_limit=interaction.filesize_limit)


async def turn(services: Services, interaction: discord.Interaction, dataset: Dataset, key: str, by: int) -> None:
    """Show the picture before or after the one of that key."""
    pictures = to_review(await services.datasets.report(dataset))
    place = min(max(_place(pictures, key) + by, 0), len(pictures) - 1)
    await replace(interaction, review_page(dataset, pictures, place, file_limit=interaction.filesize_limit))


async def decide(services: Services, interaction: discord.Interaction, dataset: Dataset, verb: str, key: str) -> None:
    """Write down what was pressed, and show the next picture; the same press twice is one decision.

    Raises:
        NotYourDataset: who pressed may not decide.
    """
    require_review(interaction, dataset)
    pictures = to_review(await services.datasets.report(dataset))
    place = _place(pictures, key)
    decided = await services.datasets.decide(dataset.id, lambda edits: _decided(edits, verb, pictures[place].sha256))
    await _show_after(interaction, decided, pictures, place, verb)


async def ask_caption(services: Services, interaction: discord.Interaction, dataset: Dataset, key: str) -> None:
    """Open the form with the picture's caption.

    Raises:
        NotYourDataset: who pressed may not decide.
    """
    require_review(interaction, dataset)
    pictures = to_review(await services.datasets.report(dataset))
    place = _place(pictures, key)

    async def submitted(interaction: discord.Interaction, form: Form) -> None:
        caption = form.texts["caption"]
        # By pixels and not by place: others may have decided while the form was open.
        decided = await services.datasets.decide(
            dataset.id, lambda edits: with_caption(edits, pictures[place].sha256, caption)
        )
        await _show_after(interaction, decided, pictures, place, "caption", by=0)

    each = pictures[place]
    form = caption_form(told(submitted), number=each.number, caption=caption_now(each.image, dataset.edits))
    await interaction.response.send_modal(form)


async def finish(services: Services, interaction: discord.Interaction, dataset: Dataset) -> None:
    """Apply what was decided, and show the card; the request's card if one waits for this dataset.

    Raises:
        DatasetRefused: it cannot be trained on like that; the decisions stay.
    """
    if dataset.is_pending:
        # The press is answered now; preparing may take longer than the three seconds that it has.
        await interaction.response.defer()
        dataset = await services.datasets.apply(dataset.id)
    draft = await services.drafts.waiting(interaction.user.id, dataset.id)
    if draft is None:
        await replace(interaction, await dataset_card(services, interaction, dataset))
    else:
        await replace(interaction, await draft_card(services, interaction, draft))


def require_review(interaction: discord.Interaction, dataset: Dataset) -> None:
    """Nothing, if who acts may decide about a dataset.

    Raises:
        NotYourDataset: they may not.
    """
    can_manage = interaction.permissions.manage_guild
    require_change(dataset, user_id=interaction.user.id, can_manage=can_manage, verb="decide about")


def _decided(edits: Edits, verb: str, sha256: str) -> Edits:
    match verb:
        case "keep":
            return with_decision(edits, sha256, "keep")
        case "drop":
            return with_decision(edits, sha256, "drop")
        case _:
            return with_reviewed(edits, sha256)


async def _show_after(
    interaction: discord.Interaction,
    dataset: Dataset,
    pictures: Sequence[ToReview],
    place: int,
    verb: str,
    by: int = 1,
) -> None:
    note = decided_words(pictures[place], verb)
    after = min(place + by, len(pictures) - 1)
    page = review_page(dataset, pictures, after, file_limit=interaction.filesize_limit, note=note)
    if interaction.message is None:
        await reply(interaction, page)
    else:
        await replace(interaction, page)


def _place(pictures: Sequence[ToReview], key: str) -> int:
    """Where the picture of that key is.

    Raises:
        NotFound: the dataset has changed, and the picture is no longer among those to review.
    """
    for place, each in enumerate(pictures):
        if each.key == key:
            return place
    raise NotFound("This picture is no longer among those to review. /dataset review begins anew.")
