"""Writes adapters as files for other programs.

| kind       | for diffusers                                  | `<name>.safetensors` | `<name>-diff.safetensors` |
| LoRA       | `diffusers/pytorch_lora_weights.safetensors`   | kohya's names        |                           |
| DoRA       | the same                                       | LyCORIS's names      | differences               |
| LoHa, LoKr | `diffusers/<module>/`, folders that peft loads | LyCORIS's names      |                           |
| (IA)³      | `diffusers/<module>/`                          | LyCORIS's names      | differences               |
| OFT        | `diffusers/<module>/`                          |                      | differences               |

Which program reads which file exactly is in `readers`; a file that none reads is not written. diffusers 0.42.1 converts
LoKr for Z-Image and Flux 2 only, and no other LyCORIS kind; so those are peft folders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from peft import PeftConfig
from safetensors.torch import save_file
from torch import Tensor

from trainer.models.families.model import LoadedBase
from trainer.models.methods.checkpoint_file import write_single_file
from trainer.models.methods.kohya import kohya_state, network_metadata, with_text_model
from trainer.models.methods.layers import scale_of
from trainer.models.methods.readers import adapter_readers, readers_of
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
    differences: Callable[[], Mapping[str, Tensor]] | None,
) -> list[ExportedFile]:
    """Write all files of the adapter's kind into `folder`.

    Args:
        metadata: Goes into the headers of the single files.
        differences: Computes what was added to each weight, by kohya's names; None: that file is not wanted.
    """
    configs = {module: _for_use(config) for module, config in configs.items()}
    if method.kind in {MethodKind.LORA, MethodKind.DORA}:
        path = _write_lora(folder / _FOLDER, base, method, weights, configs)
    else:
        path = _write_peft(folder / _FOLDER, weights, configs)
    files = [_exported(ExportFormat.DIFFUSERS, path, base, method, weights)]
    single = write_single_adapter(folder / f"{name}.safetensors", base, method, weights, metadata)
    if single is not None:
        files.append(single)
    if differences is not None and readers_of(ExportFormat.DIFFERENCE, method.kind, base.family):
        header = {**metadata, "ss_network_module": "lycoris.kohya", "ss_network_args": {"algo": "full"}}
        path = write_single_file(folder / f"{name}-diff.safetensors", differences(), header)
        files.append(_exported(ExportFormat.DIFFERENCE, path, base, method, weights))
    return files


def write_single_adapter(
    path: Path, base: LoadedBase, method: Method, weights: Weights, metadata: Mapping[str, Any]
) -> ExportedFile | None:
    """Write the adapter as one small file by kohya's names; None if no program reads it."""
    if not readers_of(ExportFormat.KOHYA, method.kind, base.family):
        return None
    state = kohya_state(base, method, weights)
    path = write_single_file(path, state, {**metadata, **network_metadata(method)})
    return _exported(ExportFormat.KOHYA, path, base, method, weights)


def _exported(
    file_format: ExportFormat, path: Path, base: LoadedBase, method: Method, weights: Weights
) -> ExportedFile:
    readers = adapter_readers(file_format, method, base.family)
    return ExportedFile(format=file_format, path=path, readers=readers, modules=tuple(weights))


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


def _write_lora(folder: Path, base: LoadedBase, method: Method, weights: Weights, configs: Mapping[str, Any]) -> Path:
    """Write one file for `pipeline.load_lora_weights`, with rank and alpha in its metadata.

    The scale is multiplied into B and alpha is the rank: programs that do not read that metadata, such as ComfyUI,
    assume so.
    """
    scaled = {module: _with_scale(base, module, tensors, method) for module, tensors in weights.items()}
    for config in configs.values():
        config.lora_alpha, config.alpha_pattern, config.use_rslora = method.rank, dict(config.rank_pattern), False
    layers = {f"{module}_lora_layers": _standard_names(module, tensors) for module, tensors in scaled.items()}
    headers = {f"{module}_lora_adapter_metadata": config.to_dict() for module, config in configs.items()}
    pipeline: Any = type(base.pipeline())
    pipeline.save_lora_weights(folder, **layers, **headers, weight_name=LORA_FILE)
    return folder / LORA_FILE


def _with_scale(base: LoadedBase, module: str, tensors: Mapping[str, Tensor], method: Method) -> dict[str, Tensor]:
    def scaled(name: str, tensor: Tensor) -> Tensor:
        layer = name.removesuffix(".lora_B.weight")
        if layer == name:
            return tensor
        return tensor * scale_of(method, f"{module}.{layer}", base.module(module).get_submodule(layer))

    return {name: scaled(name, tensor) for name, tensor in tensors.items()}


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
