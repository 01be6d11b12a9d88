"""Selects device and precision, classifies device errors, and wraps the collectives between training processes."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from trainer.errors import BadSpecError, DeviceLostError
from trainer.protocol.text import _
from trainer.protocol.training_settings import Precision

_MIXED_PRECISION = {Precision.FP32: "no", Precision.BF16: "bf16", Precision.FP16: "fp16"}

T = TypeVar("T")

#: Time-out of collectives; the main process may encode a large dataset while the others wait.
_COLLECTIVE_TIMEOUT = timedelta(hours=24)


def require_assigned_gpus(visible: str | None) -> None:
    """Raise unless torch finds the GPUs that the queue assigned to this job (`visible`, CUDA_VISIBLE_DEVICES).

    Without this check torch would silently train on the CPU.

    Raises:
        DeviceLostError: torch finds none of them.
    """
    if visible and visible != "-1" and not torch.cuda.is_available():
        raise DeviceLostError(
            _("This job was given GPU {gpu}, but torch finds no GPU that it can use.", gpu=visible),
            _("Check `nvidia-smi` and `python -m trainer devices`; after a driver update, restart the machine."),
        )


def choose_precision(wanted: Precision, *, is_half: bool = False) -> Precision:
    """Resolve `auto` to the best precision of the GPU; on a CPU it stays `auto`, for a trial to decide.

    Args:
        is_half: The weights are in 16 bits or fewer, so that a CPU computes in bf16, too.

    Raises:
        BadSpecError: This machine cannot compute in the wanted precision.
    """
    if wanted is Precision.FP16 and not torch.cuda.is_available():
        raise BadSpecError(
            _("training.precision fp16 needs a GPU, and there is none here."), _("Choose auto, fp32 or bf16.")
        )
    if wanted is not Precision.AUTO:
        return wanted
    if not torch.cuda.is_available():
        return Precision.BF16 if is_half else wanted
    return Precision.BF16 if torch.cuda.is_bf16_supported() else Precision.FP16


def make_accelerator(precision: Precision, *, tf32: bool) -> Accelerator:
    """Create accelerate's Accelerator: device placement, gradient scaling and the process group."""
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
    return Accelerator(
        mixed_precision=_MIXED_PRECISION.get(precision, "no"),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_COLLECTIVE_TIMEOUT)],
    )


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return an autocast context for `precision`; disabled for fp32."""
    dtype = dtype_of(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32)


def dtype_of(precision: Precision) -> torch.dtype:
    """Return the dtype in which a precision keeps frozen weights; `AUTO` and `FP32`: fp32."""
    return {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}.get(precision, torch.float32)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; to a GPU from pinned memory, so that neither waits for the other."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


#: From the CPU allocator, from CUDA outside torch's allocator, and from cuBLAS.
_OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """True if the device or the machine ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    )


#: Messages of CUDA, its libraries, NVML and the process group for a GPU or a process that is gone or broken.
_LOST = (
    "cuda error",
    "cuda driver error",
    "cuda unknown error",
    "no cuda gpus are available",
    "cublas_status",
    "cudnn_status",
    "nccl error",
    "nccl communicator",
    "ncclremoteerror",
    "gpu is lost",
    "fallen off the bus",
    "uncorrectable ecc",
    "unspecified launch failure",
    # From gloo, if a process died.
    "connection closed by peer",
    "connection reset by peer",
)
#: Messages that match `_LOST` but are bugs: another start would fail in the same way.
_BUGS = (
    "device-side assert",
    "no kernel image",
    "invalid device ordinal",
    "invalid argument",
    "invalid configuration argument",
    "not_supported",
    "not supported",
    "invalid_value",
    "bad_param",
)


