"""Keeps the frozen weights of a denoiser in 8 or 4 bits, in the formats of torchao.

Each layer widens its weight while it runs, and again in the backward pass. torchao's own linear layer widens it, too,
but autograd then keeps the wide weight until the backward pass: a training would take as much memory as without.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name
from torch.nn.grad import conv2d_input

from trainer.errors import MissingLibraryError
from trainer.models.methods.layers import BODIES
from trainer.models.widening import release_pages
from trainer.protocol.settings import Quantization
from trainer.protocol.text import _

#: Weights that share a scale in NF4, and scales that share one of their own (QLoRA, arXiv:2305.14314, section 3).
_NF4_BLOCK, _NF4_SCALES = 64, 256
#: Bytes of a weight, with its share of the scales.
BYTES_PER_WEIGHT = {Quantization.INT8: 1.0, Quantization.FP8: 1.0, Quantization.NF4: 0.5 + 1 / _NF4_BLOCK}


def check_quantization(kind: Quantization) -> None:
    """Raise MissingLibraryError if torchao cannot be imported."""
    if sys.modules.get("torchao", sys) is None:
        # Hidden from the libraries that would import it at once (`trainer/__init__.py`).
        del sys.modules["torchao"]
    # It logs which of its CUDA kernels cannot be loaded.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    try:
        import torchao.quantization  # noqa: F401
    except ImportError as error:
        raise MissingLibraryError(
            _("base.quantization {kind} needs torchao, which cannot be imported here.", kind=kind),
            _("`pip install torchao`, or leave base.quantization out."),
        ) from error


def is_quantizable(name: str, layer: nn.Module) -> bool:
    """True for linear and convolutional layers within the denoiser's blocks.

    The layers before and after them are small, and what they round is rounded in every prediction.
    """
    return name.startswith(BODIES) and isinstance(layer, nn.Linear | nn.Conv2d)


@torch.no_grad()
def quantize(denoiser: nn.Module, kind: Quantization, *, trained: Collection[int], device: torch.device) -> None:
    """Quantize the frozen layers of a denoiser onto `device`, one by one; layers that are quantized already stay.

    Args:
        trained: Ids of the trained parameters, which stay as they are.
    """
    check_quantization(kind)
    release_pages(_replaced_weights(denoiser, kind, trained, device))
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        # glibc keeps what the layers took while they were quantized: 0.36 GB of SD 1.5, beside 0.84 that stay.
        library.malloc_trim(0)


def _replaced_weights(
    denoiser: nn.Module, kind: Quantization, trained: Collection[int], device: torch.device
) -> Iterator[Tensor]:
    """Replace each frozen weight by a quantized one, and yield it as it was stored."""
    for name, layer in list(denoiser.named_modules()):
        if not is_quantizable(name, layer) or isinstance(layer, _Quantized) or id(layer.weight) in trained:
            continue
        stored: Tensor = layer.weight.data
        quantized = _quantized(stored.to(device, torch.float32).flatten(1), kind)
        if quantized is not None:
            del layer.weight
            layer.__class__ = _QuantizedLinear if isinstance(layer, nn.Linear) else _QuantizedConv2d
            layer.weight_shape = stored.shape
            layer.quantized_weight = nn.Parameter(quantized, requires_grad=False)
            yield stored


def _quantized(weight_OI: Tensor, kind: Quantization) -> Any:
    """Return a weight in the format `kind`; None if it is too small for the blocks of NF4."""
    from torchao.quantization import Float8Tensor, Int8Tensor, NF4Tensor, PerRow

    if kind is Quantization.INT8:
        return Int8Tensor.from_hp(weight_OI, PerRow())
    if kind is Quantization.FP8:
        return Float8Tensor.from_hp(weight_OI, granularity=PerRow())
    blocks, rest = divmod(weight_OI.numel(), _NF4_BLOCK)
    if rest:
        return None
    # The largest power of two that divides the number of blocks.
    return NF4Tensor.from_tensor(weight_OI.contiguous(), _NF4_BLOCK, min(_NF4_SCALES, blocks & -blocks))


class _Quantized(nn.Module):
    """A layer whose weight is quantized; `weight` is a widened copy of it."""

    quantized_weight: nn.Parameter
    weight_shape: torch.Size

    @property
    def weight(self) -> Tensor:
        return self.widened(self.compute_dtype(self.quantized_weight))

    def widened(self, dtype: torch.dtype) -> Tensor:
        stored: Any = self.quantized_weight.data
        # `to` is how an NF4Tensor is widened.
        weight: Tensor = stored.dequantize(dtype) if hasattr(stored, "qdata") else stored.to(dtype)
        return weight.view(self.weight_shape)

    @staticmethod
    def compute_dtype(tensor: Tensor) -> torch.dtype:
        """Return autocast's dtype, or else that of the tensor."""
        kind = tensor.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


class _QuantizedLinear(_Quantized, nn.Linear):  # type: ignore[override]  # torch has a variable
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        output: Tensor = _Linear.apply(input.to(self.compute_dtype(input)), self)  # type: ignore[no-untyped-call]
        return output if self.bias is None else output + self.bias.to(output.dtype)


class _QuantizedConv2d(_Quantized, nn.Conv2d):  # type: ignore[override]
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        output: Tensor = _Convolution.apply(input.to(self.compute_dtype(input)), self)  # type: ignore[no-untyped-call]
        return output if self.bias is None else output + self.bias.to(output.dtype).view(-1, 1, 1)


class _Linear(torch.autograd.Function):
    """A linear layer without bias that widens its weight in both passes."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: _QuantizedLinear) -> Tensor:  # noqa: A002
        ctx.layer = layer
        return F.linear(input, layer.widened(input.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.widened(gradient.dtype), None


class _Convolution(torch.autograd.Function):
    """A convolution without bias that widens its weight in both passes."""

    @staticmethod
    def forward(ctx: Any, input_BCHW: Tensor, layer: _QuantizedConv2d) -> Tensor:
        ctx.layer, ctx.shape = layer, input_BCHW.shape
        weight = layer.widened(input_BCHW.dtype)
        return F.conv2d(input_BCHW, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient_BCHW,), layer = gradients, ctx.layer
        weight = layer.widened(gradient_BCHW.dtype)
        gradient = conv2d_input(  # type: ignore[no-untyped-call]
            ctx.shape, weight, gradient_BCHW, layer.stride, layer.padding, layer.dilation, layer.groups
        )
        return gradient, None
