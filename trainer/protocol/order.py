"""What a warmed trainer (`python -m trainer wait`) is told, and what it answers, on its standard input and output.

It says READY once its libraries are loaded, waits for one `Order` on one line, says TAKEN, and from there on is a
`trainer run`, its output in the job's log. End of file instead of an order, and it goes without a word.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

READY, TAKEN = b"ready\n", b"taken\n"

#: Set by whoever bound a trainer to GPUs of this machine: without one that torch can use it must not train.
NEEDS_GPU_VARIABLE = "DARKROOM_NEEDS_GPU"

#: Standard output and error of all starts of a job.
LOG_FILE = "trainer.log"


class Order(BaseModel):
    """One start of a job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_dir: Path
    #: Train no further: test and export the best checkpoint.
    finish: bool = False
    attempt: int = 0
    #: GPUs to use, as in CUDA_VISIBLE_DEVICES; empty: those that it sees.
    devices: tuple[str, ...] = ()
    #: No more pictures than these in memory at once; None: as many as fit.
    micro_batch: int | None = None

    def to_line(self) -> bytes:
        return self.model_dump_json().encode() + b"\n"
