"""The live card of a training, and the line that stands for a job in lists."""

from __future__ import annotations

from collections.abc import Container, Mapping
from datetime import datetime, timedelta
from pathlib import Path

import discord

from bot.queue.domain.job import ACTIVE, Job, Priority, State, StopIntent
from bot.queue.domain.job_progress import Progress
from bot.queue.domain.verbs import Verb, is_applicable, is_drawable
from bot.ui.buttons import JobButton, job_button
from bot.ui.discord_text import escape, mention, progress_bar, relative_time
from bot.ui.end_reasons import end_reason_text
from bot.ui.job_context import JobContext, job_name, position_words, waiting_lines
from bot.ui.layout import Color, FileToSend, MessageContent, box, image_gallery, layout, row, sendable
from bot.ui.remedies import failure_buttons
from bot.ui.sample_pages import TRY_PROMPTS, sampling_words
from trainer.protocol.events import EpochEnded, Finished, Phase, Stopped
from trainer.protocol.settings import TINY
from trainer.protocol.spec import Spec
from trainer.protocol.text import _, duration, percent, rough_duration, verdict

#: Signs and colors of running jobs and of the states whose words never change.
_PHASE_SIGNS: dict[Phase | None, tuple[str, Color]] = {
    None: ("🔵", Color.WORKING),
    Phase.LOADING: ("🔵", Color.WORKING),
    Phase.CACHING: ("🔵", Color.WORKING),
    Phase.VALIDATING: ("🟢", Color.TRAINING),
    Phase.SAMPLING: ("🟢", Color.TRAINING),
    Phase.TRAINING: ("🟢", Color.TRAINING),
    Phase.TESTING: ("🔵", Color.WORKING),
    Phase.DIAGNOSING: ("🔵", Color.WORKING),
    Phase.EXPORTING: ("🔵", Color.WORKING),
}
_STATE_SIGNS: dict[State, tuple[str, Color]] = {
    State.PAUSED: ("⏸️", Color.WAITING),
    State.SUCCEEDED: ("✅", Color.DONE),
    State.STOPPED: ("✅", Color.DONE),
    State.FAILED: ("❌", Color.FAILED),
    State.CANCELLED: ("🚫", Color.WAITING),
}
#: Phases within an epoch: the card names the epoch beside them.
_EPOCH_PHASES = frozenset({Phase.TRAINING, Phase.VALIDATING, Phase.SAMPLING})
#: While a job runs, its bar is never full, and a job that takes longer than expected does not end in the past.
_MOST_SHARE = 0.99


def job_card(job: Job, context: JobContext) -> MessageContent:
    """The card of a training; that of a study is `study_card`."""
    sign, words, color = state_words(job, context.position)
    chart = _chart(job, context)
    body = box(
        color,
        f"### {sign} #{job.id} {escape(job.name)} · {mention(job.owner_id)}\n**{words}**",
        "\n".join(_lines(job, context)) or None,
        image_gallery(chart, chart_alt(job)) if chart else None,
        f"-# {settings_line(job)}",
        f"-# 🔒 {_('from a private dataset')}" if job.private_to else None,
        f"-# {_('updated {when}', when=relative_time(context.now))}",
        row(*buttons) if (buttons := card_buttons(job)) else None,
    )
    return MessageContent(layout=layout(body), files=(chart,) if chart else (), is_silent=True)


def state_words(job: Job, position: int | None = None) -> tuple[str, str, Color]:
    """Return sign, words and color of a job's state."""
    if job.is_sampling:
        return *sampling_words(job, position), Color.WORKING
    match job.state:
        case State.QUEUED:
            line = " · " + position_words(position) if position else ""
            return "🕓", (_requeued_words(job) if job.attempt else _("Queued")) + line, Color.WAITING
        case State.PREPARING | State.RUNNING:
            sign, color = _PHASE_SIGNS[job.progress.phase]
            return sign, _phase_words(job), color
        case State.STOPPING:
            return "🟠", _stopping_words(job.stop_intent), Color.STOPPING
        case _:
            if isinstance(job.terminal_event, Finished) and not job.terminal_event.best_ratio < 1:
                return "⚠️", _("Done, but not better than the base model"), Color.NOTE
            sign, color = _STATE_SIGNS[job.state]
            return sign, settled_words(job.state), color


