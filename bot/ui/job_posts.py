"""The posts of a training while it runs, and the message of each kind of notification."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import discord

from bot.outbox.notification import Notification, NotificationKind, Undelivered, UndeliveredReason
from bot.queue.domain.job import LIVING, EndReason, Job, State
from bot.queue.domain.verbs import Verb
from bot.ui.buttons import job_button
from bot.ui.discord_text import escape, hold_words, mention, sparkline, trend
from bot.ui.end_reasons import end_reason_text
from bot.ui.job_card import best_of, job_card, paused_line, state_words, validation_words
from bot.ui.job_context import JobContext
from bot.ui.job_endings import cancelled_post, done_post, failed_post, files_messages
from bot.ui.layout import Color, FileToSend, MessageContent, box, image_gallery, layout, row, sendable, text_message
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
)
from trainer.protocol.text import _, duration, listed, ngettext, rough_duration, verdict

#: Blocks of the model that a post names.
_MAX_BLOCKS = 8

_E = TypeVar("_E")


def card_message(job: Job, context: JobContext) -> MessageContent:
    """The live card of a training or of a study."""
    return job_card(job, context) if job.study is None else study_card(job, context)


def files_reply(job: Job, context: JobContext, events: Sequence[Event]) -> list[MessageContent]:
    """The files of a job for one person, or why there are none."""
    found = []
    if job.state in {State.SUCCEEDED, State.STOPPED}:
        found = files_messages(job, context, events) if job.study is None else study_files(job, context)
    if found:
        return found
    if job.state in LIVING:
        state = state_words(job)[1].lower()
        why = _("#{job} has no files yet ({state}): it exports them at its end.", job=job.id, state=state)
    elif job.state in {State.SUCCEEDED, State.STOPPED}:
        why = _("#{job} has exported no files. `/job status id:{job}` shows what it did.", job=job.id)
    else:
        why = _("#{job} has no files: it ended before it exported any.", job=job.id)
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
        case NotificationKind.FAILED:
            return failed_post(job, context, _first(events, Failed), detail)
        case NotificationKind.CANCELLED:
            return cancelled_post(job, context, _first(events, Stopped), detail)
        case NotificationKind.LOST:
            return lost_post(job, context, detail)
        case NotificationKind.PAUSED:
            return paused_post(job, context, detail)
        case _:
            return _progress_message(notification.kind, job, context, events)


def _progress_message(kind: NotificationKind, job: Job, context: JobContext, events: Sequence[Event]) -> MessageContent:
    match kind:
        case NotificationKind.BASE:
            return base_post(job, context, _first(events, Sampled), _first(events, BaseValidated))
        case NotificationKind.EPOCH:
            return epoch_post(job, context, _first(events, Sampled), [e for e in events if isinstance(e, EpochEnded)])
        case NotificationKind.EARLY_STOP:
            return early_stop_post(job, context, _required(events, StoppedEarly))
        case NotificationKind.STAGE:
            return stage_post(job, context, _required(events, StageBegan))
        case _:
            return warning_post(job, context, _required(events, Warned).message)


def _first(events: Sequence[Event], kind: type[_E]) -> _E | None:
    return next((event for event in events if isinstance(event, kind)), None)


def _required(events: Sequence[Event], kind: type[_E]) -> _E:
    event = _first(events, kind)
    assert event is not None, f"a notification without its {kind.__name__}"
    return event


def base_post(
    job: Job, context: JobContext, sampled: Sampled | None, validated: BaseValidated | None
) -> MessageContent:
    """The base model before the first step: its samples, and the loss that everything is measured by."""
    parts = [
        _("**before training**"),
        _("base {name}", name=escape(Path(job.spec.base.source).name, 60)),
    ]
    if validated:
        parts.append(_("every epoch is compared with it"))
    return _with_sheet(job, context, _line(job, *parts), sampled)


def epoch_post(job: Job, context: JobContext, sampled: Sampled | None, epochs: Sequence[EpochEnded]) -> MessageContent:
    """One epoch, the last of `epochs`, as one line and one image."""
    ended = epochs[-1]
    # The job may be epochs further; of what it keeps, the best may be older than all of `epochs`.
    by_number = {epoch.epoch: epoch for epoch in (*job.progress.epochs, *epochs) if epoch.epoch < ended.epoch}
    known = tuple(by_number[number] for number in sorted(by_number))
    history = (*known, ended)
    before = known[-1].train_loss if known else None
    line = _line(
        job,
        _("**epoch {epoch}/{epochs}**", epoch=ended.epoch, epochs=job.spec.training.epochs),
        _("training loss {loss}", loss=f"{ended.train_loss:.4f}") + trend(ended.train_loss, before),
        validation_words(ended, best_of(history)),
        *_measures(ended),
        duration(ended.seconds),
        sparkline([epoch.validation.ratio for epoch in history]),
    )
    return _with_sheet(job, context, line, sampled)


def _measures(ended: EpochEnded) -> list[str]:
    """`gap 4 %`, `accuracy 92 %`."""
    gap = [] if ended.gap is None else [_("gap {share}", share=f"{ended.gap:.0%}")]
    return gap + [f"{escape(name.replace('_', ' '), 30)} {share:.0%}" for name, share in ended.metrics.items()]


def early_stop_post(job: Job, context: JobContext, stopped: StoppedEarly) -> MessageContent:
    """Why a training ends before its last epoch, what is kept, and what that saved."""
    head = _("**early stop at epoch {epoch}/{epochs}**", epoch=stopped.epoch, epochs=job.spec.training.epochs)
    kept = _("Kept: epoch {epoch}, {verdict}", epoch=stopped.best_epoch, verdict=verdict(stopped.best_ratio))
    saved = ngettext(
        "saved {n} epoch, about {duration}",
        "saved {n} epochs, about {duration}",
        stopped.epochs_saved,
        duration=rough_duration(stopped.seconds_saved),
    )
    text = f"⏹ {_line(job, head)}\n{escape(stopped.reason, 400)}\n{kept} · {saved}"
    return _boxed(job, context, Color.STOPPING, text)


def stage_post(job: Job, context: JobContext, began: StageBegan) -> MessageContent:
    """What is trained from this epoch on, and how fast."""
    name = f" “{escape(began.name, 40)}”" if began.name else ""
    rate = _(
        "{weights} weights at lr {rate} ({optimizer}, {schedule})",
        weights=f"{began.trainable_parameters:,}",
        rate=f"{began.learning_rate:g}",
        optimizer=escape(began.optimizer, 40),
        schedule=escape(began.schedule, 40),
    )
    head = _(
        "**stage {number}{name}**, epochs {first}–{last}",
        number=began.stage,
        name=name,
        first=began.first_epoch,
        last=began.last_epoch,
    )
    blocks = listed([escape(part.name, 60) for part in began.parts if part.trainable], most=_MAX_BLOCKS)
    text = f"🔓 {_line(job, head, rate, f'{began.resolution} px')}\n-# {blocks}"
    return MessageContent(layout=layout(f"{text}\n-# {context.footer(job)}"), is_silent=True)


def warning_post(job: Job, context: JobContext, message: str) -> MessageContent:
    """A warning of the trainer."""
    return _boxed(job, context, Color.NOTE, f"⚠️ {_line(job, escape(message, 1000))}")


def lost_post(job: Job, context: JobContext, detail: str) -> MessageContent:
    """An attempt ended (its process died, or it failed in a way that may pass), and the job continues."""
    happened = detail or _("This attempt was lost; the job continues.")
    return _boxed(job, context, Color.NOTE, f"🔌 {_line(job, escape(happened, 1000))}")


def paused_post(job: Job, context: JobContext, detail: str) -> MessageContent:
    """Who paused a job, and how it continues; with buttons, because the card may be far up."""
    text = f"⏸️ {_line(job, paused_line(job, None))}"
    if detail:
        text += f" {escape(detail, 400)}"
    buttons = row(
        job_button(job.id, Verb.RESUME, _("Resume"), style=discord.ButtonStyle.success),
        job_button(job.id, Verb.CANCEL, _("Cancel"), style=discord.ButtonStyle.danger),
    )
    body = box(Color.WAITING, text, f"-# {context.footer(job)}", buttons)
    return MessageContent(layout=layout(body), is_silent=True)


def undelivered_post(notification: Notification, job: Job | None, marker: str) -> MessageContent:
    """Tells the owner, elsewhere, what could not be said in its channel, and where to find it meanwhile."""
    undelivered = notification.undelivered
    assert undelivered is not None
    name = "" if job is None else f"**#{job.id} {escape(job.name)}**"
    commands = ""
    match undelivered.kind:
        case NotificationKind.DONE:
            news = _("{job} is done.", job=name)
            commands = _("`/job files id:{job}` hands over its files.", job=notification.job_id)
        case NotificationKind.FAILED:
            news = _("{job} failed.", job=name)
            commands = _("`/job status id:{job}` says why.", job=notification.job_id)
        case NotificationKind.ANSWER:
            news = notification.detail
        case _:
            news = _("There is news of {job}.", job=name)
            commands = _("`/job status id:{job}` shows it.", job=notification.job_id)
    lines = [f"{mention(notification.owner_id)} {news}", _why_undelivered(undelivered), commands]
    body = box(Color.NOTE, "\n".join(line for line in lines if line), f"-# Darkroom · {marker}")
    return MessageContent(layout=layout(body), mentions=notification.owner_id)


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


def samples_alt(sampled: Sampled) -> str:
    """The sample sheet as text: prompts and seeds, in reading order."""
    samples = "; ".join(
        _("{number}. “{prompt}” (seed {seed})", number=number, prompt=each.prompt, seed=each.seed)
        for number, each in enumerate(sampled.samples, start=1)
    )
    when = _("Base model") if sampled.epoch == 0 else _("Epoch {epoch}", epoch=sampled.epoch)
    count = ngettext("{n} sample", "{n} samples", len(sampled.samples))
    return f"{when}, {count}: {samples}"


def _line(job: Job, *parts: str) -> str:
    """`**#42 fox** · …`."""
    return " · ".join([f"**#{job.id} {escape(job.name)}**", *parts])


def _boxed(job: Job, context: JobContext, color: Color, text: str) -> MessageContent:
    return MessageContent(layout=layout(box(color, text, f"-# {context.footer(job)}")), is_silent=True)


def _with_sheet(job: Job, context: JobContext, line: str, sampled: Sampled | None) -> MessageContent:
    footer = f"-# {context.footer(job)}"
    if sampled is None:
        return MessageContent(layout=layout(f"{line}\n{footer}"), is_silent=True)
    file = FileToSend(folder=context.job_dir, path=sampled.sheet, name=f"samples-e{sampled.epoch}.png")
    if not sendable([file], context.file_limit):
        note = _(
            "The sample sheet is missing or larger than this server accepts: {path}", path=escape(file.public_path)
        )
        return MessageContent(layout=layout(f"{line}\n-# {note}\n{footer}"), is_silent=True)
    body = layout(line, image_gallery(file, samples_alt(sampled)), footer)
    return MessageContent(layout=body, files=(file,), is_silent=True)
