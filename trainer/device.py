"""Where the numbers are crunched: device, precision, and how much memory it took."""

from __future__ import annotations

import resource
import sys
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from trainer.errors import BadSpecError, DeviceLostError
from trainer.protocol.settings import Precision

_MIXED_PRECISION = {Precision.FP32: "no", Precision.BF16: "bf16", Precision.FP16: "fp16"}

#: How long the processes of one training wait for each other: the main one may encode a large dataset meanwhile.
_PATIENCE = timedelta(hours=24)


def require_its_gpus(visible: str | None) -> None:
    """Nothing, if the GPUs that a queue gave this job (`visible`, CUDA_VISIBLE_DEVICES) are there.

    Else torch would train on the CPU without a word, for weeks.

    Raises:
        DeviceLostError: torch finds none of them.
    """
    if visible and visible != "-1" and not torch.cuda.is_available():
        raise DeviceLostError(
            f"This job was given GPU {visible}, and torch finds no GPU it can use.",
            "Look at `nvidia-smi` and `python -m trainer devices`; a driver that was updated wants a restart.",
        )


def choose_precision(wanted: Precision) -> Precision:
    """The precision to train in: as told, or the best of this device; on a CPU `auto` is left to a trial.

    Raises:
        BadSpecError: this machine cannot compute in it.
    """
    if wanted is Precision.FP16 and not torch.cuda.is_available():
        raise BadSpecError("training.precision fp16 needs a GPU, and there is none here.", "Choose auto, fp32 or bf16.")
    if wanted is not Precision.AUTO or not torch.cuda.is_available():
        return wanted
    return Precision.BF16 if torch.cuda.is_bf16_supported() else Precision.FP16


def make_accelerator(precision: Precision, *, tf32: bool) -> Accelerator:
    """accelerate's view of this process: device placement, gradient scaling, the processes that share the training."""
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
    return Accelerator(
        mixed_precision=_MIXED_PRECISION.get(precision, "no"),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Compute in `precision` where it is safe to."""
    dtype = dtype_of(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32)


def dtype_of(precision: Precision) -> torch.dtype:
    """What frozen weights are kept in."""
    return {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}.get(precision, torch.float32)


#: Of the CPU's allocator, of CUDA outside torch's allocator, of cuBLAS.
_OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the device (or this machine) has no room left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    )


#: What CUDA, its libraries, NVML and the processes of a training say when a GPU or one of them is gone or broken.
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
    # gloo, of a process that died.
    "connection closed by peer",
    "connection reset by peer",
)
#: The same words, but a program's mistake: another start would end the same way.
_MISTAKES = (
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
    """Whether an exception says that the GPU, or another process of the training, is gone or broken.

    torch raises RuntimeError (AcceleratorError and DistBackendError are of that kind), NVML an exception of its own.
    """
    if not isinstance(error, RuntimeError) and not type(error).__name__.startswith("NVMLError"):
        return False
    text = str(error).lower()
    return any(word in text for word in _LOST) and not any(word in text for word in _MISTAKES)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of the GPU, or of this process on a CPU, bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (peak := _linux_peak_bytes()) is not None:
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts in bytes, others in KiB.
    return peak if sys.platform == "darwin" else peak * 1024


def _linux_peak_bytes() -> int | None:
    """Of this process alone: `ru_maxrss` begins at the peak of whoever started it."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return None if line is None else int(line.split()[1]) * 1024


def describe(device: torch.device) -> str:
    """`NVIDIA H100 (79 GiB)` or `CPU, 2 threads`."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"
    return f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