def _phase_words(job: Job) -> str:
    """What the trainer is doing."""
    match job.progress.phase:
        case None:
            return _("Starting")
        case Phase.LOADING:
            return _("Loading the base model")
        case Phase.CACHING:
            return _counted_words(job.progress) or _("Preparing the images")
        case Phase.VALIDATING:
            return _("Training · measuring what it has learned") if job.progress.step else _("Measuring the base model")
        case Phase.SAMPLING:
            return _counted_words(job.progress) or _("Training · drawing samples")
        case Phase.TRAINING:
            return _("Training")
        case Phase.TESTING:
            return _("Testing the best epoch on images that it has never seen")
        case Phase.DIAGNOSING:
            return _counted_words(job.progress) or _("Checking for memorized images")
        case Phase.EXPORTING:
            return _counted_words(job.progress) or _("Saving the files")


def _counted_words(progress: Progress) -> str:
    """How far a phase is that counts its parts: `Training · drawing samples, 3 of 8`; empty before the first one."""
    values = {"done": progress.phase_done, "total": progress.phase_total}
    match progress.phase:
        case Phase.CACHING if progress.phase_done:
            return _("Preparing the images, {done} of {total}", **values)
        case Phase.SAMPLING if progress.phase_done:
            return _("Training · drawing samples, {done} of {total}", **values)
        case Phase.DIAGNOSING if progress.phase_done:
            return _("Checking for memorized images, {done} of {total}", **values)
        case Phase.EXPORTING if progress.phase_done:
            return _("Saving the files, {done} of {total}", **values)
        case _:
            return ""


def _stopping_words(intent: StopIntent | None) -> str:
    match intent:
        case None | StopIntent.CANCEL:
            return _("Stopping")
        case StopIntent.KEEP_BEST:
            return _("Stopping early, keeping the best epoch")
        case StopIntent.PAUSE:
            return _("Pausing")
        case StopIntent.REQUEUE:
            return _("Stopping to free its GPU. It continues later")


def settled_words(state: State) -> str:
    """How a job in this state stands, which neither waits nor runs."""
    match state:
        case State.PAUSED:
            return _("Paused")
        case State.SUCCEEDED:
            return _("Done")
        case State.STOPPED:
            return _("Done, stopped early")
        case State.FAILED:
            return _("Failed")
        case State.CANCELLED:
            return _("Cancelled")
        case _:
            return _("Not queued yet")


def state_name(state: State) -> str:
    """A state within a sentence, for lists that know no more of a job."""
    living = {
        State.QUEUED: _("Queued"),
        State.PREPARING: _("Starting"),
        State.RUNNING: _("Training"),
        State.STOPPING: _("Stopping"),
    }
    return in_sentence(living.get(state) or settled_words(state))


def _requeued_words(job: Job) -> str:
    if job.stop_intent is StopIntent.KEEP_BEST:
        return _("Waiting to test and save its best epoch")
    return _("Waiting to continue from its checkpoint") if has_checkpoint(job) else _("Waiting to start again")


def has_checkpoint(job: Job) -> bool:
    """True if it continues where it was: an epoch has ended, or it has stopped in the middle of its first one."""
    stopped = job.terminal_event
    return bool(job.progress.epochs) or (isinstance(stopped, Stopped) and stopped.checkpoint is not None)


def share_done(job: Job, now: datetime | None = None) -> float:
    """Return the share of the job's work that is done, 0 to 1: of its time, where the trainer estimates that.

    Args:
        job: A job that has begun.
        now: Between two steps (validation, samples, export) the share grows with the time since the last one.
    """
    step, total = job.progress.step, job.progress.total_steps
    if step is None:
        return 0.0
    if step.eta_s is None or not step.elapsed_s:
        return min(_MOST_SHARE, step.step / total) if total else 0.0
    passed = 0.0
    if now is not None and job.state in ACTIVE and job.progress.phase is not Phase.TRAINING:
        passed = max(0.0, now.timestamp() - step.time)
    return min(_MOST_SHARE, (step.elapsed_s + passed) / (step.elapsed_s + step.eta_s))


