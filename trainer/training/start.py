"""How one run of a job was started: what its spec does not say, and another run of it may have otherwise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a job."""

    #: End the training with the current epoch, whatever the settings say: test and export the best checkpoint.
    is_finishing: bool = False
    #: Which of the job's attempts this is (`trainer/protocol/attempt.py`); 0: nobody numbered it.
    attempt: int = 0
    #: No more pictures than these in memory at once; None: as many as fit.
    micro_batch: int | None = None
    #: How many processes are to share the training; None: as many as there are.
    processes: int | None = None
