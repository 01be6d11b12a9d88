"""Adapters by peft (LoRA, DoRA, LoHa, LoKr, IA3, OFT): injection, weights, and the model without them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from peft.tuners.loha.layer import LoHaLayer
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from trainer.errors import CheckpointError
from trainer.models.families.model import LoadedBase
from trainer.models.methods.adapter_files import write_adapter_files, write_single_adapter
from trainer.models.methods.kohya import kohya_keys
from trainer.models.methods.layers import blocks_of, denoiser_layers, size_of, text_encoder_layers
from trainer.models.methods.pissa import as_lora, start_from_base
from trainer.models.methods.starting_files import adapter_weights
from trainer.models.methods.trained import ExportedFile, Trained, Weights, epoch_file
from trainer.protocol.settings import LoraInit, Method, MethodKind
from trainer.protocol.text import _

#: The adapter's name in peft; no file contains it.
ADAPTER = "default"


class Adapters:
    """A `Trained`: an adapter on the denoiser, and on each CLIP text encoder if those are trained."""

    def __init__(
        self,
        base: LoadedBase,
        method: Method,
        configs: Mapping[str, PeftConfig],
        reload: Callable[[], LoadedBase] | None,
    ) -> None:
        """
        Args:
            base: With the adapter injected.
            method: As it is trained.
            configs: Of the exported files.
            reload: Loads the untrained base again.
        """
        self._base = base
        self._method = method
        self._configs = configs
        self._reload = reload
        self._modules: dict[str, nn.Module] = {name: base.module(name) for name in configs}

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return self._modules

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield parameters under the base model's paths, ending in peft's weight name: `….to_q.lora_A`."""
        for name, module in self._modules.items():
            for path, parameter in module.named_parameters():
                parts = path.removesuffix(".weight").split(".")
                if ADAPTER in parts:
                    yield f"{name}.{'.'.join(part for part in parts if part != ADAPTER)}", parameter

    @property
    def blocks(self) -> Sequence[str]:
        return [block for name, module in self._modules.items() for block in blocks_of(name, module)]

    def state(self) -> Weights:
        """Return the weights under peft's names (`….to_q.lora_A.weight`), on the CPU."""
        return {name: adapter_state(module) for name, module in self._modules.items()}

    def load(self, weights: Weights) -> None:
        if self._method.init is not LoraInit.PISSA:
            weights = as_lora(weights)
        if set(weights) != set(self._modules):
            raise CheckpointError(
                f"The checkpoint has adapter weights for {', '.join(weights) or 'no module'}, but the job trains "
                f"{', '.join(self._modules)}.",
                "Start the job from the beginning.",
            )
        for name, module in self._modules.items():
            load_adapter_state(module, weights[name])

    def weights_from(self, tensors: Mapping[str, Tensor]) -> Weights:
        if self._method.init is LoraInit.PISSA:
            raise CheckpointError(
                _("A training with method.init pissa starts from the base's own weights, and not from a file."),
                _("Leave out method.init, or start from the base."),
            )
        return adapter_weights(self._base, self._method, self.state(), tensors)

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
            # peft freezes what it disables and unfreezes all that it enables; here stages decide that.
            for parameter, requires_grad in zip(parameters, required, strict=True):
                parameter.requires_grad_(requires_grad)

    def export(self, folder: Path, name: str, metadata: Mapping[str, Any]) -> list[ExportedFile]:
        """Write the files listed in `adapter_files`."""
        reload = self._reload
        return write_adapter_files(
            folder,
            name,
            self._base,
            self._method.exported,
            as_lora(self.state()),
            self._configs,
            metadata=metadata,
            differences=None if reload is None else lambda: _differences(reload(), self._method, self.state()),
        )

    def export_epoch(self, folder: Path, name: str, epoch: int, metadata: Mapping[str, Any]) -> ExportedFile | None:
        path = folder / epoch_file(name, epoch)
        return write_single_adapter(path, self._base, self._method.exported, as_lora(self.state()), metadata)


