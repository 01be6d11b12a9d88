"""Where the numbers are crunched: device, precision, and how much memory it took."""

from __future__ import annotations

import resource
import sys

import torch
from accelerate import Accelerator

from trainer.errors import BadSpecError
from trainer.protocol.spec import Precision

_MIXED_PRECISION = {Precision.FP32: "no", Precision.BF16: "bf16", Precision.FP16: "fp16"}


def choose_precision(wanted: Precision) -> Precision:
    """The precision to train in: as told, or the best of this device.

    On a CPU `auto` is fp32: bf16 autocast loses on small models there (0.63 of fp32 on a tiny one).

    Raises:
        BadSpecError: this machine cannot compute in it.
    """
    if wanted is Precision.FP16 and not torch.cuda.is_available():
        raise BadSpecError("training.precision fp16 needs a GPU, and there is none here.", "Choose auto, fp32 or bf16.")
    if wanted is not Precision.AUTO:
        return wanted
    if not torch.cuda.is_available():
        return Precision.FP32
    return Precision.BF16 if torch.cuda.is_bf16_supported() else Precision.FP16


def make_accelerator(precision: Precision) -> Accelerator:
    """accelerate's view of this process: device placement, autocast, gradient scaling."""
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    return Accelerator(mixed_precision=_MIXED_PRECISION[precision])


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of the GPU, or of this process on a CPU, bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024


def describe(device: torch.device) -> str:
    """`NVIDIA H100 (79 GiB)` or `CPU, 2 threads`."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"
    return f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
