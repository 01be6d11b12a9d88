"""A process in a container has the memory of its control group, and gives back what it has freed."""

from __future__ import annotations

import ctypes
import subprocess
import sys
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


#: Blocks of 1 MiB, with small ones that stay between them, after the C library has learned to keep large blocks.
_ALLOCATE = """
import ctypes, sys
from pathlib import Path
from trainer.dataset.memory import return_large_blocks

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p

def take(size):
    address = library.malloc(ctypes.c_size_t(size))
    ctypes.memset(address, 1, size)
    return address

def give(address):
    library.free(ctypes.c_void_p(address))

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

give(take(30 * 2**20))
if sys.argv[1] == "returned":
    return_large_blocks()
before, blocks = resident(), []
for _ in range(100):
    blocks.append(take(2**20))
    take(512)
for block in blocks:
    give(block)
print((resident() - before) * 4096 / 2**20)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="of glibc")
def test_blocks_that_are_freed_between_others_go_back_to_the_system() -> None:
    kept, returned = (
        float(subprocess.run([sys.executable, "-c", _ALLOCATE, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "returned")
    )

    assert kept > 90
    assert returned < 10