def is_device_lost(error: BaseException) -> bool:
    """True if the GPU, or another process of the training, is gone or broken.

    torch raises RuntimeError (AcceleratorError and DistBackendError are subclasses), NVML its own exceptions.
    """
    if not isinstance(error, RuntimeError) and not type(error).__name__.startswith("NVMLError"):
        return False
    text = str(error).lower()
    return any(word in text for word in _LOST) and not any(word in text for word in _BUGS)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory in bytes: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (peak := _linux_peak_bytes()) is not None:
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # ru_maxrss is in bytes on macOS, in KiB elsewhere.
    return peak if sys.platform == "darwin" else peak * 1024


def _linux_peak_bytes() -> int | None:
    """Read VmHWM; unlike it, `ru_maxrss` starts at the peak of the parent process."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return None if line is None else int(line.split()[1]) * 1024


def total_memory_bytes(device: torch.device) -> int:
    """Return the memory in bytes, used or not: of the GPU, or what this process may use on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return min([int(psutil.virtual_memory().total), *(limit for limit, _used in _group_limits())])


def free_memory_bytes(device: torch.device) -> int:
    """Return the free memory in bytes: of the GPU, or what this process may still use on a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return max(0, min([int(psutil.virtual_memory().available), *(limit - used for limit, used in _group_limits())]))


def _group_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[tuple[int, int]]:
    """Return the limit and the use of memory of each control group that this process is in (Linux, containers).

    Files in memory that can be read again do not count as used.
    """
    found = []
    for group, limit_name, used_name, cache_name in _memory_groups(root, own):
        try:
            limit = (group / limit_name).read_text(encoding="ascii").strip()
            used = int((group / used_name).read_text(encoding="ascii"))
            stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        except (OSError, ValueError):
            # In a container the groups above its own are not there.
            continue
        if limit.isdecimal():
            found.append((int(limit), used - int(stat.get(cache_name, 0))))
    return found


def _memory_groups(root: Path, own: Path) -> Iterator[tuple[Path, str, str, str]]:
    """Yield the folders of the control groups of this process, innermost first, and the names of their files."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _number, controllers, path = line.split(":", 2)
        if not controllers:
            top, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        relative = Path(path.lstrip("/"))
        for each in (relative, *relative.parents):
            yield (top / each, *names)


def describe_device(device: torch.device) -> str:
    """Describe a device: `NVIDIA H100 (79 GiB)` or `CPU, 2 threads`."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"
    return f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)


@dataclass(frozen=True)
class Processes:
    """The processes that share one training (data parallel), started by accelerate; no-ops if there is only one.

    Every process holds the whole model and computes its shard of each step. Gradients are summed once per step by one
    flat all-reduce rather than by DistributedDataParallel: random numbers follow from the step and the position of an
    image in it, so the sum does not depend on the number of processes, and no process waits for one that has no
    micro-batch left (docs/adr/0009).
    """

    accelerator: Accelerator

    @property
    def count(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def index(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    @property
    def shard(self) -> slice:
        """The slice of a list that this process works on: every n-th item."""
        return slice(self.index, None, self.count)

    def sum_gradients(self, parameters: Sequence[nn.Parameter], *extras: Tensor) -> tuple[Tensor, ...]:
        """All-reduce the gradients in place, and return the sums of `extras` (scalars)."""
        if self.count == 1:
            return extras
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trained]
        tensors = [gradient.float() for gradient in gradients] + [extra.float().reshape(1) for extra in extras]
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        summed = [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
        for parameter, gradient in zip(trained, summed, strict=False):
            # With the strides of the parameter: torch's fused optimizers address both alike.
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        return tuple(value.reshape(()) for value in summed[len(trained) :])

    def broadcast(self, value: T) -> T:
        """Broadcast rank 0's value to all ranks."""
        if self.count == 1:
            return value
        values = [value]
        broadcast_object_list(values)
        return values[0]

    def any_rank(self, value: bool) -> bool:
        """True if `value` is true on any rank."""
        return value if self.count == 1 else any(gather_object([value]))

    def gather(self, values: Sequence[T]) -> list[T]:
        """Concatenate the values of all ranks, in rank order."""
        return list(values) if self.count == 1 else list(gather_object(list(values)))

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.accelerator.wait_for_everyone()
