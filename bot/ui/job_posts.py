"""The posts of a training while it runs, and the message of each kind of notification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import discord
from discord import ui

from bot.outbox.notification import Notification, NotificationKind, Undelivered, UndeliveredReason
from bot.publishing import Publication
from bot.queue.domain.job import LIVING, EndReason, Job, State
from bot.queue.domain.verbs import Verb
from bot.ui.buttons import job_button
from bot.ui.discord_text import escape, hold_words, mention
from bot.ui.end_reasons import end_reason_text
from bot.ui.job_card import base_name, best_of, in_sentence, job_card, metric_words, paused_line, state_words
from bot.ui.job_context import JobContext, job_name
from bot.ui.job_endings import cancelled_post, done_post, failed_post, files_messages
from bot.ui.layout import Color, FileToSend, MessageContent, box, image_gallery, layout, row, sendable, text_message
from bot.ui.notify_pages import called_post
from bot.ui.publication_pages import published_post
from bot.ui.remedies import remedy_buttons
from bot.ui.sample_pages import images_messages, sample_card, sampling_failed_post
from bot.ui.study_card import study_card, study_files, study_post
from trainer.protocol.events import (
    BaseValidated,
    EpochEnded,
    Event,
    Failed,
    Sampled,
    StageBegan,
    Stopped,
    StoppedEarly,
    Warned,
    all_of,
    last_of,
)
from trainer.protocol.text import _, listed, ngettext, rough_duration, verdict

#: Blocks of the model that a post names.
_MAX_BLOCKS = 8
#: How much better a training is on its own images than on others before that is worth a warning, and by how much that
#: must have grown since its best epoch.
_MEMORIZING_GAP, _GROWN_GAP = 0.25, 0.05

_E = TypeVar("_E", StoppedEarly, StageBegan, Warned)


def card_message(job: Job, context: JobContext) -> MessageContent:
    """The live card of a job: a training, a study, or a sampling."""
    if job.is_sampling:
        return sample_card(job, context)
    return job_card(job, context) if job.study is None else study_card(job, context)


def files_reply(job: Job, context: JobContext, events: Sequence[Event]) -> list[MessageContent]:
    """The files of a job for one person, or why there are none."""
    if job.is_sampling:
        return images_messages(job, context)
    found = []
    if job.state in {State.SUCCEEDED, State.STOPPED}:
        found = files_messages(job, context, events) if job.study is None else study_files(job, context)
    if found:
        return found
    if job.state in LIVING:
        state = in_sentence(state_words(job)[1])
        why = _("#{job} has no files yet ({state}). It saves them when it ends.", job=job.id, state=state)
    elif job.state in {State.SUCCEEDED, State.STOPPED}:
        why = _("#{job} has saved no files. `/job status id:{job}` shows what it did.", job=job.id)
    else:
        why = _("#{job} has no files: it ended before it saved any.", job=job.id)
    return [text_message(why)]


def notification_message(
    notification: Notification,
    job: Job,
    context: JobContext,
    *,
    events: Sequence[Event] = (),
    reason: EndReason | None = None,
) -> MessageContent:
    """The message of a notification about a job.

    Args:
        notification: What happened; not a card.
        job: The job as it is now.
        context: What else the message needs.
        events: The events that it shows (`JobStore.events_of`).
        reason: Why the attempt ended, if that is not in the events.
    """
    detail = "" if reason is None else end_reason_text(reason)
    match notification.kind:
        case NotificationKind.DONE if job.study is not None:
            return study_post(job, context)
        case NotificationKind.DONE:
            return done_post(job, context, events)
        case NotificationKind.FAILED if job.is_sampling:
            return sampling_failed_post(job, last_of(events, Failed), detail)
        case NotificationKind.FAILED:
            return failed_post(job, context, last_of(events, Failed), detail)
        case NotificationKind.CANCELLED:
            return cancelled_post(job, context, last_of(events, Stopped), detail)
        case NotificationKind.LOST:
            return lost_post(job, context, detail)
        case NotificationKind.PAUSED:
            return paused_post(job, context, detail)
        case NotificationKind.PUBLISHED:
            return published_post(job, Publication.model_validate_json(notification.detail))
        case NotificationKind.QUEUED | NotificationKind.STARTED:
            return called_post(notification, job)
        case _:
            return _progress_message(notification, job, context, events)


def _progress_message(
    notification: Notification, job: Job, context: JobContext, events: Sequence[Event]
) -> MessageContent:
    match notification.kind:
        case NotificationKind.BASE:
            return base_post(job, context, last_of(events, Sampled), last_of(events, BaseValidated))
        case NotificationKind.EPOCH:
            ended = all_of(events, EpochEnded)
            return epoch_post(job, context, last_of(events, Sampled), ended, notification.epochs)
        case NotificationKind.EARLY_STOP:
            return early_stop_post(job, context, _required(events, StoppedEarly))
        case NotificationKind.STAGE:
            return stage_post(job, context, _required(events, StageBegan))
        case _:
            return warning_post(job, context, _required(events, Warned))


def _required(events: Sequence[Event], kind: type[_E]) -> _E:
    event = last_of(events, kind)
    assert event is not None, f"a notification without its {kind.__name__}"
    return event


def base_post(
    job: Job, context: JobContext, sampled: Sampled | None, validated: BaseValidated | None
) -> MessageContent:
    """The base model before the first step: its samples, which everything is compared with."""
    text = _("**Before training** · {base}", base=base_name(job.spec))
    if validated:
        text += "\n" + _("This is what the base model draws. Every epoch is compared with it.")
    return _with_sheet(job, context, text, sampled)


def epoch_post(
    job: Job, context: JobContext, sampled: Sampled | None, epochs: Sequence[EpochEnded], count: int = 1
) -> MessageContent:
    """The last of `epochs` as one line and one image; short epochs share a post, and it stands for the last `count`."""
    ended = epochs[-1]
    # The job may be epochs further; of what it keeps, the best may be older than all of `epochs`.
    by_number = {epoch.epoch: epoch for epoch in (*job.progress.epochs, *epochs) if epoch.epoch < ended.epoch}
    history = (*(by_number[number] for number in sorted(by_number)), ended)
    values = {"epoch": ended.epoch, "epochs": job.spec.training.epochs}
    if count > 1:
        head = _("**Epochs {first} to {epoch} of {epochs}**", first=ended.epoch - count + 1, **values)
    else:
        head = _("**Epoch {epoch} of {epochs}**", **values)
    line = " · ".join([head, epoch_words(ended, history, count), *metric_words(_shown(ended.metrics))])
    if warning := memorizing_words(ended, history):
        line += f"\n⚠️ {warning}"
    return _with_sheet(job, context, line, sampled)


def epoch_words(ended: EpochEnded, history: Sequence[EpochEnded], count: int = 1) -> str:
    """How good an epoch is: `42 % better than the base model ★ new best`.

    A star is for the first epoch that is better than the base model, and for each that is better than all before it.
    """
    words = verdict(ended.validation.ratio)
    best = best_of(tuple(history))
    if best is None or not best.validation.ratio < 1:
        return words
    if best.epoch > ended.epoch - count:
        return _("{words} ★ new best", words=verdict(best.validation.ratio))
    return _("{words}; epoch {epoch} is still the best", words=words, epoch=best.epoch)


def memorizing_words(ended: EpochEnded, history: Sequence[EpochEnded]) -> str:
    """A warning if the training only gets better on its own images; empty if it does not."""
    best = best_of(tuple(history))
    if best is None or best.epoch == ended.epoch or ended.gap is None or best.gap is None:
        return ""
    if ended.gap < _MEMORIZING_GAP or ended.gap < best.gap + _GROWN_GAP:
        return ""
    return _(
        "It begins to memorize its training images: new ones do not get better. Epoch {epoch} is kept.",
        epoch=best.epoch,
    )


def _shown(metrics: Mapping[str, float]) -> Mapping[str, float]:
    """Of several measures, the one that counts all classes alike."""
    name = "balanced_accuracy"
    return {name: metrics[name]} if name in metrics else metrics


def early_stop_post(job: Job, context: JobContext, stopped: StoppedEarly) -> MessageContent:
    """Why a training ends before its last epoch, what is kept, and what that saved; with what else may follow."""
    lines = [
        _("### ⏹ Stopped early after epoch {epoch} of {epochs}", epoch=stopped.epoch, epochs=job.spec.training.epochs),
        escape(stopped.reason, 400),
        _("**Kept: epoch {epoch}**, {verdict}.", epoch=stopped.best_epoch, verdict=verdict(stopped.best_ratio)),
        ngettext(
            "That saves {n} epoch, about {duration}.",
            "That saves {n} epochs, about {duration}.",
            stopped.epochs_saved,
            duration=rough_duration(stopped.seconds_saved),
        ),
    ]
    buttons = row(
        job_button(job.id, "files", _("Use epoch {epoch}", epoch=stopped.best_epoch), emoji="📦"),
        job_button(job.id, "compare", _("Compare")),
        job_button(job.id, "continue", _("Continue")),
    )
    return _boxed(Color.WORKING, "\n".join(lines), buttons)


def stage_post(job: Job, context: JobContext, began: StageBegan) -> MessageContent:
    """What is trained from this epoch on, and how fast."""
    values = {"number": began.stage, "first": began.first_epoch, "last": began.last_epoch}
    if began.name:
        name = escape(began.name, 40)
        head = _("🔓 **Stage {number}, “{name}”**: epochs {first} to {last}", name=name, **values)
    else:
        head = _("🔓 **Stage {number}**: epochs {first} to {last}", **values)
    rate = _(
        "{weights} weights are trained at {px} px, learning rate {rate} ({optimizer}, {schedule}).",
        weights=f"{began.trainable_parameters:,}",
        px=began.resolution,
        rate=f"{began.learning_rate:g}",
        optimizer=escape(began.optimizer, 40),
        schedule=escape(began.schedule, 40),
    )
    blocks = listed([escape(part.name, 60) for part in began.parts if part.trainable], most=_MAX_BLOCKS)
    return MessageContent(layout=layout(f"{head}\n-# {rate}\n-# {blocks}"), is_silent=True)


def warning_post(job: Job, context: JobContext, warned: Warned) -> MessageContent:
    """A warning of the trainer, with a button for what helps against it."""
    buttons = remedy_buttons(job, warned.kind)
    text = f"⚠️ {job_name(job)}: {escape(warned.message, 1000)}"
    return _boxed(Color.NOTE, text, row(*buttons) if buttons else None)


def lost_post(job: Job, context: JobContext, detail: str) -> MessageContent:
    """An attempt ended (its process died, or it failed in a way that may pass), and the job continues."""
    happened = escape(detail, 1000) if detail else _("This attempt was lost. The training continues.")
    return _boxed(Color.NOTE, f"🔌 {job_name(job)}: {happened}")


def paused_post(job: Job, context: JobContext, detail: str) -> MessageContent:
    """Who paused a job, and how it continues; with buttons, because the card may be far up."""
    text = f"⏸️ {job_name(job)}: {paused_line(job, None)}"
    if detail:
        text += f" {escape(detail, 400)}"
    buttons = row(
        job_button(job.id, Verb.RESUME, _("Resume"), style=discord.ButtonStyle.success),
        job_button(job.id, Verb.CANCEL, _("Cancel"), style=discord.ButtonStyle.danger),
    )
    return _boxed(Color.WAITING, text, buttons)


def undelivered_post(notification: Notification, job: Job | None) -> MessageContent:
    """Notifies the owner, elsewhere, of what could not be posted in its channel, and where to find it meanwhile."""
    undelivered = notification.undelivered
    assert undelivered is not None
    name = "" if job is None else job_name(job)
    commands = ""
    match undelivered.kind:
        case NotificationKind.DONE:
            news = _("{job} is done.", job=name)
            commands = _("`/job files id:{job}` gives you its files.", job=notification.job_id)
        case NotificationKind.FAILED:
            news = _("{job} failed.", job=name)
            commands = _("`/job status id:{job}` says why.", job=notification.job_id)
        case NotificationKind.ANSWER:
            news = notification.detail
        case _:
            news = _("There is news of {job}.", job=name)
            commands = _("`/job status id:{job}` shows it.", job=notification.job_id)
    lines = [f"{mention(notification.owner_id)} {news}", _why_undelivered(undelivered), commands]
    body = box(Color.NOTE, "\n".join(line for line in lines if line))
    return MessageContent(layout=layout(body), mentions=(notification.owner_id,))


def _why_undelivered(undelivered: Undelivered) -> str:
    channel = f"<#{undelivered.channel_id}>"
    match undelivered.reason:
        case UndeliveredReason.HELD:
            assert undelivered.hold is not None
            why = hold_words(undelivered.hold)
            return _(
                "I cannot post in {channel} now: {why}. I will post it there as soon as I can.",
                channel=channel,
                why=why,
            )
        case UndeliveredReason.GONE:
            return _("I could not post it: its channel was deleted.")
        case UndeliveredReason.FAILED:
            return _("I could not post it in {channel}; /admin health says why.", channel=channel)


def sheet_file(context: JobContext, sampled: Sampled) -> FileToSend:
    """The sample sheet of an epoch."""
    return FileToSend(folder=context.job_dir, path=sampled.sheet, name=f"samples-e{sampled.epoch}.png")


def samples_alt(sampled: Sampled) -> str:
    """The sample sheet as text: prompts and seeds, in reading order."""
    samples = "; ".join(
        _("{number}. “{prompt}” (seed {seed})", number=number, prompt=each.prompt, seed=each.seed)
        for number, each in enumerate(sampled.samples, start=1)
    )
    when = _("Base model") if sampled.epoch == 0 else _("Epoch {epoch}", epoch=sampled.epoch)
    count = ngettext("{n} sample", "{n} samples", len(sampled.samples))
    return f"{when}, {count}: {samples}"


def _boxed(color: Color, *parts: ui.Item[Any] | str | None) -> MessageContent:
    return MessageContent(layout=layout(box(color, *parts)), is_silent=True)


def _with_sheet(job: Job, context: JobContext, text: str, sampled: Sampled | None) -> MessageContent:
    text = f"{job_name(job)} · {text}"
    if sampled is None:
        return MessageContent(layout=layout(text), is_silent=True)
    file = sheet_file(context, sampled)
    if not sendable([file], context.file_limit):
        note = _("The samples are missing, or too large for this server: {path}", path=escape(file.public_path))
        return MessageContent(layout=layout(f"{text}\n-# {note}"), is_silent=True)
    body = layout(text, image_gallery(file, samples_alt(sampled)))
    return MessageContent(layout=body, files=(file,), is_silent=True)
