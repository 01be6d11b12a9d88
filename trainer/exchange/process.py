"""Identity of the process that runs a job folder; it outlives a restart of the process that started it."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from trainer.exchange.files import write_text
from trainer.protocol.frozen import Frozen

#: Written into the job folder by the trainer once it holds the folder's lock.
PROCESS_FILE = "process.json"
#: Written by a process that lives on after its job: the attempt with which it has let go of the folder.
RELEASED_FILE = "released"


class ProcessIdentity(Frozen):
    """One process of one boot of this machine. A pid alone may be reused; pid, start time and boot id are unique."""

    pid: int
    #: Clock ticks since boot (`/proc/PID/stat`, field 22).
    start_time: int
    boot_id: str

    def is_alive(self) -> bool:
        """True while this very process runs; False for a zombie."""
        return identify(self.pid) == self

    def is_of_earlier_boot(self) -> bool:
        """True if the machine has rebooted since: the process was not killed and did not fail by itself."""
        return self.boot_id != _boot_id()


def identify(pid: int) -> ProcessIdentity | None:
    """Return the identity of a running process, None if there is none (or only a zombie)."""
    try:
        # The command name is in brackets and may contain spaces and brackets: count fields from the last bracket on.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot_id = _boot_id()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, start_time = fields[0], int(fields[19])
    return None if state in "ZX" else ProcessIdentity(pid=pid, start_time=start_time, boot_id=boot_id)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def write_process_file(job_dir: Path) -> None:
    """Record this process as the holder of a job folder."""
    identity = identify(os.getpid())
    assert identity is not None, "this process runs"
    write_text(job_dir / PROCESS_FILE, identity.model_dump_json())


def read_process_file(job_dir: Path) -> ProcessIdentity | None:
    """Return the last process that held the lock of a job folder, None if there was none."""
    try:
        return ProcessIdentity.model_validate_json((job_dir / PROCESS_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def release_job(job_dir: Path, attempt: int) -> None:
    """Record that this process has ended its attempt at a job, and lives on without it."""
    write_text(job_dir / RELEASED_FILE, str(attempt))
    (job_dir / PROCESS_FILE).unlink(missing_ok=True)


def is_released(job_dir: Path, attempt: int) -> bool:
    """True if the process of this attempt has let go of the job, though it may be alive."""
    try:
        return (job_dir / RELEASED_FILE).read_text(encoding="ascii") == str(attempt)
    except (FileNotFoundError, UnicodeDecodeError):
        return False
