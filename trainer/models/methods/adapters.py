"""Adapters by peft, of every kind: put on a model, their weights in and out, and the model without them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from trainer.errors import CheckpointError
from trainer.models.families.model import BaseModel
from trainer.models.methods.adapter_files import write_adapter_files
from trainer.models.methods.blocks import blocks_of
from trainer.models.methods.targets import denoiser_layers, text_encoder_layers
from trainer.models.methods.trained import ExportedFile, Trained, Weights
from trainer.protocol.settings import Method, MethodKind

#: peft's name of our adapter; no file holds it.
ADAPTER = "default"
#: T5 is never trained: it is larger than the denoiser, and no other program reads an adapter of it.
_CLIP = ("text_encoder", "text_encoder_2")


class Adapters:
    """A `Trained`: one adapter on the denoiser, and one on each CLIP text encoder where those are trained too."""

    def __init__(self, base: BaseModel, method: Method, configs: Mapping[str, PeftConfig]) -> None:
        self._base = base
        self._method = method
        self._configs = configs
        self._modules: dict[str, nn.Module] = {name: module_of(base, name) for name in configs}

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return self._modules

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names are paths in the model as it was, with peft's name of the weight at the end: `….to_q.lora_A`."""
        for name, module in self._modules.items():
            for path, parameter in module.named_parameters():
                parts = path.removesuffix(".weight").split(".")
                if ADAPTER in parts:
                    yield f"{name}.{'.'.join(part for part in parts if part != ADAPTER)}", parameter

    @property
    def blocks(self) -> Sequence[str]:
        return [block for name, module in self._modules.items() for block in blocks_of(name, module)]

    def state(self) -> Weights:
        """peft's names (`….to_q.lora_A.weight`), on the CPU."""
        return {name: adapter_state(module) for name, module in self._modules.items()}

    def load(self, weights: Weights) -> None:
        if set(weights) != set(self._modules):
            raise CheckpointError(
                f"The adapter weights are of {', '.join(weights) or 'nothing'}, and the job trains "
                f"{', '.join(self._modules)}.",
                "Start it anew.",
            )
        for name, module in self._modules.items():
            load_adapter_state(module, weights[name])

    @contextmanager
    def base_only(self) -> Iterator[None]:
        parameters = [parameter for _, parameter in self.named_parameters()]
        required = [parameter.requires_grad for parameter in parameters]
        layers = [layer for module in self._modules.values() for layer in _adapter_layers(module).values()]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            # peft freezes what it disables, and unfreezes all that it enables: stages decide that here.
            for parameter, requires_grad in zip(parameters, required, strict=True):
                parameter.requires_grad_(requires_grad)

    def export(self, folder: Path, name: str, metadata: Mapping[str, Any]) -> list[ExportedFile]:
        """See `adapter_files`: what each kind is written as, and who reads it."""
        return write_adapter_files(
            folder, name, self._base, self._method, self.state(), self._configs, metadata=metadata
        )


def attach_adapter(base: BaseModel, method: Method) -> Trained:
    """Put a fresh adapter on the denoiser, and on the CLIP text encoders if they are trained; it does nothing yet.

    Raises:
        BadSpecError: no layer is meant by the targets.
    """
    layers = {base.denoiser_name: denoiser_layers(base.denoiser, base.denoiser_name, method)}
    if method.text_encoder:
        encoders = {name: base.text_encoders[name] for name in _CLIP if name in base.text_encoders}
        layers = {name: text_encoder_layers(encoder) for name, encoder in encoders.items()} | layers
    configs = {name: adapter_config(module_of(base, name), method, chosen) for name, chosen in layers.items()}
    for name, config in configs.items():
        inject(module_of(base, name), config)
    return Adapters(base, method, configs)


def module_of(base: BaseModel, name: str) -> nn.Module:
    """A part of a model by its name in files: `unet`, `transformer`, `text_encoder`, …"""
    module: nn.Module = base.denoiser if name == base.denoiser_name else base.text_encoders[name]
    return module


def adapter_config(module: nn.Module, method: Method, layers: Sequence[str]) -> PeftConfig:
    """What peft needs to know to put a fresh adapter on `layers` of `module`."""
    names = list(layers)
    match method.kind:
        case MethodKind.LORA | MethodKind.DORA:
            return LoraConfig(
                r=method.rank,
                lora_alpha=method.effective_alpha,
                lora_dropout=method.dropout,
                target_modules=names,
                init_lora_weights="gaussian",
                use_dora=method.kind is MethodKind.DORA,
            )
        case MethodKind.LOHA:
            # peft's rank dropout divides by the share that is kept, and by zero where a narrow layer keeps nothing.
            return LoHaConfig(
                r=method.rank, alpha=method.effective_alpha, module_dropout=method.dropout, target_modules=names
            )
        case MethodKind.LOKR:
            return LoKrConfig(
                r=method.rank,
                alpha=method.effective_alpha,
                module_dropout=method.dropout,
                decompose_factor=method.factor or -1,
                target_modules=names,
                init_weights="lycoris",
            )
        case MethodKind.IA3:
            return IA3Config(target_modules=names, feedforward_modules=_scaled_at_the_input(module, names))
        case MethodKind.OFT:
            # peft 0.21.2 has a dropout for OFT and never calls it.
            return OFTConfig(oft_block_size=method.block_size, target_modules=names)
        case _:
            raise AssertionError(f"{method.kind} is no adapter")


def _scaled_at_the_input(module: nn.Module, layers: Sequence[str]) -> list[str]:
    """Layers with a bias: what peft scales at the output includes the bias, and what LyCORIS's files scale does not.

    So queries, keys and values of a UNet are scaled at the output, and the second layer of a feed-forward at the
    input, as in the paper.
    """
    return [layer for layer in layers if module.get_submodule(layer).bias is not None]


def inject(module: nn.Module, config: PeftConfig) -> None:
    """Put a fresh adapter on `module`, in fp32 whatever the base is in: its steps are too small for bf16."""
    with warnings.catch_warnings():
        # Our settings say that the nearest size is taken.
        warnings.filterwarnings("ignore", message="Invalid `oft_block_size`")
        inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    for path, parameter in module.named_parameters():
        if ADAPTER in path.split("."):
            parameter.data = parameter.data.float()
    for layer in _adapter_layers(module).values():
        # Injected layers are in train mode, whatever the model is in.
        layer.train(module.training)


def remove_adapter(module: nn.Module) -> None:
    """Leave the base model as it was."""
    for path, layer in _adapter_layers(module).items():
        parent, _, own = path.rpartition(".")
        setattr(module.get_submodule(parent), own, layer.get_base_layer())
    del module.peft_config


def _adapter_layers(module: nn.Module) -> dict[str, Any]:
    """peft's layers by their path; `Any`: it has two base classes, and one of them is untyped."""
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}


def adapter_state(module: nn.Module) -> dict[str, Tensor]:
    """The adapter of a module, by peft's names, on the CPU."""
    state: dict[str, Tensor] = get_peft_model_state_dict(module, adapter_name=ADAPTER)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


@torch.no_grad()
def load_adapter_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what `adapter_state` gave.

    Raises:
        CheckpointError: the weights are of another adapter.
    """
    expected = {name: tensor.shape for name, tensor in adapter_state(module).items()}
    given = {name: tensor.shape for name, tensor in state.items()}
    wrong = next((name for name in sorted(expected | given) if expected.get(name) != given.get(name)), None)
    if wrong is not None:
        raise CheckpointError(f"The adapter weights do not fit this job (at {wrong}).", "Start it anew.")
    set_peft_model_state_dict(module, dict(state), adapter_name=ADAPTER)
