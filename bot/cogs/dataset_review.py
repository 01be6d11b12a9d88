"""A review of a dataset: which image is shown, and what a press decides about it."""

from __future__ import annotations

from collections.abc import Sequence

import discord

from bot.cogs.drafts import dataset_card, draft_card
from bot.cogs.lookups import own_dataset
from bot.cogs.replies import open_form, replace, reply
from bot.cogs.services import Services
from bot.datasets import Dataset
from bot.datasets.decisions import (
    ReviewImage,
    current_caption,
    images_to_review,
    is_settled,
    with_caption,
    with_decision,
    with_reviewed,
)
from bot.errors import NotFound
from bot.ui.dataset_forms import Form, caption_form
from bot.ui.layout import MessageContent, text_message
from bot.ui.review_page import decided_words, nothing_to_review, review_page
from trainer.protocol.edits import Edits
from trainer.protocol.text import _

#: As in "Only … can decide about the dataset".
_DECIDE = "decide about"


async def review_content(services: Services, interaction: discord.Interaction, dataset: Dataset) -> MessageContent:
    """Make the page of the first undecided image; of the first image if all are decided."""
    images = images_to_review(await services.datasets.report(dataset))
    if not images:
        return text_message(nothing_to_review(dataset))
    undecided = [index for index, each in enumerate(images) if not is_settled(each, dataset.edits)]
    return review_page(dataset, images, next(iter(undecided), 0), file_limit=interaction.filesize_limit)


async def turn_page(services: Services, interaction: discord.Interaction, dataset: Dataset, key: str, by: int) -> None:
    """Show the image before or after the one with this key."""
    images = images_to_review(await services.datasets.report(dataset))
    index = min(max(_index_of(images, key) + by, 0), len(images) - 1)
    await replace(interaction, review_page(dataset, images, index, file_limit=interaction.filesize_limit))


async def decide(services: Services, interaction: discord.Interaction, dataset_id: int, verb: str, key: str) -> None:
    """Store a decision and show the next image. Idempotent.

    Raises:
        NotYourDataset: The member may not decide.
    """
    dataset = await own_dataset(services, interaction, dataset_id, _DECIDE)
    images = images_to_review(await services.datasets.report(dataset))
    index = _index_of(images, key)
    decided = await services.datasets.decide(dataset.id, lambda edits: _decided(edits, verb, images[index].sha256))
    await _show_result(interaction, decided, images, index, verb)


async def ask_caption(services: Services, interaction: discord.Interaction, dataset_id: int, key: str) -> None:
    """Open the form with the image's caption.

    Raises:
        NotYourDataset: The member may not decide.
    """
    dataset = await own_dataset(services, interaction, dataset_id, _DECIDE)
    images = images_to_review(await services.datasets.report(dataset))
    index = _index_of(images, key)
    each = images[index]

    async def submitted(interaction: discord.Interaction, form: Form) -> None:
        caption = form.texts["caption"]
        # Again: the dataset, or its member's permissions, may have changed while the form was open.
        await own_dataset(services, interaction, dataset_id, _DECIDE)
        # By pixels and not by index: others may have decided while the form was open.
        decided = await services.datasets.decide(dataset.id, lambda edits: with_caption(edits, each.sha256, caption))
        await _show_result(interaction, decided, images, index, "caption", by=0)

    caption = current_caption(each.image, dataset.edits)
    form = caption_form(services.gate.form(submitted), number=each.number, caption=caption)
    await open_form(interaction, form)


async def finish_review(services: Services, interaction: discord.Interaction, dataset: Dataset) -> None:
    """Apply all decisions, and show the card of the dataset or of the member's draft for it.

    Raises:
        NotYourDataset: Decisions wait, and the member may not decide.
        DatasetRefused: The result cannot be trained on; the decisions stay stored.
    """
    if dataset.is_pending:
        await own_dataset(services, interaction, dataset.id, _DECIDE)
        dataset = await services.datasets.apply(dataset.id)
    draft = await services.drafts.waiting(interaction.user.id, dataset.id)
    if draft is None:
        await replace(interaction, await dataset_card(services, interaction, dataset))
    else:
        await replace(interaction, await draft_card(services, interaction, draft))


def _decided(edits: Edits, verb: str, sha256: str) -> Edits:
    match verb:
        case "keep":
            return with_decision(edits, sha256, "keep")
        case "drop":
            return with_decision(edits, sha256, "drop")
        case _:
            return with_reviewed(edits, sha256)


async def _show_result(
    interaction: discord.Interaction,
    dataset: Dataset,
    images: Sequence[ReviewImage],
    index: int,
    verb: str,
    by: int = 1,
) -> None:
    """Show the image after `index`, or the same one, below what was decided."""
    note = decided_words(images[index], verb)
    after = min(index + by, len(images) - 1)
    page = review_page(dataset, images, after, file_limit=interaction.filesize_limit, note=note)
    if interaction.message is None:
        await reply(interaction, page)
    else:
        await replace(interaction, page)


def _index_of(images: Sequence[ReviewImage], key: str) -> int:
    """Return the index of the image with this key.

    Raises:
        NotFound: The dataset has changed, and the image is no longer among those to review.
    """
    for index, each in enumerate(images):
        if each.key == key:
            return index
    raise NotFound(_("This image no longer needs a review. Run /dataset review again."))
