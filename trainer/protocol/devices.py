"""The GPUs of a machine, as `python -m trainer devices` prints them: one JSON object on one line."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Gpu(_Frozen):
    """One GPU that torch can use."""

    #: As in CUDA_VISIBLE_DEVICES: its UUID where the driver tells it, else its number.
    id: str
    name: str
    memory_bytes: int
    #: What NVML tells of its health; None where it does not.
    free_bytes: int | None = None
    temperature_c: int | None = None
    utilization_percent: int | None = None
    #: Memory errors that could not be corrected, since the driver was loaded.
    ecc_errors: int | None = None


class Devices(_Frozen):
    """What this machine computes on."""

    gpus: tuple[Gpu, ...] = ()
    #: Why there are none, or none can be used; empty where nothing is wrong.
    problem: str = ""
