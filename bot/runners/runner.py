"""The seam to where a training runs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NewType, Protocol

from bot.runners.events import EventLines

#: Small JSON by which a runner finds a training again, also after a restart of the bot.
Handle = NewType("Handle", str)


class Status(StrEnum):
    """Whether a trainer process is there."""

    RUNNING = "running"
    #: What it said before it went stands in its events; without a last word there it died.
    GONE = "gone"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One start of a job."""

    job_id: int
    attempt: int
    #: Holds spec.json.
    job_dir: Path
    #: Only test and export the best checkpoint (`trainer run --finish`).
    finish: bool = False


class Runner(Protocol):
    """Starts, finds, stops and hears trainings."""

    async def launch(self, launch: Launch) -> Handle:
        """Start the training, or find the one that already works on this job folder.

        Raises:
            LaunchFailed: no process could be started.
        """
        ...

    async def poll(self, handle: Handle) -> Status:
        """Whether it runs. Ask before the read that may be the last one, else its last lines can be missed."""
        ...

    async def stop(self, handle: Handle) -> None:
        """Tell it to save a checkpoint and stop; returns at once."""
        ...

    async def kill(self, handle: Handle) -> None:
        """End it and all its processes now."""
        ...

    async def events(self, job_dir: Path, offset: int) -> EventLines:
        """What it said after the first `offset` bytes of its events."""
        ...
