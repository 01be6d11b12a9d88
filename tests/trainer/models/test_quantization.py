"""The frozen weights in 8 and 4 bits: close to the base, as exact in the backward pass, and small."""

from __future__ import annotations

import copy
import sys
from functools import cache
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name

from tests.trainer.models.random_adapters import Load, method_of
from trainer.errors import MissingLibraryError
from trainer.models.base import LoadedBase, load_base
from trainer.models.methods.adapters import attach_adapter
from trainer.models.methods.trained import Trained
from trainer.models.quantization import _Quantized, quantize
from trainer.protocol.settings import Base, Method, MethodKind, Quantization, Targets

CPU = torch.device("cpu")
Lora: TypeAlias = tuple[Quantization, LoadedBase, Trained]
#: An adapter on few layers: all layers are quantized, and attaching it takes a third of the time.
IN_ATTENTION = method_of(MethodKind.LORA, targets=Targets.ATTENTION)


@cache
def tiny() -> LoadedBase:
    return load_base(Base())


def attached(base: LoadedBase, method: Method) -> Trained:
    torch.manual_seed(0)
    return attach_adapter(base, method)


def quantized(base: LoadedBase, kind: Quantization, method: Method) -> Trained:
    trained = attached(base, method)
    quantize(base.denoiser, kind, trained={id(own) for _name, own in trained.named_parameters()}, device=CPU)
    return trained


def predict(base: LoadedBase, *, in_bf16: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 77, base.denoiser.config.cross_attention_dim, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=in_bf16):
        return base.predict(noisy, torch.tensor([300, 700]), {"caption_BTD": text})


def quantized_layers(base: LoadedBase) -> dict[str, _Quantized]:
    return {name: layer for name, layer in base.denoiser.named_modules() if isinstance(layer, _Quantized)}


@pytest.fixture(scope="module", params=Quantization)
def lora(request: pytest.FixtureRequest) -> Lora:
    base = copy.deepcopy(tiny())
    return request.param, base, quantized(base, request.param, IN_ATTENTION)


@pytest.fixture(scope="module")
def exact() -> Tensor:
    with torch.no_grad():
        return predict(tiny())


def test_the_layers_of_the_blocks_are_quantized_and_the_prediction_stays_close(lora: Lora, exact: Tensor) -> None:
    kind, base, _trained = lora
    layers = quantized_layers(base)

    blocks = [
        name
        for name, layer in base.denoiser.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and "_blocks." in f"{name}." and "lora_" not in name
    ]
    assert set(blocks) <= set(layers)
    assert not {"conv_in", "conv_out", "time_embedding.linear_1"} & set(layers)
    with torch.no_grad():
        distance = float((predict(base) - exact).norm() / exact.norm())
    # NF4 has 16 values, e4m3 eight between two powers of two, int8 255.
    assert 0 < distance < {Quantization.INT8: 0.005, Quantization.FP8: 0.02, Quantization.NF4: 0.1}[kind]


def test_the_frozen_weights_take_their_bytes(lora: Lora) -> None:
    kind, base, _trained = lora

    taken = weights = 0
    for layer in quantized_layers(base).values():
        stored: Any = layer.quantized_weight
        taken += sum(getattr(stored, name).nbytes for name in stored.__tensor_flatten__()[0])
        weights += layer.weight_shape.numel()

    # The layers of the tiny model are so small that their scales count.
    assert taken / weights < {Quantization.INT8: 1.2, Quantization.FP8: 1.2, Quantization.NF4: 0.7}[kind]


def test_gradients_are_those_of_the_widened_weights(lora: Lora) -> None:
    _kind, base, trained = lora
    wide = copy.deepcopy(tiny())
    wide_trained = attached(wide, IN_ATTENTION)
    layers = dict(wide.denoiser.named_modules())
    for name, layer in quantized_layers(base).items():
        layers[name].weight.data = layer.weight.clone()

    gradients = []
    for model, method in ((base, trained), (wide, wide_trained)):
        torch.autograd.backward(predict(model).square().mean())
        gradients.append([own.grad for _name, own in method.named_parameters() if own.grad is not None])

    assert len(gradients[0]) == len(gradients[1]) > 0
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", Quantization)
@pytest.mark.parametrize("layer", [nn.Linear(64, 96), nn.Conv2d(64, 96, 3)], ids=["linear", "convolution"])
def test_nothing_is_kept_for_the_backward_pass(kind: Quantization, layer: nn.Module) -> None:
    own = copy.deepcopy(layer).requires_grad_(False)
    block = nn.ModuleDict({"mid_block": nn.ModuleDict({"own": own})})
    quantize(block, kind, trained=(), device=CPU)
    kept: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    given = torch.ones(1, 64, 8, 64, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        output = own(given)
    torch.autograd.backward(output.float().sum())

    assert kept == []
    assert given.grad is not None


@pytest.mark.parametrize("method", [kind for kind in MethodKind if kind.is_adapter])
def test_every_adapter_learns_on_quantized_weights(load: Load, method: MethodKind) -> None:
    base = load("sd1")
    with torch.no_grad():
        exact = predict(base)
    trained = quantized(base, Quantization.INT8, method_of(method))

    prediction = predict(base, in_bf16=True)
    torch.autograd.backward(prediction.float().square().mean())

    assert float((prediction.detach() - exact).norm() / exact.norm()) < 0.02
    assert any(own.grad is not None and bool(own.grad.any()) for _name, own in trained.named_parameters())


def test_weights_too_small_for_the_blocks_of_nf4_stay() -> None:
    odd, even = nn.Linear(3, 5), nn.Linear(64, 2)
    before = odd(torch.ones(1, 3))

    block = nn.ModuleDict({"mid_block": nn.ModuleDict({"odd": odd, "even": even})})
    quantize(block, Quantization.NF4, trained=(), device=CPU)

    assert torch.equal(odd(torch.ones(1, 3)), before)
    assert isinstance(even, _Quantized)


def test_quantized_layers_stay_as_they_are_when_quantized_again(load: Load) -> None:
    base = load("sd1")
    quantized(base, Quantization.INT8, IN_ATTENTION)
    before = predict(base).detach()

    quantize(base.denoiser, Quantization.INT8, trained=(), device=CPU)
    base.denoiser.to(CPU, memory_format=torch.channels_last)

    torch.testing.assert_close(predict(base).detach(), before)


@pytest.fixture
def no_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    # An entry of None makes the import fail.
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)


@pytest.mark.usefixtures("no_torchao")
def test_without_torchao_a_sentence_says_so() -> None:
    with pytest.raises(MissingLibraryError, match="needs torchao") as refusal:
        quantize(nn.Linear(2, 2), Quantization.INT8, trained=(), device=CPU)

    assert "pip install torchao" in refusal.value.hint


def test_torchaos_own_layer_keeps_the_widened_weight() -> None:
    """The reason for our own: once this fails, torchao's can be taken."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer = nn.Linear(16, 32).requires_grad_(False)
    quantize_(layer, Int8WeightOnlyConfig())
    kept: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape) if type(tensor) is Tensor else ())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        F.linear(torch.ones(1, 16, requires_grad=True), layer.weight)

    assert (16, 32) in kept
