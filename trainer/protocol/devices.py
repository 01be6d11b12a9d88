"""The GPUs of a machine, as `python -m trainer devices` prints them: one JSON object on one line."""

from __future__ import annotations

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
