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

    #: A cluster took it and has no room yet.
    WAITING = "waiting"
    RUNNING = "running"
    #: What it said before it went stands in its events; without a last word there it died.
    GONE = "gone"
    #: Gone because the machine that it ran on went down: no fault of its own, and no attempt that counts.
    CUT_OFF = "cut_off"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One start of a job."""

    job_id: int
    #: The fence: what a process of an earlier attempt says or saves from here on is refused.
    attempt: int
    #: Holds spec.json.
    job_dir: Path
    #: Only test and export the best checkpoint (`trainer run --finish`).
    finish: bool = False
    #: How many GPUs it asked for; 0 where there is none.
    gpus: int = 0
    #: Those that it got, as in CUDA_VISIBLE_DEVICES; empty: whatever the machine (or the cluster) gives it.
    devices: tuple[str, ...] = ()
    #: No more pictures than these in memory at once (after it ran out of memory); None: as many as fit.
    micro_batch: int | None = None


class Runner(Protocol):
    """Starts, finds, stops and hears trainings."""

    async def launch(self, launch: Launch) -> Handle:
        """Start the training, or find the one that this attempt started already: twice is one process.

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

    async def events(self, handle: Handle, job_dir: Path, offset: int) -> EventLines:
        """What it said after the first `offset` bytes of its events.

        The files that these events name are in `job_dir` by then (not the checkpoints, where they lie elsewhere).
        """
        ...

    async def last_beat(self, handle: Handle, job_dir: Path) -> float | None:
        """When its process gave its last sign of life, seconds since the epoch; None while there was none.

        A process that is stopped, swapped out or hangs in a driver lives and gives none.
        """
        ...
