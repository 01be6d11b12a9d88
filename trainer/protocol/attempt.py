"""Which attempt at a job is the valid one, and its sign of life: two small files in the job folder.

Whoever starts a trainer writes the attempt's number first. A trainer that finds another number than its own has lost
its job (it was cut off, stopped by the system, or believed dead, and another one took over): it writes nothing more
and leaves with `EXIT_FENCED`. 0 is a run that nobody numbered (the command line), which is never fenced.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

ATTEMPT_FILE = "attempt.json"
#: Its modification time is the trainer's last sign of life.
HEARTBEAT_FILE = "heartbeat"
HEARTBEAT_S = 5.0


class Attempt(BaseModel):
    """The attempt that a job folder belongs to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempt: int = Field(ge=0)


def write_attempt(job_dir: Path, attempt: int) -> None:
    """From here on only a trainer of this attempt may write; durable before the call returns."""
    part = job_dir / f"{ATTEMPT_FILE}.{os.getpid()}.part"
    with part.open("w", encoding="ascii") as file:
        file.write(Attempt(attempt=attempt).model_dump_json())
        file.flush()
        os.fsync(file.fileno())
    part.replace(job_dir / ATTEMPT_FILE)


def read_attempt(job_dir: Path) -> int:
    """The valid attempt of a job folder, 0 if nobody numbered it."""
    try:
        return Attempt.model_validate_json((job_dir / ATTEMPT_FILE).read_bytes()).attempt
    except (FileNotFoundError, ValidationError):
        return 0
