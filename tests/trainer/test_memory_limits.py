"""A process in a container has the memory of its control group, and gives back what it has freed."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer import device
from trainer.training.selftest_job import MemoryInUse

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


#: Frees blocks of 1 MiB with small ones that stay between them, and blocks in a heap without holes, after the C
#: library has learned to keep large blocks. Prints what is still resident, what is in use, and how many pages the
#: system cleared for a second round, all in MiB.
_ALLOCATE = """
import ctypes, resource, sys
from pathlib import Path
from trainer.dataset import memory

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p

def take(size):
    address = library.malloc(ctypes.c_size_t(size))
    ctypes.memset(address, 1, size)
    return address

def give(address):
    library.free(ctypes.c_void_p(address))

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def cleared():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt * 4096

give(take(30 * 2**20))
if sys.argv[1]:
    getattr(memory, sys.argv[1])()
before, used_before, blocks = resident(), memory.allocated_bytes(), []
for _ in range(100):
    blocks.append(take(2**20))
    take(512)
for block in blocks:
    give(block)
after, used = resident() - before, memory.allocated_bytes() - used_before
for number in range(2):
    cleared_before = cleared()
    for block in [take(size) for size in [2**20] * 300 + [40 * 2**20]]:
        give(block)
print(*(each / 2**20 for each in (after, used, cleared() - cleared_before)))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="of glibc")
def test_freed_memory_goes_back_at_once_or_is_kept_for_the_next_step() -> None:
    default, kept, returned = (
        [float(each) for each in subprocess.check_output([sys.executable, "-c", _ALLOCATE, how], text=True).split()]
        for how in ("", "keep_memory_between_steps", "return_large_blocks")
    )

    assert default[0] > 90
    assert kept[0] > 90
    assert returned[0] < 10
    assert all(used < 10 for _resident, used, _cleared in (default, kept, returned))
    # The second round uses the memory of the first one.
    assert kept[2] < 10
    assert default[2] > 150
    assert returned[2] > 290


def test_the_memory_in_use_is_what_is_allocated_at_the_peak() -> None:
    with MemoryInUse(CPU) as idle:
        pass
    with MemoryInUse(CPU) as busy:
        tensor = torch.ones(100 * 2**20, dtype=torch.uint8)
    assert busy.peak_bytes is not None
    assert idle.peak_bytes is not None
    assert busy.peak_bytes - idle.peak_bytes == pytest.approx(tensor.nbytes, rel=0.1)
    with MemoryInUse(torch.device("cuda")) as unknown:
        pass
    assert unknown.peak_bytes is None
