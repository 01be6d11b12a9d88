"""[Open page]: a link to a web page for the member who pressed it; pressed again, it makes a new one."""

from __future__ import annotations

from typing import Any

import discord
from discord import ui

from bot.access import server_of
from bot.cogs.replies import reply
from bot.cogs.services import Services
from bot.ui.buttons import dataset_button, gallery_button, job_button
from bot.ui.layout import MessageContent, layout, row, text_message
from bot.web import LinkKind
from trainer.protocol.text import _, ngettext


async def show_page(services: Services, interaction: discord.Interaction, kind: LinkKind, subject_id: int = 0) -> None:
    """Answer with a link; its member may open what it leads to."""
    url = await services.links.create(kind, subject_id, user_id=interaction.user.id, guild_id=server_of(interaction))
    await reply(interaction, page_message(kind, url, subject_id, days=services.config.web.link_days))


def page_message(kind: LinkKind, url: str | None, subject_id: int = 0, *, days: int) -> MessageContent:
    """A link to a page: what is there, for whom it is, until when, and a button for a new one.

    None: there are no pages any more.
    """
    if url is None:
        return text_message(_("This bot has no web pages at the moment. You can do everything in Discord."))
    ends = ngettext(
        "Keep this link to yourself: others could act as you with it. It works for {n} day; **New link** gives you "
        "another one then.",
        "Keep this link to yourself: others could act as you with it. It works for {n} days; **New link** gives you "
        "another one then.",
        days,
    )
    button: ui.Button[ui.LayoutView] = ui.Button(url=url, label=_("Open in the browser"))
    return MessageContent(layout=layout(_what(kind), row(button, *_new_link(kind, subject_id)), f"-# {ends}"))


def _new_link(kind: LinkKind, subject_id: int) -> list[ui.Item[Any]]:
    """The button for a new link, once this one has expired."""
    match kind:
        case LinkKind.JOB:
            return [job_button(subject_id, "web", _("New link"))]
        case LinkKind.DATASET:
            return [dataset_button(subject_id, "web", _("New link"))]
        case LinkKind.GALLERY:
            return [gallery_button(subject_id, "web", _("New link"))]
        case LinkKind.UPLOAD:
            # Its message is `upload_link`.
            return []


def _what(kind: LinkKind) -> str:
    match kind:
        case LinkKind.JOB:
            return _("The page shows the pictures of every epoch and has all files, one by one or as one zip.")
        case LinkKind.DATASET:
            return _("The page has every image. Keep, drop and crop images there, and write their captions.")
        case LinkKind.GALLERY:
            return _("The page has the whole gallery of this server.")
        case LinkKind.UPLOAD:
            return _(
                "The page takes files and folders of any size. If the connection drops, the upload continues where "
                "it was."
            )
