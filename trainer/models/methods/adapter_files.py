"""Writes adapters as files for other programs.

| kind           | for diffusers                                      | one file for A1111, ComfyUI and others |
| LoRA, DoRA     | `diffusers/pytorch_lora_weights.safetensors`       | kohya's names; DoRA with LyCORIS's      |
| LoHa, LoKr, IA3| `diffusers/<module>/`, folders that peft loads     | LyCORIS's names                         |
| OFT            | `diffusers/<module>/`                              | none: LyCORIS rotates the other side    |

diffusers 0.42.1 converts LoKr for Z-Image and Flux 2 only, and no other LyCORIS kind. Those are saved as a peft folder:
`PeftModel.from_pretrained(pipeline.unet, "diffusers/unet")`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from peft import PeftConfig
from safetensors.torch import save_file
from torch import Tensor

from trainer.models.families.model import LoadedBase
from trainer.models.methods.checkpoint_file import write_single_file
from trainer.models.methods.kohya import has_kohya_file, kohya_state, network_metadata, with_text_model
from trainer.models.methods.trained import ExportedFile, Weights
from trainer.protocol.events import ExportFormat
from trainer.protocol.settings import Method, MethodKind

LORA_FILE = "pytorch_lora_weights.safetensors"
_FOLDER = "diffusers"
#: Prefix of all names in peft's files.
PEFT_PREFIX = "base_model.model."


def write_adapter_files(
    folder: Path,
    name: str,
    base: LoadedBase,
    method: Method,
    weights: Weights,
    configs: Mapping[str, PeftConfig],
    *,
    metadata: Mapping[str, Any],
) -> list[ExportedFile]:
    """Write all files of the adapter's kind into `folder`; `metadata` goes into the header of `<name>.safetensors`."""
    configs = {module: _for_use(config) for module, config in configs.items()}
    if method.kind in {MethodKind.LORA, MethodKind.DORA}:
        path = _write_lora(folder / _FOLDER, base, weights, configs)
    else:
        path = _write_peft(folder / _FOLDER, weights, configs)
    files = [ExportedFile(format=ExportFormat.DIFFUSERS, path=path)]
    if has_kohya_file(method.kind):
        state = kohya_state(base, method, weights)
        header = {**metadata, **network_metadata(method)}
        path = write_single_file(folder / f"{name}.safetensors", state, header)
        files.append(ExportedFile(format=ExportFormat.KOHYA, path=path))
    return files


def _for_use(config: PeftConfig) -> Any:
    """Copy a config for inference: no dropout, and lists in place of sets for reproducible bytes."""
    copy: Any = deepcopy(config)
    copy.inference_mode = True
    for field in ("target_modules", "feedforward_modules"):
        if hasattr(copy, field):
            setattr(copy, field, sorted(getattr(copy, field)))
    for field in ("lora_dropout", "module_dropout"):
        if hasattr(copy, field):
            # diffusers injects layers in train mode, so a dropout in the config would stay active.
            setattr(copy, field, 0.0)
    return copy


def _write_lora(folder: Path, base: LoadedBase, weights: Weights, configs: Mapping[str, Any]) -> Path:
    """Write one file for `pipeline.load_lora_weights`, with rank and alpha in its metadata."""
    layers = {f"{module}_lora_layers": _standard_names(module, tensors) for module, tensors in weights.items()}
    headers = {f"{module}_lora_adapter_metadata": config.to_dict() for module, config in configs.items()}
    pipeline: Any = type(base.pipeline())
    pipeline.save_lora_weights(folder, **layers, **headers, weight_name=LORA_FILE)
    return folder / LORA_FILE


def _standard_names(module: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of text encoders as their loaders expect; a denoiser keeps peft's names."""
    if not module.startswith("text_encoder"):
        return dict(tensors)
    # transformers 5 loads DoRA magnitudes of a text encoder only under the full name; peft accepts both.
    full = {f"{name}.weight" if name.endswith("lora_magnitude_vector") else name: t for name, t in tensors.items()}
    return {with_text_model(name): tensor for name, tensor in full.items()}


def _write_peft(folder: Path, weights: Weights, configs: Mapping[str, Any]) -> Path:
    """Write one folder per module, in the layout of `PeftModel.save_pretrained`.

    Layer names are those of the installed transformers, which peft matches exactly.
    """
    for module, tensors in weights.items():
        own = folder / module
        own.mkdir(parents=True, exist_ok=True)
        configs[module].save_pretrained(own)
        save_file({f"{PEFT_PREFIX}{name}": t for name, t in tensors.items()}, own / "adapter_model.safetensors")
    return folder
