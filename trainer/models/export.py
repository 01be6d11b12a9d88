"""LoRA files for other programs: diffusers' layout, and kohya's, which A1111 and ComfyUI read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from safetensors.torch import save, save_file
from torch import Tensor

from trainer.models.lora import TEXT_ENCODER_TARGETS

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"

#: kohya's prefixes for Stable Diffusion 1.x and 2.x (`networks/lora.py` of kohya-ss/sd-scripts).
_KOHYA_PREFIX = {"unet": "lora_unet", "text_encoder": "lora_te"}
_KOHYA_MATRIX = {"lora_A": "lora_down", "lora_B": "lora_up"}


def with_text_model(name: str) -> str:
    """The name of a text encoder layer as all readers know it: with `text_model.` in front.

    transformers >= 5.23 dropped that level of CLIPTextModel.
    """
    return name if name.startswith("text_model.") else f"text_model.{name}"


def standard_names(weights: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """`weights` (model -> peft name -> tensor) with the text encoder's layers under their standard names."""
    return {
        model: {with_text_model(name) if model == "text_encoder" else name: tensor for name, tensor in tensors.items()}
        for model, tensors in weights.items()
    }


def write_diffusers(folder: Path, weights: Mapping[str, Mapping[str, Tensor]], config: LoraConfig) -> Path:
    """`pytorch_lora_weights.safetensors`, with rank and alpha in its metadata, for `pipeline.load_lora_weights`."""
    named = standard_names(weights)
    # A loader that believes in the dropout of training would go on dropping: diffusers injects layers in train mode.
    metadata = {**config.to_dict(), "lora_dropout": 0.0}
    has_text_encoder = "text_encoder" in named
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=named["unet"],
        text_encoder_lora_layers=named.get("text_encoder"),
        unet_lora_adapter_metadata=metadata,
        text_encoder_lora_adapter_metadata=_text_encoder_metadata(metadata) if has_text_encoder else None,
        weight_name=DIFFUSERS_FILE,
    )
    return folder / DIFFUSERS_FILE


def _text_encoder_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    return {**metadata, "target_modules": list(TEXT_ENCODER_TARGETS)}


def kohya_state(weights: Mapping[str, Mapping[str, Tensor]], alpha: float) -> dict[str, Tensor]:
    """kohya's names: prefix, module path with `_` for `.`, then `.lora_down.weight`, `.lora_up.weight`, `.alpha`.

    Weights are fp16, as kohya saves them by default; alpha is the true one (diffusers' own converter writes the rank).
    """
    state: dict[str, Tensor] = {}
    for model, tensors in standard_names(weights).items():
        for name, tensor in tensors.items():
            module, matrix, _ = name.rsplit(".", 2)
            key = f"{_KOHYA_PREFIX[model]}_{module.replace('.', '_')}"
            state[f"{key}.{_KOHYA_MATRIX[matrix]}.weight"] = tensor.half().contiguous()
            state[f"{key}.alpha"] = torch.tensor(alpha)
    return state


def write_kohya(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """A kohya LoRA with its metadata, and the two hashes by which A1111 knows a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(state), path, metadata={**metadata, **tensor_hashes(state)})
    return path


def tensor_hashes(state: Mapping[str, Tensor]) -> dict[str, str]:
    """`sshs_model_hash` and `sshs_legacy_hash`: SHA-256 of the tensor bytes, whatever the metadata.

    Source: `precalculate_safetensors_hashes` of kohya-ss/sd-scripts `library/train_util.py`.
    """
    blob = save(dict(state))
    header = int.from_bytes(blob[:8], "little")
    model_hash = hashlib.sha256(blob[8 + header :]).hexdigest()
    # A1111's first hash: 64 KiB from 1 MiB on, eight digits.
    legacy_hash = hashlib.sha256(blob[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    return {"sshs_model_hash": model_hash, "sshs_legacy_hash": legacy_hash}


def as_metadata(values: Mapping[str, Any]) -> dict[str, str]:
    """safetensors metadata holds strings only: numbers as kohya prints them, nested values as JSON."""
    return {
        key: value if isinstance(value, str) else json.dumps(value) if isinstance(value, dict | list) else str(value)
        for key, value in values.items()
    }
