"""A process in a container has the memory of its control group, not that of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer import device

CPU = torch.device("cpu")


def group(folder: Path, limit: str, used: int, cached: int, *, is_old: bool = False) -> None:
    """Write what the kernel shows of a control group, of version 2 or 1."""
    limit_file, used_file = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes") if is_old else ("memory.max", "memory.current")
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit_file).write_text(f"{limit}\n")
    (folder / used_file).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{'total_' * is_old}inactive_file {cached}\n")


def test_the_limits_of_all_groups_above_count(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/user/job\n")
    group(tmp_path / "user", "3000", 700, 500)
    group(tmp_path / "user" / "job", "max", 100, 0)
    assert device._group_limits(tmp_path, own) == [(3000, 200)]


def test_groups_of_version_1_are_read(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("5:cpu:/x\n4:memory:/docker/abc\n")
    # In a container its own group is the root.
    group(tmp_path / "memory", "2000", 900, 100, is_old=True)
    assert device._group_limits(tmp_path, own) == [(2000, 800)]


def test_a_system_without_groups_has_no_limits(tmp_path: Path) -> None:
    assert device._group_limits(tmp_path, tmp_path / "none") == []


def test_the_smallest_limit_is_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_group_limits", lambda: [(3000, 1000), (2500, 100)])
    assert device.total_memory_bytes(CPU) == 2500
    assert device.free_memory_bytes(CPU) == 2000
    monkeypatch.setattr(device, "_group_limits", list)
    assert device.total_memory_bytes(CPU) > 2**30
