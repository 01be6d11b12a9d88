"""LoRA by peft: which layers get one, and its weights in and out of the model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from trainer.errors import CheckpointError
from trainer.protocol.spec import Adapter, Targets

ADAPTER = "default"

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_LINEAR = (*_ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
_ALL = (*_LINEAR, "conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv")

UNET_TARGETS = {Targets.ATTENTION: _ATTENTION, Targets.LINEAR: _LINEAR, Targets.ALL: _ALL}
TEXT_ENCODER_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


def add_unet_lora(unet: nn.Module, adapter: Adapter) -> LoraConfig:
    """Put a fresh LoRA on the UNet; its output does not change until it is trained (B = 0)."""
    return _add(unet, adapter, UNET_TARGETS[adapter.targets])


def add_text_encoder_lora(text_encoder: nn.Module, adapter: Adapter) -> LoraConfig:
    """Put a fresh LoRA on the attention of the text encoder."""
    return _add(text_encoder, adapter, TEXT_ENCODER_TARGETS)


def _add(model: nn.Module, adapter: Adapter, targets: tuple[str, ...]) -> LoraConfig:
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.effective_alpha,
        lora_dropout=adapter.dropout,
        target_modules=list(targets),
        init_lora_weights="gaussian",
    )
    model.add_adapter(config, adapter_name=ADAPTER)  # type: ignore[operator]
    for parameter in trainable_parameters(model):
        # The LoRA stays in fp32 whatever the base is in: its steps are too small for bf16.
        parameter.data = parameter.data.float()
    return config


def remove_lora(model: nn.Module) -> None:
    """Leave the base model as it was."""
    # diffusers and transformers have each their own name for it.
    delete = model.delete_adapters if hasattr(model, "delete_adapters") else model.delete_adapter
    delete(ADAPTER)  # type: ignore[operator]


def trainable_parameters(*models: nn.Module) -> Iterator[nn.Parameter]:
    for model in models:
        yield from (parameter for parameter in model.parameters() if parameter.requires_grad)


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The LoRA of a model, peft's names (`….to_q.lora_A.weight`), on the CPU."""
    state: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=ADAPTER)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


@torch.no_grad()
def load_lora_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what `lora_state` gave.

    Raises:
        CheckpointError: the weights are of another LoRA.
    """
    try:
        result = set_peft_model_state_dict(model, state, adapter_name=ADAPTER)
    except RuntimeError as error:
        raise CheckpointError(f"The LoRA weights do not fit this job ({error}).", "Start it anew.") from error
    missing = [name for name in result.missing_keys if "lora_" in name]
    if missing or result.unexpected_keys:
        wrong = [*missing, *result.unexpected_keys][0]
        raise CheckpointError(f"The LoRA weights do not fit this job (at {wrong}).", "Start it anew.")
