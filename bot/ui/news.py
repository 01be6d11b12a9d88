"""News of no job: what the bot tells a channel of itself, the machine, or the week."""

from __future__ import annotations

from bot.outbox.notice import Notice
from bot.ui.layout import Colour, MessageContent, box, layout


def news_post(notice: Notice, marker: str) -> MessageContent:
    """The text as its writer made it (who escapes strangers' words in it); it calls nobody."""
    body = box(Colour.NOTE, notice.detail, f"-# Darkroom · {marker}")
    return MessageContent(layout=layout(body), is_silent=True)