def settings_line(job: Job, *, without: Container[str] = ()) -> str:
    """What is trained on what, in one line; `without` names settings that vary from run to run (`method.rank`)."""
    spec = job.spec
    parts = {
        "dataset": escape(job.dataset_name, 60),
        "base.source": _("base model {name}", name=base_name(spec)),
        "preset": _("preset {name}", name=escape(spec.preset, 40)),
    }
    return " · ".join(words for name, words in parts.items() if name not in without)


def base_name(spec: Spec) -> str:
    """The base model by the name of its file; the toy model says that it is one."""
    name = escape(Path(spec.base.source).name, 60)
    return _("{name} (toy model for the demo, 64 px)", name=name) if spec.base.source == TINY else name


def rank_words(spec: Spec) -> str:
    """`rank 16`, or empty for methods without one."""
    return _("rank {rank}", rank=spec.method.rank) if spec.method.kind.has_rank else ""


def rates_words(spec: Spec) -> str:
    """`0.0001`, or `0.0001, then 1e-05` if stages differ."""
    rates = dict.fromkeys(f"{stage.learning_rate:g}" for stage in spec.plan)
    return _(", then ").join(rates)


def standing_words(job: Job) -> str:
    """How good a training is so far: `42 % better than the base model, still improving`; empty before its first epoch.

    It is that of the best epoch, which is what is kept.
    """
    epochs = job.progress.epochs
    newest, best = epochs[-1] if epochs else None, best_of(epochs)
    if newest is None:
        return ""
    if best is None or not best.validation.ratio < 1:
        return _("not better than the base model so far")
    words = verdict(best.validation.ratio)
    if best.epoch != newest.epoch:
        return _("{words} at its best, in epoch {epoch}", words=words, epoch=best.epoch)
    is_training = job.state is State.RUNNING and job.progress.phase in _EPOCH_PHASES
    return _("{words}, still improving", words=words) if is_training and len(epochs) > 1 else words


def best_of(epochs: tuple[EpochEnded, ...]) -> EpochEnded | None:
    """Return the epoch that the trainer calls the best so far."""
    if not epochs:
        return None
    wanted = epochs[-1].best_epoch
    return next((epoch for epoch in reversed(epochs) if epoch.epoch == wanted), None)


def _lines(job: Job, context: JobContext) -> list[str]:
    lines = [f"📝 {escape(job.note, 300)}"] if job.note else []
    if job.state.is_end:
        return [*_end_lines(job), *lines]
    if job.state is State.QUEUED:
        lines += waiting_lines(job, context)
    if job.state is State.PAUSED:
        lines.append(paused_line(job, context.since))
    if sentence := headline(job, context.now):
        lines.append(sentence)
    if job.progress.step and job.state in ACTIVE:
        share = share_done(job, context.now)
        lines.append(f"{progress_bar(share)} {percent(share)}")
    elif job.progress.base and not job.progress.epochs:
        lines.append(_("The base model is measured. Every epoch is compared with it."))
    if line := _attempt_line(job):
        lines.append(line)
    return lines


def headline(job: Job, now: datetime) -> str:
    """`Epoch 7 of 10 · 42 % better than the base model, still improving · about 9 min left`; what is known of it."""
    step = job.progress.step
    parts = []
    if step and job.state in ACTIVE and job.progress.phase in _EPOCH_PHASES:
        parts.append(_("Epoch {epoch} of {epochs}", epoch=step.epoch, epochs=job.spec.training.epochs))
    parts.append(standing_words(job))
    if job.state is State.RUNNING:
        parts.append(time_left(job, now))
    line = " · ".join(part for part in parts if part)
    return line[:1].upper() + line[1:]


def ends_at(job: Job) -> datetime | None:
    """When a running job is expected to end; None if unknown.

    From when it was measured: until the next step, the end does not move.
    """
    step = job.progress.step
    if step is None or step.eta_s is None or job.state is not State.RUNNING:
        return None
    return datetime.fromtimestamp(step.time, job.created_at.tzinfo) + timedelta(seconds=step.eta_s)


