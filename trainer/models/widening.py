"""Computes in fp32 with weights as they are stored, half precision and memory-mapped, without a second copy of them."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def widened(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Hold a module in fp32 on a device for a while; afterwards it has its stored weights again."""
    kept = [(tensor, tensor.data) for tensor in chain(module.parameters(), module.buffers())]
    try:
        for tensor, data in kept:
            tensor.data = _wide(data, device)
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


@contextmanager
def widened_layers(device: torch.device, *modules: nn.Module) -> Iterator[None]:
    """Run modules in fp32 on a device for a while, without gradients: each layer is widened only while it runs.

    A model takes the memory of its largest layer. The results are those of the whole model in fp32, to the bit.
    """
    with ExitStack() as stack:
        for layer in chain.from_iterable(module.modules() for module in modules):
            if own := [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]:
                _widen_while_running(layer, own, device, stack)
        yield


def _widen_while_running(layer: nn.Module, own: Iterable[Tensor], device: torch.device, stack: ExitStack) -> None:
    kept: list[list[tuple[Tensor, Tensor]]] = []

    def before(_layer: nn.Module, arguments: Any, options: Mapping[str, Any]) -> tuple[Any, Any]:
        kept.append([(tensor, tensor.data) for tensor in own])
        for tensor in own:
            tensor.data = _wide(tensor.data, device)
        moved = {name: _moved(value, device) for name, value in options.items()}
        return tuple(_moved(value, device) for value in arguments), moved

    def after(*_result: Any) -> None:
        for tensor, data in kept.pop():
            tensor.data = data

    for handle in (
        layer.register_forward_pre_hook(before, with_kwargs=True),
        layer.register_forward_hook(after, always_call=True),
    ):
        stack.callback(handle.remove)


@contextmanager
def stand_ins(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Give modules that do not run weights of one number for a while, in fp32: pipelines ask them for their dtype."""
    tensors = [tensor for module in modules for tensor in module.parameters() if tensor.is_floating_point()]
    kept = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = torch.zeros((), device=tensor.device).expand(tensor.shape)
        yield
    finally:
        for tensor, data in zip(tensors, kept, strict=True):
            tensor.data = data


def release_pages(tensors: Iterable[Tensor]) -> None:
    """Give the memory of tensors that lie in files back to the system (Linux); it is read again if they are used.

    They must not have been changed, which would be lost. Without this, a process that has read a model counts as twice
    as large as it is.

    Args:
        tensors: Released as they come; a generator may copy each before it yields it.
    """
    files = _mapped_files()
    library = ctypes.CDLL(None)
    for tensor in tensors:
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        # Whole pages only: the rest of the others belongs to its neighbors.
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last and tensor.device.type == "cpu" and any(a <= first and last <= b for a, b in files):
            library.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def _mapped_files() -> list[tuple[int, int]]:
    """Return the addresses at which files of weights are mapped into this process; none where there is no `/proc`."""
    found = []
    if sys.platform == "linux":
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.endswith(".safetensors"):
                start, _, end = line.partition(" ")[0].partition("-")
                found.append((int(start, 16), int(end, 16)))
    return found


def _wide(data: Tensor, device: torch.device) -> Tensor:
    return data.to(device, torch.float32) if data.is_floating_point() else data.to(device)


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
