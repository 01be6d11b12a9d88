"""The captions of a dataset: an overview, one rule for all of them, and those that a model writes."""

from __future__ import annotations

import discord

from bot.cogs.attachments import progress_shown
from bot.cogs.drafts import dataset_card
from bot.cogs.lookups import own_dataset
from bot.cogs.replies import open_form, reply
from bot.cogs.services import Services
from bot.datasets.decisions import format_rules, parse_rules, with_rules
from bot.ui.dataset_cards import captions_card
from bot.ui.dataset_forms import Form, rules_form
from trainer.protocol.text import ngettext


async def show_captions(services: Services, interaction: discord.Interaction, dataset_id: int) -> None:
    """Answer with how many images have a caption, and the ways to change them.

    Raises:
        NotYourDataset: The member may not change it.
    """
    dataset = await own_dataset(services, interaction, dataset_id)
    await reply(interaction, captions_card(dataset, can_write=bool(services.config.captions.model)))


async def open_rules(services: Services, interaction: discord.Interaction, which: int | str) -> None:
    """Answer with the form of the rules for all captions.

    Raises:
        NotYourDataset: The member may not change it.
    """
    found = await own_dataset(services, interaction, which)

    async def submitted(interaction: discord.Interaction, form: Form) -> None:
        # Again: the dataset, or its member's permissions, may have changed while the form was open.
        await own_dataset(services, interaction, found.id)
        rules = parse_rules(form.texts)
        changed = await services.datasets.edit(found.id, lambda edits: with_rules(edits, **rules))
        await reply(interaction, await dataset_card(services, interaction, changed))

    await open_form(
        interaction,
        rules_form(services.gate.form(submitted), name=found.name, rules=format_rules(found.edits.rules)),
    )


async def write_captions(services: Services, interaction: discord.Interaction, dataset_id: int) -> None:
    """Let a model write the missing captions, and answer with the card; the answer shows how far it has come.

    Raises:
        NotYourDataset: The member may not change it.
        DatasetRefused: The model cannot be used, or took too long.
    """
    found = await own_dataset(services, interaction, dataset_id)
    async with progress_shown(interaction, found.name):
        written = await services.datasets.write_captions(found.id, services.config.captions)
    note = ngettext(
        "{n} caption was written. Read it before you train: a model makes mistakes.",
        "{n} captions were written. Read them before you train: a model makes mistakes.",
        written.counts.captioned - found.counts.captioned,
    )
    await reply(interaction, await dataset_card(services, interaction, written, note=note))
