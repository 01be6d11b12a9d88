"""What became of files that an earlier bot had taken in, told in the channel: their owner waits for an answer."""

from __future__ import annotations

import discord

from bot.datasets import Dataset, PendingUpload, UploadKind
from bot.outbox.notice import Notice
from bot.ui.dataset_buttons import dataset_button
from bot.ui.layout import Colour, MessageContent, box, layout, row
from bot.ui.text import counted, person, plain

_LONGEST_SENTENCE = 1500

#: What did not happen, and what to do, where the files are gone.
_NOTHING = {
    UploadKind.FINETUNE: "Nothing was queued; run /finetune again.",
    UploadKind.IMPORT: "Nothing was kept; hand it in again with /dataset upload.",
    UploadKind.ADD: "Nothing was changed; run /dataset add again.",
}


def upload_post(notice: Notice, marker: str) -> MessageContent:
    """The text, calling whoever handed the files in, and a button where a request of theirs waits."""
    show = None
    if notice.draft_id:
        blue = discord.ButtonStyle.primary
        show = row(dataset_button(notice.dataset_id, "request", "Show my request", arg=notice.draft_id, style=blue))
    text = f"{person(notice.owner_id)} {notice.detail}"
    body = box(Colour.NOTE, text, show, f"-# Darkroom · {marker}")
    return MessageContent(layout=layout(body), mentions=notice.owner_id)


def examined_words(upload: PendingUpload, dataset: Dataset) -> str:
    """It became this dataset."""
    title, name, kept = plain(upload.title), plain(dataset.name), counted(dataset.counts.kept, "image")
    match upload.kind:
        case UploadKind.ADD:
            return f"I was restarted while I added **{title}** to **{name}**. It is done now: {kept} kept."
        case UploadKind.IMPORT:
            what = f"{_restarted(upload)} It is examined now: dataset **{name}**, {kept} kept."
            return f"{what} `/dataset inspect` shows it."
        case UploadKind.FINETUNE:
            what = f"{_restarted(upload)} It is examined now (dataset **{name}**, {kept} kept), and"
            if upload.is_at_once:
                return f"{what} your request waits for **Go on**: what you may queue is checked when you press it."
            return f"{what} your request waits:"


def refused_words(upload: PendingUpload, sentence: str) -> str:
    """It became nothing, for a reason that is told as it would have been."""
    return f"{_restarted(upload)} {plain(sentence, _LONGEST_SENTENCE)}"


def not_arrived_words(upload: PendingUpload) -> str:
    """Its bytes are not there, and Discord's address for them may be no longer."""
    return f"I was restarted before **{plain(upload.title)}** had arrived. {_NOTHING[upload.kind]}"


def failed_words(upload: PendingUpload) -> str:
    """It became nothing, through a fault of the bot's."""
    return f"{_restarted(upload)} Something broke on my side. {_NOTHING[upload.kind]}"


def _restarted(upload: PendingUpload) -> str:
    return f"I was restarted while I looked at **{plain(upload.title)}**."
