"""The live card of a job: where it stands, in one look."""

from __future__ import annotations

from collections.abc import Container
from datetime import datetime, timedelta
from pathlib import Path

import discord

from bot.queue.domain.job import ACTIVE, Job, Priority, State, StopIntent
from bot.queue.domain.verbs import Verb, makes_sense
from bot.ui.layout import Colour, FileToSend, JobButton, MessageContent, box, button, layout, picture, row, sendable
from bot.ui.standing import Standing
from bot.ui.text import ago, bar, duration, listed, ordinal, plain, size, trend
from bot.ui.waiting import waiting_lines
from trainer.protocol.events import EpochEnded, Finished, Phase
from trainer.protocol.spec import Spec

#: What a running job is busy with: sign, words, colour.
_PHASES: dict[Phase | None, tuple[str, str, Colour]] = {
    None: ("🟡", "Starting", Colour.PREPARING),
    Phase.LOADING: ("🟡", "Loading the base model", Colour.PREPARING),
    Phase.CACHING: ("🟡", "Preparing the pictures", Colour.PREPARING),
    Phase.VALIDATING: ("🟢", "Training · validating", Colour.TRAINING),
    Phase.SAMPLING: ("🟢", "Training · drawing samples", Colour.TRAINING),
    Phase.TRAINING: ("🟢", "Training", Colour.TRAINING),
    Phase.TESTING: ("🔵", "Testing the best epoch", Colour.ENDING),
    Phase.EXPORTING: ("🔵", "Exporting", Colour.ENDING),
}

_STOPPING = {
    StopIntent.CANCEL: "Stopping",
    StopIntent.KEEP_BEST: "Stopping, keeping the best epoch",
    StopIntent.PAUSE: "Pausing",
    StopIntent.REQUEUE: "Making room, to go on later",
}

#: States that are always said in the same words.
_STANDS = {
    State.DRAFT: ("📝", "Not queued yet", Colour.WAITING),
    State.PAUSED: ("⏸️", "Paused", Colour.WAITING),
    State.SUCCEEDED: ("✅", "Done", Colour.DONE),
    State.STOPPED: ("✅", "Done, ended early by a person", Colour.DONE),
    State.FAILED: ("❌", "Failed", Colour.FAILED),
    State.CANCELLED: ("⬛", "Cancelled", Colour.WAITING),
}


def card(job: Job, standing: Standing) -> MessageContent:
    """The card of a training as it stands now (of a study: `study.py`)."""
    sign, words, colour = state_words(job, standing.place)
    chart = _chart(job, standing)
    body = box(
        colour,
        f"### {sign} #{job.id} {plain(job.name)} · <@{job.owner_id}>\n**{words}**",
        "\n".join(_lines(job, standing)) or None,
        picture(chart, chart_alt(job)) if chart else None,
        f"-# {settings_line(job)}",
        f"-# updated {ago(standing.now)} · {standing.footer(job)}",
        row(*buttons) if (buttons := card_buttons(job)) else None,
    )
    return MessageContent(layout=layout(body), files=(chart,) if chart else (), is_silent=True)


def state_words(job: Job, place: int | None = None) -> tuple[str, str, Colour]:
    """Sign, words and colour of where a job stands."""
    match job.state:
        case State.QUEUED:
            line = f" · {ordinal(place)} in line" if place else ""
            again = _again_words(job) if job.attempt else "Queued"
            return "🕓", again + line, Colour.WAITING
        case State.PREPARING | State.RUNNING:
            return _PHASES[job.progress.phase]
        case State.STOPPING:
            words = "Stopping" if job.stop_intent is None else _STOPPING[job.stop_intent]
            return "🟠", words, Colour.STOPPING
        case _:
            return _STANDS[job.state]


def _again_words(job: Job) -> str:
    if job.stop_intent is StopIntent.KEEP_BEST:
        return "Waiting to test and export its best epoch"
    return "Waiting to go on from its checkpoint" if job.progress.epochs else "Waiting to begin again"


