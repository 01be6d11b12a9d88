"""The GPUs of a machine, as `python -m trainer devices` prints them, and the results of its self-test."""

from __future__ import annotations

from enum import StrEnum

from trainer.protocol.frozen import Frozen


class Gpu(Frozen):
    """One GPU that torch can use."""

    #: As in CUDA_VISIBLE_DEVICES: its UUID if the driver reports it, else its number.
    id: str
    name: str
    memory_bytes: int
    #: Health as NVML reports it; None if it does not.
    free_bytes: int | None = None
    temperature_c: int | None = None
    utilization_percent: int | None = None
    #: Uncorrected memory errors since the driver was loaded.
    ecc_errors: int | None = None


class Devices(Frozen):
    """The GPUs of a machine."""

    gpus: tuple[Gpu, ...] = ()
    #: Why no GPU can be used; empty if nothing is wrong.
    problem: str = ""


class Outcome(StrEnum):
    """What became of a check."""

    PASSED = "passed"
    FAILED = "failed"
    #: This machine has no means for it, or not the memory.
    UNAVAILABLE = "unavailable"


class SelfTestResult(Frozen):
    """The result of one check."""

    name: str
    outcome: Outcome
    #: Why it failed or is unavailable.
    note: str = ""
    step_s: float | None = None
    peak_bytes: int | None = None
    #: Of the peak what was in use, on a CPU: its C library keeps memory that it could give back. None: not known.
    used_bytes: int | None = None
    #: What the memory in use was predicted to be, and what was free before.
    predicted_bytes: int | None = None
    free_bytes: int | None = None
    #: Relative distance of the update to the reference's, and the largest that is right.
    distance: float | None = None
    limit: float | None = None


class SelfTestReport(Frozen):
    """The results of all checks on one machine."""

    device: str
    torch: str
    #: Of the device, before the first check.
    free_bytes: int
    results: tuple[SelfTestResult, ...]

    @property
    def is_right(self) -> bool:
        """True if no check failed."""
        return all(result.outcome is not Outcome.FAILED for result in self.results)