def time_left(job: Job, now: datetime) -> str:
    """`about 9 min left`; empty if unknown."""
    end = ends_at(job)
    if end is None:
        return ""
    seconds = (end - now).total_seconds()
    return _("about {duration} left", duration=rough_duration(seconds)) if seconds >= 1 else _("almost done")


def paused_line(job: Job, since: datetime | None) -> str:
    """Who paused a job and when, and from where it continues."""
    by, when = mention(job.stopped_by) if job.stopped_by else "", relative_time(since) if since else ""
    if by and when:
        paused = _("Paused by {by} {when}.", by=by, when=when)
    elif by:
        paused = _("Paused by {by}.", by=by)
    else:
        paused = _("Paused {when}.", when=when) if when else _("Paused.")
    return f"{paused} {_continues_words(job)}"


def _continues_words(job: Job) -> str:
    if job.study is not None:
        return _("Its runs keep their checkpoints and hold no GPU.")
    if job.progress.epochs:
        return _("Its GPU is free. It continues after epoch {epoch}.", epoch=job.progress.kept_epoch)
    if has_checkpoint(job):
        return _("Its GPU is free. It continues where it stopped.")
    return _("Its GPU is free. It starts from the beginning.")


def _attempt_line(job: Job) -> str:
    """`Attempt 2 · high priority`: what is unusual."""
    parts = [_("Attempt {number}", number=job.attempt)] if job.attempt > 1 else []
    line = " · ".join([*parts, *filter(None, [priority_words(job)])])
    return line[:1].upper() + line[1:]


def priority_words(job: Job) -> str:
    """`high priority`; empty for the normal one."""
    match job.priority:
        case Priority.LOW:
            return _("low priority")
        case Priority.NORMAL:
            return ""
        case Priority.HIGH:
            return _("high priority")


def _end_lines(job: Job) -> list[str]:
    lines = []
    finished = job.terminal_event
    if isinstance(finished, Finished):
        lines.append(finished_words(job, finished))
    elif job.progress.epochs:
        lines.append(_("So far: {result}", result=standing_words(job)))
    if job.state is State.STOPPED and job.stopped_by:
        lines.append(_("Stopped early by {by}. Its best epoch was kept.", by=mention(job.stopped_by)))
    if job.state is State.CANCELLED and job.stopped_by:
        lines.append(_("Cancelled by {by}.", by=mention(job.stopped_by)))
    if job.end_reason:
        lines.append(escape(end_reason_text(job.end_reason), 300))
    if job.are_files_deleted:
        lines.append(_("Its files were deleted to free disk space."))
    return lines


def finished_words(job: Job, finished: Finished) -> str:
    """`**42 % better than the base model** · stopped early, and epoch 5 of 7 is kept · took 12 min`."""
    values = {
        "verdict": result_verdict(job, finished),
        "epoch": finished.best_epoch,
        "epochs": finished.epochs,
        "duration": duration(finished.seconds),
    }
    if finished.stopped_early:
        return _("**{verdict}** · stopped early, and epoch {epoch} of {epochs} is kept · took {duration}", **values)
    return _("**{verdict}** · epoch {epoch} of {epochs} is kept · took {duration}", **values)


def metric_words(metrics: Mapping[str, float]) -> list[str]:
    """What a classifier gets right, a sentence each."""
    words = {
        "accuracy": _("{share} of the images are classified correctly"),
        "balanced_accuracy": _("{share} are classified correctly, as an average over the classes"),
        "f1": _("F1 {share}, as an average over the classes"),
    }
    return [
        words.get(name, "{name}: {share}").format(name=escape(name, 30), share=percent(value))
        for name, value in metrics.items()
    ]


def _chart(job: Job, context: JobContext) -> FileToSend | None:
    epoch = job.progress.epoch
    if epoch is None:
        return None
    # A new name for each epoch: clients keep showing an image that they have under a name.
    chart = FileToSend(folder=context.job_dir, path=epoch.chart, name=f"loss-e{epoch.epoch}.png")
    return chart if sendable([chart], context.file_limit) else None


