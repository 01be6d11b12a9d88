"""Why a job does not start yet, and when it is expected to."""

from __future__ import annotations

from datetime import datetime, timedelta

from bot.queue.domain.job import Job
from bot.queue.store.queue_control import Halt, HaltKind
from bot.ui.standing import Forecast, Standing
from bot.ui.text import ago, counted, moment, person, plain, point, rough_duration

#: A start that is expected so soon after the one that was asked for is not told twice.
_SAME = timedelta(minutes=1)
#: The line is played through a moment after a message has asked for the time.
_AT_ONCE = timedelta(seconds=5)


def waiting_lines(job: Job, standing: Standing) -> list[str]:
    """What a queued job's card says: the reason, if it is held up, else when it is expected to start."""
    lines = []
    if reason := why_waiting(job, standing):
        lines.append(reason)
    is_told = standing.halt is not None or _starts_as_asked(job, standing)
    if expected := expected_words(standing.forecast, standing.now, is_told=is_told):
        lines.append(expected)
    return lines


def _starts_as_asked(job: Job, standing: Standing) -> bool:
    starts_at = standing.forecast.starts_at
    if starts_at is None or job.run_after is None or job.run_after <= standing.now:
        return False
    return starts_at <= job.run_after + _SAME


def why_waiting(job: Job, standing: Standing) -> str:
    """Why it does not start although it may be its turn; "" where it only waits for a slot."""
    if standing.halt is not None:
        return f"{halt_words(standing.halt)} The job is saved as #{job.id}."
    if job.run_after is not None and job.run_after > standing.now:
        if job.attempt:
            return f"It tries again {ago(job.run_after)}: a short pause first, in case the trouble passes."
        return f"It was asked to start at {moment(job.run_after)} ({ago(job.run_after)})."
    if standing.why_closed:
        return plain(standing.why_closed, 300)
    if standing.owner_may_run is not None and standing.owner_runs >= standing.owner_may_run:
        runs = counted(standing.owner_runs, "training")
        ends = "that one ends" if standing.owner_runs == 1 else "one of them ends"
        return (
            f"<@{job.owner_id}> has {runs} running and may have {standing.owner_may_run} at once;"
            f" this one starts when {ends}."
        )
    verb = "is" if standing.free_slots == 1 else "are"
    if job.gpus > 1 and standing.free_slots < job.gpus:
        return f"It needs {job.gpus} GPUs at once; {standing.free_slots} of {standing.slots} {verb} free."
    return ""


def halt_words(halt: Halt) -> str:
    """`Queue is paused by @ana: “driver update”.`"""
    done = "paused" if halt.kind is HaltKind.PAUSE else "drained"
    why = f": “{plain(halt.why, 300)}”" if halt.why else ""
    return f"Queue is {done} by {person(halt.by)}{why}."


def expected_words(forecast: Forecast, now: datetime, *, is_told: bool = False) -> str:
    """`starts about 14:20 (in 35 minutes) · runs about 48 min (usually ±15%)`; what is not known is left out.

    `is_told`: nothing of the start, of which something else was said.
    """
    parts = []
    if forecast.starts_at is not None and not is_told:
        parts.append(start_words(forecast.starts_at, now, with_distance=True))
    if forecast.seconds is not None:
        error = "" if forecast.usual_error is None else f" (usually ±{forecast.usual_error:.0%})"
        parts.append(f"runs about {rough_duration(forecast.seconds)}{error}")
    return " · ".join(parts)


def start_words(starts_at: datetime, now: datetime, *, with_distance: bool = False) -> str:
    """`starts now`, `starts about 14:20`, `starts about 14:20 (in 35 minutes)`."""
    if starts_at <= now + _AT_ONCE:
        return "starts now"
    return f"starts about {point(starts_at, now)}" + (f" ({ago(starts_at)})" if with_distance else "")
