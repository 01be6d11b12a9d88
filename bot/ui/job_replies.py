"""Answers to the person who asked something of a job: receipt, duplicate, samples, what a verb changed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import discord

from bot.errors import DuplicateJob, JobRefused
from bot.queue import Draft
from bot.queue.domain.job import Job, State, StopIntent
from bot.queue.domain.verbs import Verb, is_applicable, is_drawable
from bot.ui.buttons import dataset_button, job_button, page_button
from bot.ui.dataset_cards import dataset_words, skipped_lines
from bot.ui.dataset_forms import Form, FormCallback
from bot.ui.discord_text import escape
from bot.ui.job_card import (
    best_of,
    has_checkpoint,
    in_sentence,
    priority_words,
    rank_words,
    rates_words,
    settings_line,
    state_name,
    state_words,
)
from bot.ui.job_context import JobContext, job_name, position_words, waiting_lines
from bot.ui.job_posts import samples_alt, sheet_file
from bot.ui.layout import (
    Color,
    MessageContent,
    box,
    image_gallery,
    images_gallery,
    layout,
    row,
    sendable,
    text_message,
)
from bot.ui.remedies import next_step_buttons
from bot.ui.sample_pages import COMPARE_EPOCHS, drawing_buttons
from bot.ui.training_plan import plan_lines
from trainer.protocol.bucket_shapes import ResolutionFit
from trainer.protocol.events import Sampled
from trainer.protocol.report import DatasetReport
from trainer.protocol.spec import continues_exactly
from trainer.protocol.text import _, duration, listed, ngettext, rough_duration, size, verdict

#: Verb of the button that cancels without a further question.
CANCEL_NOW = "cancel_now"
#: Epochs that the details list.
_SHOWN_EPOCHS = 8


def receipt(
    job: Job,
    context: JobContext,
    report: DatasetReport,
    fit: ResolutionFit | None = None,
    memory: int | None = None,
) -> MessageContent:
    """What was queued, its position in line, when it will start, what it trains, and on which images."""
    line = " · " + position_words(context.position) if context.position else ""
    outlook = [*waiting_lines(job, context), *_queue_options(job)]
    body = box(
        Color.DONE,
        f"✅ {_('**Queued #{job} “{name}”**', job=job.id, name=escape(job.name))}{line}",
        "\n".join(outlook) or None,
        "\n".join(plan_lines(job.spec, report, fit, memory)),
        "\n".join([dataset_words(report), *skipped_lines(report)]),
        row(
            job_button(job.id, "open", _("Open card")),
            job_button(job.id, "details", _("Details")),
            job_button(job.id, Verb.CANCEL, _("Cancel"), style=discord.ButtonStyle.danger),
        ),
    )
    return MessageContent(layout=layout(body))


def _queue_options(job: Job) -> list[str]:
    """`Low priority · 2 GPUs`: what differs from the usual."""
    words = [priority_words(job), ngettext("{n} GPU", "{n} GPUs", job.gpus) if job.gpus > 1 else ""]
    line = " · ".join(part for part in words if part)
    return [line[:1].upper() + line[1:]] if line else []


def queued_already(job_id: int) -> str:
    """The answer to a button of a request that is a job."""
    return _("This request is already queued as #{job}. /job status shows it.", job=job_id)


def duplicate_notice(error: DuplicateJob, draft: Draft) -> MessageContent:
    """The job that is the same, and the choice to queue it anyway; the draft keeps waiting."""
    job_id = error.job_id
    body = box(
        Color.NOTE,
        _(
            "**#{job}** has the same images and settings ({state}). Nothing was queued.",
            job=job_id,
            state=state_name(State(error.state)),
        )
        + "\n-# "
        + _("Running it again would give the same result. Change the seed, a setting or the images for something new."),
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
    when = _("what the base model draws") if sampled.epoch == 0 else _("epoch {epoch}", epoch=sampled.epoch)
    file = sheet_file(context, sampled)
    if not sendable([file], context.file_limit):
        return text_message(
            _(
                "The samples of #{job} are missing, or too large for this server: {path}",
                job=job.id,
                path=escape(file.public_path),
            )
        )
    title = f"{job_name(job)} · {when}"
    body = layout(
        title,
        image_gallery(file, samples_alt(sampled)),
        _prompt_lines(sampled, 150),
        row(*drawing_buttons(job.id)) if is_drawable(job) else None,
    )
    return MessageContent(layout=body, files=(file,))


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
            return _("📌 #{job} is already pinned: its files are never cleaned up.", job=job)
        case Verb.PIN:
            return _("📌 #{job} is pinned: its files will never be cleaned up.", job=job)
        case Verb.UNPIN if before.is_pinned:
            return _("#{job} is no longer pinned.", job=job)
        case Verb.UNPIN:
            return _("#{job} is not pinned.", job=job)
        case Verb.SHARE | Verb.UNSHARE:
            return _("#{job} is not shared.", job=job)


def stop_reply(verb: Verb, before: Job, after: Job) -> str:
    """What a cancel, a pause, or an early end changed."""
    job = after.id
    if before.state.is_end:
        return _("#{job} has already ended: {state}.", job=job, state=_state(before))
    if after.state is State.STOPPING:
        return _stopping_reply(before, after)
    if after.state is State.CANCELLED:
        return _("🚫 #{job} is cancelled and no longer waits.", job=job)
    if after.state is State.PAUSED and before.state is State.PAUSED:
        return _("⏸️ #{job} is already paused. /job resume continues it.", job=job)
    if after.state is State.PAUSED:
        return _("⏸️ #{job} is paused. /job resume continues it.", job=job)
    if verb is Verb.KEEP_BEST and after.stop_intent is StopIntent.KEEP_BEST:
        return _("🟠 #{job} will test and save its best epoch as soon as a GPU is free.", job=job)
    return _("#{job} continues: {state}.", job=job, state=_state(after))


def _stopping_reply(before: Job, after: Job) -> str:
    job = after.id
    if before.state is State.STOPPING and before.stop_intent == after.stop_intent:
        return _("#{job} is already {state}.", job=job, state=_state(after))
    if after.is_sampling:
        return _("🟠 #{job} stops after this image. Those that are drawn are kept.", job=job)
    match after.stop_intent:
        case StopIntent.KEEP_BEST:
            return _("🟠 #{job} stops here. Its best epoch is tested and saved.", job=job)
        case StopIntent.PAUSE:
            return _("🟠 #{job} pauses after this step and keeps what it has learned. Then its GPU is free.", job=job)
        case _:
            return _(
                "🟠 #{job} stops after this step. What it has learned is kept, so Retry continues from there.", job=job
            )


def _restart_reply(verb: Verb, before: Job, after: Job, position: int | None) -> str:
    job = after.id
    if verb is Verb.EXTEND:
        return _extend_reply(before, after, position)
    # Not by the state after it, which a running training changes in the meantime.
    if before.state is not State.PAUSED and verb is Verb.RESUME:
        return _("#{job} is not paused: {state}.", job=job, state=_state(after))
    if before.state not in {State.FAILED, State.CANCELLED} and verb is Verb.RETRY:
        return _(
            "Only a failed or cancelled training can be retried, and #{job} is not: {state}.",
            job=job,
            state=_state(after),
        )
    if before.is_sampling:
        reply = _("🕓 #{job} continues with the images that are missing", job=job)
    elif has_checkpoint(before):
        reply = _("🕓 #{job} continues where it stopped", job=job)
    else:
        reply = _("🕓 #{job} starts again from the beginning", job=job)
    return _in_line(reply, position)


def _extend_reply(before: Job, after: Job, position: int | None) -> str:
    job = after.id
    if after.study is not None:
        return _("#{job} is a study: its runs are compared with each other, so they are not extended.", job=job)
    if before.round == after.round:
        return _("Only a finished training can be extended, and #{job} is not: {state}.", job=job, state=_state(after))
    reply = _(
        "🕓 #{job} continues from epoch {epoch} to epoch {epochs}",
        job=job,
        epoch=after.progress.kept_epoch,
        epochs=after.spec.training.epochs,
    )
    trained = after.progress.kept_epoch
    if continues_exactly(before.spec, trained=trained, epochs=after.spec.training.epochs - trained):
        words = _("It continues exactly as if it had been planned longer.")
    else:
        words = _(
            "It keeps what it has learned. Its learning rate starts again from the beginning of its schedule, so the "
            "result is not exactly that of one longer training."
        )
    return f"{_in_line(reply, position)} {words}"


def epochs_form(submitted: FormCallback, job: Job) -> Form:
    """How many more epochs to train."""
    form = Form(_("More epochs for #{job} {name}", job=job.id, name=job.name), submitted)
    form.add_text(
        "epochs",
        _("How many more epochs"),
        ngettext(
            "It has trained {n} epoch so far, and continues with what it has learned.",
            "It has trained {n} epochs so far, and continues with what it has learned.",
            job.progress.kept_epoch,
        ),
        placeholder=str(max(1, job.progress.kept_epoch // 2)),
        max_length=4,
    )
    return form


def epochs_of(form: Form, job: Job) -> int:
    """Return what was typed into `epochs_form`; left empty, it is the number that the form proposes.

    Raises:
        JobRefused: It is no number.
    """
    typed = form.texts["epochs"].strip() or str(max(1, job.progress.kept_epoch // 2))
    if not typed.isascii() or not typed.isdigit() or int(typed) < 1:
        raise JobRefused(_("Type how many more epochs as a whole number, such as 5. Nothing was queued."))
    return int(typed)


def _in_line(reply: str, position: int | None) -> str:
    if not position:
        return f"{reply}."
    return _("{reply}, {position}.", reply=reply, position=position_words(position))


def _state(job: Job) -> str:
    return in_sentence(state_words(job)[1])


# -- details, and questions before something is stopped -------------------------------------------------------------


def details_reply(job: Job, context: JobContext) -> MessageContent:
    """The numbers of a training, for those who want them; and its log."""
    body = box(
        state_words(job)[2],
        f"### {_('#{job} {name} in numbers', job=job.id, name=escape(job.name))}",
        "\n".join(_number_lines(job)) or None,
        "\n".join(_epoch_lines(job)) or None,
        "\n".join(f"-# {line}" for line in _setting_lines(job)),
        row(
            job_button(job.id, "log", _("Log")),
            job_button(job.id, "history", _("History")),
            *([page_button(job.id)] if context.has_pages else []),
            *([job_button(job.id, COMPARE_EPOCHS, _("Compare epochs"))] if is_drawable(job) else []),
        ),
        row(*next_step_buttons(job, has_hub=context.has_hub)) if job.study is None else None,
    )
    return MessageContent(layout=layout(body))


def _number_lines(job: Job) -> list[str]:
    step, newest = job.progress.step, job.progress.epoch
    lines = []
    if step:
        lines.append(
            _(
                "Step {step} of {steps}, training loss {loss}, {rate} steps a second",
                step=f"{step.step:,}",
                steps=f"{job.progress.total_steps:,}",
                loss=f"{step.loss:.4f}",
                rate=f"{step.steps_per_s:.2g}",
            )
        )
        memory, batch = size(step.peak_memory_bytes), job.progress.micro_batch_size
        lines.append(
            ngettext(
                "{memory} of memory at most, {n} image in memory at once",
                "{memory} of memory at most, {n} images in memory at once",
                batch,
                memory=memory,
            )
            if batch
            else _("{memory} of memory at most", memory=memory)
        )
    if newest:
        measured = newest.validation
        lines.append(
            _(
                "Epoch {epoch} on images held back: {verdict}",
                epoch=newest.epoch,
                verdict=verdict(measured.ratio, measured.ratio_low, measured.ratio_high),
            )
        )
        if newest.gap is not None:
            lines.append(_("Gap between its training images and new ones: {gap} %", gap=f"{100 * newest.gap:.0f}"))
    if job.slots:
        lines.append(_("Place: {slots}", slots=listed([escape(name, 60) for name in job.slots], most=4)))
    return lines


def _epoch_lines(job: Job) -> list[str]:
    """The newest epochs, a line each."""
    lines = [
        _(
            "-# Epoch {epoch}: training loss {loss}, {verdict}, {duration}",
            epoch=each.epoch,
            loss=f"{each.train_loss:.4f}",
            verdict=verdict(each.validation.ratio),
            duration=duration(each.seconds),
        )
        for each in job.progress.epochs[-_SHOWN_EPOCHS:]
    ]
    return [_("**Newest epochs**"), *lines] if lines else []


def _setting_lines(job: Job) -> list[str]:
    spec = job.spec
    parts = (
        settings_line(job),
        " · ".join(
            part
            for part in (
                _("method {method}", method=spec.method.kind),
                rank_words(spec),
                _("learning rate {rate}", rate=rates_words(spec)),
                ngettext("{n} image a step", "{n} images a step", spec.training.batch_size),
                _("seed {seed}", seed=spec.training.seed),
            )
            if part
        ),
    )
    return list(parts)


def stop_question(job: Job, now: datetime) -> MessageContent:
    """How to stop a job: what each way keeps. The buttons act at once."""
    lines, buttons = [_trained_words(job, now)], []
    if is_applicable(Verb.KEEP_BEST, job):
        lines.append(_("**Stop early**: test the best epoch so far and save its files."))
        buttons.append(job_button(job.id, Verb.KEEP_BEST, _("Stop early"), style=discord.ButtonStyle.primary))
    if is_applicable(Verb.PAUSE, job):
        lines.append(_("**Pause**: free its place, and continue later with /job resume."))
        buttons.append(job_button(job.id, Verb.PAUSE, _("Pause")))
    if is_applicable(Verb.CANCEL, job):
        lines.append(
            _("**Cancel**: end it without files. What it has learned is kept for a retry.")
            if spent_s(job, now)
            else _("**Cancel**: take it out of the queue.")
        )
        buttons.append(job_button(job.id, CANCEL_NOW, _("Cancel"), style=discord.ButtonStyle.danger))
    if not buttons:
        return text_message(stop_reply(Verb.CANCEL, job, job))
    return MessageContent(layout=layout(box(Color.STOPPING, "\n".join(lines), row(*buttons))))


def _trained_words(job: Job, now: datetime) -> str:
    name, spent = escape(job.name), spent_s(job, now)
    if not spent:
        return _("**#{job} {name}** has not trained yet.", job=job.id, name=name)
    return _("**#{job} {name}** has trained for {duration}.", job=job.id, name=name, duration=rough_duration(spent))


def spent_s(job: Job, now: datetime) -> float:
    """Seconds that a job has trained; of a study, since its first run began."""
    if job.study is not None:
        return (now - job.started_at).total_seconds() if job.started_at and not job.state.is_end else 0.0
    return job.progress.step.elapsed_s if job.progress.step else 0.0


def compare_reply(job: Job, context: JobContext, sampled: Sequence[Sampled]) -> MessageContent:
    """The samples of the base model, of the best epoch and of the last one, for one person."""
    best, newest = best_of(job.progress.epochs), job.progress.epoch
    wanted = [0, *([best.epoch] if best else []), *([newest.epoch] if newest else [])]
    drawn = {each.epoch: each for each in sampled}
    shown = [drawn[epoch] for epoch in dict.fromkeys(wanted) if epoch in drawn]
    files = [(each, sheet_file(context, each)) for each in shown]
    kept = sendable([file for _each, file in files], context.file_limit)
    images = [(file, samples_alt(each)) for each, file in files if file in kept]
    if not images:
        return text_message(_("#{job} has drawn no samples yet.", job=job.id))
    names = [_("the base model") if each.epoch == 0 else _("epoch {epoch}", epoch=each.epoch) for each, _file in files]
    title = _("**#{job} {name}**, one below the other: {names}", job=job.id, name=escape(job.name), names=listed(names))
    return MessageContent(layout=layout(title, images_gallery(images)), files=kept)


def note_reply(job: Job) -> str:
    """What the card of a job says from now on."""
    if not job.note:
        return _("The note on #{job} is removed.", job=job.id)
    return _("📝 The card of #{job} now says: “{note}”", job=job.id, note=escape(job.note, 300))


def log_reply(job: Job, tail: str) -> MessageContent:
    """The end of a trainer's log."""
    if not tail:
        return text_message(_("#{job} has no log yet.", job=job.id))
    title = _("The end of the log of **#{job} {name}**:", job=job.id, name=escape(job.name))
    # A fence in the log must not end the block.
    return text_message(f"{title}\n```\n{tail.replace('```', '` ` `')}\n```")
