"""What somebody is told who asks for work that is done already, or under way."""

from __future__ import annotations

import discord

from bot.errors import DuplicateJob
from bot.queue import Draft
from bot.ui.dataset_buttons import dataset_button
from bot.ui.layout import Colour, MessageContent, box, button, layout, row


def duplicate_notice(error: DuplicateJob, draft: Draft) -> MessageContent:
    """The job that is the same, and the choice to have it twice; the request goes on waiting."""
    body = box(
        Colour.NOTE,
        f"Same data and settings as **#{error.job_id}** ({error.state}). Nothing is queued.\n"
        "-# It would make the same again. Another seed, other settings or other pictures would not.",
        row(
            button(error.job_id, "open", f"Open #{error.job_id}"),
            dataset_button(draft.dataset_id, "again", "Queue anyway", arg=draft.id, style=discord.ButtonStyle.primary),
        ),
    )
    return MessageContent(layout=layout(body))
