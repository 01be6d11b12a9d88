"""Why a job does not start yet, and when it is expected to."""

from __future__ import annotations

from bot.queue.halt import Halt, HaltKind
from bot.queue.job import Job
from bot.ui.standing import Forecast, Standing
from bot.ui.text import ago, counted, duration, moment, person, plain


def waiting_lines(job: Job, standing: Standing) -> list[str]:
    """What a queued job's card says: the reason, if it is held up, else when it is expected to start."""
    lines = []
    if reason := why_waiting(job, standing):
        lines.append(reason)
    if expected := expected_words(standing.forecast, is_held=standing.halt is not None):
        lines.append(expected)
    return lines


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
        return (
            f"<@{job.owner_id}> has {standing.owner_runs} of {counted(standing.owner_may_run, 'training')} running;"
            " it starts when one of them ends."
        )
    if job.gpus > 1 and standing.free_slots < job.gpus:
        return f"It needs {job.gpus} GPUs at once; {standing.free_slots} of {standing.slots} are free."
    return ""


def halt_words(halt: Halt) -> str:
    """`Queue is paused by @ana: “driver update”.`"""
    done = "paused" if halt.kind is HaltKind.PAUSE else "drained"
    why = f": “{plain(halt.why, 300)}”" if halt.why else ""
    return f"Queue is {done} by {person(halt.by)}{why}."


def expected_words(forecast: Forecast, *, is_held: bool = False) -> str:
    """`starts about <t:…:R> · runs about 48 min (usually ±15%)`; what is not known is left out."""
    parts = []
    if forecast.starts_at is not None and not is_held:
        parts.append(f"starts about {ago(forecast.starts_at)}")
    if forecast.seconds is not None:
        error = "" if forecast.usual_error is None else f" (usually ±{forecast.usual_error:.0%})"
        parts.append(f"runs about {duration(forecast.seconds)}{error}")
    return " · ".join(parts)
