"""The live card of a training, and the line that stands for a job in lists."""

from __future__ import annotations

from collections.abc import Container
from datetime import datetime, timedelta
from pathlib import Path

import discord

from bot.queue.domain.job import ACTIVE, Job, Priority, State, StopIntent
from bot.queue.domain.verbs import Verb, is_applicable
from bot.ui.buttons import JobButton, job_button
from bot.ui.discord_text import escape, mention, ordinal, progress_bar, relative_time, trend
from bot.ui.end_reasons import end_reason_text
from bot.ui.job_context import JobContext, waiting_lines
from bot.ui.layout import Color, FileToSend, MessageContent, box, image_gallery, layout, row, sendable
from trainer.protocol.events import EpochEnded, Finished, Phase
from trainer.protocol.spec import Spec
from trainer.protocol.text import _, duration, listed, ngettext, size, verdict

#: Signs and colors of running jobs and of the states whose words never change.
_PHASE_SIGNS: dict[Phase | None, tuple[str, Color]] = {
    None: ("🟡", Color.PREPARING),
    Phase.LOADING: ("🟡", Color.PREPARING),
    Phase.CACHING: ("🟡", Color.PREPARING),
    Phase.VALIDATING: ("🟢", Color.TRAINING),
    Phase.SAMPLING: ("🟢", Color.TRAINING),
    Phase.TRAINING: ("🟢", Color.TRAINING),
    Phase.TESTING: ("🔵", Color.ENDING),
    Phase.EXPORTING: ("🔵", Color.ENDING),
}
_STATE_SIGNS: dict[State, tuple[str, Color]] = {
    State.DRAFT: ("📝", Color.WAITING),
    State.PAUSED: ("⏸️", Color.WAITING),
    State.SUCCEEDED: ("✅", Color.DONE),
    State.STOPPED: ("✅", Color.DONE),
    State.FAILED: ("❌", Color.FAILED),
    State.CANCELLED: ("⬛", Color.WAITING),
}


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
        f"-# {_('updated {when}', when=relative_time(context.now))} · {context.footer(job)}",
        row(*buttons) if (buttons := card_buttons(job)) else None,
    )
    return MessageContent(layout=layout(body), files=(chart,) if chart else (), is_silent=True)


def state_words(job: Job, position: int | None = None) -> tuple[str, str, Color]:
    """Return sign, words and color of a job's state."""
    match job.state:
        case State.QUEUED:
            line = " · " + _("{ordinal} in line", ordinal=ordinal(position)) if position else ""
            return "🕓", (_requeued_words(job) if job.attempt else _("Queued")) + line, Color.WAITING
        case State.PREPARING | State.RUNNING:
            sign, color = _PHASE_SIGNS[job.progress.phase]
            return sign, _phase_words(job.progress.phase), color
        case State.STOPPING:
            return "🟠", _stopping_words(job.stop_intent), Color.STOPPING
        case _:
            if isinstance(job.terminal_event, Finished) and job.terminal_event.best_ratio >= 1:
                return "⚠️", _("Done, but no better than the base model"), Color.NOTE
            sign, color = _STATE_SIGNS[job.state]
            return sign, _settled_words(job.state), color


def _phase_words(phase: Phase | None) -> str:
    match phase:
        case None:
            return _("Starting")
        case Phase.LOADING:
            return _("Loading the base model")
        case Phase.CACHING:
            return _("Preparing the images")
        case Phase.VALIDATING:
            return _("Training · validating")
        case Phase.SAMPLING:
            return _("Training · drawing samples")
        case Phase.TRAINING:
            return _("Training")
        case Phase.TESTING:
            return _("Testing the best epoch")
        case Phase.EXPORTING:
            return _("Exporting")


def _stopping_words(intent: StopIntent | None) -> str:
    match intent:
        case None | StopIntent.CANCEL:
            return _("Stopping")
        case StopIntent.KEEP_BEST:
            return _("Stopping, keeping the best epoch")
        case StopIntent.PAUSE:
            return _("Pausing")
        case StopIntent.REQUEUE:
            return _("Stopping to make room; it continues later")


def _settled_words(state: State) -> str:
    match state:
        case State.PAUSED:
            return _("Paused")
        case State.SUCCEEDED:
            return _("Done")
        case State.STOPPED:
            return _("Done, ended early by a person")
        case State.FAILED:
            return _("Failed")
        case State.CANCELLED:
            return _("Cancelled")
        case _:
            return _("Not queued yet")


def _requeued_words(job: Job) -> str:
    if job.stop_intent is StopIntent.KEEP_BEST:
        return _("Waiting to test and export its best epoch")
    return _("Waiting to continue from its checkpoint") if job.progress.epochs else _("Waiting to start again")


def share_done(job: Job) -> float:
    """Return the share of the training that is done, 0 to 1."""
    total = job.progress.total_steps
    step = job.progress.step.step if job.progress.step else 0
    return min(1.0, step / total) if total else 0.0


