"""What a message about a job needs in addition to the job: its position in line, why it waits, when it will start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from bot.queue.domain.job import Job
from bot.queue.store.queue_control import PauseKind, QueuePause
from bot.queue.store.sample_votes import Ballot
from bot.ui.discord_text import date_time, escape, mention, relative_time, time_or_date
from trainer.protocol.study import StudyStep
from trainer.protocol.text import _, ngettext, percent, rough_duration

#: A forecast start this close to the requested one is not shown again.
_SAME = timedelta(minutes=1)
#: The forecast is computed a moment after the message has asked for the time.
_AT_ONCE = timedelta(seconds=5)


@dataclass(frozen=True, kw_only=True)
class StartForecast:
    """When a waiting job is expected to start, and how long it is expected to take; None if unknown."""

    starts_at: datetime | None = None
    seconds: float | None = None
    #: Usual error of such estimates, as a share of the time; None if there are too few runs to know it.
    usual_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class JobContext:
    """The surroundings of a job at the moment when a message about it is made."""

    #: The job's folder.
    job_dir: Path
    now: datetime
    #: Place in line, 1 is next; None if it does not wait.
    position: int | None = None
    #: Largest file that the server accepts, bytes.
    file_limit: int = 10 * 1024 * 1024
    #: When it came into its state, if known.
    since: datetime | None = None
    #: None: the queue runs.
    queue_pause: QueuePause | None = None
    #: Why nothing starts at this hour (training windows, a full disk), as a sentence; empty if it may.
    why_closed: str = ""
    #: Running jobs of its owner, and how many they may have; None: any number.
    owner_runs: int = 0
    owner_may_run: int | None = None
    free_slots: int = 0
    #: There are web pages.
    has_pages: bool = False
    #: Models can be uploaded to the Hugging Face hub.
    has_hub: bool = False
    slots: int = 0
    forecast: StartForecast = StartForecast()
    #: Of a drawn sampling: votes by the index of the model, and of the image.
    votes: Mapping[Ballot, Mapping[int, int]] = field(default_factory=dict)
    #: Of a study: its runs, and the trainer's last answer about them.
    children: tuple[Job, ...] = ()
    step: StudyStep | None = None


def position_words(position: int) -> str:
    """A position in line: `next in line`, `number 3 in line`."""
    return _("next in line") if position == 1 else _("number {n} in line", n=position)


def waiting_lines(job: Job, context: JobContext) -> list[str]:
    """Why a queued job is held up, if it is, and when it is expected to start."""
    lines = [why_waiting(job, context)]
    hides_start = context.queue_pause is not None or _starts_as_requested(job, context)
    lines.append(forecast_line(context.forecast, context.now, hides_start=hides_start))
    return [line for line in lines if line]


def _starts_as_requested(job: Job, context: JobContext) -> bool:
    starts_at = context.forecast.starts_at
    if starts_at is None or job.run_after is None or job.run_after <= context.now:
        return False
    return starts_at <= job.run_after + _SAME


def job_name(job: Job) -> str:
    """`**#42 fox**`, to begin a line with."""
    return f"**#{job.id} {escape(job.name)}**"


def why_waiting(job: Job, context: JobContext) -> str:
    """Why a job does not start although it may be its turn; empty if it only waits for a slot."""
    if context.queue_pause is not None:
        return _(
            "{reason} This training keeps its place in line as #{job}.",
            reason=pause_line(context.queue_pause),
            job=job.id,
        )
    if job.run_after is not None and job.run_after > context.now:
        when = relative_time(job.run_after)
        if job.attempt:
            return _("It tries again {when}, in case the problem was temporary.", when=when)
        return _("It will not start before {time} ({when}).", time=date_time(job.run_after), when=when)
    if context.why_closed:
        return escape(context.why_closed, 300)
    if context.owner_may_run is not None and context.owner_runs >= context.owner_may_run:
        return ngettext(
            "{owner} may run {allowed} training at a time and has {n} running. This one starts when that one ends.",
            "{owner} may run {allowed} trainings at a time and has {n} running. This one starts when one of them ends.",
            context.owner_runs,
            owner=mention(job.owner_id),
            allowed=context.owner_may_run,
        )
    if job.gpus > 1 and context.free_slots < job.gpus:
        return ngettext(
            "It needs {gpus} GPUs at once; {n} of {all} is free.",
            "It needs {gpus} GPUs at once; {n} of {all} are free.",
            context.free_slots,
            gpus=job.gpus,
            all=context.slots,
        )
    return ""


def pause_line(queue_pause: QueuePause) -> str:
    """`@ana has paused the queue: “driver update”.`"""
    by = mention(queue_pause.by)
    is_pause = queue_pause.kind is PauseKind.PAUSE
    if not queue_pause.why:
        return _("{by} has paused the queue.", by=by) if is_pause else _("{by} is emptying the queue.", by=by)
    why = escape(queue_pause.why, 300)
    if is_pause:
        return _("{by} has paused the queue: “{why}”.", by=by, why=why)
    return _("{by} is emptying the queue: “{why}”.", by=by, why=why)


def forecast_line(forecast: StartForecast, now: datetime, *, hides_start: bool = False) -> str:
    """`Starts about 14:20 (in 35 minutes) · takes about 48 min (usually ±15 %)`; unknown parts are left out."""
    parts = []
    if forecast.starts_at is not None and not hides_start:
        parts.append(start_words(forecast.starts_at, now, with_distance=True))
    if forecast.seconds is not None:
        time = rough_duration(forecast.seconds)
        if forecast.usual_error is None:
            parts.append(_("takes about {duration}", duration=time))
        else:
            error = percent(forecast.usual_error)
            parts.append(_("takes about {duration} (usually ±{error})", duration=time, error=error))
    line = " · ".join(parts)
    return line[:1].upper() + line[1:]


def start_words(starts_at: datetime, now: datetime, *, with_distance: bool = False) -> str:
    """`starts now`, `starts about 14:20`, `starts about 14:20 (in 35 minutes)`."""
    if starts_at <= now + _AT_ONCE:
        return _("starts now")
    words = _("starts about {time}", time=time_or_date(starts_at, now))
    return f"{words} ({relative_time(starts_at)})" if with_distance else words