def share_done(job: Job) -> float:
    """How much of the training is done, 0 to 1."""
    total = job.progress.total_steps
    step = job.progress.step.step if job.progress.step else 0
    return min(1.0, step / total) if total else 0.0


def settings_line(job: Job, *, without: Container[str] = ()) -> str:
    """What is trained on what, in one line; `without` settings that vary from run to run (`method.rank`)."""
    spec = job.spec
    parts = {
        "dataset": plain(job.dataset_name, 60),
        "base.source": f"base {plain(Path(spec.base.source).name, 60)}",
        "preset": f"preset {plain(spec.preset, 40)}",
        "method.rank": size_words(spec),
        "training.learning_rate": f"lr {rates_words(spec)}",
        "training.seed": f"seed {spec.training.seed}",
    }
    return " · ".join(words for name, words in parts.items() if words and name not in without)


def size_words(spec: Spec) -> str:
    """`rank 16` for what has one, else nothing."""
    return f"rank {spec.method.rank}" if spec.method.kind.has_rank else ""


def rates_words(spec: Spec) -> str:
    """`0.0001`, or `0.0001, then 1e-05` where stages differ."""
    return ", then ".join(dict.fromkeys(f"{stage.learning_rate:g}" for stage in spec.plan))


def validation_words(epoch: EpochEnded, best: EpochEnded | None) -> str:
    """`val 0.91× base (best 0.88× @ e5)`."""
    words = f"val {epoch.validation.ratio:.2f}× base"
    if best is None or best.epoch == epoch.epoch:
        return f"{words} ★ best"
    return f"{words} (best {best.validation.ratio:.2f}× @ e{best.epoch})"


def best_of(epochs: tuple[EpochEnded, ...]) -> EpochEnded | None:
    """The epoch that the trainer itself calls the best so far."""
    if not epochs:
        return None
    wanted = epochs[-1].best_epoch
    return next((epoch for epoch in reversed(epochs) if epoch.epoch == wanted), None)


def _lines(job: Job, standing: Standing) -> list[str]:
    if job.state.is_end:
        return _ended(job)
    lines = []
    progress = job.progress
    if job.state is State.QUEUED:
        lines += waiting_lines(job, standing)
    if job.state is State.PAUSED:
        lines.append(paused_line(job, standing.since))
    if progress.step and job.state in {State.RUNNING, State.STOPPING}:
        lines.append(_progress_line(job))
    if loss := _loss_line(job):
        lines.append(loss)
    if progress.step and job.state == State.RUNNING:
        lines.append(_speed_line(job, standing.now))
    elif progress.base and not progress.epochs:
        lines.append(f"base model: val loss {progress.base.validation.loss:.4f} = 1.00×")
    if place := _place_line(job):
        lines.append(place)
    return lines


def paused_line(job: Job, since: datetime | None) -> str:
    """Who paused it and when, and from where it goes on."""
    by = f" by <@{job.stopped_by}>" if job.stopped_by else ""
    when = f" {ago(since)}" if since else ""
    if job.study is not None:
        return f"Paused{by}{when}; its runs keep their checkpoints, and hold no GPU."
    kept = f"from the checkpoint of epoch {job.progress.epochs[-1].epoch}" if job.progress.epochs else "from its start"
    return f"Paused{by}{when}; its GPU is free. It goes on {kept}."


def _place_line(job: Job) -> str:
    """`on GPU 0 · RTX 4090 · attempt 2 · high priority`: what is not as usual, and where it runs."""
    parts = []
    if job.slots and job.state in ACTIVE:
        more = [f"{len(job.slots) - 4} more"] if len(job.slots) > 4 else []
        parts.append(f"on {listed([*(plain(name, 60) for name in job.slots[:4]), *more])}")
    if job.attempt > 1:
        parts.append(f"attempt {job.attempt}" if job.state in ACTIVE else f"started {job.attempt} times so far")
    if job.priority is not Priority.NORMAL:
        parts.append(f"{job.priority.name.lower()} priority")
    return " · ".join(parts)


