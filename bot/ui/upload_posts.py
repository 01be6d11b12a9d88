"""Posts in place of answers: for members whose interaction can no longer be answered, most of them with an upload."""

from __future__ import annotations

from enum import StrEnum

import discord

from bot.datasets import Dataset, PendingUpload, UploadKind
from bot.outbox.notification import Notification
from bot.ui.buttons import dataset_button
from bot.ui.discord_text import escape, mention
from bot.ui.layout import Color, MessageContent, box, layout, row
from trainer.protocol.progress import PreparePhase, PrepareProgress
from trainer.protocol.text import _, ngettext


class Unanswered(StrEnum):
    """Why an interaction has no answer."""

    #: It came after the 3 seconds for a first answer; the member has read that the application did not respond.
    LATE = "late"
    #: It was delivered twice, and has an answer.
    REPEATED = "repeated"
    #: The 15 minutes for an answer are over.
    EXPIRED = "expired"
    #: Discord cannot be reached.
    UNREACHABLE = "unreachable"
    #: The bot that received it has ended.
    RESTARTED = "restarted"


def upload_post(notification: Notification) -> MessageContent:
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
    body = box(Color.NOTE, text, show)
    return MessageContent(layout=layout(body), mentions=(notification.owner_id,))


def progress_words(title: str, progress: PrepareProgress) -> str:
    """How far the preparation of an upload has come, in place of "… is thinking"."""
    name, n, total = escape(title, 100), progress.done, progress.total
    match progress.phase:
        case PreparePhase.READING:
            step = _("reading the images: {n} of {total}", n=n, total=total)
        case PreparePhase.COMPARING:
            share = f"{n / total:.0%}" if total else "100%"
            step = _("looking for duplicates: {share}", share=share)
        case PreparePhase.DRAWING:
            step = _("drawing the overview")
        case PreparePhase.CAPTIONING:
            step = _("writing captions: {n} of {total}", n=n, total=total)
    return f"⏳ **{name}** · {step}"


def unanswered_words(what: str, why: Unanswered, sentence: str, *, is_carried_out: bool) -> str:
    """What became of an interaction that has no answer, and why.

    Args:
        what: The command, as it is typed; empty for a button or a form.
        why: Why it has no answer.
        sentence: The error that was to be the answer, if there was one.
        is_carried_out: Its handler ran.
    """
    what = what or _("your press on a button")
    reason = _reason(why)
    if sentence:
        return _(
            "I could not show you the answer to {what}. {reason} It was: {sentence}",
            what=what,
            reason=reason,
            sentence=sentence,
        )
    if is_carried_out:
        return _("I carried out {what}, but could not show you the answer. {reason}", what=what, reason=reason)
    return _("I could not answer {what}. {reason} Nothing was done; try again.", what=what, reason=reason)


def upload_prepared(upload: PendingUpload, dataset: Dataset, why: Unanswered) -> str:
    """The files became this dataset."""
    name = escape(dataset.name)
    kept = ngettext("{n} image kept", "{n} images kept", dataset.counts.kept)
    match upload.kind:
        case UploadKind.ADD:
            done = _("It is part of **{name}** now: {kept}.", name=name, kept=kept)
        case UploadKind.IMPORT:
            done = _("It is ready now: dataset **{name}**, {kept}. `/dataset inspect` shows it.", name=name, kept=kept)
        case UploadKind.FINETUNE if upload.is_at_once:
            done = _(
                "It is ready now (dataset **{name}**, {kept}), and your request waits for **Start training**: "
                "what you may queue is checked when you press it.",
                name=name,
                kept=kept,
            )
        case UploadKind.FINETUNE:
            done = _("It is ready now (dataset **{name}**, {kept}), and your request waits:", name=name, kept=kept)
    return f"{_interrupted(upload, why)} {done}"


def upload_refused(upload: PendingUpload, reason: str, why: Unanswered) -> str:
    """The files became nothing, for this reason (escaped)."""
    return f"{_interrupted(upload, why)} {reason}"


def upload_incomplete(upload: PendingUpload) -> str:
    """The files are not there, and Discord's address for them may have expired."""
    arrived = _("I was restarted before **{title}** had arrived.", title=escape(upload.title))
    return f"{arrived} {_try_again(upload.kind)}"


def upload_failed(upload: PendingUpload, why: Unanswered) -> str:
    """The files became nothing, because of a bug."""
    return f"{_interrupted(upload, why)} {_('Something broke on my side.')} {_try_again(upload.kind)}"


def _interrupted(upload: PendingUpload, why: Unanswered) -> str:
    title = escape(upload.title)
    if why is Unanswered.RESTARTED:
        return _("I was restarted while preparing **{title}**.", title=title)
    return _("I could not show you the answer about **{title}**. {reason}", title=title, reason=_reason(why))


def _reason(why: Unanswered) -> str:
    if why is Unanswered.EXPIRED:
        return _("Discord takes answers for 15 minutes, and this took longer.")
    return _("Discord could not be reached.")


def _try_again(kind: UploadKind) -> str:
    match kind:
        case UploadKind.FINETUNE:
            return _("Nothing was queued; run /finetune again.")
        case UploadKind.IMPORT:
            return _("Nothing was kept; upload it again with /dataset upload.")
        case UploadKind.ADD:
            return _("Nothing was changed; run /dataset add again.")