def settings_line(job: Job, *, without: Container[str] = ()) -> str:
    """What is trained on what, in one line; `without` names settings that vary from run to run (`method.rank`)."""
    spec = job.spec
    parts = {
        "dataset": escape(job.dataset_name, 60),
        "base.source": _("base {name}", name=escape(Path(spec.base.source).name, 60)),
        "preset": _("preset {name}", name=escape(spec.preset, 40)),
        "method.rank": rank_words(spec),
        "training.learning_rate": f"lr {rates_words(spec)}",
        "training.seed": _("seed {seed}", seed=spec.training.seed),
    }
    return " · ".join(words for name, words in parts.items() if words and name not in without)


def rank_words(spec: Spec) -> str:
    """`rank 16`, or empty for methods without one."""
    return _("rank {rank}", rank=spec.method.rank) if spec.method.kind.has_rank else ""


def rates_words(spec: Spec) -> str:
    """`0.0001`, or `0.0001, then 1e-05` if stages differ."""
    rates = dict.fromkeys(f"{stage.learning_rate:g}" for stage in spec.plan)
    return _(", then ").join(rates)


def validation_words(epoch: EpochEnded, best: EpochEnded | None) -> str:
    """`42 % better than the base model ★ best`; no star for an epoch that is no better than the base."""
    words = verdict(epoch.validation.ratio)
    if epoch.validation.ratio >= 1:
        return words
    if epoch.best_epoch == epoch.epoch:
        return _("{words} ★ best", words=words)
    return words if best is None else _("{words} (best: epoch {epoch})", words=words, epoch=best.epoch)


def best_of(epochs: tuple[EpochEnded, ...]) -> EpochEnded | None:
    """Return the epoch that the trainer calls the best so far."""
    if not epochs:
        return None
    wanted = epochs[-1].best_epoch
    return next((epoch for epoch in reversed(epochs) if epoch.epoch == wanted), None)


def _lines(job: Job, context: JobContext) -> list[str]:
    if job.state.is_end:
        return _end_lines(job)
    lines = []
    progress = job.progress
    if job.state is State.QUEUED:
        lines += waiting_lines(job, context)
    if job.state is State.PAUSED:
        lines.append(paused_line(job, context.since))
    if progress.step and job.state in {State.RUNNING, State.STOPPING}:
        lines.append(_progress_line(job))
    if loss := _loss_line(job):
        lines.append(loss)
    if progress.step and job.state == State.RUNNING:
        lines.append(_speed_line(job, context.now))
    elif progress.base and not progress.epochs:
        lines.append(_("The base model is measured: every epoch is compared with it."))
    if place := _place_line(job):
        lines.append(place)
    return lines


def paused_line(job: Job, since: datetime | None) -> str:
    """Who paused a job and when, and from where it continues."""
    paused = _("Paused by {by}", by=mention(job.stopped_by)) if job.stopped_by else _("Paused")
    if since:
        paused += f" {relative_time(since)}"
    if job.study is not None:
        return _("{paused}; its runs keep their checkpoints and hold no GPU.", paused=paused)
    if not job.progress.epochs:
        return _("{paused}; its GPU is free. It continues from its start.", paused=paused)
    epoch = job.progress.epochs[-1].epoch
    return _(
        "{paused}; its GPU is free. It continues from the checkpoint of epoch {epoch}.", paused=paused, epoch=epoch
    )


def _place_line(job: Job) -> str:
    """`on cuda:0 · attempt 2 · high priority`: where it runs, and what is unusual."""
    parts = []
    if job.slots and job.state in ACTIVE:
        parts.append(_("on {slots}", slots=listed([escape(name, 60) for name in job.slots], most=4)))
    if job.attempt > 1:
        if job.state in ACTIVE:
            parts.append(_("attempt {number}", number=job.attempt))
        else:
            parts.append(ngettext("started {n} time so far", "started {n} times so far", job.attempt))
    if priority := priority_words(job):
        parts.append(priority)
    return " · ".join(parts)


def priority_words(job: Job) -> str:
    """`high priority`; empty for the normal one."""
    match job.priority:
        case Priority.LOW:
            return _("low priority")
        case Priority.NORMAL:
            return ""
        case Priority.HIGH:
            return _("high priority")


def _progress_line(job: Job) -> str:
    step = job.progress.step
    assert step is not None
    share = share_done(job)
    position = _(
        "epoch {epoch}/{epochs} · step {step}/{steps}",
        epoch=step.epoch,
        epochs=job.spec.training.epochs,
        step=f"{step.step:,}",
        steps=f"{job.progress.total_steps:,}",
    )
    return f"{progress_bar(share)} **{share:.0%}** · {position}"


