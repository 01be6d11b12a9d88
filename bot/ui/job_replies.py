"""Answers to the person who asked something of a job: receipt, duplicate, samples, what a verb changed."""

from __future__ import annotations

import discord

from bot.errors import DuplicateJob
from bot.queue import Draft
from bot.queue.domain.job import Job, State, StopIntent
from bot.queue.domain.verbs import Verb
from bot.ui.buttons import dataset_button, job_button
from bot.ui.dataset_cards import dataset_words, size_words, skipped_lines
from bot.ui.discord_text import escape, mention, ordinal
from bot.ui.job_card import priority_words, settings_line, state_words
from bot.ui.job_context import JobContext, waiting_lines
from bot.ui.job_posts import samples_alt
from bot.ui.layout import (
    Color,
    FileToSend,
    MessageContent,
    box,
    image_gallery,
    layout,
    row,
    sendable,
    text_message,
)
from trainer.protocol.bucket_shapes import ResolutionFit
from trainer.protocol.events import Sampled
from trainer.protocol.report import DatasetReport
from trainer.protocol.text import _, ngettext


def receipt(job: Job, context: JobContext, report: DatasetReport, fit: ResolutionFit | None = None) -> MessageContent:
    """What was queued, its place in line, when it will start, and which images are used."""
    line = " · " + _("{ordinal} in line", ordinal=ordinal(context.position)) if context.position else ""
    lines = [
        f"✅ {_('**Queued #{job} “{name}”**', job=job.id, name=escape(job.name))}{line}",
        dataset_words(report),
        *([size_words(fit)] if fit else []),
        f"{_epochs_words(job)} · {settings_line(job)}",
    ]
    outlook = [*waiting_lines(job, context), *_queue_options(job)]
    body = box(
        Color.DONE,
        "\n".join(lines),
        "\n".join(outlook) or None,
        "\n".join(skipped_lines(report)) or None,
        row(job_button(job.id, Verb.CANCEL, _("Cancel"))),
    )
    return MessageContent(layout=layout(body))


def _epochs_words(job: Job) -> str:
    epochs = ngettext("{n} epoch", "{n} epochs", job.spec.training.epochs)
    stopping = job.spec.early_stopping
    if not stopping.enabled:
        return epochs
    return _("{epochs}, early stop after {patience} without gain", epochs=epochs, patience=stopping.patience)


def _queue_options(job: Job) -> list[str]:
    """`low priority · 2 GPUs`: what differs from the usual."""
    words = [priority_words(job), ngettext("{n} GPU", "{n} GPUs", job.gpus) if job.gpus > 1 else ""]
    line = " · ".join(part for part in words if part)
    return [line] if line else []


def queued_already(job_id: int) -> str:
    """The answer to a button of a request that is a job."""
    return _("This request is job #{job} already. /job status shows it.", job=job_id)


def duplicate_notice(error: DuplicateJob, draft: Draft) -> MessageContent:
    """The job that is the same, and the choice to queue it anyway; the draft keeps waiting."""
    job_id = error.job_id
    body = box(
        Color.NOTE,
        _("Same data and settings as **#{job}** ({state}). Nothing is queued.", job=job_id, state=error.state)
        + "\n-# "
        + _("It would give the same result. With another seed, other settings or other images it would not."),
        row(
            job_button(job_id, "open", _("Open #{job}", job=job_id)),
            dataset_button(
                draft.dataset_id, "again", _("Queue anyway"), arg=draft.id, style=discord.ButtonStyle.primary
            ),
        ),
    )
    return MessageContent(layout=layout(body))


# -- samples ------------------------------------------------------------------------------------------------------


def samples_reply(job: Job, context: JobContext, sampled: Sampled | None) -> MessageContent:
    """The newest sample sheet, for one person."""
    if sampled is None:
        return text_message(_("#{job} has drawn no samples yet.", job=job.id))
    if sampled.epoch == 0:
        when = _("samples before training (base model)")
    else:
        when = _("samples after epoch {epoch}", epoch=sampled.epoch)
    file = FileToSend(folder=context.job_dir, path=sampled.sheet, name=f"samples-e{sampled.epoch}.png")
    if not sendable([file], context.file_limit):
        return text_message(
            _(
                "The sample sheet of #{job} is missing or larger than this server accepts: {path}",
                job=job.id,
                path=escape(file.public_path),
            )
        )
    title = f"**#{job.id} {escape(job.name)}** · {when}"
    body = layout(title, image_gallery(file, samples_alt(sampled)), _prompt_lines(sampled, 150))
    return MessageContent(layout=body, files=(file,))


def shared_post(job: Job, context: JobContext, sampled: Sampled | None) -> MessageContent | None:
    """The newest samples for the whole channel, with owner, prompts and seeds; None if there are none to show."""
    if sampled is None:
        return None
    file = FileToSend(folder=context.job_dir, path=sampled.sheet, name=f"shared-{job.id}-e{sampled.epoch}.png")
    if not sendable([file], context.file_limit):
        return None
    if sampled.epoch == 0:
        when = _("the base model")
    else:
        when = _("epoch {epoch} of {epochs}", epoch=sampled.epoch, epochs=job.spec.training.epochs)
    title = _("**{name}** by {owner}", name=escape(job.name), owner=mention(job.owner_id))
    body = layout(
        f"🖼️ {title} · #{job.id}, {when} · {escape(job.dataset_name, 60)}",
        image_gallery(file, samples_alt(sampled)),
        _prompt_lines(sampled, 200),
        row(job_button(job.id, Verb.UNSHARE, _("Unshare"))),
    )
    return MessageContent(layout=body, files=(file,), is_silent=True)


