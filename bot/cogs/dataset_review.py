"""A review of a dataset: which question or image is shown, and what a press decides about one image or all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import discord

from bot.access import manages
from bot.cogs.attachments import progress_shown
from bot.cogs.drafts import dataset_card, draft_card
from bot.cogs.lookups import of_dataset, own_dataset
from bot.cogs.replies import open_form, replace, reply
from bot.cogs.services import Services
from bot.datasets import Dataset, may_change
from bot.datasets.decisions import (
    CAPTIONS,
    EVERY,
    ReviewImage,
    ReviewQuestion,
    captions_question,
    current_caption,
    decided,
    review_questions,
    with_caption,
)
from bot.errors import NotFound
from bot.ui.dataset_forms import Form, caption_form
from bot.ui.layout import MessageContent, text_message
from bot.ui.review_page import ReviewView, decided_words, image_page, nothing_to_review, question_page
from trainer.protocol.text import _


@dataclass(frozen=True, kw_only=True)
class Review:
    """The questions about a dataset, and which of them, or which image of it, is shown."""

    dataset: Dataset
    questions: Sequence[ReviewQuestion]
    question: ReviewQuestion
    #: None: all images of the question.
    image: ReviewImage | None = None

    @classmethod
    async def at(cls, services: Services, dataset: Dataset, arg: str) -> Self:
        """Return the review where a button points: `question`, `image-question`, or `EVERY` before the question.

        Raises:
            NotFound: The dataset has changed, and there is no such question or image.
        """
        report = await services.datasets.report(dataset)
        image_key, _dash, question_key = arg.removeprefix(EVERY).rpartition("-")
        questions = (captions_question(report),) if question_key == CAPTIONS else review_questions(report)
        for question in questions:
            for image in question.images if question.key == question_key else ():
                if not image_key or image.key == image_key:
                    found = image if image_key else None
                    return cls(dataset=dataset, questions=questions, question=question, image=found)
        raise NotFound(_("This image no longer needs a review. Run /dataset review again."))

    def turned(self, by: int) -> Self:
        """Return the review at the image before or after; where another question begins, at that question."""
        assert self.image is not None
        index = self.question.images.index(self.image) + by
        if 0 <= index < len(self.question.images):
            return dataclasses.replace(self, image=self.question.images[index])
        other = self.questions.index(self.question) + by
        if 0 <= other < len(self.questions):
            return dataclasses.replace(self, question=self.questions[other], image=None)
        return self

    def content(self, interaction: discord.Interaction, note: str = "") -> MessageContent:
        """Make the page of the image or question, with the buttons that the member may press."""
        can_manage = manages(interaction)
        view = ReviewView(
            dataset=self.dataset,
            questions=self.questions,
            question=self.question,
            file_limit=interaction.filesize_limit,
            note=note,
            may_change=may_change(self.dataset, user_id=interaction.user.id, can_manage=can_manage),
        )
        return question_page(view) if self.image is None else image_page(view, self.image)


async def review_content(services: Services, interaction: discord.Interaction, dataset: Dataset) -> MessageContent:
    """Make the page of the first question that needs a decision; of the first question if none does."""
    questions = review_questions(await services.datasets.report(dataset))
    if not questions:
        return text_message(nothing_to_review(dataset))
    is_open = (each for each in questions if each.needs_decision and each.undecided(dataset.edits))
    return Review(dataset=dataset, questions=questions, question=next(is_open, questions[0])).content(interaction)


@of_dataset
async def show_question(services: Services, interaction: discord.Interaction, dataset: Dataset, key: str) -> None:
    """Show a question about all of its images."""
    await replace(interaction, (await Review.at(services, dataset, key)).content(interaction))


@of_dataset
async def show_each(services: Services, interaction: discord.Interaction, dataset: Dataset, key: str) -> None:
    """Show the first undecided image of a question."""
    review = await Review.at(services, dataset, key)
    image = (*review.question.undecided(dataset.edits), *review.question.images)[0]
    await replace(interaction, dataclasses.replace(review, image=image).content(interaction))


@of_dataset
async def show_previous(services: Services, interaction: discord.Interaction, dataset: Dataset, arg: str) -> None:
    """Show the image before the one of this key."""
    await replace(interaction, (await Review.at(services, dataset, arg)).turned(-1).content(interaction))


@of_dataset
async def show_next(services: Services, interaction: discord.Interaction, dataset: Dataset, arg: str) -> None:
    """Show the image after the one of this key."""
    await replace(interaction, (await Review.at(services, dataset, arg)).turned(1).content(interaction))


async def decide(services: Services, interaction: discord.Interaction, dataset_id: int, arg: str, *, verb: str) -> None:
    """Store a decision and show what is next. Idempotent.

    It is about one image; or about the undecided images of a question, so that exceptions stay; or about `EVERY` one.

    Raises:
        NotYourDataset: The member may not decide.
    """
    dataset = await own_dataset(services, interaction, dataset_id)
    review = await Review.at(services, dataset, arg)
    if review.image is not None:
        images: Sequence[ReviewImage] = [review.image]
    elif arg.startswith(EVERY):
        images = review.question.images
    else:
        images = review.question.undecided(dataset.edits)
    sha256s = [each.sha256 for each in images]
    after_it = await services.datasets.decide(dataset.id, lambda edits: decided(edits, verb, sha256s))
    last = review.image or review.question.images[-1]
    after = dataclasses.replace(review, dataset=after_it, image=last).turned(1)
    await _show(interaction, after, decided_words(images, verb) if images else "")


async def ask_caption(services: Services, interaction: discord.Interaction, dataset_id: int, arg: str) -> None:
    """Open the form with the image's caption.

    Raises:
        NotYourDataset: The member may not decide.
    """
    dataset = await own_dataset(services, interaction, dataset_id)
    review = await Review.at(services, dataset, arg)
    each = review.image or review.question.images[0]

    async def submitted(interaction: discord.Interaction, form: Form) -> None:
        caption = form.texts["caption"]
        # Again: the dataset, or its member's permissions, may have changed while the form was open.
        await own_dataset(services, interaction, dataset_id)
        # By pixels and not by index: others may have decided while the form was open.
        written = await services.datasets.decide(dataset.id, lambda edits: with_caption(edits, each.sha256, caption))
        after = dataclasses.replace(review, dataset=written)
        if review.question.is_about_captions:
            after = after.turned(1)
        await _show(interaction, after, decided_words([each], "caption"))

    caption = current_caption(each.image, dataset.edits)
    form = caption_form(services.gate.form(submitted), number=each.number, caption=caption)
    await open_form(interaction, form)


@of_dataset
async def finish_review(services: Services, interaction: discord.Interaction, dataset: Dataset) -> None:
    """Apply all decisions, and show the card of the dataset or of the member's draft for it.

    A member who may not decide has only looked: the decisions of others stay stored.

    Raises:
        DatasetRefused: The result cannot be trained on; the decisions stay stored.
    """
    if dataset.is_pending and may_change(dataset, user_id=interaction.user.id, can_manage=manages(interaction)):
        again = partial(review_content, services, interaction, dataset)
        async with progress_shown(interaction, dataset.name, again):
            dataset = await services.datasets.apply(dataset.id)
    draft = await services.drafts.waiting(interaction.user.id, dataset.id)
    if draft is None:
        await replace(interaction, await dataset_card(services, interaction, dataset))
    else:
        await replace(interaction, await draft_card(services, interaction, draft))


async def _show(interaction: discord.Interaction, review: Review, note: str) -> None:
    """Show a page of the review, with the decision that was made above it."""
    page = review.content(interaction, note)
    if interaction.message is None:
        await reply(interaction, page)
    else:
        await replace(interaction, page)
