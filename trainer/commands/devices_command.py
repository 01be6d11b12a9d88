"""The commands about the machine: `devices` prints its GPUs as JSON, `selftest` tries what a training may use."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from trainer.commands.terminal import quieten_libraries
from trainer.errors import first_line
from trainer.exchange.files import write_text
from trainer.protocol import text
from trainer.protocol.devices import Devices, Gpu, SelfTestReport, SelfTestResult
from trainer.protocol.events import EXIT_FAILED, EXIT_FINISHED
from trainer.protocol.text import _
from trainer.training.run import choose_openmp_spin

T = TypeVar("T")

_PCI = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAY = "0x10de", "0x03"
_TABLE = "{:28} {:12} {:>9} {:>9} {:>9} {:>9} {:>18}  {}"
#: Seconds after which the self-test begins or goes on with no model of true size.
_LONG_S = 540.0


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `devices`: none."""
    parser.set_defaults(command=run_devices)


def run_devices(options: argparse.Namespace) -> int:
    """Print `trainer.protocol.devices.Devices`, with any problem of the driver.

    A hung driver hangs this command too, so the caller sets a time limit.
    """
    with warnings.catch_warnings():
        # torch warns about a broken driver, which is reported in the output.
        warnings.simplefilter("ignore")
        found = find_devices()
    sys.stdout.write(found.model_dump_json() + "\n")
    return 0


def find_devices(pci: Path = _PCI) -> Devices:
    """Return the GPUs that torch can use, within CUDA_VISIBLE_DEVICES."""
    try:
        import torch

        if torch.version.cuda is None:
            raise RuntimeError("this torch is built without CUDA")
        # This raises an error where `device_count` would return 0.
        torch.cuda.current_device()
        names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        nvml = _nvml()
        return Devices(gpus=tuple(_gpu(torch, nvml, number, names) for number in range(torch.cuda.device_count())))
    except Exception as error:  # noqa: BLE001 - a broken driver may raise anything, and it is the result
        # A machine without a card has no problem.
        return Devices(problem=f"The GPUs cannot be used: {first_line(error)}" if _has_card(pci) else "")


def _gpu(torch: ModuleType, nvml: ModuleType | None, number: int, visible: list[str]) -> Gpu:
    properties = torch.cuda.get_device_properties(number)
    known = getattr(properties, "uuid", None)
    name = visible[number] if number < len(visible) else ""
    # A part of a card (MIG) is identified by its own name; its properties have the uuid of the whole card.
    uuid = name if name.startswith("MIG-") else f"GPU-{known}" if known else ""
    gpu = Gpu(id=uuid or name or str(number), name=properties.name, memory_bytes=properties.total_memory)
    return gpu if nvml is None or not uuid else _with_health(gpu, nvml)


def _nvml() -> ModuleType | None:
    """Return NVIDIA's management library (`pip install nvidia-ml-py`) if it is installed and works."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 - it is optional, and may fail in any way
        return None
    return nvml


def _with_health(gpu: Gpu, nvml: ModuleType) -> Gpu:
    handle = _query(lambda: nvml.nvmlDeviceGetHandleByUUID(gpu.id))
    if handle is None:
        return gpu
    memory = _query(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    rates = _query(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    uncorrected, since_loaded = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    return gpu.model_copy(
        update={
            "free_bytes": None if memory is None else memory.free,
            "temperature_c": _query(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            "utilization_percent": None if rates is None else rates.gpu,
            "ecc_errors": _query(lambda: nvml.nvmlDeviceGetTotalEccErrors(handle, uncorrected, since_loaded)),
        }
    )


def _query(query: Callable[[], T]) -> T | None:
    """Return the value of an NVML query, None if the card does not support it."""
    try:
        return query()
    except Exception:  # noqa: BLE001 - pynvml creates its error classes at run time
        return None


def _has_card(pci: Path) -> bool:
    """Return True if this machine has an NVIDIA display controller, with or without a driver."""
    try:
        return any(
            (card / "vendor").read_text(encoding="ascii").strip() == _NVIDIA
            and (card / "class").read_text(encoding="ascii").startswith(_DISPLAY)
            for card in pci.iterdir()
        )
    except OSError:
        return False


def add_selftest(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `selftest`."""
    parser.add_argument("--quick", action="store_true", help="the tiny model only, in a minute or two")
    parser.add_argument("--base", action="append", default=[], metavar="MODEL", help="also a step on this model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    parser.set_defaults(command=run_selftest)


def run_selftest(options: argparse.Namespace) -> int:
    """Try each precision, option and method on this machine, and models of true size, and print a line for each.

    Returns:
        0 if nothing is wrong; what this machine has no means for is not wrong.
    """
    quieten_libraries()
    choose_openmp_spin()
    # Jobs are forks of a process in which a library may ask for GPUs: it must not touch them.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    from trainer.device import describe_device, free_memory_bytes
    from trainer.training.selftest import TRUE_SIZES, SelfTestRunner, check_of, checks_of_tiny

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name, free = describe_device(device), free_memory_bytes(device)
    sys.stdout.write(
        _("{device}, {free} free, torch {version}", device=name, free=text.size(free), version=torch.__version__) + "\n"
    )
    deadline = time.monotonic() + _LONG_S
    results = []
    sys.stdout.write(_TABLE.format(*_columns()).rstrip() + "\n")
    with SelfTestRunner() as runner:
        works = [partial(runner.run, check) for check in (*checks_of_tiny(), *map(check_of, options.base))]
        if not options.quick:
            works += [partial(runner.run_true_size, kind, deadline) for kind in TRUE_SIZES]
        for work in works:
            results.append(result := work())
            sys.stdout.write(f"{_line_of(result)}\n")
            sys.stdout.flush()
    report = SelfTestReport(device=name, torch=torch.__version__, free_bytes=free, results=tuple(results))
    if options.json is not None:
        write_text(options.json, report.model_dump_json(indent=1) + "\n")
    return EXIT_FINISHED if report.is_right else EXIT_FAILED


def _columns() -> tuple[str, ...]:
    return _("check"), _("result"), _("a step"), _("memory"), _("in use"), _("predicted"), _("difference (limit)"), ""


def _line_of(result: SelfTestResult) -> str:
    """Return a result as a line of a table."""
    seconds = "–" if result.step_s is None else f"{result.step_s:.3g} s"
    peak, used, predicted = (
        "–" if number is None else text.size(number)
        for number in (result.peak_bytes, result.used_bytes, result.predicted_bytes)
    )
    distance = "–" if result.distance is None else f"{result.distance:.1g} (≤ {result.limit:g})"
    cells = result.name, result.outcome, seconds, peak, used, predicted, distance, result.note
    return _TABLE.format(*cells).rstrip()
