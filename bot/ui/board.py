"""The queue board: what runs, who waits, when it is whose turn."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from bot.queue.job import Job
from bot.ui.layout import Colour, MessageContent, box, layout
from bot.ui.receipts import job_line
from bot.ui.text import ago

_SHOWN = 20


def board(running: Sequence[Job], waiting: Sequence[Job], now: datetime) -> MessageContent:
    """`waiting` in the order in which they will start."""
    head = "### Queue\n" + ("\n".join(map(_running_line, running)) if running else "Nothing is training.")
    lines = [job_line(job, place) for place, job in enumerate(waiting[:_SHOWN], start=1)]
    if (rest := len(waiting) - _SHOWN) > 0:
        lines.append(f"… and {rest} more")
    body = box(
        Colour.TRAINING if running else Colour.WAITING,
        head,
        "\n".join(lines) if lines else "Nobody waits: `/finetune` starts at once.",
        f"-# updated {ago(now)}",
    )
    return MessageContent(layout=layout(body))


def job_list(title: str, jobs: Sequence[Job]) -> MessageContent:
    lines = "\n".join(job_line(job) for job in jobs) or "No jobs yet: `/finetune` makes the first."
    return MessageContent(layout=layout(box(Colour.WAITING, f"### {title}\n{lines}")))


def _running_line(job: Job) -> str:
    step = job.progress.step
    if step is None or step.eta_s is None or job.progress.heard_at is None:
        return job_line(job)
    return f"{job_line(job)} · ends {ago(job.progress.heard_at + timedelta(seconds=step.eta_s))}"
