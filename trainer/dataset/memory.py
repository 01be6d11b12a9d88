"""Private memory: a limit on this process, a budget that several processes share, and what the C library keeps."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext

#: From here on, memory is given back to the system after use.
_LARGE_BYTES = 128 * 2**20
#: Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
#: Freed memory at the end of the heap that a process keeps: while it decodes images, and while it trains. All that a
#: step frees, since the next one needs as much; 2 GiB is the most that can be set.
_KEPT_BYTES, _KEPT_BETWEEN_STEPS = 32 * 2**20, 2**31 - 1
#: A block of memory that is a mapping of its own, where holes of a heap would cost too much.
_MAPPED_BYTES = 2**18


class SharedMemoryBudget:
    """Memory for images that all decoders share: each waits until there is enough for its image."""

    def __init__(self, context: ForkServerContext, total: int) -> None:
        self._total = max(0, total)
        self._free = context.Value("q", self._total, lock=False)
        self._changed = context.Condition()

    @contextmanager
    def taken(self, needed: int, *, own: int) -> Iterator[None]:
        """Take memory while the body runs, and limit this process to it; more than the total is the total.

        Args:
            needed: Bytes for the image.
            own: Bytes that the process may take besides.
        """
        share = min(needed, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free.value >= share)
            self._free.value -= share
        try:
            with private_memory_limited(share + own):
                yield
        finally:
            if share >= _LARGE_BYTES:
                release_memory()
            with self._changed:
                self._free.value += share
                self._changed.notify_all()


@contextmanager
def private_memory_limited(more: int) -> Iterator[None]:
    """Let this process take so many more bytes while the body runs, then as many as before (Linux)."""
    if sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    # Twice for each image: `Path.read_text` takes three times as long.
    with open("/proc/self/statm", "rb", buffering=0) as statm:  # noqa: PTH123
        pages = int(statm.read().split()[5])
    most = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def release_memory() -> None:
    """Give freed memory back to the system, where the C library would keep it (glibc)."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def keep_freed_memory() -> None:
    """Let this process use freed memory again, up to 32 MiB of it, rather than ask the system for the same (glibc).

    Else each array of an image is cleared by the system first, which takes as long as all measures together.
    """
    _set_malloc({_M_MMAP_THRESHOLD: _KEPT_BYTES // 2, _M_TRIM_THRESHOLD: _KEPT_BYTES})


def keep_memory_between_steps() -> None:
    """Let each step use the memory that the one before has freed; `release_memory` gives it back (glibc).

    Else most of it goes back after each step, and each block of more than 32 MiB at once (oneDNN takes one for each of
    the largest convolutions); the system clears all of it again: 165,000 pages and 0.45 s of the 4.1 s of CPU that a
    step of SD 1.5 took at 256 px. Then there were none; the peak was the same.
    """
    _set_malloc({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _KEPT_BETWEEN_STEPS})


def return_large_blocks(least: int = _MAPPED_BYTES) -> None:
    """Let each freed block of `least` bytes or more go back to the system at once (glibc): less memory for more time.

    Else the C library keeps blocks of up to 32 MiB in one heap, in whose holes few others fit. With 256 KiB, a step of
    a LoRA of SD 1.5 at 512 px peaked at 3.15 GiB instead of 3.65, of SDXL at 7.44 instead of 8.77. The system clears
    each block again, so that the step took 10.3 s instead of 5.8.
    """
    _set_malloc({_M_MMAP_THRESHOLD: least, _M_TRIM_THRESHOLD: _KEPT_BYTES})


def _set_malloc(values: Mapping[int, int]) -> None:
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        for parameter, value in values.items():
            mallopt(parameter, value)


#: `uordblks` is what lies in heaps, `hblkhd` what lies in mappings of its own; both in use.
_MALLINFO_FIELDS = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of malloc.h."""

    _fields_ = [(name, ctypes.c_size_t) for name in _MALLINFO_FIELDS]


def allocated_bytes() -> int | None:
    """Return what the C library has handed out to this process, and nothing that it keeps (glibc from 2.33 on)."""
    if (mallinfo := getattr(ctypes.CDLL(None), "mallinfo2", None)) is None:
        return None
    mallinfo.restype = _MallInfo
    info = mallinfo()
    return int(info.uordblks + info.hblkhd)
