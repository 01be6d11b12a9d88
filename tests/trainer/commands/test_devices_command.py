"""What `devices` tells of GPUs, with stand-ins for the driver's libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.commands.devices import find_devices
from trainer.protocol.devices import Devices, Gpu

GIB = 2**30


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A machine with an NVIDIA card, and a sound one."""
    for name, vendor, kind in (("0000:01:00.0", "0x10de", "0x030200"), ("0000:02:00.0", "0x8086", "0x040300")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    return tmp_path


def pretend(monkeypatch: pytest.MonkeyPatch, *uuids: str | None) -> None:
    """As many GPUs as there are UUIDs; None: a torch that does not tell it."""

    def properties(number: int) -> SimpleNamespace:
        told = {} if uuids[number] is None else {"uuid": uuids[number]}
        return SimpleNamespace(name=f"H{number}", total_memory=80 * GIB, **told)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", None)


class NVMLError(Exception):
    pass


def pretend_nvml(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    nvml: Any = ModuleType("pynvml")
    nvml.nvmlInit = lambda: None
    nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC, nvml.NVML_TEMPERATURE_GPU = 1, 0, 0
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: f"handle of {uuid}"

    def asked(name: str) -> Any:
        def ask(handle: str, *what: int) -> Any:
            assert handle == "handle of GPU-a"
            if isinstance(answers[name], Exception):
                raise answers[name]
            return answers[name]

        return ask

    for name in ("MemoryInfo", "UtilizationRates", "Temperature", "TotalEccErrors"):
        setattr(nvml, f"nvmlDeviceGet{name}", asked(name))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


def test_a_gpu_goes_by_its_uuid_and_without_nvml_its_health_is_unknown(
    monkeypatch: pytest.MonkeyPatch, card: Path
) -> None:
    pretend(monkeypatch, "a", "b")
    assert find_devices(card) == Devices(
        gpus=(Gpu(id="GPU-a", name="H0", memory_bytes=80 * GIB), Gpu(id="GPU-b", name="H1", memory_bytes=80 * GIB))
    )


def test_without_uuids_it_goes_by_what_the_environment_calls_it(monkeypatch: pytest.MonkeyPatch, card: Path) -> None:
    pretend(monkeypatch, None, None)
    assert [gpu.id for gpu in find_devices(card).gpus] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    assert [gpu.id for gpu in find_devices(card).gpus] == ["5", "3"]
    pretend(monkeypatch, "whole")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-part")
    assert [gpu.id for gpu in find_devices(card).gpus] == ["MIG-part"]


def test_nvml_tells_its_health_and_what_it_does_not_know_is_left_out(
    monkeypatch: pytest.MonkeyPatch, card: Path
) -> None:
    pretend(monkeypatch, "a")
    pretend_nvml(
        monkeypatch,
        MemoryInfo=SimpleNamespace(free=7 * GIB),
        UtilizationRates=SimpleNamespace(gpu=93),
        Temperature=71,
        TotalEccErrors=NVMLError("Not Supported"),
    )
    (gpu,) = find_devices(card).gpus
    assert (gpu.free_bytes, gpu.utilization_percent, gpu.temperature_c, gpu.ecc_errors) == (7 * GIB, 93, 71, None)


def test_a_driver_that_is_broken_is_told(monkeypatch: pytest.MonkeyPatch, card: Path) -> None:
    pretend(monkeypatch, "a")

    def broken() -> int:
        raise RuntimeError("CUDA driver initialization failed, you might not have a CUDA gpu.\nmore")

    monkeypatch.setattr(torch.cuda, "current_device", broken)
    found = find_devices(card)
    assert found.gpus == ()
    assert found.problem == (
        "The GPUs cannot be used: RuntimeError: CUDA driver initialization failed, you might not have a CUDA gpu."
    )


def test_a_machine_without_a_card_has_no_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert find_devices(tmp_path) == find_devices(tmp_path / "nothing") == Devices()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_prints_one_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "trainer", "devices"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["gpus"] == []