def _progress_line(job: Job) -> str:
    step = job.progress.step
    assert step is not None
    share = share_done(job)
    return (
        f"{bar(share)} **{share:.0%}** · epoch {step.epoch}/{job.spec.training.epochs}"
        f" · step {step.step:,}/{job.progress.total_steps:,}"
    )


def _loss_line(job: Job) -> str:
    parts = []
    epochs, step = job.progress.epochs, job.progress.step
    if step:
        earlier = [epoch.train_loss for epoch in epochs if epoch.epoch < step.epoch]
        parts.append(f"loss {step.loss:.4f}{trend(step.loss, earlier[-1] if earlier else None)}")
    if epochs:
        parts.append(validation_words(epochs[-1], best_of(epochs)))
    return " · ".join(parts)


def _speed_line(job: Job, now: datetime) -> str:
    step = job.progress.step
    assert step is not None
    parts = [f"{step.steps_per_s:.2g} steps/s", f"{size(step.peak_memory_bytes)} of memory"]
    if step.eta_s is not None:
        # From when it was said: between two readings the end does not move.
        said = job.progress.heard_at or now
        parts.append(f"ends {ago(said + timedelta(seconds=step.eta_s))}")
    return " · ".join(parts)


def _ended(job: Job) -> list[str]:
    lines = []
    word = job.last_word
    if isinstance(word, Finished):
        early = ", stopped early" if word.stopped_early else ""
        lines.append(
            f"val **{word.best_ratio:.2f}× base** at epoch {word.best_epoch} of {word.epochs}{early}"
            f" · {duration(word.seconds)}"
        )
    elif best := best_of(job.progress.epochs):
        lines.append(f"best so far: val {best.validation.ratio:.2f}× base at epoch {best.epoch}")
    if job.state is State.STOPPED and job.stopped_by:
        lines.append(f"ended early by <@{job.stopped_by}>; its best epoch was kept")
    if job.state is State.CANCELLED and job.stopped_by:
        lines.append(f"cancelled by <@{job.stopped_by}>")
    if job.end_reason:
        lines.append(plain(job.end_reason, 300))
    if job.are_files_deleted:
        lines.append("Its files were deleted to make room.")
    return lines


def _chart(job: Job, standing: Standing) -> FileToSend | None:
    epoch = job.progress.epoch
    if epoch is None:
        return None
    # A new name for each epoch, or the clients go on showing the picture that they have.
    chart = FileToSend(path=standing.job_dir / epoch.chart, name=f"loss-e{epoch.epoch}.png")
    return chart if sendable([chart], standing.file_limit) else None


def chart_alt(job: Job) -> str:
    """The loss chart in words: every number that it draws, newest last."""
    shown = job.progress.epochs[-12:]
    rows = "; ".join(f"e{e.epoch} train {e.train_loss:.4f}, val {e.validation.ratio:.2f}×" for e in shown)
    return f"Loss by epoch (val as a ratio to the base model): {rows}"


def card_buttons(job: Job) -> list[JobButton]:
    """Five at most: what makes sense in the job's state, in an order that stays."""
    offered = [
        (Verb.RESUME, "Resume", None, discord.ButtonStyle.success),
        (Verb.RETRY, "Retry", "🔁", discord.ButtonStyle.primary),
        (Verb.CANCEL, "Cancel", None, discord.ButtonStyle.danger),
        (Verb.PAUSE, "Pause", None, discord.ButtonStyle.secondary),
        (Verb.KEEP_BEST, "Stop & keep best", None, discord.ButtonStyle.secondary),
    ]
    found = [
        button(job.id, verb, label, emoji=emoji, style=style)
        for verb, label, emoji, style in offered
        if makes_sense(verb, job)
    ]
    if (job.progress.base or job.progress.epochs) and not job.are_files_deleted:
        found.append(button(job.id, "samples", "Samples", emoji="🖼️"))
    if not job.state.is_end:
        found.append(button(job.id, "refresh", "Refresh", emoji="🔄"))
    return found
