"""The fence of a job folder (which attempt is valid) and its heartbeat file.

The runner writes the attempt's number before it starts a trainer. A trainer that finds another number than its own has
lost the job: it was cut off or believed dead, and another attempt has started. It writes nothing more and exits with
`EXIT_FENCED`. Attempt 0 is a run from the command line and is never fenced.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from trainer.exchange.files import write_text
from trainer.protocol.frozen import Frozen

ATTEMPT_FILE = "attempt.json"
#: Its modification time is the trainer's last heartbeat.
HEARTBEAT_FILE = "heartbeat"
HEARTBEAT_S = 5.0


class AttemptFence(Frozen):
    """Content of `attempt.json`."""

    attempt: int = Field(ge=0)


def write_attempt(job_dir: Path, attempt: int) -> None:
    """Make `attempt` the valid one; durable when the call returns."""
    write_text(job_dir / ATTEMPT_FILE, AttemptFence(attempt=attempt).model_dump_json(), durable=True)


def read_attempt(job_dir: Path) -> int:
    """Return the valid attempt of a job folder, 0 if there is no fence."""
    try:
        return AttemptFence.model_validate_json((job_dir / ATTEMPT_FILE).read_bytes()).attempt
    except (FileNotFoundError, ValidationError):
        return 0


def read_heartbeat(job_dir: Path) -> float | None:
    """Return the time of the last heartbeat in seconds since the epoch, None if there was none.

    A process that is stopped, swapped out or stuck in a driver is alive and has none.
    """
    try:
        return (job_dir / HEARTBEAT_FILE).stat().st_mtime
    except FileNotFoundError:
        return None