def _differences(fresh: LoadedBase, method: Method, weights: Weights) -> dict[str, Tensor]:
    """Compute what the adapter adds to each weight: `lora_unet_….diff`, fp16.

    Args:
        fresh: The base in fp32, which is changed; the one that is trained may be rounded to bf16.
    """
    trained = attach_adapter(fresh, method)
    trained.load(weights)
    differences: dict[str, Tensor] = {}
    for name, module in trained.modules.items():
        keys = kohya_keys(fresh, name, _adapter_layers(module))
        names = {id(layer.get_base_layer().weight): keys[path] for path, layer in _adapter_layers(module).items()}
        for parameter, merged in merged_layers(module, lambda parameter: parameter.detach()):
            differences[f"{names[id(parameter)]}.diff"] = (merged - parameter.detach()).half()
    return differences


@torch.no_grad()
def merged_layers(
    module: nn.Module, original: Callable[[nn.Parameter], Tensor]
) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Yield the adapted weights of a module, each with what it is once the adapter is merged into it.

    Args:
        original: Returns a weight without the adapter in fp32, on the adapter's device.
    """
    for layer in _adapter_layers(module).values():
        parameter = layer.get_base_layer().weight
        kept = parameter.data
        try:
            parameter.data = original(parameter).clone()
            layer.merge()
            merged = parameter.data
        finally:
            parameter.data = kept
        yield parameter, merged


def attach_adapter(base: LoadedBase, method: Method, reload: Callable[[], LoadedBase] | None = None) -> Trained:
    """Inject an adapter, at first without effect, into the denoiser, and into CLIP text encoders if they are trained.

    Args:
        reload: Loads the untrained base again, for the file of differences; None: that file is not written.

    Raises:
        BadSpecError: the targets match no layer.
    """
    layers = {base.denoiser_name: denoiser_layers(base.denoiser, base.denoiser_name, method)}
    if method.text_encoder:
        layers = {
            name: chosen
            for name, encoder in base.clip_encoders.items()
            if (chosen := text_encoder_layers(encoder, name, method))
        } | layers

    def configs_of(each: Method) -> dict[str, PeftConfig]:
        return {name: adapter_config(base.module(name), name, each, chosen) for name, chosen in layers.items()}

    configs = configs_of(method)
    exported = configs if method.exported is method else configs_of(method.exported)
    for name, config in configs.items():
        inject(base.module(name), config)
        if method.init is LoraInit.PISSA:
            for layer in _adapter_layers(base.module(name)).values():
                start_from_base(layer, ADAPTER)
    return Adapters(base, method, exported, reload)


def adapter_config(module: nn.Module, name: str, method: Method, layers: Sequence[str]) -> PeftConfig:
    """Make peft's configuration of an adapter on `layers` of `module`, called `name`."""
    names = list(layers)
    sizes = {layer: size_of(method, f"{name}.{layer}", module.get_submodule(layer)) for layer in layers}
    patterns: dict[str, Any] = {
        "rank_pattern": _by_value({layer: rank for layer, (rank, _alpha) in sizes.items() if rank != method.rank}),
        "alpha_pattern": _by_value(
            {layer: alpha for layer, (_rank, alpha) in sizes.items() if alpha != method.effective_alpha}
        ),
    }
    match method.kind:
        case MethodKind.LORA | MethodKind.DORA:
            return LoraConfig(
                r=method.rank,
                lora_alpha=method.effective_alpha,
                lora_dropout=method.dropout,
                target_modules=names,
                init_lora_weights="gaussian",
                use_dora=method.kind is MethodKind.DORA,
                use_rslora=method.rank_stabilized,
                **patterns,
            )
        case MethodKind.LOHA:
            # Not rank dropout: peft divides by the kept share, which can be zero in narrow layers.
            return LoHaConfig(
                r=method.rank,
                alpha=method.effective_alpha,
                module_dropout=method.dropout,
                target_modules=names,
                **patterns,
            )
        case MethodKind.LOKR:
            return LoKrConfig(
                r=method.rank,
                alpha=method.effective_alpha,
                module_dropout=method.dropout,
                decompose_factor=method.factor or -1,
                target_modules=names,
                init_weights="lycoris",
                **patterns,
            )
        case MethodKind.IA3:
            return IA3Config(target_modules=names, feedforward_modules=_input_scaled(module, names))
        case MethodKind.OFT:
            # peft 0.21.2 never applies its dropout setting for OFT.
            return OFTConfig(oft_block_size=method.block_size, target_modules=names)
        case _:
            raise AssertionError(f"{method.kind} is not an adapter")


