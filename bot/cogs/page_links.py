"""[Open page]: a link to a web page for the member who pressed it; pressed again, it makes a new one."""

from __future__ import annotations

import discord
from discord import ui

from bot.cogs.replies import reply
from bot.cogs.services import Services
from bot.ui.layout import MessageContent, layout, row, text_message
from bot.web import LinkKind
from trainer.protocol.text import _, ngettext


async def show_page(services: Services, interaction: discord.Interaction, kind: LinkKind, subject_id: int = 0) -> None:
    """Answer with a link; its member may open what it leads to."""
    assert interaction.guild_id is not None
    url = await services.links.create(kind, subject_id, user_id=interaction.user.id, guild_id=interaction.guild_id)
    await reply(interaction, page_message(kind, url, days=services.config.web.link_days))


def page_message(kind: LinkKind, url: str | None, *, days: int) -> MessageContent:
    """A link to a page: what is there, for whom it is, and until when; None: there are no pages any more."""
    if url is None:
        return text_message(_("This bot has no web pages at the moment. All that it knows is in Discord."))
    ends = ngettext(
        "The link is for you alone: it acts as you. It ends in {n} day; press the button again for a new one.",
        "The link is for you alone: it acts as you. It ends in {n} days; press the button again for a new one.",
        days,
    )
    button: ui.Button[ui.LayoutView] = ui.Button(url=url, label=_("Open in the browser"))
    return MessageContent(layout=layout(_what(kind), row(button), f"-# {ends}"))


def _what(kind: LinkKind) -> str:
    match kind:
        case LinkKind.JOB:
            return _("The page has the pictures of every epoch and all files of any size, also as one zip.")
        case LinkKind.DATASET:
            return _("The page has every image. Keep, drop and crop images there, and write their captions.")
        case LinkKind.GALLERY:
            return _("The page has the whole gallery of this server.")
        case LinkKind.UPLOAD:
            return _("The page takes files and folders of any size, and goes on where it was if the connection drops.")
