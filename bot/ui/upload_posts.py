"""Posts for the owners of uploads that a restart of the bot interrupted."""

from __future__ import annotations

import discord

from bot.datasets import Dataset, PendingUpload, UploadKind
from bot.outbox.notification import Notification
from bot.ui.buttons import dataset_button
from bot.ui.discord_text import escape, mention
from bot.ui.layout import Color, MessageContent, box, layout, row
from trainer.protocol.text import _, ngettext

_MAX_REASON_CHARS = 1500


def upload_post(notification: Notification, marker: str) -> MessageContent:
    """The outcome of an upload for its owner, with a button if a draft of theirs waits."""
    show = None
    if notification.draft_id:
        show = row(
            dataset_button(
                notification.dataset_id,
                "request",
                _("Show my request"),
                arg=notification.draft_id,
                style=discord.ButtonStyle.primary,
            )
        )
    text = f"{mention(notification.owner_id)} {notification.detail}"
    body = box(Color.NOTE, text, show, f"-# Darkroom · {marker}")
    return MessageContent(layout=layout(body), mentions=notification.owner_id)


def upload_prepared(upload: PendingUpload, dataset: Dataset) -> str:
    """The files became this dataset."""
    title, name = escape(upload.title), escape(dataset.name)
    kept = ngettext("{n} image kept", "{n} images kept", dataset.counts.kept)
    match upload.kind:
        case UploadKind.ADD:
            return _(
                "I was restarted while adding **{title}** to **{name}**. It is done now: {kept}.",
                title=title,
                name=name,
                kept=kept,
            )
        case UploadKind.IMPORT:
            done = _("It is ready now: dataset **{name}**, {kept}. `/dataset inspect` shows it.", name=name, kept=kept)
        case UploadKind.FINETUNE if upload.is_at_once:
            done = _(
                "It is ready now (dataset **{name}**, {kept}), and your request waits for **Go on**: "
                "what you may queue is checked when you press it.",
                name=name,
                kept=kept,
            )
        case UploadKind.FINETUNE:
            done = _("It is ready now (dataset **{name}**, {kept}), and your request waits:", name=name, kept=kept)
    return f"{_restarted(upload)} {done}"


def upload_refused(upload: PendingUpload, reason: str) -> str:
    """The files became nothing, for this reason."""
    return f"{_restarted(upload)} {escape(reason, _MAX_REASON_CHARS)}"


def upload_incomplete(upload: PendingUpload) -> str:
    """The files are not there, and Discord's address for them may have expired."""
    arrived = _("I was restarted before **{title}** had arrived.", title=escape(upload.title))
    return f"{arrived} {_try_again(upload.kind)}"


def upload_failed(upload: PendingUpload) -> str:
    """The files became nothing, because of a bug."""
    return f"{_restarted(upload)} {_('Something broke on my side.')} {_try_again(upload.kind)}"


def _restarted(upload: PendingUpload) -> str:
    return _("I was restarted while preparing **{title}**.", title=escape(upload.title))


def _try_again(kind: UploadKind) -> str:
    match kind:
        case UploadKind.FINETUNE:
            return _("Nothing was queued; run /finetune again.")
        case UploadKind.IMPORT:
            return _("Nothing was kept; upload it again with /dataset upload.")
        case UploadKind.ADD:
            return _("Nothing was changed; run /dataset add again.")
