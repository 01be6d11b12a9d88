"""`python -m trainer devices`: which GPUs a training could use here, and how they are, as one line of JSON."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from trainer.errors import first_line
from trainer.protocol.devices import Devices, Gpu

T = TypeVar("T")

_PCI = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAY = "0x10de", "0x03"


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `devices` takes: nothing."""
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print `trainer.protocol.devices.Devices`; what is wrong with the driver stands in it.

    A driver that hangs, hangs this too: whoever calls it sets a limit.
    """
    with warnings.catch_warnings():
        # torch warns of a broken driver; the sentence is in what we print.
        warnings.simplefilter("ignore")
        found = find_devices()
    sys.stdout.write(found.model_dump_json() + "\n")
    return 0


def find_devices(pci: Path = _PCI) -> Devices:
    """The GPUs that torch can use, within CUDA_VISIBLE_DEVICES."""
    try:
        import torch

        if torch.version.cuda is None:
            raise RuntimeError("this torch is built without CUDA")
        # Raises where `device_count` would say 0.
        torch.cuda.current_device()
        names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        nvml = _nvml()
        return Devices(gpus=tuple(_gpu(torch, nvml, number, names) for number in range(torch.cuda.device_count())))
    except Exception as error:  # noqa: BLE001 - whatever a broken driver raises, it is the answer
        # On a machine without such a card nothing is wrong.
        return Devices(problem=f"The GPUs cannot be used: {first_line(error)}" if _has_card(pci) else "")


def _gpu(torch: ModuleType, nvml: ModuleType | None, number: int, visible: list[str]) -> Gpu:
    properties = torch.cuda.get_device_properties(number)
    known = getattr(properties, "uuid", None)
    told = visible[number] if number < len(visible) else ""
    # A part of a card (MIG) goes by the name that it was given; its properties tell the whole card's.
    uuid = told if told.startswith("MIG-") else f"GPU-{known}" if known else ""
    gpu = Gpu(id=uuid or told or str(number), name=properties.name, memory_bytes=properties.total_memory)
    return gpu if nvml is None or not uuid else _with_health(gpu, nvml)


def _nvml() -> ModuleType | None:
    """NVIDIA's library of health (`pip install nvidia-ml-py`), where it is installed and works."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 - without it we know less, and that is all
        return None
    return nvml


def _with_health(gpu: Gpu, nvml: ModuleType) -> Gpu:
    handle = _told(lambda: nvml.nvmlDeviceGetHandleByUUID(gpu.id))
    if handle is None:
        return gpu
    memory = _told(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    rates = _told(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    uncorrected, since_loaded = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    return gpu.model_copy(
        update={
            "free_bytes": None if memory is None else memory.free,
            "temperature_c": _told(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            "utilization_percent": None if rates is None else rates.gpu,
            "ecc_errors": _told(lambda: nvml.nvmlDeviceGetTotalEccErrors(handle, uncorrected, since_loaded)),
        }
    )


def _told(ask: Callable[[], T]) -> T | None:
    """What a card answers; None where it does not know such a thing."""
    try:
        return ask()
    except Exception:  # noqa: BLE001 - pynvml's errors are made at run time, by number
        return None


def _has_card(pci: Path) -> bool:
    """Whether an NVIDIA display controller is in this machine, driver or not."""
    try:
        return any(
            (card / "vendor").read_text(encoding="ascii").strip() == _NVIDIA
            and (card / "class").read_text(encoding="ascii").startswith(_DISPLAY)
            for card in pci.iterdir()
        )
    except OSError:
        return False