def _loss_line(job: Job) -> str:
    parts = []
    epochs, step = job.progress.epochs, job.progress.step
    if step:
        earlier = [epoch.train_loss for epoch in epochs if epoch.epoch < step.epoch]
        direction = trend(step.loss, earlier[-1] if earlier else None)
        parts.append(_("training loss {loss}", loss=f"{step.loss:.4f}") + direction)
    if epochs:
        parts.append(validation_words(epochs[-1], best_of(epochs)))
    return " · ".join(parts)


def _speed_line(job: Job, now: datetime) -> str:
    step = job.progress.step
    assert step is not None
    parts = [
        _("{rate} steps/s", rate=f"{step.steps_per_s:.2g}"),
        _("{size} of memory", size=size(step.peak_memory_bytes)),
    ]
    if step.eta_s is not None:
        # From when it was measured: between two readings the end does not move.
        measured_at = job.last_event_at or now
        parts.append(_("ends {when}", when=relative_time(measured_at + timedelta(seconds=step.eta_s))))
    return " · ".join(parts)


def _end_lines(job: Job) -> list[str]:
    lines = []
    finished = job.terminal_event
    if isinstance(finished, Finished):
        line = _(
            "**{verdict}**, epoch {epoch} of {epochs}",
            verdict=result_verdict(job, finished),
            epoch=finished.best_epoch,
            epochs=finished.epochs,
        )
        if finished.stopped_early:
            line += _(", stopped early")
        lines.append(f"{line} · {duration(finished.seconds)}")
    elif best := best_of(job.progress.epochs):
        lines.append(_("best so far: {result}", result=best_words(best)))
    if job.state is State.STOPPED and job.stopped_by:
        lines.append(_("ended early by {by}; its best epoch was kept", by=mention(job.stopped_by)))
    if job.state is State.CANCELLED and job.stopped_by:
        lines.append(_("cancelled by {by}", by=mention(job.stopped_by)))
    if job.end_reason:
        lines.append(escape(end_reason_text(job.end_reason), 300))
    if job.are_files_deleted:
        lines.append(_("Its files were deleted to make room."))
    return lines


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
    """The buttons that apply to the job's state, in a fixed order; five at most."""
    styles = discord.ButtonStyle
    offered = [
        (Verb.RESUME, _("Resume"), None, styles.success),
        (Verb.RETRY, _("Retry"), "🔁", styles.primary),
        (Verb.CANCEL, _("Cancel"), None, styles.danger),
        (Verb.PAUSE, _("Pause"), None, styles.secondary),
        (Verb.KEEP_BEST, _("Stop & keep best"), None, styles.secondary),
    ]
    found = [
        job_button(job.id, verb, label, emoji=emoji, style=style)
        for verb, label, emoji, style in offered
        if is_applicable(verb, job)
    ]
    if (job.progress.base or job.progress.epochs) and not job.are_files_deleted:
        found.append(job_button(job.id, "samples", _("Samples"), emoji="🖼️"))
    if job.state in {State.SUCCEEDED, State.STOPPED} and not job.are_files_deleted:
        found.append(files_button(job.id))
    if not job.state.is_end:
        found.append(job_button(job.id, "refresh", _("Refresh"), emoji="🔄"))
    return found


def files_button(job_id: int) -> JobButton:
    """Hands over the files of a finished job, as `/job files` does."""
    return job_button(job_id, "files", _("Files"), emoji="📦")


def job_choice(job: Job) -> str:
    """A job in an autocomplete list: `#42 · fox-lora · running 61 %` (no Markdown there)."""
    percent = f" {share_done(job):.0%}" if job.progress.step and not job.state.is_end else ""
    return f"#{job.id} · {job.name} · {job.state}{percent}"[:100]


def job_line(job: Job, position: int | None = None, *, is_among_waiting: bool = False) -> str:
    """A job in a list, one line; among waiting jobs its position is enough."""
    sign, words, _color = state_words(job)
    if job.progress.step and not job.state.is_end:
        percent = f"{share_done(job):.0%}"
        words += f" {percent}" if job.state.is_active else " " + _("at {percent}", percent=percent)
    if position is not None:
        line = _("{ordinal} in line", ordinal=ordinal(position))
        words = line if is_among_waiting and not job.attempt else f"{words} · {line}"
    best = best_of(job.progress.epochs)
    result = " · " + best_words(best) if best else ""
    return f"{sign} **#{job.id} {escape(job.name)}** · {mention(job.owner_id)} · {words}{result}"


def best_words(best: EpochEnded) -> str:
    """`12 % better than the base model (epoch 5)`."""
    return _("{verdict} (epoch {epoch})", verdict=verdict(best.validation.ratio), epoch=best.epoch)


def result_verdict(job: Job, finished: Finished) -> str:
    """The headline of a finished training; with its interval, which the event of the best epoch has."""
    best = next((epoch for epoch in job.progress.epochs if epoch.epoch == finished.best_epoch), None)
    if best is None:
        return verdict(finished.best_ratio)
    return verdict(best.validation.ratio, best.validation.ratio_low, best.validation.ratio_high)
