"""Posts in place of answers: for members whose interaction can no longer be answered, most of them with an upload."""

from __future__ import annotations

from enum import StrEnum

import discord
from discord import ui

from bot.datasets import Dataset, PendingUpload, UploadKind
from bot.datasets.resumable_uploads import Arrived
from bot.outbox.notification import Notification
from bot.ui.buttons import dataset_button
from bot.ui.discord_text import escape, mention, progress_bar
from bot.ui.layout import Color, MessageContent, box, layout, row, text_message
from trainer.protocol.hub import HubDatasetFacts
from trainer.protocol.progress import PreparePhase, PrepareProgress
from trainer.protocol.text import _, ngettext, percent, size


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
    #: The files came by the upload page.
    BY_PAGE = "by_page"


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


def upload_card(upload: PendingUpload, arrived: Arrived) -> MessageContent:
    """How much of an upload by page has arrived; edited, and deleted once its owner is answered."""
    who = mention(upload.owner_id)
    if arrived.progress is not None:
        return text_message(progress_words(upload.title, arrived.progress))
    if not upload.is_open:
        return text_message(_("⏳ The files of {who} are being examined.", who=who))
    share = arrived.arrived_bytes / arrived.bytes if arrived.bytes else 0.0
    text = ngettext(
        "📥 {who} is uploading {n} file on the upload page: {complete} of them has arrived.",
        "📥 {who} is uploading {n} files on the upload page: {complete} of them have arrived.",
        arrived.files,
        who=who,
        complete=f"{arrived.complete:,}",
    )
    amount = _("{arrived} of {all}", arrived=size(arrived.arrived_bytes), all=size(arrived.bytes))
    return text_message(f"{text}\n{progress_bar(share)} {amount}")


def upload_link(interaction_id: int, url: str, *, limit_bytes: int, days: int, sentence: str = "") -> MessageContent:
    """A link to the upload page, for one person; with why the files did not come as attachments."""
    what = _(
        "The upload page takes files and whole folders, up to {limit}. If the connection drops, the upload continues "
        "where it was. When all files are there, the answer comes into this channel.",
        limit=size(limit_bytes),
    )
    ends = ngettext(
        "Keep this link to yourself: others could act as you with it. It stops working {n} day after the last file.",
        "Keep this link to yourself: others could act as you with it. It stops working {n} days after the last file.",
        days,
    )
    link: ui.Button[ui.LayoutView] = ui.Button(url=url, label=_("Open the upload page"))
    renew = dataset_button(0, "upload_link", _("New link"), arg=interaction_id)
    cancel = dataset_button(0, "upload_end", _("Cancel upload"), arg=interaction_id)
    return MessageContent(
        layout=layout(*([sentence] if sentence else []), what, row(link, renew, cancel), f"-# {ends}")
    )


def hub_question(interaction_id: int, facts: HubDatasetFacts) -> MessageContent:
    """What a dataset of the Hugging Face hub is, asked before it is downloaded."""
    what = ngettext(
        "**[{name}]({page})** on Hugging Face has {n} file that I would use: {size}.",
        "**[{name}]({page})** on Hugging Face has {n} files that I would use: {size}.",
        facts.files,
        name=escape(facts.name),
        page=facts.page,
        size=size(facts.bytes),
    )
    rights = _("It names no license: ask its author whether you may train with these images.")
    if facts.license:
        name = escape(facts.license)
        rights = _("Its license is **{license}**: check that you may train with these images.", license=name)
    commit = facts.commit[:8]
    version = _("Nothing is downloaded yet. You get version {commit}, also if it changes later.", commit=commit)
    button = dataset_button(0, "hub_download", _("Download"), arg=interaction_id, style=discord.ButtonStyle.primary)
    return MessageContent(layout=layout(box(Color.NOTE, what, rights, f"-# {version}", row(button))))


def upload_cancelled() -> MessageContent:
    """The answer to [Cancel upload]."""
    return text_message(_("⬛ Cancelled: the link no longer opens, and what had arrived is deleted."))


def upload_answered_card() -> MessageContent:
    """In place of the card of an upload that was answered, until it is deleted."""
    return text_message(_("✅ This upload has arrived."))


def progress_words(title: str, progress: PrepareProgress) -> str:
    """How far the preparation of an upload has come, in place of "… is thinking"."""
    return f"⏳ **{escape(title, 100)}** · {progress_step(progress)}"


def progress_step(progress: PrepareProgress) -> str:
    """What a preparation does at the moment."""
    n, total = progress.done, progress.total
    match progress.phase:
        case PreparePhase.WAITING:
            return _("waiting: other datasets are examined first")
        case PreparePhase.DOWNLOADING:
            return _("downloading the files: {n} of {total}", n=n, total=total)
        case PreparePhase.READING:
            return _("reading the images: {n} of {total}", n=n, total=total)
        case PreparePhase.COMPARING:
            return _("looking for duplicates: {share}", share=percent(n / total if total else 1))
        case PreparePhase.DRAWING:
            return _("drawing the overview")
        case PreparePhase.CAPTIONING:
            return _("writing captions: {n} of {total}", n=n, total=total)


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
    return f"{_interrupted(upload, why)} {reason}{_page_keeps(upload)}"


def upload_incomplete(upload: PendingUpload) -> str:
    """The files are not there, and Discord's address for them may have expired."""
    arrived = _("I was restarted before **{title}** had arrived.", title=escape(upload.title))
    return f"{arrived} {_try_again(upload.kind)}"


def upload_failed(upload: PendingUpload, why: Unanswered) -> str:
    """The files became nothing, because of a bug."""
    again = _page_keeps(upload) or f" {_try_again(upload.kind)}"
    return f"{_interrupted(upload, why)} {_('Something broke on my side.')}{again}"


def _page_keeps(upload: PendingUpload) -> str:
    """That gigabytes need not be sent again; empty for attachments."""
    if not upload.is_by_page:
        return ""
    kept = _("The upload page still has your files: change them there, and finish the upload again.")
    return f"\n{kept}"


def _interrupted(upload: PendingUpload, why: Unanswered) -> str:
    title = escape(upload.title)
    if why is Unanswered.BY_PAGE:
        return _("**{title}** has arrived.", title=title)
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