def chart_alt(job: Job) -> str:
    """The loss chart as text: every number that it draws, newest last."""
    rows = "; ".join(
        _(
            "epoch {epoch}: training loss {loss}, {verdict}",
            epoch=each.epoch,
            loss=f"{each.train_loss:.4f}",
            verdict=verdict(each.validation.ratio),
        )
        for each in job.progress.epochs[-12:]
    )
    return _("Loss by epoch: {rows}", rows=rows)


def card_buttons(job: Job) -> list[JobButton]:
    """The buttons that apply to the job's state, in a fixed order; few enough for one row on a phone, stopping last."""
    styles = discord.ButtonStyle
    found = []
    if is_applicable(Verb.RESUME, job):
        found.append(job_button(job.id, Verb.RESUME, _("Resume"), style=styles.success))
    if job.state is State.FAILED:
        found += failure_buttons(job)
    elif is_applicable(Verb.RETRY, job):
        found.append(job_button(job.id, Verb.RETRY, _("Retry"), emoji="🔁", style=styles.primary))
    if job.state in {State.SUCCEEDED, State.STOPPED} and not job.are_files_deleted:
        found.append(files_button(job.id))
    if (job.progress.base or job.progress.epochs) and not job.are_files_deleted:
        found.append(job_button(job.id, "samples", "", emoji="🖼️"))
    found.append(job_button(job.id, "details", _("Details")))
    if job.state.is_end and is_drawable(job):
        # Of one that runs, below its samples: a row of a phone is full.
        found.append(job_button(job.id, TRY_PROMPTS, "", emoji="🎨"))
    if not job.state.is_end and job.state is not State.PAUSED:
        found.append(job_button(job.id, "watch", "", emoji="🔔"))
    stops = [verb for verb in (Verb.KEEP_BEST, Verb.PAUSE, Verb.CANCEL) if is_applicable(verb, job)]
    if stops == [Verb.CANCEL]:
        found.append(job_button(job.id, Verb.CANCEL, _("Cancel"), style=styles.danger))
    elif stops:
        found.append(job_button(job.id, "stop", _("Stop…"), style=styles.danger))
    return found


def files_button(job_id: int) -> JobButton:
    """Hands over the files of a finished job, as `/job files` does."""
    return job_button(job_id, "files", _("All files"), emoji="📦")


def job_choice(job: Job) -> str:
    """A job in an autocomplete list: `#42 · fox-lora · training 61 %` (no Markdown there)."""
    done = f" {percent(share_done(job))}" if job.progress.step and not job.state.is_end else ""
    return f"#{job.id} · {job.name} · {in_sentence(state_words(job)[1])}{done}"[:100]


def unnamed(job: Job) -> Job:
    """A job of a private dataset in a list, for those who may not open it: everything but what it is called."""
    return job.changed(name=_("🔒 private"), child_name=None)


def job_line(
    job: Job, position: int | None = None, *, now: datetime | None = None, is_among_waiting: bool = False
) -> str:
    """A job in a list, one line; among waiting jobs its position is enough."""
    sign, words, _color = state_words(job)
    if job.progress.step and not job.state.is_end:
        done = percent(share_done(job, now))
        words = f"{words} · {done}" if job.state.is_active else _("{words}, {percent} done", words=words, percent=done)
    if position is not None:
        line = position_words(position)
        words = line if is_among_waiting and not job.attempt else f"{words} · {line}"
    best = best_of(job.progress.epochs)
    result = " · " + verdict(best.validation.ratio) if best and best.validation.ratio < 1 else ""
    return f"{sign} {job_name(job)} · {mention(job.owner_id)} · {words}{result}"


def in_sentence(words: str) -> str:
    """Words that begin with a capital letter, as they stand within a sentence."""
    return words[:1].lower() + words[1:]


def best_words(best: EpochEnded) -> str:
    """`12 % better than the base model (epoch 5)`."""
    return _("{verdict} (epoch {epoch})", verdict=verdict(best.validation.ratio), epoch=best.epoch)


def result_verdict(job: Job, finished: Finished) -> str:
    """The headline of a finished training; with its interval, which the event of the best epoch has."""
    best = next((epoch for epoch in job.progress.epochs if epoch.epoch == finished.best_epoch), None)
    if best is None:
        return verdict(finished.best_ratio)
    return verdict(best.validation.ratio, best.validation.ratio_low, best.validation.ratio_high)
