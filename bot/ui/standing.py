"""What a message about a job needs beside the job itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bot.queue.domain.job import Job
from bot.queue.store.queue_control import Halt
from trainer.protocol.study import StudyStep


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """When a waiting job is expected to start, and what it is expected to take; None: nobody knows."""

    starts_at: datetime | None = None
    seconds: float | None = None
    #: How far such estimates are usually off, as a share of the time; None: too few runs to say.
    usual_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a job stands among the others, asked for when the message is made."""

    #: Where the job's files lie.
    job_dir: Path
    now: datetime
    #: 1 is next; None when it does not wait.
    place: int | None = None
    #: Largest file that the server takes, bytes.
    file_limit: int = 10 * 1024 * 1024
    #: By which the sender finds the message again after a crash.
    marker: str = ""
    #: Since when it is in its state; None where nobody asked.
    since: datetime | None = None
    #: Who switched the queue off; None: it runs.
    halt: Halt | None = None
    #: Why nothing starts at this hour (training windows, a full disk), in a sentence; empty: it may.
    why_closed: str = ""
    #: How many of its owner's jobs run, and how many may at once; None: any number.
    owner_runs: int = 0
    owner_may_run: int | None = None
    #: Slots that are free, and that there are.
    free_slots: int = 0
    slots: int = 0
    forecast: Forecast = Forecast()
    #: Of a study: its runs, and what the trainer made of them last.
    children: tuple[Job, ...] = ()
    step: StudyStep | None = None

    def footer(self, job: Job) -> str:
        """The last line of each message about a job: `job 42·a1 · 3fa8c1d2`."""
        return f"job {job.id}·a{job.attempt}" + (f" · {self.marker}" if self.marker else "")
