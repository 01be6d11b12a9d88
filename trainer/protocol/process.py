"""Who runs a job folder: the identity of a process that outlives a restart of whoever started it.

A pid alone may be another process by now; pid, start time and boot id together are not.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

#: Written into the job folder by the trainer once it holds the folder's lock.
PROCESS_FILE = "process.json"


class ProcessIdentity(BaseModel):
    """One process of one boot of this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    #: Clock ticks since boot (`/proc/PID/stat`, field 22); elsewhere than on Linux, 0.
    start_time: int
    boot_id: str

    def is_alive(self) -> bool:
        """True while that very process runs; a zombie does not."""
        return identify(self.pid) == self

    def went_down_with_its_machine(self) -> bool:
        """Whether the machine was started anew since: nobody killed it, and it did not die of itself."""
        return self.boot_id != _boot_id()


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of a running process, None if there is none (or only its zombie)."""
    try:
        # The command name, in brackets, may hold spaces and brackets: fields count from behind the last one.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot_id = _boot_id()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, start_time = fields[0], int(fields[19])
    return None if state in "ZX" else ProcessIdentity(pid=pid, start_time=start_time, boot_id=boot_id)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def read_process_file(job_dir: Path) -> ProcessIdentity | None:
    """Who last held the lock of a job folder, None if nobody did."""
    try:
        return ProcessIdentity.model_validate_json((job_dir / PROCESS_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
