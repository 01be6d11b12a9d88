"""`python -m trainer devices`, with fakes of the driver's libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.commands.devices_command import find_devices
from trainer.protocol.devices import Devices, Gpu

GIB = 2**30


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A machine with an NVIDIA card and a sound card."""
    for name, vendor, kind in (("0000:01:00.0", "0x10de", "0x030200"), ("0000:02:00.0", "0x8086", "0x040300")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    return tmp_path


def fake_cuda(monkeypatch: pytest.MonkeyPatch, *uuids: str | None) -> None:
    """Fake a GPU for each UUID; None: torch does not report its UUID."""

    def properties(number: int) -> SimpleNamespace:
        known = {} if uuids[number] is None else {"uuid": uuids[number]}
        return SimpleNamespace(name=f"H{number}", total_memory=80 * GIB, **known)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", None)


class NVMLError(Exception):
    pass


def fake_nvml(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    nvml: Any = ModuleType("pynvml")
    nvml.nvmlInit = lambda: None
    nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC, nvml.NVML_TEMPERATURE_GPU = 1, 0, 0
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: f"handle of {uuid}"

    def query(name: str) -> Any:
        def answer(handle: str, *what: int) -> Any:
            assert handle == "handle of GPU-a"
            if isinstance(answers[name], Exception):
                raise answers[name]
            return answers[name]

        return answer

    for name in ("MemoryInfo", "UtilizationRates", "Temperature", "TotalEccErrors"):
        setattr(nvml, f"nvmlDeviceGet{name}", query(name))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


def test_a_gpu_has_its_uuid_and_unknown_health_without_nvml(monkeypatch: pytest.MonkeyPatch, card: Path) -> None:
    fake_cuda(monkeypatch, "a", "b")
    assert find_devices(card) == Devices(
        gpus=(Gpu(id="GPU-a", name="H0", memory_bytes=80 * GIB), Gpu(id="GPU-b", name="H1", memory_bytes=80 * GIB))
    )


def test_without_a_uuid_a_gpu_has_its_name_in_the_environment(monkeypatch: pytest.MonkeyPatch, card: Path) -> None:
    fake_cuda(monkeypatch, None, None)
    assert [gpu.id for gpu in find_devices(card).gpus] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    assert [gpu.id for gpu in find_devices(card).gpus] == ["5", "3"]
    fake_cuda(monkeypatch, "whole")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-part")
    assert [gpu.id for gpu in find_devices(card).gpus] == ["MIG-part"]


def test_health_comes_from_nvml_as_far_as_it_is_supported(monkeypatch: pytest.MonkeyPatch, card: Path) -> None:
    fake_cuda(monkeypatch, "a")
    fake_nvml(
        monkeypatch,
        MemoryInfo=SimpleNamespace(free=7 * GIB),
        UtilizationRates=SimpleNamespace(gpu=93),
        Temperature=71,
        TotalEccErrors=NVMLError("Not Supported"),
    )
    (gpu,) = find_devices(card).gpus
    assert (gpu.free_bytes, gpu.utilization_percent, gpu.temperature_c, gpu.ecc_errors) == (7 * GIB, 93, 71, None)


def test_a_broken_driver_is_a_problem(monkeypatch: pytest.MonkeyPatch, card: Path) -> None:
    fake_cuda(monkeypatch, "a")

    def broken() -> int:
        raise RuntimeError("CUDA driver initialization failed, you might not have a CUDA gpu.\nmore")

    monkeypatch.setattr(torch.cuda, "current_device", broken)
    found = find_devices(card)
    assert found.gpus == ()
    assert found.problem.endswith("CUDA driver initialization failed, you might not have a CUDA gpu.")


def test_a_machine_without_a_card_has_no_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert find_devices(tmp_path) == find_devices(tmp_path / "nothing") == Devices()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_prints_one_line_of_json(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "trainer", "devices"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["gpus"] == []
