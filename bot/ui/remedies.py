"""Buttons for what can follow a training: another setting after a failure or a warning, and more of what went well."""

from __future__ import annotations

import discord

from bot.queue.domain.job import Job, State
from bot.queue.domain.verbs import Verb, is_applicable
from bot.ui.buttons import JobButton, job_button
from bot.ui.discord_text import escape, mention
from trainer.protocol.events import Failed, FailureKind
from trainer.protocol.text import _

#: Verbs of the buttons that make a new job with a changed setting.
RETRY_RATE, RETRY_PIXELS = "retry_rate", "retry_px"
#: … that fill a request with a training's settings: for its own images, and for others.
RUN_AGAIN, TRY_SETTINGS = "run_again", "try_settings"
#: … of the best run of a study.
TRAIN_WINNER = "train_winner"
#: … that asks how many more epochs to train.
MORE_EPOCHS = "more_epochs"
#: … that upload it to the Hugging Face hub: the question, and its answer.
PUBLISH, PUBLISH_NOW = "publish", "publish_now"
#: The same start would fail in the same way.
_REPEATS = frozenset(
    {
        FailureKind.BAD_SPEC,
        FailureKind.BAD_DATASET,
        FailureKind.OUT_OF_MEMORY,
        FailureKind.DIVERGED,
        FailureKind.BAD_CHECKPOINT,
        FailureKind.BAD_EXPORT,
    }
)
#: Kinds of warnings, and of failures, that a lower rate or smaller images help against.
_NEEDS_LOWER_RATE = frozenset({FailureKind.DIVERGED, "diverging", "validation_not_a_number"})
_NEEDS_FEWER_PIXELS = frozenset({FailureKind.OUT_OF_MEMORY, "micro_batch_halved"})
#: Sides of images, px, that people train at.
_SIDES = (1024, 768, 512, 384, 256)


def next_step_buttons(job: Job, *, has_hub: bool = False) -> list[JobButton]:
    """What can follow a training that went well: show it, train longer, or change its settings or images.

    Args:
        job: A training that has ended.
        has_hub: Models can be uploaded to the Hugging Face hub.
    """
    found = []
    if is_applicable(Verb.SHARE, job):
        found.append(share_button(job.id))
    if is_applicable(Verb.EXTEND, job):
        found.append(job_button(job.id, MORE_EPOCHS, _("More epochs…")))
    found.append(job_button(job.id, RUN_AGAIN, _("Run again with changes")))
    found.append(job_button(job.id, TRY_SETTINGS, _("Try these settings")))
    if has_hub and job.state in {State.SUCCEEDED, State.STOPPED} and not job.are_files_deleted:
        found.append(job_button(job.id, PUBLISH, _("Push to Hugging Face"), emoji="🤗"))
    return found


def share_button(job_id: int) -> JobButton:
    """Ask for a picture and tags, and show it in the gallery."""
    return job_button(job_id, Verb.SHARE, _("Share"), emoji="🖼️")


def failure_buttons(job: Job) -> list[JobButton]:
    """The buttons of a failed job: only what can help."""
    kind = job.terminal_event.kind if isinstance(job.terminal_event, Failed) else None
    found = remedy_buttons(job, kind)
    if kind not in _REPEATS and is_applicable(Verb.RETRY, job):
        found.append(job_button(job.id, Verb.RETRY, _("Retry"), emoji="🔁", style=discord.ButtonStyle.primary))
    return found


def failure_lines(job: Job, head: str, failed: Failed | None, detail: str) -> list[str]:
    """What failed (`head`), why, and what to do; `detail` is why, of an attempt that ended without an event."""
    why = failed.message if failed else detail or _("The trainer stopped without saying why.")
    lines = [f"### ❌ {head} · {mention(job.owner_id)}", escape(why, 1200)]
    if failed and failed.hint:
        lines.append(f"**{_('What you can do')}**: {escape(failed.hint, 800)}")
    return lines


def remedy_buttons(job: Job, kind: str | None) -> list[JobButton]:
    """The button against a warning or failure of this kind; it makes a new job with another setting."""
    if job.study is not None:
        return []
    style = discord.ButtonStyle.primary
    if kind in _NEEDS_LOWER_RATE:
        return [job_button(job.id, RETRY_RATE, _("Retry with a third of the rate"), style=style)]
    side = smaller_side(job)
    if kind in _NEEDS_FEWER_PIXELS and side is not None:
        return [job_button(job.id, RETRY_PIXELS, _("Retry at {px} px", px=side), style=style)]
    return []


def smaller_side(job: Job) -> int | None:
    """The next smaller side of the training images, px; None if there is none. A base's own is 512 or more."""
    now = job.spec.training.resolution
    return next((side for side in _SIDES if side < (now or 513)), None)
