"""The live card of a job: where it stands, in one look."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import discord

from bot.queue.job import Job, State, StopIntent
from bot.ui.layout import Colour, FileToSend, JobButton, MessageContent, box, button, layout, picture, row, sendable
from bot.ui.text import ago, bar, duration, ordinal, plain, size, trend
from trainer.protocol.events import EpochEnded, Finished, Phase
from trainer.protocol.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a message about a job needs beside the job itself."""

    #: Where the job's files lie.
    job_dir: Path
    now: datetime
    #: 1 is next; None when it does not wait.
    place: int | None = None
    #: Largest file that the server takes, bytes.
    file_limit: int = 10 * 1024 * 1024
    #: By which the sender finds the message again after a crash.
    marker: str = ""

    def footer(self, job: Job) -> str:
        """The last line of each message about a job: `job 42·a1 · 3fa8c1d2`."""
        return f"job {job.id}·a{job.attempt}" + (f" · {self.marker}" if self.marker else "")


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


def card(job: Job, standing: Standing) -> MessageContent:
    """The card of a job as it stands now."""
    sign, words, colour = state_words(job, standing.place)
    chart = _chart(job, standing)
    body = box(
        colour,
        f"### {sign} #{job.id} {plain(job.name)} · <@{job.owner_id}>\n**{words}**",
        "\n".join(_lines(job, standing)) or None,
        picture(chart, chart_alt(job)) if chart else None,
        f"-# {settings_line(job)}",
        f"-# updated {ago(standing.now)} · {standing.footer(job)}",
        row(*buttons) if (buttons := _buttons(job)) else None,
    )
    return MessageContent(layout=layout(body), files=(chart,) if chart else (), is_silent=True)


def state_words(job: Job, place: int | None = None) -> tuple[str, str, Colour]:
    """Sign, words and colour of where a job stands."""
    match job.state:
        case State.QUEUED:
            again = "Waiting to go on from its checkpoint" if job.attempt else "Queued"
            line = f" · {ordinal(place)} in line" if place else ""
            return "🕓", again + line, Colour.WAITING
        case State.RUNNING:
            return _PHASES[job.progress.phase]
        case State.STOPPING if job.stop_intent == StopIntent.KEEP_BEST:
            return "🟠", "Stopping, keeping the best epoch", Colour.STOPPING
        case State.STOPPING:
            return "🟠", "Stopping", Colour.STOPPING
        case State.SUCCEEDED:
            return "✅", "Done", Colour.DONE
        case State.FAILED:
            return "❌", "Failed", Colour.FAILED
        case State.CANCELLED:
            return "⬛", "Cancelled", Colour.WAITING


def share_done(job: Job) -> float:
    """How much of the training is done, 0 to 1."""
    total = job.progress.total_steps
    step = job.progress.step.step if job.progress.step else 0
    return min(1.0, step / total) if total else 0.0


def settings_line(job: Job) -> str:
    """What is trained on what, in one line."""
    spec = job.spec
    base = plain(Path(spec.base.source).name, 60)
    return (
        f"{plain(job.dataset_name, 60)} · base {base} · preset {plain(spec.preset, 40)}"
        f"{size_words(spec)} · lr {rates_words(spec)} · seed {spec.training.seed}"
    )


def size_words(spec: Spec) -> str:
    """` · rank 16` for what has one."""
    return f" · rank {spec.method.rank}" if spec.method.kind.has_rank else ""


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
    if progress.step and job.state in {State.RUNNING, State.STOPPING}:
        lines.append(_progress_line(job))
    if loss := _loss_line(job):
        lines.append(loss)
    if progress.step and job.state == State.RUNNING:
        lines.append(_speed_line(job, standing.now))
    elif progress.base and not progress.epochs:
        lines.append(f"base model: val loss {progress.base.validation.loss:.4f} = 1.00×")
    return lines


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
    parts = [f"{step.steps_per_s:.2g} steps/s", size(step.peak_memory_bytes)]
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
    if job.end_reason:
        lines.append(plain(job.end_reason, 300))
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


def _buttons(job: Job) -> list[JobButton]:
    found: list[JobButton] = []
    if job.state in {State.QUEUED, State.RUNNING}:
        found.append(button(job.id, "cancel", "Cancel", style=discord.ButtonStyle.danger))
    if job.state == State.RUNNING and job.progress.epochs:
        found.append(button(job.id, "keep_best", "Stop & keep best"))
    if job.progress.base or job.progress.epochs:
        found.append(button(job.id, "samples", "Samples", emoji="🖼️"))
    if not job.state.is_end:
        found.append(button(job.id, "refresh", "Refresh", emoji="🔄"))
    return found