def _by_value(values: Mapping[str, float]) -> dict[str, float]:
    """Give each value by one pattern that names all of its layers: peft tries every pattern on every layer."""
    layers: dict[float, list[str]] = {}
    for layer, value in values.items():
        layers.setdefault(value, []).append(re.escape(layer))
    return {"|".join(names): value for value, names in layers.items()}


def _input_scaled(module: nn.Module, layers: Sequence[str]) -> list[str]:
    """Layers with a bias: peft's output scaling includes the bias, and LyCORIS's files do not.

    So a UNet's queries, keys and values are scaled at the output, and the second layer of a feed-forward at the input,
    as in the paper.
    """
    return [layer for layer in layers if module.get_submodule(layer).bias is not None]


def inject(module: nn.Module, config: PeftConfig) -> None:
    """Inject an adapter into `module`, in fp32 whatever the base's precision: its updates are too small for bf16."""
    with warnings.catch_warnings():
        # The setting's documentation says that the nearest valid size is used.
        warnings.filterwarnings("ignore", message="Invalid `oft_block_size`")
        inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    for path, parameter in module.named_parameters():
        if ADAPTER in path.split("."):
            parameter.data = parameter.data.float()
    for layer in _adapter_layers(module).values():
        # peft injects layers in train mode.
        layer.train(module.training)
        if isinstance(layer, LoHaLayer):
            _initialize_as_lycoris(layer)
        elif isinstance(layer, LoraLayer) and ADAPTER in layer.lora_magnitude_vector:
            _initialize_magnitude(layer)


@torch.no_grad()
def _initialize_magnitude(layer: Any) -> None:
    """Start a DoRA's magnitudes at the norms of the weights in fp32: rounded to half precision, as peft computes those
    of weights that are stored in it, they would change the model before it is trained."""
    weight = layer.get_base_layer().weight
    if weight.dtype is not torch.float32:
        magnitude = layer.lora_magnitude_vector[ADAPTER].weight
        norms = torch.linalg.vector_norm(weight.float(), dim=tuple(range(1, weight.ndim)))
        magnitude.data = norms.reshape(magnitude.shape)


@torch.no_grad()
def _initialize_as_lycoris(layer: LoHaLayer) -> None:
    """Start a LoHa as LyCORIS does (`modules/loha.py`), so that its learning rates mean the same here.

    peft starts the factors smaller, as for a plain network, and learns more slowly at first.
    """
    nn.init.normal_(layer.hada_w1_a[ADAPTER], std=0.1)
    nn.init.normal_(layer.hada_w1_b[ADAPTER], std=1.0)
    nn.init.zeros_(layer.hada_w2_a[ADAPTER])
    nn.init.normal_(layer.hada_w2_b[ADAPTER], std=1.0)


def remove_adapter(module: nn.Module) -> None:
    """Remove the adapter's layers; the module is the base's again."""
    for path, layer in _adapter_layers(module).items():
        parent, _, own = path.rpartition(".")
        setattr(module.get_submodule(parent), own, layer.get_base_layer())
    del module.peft_config


def _adapter_layers(module: nn.Module) -> dict[str, Any]:
    """peft's layers by path; `Any`, because one of their two base classes is untyped."""
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}


def adapter_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the adapter's weights under peft's names, on the CPU."""
    state: dict[str, Tensor] = get_peft_model_state_dict(module, adapter_name=ADAPTER)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


@torch.no_grad()
def load_adapter_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Restore what `adapter_state` returned.

    Raises:
        CheckpointError: the weights do not fit the adapter.
    """
    expected = {name: tensor.shape for name, tensor in adapter_state(module).items()}
    given = {name: tensor.shape for name, tensor in state.items()}
    wrong = next((name for name in sorted(expected | given) if expected.get(name) != given.get(name)), None)
    if wrong is not None:
        raise CheckpointError(
            f"The adapter weights do not fit this job (at {wrong}).", "Start the job from the beginning."
        )
    set_peft_model_state_dict(module, dict(state), adapter_name=ADAPTER)