def no_samples(job: Job) -> MessageContent:
    """The answer to a share of a job without samples."""
    return text_message(_("#{job} has no samples to show here yet; nothing was shared.", job=job.id))


def _prompt_lines(sampled: Sampled, limit: int) -> str:
    return "\n".join(
        f"-# {number}. {escape(each.prompt, limit)} · {_('seed {seed}', seed=each.seed)}"
        for number, each in enumerate(sampled.samples, start=1)
    )


# -- verbs --------------------------------------------------------------------------------------------------------


def verb_reply(verb: Verb, before: Job, after: Job, position: int | None = None) -> str:
    """What `verb` changed, or the job's state if it changed nothing."""
    job = after.id
    match verb:
        case Verb.CANCEL | Verb.KEEP_BEST | Verb.PAUSE:
            return stop_reply(verb, before, after)
        case Verb.RESUME | Verb.RETRY | Verb.EXTEND:
            return _restart_reply(verb, before, after, position)
        case Verb.PIN if before.is_pinned:
            return _("📌 #{job} is pinned already: its files are kept, whatever the limits say.", job=job)
        case Verb.PIN:
            return _("📌 #{job} is pinned: its files are kept, whatever the limits say.", job=job)
        case Verb.UNPIN if before.is_pinned:
            return _("#{job} is no longer pinned.", job=job)
        case Verb.UNPIN:
            return _("#{job} is not pinned.", job=job)
        case Verb.SHARE:
            return _("#{job} is shared already; its files are kept.", job=job)
        case Verb.UNSHARE if before.is_shared:
            return _("#{job} is no longer shared. To remove its images, press [Unshare] below them.", job=job)
        case Verb.UNSHARE:
            return _("#{job} is not shared.", job=job)


def stop_reply(verb: Verb, before: Job, after: Job) -> str:
    """What a cancel, a pause, or an early end changed."""
    job = after.id
    if before.state.is_end:
        return _("#{job} has already ended: {state}.", job=job, state=_state(before))
    if after.state is State.STOPPING:
        return _stopping_reply(before, after)
    if after.state is State.CANCELLED:
        return _("⬛ #{job} is cancelled; it no longer waits.", job=job)
    if after.state is State.PAUSED and before.state is State.PAUSED:
        return _("⏸️ #{job} is paused already. /job resume continues it.", job=job)
    if after.state is State.PAUSED:
        return _("⏸️ #{job} is paused. /job resume continues it.", job=job)
    if verb is Verb.KEEP_BEST and after.stop_intent is StopIntent.KEEP_BEST:
        return _("🟠 #{job} will test and export its best epoch as soon as there is room.", job=job)
    return _("#{job} continues: {state}.", job=job, state=_state(after))


def _stopping_reply(before: Job, after: Job) -> str:
    job = after.id
    if before.state is State.STOPPING and before.stop_intent == after.stop_intent:
        return _("#{job} is already {state}.", job=job, state=_state(after))
    match after.stop_intent:
        case StopIntent.KEEP_BEST:
            return _("🟠 #{job} stops here; its best epoch is tested and exported.", job=job)
        case StopIntent.PAUSE:
            return _("🟠 #{job} pauses after this step and keeps its checkpoint; its GPU is free then.", job=job)
        case _:
            return _("🟠 #{job} stops after this step and keeps its checkpoint.", job=job)


def _restart_reply(verb: Verb, before: Job, after: Job, position: int | None) -> str:
    job = after.id
    if verb is Verb.EXTEND:
        return _extend_reply(before, after, position)
    if before.state is after.state and verb is Verb.RESUME:
        return _("#{job} is not paused: {state}.", job=job, state=_state(after))
    if before.state is after.state:
        return _("#{job} is not failed or cancelled: {state}.", job=job, state=_state(after))
    has_checkpoint = bool(after.progress.epochs)
    if verb is Verb.RESUME and has_checkpoint:
        reply = _("🕓 #{job} continues from its checkpoint", job=job)
    elif verb is Verb.RESUME:
        reply = _("🕓 #{job} continues from its start", job=job)
    elif has_checkpoint:
        reply = _("🕓 #{job} is tried again from its checkpoint", job=job)
    else:
        reply = _("🕓 #{job} is tried again from its start", job=job)
    return _in_line(reply, position)


def _extend_reply(before: Job, after: Job, position: int | None) -> str:
    job = after.id
    if after.study is not None:
        return _("#{job} is a study: its runs are compared with each other, so they are not extended.", job=job)
    if before.round == after.round:
        return _("Only a finished training is extended, and #{job} is not: {state}.", job=job, state=_state(after))
    reply = _(
        "🕓 #{job} goes on from epoch {epoch} to epoch {epochs}",
        job=job,
        epoch=after.progress.kept_epoch,
        epochs=after.spec.training.epochs,
    )
    return _in_line(reply, position)


def _in_line(reply: str, position: int | None) -> str:
    return f"{reply}, {_('{ordinal} in line', ordinal=ordinal(position))}." if position else f"{reply}."


def _state(job: Job) -> str:
    words = state_words(job)[1]
    return words[:1].lower() + words[1:]
