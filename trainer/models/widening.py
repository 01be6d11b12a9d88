"""Computes in fp32 with weights as they are stored, half precision and memory-mapped, without a second copy of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain
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


def _wide(data: Tensor, device: torch.device) -> Tensor:
    return data.to(device, torch.float32) if data.is_floating_point() else data.to(device)


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
